package extauthz_test

import (
	"bytes"
	"context"
	"encoding"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/server/extauthz"
	"github.com/authsvc/authsvc/internal/server/rpc"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/token"
	"github.com/authsvc/authsvc/verify"
)

const (
	issuer = "https://auth.example.com"
	api    = "https://api.example.com"
	other  = "https://other.example.com"
)

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// proxied is the door over a real key ring, and what it was told.
type proxied struct {
	*extauthz.Door
	method grpc.MethodHandler
	minter *token.Minter
	list   *verify.List
	stale  error         // what Fresh answers
	ahead  time.Duration // of the door's clock
	log    *bytes.Buffer

	mu       sync.Mutex
	outcomes []string
}

// registrar takes what a door registers.
type registrar struct{ desc *grpc.ServiceDesc }

func (r *registrar) RegisterService(desc *grpc.ServiceDesc, _ any) { r.desc = desc }

func open(t testing.TB, change func(*extauthz.Config)) *proxied {
	t.Helper()
	p := &proxied{log: &bytes.Buffer{}}
	log := slog.New(slog.NewTextHandler(p.log, nil))
	db := must(sqlstore.Open(t.Context(), sqlstore.Options{Path: sqlstore.Memory}))(t)
	t.Cleanup(func() { db.Close() })
	sealer := must(keys.NewSealer([]keys.KEK{{ID: "a", Key: bytes.Repeat([]byte{1}, 32)}}))(t)
	ring := must(keys.NewRing(keys.Options{Store: db.Keys(), Sealer: sealer, Revoked: func(string) bool { return false }, Log: log}))(t)
	if err := ring.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.minter = must(token.New(token.Options{Keys: ring, Issuer: issuer}))(t)
	p.list = must(verify.NewList(verify.ListOptions{}))(t)
	p.list.SetReady(true)
	config := extauthz.DefaultConfig()
	config.Audiences = []string{api}
	if change != nil {
		change(&config)
	}
	p.Door = must(extauthz.New(extauthz.Options{Config: config, Issuer: issuer, Keys: ring, Revocations: p.list,
		Fresh: func(context.Context) error { return p.stale }, Status: rpc.StatusOf, Logger: log,
		Now: func() time.Time { return time.Now().Add(p.ahead) },
		Observe: func(outcome string) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.outcomes = append(p.outcomes, outcome)
		}}))(t)
	var r registrar
	p.Register(&r)
	if len(r.desc.Methods) != 1 || "/"+r.desc.ServiceName+"/"+r.desc.Methods[0].MethodName != authv3.Authorization_Check_FullMethodName {
		t.Fatalf("it registers %v", r.desc)
	}
	p.method = r.desc.Methods[0].Handler
	return p
}

// mint gives ada's token with all scopes, changed.
func (p *proxied) mint(t testing.TB, change func(*token.Grant)) string {
	t.Helper()
	now := time.Now()
	g := token.Grant{Subject: "ada", Audience: []string{api}, Client: "app", Session: "s1", Scope: "orders.read orders.write", AuthTime: now, IssuedAt: now, TTL: 5 * time.Minute}
	if change != nil {
		change(&g)
	}
	return must(p.minter.Mint(t.Context(), g))(t).Token
}

// answer is what both doors say, in HTTP's words; code 0 is an error of gRPC.
type answer struct {
	code   int
	header http.Header // identity headers where the request passes
	remove []string    // over Envoy only
	body   string
	err    error
}

// check asks as Envoy does.
func (p *proxied) check(t *testing.T, extensions map[string]string, r *authv3.AttributeContext_HttpRequest) answer {
	t.Helper()
	sent := must(proto.Marshal(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{ContextExtensions: extensions,
		Request: &authv3.AttributeContext_Request{Http: r}}}))(t)
	return p.wire(t, sent)
}

