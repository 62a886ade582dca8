package live

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// api is what stands behind a proxy; it remembers what reached it.
type api struct {
	*httptest.Server
	mu   sync.Mutex
	seen []*http.Request
	body []byte
}

func behind(t *testing.T) *api {
	t.Helper()
	a := &api{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		a.mu.Lock()
		defer a.mu.Unlock()
		a.seen, a.body = append(a.seen, r), body
		_, _ = io.WriteString(w, "orders")
	}))
	t.Cleanup(a.Close)
	return a
}

// last gives the newest request that reached the API, and how many did.
func (a *api) last() (*http.Request, []byte, int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.seen) == 0 {
		return nil, nil, 0
	}
	return a.seen[len(a.seen)-1], a.body, len(a.seen)
}

// nginx runs the configuration that we ship, changed from word to word, between a server and an API, and gives a client of it.
func nginx(t *testing.T, s *server, a *api, change ...string) *http.Client {
	t.Helper()
	binary, err := exec.LookPath("nginx")
	if err != nil {
		lacking(t, "nginx is not installed (make test installs it): %v", err)
	}
	dir, err := os.MkdirTemp("", "ngx") // short, as the path of a socket must be
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	shipped := func(name string) string {
		text, err := os.ReadFile("../../deploy/nginx/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	socket := filepath.Join(dir, "http")
	conf := shipped("forward-auth.conf")
	conf = changed(t, conf, append(change,
		"listen 127.0.0.1:8000;", "listen unix:"+socket+";", // no port that another could take first
		"server 127.0.0.1:8080;", "server "+strings.TrimPrefix(s.HTTP, "http://")+";",
		"server 127.0.0.1:3000;", "server "+strings.TrimPrefix(a.URL, "http://")+";",
		"https://demo-api.example", s.Audience,
		"/etc/nginx/", dir+"/"))
	outer := fmt.Sprintf("daemon off;\nmaster_process off;\npid %[1]s/pid;\nerror_log stderr warn;\nevents {}\nhttp {\n"+
		"access_log off;\nclient_body_temp_path %[1]s/body;\nproxy_temp_path %[1]s/proxy;\nfastcgi_temp_path %[1]s/f;\nuwsgi_temp_path %[1]s/u;\nscgi_temp_path %[1]s/s;\n"+
		"include %[1]s/forward-auth.conf;\n}\n", dir)
	ask := changed(t, shipped("authsvc-ask.conf"), []string{"proxy_connect_timeout 1s;", "proxy_connect_timeout 60s;", "proxy_send_timeout 2s;", "proxy_send_timeout 60s;",
		"proxy_read_timeout 2s;", "proxy_read_timeout 60s;"}) // that the machine is busy is no fault of the configuration
	for name, text := range map[string]string{"nginx.conf": outer, "forward-auth.conf": conf, "authsvc-ask.conf": ask,
		"authsvc-identity.conf": shipped("authsvc-identity.conf")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return by(t, socket, exec.Command(binary, "-p", dir, "-e", "stderr", "-c", filepath.Join(dir, "nginx.conf")))
}

// changed replaces words in a configuration that we ship, each of which must be there.
func changed(t *testing.T, conf string, words []string) string {
	t.Helper()
	for ; len(words) > 0; words = words[2:] {
		if !strings.Contains(conf, words[0]) {
			t.Fatalf("the shipped configuration has no %q", words[0])
		}
		conf = strings.ReplaceAll(conf, words[0], words[1])
	}
	return conf
}

// by runs a proxy that listens on a socket, and gives a client of it.
func by(t *testing.T, socket string, cmd *exec.Cmd) *http.Client {
	t.Helper()
	out := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		<-ended
	})
	await(t, "the proxy listens", func() bool {
		select {
		case <-ended:
			t.Fatalf("the proxy ended: %s", out)
		default:
		}
		conn, err := net.Dial("unix", socket)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// through sends a request through a proxy.
func through(t *testing.T, c *http.Client, method, path string, body io.Reader, header http.Header) answer {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://api.example"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		r.Header[name] = values // as it is spelled
	}
	resp, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{code: resp.StatusCode, header: resp.Header, raw: string(raw)}
}

// TestNginxLetsAValidTokenInAndARevokedOneOut runs a real nginx with the configuration that we ship.
func TestNginxLetsAValidTokenInAndARevokedOneOut(t *testing.T) {
	t.Parallel()
	s, a := start(t, t.TempDir()), behind(t)
	c := nginx(t, s, a)
	in := s.login(t)
	good := "Bearer " + in.text("access_token")
	of := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h[pairs[i]] = append(h[pairs[i]], pairs[i+1])
		}
		return h
	}
	subject := s.introspect(t, in.text("access_token")).text("sub")

	// A good token, and beside it what a client writes to be somebody else.
	got := through(t, c, "GET", "/orders/7?audience=evil&scope=evil", nil, of("Authorization", good, "X-Auth-Subject", "root", "x_auth_subject", "root", "X_Auth_Subject", "root",
		"x-auth-scope", "admin", "X-Auth-Session", "of-another", "X-Forwarded-Uri", "/healthz", "User-Agent", "kube-probe/1.33"))
	r, _, n := a.last()
	if got.code != 200 || got.raw != "orders" || n != 1 {
		t.Fatalf("a good token: %d %s; %d requests reached the API", got.code, got.raw, n)
	}
	for name, want := range map[string]string{"X-Auth-Subject": subject, "X-Auth-Session": in.text("session_id"), "X-Auth-Client": s.PublicClientID, "X-Auth-Scope": "demo.read demo.write"} {
		if v := r.Header[name]; len(v) != 1 || v[0] != want {
			t.Errorf("G03 the API sees %s: %q, want %q", name, v, want)
		}
	}
	for name := range r.Header {
		if strings.Contains(name, "_") {
			t.Errorf("G03 %s reached the API, which may take it for an identity header", name)
		}
	}
	if r.URL.RawQuery != "audience=evil&scope=evil" {
		t.Errorf("the API's own query is %q", r.URL.RawQuery)
	}
	if got.header.Get("X-Auth-Subject") != "" {
		t.Error("the identity headers go to the client, too")
	}
	body := strings.Repeat("b", 200<<10) // larger than what authsvc takes, which must not see it
	if got := through(t, c, "POST", "/orders", strings.NewReader(body), of("Authorization", good)); got.code != 200 {
		t.Errorf("a request with a body: %d %s", got.code, got.raw)
	}
	if r, b, _ := a.last(); r.Method != "POST" || string(b) != body {
		t.Errorf("the API got %s with %d bytes", r.Method, len(b))
	}

	_, _, before := a.last()
	own := s.own(t)
	for _, tt := range []struct {
		name      string
		path      string
		header    http.Header
		code      int
		challenge string
	}{
		{"no token", "/orders", nil, 401, `Bearer realm="authsvc"`},
		{"G14 a probe's user agent", "/healthz", of("User-Agent", "kube-probe/1.33", "X-Forwarded-Uri", "/healthz", "X-Auth-Subject", "root"), 401, `Bearer realm="authsvc"`},
		{"a token in the query", "/orders?access_token=" + good[7:], nil, 401, `Bearer realm="authsvc"`},
		{"no good token", "/orders", of("Authorization", good+"x"), 401, `Bearer realm="authsvc", error="invalid_token"`},
		{"a service's token where a user's is required", "/orders", of("Authorization", own), 403, ""},
		{"what only nginx may ask", "/_authsvc/orders?audience=x", of("Authorization", good), 404, ""},
		{"the same, without its slash", "//_authsvc/orders", of("Authorization", good), 404, ""},
	} {
		got := through(t, c, "GET", tt.path, nil, tt.header)
		challenges := got.header.Values("WWW-Authenticate")
		if got.code != tt.code || tt.challenge != "" && (len(challenges) != 1 || !strings.HasPrefix(challenges[0], tt.challenge)) || tt.challenge == "" && len(challenges) > 0 {
			t.Errorf("%s: %d %q, want %d %s", tt.name, got.code, challenges, tt.code, tt.challenge)
		}
	}
	if got := through(t, c, "GET", "/orders", nil, of("Authorization", good, "Authorization", good)); got.code != 400 && got.code != 401 {
		t.Errorf("G01 two authorizations: %d", got.code)
	}
	if _, _, n := a.last(); n != before {
		t.Errorf("%d refused requests reached the API", n-before)
	}

	narrow := "Bearer " + call(t, "POST", s.HTTP+"/v1/auth/login", "", map[string]any{"username": s.Username, "password": s.Password, "client_id": s.PublicClientID, "scope": "demo.write"}).text("access_token")
	if got := through(t, c, "GET", "/orders", nil, of("Authorization", narrow)); got.code != 403 || got.header.Get("WWW-Authenticate") != `Bearer realm="authsvc", error="insufficient_scope", scope="demo.read"` {
		t.Errorf("a token without the scope: %d %q", got.code, got.header.Values("WWW-Authenticate"))
	}

	// The list has a revocation before Revoke is answered, so the very next request is refused.
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")}); a.code != 200 {
		t.Fatalf("revoke: %d %s", a.code, a.raw)
	}
	if got := through(t, c, "GET", "/orders", nil, of("Authorization", good)); got.code != 401 || !strings.Contains(got.header.Get("WWW-Authenticate"), "has been revoked") {
		t.Errorf("P01 a revoked token: %d %q", got.code, got.header.Values("WWW-Authenticate"))
	}
	twin := "Bearer " + s.login(t).text("access_token")
	if got := through(t, c, "GET", "/orders", nil, of("Authorization", twin)); got.code != 200 {
		t.Errorf("the twin: %d", got.code)
	}
	if n := s.metric(t, "authsvc_forward_auth_total", `outcome="token_revoked"`); n != 1 {
		t.Errorf("the metrics show %v revoked tokens, want 1", n)
	}
	_, _, before = a.last()
	s.stop(t)
	if got := through(t, c, "GET", "/orders", nil, of("Authorization", twin)); got.code != 500 {
		t.Errorf("without authsvc a good token gets %d, want 500", got.code)
	}
	if _, _, n := a.last(); n != before {
		t.Error("without authsvc a request reached the API")
	}
}

