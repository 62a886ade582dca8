package live

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestF07F04AReplayAfterARestartIsFound redeems a token twice over, kills the process, and lets a thief present the old one
// to the next process, which has nothing but the database to know it by.
func TestF07F04AReplayAfterARestartIsFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	stolen, bystander := s.login(t), s.login(t)
	second := s.refresh(t, stolen.text("refresh_token"))
	newest := s.refresh(t, second.text("refresh_token"))
	if newest.code != http.StatusOK {
		t.Fatalf("refresh: %d %s", newest.code, newest.raw)
	}
	s.kill(t)
	s = start(t, dir)
	if a := s.introspect(t, newest.text("access_token")); a.json["active"] != true {
		t.Errorf("before the theft shows: %s", a.raw)
	}
	theft := s.say(t, http.DefaultClient, "/v1/auth/refresh", map[string]any{"refresh_token": stolen.text("refresh_token"), "client_id": s.PublicClientID}, "User-Agent", "thief/1")
	if theft.code != http.StatusUnauthorized || theft.reason() != "REFRESH_REUSED" {
		t.Errorf("F07: the old token answered %d %s", theft.code, theft.raw)
	}
	if a := s.refresh(t, newest.text("refresh_token")); a.reason() != "REFRESH_INVALID" {
		t.Errorf("F04: the session did not end: %d %s", a.code, a.raw)
	}
	for _, a := range []answer{stolen, second, newest} {
		if r := s.introspect(t, a.text("access_token")); r.json["active"] != false {
			t.Errorf("F04: an access token of the stolen session is %s", r.raw)
		}
	}
	if n := s.metric(t, "authsvc_refreshes_total", `outcome="refresh_reused"`); n != 1 {
		t.Errorf("%v thefts are counted", n)
	}
	s.kill(t)
	s = start(t, dir) // the end outlives a process, too
	if a := s.refresh(t, newest.text("refresh_token")); a.reason() != "REFRESH_INVALID" {
		t.Errorf("F10: after a restart the ended session answered %d %s", a.code, a.raw)
	}
	if a := s.refresh(t, bystander.text("refresh_token")); a.code != http.StatusOK { // the twin: the newest token after a restart
		t.Errorf("a session that nobody stole answered %d %s", a.code, a.raw)
	}
}

// TestF18TokensNewerThanTheDatabaseGoOn puts back an older copy of the database, as a failover that loses writes does.
func TestF18TokensNewerThanTheDatabaseGoOn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	first := s.login(t)
	s.stop(t)
	path := filepath.Join(dir, "authsvc.db")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const lost = "the database lost writes"
	s = start(t, dir)
	newest := first
	for range 4 {
		if newest = s.refresh(t, newest.text("refresh_token")); newest.code != http.StatusOK {
			t.Fatalf("refresh: %d %s", newest.code, newest.raw)
		}
	}
	s.stop(t)
	if strings.Contains(s.out.String(), lost) { // the twin: a database that has them
		t.Errorf("F18: an ordinary restart says %s", s.out)
	}
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir)
	next := s.refresh(t, newest.text("refresh_token"))
	if next.code != http.StatusOK {
		t.Fatalf("F18: the honest holder of the newest token is answered %d %s", next.code, next.raw)
	}
	if a := s.refresh(t, next.text("refresh_token")); a.code != http.StatusOK {
		t.Errorf("F18: its successor answered %d %s", a.code, a.raw)
	}
	if a := s.introspect(t, next.text("access_token")); a.json["active"] != true || a.json["sid"] != first.json["session_id"] {
		t.Errorf("F18: its access token is %s", a.raw)
	}
	s.stop(t)
	if !strings.Contains(s.out.String(), lost) {
		t.Errorf("F18: nobody is told that writes were lost:\n%s", s.out)
	}
}

// TestDevJSONIsWholeAndOfThisStart watches dev.json from before a start: what it says at first sight holds, and a start that
// fails leaves none of the start before.
func TestDevJSONIsWholeAndOfThisStart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "dev.json")
	s := start(t, dir)
	s.stop(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var named map[string]string
	if err := json.Unmarshal(before, &named); err != nil {
		t.Fatal(err)
	}
	var names []string
	for name, v := range named {
		if names = append(names, name); v == "" {
			t.Errorf("%s is empty", name)
		}
	}
	if diff := cmp.Diff(map[string]bool{"http": true, "grpc": true, "ops": true, "issuer": true, "username": true, "password": true, "public_client_id": true,
		"service_client_id": true, "service_client_secret": true, "audience": true}, set(names)); diff != "" {
		t.Errorf("dev.json says (-want +got)\n%s", diff)
	}

	next := process("serve", "-dev", "-dir", dir, "-http", "127.0.0.1:0", "-grpc", "127.0.0.1:0", "-ops", "127.0.0.1:0")
	if err := next.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- next.Wait() }()
	t.Cleanup(func() { _ = next.Process.Kill(); <-exited })
	var d dev
	gone := false
	await(t, "dev.json is written", func() bool {
		content, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			gone = true
			return false
		case err != nil:
			t.Fatal(err)
		case string(content) == string(before):
			return false // of the start before: this one has not got so far
		}
		if err := json.Unmarshal(content, &d); err != nil {
			t.Fatalf("dev.json was seen in part: %v\n%s", err, content)
		}
		return true
	})
	t.Logf("dev.json was seen to be gone: %v", gone)
	for _, addr := range []string{strings.TrimPrefix(d.HTTP, "http://"), d.GRPC, strings.TrimPrefix(d.Ops, "http://")} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Errorf("dev.json names a door that does not listen: %v", err)
			continue
		}
		_ = conn.Close()
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("dev.json: %v %v", info, err)
	}
	s = &server{dev: d}
	await(t, "it is ready", func() bool { return s.probe("/readyz") == http.StatusOK })
	var rows []struct{ Kid, State string }
	if err := json.Unmarshal([]byte(operate(t, "", "keys", "list", "-dir", dir, "-o", "json")), &rows); err != nil {
		t.Fatal(err)
	}
	states := map[string]bool{}
	published := call(t, "GET", d.HTTP+"/.well-known/jwks.json", "", nil).raw
	for _, row := range rows {
		if states[row.State] = true; !strings.Contains(published, `"`+row.Kid+`"`) {
			t.Errorf("the %s key is not in the key set %s", row.State, published)
		}
	}
	if diff := cmp.Diff(map[string]bool{"active": true, "pending": true}, states); diff != "" {
		t.Errorf("the keys (-want +got)\n%s", diff)
	}

	if err := next.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	err = <-exited
	exited <- err
	if err := os.Remove(filepath.Join(dir, "kek.json")); err != nil {
		t.Fatal(err)
	}
	if out, err := command("", "serve", "-dev", "-dir", dir, "-http", "127.0.0.1:0", "-grpc", "127.0.0.1:0", "-ops", "127.0.0.1:0"); err == nil {
		t.Fatalf("it started without its key-encryption keys: %s", out)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after a start that failed dev.json is of the one before: %v", err)
	}
}

func set(words []string) map[string]bool {
	m := map[string]bool{}
	for _, w := range words {
		m[w] = true
	}
	return m
}
