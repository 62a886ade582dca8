package live

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/test/soak"
)

// wire gives a client of the gRPC door.
func wire(t *testing.T, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// bytes sends raw bytes to the REST door and gives the first answer, or code 0 where the connection just ended.
func (s *server) bytes(t *testing.T, text string) (code int, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.HTTP, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, ""
	}
	content, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(content)
}

// TestRequestsOnTheRealDoor puts one fault at a time into a request that would be served.
func TestRequestsOnTheRealDoor(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	first, second := s.login(t), s.login(t)
	good, other := "Bearer "+first.text("access_token"), "Bearer "+second.text("access_token")
	login := fmt.Sprintf(`{"username":%q,"password":%q,"client_id":%q}`, s.Username, s.Password, s.PublicClientID)
	post := func(path, body string, header ...string) string {
		text := "POST " + path + " HTTP/1.1\r\nHost: x\r\n"
		for i := 0; i < len(header); i += 2 {
			text += header[i] + ": " + header[i+1] + "\r\n"
		}
		return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", text, len(body), body)
	}
	get := func(path string, header ...string) string {
		return strings.Replace(strings.Replace(post(path, "", header...), "POST", "GET", 1), "Content-Length: 0\r\n", "", 1)
	}
	const typed, asJSON = "Content-Type", "application/json"
	for _, tt := range []struct {
		name, text string
		code       int
		holds      string
	}{
		{"twin: a token in the header", get("/v1/sessions", "Authorization", good), 200, `"current":true`},
		{"G01 a token smuggled as metadata", get("/v1/sessions", "Grpc-Metadata-Authorization", good), 401, "TOKEN_INVALID"},
		{"G01 two tokens", get("/v1/sessions", "Authorization", good, "Authorization", other), 401, "TOKEN_INVALID"},
		{"R08 no credentials", get("/v1/sessions"), 401, "a bearer token is required"},
		{"R08 a token in the query", get("/v1/sessions?access_token=" + first.text("access_token")), 400, "FIELD_INVALID"},
		{"F16 a refresh token in the query", get("/v1/auth/refresh?refresh_token=" + first.text("refresh_token")), 405, "METHOD_NOT_ALLOWED"},
		{"twin: a login", post("/v1/auth/login", login, typed, asJSON), 200, "access_token"},
		{"G06 a login that calls itself a DELETE is a login", post("/v1/auth/login", login, typed, asJSON, "X-HTTP-Method-Override", "DELETE"), 200, "access_token"},
		{"G06 a form that calls itself a GET", post("/v1/sessions", "page_size=1", typed, "application/x-www-form-urlencoded", "X-HTTP-Method-Override", "GET", "Authorization", good), 405, ""},
		{"G07 JSON called text", post("/v1/auth/login", login, typed, "text/plain"), 415, ""},
		{"G07 JSON called nothing", post("/v1/auth/login", login), 415, ""},
		{"G07 JSON called a form", post("/v1/auth/login", login, typed, "application/x-www-form-urlencoded"), 415, ""},
		{"G10 two slashes", get("//v1/sessions", "Authorization", good), 404, ""},
		{"G10 an escaped slash", get("/v1%2fsessions", "Authorization", good), 404, ""},
		{"G10 another case", get("/V1/Sessions", "Authorization", good), 404, ""},
		{"G10 dots", get("/v1/x/../sessions", "Authorization", good), 404, ""},
		{"G13 two lengths", post("/v1/auth/login", login, typed, asJSON, "Content-Length", "1"), 400, ""},
		{"G13 a preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, ""},
		{"G13 an upgrade to h2c is not taken", get("/v1/sessions", "Authorization", good, "Connection", "Upgrade, HTTP2-Settings", "Upgrade", "h2c", "HTTP2-Settings", "AAMAAABk"), 200, ""},
		{"G13 a compressed body", post("/v1/auth/login", login, typed, asJSON, "Content-Encoding", "gzip"), 415, ""},
		{"G14 metrics on the public door", get("/metrics"), 404, ""},
		{"G14 profiles on the public door", get("/debug/pprof/heap"), 404, ""},
		{"G14 readiness on the public door, asked by a probe", get("/readyz", "User-Agent", "kube-probe/1.30"), 404, ""},
		{"G16 bad UTF-8", post("/v1/auth/login", "{\"username\":\"\xff\xfe\"}", typed, asJSON), 400, "FIELD_INVALID"},
		{"G16 a line break in a value that is answered", post("/v1/auth/login", strings.Replace(login, `}`, `,"scope":"a\r\nSet-Cookie: x"}`, 1), typed, asJSON), 400, "INVALID_SCOPE"},
		{"R58 a body that says 1 GiB", "POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1073741824\r\n\r\n", 413, "BODY_TOO_LARGE"},
		{"R58 a body of 65 KiB", post("/v1/auth/login", `{"username":"`+strings.Repeat("a", 65<<10)+`"}`, typed, asJSON), 413, "BODY_TOO_LARGE"},
		{"R58 brackets without end", post("/v1/auth/login", strings.Repeat("[", 60<<10), typed, asJSON), 400, "FIELD_INVALID"},
		{"R58 brackets without end, where 2 MiB may come", post("/v1/auth/introspect:batch", `{"tokens":`+strings.Repeat("[", 1<<20), typed, asJSON, "Authorization", s.basic()), 400, "FIELD_INVALID"},
		{"R58 2 MiB from nobody", post("/v1/auth/introspect:batch", `{"tokens":["`+strings.Repeat("a", 1<<20)+`"]}`, typed, asJSON), 401, ""},
		{"R58 headers of 40 KiB", get("/v1/sessions", "Authorization", good, "X-Long", strings.Repeat("a", 40<<10)), 431, ""},
		{"R07 twin: a token by POST", post("/oauth2/token", "grant_type=client_credentials", typed, "application/x-www-form-urlencoded", "Authorization", s.basic()), 200, "access_token"},
		{"R07 a token by GET", get("/oauth2/token?grant_type=client_credentials", "Authorization", s.basic()), 405, ""},
		{"R07 a parameter twice", post("/oauth2/token", "grant_type=client_credentials&scope=demo.read&scope=demo.write", typed, "application/x-www-form-urlencoded", "Authorization", s.basic()), 400, "invalid_request"},
		{"R07 the secret in the query", post("/oauth2/token?client_secret="+s.ServiceClientSecret, "grant_type=client_credentials", typed, "application/x-www-form-urlencoded", "Authorization", s.basic()), 400, "invalid_request"},
		{"R11 the metadata for another Host", strings.Replace(get("/.well-known/oauth-authorization-server", "X-Forwarded-Host", "evil.example", "Forwarded", "host=evil.example"), "Host: x", "Host: evil.example", 1), 200, `"issuer":"` + s.Issuer + `"`},
	} {
		code, body := s.bytes(t, tt.text)
		if code != tt.code || !strings.Contains(body, tt.holds) || strings.Contains(body, "evil.example") {
			t.Errorf("%s: %d %.600s, want %d with %s", tt.name, code, body, tt.code, tt.holds)
		}
	}
	if code, body := s.bytes(t, get("/v1/sessions", "Authorization", good, "Grpc-Metadata-Authorization", other)); code != 200 || current(body)["session_id"] != first.text("session_id") {
		t.Errorf("G01: another's token smuggled beside one's own: %d %s", code, body)
	}
	if a := call(t, "GET", s.HTTP+"/v1/sessions", "", nil); a.header.Get("Www-Authenticate") != `Bearer realm="authsvc"` {
		t.Errorf("R08: no credentials are answered with %v", a.header)
	}
	if a := call(t, "GET", s.HTTP+"/v1/sessions", "Bearer x", nil); a.header.Get("Www-Authenticate") != `Bearer realm="authsvc", error="invalid_token"` {
		t.Errorf("R08: a bad token is answered with %v", a.header)
	}
}

// TestG05AClientsTimeoutStopsNoRevocation presents a stolen token under a deadline that is over before it arrives.
func TestG05AClientsTimeoutStopsNoRevocation(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	for _, timeout := range []string{"1n", "99999999H", "x", "-1S"} {
		stolen := s.login(t).text("refresh_token")
		second := s.refresh(t, stolen).text("refresh_token")
		newest := s.refresh(t, second).text("refresh_token")
		if a := s.refresh(t, newest); a.code != http.StatusOK { // the twin: before the theft
			t.Fatalf("the newest token answered %d %s", a.code, a.raw)
		}
		a := s.say(t, http.DefaultClient, "/v1/auth/refresh", map[string]any{"refresh_token": stolen, "client_id": s.PublicClientID}, "Grpc-Timeout", timeout, "User-Agent", "thief/1")
		if a.reason() != "REFRESH_REUSED" {
			t.Errorf("a stolen token with a timeout of %s answered %d %s", timeout, a.code, a.raw)
		}
		if a := s.refresh(t, newest); a.reason() != "REFRESH_INVALID" {
			t.Errorf("with a timeout of %s the theft did not end the session: %d %s", timeout, a.code, a.raw)
		}
	}
}

func TestG02G03OneRequestsWordsAreNotBelieved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	in := s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password),
		"Grpc-Metadata-X-Forwarded-For", "203.0.113.9", "Grpc-Metadata-X-Forwarded-Host", "evil.example", "X-Forwarded-For", "203.0.113.9",
		"Grpc-Metadata-X-User-Id", "root", "Grpc-Metadata-X-Request-Id", "chosen-by-a-stranger", "X-Request-Id", "chosen-by-a-stranger")
	if got := s.address(t, in); got != "127.0.0.1" {
		t.Errorf("G02: the session began at %s", got)
	}
	if in.header.Get("X-Request-Id") == "chosen-by-a-stranger" {
		t.Error("G03: a stranger chose the request's id")
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "chosen-by-a-stranger", "x-forwarded-for", "203.0.113.9", "x-user-id", "root")
	if _, err := authsvcv1.NewAuthServiceClient(wire(t, s.GRPC)).Login(ctx, &authsvcv1.LoginRequest{Username: s.Username, Password: s.Password, ClientId: s.PublicClientID}); err != nil {
		t.Fatal(err)
	}
	db := database(t, dir)
	if n := text(t, db, `SELECT count(*) FROM audit WHERE request_id = 'chosen-by-a-stranger' OR ip LIKE '203.%' OR actor = 'root'`); n != "0" {
		t.Errorf("G03: %s audit records repeat a stranger's words", n)
	}
	if n := text(t, db, `SELECT count(*) FROM audit WHERE event = 'login' AND outcome = 'ok' AND ip = '127.0.0.1'`); n != "2" {
		t.Errorf("R62: %s records of the two logins", n)
	}
}

