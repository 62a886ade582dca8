package guard_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/guard"
)

// trusting is the TLS of a client that trusts the server's certificate alone; without a server, any that the system trusts.
func trusting(server *httptest.Server) *tls.Config {
	if server == nil {
		return &tls.Config{MinVersion: tls.VersionTLS12}
	}
	return server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
}

// plainly is a source whose tokens may go without TLS.
func plainly(t *testing.T, a *authority) *guard.TokenSource {
	t.Helper()
	s, err := guard.NewTokenSource(guard.TokenSourceOptions{
		URL: "http://127.0.0.1:1", ClientID: "svc", ClientSecret: sourceSecret, PlaintextCalls: true})
	if err != nil {
		t.Fatal(err)
	}
	s.AskBy(a)
	return s
}

func TestTokensGoIntoGRPCCalls(t *testing.T) {
	t.Parallel()
	var got []string
	serve := func(o ...grpc.ServerOption) string {
		server := grpc.NewServer(append(o, grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			got = metadata.ValueFromIncomingContext(stream.Context(), "authorization")
			return stream.SendMsg(&grpc_health_v1.HealthCheckResponse{})
		}))...)
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
		return listener.Addr().String()
	}
	certified := httptest.NewTLSServer(nil) // for its certificate
	t.Cleanup(certified.Close)
	plain, safe := serve(), serve(grpc.Creds(credentials.NewServerTLSFromCert(&certified.TLS.Certificates[0])))
	overTLS := credentials.NewTLS(trusting(certified))
	refused := &authority{answer: func(int, string) (int, string, error) { return 401, `{"error":"invalid_client"}`, nil }}
	gone := &authority{answer: func(int, string) (int, string, error) { return 503, "", nil }}
	for name, c := range map[string]struct {
		source *guard.TokenSource
		target string
		by     credentials.TransportCredentials
		code   codes.Code
		want   string
	}{
		"over TLS":               {sourceBy(t, numbered(300), nil), safe, overTLS, codes.OK, "Bearer at-1"},
		"without TLS":            {sourceBy(t, numbered(300), nil), plain, insecure.NewCredentials(), codes.Unknown, ""},
		"without TLS, as it may": {plainly(t, numbered(300)), plain, insecure.NewCredentials(), codes.OK, "Bearer at-1"},
		"the client is refused":  {sourceBy(t, refused, nil), safe, overTLS, codes.Unauthenticated, ""},
		"nothing answers":        {sourceBy(t, gone, nil), safe, overTLS, codes.Unavailable, ""},
	} {
		got = nil
		conn, err := grpc.NewClient(c.target, grpc.WithTransportCredentials(c.by), grpc.WithPerRPCCredentials(c.source))
		if err == nil {
			_, err = grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
			_ = conn.Close()
		}
		if status.Code(err) != c.code || c.want != "" && (len(got) != 1 || got[0] != c.want) || c.want == "" && got != nil {
			t.Errorf("%s: %v, the server saw %q", name, err, got)
		}
		if err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: R63 the error tells a secret: %v", name, err)
		}
	}
}

// body is a request's, that says whether it was closed.
type body struct {
	io.Reader
	closed bool
}

func (b *body) Close() error { b.closed = true; return nil }

