package app_test

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/authsvc/authsvc/internal/app"
)

// folder gives one with this mode.
func folder(t *testing.T, mode os.FileMode) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "own")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, mode)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// dead leaves a socket at path that nobody listens on.
func dead(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

// reached reports whether the listener takes in who connects at path.
func reached(t *testing.T, l net.Listener, path string) bool {
	t.Helper()
	c, err := app.DialSocket(t.Context(), path)
	if err != nil {
		return false
	}
	defer c.Close()
	taken, err := l.Accept()
	if err != nil {
		return false
	}
	return taken.Close() == nil
}

func TestTheAdminSocketIsForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		path    func(t *testing.T) string
		refused string // part of the reason; empty where it opens
	}{
		{"a folder of its own", func(t *testing.T) string { return filepath.Join(folder(t, 0o700), "s") }, ""},
		{"a folder that others may look into", func(t *testing.T) string { return filepath.Join(folder(t, 0o755), "s") }, ""},
		{"a path longer than an address has room for", func(t *testing.T) string {
			dir := filepath.Join(folder(t, 0o700), strings.Repeat("d", 120))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "s")
		}, ""},
		{"what a dead server left", func(t *testing.T) string {
			path := filepath.Join(folder(t, 0o700), "s")
			dead(t, path)
			return path
		}, ""},
		{"a folder of a group", func(t *testing.T) string { return filepath.Join(folder(t, 0o770), "s") }, "a folder of the service's own, with mode 0700"},
		{"a folder of everybody", func(t *testing.T) string { return filepath.Join(folder(t, 0o777), "s") }, "a folder of the service's own, with mode 0700"},
		{"a folder of another user", func(t *testing.T) string {
			if os.Getuid() != 0 {
				return "/usr/s"
			}
			dir := folder(t, 0o700)
			if err := os.Chown(dir, 65534, -1); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "s")
		}, "is not this user's own"},
		{"no folder, nor one to make it in", func(t *testing.T) string { return filepath.Join(t.TempDir(), "none", "none", "s") }, "no such file"},
		{"a file for a folder", func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(path, "s")
		}, "not a folder"},
		{"a file in its place", func(t *testing.T) string {
			path := filepath.Join(folder(t, 0o700), "s")
			if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}, "is not a socket"},
		{"a link to a socket in its place", func(t *testing.T) string {
			dir := folder(t, 0o700)
			dead(t, filepath.Join(dir, "other"))
			if err := os.Symlink(filepath.Join(dir, "other"), filepath.Join(dir, "s")); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "s")
		}, "is not a socket"},
		{"a link in the place of its lock", func(t *testing.T) string {
			dir := folder(t, 0o700)
			if err := os.Symlink(filepath.Join(dir, "other"), filepath.Join(dir, "s.lock")); err != nil {
				t.Fatal(err)
			}
			return filepath.Join(dir, "s")
		}, "s.lock"},
		{"a socket that something else listens on", func(t *testing.T) string {
			path := filepath.Join(folder(t, 0o700), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			return path
		}, "another authsvc serves there"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := tt.path(t)
			l, err := app.ListenSocket(path)
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) && !(tt.refused == "not a folder" && strings.Contains(err.Error(), "not a directory")) {
					t.Errorf("got %v, want a refusal with %q", err, tt.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Lstat(path)
			if err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Fatalf("it stands as %v: %v", info, err)
			}
			if !reached(t, l, path) {
				t.Error("its own user is not let in")
			}
			if _, err := app.ListenSocket(path); err == nil || !strings.Contains(err.Error(), "another authsvc serves there") {
				t.Errorf("a second server: %v", err)
			}
			if !reached(t, l, path) {
				t.Error("the second one broke it")
			}
			if err := errors.Join(l.Close(), l.Close()); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("it is left behind: %v", err)
			}
			left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".admin-*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left behind: %v %v", left, err)
			}
			if l, err = app.ListenSocket(path); err != nil {
				t.Fatalf("after its end: %v", err)
			}
			l.Close()
		})
	}
}

