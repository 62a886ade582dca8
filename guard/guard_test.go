package guard_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

const issued = 1_800_000_000

var key = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(nil, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func encode(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// token signs a good token with these claims put in place of the usual ones; nil takes a claim out.
func token(change map[string]any) string {
	claims := map[string]any{
		"iss": "https://auth.example", "sub": "acct", "aud": []string{"https://api.example"}, "iat": issued, "nbf": issued,
		"exp": issued + 300, "jti": "tok", "client_id": "web", "sid": "sess", "scope": "orders.read", "auth_time": issued,
	}
	for name, value := range change {
		claims[name] = value
		if value == nil {
			delete(claims, name)
		}
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		panic(err)
	}
	signed := encode([]byte(`{"alg":"RS256","typ":"at+jwt","kid":"key-1"}`)) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key(), crypto.SHA256, digest[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + encode(signature)
}

// verifier knows the key and holds one revocation, of the token with the jti "revoked". It is ready unless list is nil.
func verifier(ready bool) *verify.Verifier {
	set := fmt.Sprintf(`{"keys":[{"kty":"RSA","kid":"key-1","n":%q,"e":%q}]}`,
		encode(key().N.Bytes()), encode(big.NewInt(int64(key().E)).Bytes()))
	keys, err := verify.NewStatic([]byte(set))
	if err != nil {
		panic(err)
	}
	list, err := verify.NewList(verify.ListOptions{})
	if err != nil {
		panic(err)
	}
	list.Apply(verify.NewRevocation("https://auth.example", verify.KindToken, "revoked", time.Time{}, time.Time{}))
	list.SetReady(ready)
	v, err := verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: keys, Revocations: list,
		Now: func() time.Time { return time.Unix(issued+60, 0) },
	})
	if err != nil {
		panic(err)
	}
	return v
}

func newGuard(t testing.TB, o guard.Options) *guard.Guard {
	t.Helper()
	if o.Verifier == nil {
		o.Verifier = verifier(true)
	}
	g, err := guard.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// The rules that the calls below meet.
func rules() map[string]guard.Rule {
	return map[string]guard.Rule{
		"/t/public": {Public: true}, "/t/optional": {Optional: true, Scopes: []string{"orders.read"}},
		"/t/any": {Authenticated: true}, "/t/user": {User: true}, "/t/client": {Client: true},
		"/t/read": {Scopes: []string{"orders.read"}}, "/t/both": {Scopes: []string{"orders.read", "orders.write"}},
		"/t/nobody": {},
	}
}

// call is one call as every transport sees it, and what comes of it. claims is what the handler finds: the subject, or "-".
type call struct {
	method        string
	authorization []string
	code          codes.Code
	reason        string
	claims        string
	status        int
	challenge     string
}

func calls() map[string]call {
	bearer := func(change map[string]any) []string { return []string{"Bearer " + token(change)} }
	good, basic := bearer(nil), []string{"Basic d2ViOnNlY3JldA=="}
	const invalid, bare = `Bearer realm="api", error="invalid_token", error_description="the access token is not valid"`, `Bearer realm="api"`
	no := func(method string, authorization []string, reason, challenge string) call {
		return call{method, authorization, codes.Unauthenticated, reason, "", http.StatusUnauthorized, challenge}
	}
	denied := func(method string, authorization []string, reason, challenge string) call {
		return call{method, authorization, codes.PermissionDenied, reason, "", http.StatusForbidden, challenge}
	}
	yes := func(method string, authorization []string, claims string) call {
		return call{method, authorization, codes.OK, "", claims, http.StatusOK, ""}
	}
	return map[string]call{
		"a public method needs nothing":                       yes("/t/public", nil, "-"),
		"a public method does not look at a token":            yes("/t/public", []string{"Bearer nonsense"}, "-"),
		"a public method lets another scheme through":         yes("/t/public", basic, "-"),
		"an optional token may be absent":                     yes("/t/optional", nil, "-"),
		"an optional token leaves another scheme alone":       yes("/t/optional", basic, "-"),
		"an optional token that is there counts":              yes("/t/optional", good, "acct"),
		"an optional token that is there must be good":        no("/t/optional", []string{"Bearer x"}, "TOKEN_INVALID", invalid),
		"an optional token that is there must have the scope": denied("/t/optional", bearer(map[string]any{"scope": ""}), "SCOPE_INSUFFICIENT", `Bearer realm="api", error="insufficient_scope", scope="orders.read"`),
		"any good token":                            yes("/t/any", good, "acct"),
		"the scheme's case does not count":          yes("/t/any", []string{"bEARER  " + token(nil)}, "acct"),
		"R08 no credentials":                        no("/t/any", nil, "TOKEN_INVALID", bare),
		"R08 another scheme":                        no("/t/any", basic, "TOKEN_INVALID", bare),
		"R08 the scheme alone":                      no("/t/any", []string{"Bearer"}, "TOKEN_INVALID", invalid),
		"R08 a scheme that begins alike":            no("/t/any", []string{"BearerX " + token(nil)}, "TOKEN_INVALID", bare),
		"R08 a bad token":                           no("/t/any", []string{"Bearer a.b.c"}, "TOKEN_INVALID", invalid),
		"J20 another audience":                      no("/t/any", bearer(map[string]any{"aud": []string{"x"}}), "TOKEN_INVALID", invalid),
		"J21 another issuer":                        no("/t/any", bearer(map[string]any{"iss": "x"}), "TOKEN_INVALID", invalid),
		"J19 a token of tomorrow":                   no("/t/any", bearer(map[string]any{"nbf": issued + 200}), "TOKEN_INVALID", invalid),
		"an expired token":                          no("/t/any", bearer(map[string]any{"exp": issued + 20, "iat": issued - 100}), "TOKEN_EXPIRED", `Bearer realm="api", error="invalid_token", error_description="the access token has expired"`),
		"a revoked token":                           no("/t/any", bearer(map[string]any{"jti": "revoked"}), "TOKEN_REVOKED", `Bearer realm="api", error="invalid_token", error_description="the access token has been revoked"`),
		"G01 two authorizations, the first good":    no("/t/any", []string{good[0], "Bearer x"}, "TOKEN_INVALID", `Bearer realm="api", error="invalid_token", error_description="more than one authorization"`),
		"G01 two authorizations, the second good":   no("/t/any", []string{"Bearer x", good[0]}, "TOKEN_INVALID", `Bearer realm="api", error="invalid_token", error_description="more than one authorization"`),
		"G01 two authorizations, both good":         no("/t/any", []string{good[0], good[0]}, "TOKEN_INVALID", `Bearer realm="api", error="invalid_token", error_description="more than one authorization"`),
		"G01 two authorizations to a public method": no("/t/public", basicTwice(), "TOKEN_INVALID", `Bearer realm="api", error="invalid_token", error_description="more than one authorization"`),
		"a user's method takes a session's token":   yes("/t/user", good, "acct"),
		"a user's method refuses a service":         denied("/t/user", bearer(map[string]any{"sid": nil}), "PERMISSION_DENIED", ""),
		"a service's method takes a service":        yes("/t/client", bearer(map[string]any{"sid": nil}), "acct"),
		"a service's method refuses a user":         denied("/t/client", good, "PERMISSION_DENIED", ""),
		"a scope that is there":                     yes("/t/read", good, "acct"),
		"a scope that is missing":                   denied("/t/both", good, "SCOPE_INSUFFICIENT", `Bearer realm="api", error="insufficient_scope", scope="orders.read orders.write"`),
		"all scopes that are needed":                yes("/t/both", bearer(map[string]any{"scope": "orders.write orders.read"}), "acct"),
		"a rule that says nothing denies":           denied("/t/nobody", good, "PERMISSION_DENIED", ""),
		"R56 a method without a rule is denied":     denied("/t/unknown", good, "PERMISSION_DENIED", ""),
		"G10 another case":                          denied("/t/Public", good, "PERMISSION_DENIED", ""),
		"G10 two slashes":                           denied("//t/public", good, "PERMISSION_DENIED", ""),
		"G10 a slash too many":                      denied("/t/public/", good, "PERMISSION_DENIED", ""),
		"G10 an escaped slash":                      denied("/t%2fpublic", good, "PERMISSION_DENIED", ""),
		"G10 a dot segment":                         denied("/t/x/../public", good, "PERMISSION_DENIED", ""),
	}
}

func basicTwice() []string { return []string{"Basic d2ViOng=", "Basic d2ViOng="} }

func subject(ctx context.Context) string {
	if c, ok := guard.ClaimsFromContext(ctx); ok {
		return c.Subject
	}
	return "-"
}

func errorInfo(err error) (reason, domain string) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason(), info.GetDomain()
		}
	}
	return "", ""
}

