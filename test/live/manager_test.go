package live

import (
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestAServiceManagerIsTold listens as systemd does for a service of Type=notify.
func TestAServiceManagerIsTold(t *testing.T) {
	t.Parallel()
	short, err := os.MkdirTemp("", "ntf") // short, as the path of a socket must be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	for name, address := range map[string]string{"a path": filepath.Join(short, "notify"), "an abstract name": "@" + short} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer manager.Close()
			hear := func() string {
				t.Helper()
				if err := manager.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Fatal(err)
				}
				said := make([]byte, 100)
				n, err := manager.Read(said)
				if err != nil {
					t.Fatal(err)
				}
				return string(said[:n])
			}
			dir, d := stopped(t)
			s, _ := serveIn(t, configure(t, dir, plain), d, "http", "NOTIFY_SOCKET="+address)
			if got := hear(); got != "READY=1" {
				t.Errorf("first it said %q", got)
			}
			if a := call(t, "GET", s.HTTP+"/.well-known/jwks.json", "", nil); a.code != http.StatusOK {
				t.Errorf("a server that is ready answers %d", a.code)
			}
			s.stop(t)
			if got := hear(); got != "STOPPING=1" {
				t.Errorf("then it said %q", got)
			}
		})
	}
}

// TestD18SecretsHandedOverByRoot checks a configuration as a user of no name, by files of root's as systemd and Kubernetes hand them over.
func TestD18SecretsHandedOverByRoot(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		lacking(t, "only root can hand files over")
	}
	const nobody = 64321
	dir, err := os.MkdirTemp("", "hand")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "own")
	key := func(c string) string { return strings.Repeat(c, 42) + "A" }
	files := map[string]string{"kek.json": `{"keys": [{"id": "1", "key": "` + key("k") + `"}]}`, "refresh.json": `{"keys": [{"id": 1, "key": "` + key("r") + `"}]}`,
		"issuer": "https://auth.example.com", "authsvc": string(program)}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(own, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(own, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	config := configure(t, dir, plain)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte(strings.Replace(string(text), filepath.Join(dir, "authsvc.db"), filepath.Join(own, "authsvc.db"), 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(config, 0o644); err != nil {
		t.Fatal(err)
	}
	check := func(uid, owner int, mode os.FileMode) (string, error) {
		t.Helper()
		for _, name := range []string{"kek.json", "refresh.json"} {
			path := filepath.Join(dir, name)
			if err := os.Chown(path, owner, nobody); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, mode); err != nil {
				t.Fatal(err)
			}
		}
		cmd := process("config", "check", "-config", config)
		cmd.Path, cmd.Dir = filepath.Join(dir, "authsvc"), dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: nobody}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	for _, tt := range []struct {
		name       string
		uid, owner int
		mode       os.FileMode
		fine       bool
	}{
		{"its own file, for itself alone", nobody, nobody, 0o400, true},
		{"D18 its own file, for its group", nobody, nobody, 0o440, false},
		{"root's file, handed to its group", nobody, 0, 0o440, true},
		{"root's file, handed to its group, which root may write", nobody, 0, 0o640, true},
		{"D18 root's file, which the group may write", nobody, 0, 0o660, false},
		{"D18 root's file, for everybody", nobody, 0, 0o444, false},
		{"D18 root's file for a group, where the server is root", 0, 0, 0o440, false},
	} {
		out, err := check(tt.uid, tt.owner, tt.mode)
		if (err == nil) != tt.fine || !tt.fine && !strings.Contains(out, "make it 0600 or 0400") {
			t.Errorf("%s: %v %s", tt.name, err, out)
		}
	}
}
