package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// speech is the last of what a process says; it may be read while the process speaks.
type speech struct {
	mu   sync.Mutex
	text bytes.Buffer
}

const speechKept = 1 << 20

func (s *speech) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.text.Len() > speechKept {
		s.text.Next(speechKept / 2)
	}
	return s.text.Write(p)
}

func (s *speech) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// process is a running program.
type process struct {
	cmd  *exec.Cmd
	said *speech
	done chan struct{} // closed when it has ended
	err  error         // of its end
}

// launch starts a program whose output is added to what was said before. It does not outlive the harness.
func launch(cmd *exec.Cmd, said *speech) (*process, error) {
	p := &process{cmd: cmd, said: said, done: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.said
	}
	cmd.Stderr = p.said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	return p, nil
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return nil
}

// kill ends it at once, stopped or not.
func (p *process) kill() error {
	err := p.signal(syscall.SIGKILL)
	<-p.done
	return err
}

// drain asks it to end, and waits until it has.
func (p *process) drain(ctx context.Context) error {
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("it does not end: %w", context.Cause(ctx)), p.kill())
	}
}

// await asks again and again until holds says yes. Two minutes are patience, not a measurement.
func await(ctx context.Context, what string, holds func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for !holds() {
		if !pause(ctx, 10*time.Millisecond) {
			return fmt.Errorf("waited in vain until %s: %w", what, ctx.Err())
		}
	}
	return nil
}

// authsvc runs the command line.
func authsvc(ctx context.Context, binary, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env, cmd.Stdin = environment(), strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("authsvc %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// environment is this process's, but for what speaks to the tests: the server refuses a variable that looks like a setting and is none.
func environment(more ...string) (env []string) {
	for _, pair := range os.Environ() {
		if !strings.HasPrefix(pair, "AUTHSVC_") {
			env = append(env, pair)
		}
	}
	return append(env, more...)
}