func TestTokensGoIntoHTTPRequestsToTheirOrigins(t *testing.T) {
	t.Parallel()
	var got []string
	handle := func(name string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			got = append(got, name+" "+strings.Join(r.Header["Authorization"], ","))
			if to := r.FormValue("to"); to != "" {
				http.Redirect(w, r, to, http.StatusTemporaryRedirect)
			}
		}
	}
	ours, other := httptest.NewServer(handle("ours")), httptest.NewServer(handle("other"))
	t.Cleanup(ours.Close)
	t.Cleanup(other.Close)
	s := sourceBy(t, numbered(300), nil)
	transport, err := s.Transport(nil, ours.URL, "https://orders.example/")
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: transport}
	port := ours.URL[strings.LastIndex(ours.URL, ":"):]
	to := func(u string) string { return ours.URL + "/?to=" + url.QueryEscape(u) }
	for name, c := range map[string]struct {
		url, authorization string
		want               []string
		good               bool
	}{
		"its origin":                       {ours.URL + "/a", "", []string{"ours Bearer at-1"}, true},
		"another port":                     {other.URL, "", nil, false},
		"the same place by another name":   {"http://localhost" + port, "", nil, false},
		"another scheme":                   {strings.Replace(ours.URL, "http", "https", 1), "", nil, false},
		"an origin that begins alike":      {"https://orders.example.attacker.example/", "", nil, false},
		"a user that looks like an origin": {"https://orders.example@127.0.0.1" + port, "", nil, false},
		"a redirect to itself":             {to("/b"), "", []string{"ours Bearer at-1", "ours Bearer at-1"}, true},
		"R64 a redirect to another":        {to(other.URL), "", []string{"ours Bearer at-1"}, false},
		"an authorization of its own":      {ours.URL, "Basic eDp5", []string{"ours Basic eDp5"}, true},
		"that of its own, elsewhere":       {other.URL, "Basic eDp5", nil, false},
	} {
		got = nil
		content := &body{Reader: strings.NewReader("x")}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url, content)
		if err != nil {
			t.Fatal(err)
		}
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("x")), nil }
		if c.authorization != "" {
			r.Header.Set("Authorization", c.authorization)
		}
		before := len(r.Header)
		resp, err := client.Do(r)
		if err == nil {
			_ = resp.Body.Close()
		}
		if (err == nil) != c.good || strings.Join(got, ";") != strings.Join(c.want, ";") {
			t.Errorf("%s: %v, the servers saw %q", name, err, got)
		}
		if !content.closed || len(r.Header) != before {
			t.Errorf("%s: body closed %v, header %v", name, content.closed, r.Header)
		}
	}
	refusing := sourceBy(t, &authority{answer: func(int, string) (int, string, error) { return 401, `{"error":"invalid_client"}`, nil }}, nil)
	if transport, err = refusing.Transport(nil, ours.URL); err != nil {
		t.Fatal(err)
	}
	got = nil
	content := &body{Reader: strings.NewReader("x")}
	r, _ := http.NewRequestWithContext(t.Context(), http.MethodPost, ours.URL, content)
	if resp, err := transport.RoundTrip(r); err == nil || reasonOf(t, err) != "invalid_client" || !content.closed || got != nil {
		t.Errorf("without a token: %v %v, body closed %v, the server saw %q", resp, err, content.closed, got)
	}
}

func TestOrigins(t *testing.T) {
	t.Parallel()
	s, plain := sourceBy(t, numbered(300), nil), plainly(t, numbered(300))
	for name, c := range map[string]struct {
		source  *guard.TokenSource
		origins []string
		good    bool
	}{
		"none":                            {s, nil, false},
		"https":                           {s, []string{"https://a.example", "https://b.example:8443/"}, true},
		"one that is bad":                 {s, []string{"https://a.example", "b.example"}, false},
		"http":                            {s, []string{"http://a.example"}, false},
		"the twin: it is said":            {plain, []string{"http://a.example"}, true},
		"a loopback address":              {s, []string{"http://127.0.0.1:1", "http://[::1]"}, true},
		"a name, which may lead anywhere": {s, []string{"http://localhost:1"}, false},
		"another scheme":                  {plain, []string{"ftp://a.example"}, false},
		"a path":                          {s, []string{"https://a.example/x"}, false},
		"a query":                         {s, []string{"https://a.example?"}, false},
		"a user":                          {s, []string{"https://a@b.example"}, false},
		"nothing":                         {s, []string{""}, false},
		"a wildcard that does not parse":  {s, []string{"https://%"}, false},
	} {
		if _, err := c.source.Transport(nil, c.origins...); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// handler answers requests without a network.
type handler func(r *http.Request) int

func (h handler) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: h(r), Header: http.Header{}, Body: http.NoBody}, nil
}

