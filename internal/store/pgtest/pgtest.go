// Package pgtest starts PostgreSQL servers for tests, from what the machine has installed: on loopback, on a free port, in
// a folder of their own, as the user postgres where the tests are root. A server keeps nothing: it never waits for a disk.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/authsvc/authsvc/internal/store/machine"
)

// ErrMissing says that the machine has no PostgreSQL.
var ErrMissing = errors.New("pgtest: PostgreSQL is not installed (Debian: postgresql)")

// patience is for what a busy machine takes seconds for, and only a broken one longer.
const patience = 2 * time.Minute

// Password of the superuser postgres.
const Password = "correct horse"

// Server is a running server.
type Server struct {
	// Port is where it listens, on 127.0.0.1.
	Port int

	bin, dir string
	own      *syscall.SysProcAttr
	options  []string
	cmd      *exec.Cmd
	exited   chan struct{}
}

// Start makes a server with the given settings, such as "synchronous_commit=on", and waits until it answers.
func Start(ctx context.Context, settings ...string) (*Server, error) {
	return StartIn(ctx, "", settings...)
}

// StartIn is Start with the server's folder in another one, such as a disk of its own; "" is where temporary files are.
func StartIn(ctx context.Context, parent string, settings ...string) (_ *Server, err error) {
	s := &Server{}
	if s.bin, err = installed(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp(parent, "authsvc-pg-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.dir))
		}
	}()
	if err := s.becomePostgres(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "password"), []byte(Password), 0o644); err != nil { //nolint:gosec // a test's
		return nil, err
	}
	if _, err := s.run(ctx, "initdb", "-D", filepath.Join(s.dir, "data"), "-U", "postgres", "-A", "scram-sha-256", "--no-sync", "-E", "UTF8",
		"--locale=C.UTF-8", "--pwfile", filepath.Join(s.dir, "password")); err != nil {
		return nil, err
	}
	s.options = slices.Concat([]string{"listen_addresses=127.0.0.1", "unix_socket_directories=" + s.dir, "fsync=off", "full_page_writes=off",
		"max_connections=300", "shared_buffers=32MB", "deadlock_timeout=200ms", "jit=off", "wal_level=replica", "max_wal_senders=4",
		"log_min_messages=warning", "lc_messages=C"}, settings)
	if err := s.runAnywhere(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// runAnywhere runs the server on a free port; another process may take that first.
func (s *Server) runAnywhere(ctx context.Context) (err error) {
	for range 5 {
		if s.Port, err = machine.FreePort(); err != nil {
			return err
		}
		if err = s.Run(ctx); err == nil {
			return nil
		}
	}
	return err
}

// Standby makes a server that follows this one, and waits until every commit here is confirmed there first.
func (s *Server) Standby(ctx context.Context) (*Server, error) { return s.StandbyIn(ctx, "") }

// StandbyIn is Standby with the standby's folder in another one, as in StartIn.
func (s *Server) StandbyIn(ctx context.Context, parent string) (_ *Server, err error) {
	b := &Server{bin: s.bin, options: s.options}
	if b.dir, err = os.MkdirTemp(parent, "authsvc-pg-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	if err := b.becomePostgres(); err != nil {
		return nil, err
	}
	if _, err := b.run(ctx, "pg_basebackup", "-h", "127.0.0.1", "-p", strconv.Itoa(s.Port), "-U", "postgres", "-D", filepath.Join(b.dir, "data"),
		"-R", "-X", "stream", "--no-sync", "-c", "fast"); err != nil {
		return nil, err
	}
	for i, o := range b.options {
		if strings.HasPrefix(o, "unix_socket_directories=") {
			b.options = slices.Clone(b.options)
			b.options[i] = "unix_socket_directories=" + b.dir
		}
	}
	if err := b.runAnywhere(ctx); err != nil {
		return nil, err
	}
	for _, q := range []string{`ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'`, `SELECT pg_reload_conf()`} {
		if _, err := s.SQL(ctx, "postgres", q); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		state, err := s.SQL(ctx, "postgres", `SELECT sync_state FROM pg_stat_replication`)
		if err != nil || state == "quorum" {
			return b, err
		}
	}
}

// Leave lets a standby of this server have all there is, and nothing that comes after it; no commit waits for it any more.
func (s *Server) Leave(ctx context.Context, standby *Server) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at, err := s.SQL(ctx, "postgres", `SELECT pg_current_wal_flush_lsn()`)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		at          *Server
		query, want string
	}{
		{s, `ALTER SYSTEM RESET synchronous_standby_names`, ""},
		{s, `SELECT pg_reload_conf()`, "t"},
		{standby, `SELECT pg_last_wal_replay_lsn() >= '` + at + `'`, "t"},
		{standby, `ALTER SYSTEM SET primary_conninfo = ''`, ""},
		{standby, `SELECT pg_reload_conf()`, "t"},
		{s, `SELECT count(*) FROM pg_stat_replication`, "0"},
	} {
		for said := "-"; said != step.want; {
			if said, err = step.at.SQL(ctx, "postgres", step.query); err != nil {
				return err
			}
		}
	}
	return nil
}