// TestG14G18AConfiguredServerShowsNothingMore runs by a configuration, where reflection is off and one origin may call.
func TestG14G18AConfiguredServerShowsNothingMore(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	s, _ := serve(t, dir, d, plain+"gateway: {cors_origins: [\"https://app.example.com\"]}\n", "http")
	conn := wire(t, s.GRPC)
	for _, method := range []string{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "/grpc.channelz.v1.Channelz/GetServers"} {
		if err := conn.Invoke(t.Context(), method, &authsvcv1.GetKeySetRequest{}, &authsvcv1.GetKeySetResponse{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("G14: %s answered %v", method, err)
		}
	}
	for origin, allowed := range map[string]string{"https://app.example.com": "https://app.example.com", "null": "", "https://app.example.com.evil.example": "",
		"http://app.example.com": "", "https://APP.example.com": "", "https://evil-app.example.com": "", "https://app.example.com:8443": ""} {
		a := s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password), "Origin", origin)
		if got := a.header.Get("Access-Control-Allow-Origin"); got != allowed {
			t.Errorf("G18: the origin %s is allowed as %q, want %q", origin, got, allowed)
		}
	}
}

// TestG15MetricsStayBounded calls methods and comes as user agents that nobody has seen before.
func TestG15MetricsStayBounded(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	lines := func() int { return strings.Count(call(t, "GET", s.Ops+"/metrics", "", nil).raw, "\n") }
	conn := wire(t, s.GRPC)
	strange := func(from, to int) {
		for i := from; i < to; i++ {
			method := fmt.Sprintf("/authsvc.v1.AuthService/Method%d", i)
			if err := conn.Invoke(t.Context(), method, &authsvcv1.GetKeySetRequest{}, &authsvcv1.GetKeySetResponse{}); status.Code(err) != codes.Unimplemented {
				t.Fatalf("%s answered %v", method, err)
			}
			if a := s.say(t, http.DefaultClient, fmt.Sprintf("/v1/path%d", i), "{}", "User-Agent", fmt.Sprintf("agent/%d", i)); a.code != http.StatusNotFound {
				t.Fatalf("a path that is not there answered %d", a.code)
			}
		}
	}
	strange(0, 10)
	before := lines()
	strange(10, soak.Count(2000, 100_000))
	if after := lines(); after > before {
		t.Errorf("the metrics grew from %d to %d lines", before, after)
	}
	s.login(t)
	if n := s.metric(t, "authsvc_logins_total", `outcome="ok"`); n != 1 {
		t.Errorf("the twin, a known method, is counted %v times", n)
	}
}