// TestNginxPassesNoIdentityThatTheTokenHasNot: a service's own token has no session, so the client's word for one must go.
func TestNginxPassesNoIdentityThatTheTokenHasNot(t *testing.T) {
	t.Parallel()
	s, a := start(t, t.TempDir()), behind(t)
	c := nginx(t, s, a, "&require=user", "")
	got := through(t, c, "GET", "/orders", nil, http.Header{"Authorization": {s.own(t)}, "X-Auth-Session": {"of-another"}, "X-Auth-Scope": {"admin"}})
	r, _, _ := a.last()
	if got.code != 200 || r == nil {
		t.Fatalf("a service's own token: %d %s", got.code, got.raw)
	}
	if v, ok := r.Header["X-Auth-Session"]; ok || r.Header.Get("X-Auth-Subject") != s.ServiceClientID || r.Header.Get("X-Auth-Scope") != "demo.read demo.write" {
		t.Errorf("G03 the API sees the session %q, the subject %q and the scope %q", v, r.Header.Get("X-Auth-Subject"), r.Header.Get("X-Auth-Scope"))
	}
}

// TestNginxAndTheAPISeeOnePath: what a location requires holds for every spelling that the API could take for a path of it.
func TestNginxAndTheAPISeeOnePath(t *testing.T) {
	t.Parallel()
	s, a := start(t, t.TempDir()), behind(t)
	c := nginx(t, s, a, "    location / {", "    location /open/ {\n        proxy_pass http://api/open/;\n    }\n    location / {")
	narrow := "Bearer " + call(t, "POST", s.HTTP+"/v1/auth/login", "", map[string]any{"username": s.Username, "password": s.Password, "client_id": s.PublicClientID, "scope": "demo.read"}).text("access_token")
	wide := "Bearer " + s.login(t).text("access_token")
	for _, tt := range []struct {
		path, bearer string
		code         int
		sees         string
	}{
		{"/orders/7?a=%2f..", narrow, 200, "/orders/7?a=%2f.."},
		{"/orders/a%20b%3fc%25d", narrow, 200, "/orders/a%20b%3Fc%25d"},
		{"/admin/7", wide, 200, "/admin/7"},
		{"/admin/7", narrow, 403, ""},
		{"//admin/7", narrow, 403, ""},
		{"/%61dmin/7", narrow, 403, ""},
		{"/x/../admin/7", narrow, 403, ""},
		{"/x/..%2fadmin%2f7", narrow, 403, ""},
		{"/admin/../x", narrow, 200, "/x"},
		{"/admin/%2e%2e/x", narrow, 200, "/x"},
		{"/admin/..%2fx", narrow, 200, "/x"},
		{"/open/7", "", 200, "/open/7"},
	} {
		_, _, before := a.last()
		header := http.Header{"X-Auth-Subject": {"root"}, "X-Auth-Scope": {"admin"}}
		if tt.bearer != "" {
			header.Set("Authorization", tt.bearer)
		}
		got := through(t, c, "GET", tt.path, nil, header)
		r, _, n := a.last()
		if got.code != tt.code || (n > before) != (tt.code == 200) || tt.code == 200 && r.RequestURI != tt.sees {
			t.Errorf("%s: %d, want %d; the API sees %v, want %q", tt.path, got.code, tt.code, r, tt.sees)
			continue
		}
		if tt.code == 200 && (r.Header.Get("X-Auth-Subject") == "root" || r.Header.Get("X-Auth-Scope") == "admin") {
			t.Errorf("G03 %s: the API sees who the client says it is: %v", tt.path, r.Header)
		}
	}
	c = nginx(t, s, a, "proxy_pass http://api/;", "proxy_pass http://api;")
	if got := through(t, c, "GET", "/admin/..%2fx", nil, http.Header{"Authorization": {narrow}}); got.code != 200 {
		t.Errorf("the unsafe twin: %d", got.code)
	}
	if r, _, _ := a.last(); r.RequestURI != "/admin/..%2fx" {
		t.Errorf("the unsafe twin: the API sees %s", r.RequestURI)
	}
}