type stream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s stream) Context() context.Context { return s.ctx }

// G17: every case goes through both interceptors, and both must say the same.
func TestInterceptors(t *testing.T) {
	t.Parallel()
	g := newGuard(t, guard.Options{Rules: rules()})
	for name, c := range calls() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			md := metadata.MD{}
			md.Append("authorization", c.authorization...)
			ctx := metadata.NewIncomingContext(t.Context(), md)
			var found string
			unary := func() error {
				_, err := g.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: c.method},
					func(ctx context.Context, _ any) (any, error) { found = subject(ctx); return struct{}{}, nil })
				return err
			}
			streaming := func() error {
				return g.StreamServerInterceptor()(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: c.method},
					func(_ any, s grpc.ServerStream) error { found = subject(s.Context()); return nil })
			}
			for kind, do := range map[string]func() error{"unary": unary, "stream": streaming} {
				found = ""
				err := do()
				reason, domain := errorInfo(err)
				if status.Code(err) != c.code || reason != c.reason || found != c.claims || reason != "" && domain != guard.Domain {
					t.Errorf("%s: got %v with reason %q of %q, and the handler found %q", kind, err, reason, domain, found)
				}
			}
		})
	}
}

func TestMiddleware(t *testing.T) {
	t.Parallel()
	g := newGuard(t, guard.Options{Rules: rules(), Realm: "api"})
	for name, c := range calls() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://api.example"+c.method, nil)
			r.Header["Authorization"] = c.authorization
			w := httptest.NewRecorder()
			found := ""
			g.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { found = subject(r.Context()) })).ServeHTTP(w, r)
			if w.Code != c.status || found != c.claims || w.Header().Get("WWW-Authenticate") != c.challenge {
				t.Errorf("got %d, challenge %q, and the handler found %q", w.Code, w.Header().Get("WWW-Authenticate"), found)
			}
			if c.status == http.StatusOK {
				return
			}
			var body struct {
				Code    codes.Code
				Message string
				Details []map[string]string
			}
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatal(err)
			}
			want := []map[string]string{{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": c.reason, "domain": "authsvc"}}
			if diff := cmp.Diff(want, body.Details); diff != "" || body.Code != c.code || body.Message == "" {
				t.Errorf("body %s", w.Body)
			}
			if h := w.Header(); h.Get("Content-Type") != "application/json" || h.Get("Cache-Control") != "no-store" {
				t.Errorf("header %v", h)
			}
		})
	}
}