// TestOfServersThatStartAtOnceOneHasTheSocket has them replace what a dead one left.
func TestOfServersThatStartAtOnceOneHasTheSocket(t *testing.T) {
	t.Parallel()
	for range 20 {
		path := filepath.Join(folder(t, 0o700), "s")
		dead(t, path)
		opened := make(chan net.Listener, 8)
		var wg sync.WaitGroup
		for range cap(opened) {
			wg.Go(func() {
				l, err := app.ListenSocket(path)
				switch {
				case err == nil:
					opened <- l
				case !strings.Contains(err.Error(), "another authsvc serves there"):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		close(opened)
		if n := len(opened); n != 1 {
			t.Fatalf("%d have it", n)
		}
		l := <-opened
		if !reached(t, l, path) {
			t.Error("who has it is not reached")
		}
		l.Close()
	}
}

func TestTheAdminSocketAdmitsItsOwnUserAndRoot(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		peer, own int
		want      bool
	}{{1000, 1000, true}, {0, 1000, true}, {0, 0, true}, {1000, 0, false}, {1001, 1000, false}} {
		if got := app.Admits(tt.peer, tt.own); got != tt.want {
			t.Errorf("uid %d at a server of uid %d: %v", tt.peer, tt.own, got)
		}
	}
	path := filepath.Join(folder(t, 0o700), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	taken, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if uid, err := app.PeerUID(taken); err != nil || uid != os.Getuid() {
		t.Errorf("the peer is %d: %v", uid, err)
	}
}

// TestAnAdminSocketThatSomebodyReplacedStays has an operator remove what belongs to a server that runs, and start another.
func TestAnAdminSocketThatSomebodyReplacedStays(t *testing.T) {
	t.Parallel()
	path := filepath.Join(folder(t, 0o700), "s")
	first, err := app.ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(path), os.Remove(path+".lock")); err != nil {
		t.Fatal(err)
	}
	second, err := app.ListenSocket(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if !reached(t, second, path) {
		t.Error("the first took the second's socket with it")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Errorf("the twin: one whose socket is gone: %v", err)
	}
}

// TestAnAdminSocketIsAlwaysAFile gives relative paths, of which some would name a socket that is none, open to everybody.
func TestAnAdminSocketIsAlwaysAFile(t *testing.T) { //nolint:paralleltest // it has a working directory of its own
	t.Chdir(folder(t, 0o700))
	if err := os.Mkdir("@run", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"s", "@s", "@run/s", "./@t"} {
		dead(t, "./"+path)
		if c, err := app.DialSocket(t.Context(), path); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: a dead server's: %v %v", path, c, err)
		}
		stranger, err := net.Listen("unix", "@"+strings.TrimPrefix(path, "@"))
		if err != nil {
			t.Fatal(err)
		}
		l, err := app.ListenSocket(path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
		} else {
			if info, err := os.Lstat(path); err != nil || info.Mode() != fs.ModeSocket|0o600 {
				t.Errorf("%s stands as %v: %v", path, info, err)
			}
			if !reached(t, l, path) {
				t.Errorf("%s is not what answers by its name", path)
			}
			l.Close()
		}
		stranger.Close()
	}
}

func TestACommandAsksTheServersUserAlone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name                string
		peer, own, database int
		want                bool
	}{
		{"its own user", 1000, 1000, 1000, true},
		{"root", 0, 1000, 1000, true},
		{"another user", 1001, 1000, 1000, false},
		{"another user, whose the database is", 1001, 1000, 1001, false},
		{"root asks the database's user", 1000, 0, 1000, true},
		{"root asks root", 0, 0, 1000, true},
		{"root asks another user", 1001, 0, 1000, false},
		{"root asks where there is no database", 1001, 0, -1, false},
	} {
		if got := app.Vouched(tt.peer, tt.own, tt.database); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
