package bench

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// process is one side of a pair.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner // of its standard output
	errs  *bytes.Buffer
}

// launch starts a child that ends with the benchmark, by its process id.
func launch(b testing.TB, cmd *exec.Cmd) *process {
	b.Helper()
	p := &process{cmd: cmd, errs: &bytes.Buffer{}}
	p.stdin = must(cmd.StdinPipe())
	if cmd.Stdout == nil {
		p.lines = bufio.NewScanner(must(cmd.StdoutPipe()))
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.errs
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.kill)
	return p
}

func (p *process) kill() {
	if p.cmd.ProcessState != nil {
		return
	}
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
}

// stop asks it to drain and waits for its end.
func (p *process) stop(b testing.TB) {
	b.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		b.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		b.Fatalf("after SIGTERM: %v\n%s", err, p.errs)
	}
}

func (p *process) line(b testing.TB) string {
	b.Helper()
	if !p.lines.Scan() {
		b.Fatalf("%v ended: %v\n%s", p.cmd.Args, p.lines.Err(), p.errs)
	}
	return p.lines.Text()
}

// round has a loop do its work once more.
func (p *process) round(b testing.TB) cost {
	b.Helper()
	return ask[cost](b, p, "")
}

// ask has a process do what the line says and reads what it answers.
func ask[T any](b testing.TB, p *process, line string) T {
	b.Helper()
	if _, err := io.WriteString(p.stdin, line+"\n"); err != nil {
		b.Fatalf("%v\n%s", err, p.errs)
	}
	return parse[T](b, []byte(p.line(b)))
}

// limit starts one of bench/limits.
func limit(b testing.TB, args ...string) *process {
	b.Helper()
	return launch(b, exec.Command(limits, args...))
}

// loop starts this binary again, to run one of our own loops in a process of its own.
func loop(b testing.TB, name string, in any) *process {
	b.Helper()
	path := b.TempDir() + "/in.json"
	if err := os.WriteFile(path, must(json.Marshal(in)), 0o600); err != nil {
		b.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^$")
	cmd.Env = append(os.Environ(), "AUTHSVC_BENCH_LOOP="+name, "AUTHSVC_BENCH_IN="+path)
	return launch(b, cmd)
}

// cpu is what the operating system charged to the process so far: the process's CPU clock, in nanoseconds, whose
// id clock_getcpuclockid(3) would give.
func (p *process) cpu() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|2), &ts); err != nil {
		panic(fmt.Sprint("the process's clock: ", err))
	}
	return time.Duration(ts.Nano())
}

// rss is its resident memory in bytes.
func (p *process) rss() int64 {
	for line := range strings.Lines(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))))) {
		if v, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return must(strconv.ParseInt(strings.Fields(v)[0], 10, 64)) << 10
		}
	}
	panic(errors.New("no VmRSS"))
}