func TestR61AVerifierThatIsNotReadyIsNoVerdict(t *testing.T) {
	t.Parallel()
	g := newGuard(t, guard.Options{Verifier: verifier(false), Rules: rules()})
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token(nil)))
	_, err := g.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: "/t/any"},
		func(context.Context, any) (any, error) { t.Error("the handler was called"); return struct{}{}, nil })
	if reason, _ := errorInfo(err); status.Code(err) != codes.Unavailable || reason != guard.ReasonReplicaStale {
		t.Errorf("got %v", err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/t/any", nil)
	r.Header.Set("Authorization", "Bearer "+token(nil))
	w := httptest.NewRecorder()
	g.Middleware(http.NotFoundHandler()).ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" || w.Header().Get("WWW-Authenticate") != "" {
		t.Errorf("got %d %v", w.Code, w.Header())
	}
}

func TestR08ATokenInTheQueryOrTheFormIsNotRead(t *testing.T) {
	t.Parallel()
	g := newGuard(t, guard.Options{Rules: rules()})
	good := token(nil)
	for _, r := range []*http.Request{
		httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/t/any?access_token="+good, nil),
		httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/t/any", strings.NewReader("access_token="+good)),
	} {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		g.Middleware(http.NotFoundHandler()).ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized || w.Header().Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("got %d %v", w.Code, w.Header())
		}
	}
}

