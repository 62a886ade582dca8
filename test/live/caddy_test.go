package live

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// caddy runs the configuration that we ship, changed from word to word, between a server and an API, and gives a client of it.
func caddy(t *testing.T, s *server, a *api, change ...string) *http.Client {
	t.Helper()
	binary, err := exec.LookPath("caddy")
	if err != nil {
		lacking(t, "caddy is not installed (make test installs it): %v", err)
	}
	dir, err := os.MkdirTemp("", "cdy") // short, as the path of a socket must be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, conf := filepath.Join(dir, "http"), filepath.Join(dir, "Caddyfile")
	text, err := os.ReadFile("../../deploy/caddy/Caddyfile")
	if err != nil {
		t.Fatal(err)
	}
	own := changed(t, string(text), append(change,
		"http://127.0.0.1:8000 {", "http:// {\n\tbind unix/"+socket,
		"127.0.0.1:8080", strings.TrimPrefix(s.HTTP, "http://"),
		"127.0.0.1:3000", strings.TrimPrefix(a.URL, "http://"),
		"https://demo-api.example", s.Audience))
	if err := os.WriteFile(conf, []byte("{\n\tadmin off\n\tauto_https off\n}\n"+own), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "run", "--config", conf, "--adapter", "caddyfile")
	cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME="+dir, "XDG_DATA_HOME="+dir)
	return by(t, socket, cmd)
}

// TestCaddyLetsAValidTokenInAndARevokedOneOut runs a real Caddy with the configuration that we ship.
func TestCaddyLetsAValidTokenInAndARevokedOneOut(t *testing.T) {
	t.Parallel()
	s, a := start(t, t.TempDir()), behind(t)
	c := caddy(t, s, a)
	in := s.login(t)
	good := "Bearer " + in.text("access_token")
	header := func(name, value string) http.Header {
		return http.Header{"Authorization": {good}, name: {value}}
	}
	forged := header("X-Auth-Subject", "root")
	for _, name := range []string{"X_Auth_Subject", "X-Auth_Subject", "x_auth_scope", "X-Auth-Admin"} {
		forged[name] = []string{"root"}
	}
	got := through(t, c, "GET", "/orders", nil, forged)
	r, _, _ := a.last()
	if got.code != 200 || r.Header.Get("X-Auth-Session") != in.text("session_id") || r.Header.Get("X-Auth-Scope") != "demo.read demo.write" {
		t.Fatalf("a good token: %d %s %v", got.code, got.raw, r)
	}
	for name, values := range r.Header {
		if values[0] == "root" {
			t.Errorf("G03 %s is what the client wrote", name)
		}
	}
	if got := through(t, c, "GET", "/orders", nil, header("Connection", "keep-alive")); got.code != 200 {
		t.Errorf("the twin: a header for the connection: %d", got.code)
	}
	_, _, before := a.last()
	for _, tt := range []struct {
		name   string
		header http.Header
		code   int
	}{
		{"no token", nil, 401},
		{"G01 two authorizations", http.Header{"Authorization": {good, good}}, 401},
		{"no good token", http.Header{"Authorization": {good + "x"}}, 401},
		{"a service's token where a user's is required", http.Header{"Authorization": {s.own(t)}}, 403},
		{"a header that takes the session away", header("Connection", "close, x-auth-SESSION"), 400},
		{"a header that takes the token away", header("Connection", "Authorization"), 401},
	} {
		if got := through(t, c, "GET", "/orders", nil, tt.header); got.code != tt.code {
			t.Errorf("%s: %d, want %d", tt.name, got.code, tt.code)
		}
	}
	call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")})
	if got := through(t, c, "GET", "/orders", nil, http.Header{"Authorization": {good}}); got.code != 401 || !strings.Contains(got.raw, "TOKEN_REVOKED") {
		t.Errorf("P01 a revoked token: %d %s", got.code, got.raw)
	}
	twin := "Bearer " + s.login(t).text("access_token")
	s.stop(t)
	if got := through(t, c, "GET", "/orders", nil, http.Header{"Authorization": {twin}}); got.code != 502 {
		t.Errorf("without authsvc a good token gets %d, want 502", got.code)
	}
	if _, _, n := a.last(); n != before {
		t.Errorf("%d refused requests reached the API", n-before)
	}
}

// TestCaddyPassesNoIdentityThatTheTokenHasNot: Caddy 2.6 writes the name of its own variable where an answer has no such header.
func TestCaddyPassesNoIdentityThatTheTokenHasNot(t *testing.T) {
	t.Parallel()
	s, a := start(t, t.TempDir()), behind(t)
	c := caddy(t, s, a, "&require=user", "")
	got := through(t, c, "GET", "/orders", nil, http.Header{"Authorization": {s.own(t)}, "X-Auth-Session": {"of-another"}})
	r, _, _ := a.last()
	if got.code != 200 || r.Header.Get("X-Auth-Session") != "" || r.Header.Get("X-Auth-Subject") != s.ServiceClientID {
		t.Errorf("G03 a service's own token: %d; the API sees %v", got.code, r)
	}
}