// TestR58G13MessagesAtTheGRPCDoor sends what is larger than a call may be.
func TestR58G13MessagesAtTheGRPCDoor(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	in := s.login(t)
	auth := authsvcv1.NewAuthServiceClient(wire(t, s.GRPC))
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", s.basic())
	before := s.memory(t)
	bomb := &authsvcv1.IntrospectRequest{Token: strings.Repeat("a", 16<<20)}
	if _, err := auth.Introspect(ctx, bomb, grpc.UseCompressor(gzip.Name), grpc.MaxCallSendMsgSize(1<<30)); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("G13: 16 MiB in a compressed message answered %v", err)
	}
	if r, err := auth.Introspect(ctx, &authsvcv1.IntrospectRequest{Token: in.text("access_token")}, grpc.UseCompressor(gzip.Name)); err != nil || !r.GetActive() {
		t.Errorf("G13: the twin, a small compressed message, answered %v %v", r, err)
	}
	f := flood(t, s.GRPC, nil, true)
	for range 400 {
		if _, err := f.begin(t, "/authsvc.v1.AuthService/Login"); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "R58: streams beyond 128 are refused", func() bool { return f.refused.Load() == 400-128 })
	long := flood(t, s.GRPC, nil, true)
	block := long.headers(t, introspectPath, "x-long", strings.Repeat("~", 40<<10))
	if err := long.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:16<<10]}); err != nil {
		t.Fatal(err)
	}
	if err := long.WriteContinuation(1, false, block[16<<10:32<<10]); err != nil {
		t.Fatal(err)
	}
	_ = long.WriteContinuation(1, true, block[32<<10:]) // it may have been cut off by now
	await(t, "R58: a header list of 40 KiB is refused", func() bool { return long.ended.Load() > 0 })
	if after := s.memory(t); after > before+64 {
		t.Errorf("memory grew from %d to %d MiB", before, after)
	}
	flood(t, s.GRPC, nil, true).wantAnswer(t)
}