func TestHTTPRulesByMethodAndByPattern(t *testing.T) {
	t.Parallel()
	g := newGuard(t, guard.Options{Rules: map[string]guard.Rule{
		"GET /orders": {Public: true}, "POST /orders": {Scopes: []string{"orders.write"}}, "GET /orders/{id}": {Public: true},
	}})
	mux := http.NewServeMux()
	done := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.Handle("GET /orders/{id}", g.Middleware(done))
	mux.Handle("/orders", g.Middleware(done))
	mux.Handle("/", g.Middleware(done))
	for _, c := range []struct {
		method, path string
		status       int
	}{
		{http.MethodGet, "/orders", 204}, {http.MethodPost, "/orders", 401}, {http.MethodPut, "/orders", 403},
		{http.MethodGet, "/orders/7", 204}, {http.MethodDelete, "/orders/7", 403}, {http.MethodGet, "/orders/7/x", 403},
		{http.MethodGet, "/healthz", 403},
	} {
		r := httptest.NewRequestWithContext(t.Context(), c.method, c.path, nil)
		r.Header.Set("User-Agent", "kube-probe/1.30") // G14: a probe's name opens nothing
		r.Header.Set("X-Forwarded-Uri", "/orders")
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		if w.Code != c.status {
			t.Errorf("%s %s: got %d, want %d", c.method, c.path, w.Code, c.status)
		}
	}
}

func TestAnInnerGuardDoesNotTakeAnOutersVerdict(t *testing.T) {
	t.Parallel()
	outer := newGuard(t, guard.Options{Default: guard.Rule{Authenticated: true}})
	inner := newGuard(t, guard.Options{Default: guard.Rule{Public: true}})
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer "+token(nil))
	found := ""
	handler := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { found = subject(r.Context()) })
	outer.Middleware(inner.Middleware(handler)).ServeHTTP(httptest.NewRecorder(), r)
	if found != "-" {
		t.Errorf("a public rule gave the claims of %q", found)
	}
}

func TestObserveIsToldOfEveryDecision(t *testing.T) {
	t.Parallel()
	var got []string
	g := newGuard(t, guard.Options{Rules: rules(), Observe: func(_ context.Context, rule, reason string) { got = append(got, rule+" "+reason) }})
	for _, method := range []string{"/t/any", "/t/public", "/t/made-up-" + token(nil)} {
		_, _ = g.UnaryServerInterceptor()(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method},
			func(context.Context, any) (any, error) { return struct{}{}, nil })
	}
	if diff := cmp.Diff([]string{"/t/any TOKEN_INVALID", "/t/public ", " PERMISSION_DENIED"}, got); diff != "" {
		t.Error("G15:", diff)
	}
}

