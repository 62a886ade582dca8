package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	restartAfter = 5 * time.Second  // how long what died stays down, so that there is something to see
	startWithin  = 60 * time.Second // how long a part has to answer
	stopWithin   = 25 * time.Second // more than a replica's own drain takes
)

// spec says how to run a process.
type spec struct {
	name   string
	args   []string // the program first
	dir    string
	env    []string
	as     *syscall.Credential // nil: as ourselves
	log    string              // the file that has its output
	pid    string              // the file that has its id
	signal syscall.Signal      // asks it to end
}

// process is one that is to run until it is stopped: if it dies, it is started again.
type process struct {
	spec
	mu       sync.Mutex
	running  *os.Process // nil while it is down
	stopping bool
	stop     chan struct{}
	ended    chan struct{} // closed once it will not be started again
}

// group is all processes, in the order in which they were started.
type group struct {
	out io.Writer
	mu  sync.Mutex
	all []*process
}

func newGroup(out io.Writer) *group { return &group{out: out} }

// run starts a process and waits until it answers; if it dies before that, it is not started again.
func (g *group) run(ctx context.Context, s spec, answers func(context.Context) error) error {
	p := &process{spec: s, stop: make(chan struct{}), ended: make(chan struct{})}
	g.mu.Lock()
	g.all = append(g.all, p)
	g.mu.Unlock()
	first := make(chan error, 1)
	ready := make(chan struct{})
	go p.keep(g.out, first, ready)
	if err := <-first; err != nil {
		return err
	}
	err := until(ctx, s.name+" answers", answers, p.ended)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, tail(s.log))
	}
	close(ready)
	return nil
}

// keep runs the process until it is stopped. The thread that starts a process is to live as long as this one: the process ends with
// it, however we end.
func (p *process) keep(out io.Writer, first chan<- error, ready <-chan struct{}) {
	runtime.LockOSThread()
	defer close(p.ended)
	for {
		cmd, err := p.start()
		if first != nil {
			first <- err
			first = nil
			if err != nil {
				return
			}
		}
		if err == nil {
			err = cmd.Wait()
		}
		p.mu.Lock()
		p.running = nil
		stopping := p.stopping
		p.mu.Unlock()
		if stopping {
			return
		}
		select {
		case <-ready:
		default:
			return // it never was
		}
		fmt.Fprintf(out, "%s ended (%v); it is started again in %s\n", p.name, err, restartAfter)
		pause := time.NewTimer(restartAfter)
		select {
		case <-p.stop:
			pause.Stop()
			return
		case <-pause.C:
		}
	}
}

func (p *process) start() (*exec.Cmd, error) {
	output, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	cmd := exec.Command(p.args[0], p.args[1:]...) //nolint:gosec // what it runs is written in this program
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = p.dir, p.env, output, output
	// A group of its own: Ctrl-C reaches us alone, and we stop everything in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: p.signal, Credential: p.as}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return nil, errors.New("is being stopped")
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p.running = cmd.Process
	return cmd, os.WriteFile(p.pid, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o600)
}

// end asks the process to end, and makes it after a while.
func (p *process) end() error {
	p.mu.Lock()
	p.stopping = true
	close(p.stop)
	if p.running != nil {
		_ = p.running.Signal(p.signal) // it may have ended
	}
	p.mu.Unlock()
	late := time.NewTimer(stopWithin)
	defer late.Stop()
	var err error
	select {
	case <-p.ended:
	case <-late.C:
		err = fmt.Errorf("%s did not stop within %s, and was killed", p.name, stopWithin)
		p.mu.Lock()
		if p.running != nil {
			_ = p.running.Kill()
		}
		p.mu.Unlock()
		<-p.ended
	}
	return errors.Join(err, os.RemoveAll(p.pid))
}

// stop ends everything, the last first: nginx, the replicas all at once, then what they stand on.
func (g *group) stop() (err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := len(g.all) - 1; i >= 0; {
		same := i
		for same >= 0 && strings.HasPrefix(g.all[i].name, "replica ") && strings.HasPrefix(g.all[same].name, "replica ") {
			same--
		}
		same = min(same, i-1)
		ends := make(chan error, i-same)
		for _, p := range g.all[same+1 : i+1] {
			go func() { ends <- p.end() }()
		}
		for range i - same {
			err = errors.Join(err, <-ends)
		}
		i = same
	}
	g.all = nil
	return err
}

// until waits for something that is looked at again and again.
func until(ctx context.Context, what string, holds func(context.Context) error, ended <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := holds(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ended:
			return errors.New("it ended at once")
		case <-ctx.Done():
			return fmt.Errorf("waited in vain until %s: %w", what, err)
		case <-tick.C:
		}
	}
}

// tail gives the last lines of a log.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return fmt.Sprintf("%s ends with:\n  %s", filepath.Base(path), strings.Join(lines[max(0, len(lines)-8):], "\n  "))
}

// command runs one that ends by itself, and gives what it says.
func command(ctx context.Context, as *syscall.Credential, dir, stdin string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // what it runs is written in this program
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: as}
	cmd.Dir, cmd.Env, cmd.Stdin = dir, env, strings.NewReader(stdin)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", filepath.Base(args[0]), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), err
}