// TestNginxAsksTheNextReplicaWhereOneCannotDecide: one stale replica of two is not half of an outage.
func TestNginxAsksTheNextReplicaWhereOneCannotDecide(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	stale := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(stale.Close)
	s, a := start(t, t.TempDir()), behind(t)
	c := nginx(t, s, a, "server 127.0.0.1:8080;", "server "+stale.Listener.Addr().String()+";\n    server 127.0.0.1:8080;")
	good := "Bearer " + s.login(t).text("access_token")
	for range 4 {
		if got := through(t, c, "GET", "/orders", nil, http.Header{"Authorization": {good}}); got.code != 200 {
			t.Errorf("a good token: %d", got.code)
		}
		if got := through(t, c, "GET", "/orders", nil, http.Header{"Authorization": {good + "x"}}); got.code != 401 {
			t.Errorf("no good token: %d", got.code)
		}
	}
	if asked.Load() == 0 {
		t.Error("nginx never asked the stale one")
	}
}

// own is the service client's own token for the demo API.
func (s *server) own(t *testing.T) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.HTTP+"/oauth2/token", strings.NewReader("grant_type=client_credentials"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(s.ServiceClientID, s.ServiceClientSecret)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var issued struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&issued); err != nil || issued.AccessToken == "" {
		t.Fatalf("no token of its own: %d %v", resp.StatusCode, err)
	}
	return "Bearer " + issued.AccessToken
}