// wire asks by the bytes of a CheckRequest.
func (p *proxied) wire(t *testing.T, sent []byte) answer {
	t.Helper()
	got, err := p.method(nil, t.Context(), func(request any) error { return request.(encoding.BinaryUnmarshaler).UnmarshalBinary(sent) }, nil)
	if err != nil {
		return answer{err: err}
	}
	resp := got.(*authv3.CheckResponse)
	a := answer{header: http.Header{}}
	var options []*corev3.HeaderValueOption
	switch {
	case resp.GetOkResponse() != nil && resp.GetStatus().GetCode() == 0:
		a.code, a.remove, options = http.StatusOK, resp.GetOkResponse().GetHeadersToRemove(), resp.GetOkResponse().GetHeaders()
	case resp.GetDeniedResponse() != nil && resp.GetStatus().GetCode() != 0:
		no := resp.GetDeniedResponse()
		a.code, a.body, options = int(no.GetStatus().GetCode()), no.GetBody(), no.GetHeaders()
	default:
		t.Fatalf("Envoy would not know what this means: %v", resp)
	}
	for _, o := range options {
		if o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			t.Errorf("%s would stand beside the client's own", o.GetHeader().GetKey())
		}
		a.header.Add(o.GetHeader().GetKey(), o.GetHeader().GetValue())
	}
	return a
}

// ask asks as nginx does.
func (p *proxied) ask(t testing.TB, query string, change func(*http.Request)) answer {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/forward-auth?"+query, http.NoBody)
	if change != nil {
		change(r)
	}
	w := httptest.NewRecorder()
	p.Routes()["/forward-auth"].ServeHTTP(w, r)
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("?%s: %d may be stored", query, w.Code)
	}
	return answer{code: w.Code, header: w.Header(), body: w.Body.String()}
}

// request is what Envoy says of a request with these authorizations, which it joins.
func request(authorization ...string) *authv3.AttributeContext_HttpRequest {
	h := map[string]string{":method": "GET", "user-agent": "kube-probe/1.33"}
	if len(authorization) > 0 {
		h["authorization"] = strings.Join(authorization, ",")
	}
	return &authv3.AttributeContext_HttpRequest{Method: "GET", Path: "/orders", Headers: h}
}

func with(authorization ...string) func(*http.Request) {
	return func(r *http.Request) { r.Header["Authorization"] = authorization }
}