// TestG13R58SilentConnectionsAreEnded opens many connections that never say a whole request; each door ends its own, and
// serves others meanwhile.
func TestG13R58SilentConnectionsAreEnded(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for the doors to lose patience")
	}
	dir, d := stopped(t)
	safe, conf := secure(t, dir, d)
	s := start(t, t.TempDir())
	rest, grpcDoor := strings.TrimPrefix(s.HTTP, "http://"), s.GRPC
	kinds := []struct{ name, addr, text string }{
		{"REST, nothing", rest, ""},
		{"REST, half a header", rest, "POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nX-A"},
		{"REST with TLS, nothing", strings.TrimPrefix(safe.HTTP, "https://"), ""},
		{"gRPC, nothing", grpcDoor, ""},
		{"gRPC, half a preface", grpcDoor, "PRI * HTTP/2.0\r\n\r\nS"},
		{"gRPC, another protocol", grpcDoor, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		{"gRPC with TLS, nothing", safe.GRPC, ""},
	}
	if soak.On() {
		kinds = append(kinds, struct{ name, addr, text string }{"REST, half a body", rest,
			"POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"})
	}
	var wg sync.WaitGroup
	for _, kind := range kinds {
		for range 40 {
			conn, err := net.Dial("tcp", kind.addr)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, kind.text); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				defer conn.Close()
				if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
					t.Error(err)
				}
				if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
					t.Errorf("%s: the connection is still open", kind.name)
				}
			})
		}
	}
	s.login(t) // the twin: whole requests are served meanwhile
	honest := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: conf.RootCAs, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(honest.CloseIdleConnections)
	if a := safe.say(t, honest, "/v1/auth/login", safe.credentials(safe.Username, safe.Password)); a.code != http.StatusOK {
		t.Errorf("a whole request over TLS answered %d %s", a.code, a.raw)
	}
	wg.Wait()
}
