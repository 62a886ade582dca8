package main_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// programs is the folder of the two built programs.
var programs string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if programs, err = os.MkdirTemp("", "authsvc-replicas-"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(programs)
		if out, err := exec.Command("go", "build", "-o", programs+"/", "../../cmd/authsvc", ".").CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// speech is what a process says, read while it speaks.
type speech struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *speech) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *speech) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// cluster is what "make replicas" runs.
type cluster struct {
	HTTP, GRPC, Issuer  string
	Username, Password  string
	PublicClientID      string `json:"public_client_id"`
	ServiceClientID     string `json:"service_client_id"`
	ServiceClientSecret string `json:"service_client_secret"`
	CAFile              string `json:"ca_file"`
	dir                 string
	port                int
	cmd                 *exec.Cmd
	said                *speech
	exited              chan struct{}
	roots               *x509.CertPool
}

// lacking ends a test for want of something that this machine has not: it is skipped, except where everything is required.
func lacking(t *testing.T) {
	t.Helper()
	for _, name := range []string{"nginx", "openssl", "redis-server"} {
		if _, err := exec.LookPath(name); err != nil {
			if _, err := os.Stat("/usr/sbin/" + name); err != nil {
				skip(t, name)
			}
		}
	}
	if found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb"); len(found) == 0 {
		if _, err := exec.LookPath("initdb"); err != nil {
			skip(t, "PostgreSQL")
		}
	}
}

func skip(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("AUTHSVC_TEST_REQUIRE") != "" {
		t.Fatalf("%s is not installed", what)
	}
	t.Skipf("%s is not installed", what)
}

// folder is one that the user postgres can reach.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rep")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// start runs it and waits until it says that it is ready; with port 0 it takes ports at random, below those that the kernel gives out.
func start(t *testing.T, dir string, port int) *cluster {
	t.Helper()
	random := port == 0
	for {
		if random {
			port = 10_000 + rand.IntN(20_000)
		}
		c := &cluster{dir: dir, port: port, said: &speech{}, exited: make(chan struct{})}
		c.cmd = exec.Command(filepath.Join(programs, "replicas"), "-dir", dir, "-port", strconv.Itoa(port), "-deploy", "..", "-authsvc", filepath.Join(programs, "authsvc"))
		c.cmd.Stdout, c.cmd.Stderr = c.said, c.said
		if err := c.cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { _ = c.cmd.Wait(); close(c.exited) }()
		t.Cleanup(func() { c.stop(t) })
		ended := false
		await(t, "the replicas are ready", func() bool {
			select {
			case <-c.exited:
				ended = true
			default:
			}
			return ended || strings.Contains(c.said.String(), "three replicas are ready")
		})
		if ended && random && strings.Contains(c.said.String(), "is taken") {
			continue
		}
		if ended {
			t.Fatalf("it ended: %s", c.said)
		}
		text, err := os.ReadFile(filepath.Join(dir, "demo.json"))
		if err != nil || json.Unmarshal(text, c) != nil {
			t.Fatalf("demo.json: %v", err)
		}
		ca, err := os.ReadFile(c.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		c.roots = x509.NewCertPool()
		c.roots.AppendCertsFromPEM(ca)
		return c
	}
}

// stop is what Ctrl-C and SIGTERM do.
func (c *cluster) stop(t *testing.T) {
	t.Helper()
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	<-c.exited
}

func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// replica is the URL of one of them, past nginx.
func (c *cluster) replica(n int) string { return "https://127.0.0.1:" + strconv.Itoa(c.port+10*n) }

// call sends JSON from an address of this machine.
// Where a replica says that it had not run for a while, as on a busy machine, and has decided nothing, it asks again.
func (c *cluster) call(t *testing.T, from, method, url, authorization string, body map[string]any) (code int, said map[string]any) {
	t.Helper()
	await(t, "something is decided", func() bool {
		code, said = c.once(t, from, method, url, authorization, body)
		message, _ := said["message"].(string)
		return code != http.StatusServiceUnavailable || !strings.HasPrefix(message, "this replica was stopped a moment ago")
	})
	return code, said
}

func (c *cluster) once(t *testing.T, from, method, url, authorization string, body map[string]any) (int, map[string]any) {
	t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	if body == nil {
		text = nil
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("X-Forwarded-For", "203.0.113.9") // what a caller writes about itself
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.roots}, DisableKeepAlives: true,
		DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}).DialContext}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatalf("%s answered %d %s", url, resp.StatusCode, raw)
	}
	return resp.StatusCode, out
}

