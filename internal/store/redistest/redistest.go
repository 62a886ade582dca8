// Package redistest starts Redis servers for tests, from what the machine has installed: on loopback, on free ports, in
// folders of their own; one server, a Cluster with TLS, or a group that Sentinels watch. A server keeps nothing.
package redistest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/authsvc/authsvc/internal/store/machine"
)

// ErrMissing says that the machine has no Redis.
var ErrMissing = errors.New("redistest: Redis is not installed (Debian: redis-server, redis-sentinel)")

// Server is a running redis-server or redis-sentinel.
type Server struct {
	// Port is where it listens, on 127.0.0.1.
	Port int

	program  string // redis-server or redis-sentinel
	dir      string
	settings []string
	login    []string // what redis-cli is told, so that it may do everything
	secure   *Certificates
	cmd      *exec.Cmd
	said     *bytes.Buffer
	exited   chan struct{}
}

// Start runs a server with the given lines of redis.conf, such as "maxmemory 1mb", and waits until it answers.
func Start(ctx context.Context, settings ...string) (*Server, error) {
	return start(ctx, &Server{program: "redis-server"}, settings)
}

// StartTLS runs a server that speaks TLS alone, with the certificates of c.
func StartTLS(ctx context.Context, c *Certificates, settings ...string) (*Server, error) {
	return start(ctx, &Server{program: "redis-server", secure: c}, settings)
}

// start takes a free port, as often as another process was quicker.
func start(ctx context.Context, s *Server, settings []string) (_ *Server, err error) {
	if _, err := exec.LookPath(s.program); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	if s.dir, err = os.MkdirTemp("", "authsvc-redis-"); err != nil {
		return nil, err
	}
	s.settings = settings
	for range 5 {
		var bus int
		if s.Port, err = machine.FreePort(); err == nil {
			bus, err = machine.FreePort()
		}
		if err == nil {
			err = s.configure(bus)
		}
		if err == nil {
			err = s.Run(ctx)
		}
		if err == nil {
			return s, nil
		}
	}
	return nil, errors.Join(err, os.RemoveAll(s.dir))
}

// configure writes the file that the server reads, and a Sentinel writes to.
func (s *Server) configure(bus int) error {
	lines := []string{"bind 127.0.0.1", "daemonize no", "dir " + s.dir}
	if s.secure != nil {
		lines = append(lines, "port 0", fmt.Sprint("tls-port ", s.Port), "tls-cert-file "+s.secure.Cert, "tls-key-file "+s.secure.Key,
			"tls-ca-cert-file "+s.secure.CA, "tls-auth-clients optional")
	} else {
		lines = append(lines, fmt.Sprint("port ", s.Port))
	}
	if s.program == "redis-server" {
		lines = append(lines, `save ""`, "appendonly no", "repl-diskless-sync-delay 0")
	}
	for _, line := range s.settings {
		if line == "cluster-enabled yes" {
			lines = append(lines, fmt.Sprint("cluster-port ", bus))
		}
	}
	return os.WriteFile(s.file(), []byte(strings.Join(append(lines, s.settings...), "\n")+"\n"), 0o600)
}

func (s *Server) file() string { return filepath.Join(s.dir, "redis.conf") }

// Run starts the server again after Kill; it has lost what it held.
func (s *Server) Run(ctx context.Context) error {
	s.said = &bytes.Buffer{}
	s.cmd = exec.Command(s.program, s.file()) //nolint:gosec // a test's
	s.cmd.SysProcAttr, s.cmd.Dir, s.cmd.Stdout, s.cmd.Stderr = &syscall.SysProcAttr{}, s.dir, s.said, s.said
	dieWithUs(s.cmd.SysProcAttr)
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	return until(ctx, func() error {
		select {
		case <-s.exited:
			return fmt.Errorf("%w: %s", errEnded, s.said.String())
		default:
		}
		_, err := s.CLI(ctx, "PING")
		var about string
		if err == nil {
			about, err = s.CLI(ctx, "INFO", "server")
		}
		switch {
		case err != nil && strings.Contains(err.Error(), "NOAUTH"):
			return nil // it answers, if not to this user
		case err == nil && !strings.Contains(about, fmt.Sprintf("process_id:%d\r", s.cmd.Process.Pid)):
			return errors.New("redistest: another server has the port")
		}
		return err
	})
}

// errEnded says that a server does not run any more; nothing is waited for then.
var errEnded = errors.New("redistest: the server ended")

// until asks again and again, until there is no error.
func until(ctx context.Context, ask func() error) error {
	for {
		err := ask()
		if err == nil || errors.Is(err, errEnded) {
			return err
		}
		again := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-again.C:
		}
	}
}

// Address is where it listens, as host:port.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// CLI runs one command by redis-cli, as a user who may do everything, and gives what it prints. An error that the server
// answers is an error.
func (s *Server) CLI(ctx context.Context, args ...string) (string, error) {
	all := slices.Concat([]string{"-e", "-p", strconv.Itoa(s.Port)}, s.login, args)
	if s.secure != nil {
		all = slices.Concat([]string{"--tls", "--cacert", s.secure.CA}, all)
	}
	cmd := exec.CommandContext(ctx, "redis-cli", all...) //nolint:gosec // a test's
	out, err := cmd.Output()
	text := strings.TrimSpace(string(out))
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			text = strings.TrimSpace(text + " " + string(exit.Stderr))
		}
		return "", fmt.Errorf("redistest: %s: %w: %s", strings.Join(args, " "), err, text)
	}
	return text, nil
}

// Kill ends the server as a crash would.
func (s *Server) Kill() error {
	if s.exited == nil {
		return nil
	}
	select {
	case <-s.exited:
		return nil
	default:
	}
	if err := s.signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-s.exited
	return nil
}

// Pause stops the server where it stands: connections stay open, and nothing is answered.
func (s *Server) Pause() error { return s.signal(syscall.SIGSTOP) }

// Resume lets a paused server go on.
func (s *Server) Resume() error { return s.signal(syscall.SIGCONT) }

func (s *Server) signal(sig syscall.Signal) error {
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// Close ends the server and removes its folder.
func (s *Server) Close() error { return errors.Join(s.Kill(), os.RemoveAll(s.dir)) }