// TestAServiceThatRefusesATokenMakesANewOne revokes a token at the service, for which its answer is 401.
func TestAServiceThatRefusesATokenMakesANewOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := numbered(300)
		s := sourceBy(t, a, nil)
		revoked := ""
		transport, err := s.Transport(handler(func(r *http.Request) int {
			if r.Header.Get("Authorization") == revoked {
				return http.StatusUnauthorized
			}
			return http.StatusOK
		}), "https://orders.example")
		if err != nil {
			t.Fatal(err)
		}
		call := func(want int) {
			t.Helper()
			r, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://orders.example/", nil)
			r.Header = nil // as http.Transport takes it too
			resp, err := transport.RoundTrip(r)
			if err != nil || resp.StatusCode != want {
				t.Errorf("%v %v, want %d", resp, err, want)
			}
			if err == nil {
				_ = resp.Body.Close()
			}
		}
		call(http.StatusOK)
		time.Sleep(time.Minute)
		call(http.StatusOK)
		revoked = "Bearer at-1"
		call(http.StatusUnauthorized)
		call(http.StatusUnauthorized) // the renewal runs behind this one
		synctest.Wait()
		call(http.StatusOK)
		if a.count() != 2 {
			t.Errorf("%d requests", a.count())
		}
	})
}

// FuzzTokenAnswer looks for a panic, for an answer that is taken and should not be, and for words that are not ours to repeat.
func FuzzTokenAnswer(f *testing.F) {
	f.Add(200, "", []byte(granted("at", 300, "next")), true)
	f.Add(200, "", []byte(granted("at", 300, "")), false)
	f.Add(401, "7", []byte(statusOf("REFRESH_REUSED")), true)
	f.Add(400, "Sat, 01 Jan 2000 00:20:00 GMT", []byte(`{"error":"invalid_scope"}`), false)
	f.Fuzz(func(t *testing.T, code int, retry string, answer []byte, refresh bool) {
		access, next, life, err := guard.ReadAnswer(refresh, code, http.Header{"Retry-After": {retry}}, answer)
		if err != nil {
			if text := err.Error(); len(text) > 160 || strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
				t.Errorf("%q", text)
			}
			return
		}
		var other struct {
			Access  string      `json:"access_token"`
			Refresh string      `json:"refresh_token"`
			Type    string      `json:"token_type"`
			Expires json.Number `json:"expires_in"`
		}
		exact := bytes.Count(bytes.ToLower(answer), []byte(`"access_token"`)) == 1
		if err := json.Unmarshal(answer, &other); code != 200 || err != nil && exact {
			t.Fatalf("%d %q: %v", code, answer, err)
		}
		if exact && other.Access != access || refresh == (next == "") || life <= 0 || life > 15*time.Minute {
			t.Errorf("%q: read as %q %q %s", answer, access, next, life)
		}
		for _, token := range []string{access, next} {
			if _, err := http.NewRequest(http.MethodGet, "https://a", nil); err != nil || strings.ContainsAny(token, " \r\n\t\",;\x00") || len(token) > 8<<10 {
				t.Errorf("the token %q", token)
			}
		}
	})
}

func ExampleTokenSource() {
	// An authsvc in miniature, and a service that asks for a token of the scope orders.read.
	auth := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"access_token":"`+token(nil)+`","token_type":"Bearer","expires_in":300}`)
	}))
	defer auth.Close()
	g, err := guard.New(guard.Options{
		Verifier: verifier(true), // made with verify.New
		Rules:    map[string]guard.Rule{"GET /orders": {Scopes: []string{"orders.read"}}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	orders := httptest.NewServer(g.Middleware(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "no orders yet") })))
	defer orders.Close()

	source, err := guard.NewTokenSource(guard.TokenSourceOptions{
		URL: auth.URL, ClientID: "billing", ClientSecret: "its secret", Resources: []string{"https://api.example"}, Scope: "orders.read",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	transport, err := source.Transport(nil, orders.URL) // over gRPC: grpc.WithPerRPCCredentials(source)
	if err != nil {
		fmt.Println(err)
		return
	}
	client := &http.Client{Transport: transport}
	resp, err := client.Get(orders.URL + "/orders")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	fmt.Println(resp.StatusCode, string(text))
	// Output: 200 no orders yet
}
