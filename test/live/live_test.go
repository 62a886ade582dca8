// Package live tests the real binary as its users meet it: started by `serve -dev`, found through dev.json, spoken to
// over its three doors, stopped and killed by process id.
package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// binary is built once for all tests of this package.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Getenv(guardedEnv) != "" {
			fmt.Fprintln(os.Stderr, serveGuarded(os.Stdin, os.Stdout))
			return 1
		}
		dir, err := os.MkdirTemp("", "authsvc-live-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "authsvc")
		build := exec.Command("go", "build", "-o", binary, "../../cmd/authsvc")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// lacking ends a test for want of something that this machine has not: it is skipped, except where everything is required.
func lacking(t *testing.T, format string, args ...any) {
	t.Helper()
	if os.Getenv("AUTHSVC_TEST_REQUIRE") != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// dev is what dev.json says.
type dev struct {
	HTTP                string `json:"http"`
	GRPC                string `json:"grpc"`
	Ops                 string `json:"ops"`
	Issuer              string `json:"issuer"`
	Username            string `json:"username"`
	Password            string `json:"password"`
	PublicClientID      string `json:"public_client_id"`
	ServiceClientID     string `json:"service_client_id"`
	ServiceClientSecret string `json:"service_client_secret"`
	Audience            string `json:"audience"`
}

// process is the binary with the environment of this process, but for what speaks to the tests themselves: the server
// refuses a variable that looks like a setting and is none.
func process(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(pair string) bool {
		return strings.HasPrefix(pair, "AUTHSVC_SOAK=") || strings.HasPrefix(pair, "AUTHSVC_CLOCK=")
	})
	return cmd
}

// server is one running process.
type server struct {
	dev
	cmd    *exec.Cmd
	out    *speech
	exited chan error
}

// start runs serve -dev in dir and waits until it is ready.
func start(t *testing.T, dir string, args ...string) *server {
	t.Helper()
	path := filepath.Join(dir, "dev.json")
	before, _ := os.ReadFile(path) // of the start before, if there was one: its ports may be another server's by now
	s := &server{out: &speech{}, exited: make(chan error, 1)}
	s.cmd = process(append([]string{"serve", "-dev", "-dir", dir, "-http", "127.0.0.1:0", "-grpc", "127.0.0.1:0", "-ops", "127.0.0.1:0"}, args...)...)
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.exited <- s.cmd.Wait() }()
	t.Cleanup(func() { s.kill(t) })
	await(t, "serve -dev is ready", func() bool {
		select {
		case err := <-s.exited:
			s.exited <- err
			t.Fatalf("serve -dev ended before it was ready: %v\n%s", err, s.out)
		default:
		}
		content, err := os.ReadFile(path)
		return err == nil && !bytes.Equal(content, before) && json.Unmarshal(content, &s.dev) == nil && s.probe("/readyz") == http.StatusOK
	})
	return s
}

func (s *server) kill(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	err := <-s.exited
	s.exited <- err
}

// stop asks it to drain and waits for its end.
func (s *server) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := <-s.exited
	s.exited <- err
	if err != nil {
		t.Fatalf("after SIGTERM: %v\n%s", err, s.out)
	}
}

type answer struct {
	code   int
	header http.Header
	raw    string
	json   map[string]any
}

// call sends JSON; auth is the Authorization header, or empty.
func call(t *testing.T, method, url, auth string, body any) answer {
	t.Helper()
	a, err := try(t.Context(), method, url, auth, body)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// paused reports that nothing was decided because the server's process had not run for two seconds, as on a machine that is busy
// with something else: for five more it refreshes nobody's token.
func (a answer) paused() bool {
	return a.code == http.StatusServiceUnavailable && strings.Contains(a.raw, "this replica was stopped a moment ago")
}

// undecided reports that nothing was decided, for want of time.
func (a answer) undecided() bool {
	return a.code == http.StatusServiceUnavailable && (a.reason() == "STORE_UNAVAILABLE" || a.reason() == "REPLICA_STALE") ||
		a.code == http.StatusTooManyRequests && a.reason() == "OVERLOADED"
}

// again asks until there is another answer than one that is not wanted, for a minute at most: then it is given all the same.
func again(ctx context.Context, unwanted func(answer) bool, ask func() (answer, error)) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if a, err = ask(); err != nil || !unwanted(a) {
			return a, err
		}
		select {
		case <-ctx.Done():
			return a, nil
		case <-tick.C:
		}
	}
}

// try sends JSON; a server that was paused is asked again.
func try(ctx context.Context, method, url, auth string, body any) (answer, error) {
	return again(ctx, answer.paused, func() (answer, error) { return once(ctx, method, url, auth, body) })
}