func TestRulesThatContradictThemselvesAreRefused(t *testing.T) {
	t.Parallel()
	v := verifier(true)
	for name, c := range map[string]struct {
		o  guard.Options
		ok bool
	}{
		"no verifier":             {guard.Options{}, false},
		"public with scopes":      {guard.Options{Verifier: v, Rules: map[string]guard.Rule{"/a": {Public: true, Scopes: []string{"x"}}}}, false},
		"user and client":         {guard.Options{Verifier: v, Rules: map[string]guard.Rule{"/a": {User: true, Client: true}}}, false},
		"a default like that":     {guard.Options{Verifier: v, Default: guard.Rule{Public: true, User: true}}, false},
		"two scopes in one":       {guard.Options{Verifier: v, Rules: map[string]guard.Rule{"/a": {Scopes: []string{"x y"}}}}, false},
		"an empty scope":          {guard.Options{Verifier: v, Rules: map[string]guard.Rule{"/a": {Scopes: []string{""}}}}, false},
		"a key that matches none": {guard.Options{Verifier: v, Rules: map[string]guard.Rule{"orders": {Public: true}}}, false},
		"a realm with a quote":    {guard.Options{Verifier: v, Realm: `a"b`}, false},
		"twin":                    {guard.Options{Verifier: v, Realm: "a", Rules: map[string]guard.Rule{"/a": {User: true, Scopes: []string{"x"}}}}, true},
	} {
		if _, err := guard.New(c.o); (err == nil) != c.ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// health counts the calls that reach it.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	calls atomic.Int32
}

func (h *health) Check(context.Context, *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	h.calls.Add(1)
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func (h *health) Watch(_ *grpc_health_v1.HealthCheckRequest, s grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	h.calls.Add(1)
	return s.Send(&grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING})
}

// A real server: what the interceptors do not see must not reach a handler either.
func TestARealServer(t *testing.T) {
	t.Parallel()
	g := newGuard(t, guard.Options{Rules: map[string]guard.Rule{
		grpc_health_v1.Health_Check_FullMethodName: {Scopes: []string{"orders.read"}},
		grpc_health_v1.Health_Watch_FullMethodName: {Scopes: []string{"orders.read"}},
	}})
	server := grpc.NewServer(g.ServerOptions()...)
	h := &health{}
	grpc_health_v1.RegisterHealthServer(server, h)
	listener := bufconn.Listen(1 << 16)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	good := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+token(nil))
	for _, method := range []string{
		"grpc.health.v1.Health/Check", "//grpc.health.v1.Health/Check", "/grpc.health.v1.Health%2fCheck",
		"/grpc.health.v1.Health/check", "/grpc.health.v1.health/Check", "/grpc.health.v1.Health/Check/", "/grpc.channelz.v1.Channelz/GetServers",
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
	} {
		err := conn.Invoke(good, method, &grpc_health_v1.HealthCheckRequest{}, &grpc_health_v1.HealthCheckResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("G10 G14 %s: got %v", method, err)
		}
	}
	if n := h.calls.Load(); n != 0 {
		t.Errorf("G10: a handler was reached %d times", n)
	}
	client := grpc_health_v1.NewHealthClient(conn)
	watch := func(ctx context.Context) error {
		s, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err == nil {
			_, err = s.Recv()
		}
		return err
	}
	check := func(ctx context.Context) error {
		_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return err
	}
	for name, do := range map[string]func(context.Context) error{"unary": check, "stream": watch} {
		if err := do(t.Context()); status.Code(err) != codes.Unauthenticated {
			t.Errorf("G17 %s without a token: got %v", name, err)
		}
		if err := do(metadata.AppendToOutgoingContext(t.Context(), "user-agent", "grpc-health-probe")); status.Code(err) != codes.Unauthenticated {
			t.Errorf("G14 %s by a probe's name: got %v", name, err)
		}
		if err := do(metadata.AppendToOutgoingContext(good, "authorization", "Bearer x")); status.Code(err) != codes.Unauthenticated {
			t.Errorf("G01 %s with two tokens: got %v", name, err)
		}
		before := h.calls.Load()
		if err := do(good); err != nil || h.calls.Load() != before+1 {
			t.Errorf("the twin, %s, was refused: %v", name, err)
		}
	}
}

func FuzzMiddleware(f *testing.F) {
	f.Add("/t/public", "Bearer x")
	f.Add("/t/any", "bearer "+token(nil))
	f.Add("/t%2fany", "")
	g, err := guard.New(guard.Options{Verifier: verifier(true), Rules: rules()})
	if err != nil {
		f.Fatal(err)
	}
	good := token(nil)
	f.Fuzz(func(t *testing.T, path, authorization string) {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil)
		r.URL.Path = path
		r.Header["Authorization"] = []string{authorization}
		reached := false
		w := httptest.NewRecorder()
		g.Middleware(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true })).ServeHTTP(w, r)
		scheme, _, _ := strings.Cut(authorization, " ")
		allowed := path == "/t/public" || path == "/t/optional" && !strings.EqualFold(scheme, "bearer") ||
			rules()[path].Scopes != nil && path != "/t/both" && strings.HasSuffix(authorization, good) ||
			(path == "/t/any" || path == "/t/user") && strings.HasSuffix(authorization, good)
		if reached && !allowed {
			t.Errorf("%q with %q reached the handler", path, authorization)
		}
		if !reached && !json.Valid(w.Body.Bytes()) {
			t.Errorf("%q with %q: body %q", path, authorization, w.Body)
		}
	})
}
