package app_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"

	"github.com/authsvc/authsvc/internal/app"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// unread is a log that nobody has read.
type unread struct{}

func (unread) View() revocation.View                          { return revocation.View{} }
func (unread) Reach(context.Context, revocation.Cursor) error { return nil }

// operators serves the operators' door.
func operators(t *testing.T, l net.Listener) {
	t.Helper()
	hub, err := rpc.NewHub(rpc.HubOptions{Log: unread{}, Issuer: "https://auth.example", KeySet: func() []byte { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	door, err := rpc.NewAdmin(rpc.AdminOptions{Feed: hub, Logger: slog.New(slog.DiscardHandler), Panics: func() {}, Tracer: tracenoop.NewTracerProvider(),
		Meter: metricnoop.NewMeterProvider()})
	if err != nil {
		t.Fatal(err)
	}
	s := rpc.NewAdminServer()
	door.Register(s)
	go s.Serve(l)
	t.Cleanup(s.Stop)
}

// each serves connections one after the other, until the listener ends.
func each(do func(c net.Conn)) func(*testing.T, net.Listener) {
	return func(t *testing.T, l net.Listener) {
		t.Helper()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				do(c)
				c.Close()
			}
		}()
	}
}

// askedAt runs the command beside what listens at a socket.
func askedAt(t *testing.T, dir string) ([]app.Watcher, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "authsvc.yaml")
	text := fmt.Sprintf("database: {path: %q}\nadmin: {socket: %q}\n", filepath.Join(dir, "authsvc.db"), filepath.Join(dir, "s"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return app.Watchers(t.Context(), app.AdminOptions{ConfigFile: path})
}

// TestACommandEndsWhateverListensAtTheSocket has the right user listen, by what is no server of ours or one that hangs.
func TestACommandEndsWhateverListensAtTheSocket(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		serve func(*testing.T, net.Listener)
		want  string // of the error
	}{
		{"the twin: a server", operators, ""},
		{"a server that hangs", func(*testing.T, net.Listener) {}, "deadline exceeded"},
		{"one that ends each connection", each(func(net.Conn) {}), "does not answer"},
		{"one that speaks another protocol", each(func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n\x1b[2J") }), "does not answer"},
		{"a gRPC server of another kind", func(t *testing.T, l net.Listener) {
			t.Helper()
			s := grpc.NewServer()
			go s.Serve(l)
			t.Cleanup(s.Stop)
		}, "unknown service"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := folder(t, 0o700)
			l, err := app.ListenSocket(filepath.Join(dir, "s"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			tt.serve(t, l)
			all, err := askedAt(t, dir)
			switch {
			case tt.want == "" && (err != nil || all == nil || len(all) > 0):
				t.Errorf("got %v, %v", all, err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), dir)):
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

// TestA01AStrangerWhoListensAtTheSocketIsAskedNothing puts a whole server of another user's in the place of ours, as where the
// folder was gone and somebody else made it.
func TestA01AStrangerWhoListensAtTheSocketIsAskedNothing(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		if os.Getenv("AUTHSVC_TEST_REQUIRE") != "" {
			t.Fatal("only root can be another user")
		}
		t.Skip("only root can be another user")
	}
	const nobody = 65534
	listen := func(t *testing.T, dir string) net.Listener {
		t.Helper()
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		for above := filepath.Dir(dir); strings.HasPrefix(above, os.TempDir()+"/"); above = filepath.Dir(above) {
			if err := os.Chmod(above, 0o755); err != nil { // so that he gets there
				t.Fatal(err)
			}
		}
		type opened struct {
			l   net.Listener
			err error
		}
		done := make(chan opened, 1)
		go func() {
			runtime.LockOSThread() // for good: the thread ends with the goroutine
			if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
				done <- opened{err: errno}
				return
			}
			l, err := net.Listen("unix", filepath.Join(dir, "s"))
			done <- opened{l, err}
		}()
		o := <-done
		if o.err != nil {
			t.Fatal(o.err)
		}
		t.Cleanup(func() { o.l.Close() })
		return o.l
	}
	dir := folder(t, 0o700)
	l := listen(t, dir)
	connected := make(chan struct{})
	each(func(c net.Conn) {
		defer close(connected)
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("he is told something: %d %v", n, err)
		}
	})(t, l)
	if _, err := askedAt(t, dir); err == nil || !strings.Contains(err.Error(), "is user 65534, not this one, root, or the owner of the database") {
		t.Errorf("got %v", err)
	}
	<-connected

	dir = folder(t, 0o700)
	operators(t, listen(t, dir))
	if err := os.Chown(dir, nobody, -1); err != nil {
		t.Fatal(err)
	}
	if all, err := askedAt(t, dir); err != nil || len(all) != 0 {
		t.Errorf("the twin: the database is his: %v %v", all, err)
	}
}