func once(ctx context.Context, method, url, auth string, body any) (a answer, err error) {
	var content io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return a, err
		}
		content = bytes.NewReader(raw)
	}
	r, err := http.NewRequestWithContext(ctx, method, url, content)
	if err != nil {
		return a, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if auth != "" {
		r.Header.Set("Authorization", auth)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	a = answer{code: resp.StatusCode, header: resp.Header, raw: string(raw)}
	_ = json.Unmarshal(raw, &a.json)
	return a, err
}

func (s *server) basic() string {
	r, _ := http.NewRequest(http.MethodGet, "http://127.0.0.1", nil)
	r.SetBasicAuth(s.ServiceClientID, s.ServiceClientSecret)
	return r.Header.Get("Authorization")
}

// login signs in, as a client does: it asks again where nothing was decided.
func (s *server) login(t *testing.T) answer {
	t.Helper()
	a, err := s.enter(t.Context())
	if err != nil || a.code != http.StatusOK {
		t.Fatalf("login: %d %s %v", a.code, a.raw, err)
	}
	return a
}

// enter is login, for any goroutine.
func (s *server) enter(ctx context.Context) (answer, error) {
	return again(ctx, answer.undecided, func() (answer, error) {
		return once(ctx, "POST", s.HTTP+"/v1/auth/login", "", s.credentials(s.Username, s.Password))
	})
}

func (a answer) text(name string) string { v, _ := a.json[name].(string); return v }

func (s *server) introspect(t *testing.T, token string) answer {
	t.Helper()
	return call(t, "POST", s.HTTP+"/v1/auth/introspect", s.basic(), map[string]any{"token": token})
}

func (s *server) refresh(t *testing.T, token string) answer {
	t.Helper()
	return call(t, "POST", s.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": token, "client_id": s.PublicClientID})
}

func TestTheTour(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	in := s.login(t)
	if in.text("token_type") != "Bearer" || in.json["expires_in"] != float64(300) || in.text("session_id") == "" {
		t.Errorf("login answered %s", in.raw)
	}
	if a := s.introspect(t, in.text("access_token")); a.json["active"] != true || a.text("sid") != in.text("session_id") {
		t.Errorf("introspect answered %s", a.raw)
	}
	first, again := s.refresh(t, in.text("refresh_token")), s.refresh(t, in.text("refresh_token"))
	if first.code != 200 || first.text("refresh_token") != again.text("refresh_token") || first.text("access_token") == again.text("access_token") {
		t.Errorf("F01: two refreshes with one token answered %d and %d, equal successors: %v", first.code, again.code, first.text("refresh_token") == again.text("refresh_token"))
	}
	bearer := "Bearer " + first.text("access_token")
	if a := call(t, "GET", s.HTTP+"/v1/sessions", bearer, nil); a.code != 200 || !strings.Contains(a.raw, in.text("session_id")) {
		t.Errorf("sessions: %d %s", a.code, a.raw)
	}
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": first.text("refresh_token")}); a.code != 200 || a.text("position") == "" {
		t.Errorf("revoke: %d %s", a.code, a.raw)
	}
	for _, token := range []string{in.text("access_token"), first.text("access_token"), again.text("access_token")} {
		if a := s.introspect(t, token); a.raw != `{"active":false}` && a.raw != `{"active": false}` {
			t.Errorf("R10: an ended session's token is introspected as %s", a.raw)
		}
	}
	if a := call(t, "GET", s.HTTP+"/v1/sessions", bearer, nil); a.code != 401 || !strings.Contains(a.raw, "TOKEN_REVOKED") {
		t.Errorf("a revoked token answered %d %s", a.code, a.raw)
	}
	if a := s.refresh(t, first.text("refresh_token")); a.code != 401 || !strings.Contains(a.raw, "REFRESH_INVALID") {
		t.Errorf("an ended session's refresh answered %d %s", a.code, a.raw)
	}
	for name, mode := range map[string]fs.FileMode{"dev.json": 0o600, "kek.json": 0o600, "refresh.json": 0o600, "demo.json": 0o600, "authsvc.db": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v, want mode %o", name, info, err, mode)
		}
	}
	s.stop(t)
}

func TestWrongPasswordUnknownNameAndDisabledAccountAreOneAnswer(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	var seen string
	for _, name := range []string{s.Username, "nobody-at-all"} {
		a := call(t, "POST", s.HTTP+"/v1/auth/login", "", map[string]any{"username": name, "password": "wrong", "client_id": s.PublicClientID})
		delete(a.json, "details")
		body := fmt.Sprint(a.code, a.json)
		if seen == "" {
			seen = body
		}
		if a.code != 401 || body != seen {
			t.Errorf("L01: %s got %s, want %s", name, body, seen)
		}
	}
	s.login(t) // the unsafe twin: the right password opens
}

func TestARestartKeepsIssuerSessionsAndKeys(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	in := s.login(t)
	issuer := s.Issuer
	s.stop(t)
	if _, err := os.Stat(filepath.Join(dir, "dev.json")); err != nil {
		t.Error("dev.json is gone after a stop:", err)
	}
	s = start(t, dir)
	if s.Issuer != issuer {
		t.Errorf("the issuer changed from %s to %s", issuer, s.Issuer)
	}
	if a := s.introspect(t, in.text("access_token")); a.json["active"] != true {
		t.Errorf("D17: a token from before the restart is introspected as %s", a.raw)
	}
	if a := s.refresh(t, in.text("refresh_token")); a.code != 200 {
		t.Errorf("D17: a refresh token from before the restart answered %d %s", a.code, a.raw)
	}
}

func TestAMissingOrOtherKeyFileRefusesToStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start(t, dir).stop(t)
	kek := filepath.Join(dir, "kek.json")
	good, err := os.ReadFile(kek)
	if err != nil {
		t.Fatal(err)
	}
	run := func() (string, error) {
		out, err := process("serve", "-dev", "-dir", dir, "-http", "127.0.0.1:0", "-grpc", "127.0.0.1:0", "-ops", "127.0.0.1:0").CombinedOutput()
		return string(out), err
	}
	if err := os.Remove(kek); err != nil {
		t.Fatal(err)
	}
	if out, err := run(); err == nil || !strings.Contains(out, "kek.json") {
		t.Errorf("D18: without its key-encryption keys it said %q, %v", out, err)
	}
	other := []byte(`{"keys":[{"id":"dev-1","key":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}`)
	if err := os.WriteFile(kek, other, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := run(); err == nil {
		t.Errorf("D18: with another key-encryption key it started: %q", out)
	}
	if err := os.WriteFile(kek, good, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, dir) // the unsafe twin
}