func (c *cluster) login(t *testing.T, url string) map[string]any {
	t.Helper()
	code, in := c.call(t, "127.0.0.77", "POST", url+"/v1/auth/login", "", map[string]any{"username": c.Username, "password": c.Password, "client_id": c.PublicClientID})
	if code != http.StatusOK {
		t.Fatalf("login at %s: %d %v", url, code, in)
	}
	return in
}

func (c *cluster) refresh(t *testing.T, url string, token any) (int, map[string]any) {
	t.Helper()
	return c.call(t, "127.0.0.77", "POST", url+"/v1/auth/refresh", "", map[string]any{"refresh_token": token, "client_id": c.PublicClientID})
}

func (c *cluster) active(t *testing.T, url string, token any) bool {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(c.ServiceClientID, c.ServiceClientSecret)
	code, said := c.call(t, "127.0.0.1", "POST", url+"/v1/auth/introspect", r.Header.Get("Authorization"), map[string]any{"token": token})
	if code != http.StatusOK {
		t.Fatalf("introspect at %s: %d %v", url, code, said)
	}
	return said["active"] == true
}

func (c *cluster) pid(t *testing.T, name string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, "pid", name))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// TestThreeReplicasServeAsOne starts all of it, uses any replica for any call, kills one, stops, and goes on where it was.
func TestThreeReplicasServeAsOne(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts seven servers, twice")
	}
	lacking(t)
	dir := folder(t)
	c := start(t, dir, 0)

	// What ends at one replica is refused at the others. The twin: before that it is accepted there.
	in := c.login(t, c.replica(1))
	if !c.active(t, c.replica(3), in["access_token"]) {
		t.Error("a token of the first replica is not good at the third")
	}
	if code, said := c.call(t, "127.0.0.1", "POST", c.replica(2)+"/v1/auth/revoke", "", map[string]any{"token": in["refresh_token"]}); code != http.StatusOK {
		t.Fatalf("revoke at the second replica: %d %v", code, said)
	}
	await(t, "what was revoked at the second replica is refused at the third", func() bool { return !c.active(t, c.replica(3), in["access_token"]) })
	if code, said := c.refresh(t, c.replica(3), in["refresh_token"]); code != http.StatusUnauthorized {
		t.Errorf("an ended session's refresh at the third replica: %d %v", code, said)
	}

	// Through nginx the caller's own address counts, and not what it writes about itself.
	in = c.login(t, c.HTTP)
	_, list := c.call(t, "127.0.0.77", "GET", c.HTTP+"/v1/sessions", "Bearer "+in["access_token"].(string), nil)
	if text := fmt.Sprint(list); !strings.Contains(text, "127.0.0.77") || strings.Contains(text, "203.0.113.9") {
		t.Errorf("R57: the session is from %s", text)
	}

	// A verifier follows the feed through nginx.
	feed, err := guard.NewFeed(guard.FeedOptions{Target: c.GRPC, Issuer: c.Issuer, ClientID: c.ServiceClientID, ClientSecret: c.ServiceClientSecret, TLS: &tls.Config{RootCAs: c.roots}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	followed := make(chan error, 1)
	go func() { followed <- feed.Run(ctx) }()
	if err := feed.Ready(ctx); err != nil {
		t.Fatal(err)
	}

	// Redis is there for all of them, with the rights that it takes, and the doctor is content.
	for n := 1; n <= 3; n++ { // a busy machine's Redis may be late, and then it is away for a moment
		await(t, fmt.Sprintf("replica %d has authsvc_redis_up 1", n), func() bool { return c.metric(t, n, "authsvc_redis_up") == "1" })
	}
	c.doctor(t)
	c.goesOnWithoutOne(t, feed, in["refresh_token"])
	cancel()
	<-followed

	// What is in the folder is taken by one at a time.
	second := exec.Command(filepath.Join(programs, "replicas"), "-dir", dir, "-port", strconv.Itoa(c.port), "-deploy", "..", "-authsvc", filepath.Join(programs, "authsvc"))
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "replicas run in "+dir+" already") {
		t.Errorf("a second start: %v %s", err, out)
	}
	second = exec.Command(filepath.Join(programs, "replicas"), "-dir", folder(t), "-port", strconv.Itoa(c.port), "-deploy", "..", "-authsvc", filepath.Join(programs, "authsvc"))
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), fmt.Sprintf("port %d, for PostgreSQL, is taken", c.port+40)) {
		t.Errorf("a start on its ports: %v %s", err, out)
	}

	// It stops, leaves nothing running, and the next start goes on with all of it.
	session := c.login(t, c.HTTP)
	pids := map[string]int{}
	for _, name := range []string{"primary", "standby", "redis", "replica-1", "replica-2", "replica-3", "nginx"} {
		pids[name] = c.pid(t, name)
	}
	c.stop(t)
	if code := c.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("it ended with %d: %s", code, c.said)
	}
	for name, pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("%s is left running", name)
		}
	}
	c = start(t, dir, c.port)
	if code, said := c.refresh(t, c.HTTP, session["refresh_token"]); code != http.StatusOK {
		t.Errorf("a session from before the stop: %d %v", code, said)
	}
}