// TestBothDoorsGiveOneVerdict puts each fault to both doors, with its unsafe twin: the same question without the fault.
func TestBothDoorsGiveOneVerdict(t *testing.T) {
	t.Parallel()
	p := open(t, func(c *extauthz.Config) { c.Audiences = []string{api, other} })
	plain := map[string]string{"audience": api}
	asked := func(k, v string) map[string]string { return map[string]string{"audience": api, k: v} }
	ada := "Bearer " + p.mint(t, nil)
	own := "Bearer " + p.mint(t, func(g *token.Grant) { g.Subject, g.Client, g.Session = "worker", "worker", "" })
	old := "Bearer " + p.mint(t, func(g *token.Grant) {
		g.IssuedAt = g.IssuedAt.Add(-time.Hour)
		g.AuthTime = g.IssuedAt
	})
	ended := "Bearer " + p.mint(t, func(g *token.Grant) { g.Session = "s2" })
	p.list.Apply(verify.NewRevocation(issuer, verify.KindSession, "s2", time.Time{}, time.Time{}))
	const bare, invalid = `Bearer realm="authsvc"`, `Bearer realm="authsvc", error="invalid_token"`
	for _, tt := range []struct {
		name          string
		required      map[string]string
		authorization []string
		code          int
		challenge     string // its beginning
		reason        string
	}{
		{"twin: a good token", plain, []string{ada}, 200, "", ""},
		{"twin: a service's own token", plain, []string{own}, 200, "", ""},
		{"twin: the scheme in another case", plain, []string{"bearer " + ada[7:]}, 200, "", ""},
		{"no token", plain, nil, 401, bare, "TOKEN_INVALID"},
		{"a password", plain, []string{"Basic YTpi"}, 401, bare, "TOKEN_INVALID"},
		{"a scheme alone", plain, []string{"Bearer"}, 401, invalid, "TOKEN_INVALID"},
		{"G01 two authorizations", plain, []string{ada, own}, 401, invalid, "TOKEN_INVALID"},
		{"J01 a token that nobody signed", plain, []string{"Bearer eyJhbGciOiJub25lIn0.e30."}, 401, invalid, "TOKEN_INVALID"},
		{"J14 a token of 64 KiB", plain, []string{"Bearer " + strings.Repeat("a", 64<<10)}, 401, invalid, "TOKEN_INVALID"},
		{"J20 J29 a token for another audience, which it was good for a moment ago", map[string]string{"audience": other}, []string{ada}, 401, invalid, "TOKEN_INVALID"},
		{"an expired token", plain, []string{old}, 401, invalid, "TOKEN_EXPIRED"},
		{"P01 a revoked token", plain, []string{ended}, 401, invalid, "TOKEN_REVOKED"},
		{"twin: a scope that the token has", asked("scope", "orders.read"), []string{ada}, 200, "", ""},
		{"twin: two scopes that it has", asked("scope", "orders.write orders.read"), []string{ada}, 200, "", ""},
		{"a scope that it lacks", asked("scope", "orders.read admin"), []string{ada}, 403, `Bearer realm="authsvc", error="insufficient_scope", scope="orders.read admin"`, "SCOPE_INSUFFICIENT"},
		{"the beginning of a scope that it has", asked("scope", "orders"), []string{ada}, 403, `Bearer realm="authsvc", error="insufficient_scope"`, "SCOPE_INSUFFICIENT"},
		{"twin: a user's token where one is required", asked("require", "user"), []string{ada}, 200, "", ""},
		{"a service's token where a user's is required", asked("require", "user"), []string{own}, 403, "", "PERMISSION_DENIED"},
		{"twin: a service's token where one is required", asked("require", "client"), []string{own}, 200, "", ""},
		{"a user's token where a service's is required", asked("require", "client"), []string{ada}, 403, "", "PERMISSION_DENIED"},
	} {
		var query []string
		for k, v := range tt.required {
			query = append(query, k+"="+strings.ReplaceAll(v, " ", "+"))
		}
		for door, a := range map[string]answer{
			"Envoy": p.check(t, tt.required, request(tt.authorization...)),
			"nginx": p.ask(t, strings.Join(query, "&"), with(tt.authorization...)),
		} {
			got := a.header.Get("WWW-Authenticate")
			challenged := got == tt.challenge || tt.challenge != "" && tt.challenge != bare && strings.HasPrefix(got, tt.challenge)
			if a.code != tt.code || !challenged || !strings.Contains(a.body, tt.reason) {
				t.Errorf("%s, %s: %d %q %s %v", tt.name, door, a.code, got, a.body, a.err)
			}
			if a.code != 200 && (a.header.Get("Content-Type") != "application/json" || a.header.Get("Cache-Control") != "no-store" || a.header.Get("X-Auth-Subject") != "") {
				t.Errorf("%s, %s: its headers are %v", tt.name, door, a.header)
			}
			if a.code == 200 && a.body != "" {
				t.Errorf("%s, %s: a body of %q", tt.name, door, a.body)
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, outcome := range []string{"", "TOKEN_INVALID", "TOKEN_EXPIRED", "TOKEN_REVOKED", "SCOPE_INSUFFICIENT", "PERMISSION_DENIED"} {
		if !slices.Contains(p.outcomes, outcome) {
			t.Errorf("nobody was told of the outcome %q", outcome)
		}
	}
	if p.log.Len() != 0 {
		t.Errorf("what callers do wrong was logged: %s", p.log)
	}
}

// TestG14OnlyTheAuthorizationCounts writes what a client can write: none of it opens what is shut.
func TestG14OnlyTheAuthorizationCounts(t *testing.T) {
	t.Parallel()
	p := open(t, nil)
	ada := "Bearer " + p.mint(t, nil)
	sent := map[string]string{"user-agent": "kube-probe/1.33", "x-forwarded-uri": "/healthz", "x-forwarded-method": "OPTIONS", "x-original-url": "/public",
		"x-auth-subject": "root", "x-forwarded-authorization": ada, "proxy-authorization": ada, "cookie": "access_token=" + ada[7:], "x-http-method-override": "OPTIONS"}
	for _, authorization := range [][]string{nil, {ada}} {
		want := 401
		if authorization != nil {
			want = 200 // the twin
		}
		r := request(authorization...)
		for k, v := range sent {
			r.Headers[k] = v
		}
		r.Path, r.Query, r.Method = "/healthz?access_token="+ada[7:], "access_token="+ada[7:], "OPTIONS"
		if a := p.check(t, nil, r); a.code != want {
			t.Errorf("Envoy: %d, want %d", a.code, want)
		}
		for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS", "PROPFIND"} {
			a := p.ask(t, "", func(r *http.Request) {
				with(authorization...)(r)
				for k, v := range sent {
					r.Header.Set(k, v)
				}
				r.Method = method
			})
			if a.code != want {
				t.Errorf("%s: %d, want %d", method, a.code, want)
			}
		}
	}
}

// TestRawHeadersOfEnvoy is about encode_raw_headers, where each value stands by itself.
func TestRawHeadersOfEnvoy(t *testing.T) {
	t.Parallel()
	p := open(t, nil)
	ada := "Bearer " + p.mint(t, nil)
	raw := func(values ...*corev3.HeaderValue) *authv3.AttributeContext_HttpRequest {
		return &authv3.AttributeContext_HttpRequest{HeaderMap: &corev3.HeaderMap{Headers: values}}
	}
	one := &corev3.HeaderValue{Key: "authorization", RawValue: []byte(ada)}
	for _, tt := range []struct {
		name string
		r    *authv3.AttributeContext_HttpRequest
		code int
	}{
		{"twin: one", raw(one), 200},
		{"twin: one as text", raw(&corev3.HeaderValue{Key: "authorization", Value: ada}), 200},
		{"G01 two", raw(one, one), 401},
		{"G01 two, one of them empty", raw(&corev3.HeaderValue{Key: "authorization"}, one), 401},
		{"G01 two, spelled otherwise", raw(one, &corev3.HeaderValue{Key: "Authorization", RawValue: []byte(ada)}), 401},
		{"G01 one value in two forms", raw(&corev3.HeaderValue{Key: "authorization", Value: ada, RawValue: []byte(ada)}), 401},
		{"G01 one here and one in the map", &authv3.AttributeContext_HttpRequest{Headers: map[string]string{"authorization": ada}, HeaderMap: raw(one).GetHeaderMap()}, 401},
		{"none", raw(&corev3.HeaderValue{Key: "x-authorization", RawValue: []byte(ada)}), 401},
		{"no request at all", nil, 401},
	} {
		if a := p.check(t, nil, tt.r); a.code != tt.code {
			t.Errorf("%s: %d, want %d", tt.name, a.code, tt.code)
		}
	}
}

func TestIdentityHeaders(t *testing.T) {
	t.Parallel()
	all := open(t, func(c *extauthz.Config) {
		c.Headers = extauthz.Headers{Subject: "Remote-User", ClientID: "x-auth-client", SessionID: "X-Auth-Session", Scope: "X-Auth-Scope", TokenID: "X-Auth-Id",
			AuthTime: "X-Auth-Time", ExpiresAt: "X-Auth-Expires"}
	})
	begun := time.Now().Truncate(time.Second)
	user := func(g *token.Grant) { g.AuthTime, g.IssuedAt, g.TTL = begun.Add(-time.Minute), begun, time.Minute }
	for _, tt := range []struct {
		name   string
		change func(*token.Grant)
		want   map[string]string
		gone   []string
	}{
		{"a user's", user, map[string]string{"Remote-User": "ada", "X-Auth-Client": "app", "X-Auth-Session": "s1", "X-Auth-Scope": "orders.read orders.write",
			"X-Auth-Time": unix(begun.Add(-time.Minute)), "X-Auth-Expires": unix(begun.Add(time.Minute))}, nil},
		{"a service's own, without scopes", func(g *token.Grant) { user(g); g.Subject, g.Client, g.Session, g.Scope = "worker", "worker", "", "" },
			map[string]string{"Remote-User": "worker", "X-Auth-Client": "worker", "X-Auth-Time": unix(begun.Add(-time.Minute)), "X-Auth-Expires": unix(begun.Add(time.Minute))},
			[]string{"X-Auth-Session", "X-Auth-Scope"}},
	} {
		bearer := "Bearer " + all.mint(t, tt.change)
		envoy, nginx := all.check(t, nil, request(bearer)), all.ask(t, "", with(bearer))
		for _, name := range tt.gone {
			if v, ok := nginx.header[name]; !ok || v[0] != "" {
				t.Errorf("%s: %s is %q over HTTP, want it empty: a proxy that copies what is there would leave the client's own", tt.name, name, v)
			}
			nginx.header.Del(name)
		}
		for _, a := range []answer{envoy, nginx} {
			if a.header.Get("X-Auth-Id") == "" {
				t.Errorf("%s: no id of the token in %v", tt.name, a.header)
			}
			a.header.Del("X-Auth-Id")
			a.header.Del("Cache-Control")
			if len(a.header) != len(tt.want) {
				t.Errorf("%s: %v, want %v", tt.name, a.header, tt.want)
			}
			for name, value := range tt.want {
				if got := a.header.Values(name); len(got) != 1 || got[0] != value {
					t.Errorf("%s: %s is %q, want %q", tt.name, name, got, value)
				}
			}
		}
		if !slices.Equal(envoy.remove, tt.gone) {
			t.Errorf("%s: Envoy is to remove %q, want %q: a client's own copy would stay", tt.name, envoy.remove, tt.gone)
		}
	}
	// No claim of ours has such characters; a line break in one would be a header of somebody's choice.
	for _, subject := range []string{"ada\r\nX-Auth-Scope: admin", "ada\x00", "adä"} {
		bearer := "Bearer " + all.mint(t, func(g *token.Grant) { g.Subject = subject })
		if a := all.check(t, nil, request(bearer)); a.err == nil {
			t.Errorf("G16 %q passes Envoy: %v", subject, a.header)
		}
		if a := all.ask(t, "", with(bearer)); a.code != 500 || a.header.Get("X-Auth-Client") != "" || strings.Contains(a.body, "ada") {
			t.Errorf("G16 %q passes nginx: %d %v %s", subject, a.code, a.header, a.body)
		}
	}
}

// TestAMisspeltRestrictionIsNotDropped: what the proxy's configuration says and is not understood lets nobody pass.
func TestAMisspeltRestrictionIsNotDropped(t *testing.T) {
	t.Parallel()
	p := open(t, func(c *extauthz.Config) { c.Audiences = []string{api, other} })
	ada := "Bearer " + p.mint(t, nil)
	for _, tt := range []struct {
		query string // a pair, or several where only a query can say it
		says  string
	}{
		{"", "audience: is required"},
		{"audience=https://nobody.example", "audience: is not one of"},
		{"audience=", "audience: is not one of"},
		{"audience=" + api + "&scopes=orders.read", "scopes: is not a parameter"},
		{"audience=" + api + "&Scope=orders.read", "Scope: is not a parameter"},
		{"audience=" + api + "&scope=", "scope: must be"},
		{"audience=" + api + "&scope=a  b", "scope: must be"},
		{"audience=" + api + "&scope=a,\"b\"", "scope: must be"},
		{"audience=" + api + "&require=", "require: must be"},
		{"audience=" + api + "&require=User", "require: must be"},
		{"audience=" + api + "&require=user client", "require: must be"},
		{"audience=" + api + "&" + strings.Repeat("x", 5000) + "=1", "…: is not a parameter"},
	} {
		extensions := map[string]string{}
		for pair := range strings.SplitSeq(tt.query, "&") {
			if name, value, ok := strings.Cut(pair, "="); ok {
				extensions[name] = value
			}
		}
		if a := p.check(t, extensions, request(ada)); a.code != 500 || !strings.Contains(a.body, tt.says) || len(a.body) > 400 {
			t.Errorf("Envoy, %.80q: %d %s", tt.query, a.code, a.body)
		}
		query := strings.NewReplacer(" ", "%20", `"`, "%22").Replace(tt.query)
		if a := p.ask(t, query, with(ada)); a.code != 400 || !strings.Contains(a.body, tt.says) || a.header.Get("X-Auth-Subject") != "" {
			t.Errorf("nginx, %.80q: %d %s", tt.query, a.code, a.body)
		}
	}
	for _, query := range []string{"audience=" + api + "&audience=" + api, "audience=" + api + "&scope=orders.read&scope=admin", "audience=" + api + "&scope=%zz",
		"audience=" + api + "&", "audience=" + api + "&&scope=orders.read", "audience=" + api + ";scope=admin", "audience=" + api + "&scop%65=admin"} {
		if a := p.ask(t, query, with(ada)); a.code != 400 {
			t.Errorf("%q: %d %s", query, a.code, a.body)
		}
	}
	if a := p.ask(t, "scope=orders.read&audience="+api, with(ada)); a.code != 200 {
		t.Errorf("the twin: %d %s", a.code, a.body)
	}
}

func TestAProblemIsToldOnceAMinuteAndTheirNumberIsBounded(t *testing.T) {
	t.Parallel()
	p := open(t, nil)
	for range 3 {
		p.check(t, map[string]string{"scop": "a"}, request())
		p.ask(t, "scop=a", nil)
	}
	if n := strings.Count(p.log.String(), "level=WARN"); n != 1 {
		t.Errorf("one problem was told %d times: %s", n, p.log)
	}
	for i := range 1000 {
		p.ask(t, "x"+strings.Repeat("y", i%50)+unix(time.Unix(int64(i), 0))+"=1", nil)
	}
	if n := strings.Count(p.log.String(), "\n"); n != 64 {
		t.Errorf("a thousand problems are %d lines", n)
	}
	p.ahead = time.Minute
	p.log.Reset()
	p.ask(t, "scop=a", nil)
	if !strings.Contains(p.log.String(), "scop: is not a parameter") {
		t.Errorf("what strangers asked a minute ago keeps a problem from the log: %q", p.log)
	}
}

// TestAReplicaThatCannotKnowDecidesNothing: Envoy gets an error, which denies unless failure_mode_allow, and others 503.
func TestAReplicaThatCannotKnowDecidesNothing(t *testing.T) {
	t.Parallel()
	p := open(t, nil)
	ada := "Bearer " + p.mint(t, nil)
	undecided := func(name, code string) {
		t.Helper()
		if a := p.check(t, nil, request(ada)); a.err == nil || rpc.StatusOf(a.err).Code().String() != code {
			t.Errorf("%s, Envoy: %d %v", name, a.code, a.err)
		}
		want := map[string]int{"Unavailable": 503, "Internal": 500}[code]
		if a := p.ask(t, "", with(ada)); a.code != want || (a.header.Get("Retry-After") == "1") != (want == 503) || strings.Contains(a.body, "canary") || a.header.Get("X-Auth-Subject") != "" {
			t.Errorf("%s, nginx: %d %v %s", name, a.code, a.header, a.body)
		}
	}
	p.stale = staleError
	undecided("P08 revocations cannot be read", "Unavailable")
	p.stale = errors.New("canary")
	undecided("what nobody foresaw", "Internal")
	p.stale = nil
	p.list.SetReady(false)
	undecided("P08 revocations have never been read", "Unavailable")
	p.list.SetReady(true)
	if a := p.check(t, nil, request(ada)); a.code != 200 {
		t.Errorf("the twin: %d %v", a.code, a.err)
	}
	for _, want := range []string{"UNDECIDED", "REPLICA_STALE", ""} {
		if !slices.Contains(p.outcomes, want) {
			t.Errorf("nobody was told of the outcome %q", want)
		}
	}
}