// Promote makes a standby the server that is written to.
func (s *Server) Promote(ctx context.Context) error {
	if _, err := s.SQL(ctx, "postgres", `ALTER SYSTEM RESET synchronous_standby_names`); err != nil {
		return err
	}
	said, err := s.SQL(ctx, "postgres", fmt.Sprintf(`SELECT pg_promote(true, %.0f)`, patience.Seconds()))
	if err == nil && said != "t" {
		err = fmt.Errorf("pgtest: the standby was not promoted within %v", patience)
	}
	return err
}

// Run starts the server again after Kill or Stop.
func (s *Server) Run(ctx context.Context) error {
	args := []string{"-D", filepath.Join(s.dir, "data"), "-p", strconv.Itoa(s.Port)}
	for _, o := range s.options {
		args = append(args, "-c", o)
	}
	var said bytes.Buffer
	s.cmd = exec.Command(filepath.Join(s.bin, "postgres"), args...) //nolint:gosec // a test's
	s.cmd.SysProcAttr, s.cmd.Dir, s.cmd.Stderr = &syscall.SysProcAttr{}, s.dir, &said
	if s.own != nil {
		*s.cmd.SysProcAttr = *s.own
	}
	dieWithUs(s.cmd.SysProcAttr)
	if err := s.cmd.Start(); err != nil {
		return err
	}
	s.exited = make(chan struct{})
	go func() {
		_ = s.cmd.Wait()
		close(s.exited)
	}()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		// Its own socket, which it makes after the port is its own: at the port another server might answer.
		_, err := s.run(ctx, "pg_isready", "-q", "-h", s.dir, "-p", strconv.Itoa(s.Port))
		if err == nil {
			return nil
		}
		retry := time.NewTimer(20 * time.Millisecond)
		select {
		case <-s.exited:
			return fmt.Errorf("pgtest: the server ended: %s", said.String())
		case <-ctx.Done():
			return errors.Join(err, s.Stop())
		case <-retry.C:
		}
	}
}

// Stop ends the server at once, and its connections with it; it keeps what was committed.
func (s *Server) Stop() error { return s.signal(syscall.SIGINT) }

// Kill ends the server as a crash of the machine would, but for what the operating system had not written.
func (s *Server) Kill() error { return s.signal(syscall.SIGQUIT) }

func (s *Server) signal(sig syscall.Signal) error {
	if s.exited == nil {
		return nil
	}
	select {
	case <-s.exited:
		return nil
	default:
	}
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-s.exited
	return nil
}

// Close stops the server and removes its folder.
func (s *Server) Close() error { return errors.Join(s.Stop(), os.RemoveAll(s.dir)) }

// Put makes a file that the server alone may read, such as a private key, and gives its path.
func (s *Server) Put(name string, content []byte) (string, error) {
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return "", err
	}
	if s.own == nil {
		return path, nil
	}
	return path, os.Chown(path, int(s.own.Credential.Uid), int(s.own.Credential.Gid))
}

// URL names a database as the superuser, whose password is Password; more are parameters such as "search_path=a".
func (s *Server) URL(database string, more ...string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)), Path: "/" + database}
	u.RawQuery = strings.Join(append([]string{"sslmode=disable"}, more...), "&")
	return u.String()
}

// SQL runs statements in a database by psql, and gives what it prints.
func (s *Server) SQL(ctx context.Context, database, text string) (string, error) {
	out, err := s.run(ctx, "psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", s.dir, "-p", strconv.Itoa(s.Port), "-U", "postgres", "-d", database, "-c", text)
	return strings.TrimSpace(out), err
}

// Dump gives schema public of a database as plain SQL, tables and rows; nothing in it needs psql or changes a session.
func (s *Server) Dump(ctx context.Context, database string) (string, error) {
	out, err := s.run(ctx, "pg_dump", "-h", s.dir, "-p", strconv.Itoa(s.Port), "-U", "postgres", "--schema=public", "--inserts", "--no-owner",
		"--no-privileges", "--no-comments", database)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for line := range strings.Lines(out) {
		skip := strings.TrimSpace(line) == ""
		for _, prefix := range []string{"--", "\\", "SET ", "SELECT pg_catalog.set_config", "CREATE SCHEMA "} {
			skip = skip || strings.HasPrefix(line, prefix)
		}
		if !skip {
			b.WriteString(line)
		}
	}
	return b.String(), nil
}

func (s *Server) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, name), args...) //nolint:gosec // a test's
	cmd.SysProcAttr, cmd.Dir = s.own, s.dir
	cmd.Env = append(os.Environ(), "PGPASSWORD="+Password, "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("pgtest: %s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return string(out), err
}

// becomePostgres lets the server's processes run as postgres, since it refuses to be root.
func (s *Server) becomePostgres() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMissing, err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return err
	}
	s.own = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	return os.Chown(s.dir, uid, gid)
}

// installed finds the newest server's programs: Debian keeps them out of PATH.
func installed() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil || len(found) == 0 {
		if path, err := exec.LookPath("initdb"); err == nil {
			return filepath.Dir(path), nil
		}
		return "", ErrMissing
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	return filepath.Dir(slices.MaxFunc(found, func(a, b string) int { return version(a) - version(b) })), nil
}