// metric gives a figure that a replica exports without labels.
func (c *cluster) metric(t *testing.T, n int, name string) string {
	t.Helper()
	resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(c.port+10*n+2) + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok && (rest[0] == ' ' || rest[0] == '{') {
			fields := strings.Fields(rest)
			return fields[len(fields)-1]
		}
	}
	return ""
}

// doctor finds nothing that has to be mended, and commits that wait for the standby. What is slow for a while, on a busy machine, is a finding, too.
func (c *cluster) doctor(t *testing.T) {
	t.Helper()
	var said string
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the doctor said last %s", said)
		}
	})
	await(t, "the doctor is content", func() bool {
		asked := exec.Command(filepath.Join(programs, "authsvc"), "doctor", "-o", "json", "-config", filepath.Join(c.dir, "replica-1", "authsvc.yaml"))
		asked.Env = slices.DeleteFunc(os.Environ(), func(pair string) bool { return strings.HasPrefix(pair, "AUTHSVC_") }) // which speak to the tests
		out, err := asked.CombinedOutput()
		said = string(out)
		var found []struct{ Check, Level, Found string }
		if json.Unmarshal(out, &found) != nil || len(found) < 8 {
			t.Fatalf("doctor: %v %s", err, out)
		}
		for _, f := range found {
			if f.Level != "ok" && f.Check != "postgresql" { // which notes that there is no archive
				return false
			}
		}
		return err == nil
	})
}

// goesOnWithoutOne kills a replica under calls through nginx, of which none may fail.
func (c *cluster) goesOnWithoutOne(t *testing.T, feed *guard.Feed, token any) {
	t.Helper()
	v, err := verify.New(verify.Options{Issuer: c.Issuer, Audiences: []string{"https://demo-api.example"}, Keys: feed, Revocations: feed, Now: feed.Now})
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(c.pid(t, "replica-2"), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		code, said := c.refresh(t, c.HTTP, token)
		if code != http.StatusOK {
			t.Fatalf("refresh %d without a replica: %d %v", i, code, said)
		}
		token = said["refresh_token"]
	}
	in := c.login(t, c.HTTP)
	await(t, "the verifier is fresh again, and lets a token pass", func() bool {
		_, err := v.Verify(t.Context(), in["access_token"].(string))
		if err != nil && !errors.Is(err, verify.ErrStale) && !errors.Is(err, verify.ErrNotReady) {
			t.Fatal(err)
		}
		return err == nil && feed.Status().Age < 2*time.Second
	})
	if code, said := c.call(t, "127.0.0.1", "POST", c.replica(1)+"/v1/auth/revoke", "", map[string]any{"token": in["refresh_token"]}); code != http.StatusOK {
		t.Fatalf("revoke: %d %v", code, said)
	}
	await(t, "the verifier has heard of it", func() bool {
		_, err := v.Verify(t.Context(), in["access_token"].(string))
		return errors.Is(err, verify.ErrRevoked)
	})
	await(t, "the killed replica is back", func() bool {
		resp, err := http.Get("http://127.0.0.1:" + strconv.Itoa(c.port+22) + "/readyz")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	if !c.active(t, c.replica(2), c.login(t, c.replica(2))["access_token"]) {
		t.Error("the replica that came back does not know its own token")
	}
}

// TestWhatItRefuses is about what it is told.
func TestWhatItRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"a port of the system's":        {[]string{"-port", "80"}, "-port 80: must be 1024 to"},
		"ports beyond the last":         {[]string{"-port", "65500"}, "-port 65500: must be 1024 to"},
		"a folder with a space":         {[]string{"-dir", "/tmp/a folder"}, "has a character that means something"},
		"a folder too deep for sockets": {[]string{"-dir", "/tmp/" + strings.Repeat("d", 100)}, "is longer than 80 bytes"},
		"a program that is not there":   {[]string{"-authsvc", "/nowhere/authsvc"}, "-authsvc: stat /nowhere/authsvc"},
		"an argument too many":          {[]string{"again"}, `"again" is one argument too many`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"-dir", filepath.Join(t.TempDir(), "r"), "-authsvc", filepath.Join(programs, "authsvc")}, tt.args...)
			out, err := exec.Command(filepath.Join(programs, "replicas"), args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v %s", err, out)
			}
		})
	}
}
