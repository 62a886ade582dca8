package rest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/server/rest"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// seen is what one call looked like from inside a service.
type seen struct {
	method      string
	md          metadata.MD
	peer        string
	remaining   time.Duration
	hasDeadline bool
}

// services are small real services: what they answer depends on the request alone, so that a test chooses by its input.
type services struct {
	authsvcv1.UnimplementedAuthServiceServer
	authsvcv1.UnimplementedSessionServiceServer

	mu    sync.Mutex
	calls []seen
}

func (s *services) last(t *testing.T) seen {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.calls) == 0 {
		t.Fatal("no call has reached a service")
	}
	return s.calls[len(s.calls)-1]
}

func (s *services) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

// intercept notes each call, as the server's own chain would look at it.
func (s *services) intercept(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	call := seen{method: info.FullMethod}
	call.md, _ = metadata.FromIncomingContext(ctx)
	if p, ok := peer.FromContext(ctx); ok {
		call.peer = p.Addr.String()
	}
	if at, ok := ctx.Deadline(); ok {
		call.remaining, call.hasDeadline = time.Until(at), true
	}
	s.mu.Lock()
	s.calls = append(s.calls, call)
	s.mu.Unlock()
	if err := grpc.SetHeader(ctx, metadata.Pairs("x-internal", "1", "authsvc-device", "dt1.y")); err != nil {
		return nil, err
	}
	return next(ctx, req)
}

// noting registers services with every method wrapped, as the gRPC door does it, so that each call is noted first.
type noting struct {
	grpc.ServiceRegistrar
	s *services
}

func (n noting) RegisterService(desc *grpc.ServiceDesc, impl any) {
	wrapped := *desc
	wrapped.Methods = nil
	for _, m := range desc.Methods {
		wrapped.Methods = append(wrapped.Methods, grpc.MethodDesc{MethodName: m.MethodName,
			Handler: func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
				return m.Handler(srv, ctx, dec, n.s.intercept)
			}})
	}
	n.ServiceRegistrar.RegisterService(&wrapped, impl)
}

// canary stands for a secret that must never leave by an answer or a log.
const canary = "canary-7f3a"

func (s *services) Login(_ context.Context, r *authsvcv1.LoginRequest) (*authsvcv1.LoginResponse, error) {
	switch r.GetUsername() {
	case "raw":
		return nil, errors.New("sql: password authentication failed for " + canary)
	case "internal":
		return nil, status.Error(codes.Internal, "open /var/lib/"+canary)
	case "panic":
		panic("token " + canary)
	case "utf8":
		return &authsvcv1.LoginResponse{Scope: "\xff"}, nil
	case "limited":
		st, err := status.New(codes.ResourceExhausted, "too many failures").WithDetails(
			&errdetails.ErrorInfo{Reason: string(fault.RateLimited), Domain: "authsvc"},
			&errdetails.RetryInfo{RetryDelay: durationpb.New(1500 * time.Millisecond)},
			&errdetails.DebugInfo{Detail: canary})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	case "wrong", "token", "scope", "client", "reused", "superseded", "expired", "ended":
		reasons := map[string]fault.Reason{"wrong": fault.InvalidCredentials, "token": fault.TokenInvalid,
			"scope": fault.ScopeInsufficient, "client": fault.ClientInvalid, "reused": fault.RefreshReused,
			"superseded": fault.RefreshSuperseded, "expired": fault.RefreshExpired, "ended": fault.RefreshInvalid}
		code := codes.Unauthenticated
		if r.GetUsername() == "scope" {
			code = codes.PermissionDenied
		}
		st, err := status.New(code, "no").WithDetails(&errdetails.ErrorInfo{Reason: string(reasons[r.GetUsername()]),
			Domain: "authsvc", Metadata: map[string]string{"scope": "authsvc.introspect"}})
		if err != nil {
			return nil, err
		}
		return nil, st.Err()
	}
	return &authsvcv1.LoginResponse{AccessToken: "at", TokenType: "Bearer", ExpiresIn: 300, SessionId: r.GetDeviceName()}, nil
}

func (s *services) Introspect(context.Context, *authsvcv1.IntrospectRequest) (*authsvcv1.IntrospectResponse, error) {
	inactive := false
	return &authsvcv1.IntrospectResponse{Active: &inactive}, nil
}

func (s *services) BatchIntrospect(_ context.Context, r *authsvcv1.BatchIntrospectRequest) (
	*authsvcv1.BatchIntrospectResponse, error) {
	out := &authsvcv1.BatchIntrospectResponse{}
	for range r.GetTokens() {
		active := true
		out.Results = append(out.Results, &authsvcv1.IntrospectResponse{Active: &active})
	}
	return out, nil
}

func (s *services) ListSessions(_ context.Context, r *authsvcv1.ListSessionsRequest) (*authsvcv1.ListSessionsResponse, error) {
	return &authsvcv1.ListSessionsResponse{NextPageToken: r.GetPageToken()}, nil
}

func (s *services) RevokeSession(_ context.Context, r *authsvcv1.RevokeSessionRequest) (*authsvcv1.RevokeSessionResponse, error) {
	if r.GetSessionId() != "mine" {
		return nil, status.Error(codes.NotFound, "no such session")
	}
	return &authsvcv1.RevokeSessionResponse{}, nil
}

// house is one door with its services and its log.
type house struct {
	http.Handler
	services *services
	log      *bytes.Buffer
	panics   int
}

const goodOrigin = "https://app.example.com"

func open(t testing.TB, change func(*rest.Options)) *house {
	t.Helper()
	h := &house{services: &services{}, log: &bytes.Buffer{}}
	channel := rest.NewChannel()
	authsvcv1.RegisterAuthServiceServer(noting{channel, h.services}, h.services)
	authsvcv1.RegisterSessionServiceServer(noting{channel, h.services}, h.services)
	o := rest.Options{
		Channel: channel,
		Status:  rpc.StatusOf,
		KeySet: func(context.Context) ([]byte, string, error) {
			return []byte(`{"keys":[]}`), `"v1"`, nil
		},
		TrustedProxies: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")},
		CORSOrigins:    []string{goodOrigin},
		OpenAPI:        []byte(`{"swagger":"2.0"}`),
		Logger:         slog.New(slog.NewJSONHandler(h.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Panicked:       func() { h.panics++ },
	}
	if change != nil {
		change(&o)
	}
	var err error
	if h.Handler, err = rest.New(o); err != nil {
		t.Fatal(err)
	}
	return h
}

// request is a good login; each test puts one fault into it.
func request(change func(*http.Request)) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/v1/auth/login", strings.NewReader(`{"username":"ann","password":"pw"}`))
	r.RemoteAddr = "192.0.2.7:4711"
	r.Header.Set("Content-Type", "application/json")
	if change != nil {
		change(r)
	}
	return r
}

func withBody(r *http.Request, text string) {
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(text)), int64(len(text))
}

func (h *house) do(r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// wire is google.rpc.Status as JSON.
type wire struct {
	Code    int              `json:"code"`
	Message string           `json:"message"`
	Details []map[string]any `json:"details"`
}

func (w wire) detail(kind string) map[string]any {
	for _, d := range w.Details {
		if d["@type"] == "type.googleapis.com/google.rpc."+kind {
			return d
		}
	}
	return nil
}

func read(t *testing.T, resp *http.Response) (string, wire) {
	t.Helper()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var w wire
	if resp.StatusCode >= 400 {
		if err := json.Unmarshal(data, &w); err != nil || w.Message == "" {
			t.Fatalf("the body of a %d is not a google.rpc.Status: %q", resp.StatusCode, data)
		}
		if got := w.detail("RequestInfo")["request_id"]; got != resp.Header.Get("X-Request-Id") || got == nil {
			t.Errorf("RequestInfo has the request id %v, the header %q", got, resp.Header.Get("X-Request-Id"))
		}
	}
	return string(data), w
}

func TestRequestsAreTakenOrRefusedByTheirForm(t *testing.T) {
	t.Parallel()
	post := func(path, text string) func(*http.Request) {
		return func(r *http.Request) { r.URL.Path = path; withBody(r, text) }
	}
	header := func(name string, values ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header[name] = values }
	}
	at := func(verb, target string) func(*http.Request) {
		return func(r *http.Request) { *r = *httptest.NewRequest(verb, target, nil); r.RemoteAddr = "192.0.2.7:4711" }
	}
	tests := []struct {
		name   string
		change func(*http.Request)
		want   int
		reason fault.Reason
	}{
		{"a plain login is taken", nil, 200, ""},
		{"a charset of UTF-8 is taken", header("Content-Type", "application/json; charset=UTF-8"), 200, ""},
		{"G07 text/plain with JSON inside", header("Content-Type", "text/plain"), 415, fault.ContentTypeUnsupported},
		{"G07 a form with JSON inside", header("Content-Type", "application/x-www-form-urlencoded"), 415, fault.ContentTypeUnsupported},
		{"G07 no content type", header("Content-Type"), 415, fault.ContentTypeUnsupported},
		{"G07 R39 two content types", header("Content-Type", "application/json", "text/plain"), 415, fault.ContentTypeUnsupported},
		{"another charset", header("Content-Type", "application/json; charset=utf-7"), 415, fault.ContentTypeUnsupported},
		{"a compressed body", header("Content-Encoding", "gzip"), 415, fault.ContentTypeUnsupported},
		{"an unknown field", post("/v1/auth/login", `{"username":"ann","pasword":"x"}`), 400, fault.FieldInvalid},
		{"a field twice", post("/v1/auth/login", `{"username":"ann","username":"bob"}`), 400, fault.FieldInvalid},
		{"a field twice in two spellings", post("/v1/auth/login", `{"client_id":"a","clientId":"b"}`), 400, fault.FieldInvalid},
		{"a field in lowerCamelCase", post("/v1/auth/login", `{"username":"ann","clientId":"a"}`), 400, fault.FieldInvalid},
		{"the same in the proto's spelling is taken", post("/v1/auth/login", `{"username":"ann","client_id":"a"}`), 200, ""},
		{"a field in another case", post("/v1/auth/login", `{"Username":"ann"}`), 400, fault.FieldInvalid},
		{"a value of another type", post("/v1/auth/login", `{"username":"ann","password":17}`), 400, fault.FieldInvalid},
		{"a value behind the object", post("/v1/auth/login", `{"username":"ann"}{}`), 400, fault.FieldInvalid},
		{"an array", post("/v1/auth/login", `[]`), 400, fault.FieldInvalid},
		{"null", post("/v1/auth/login", `null`), 400, fault.FieldInvalid},
		{"G16 bad UTF-8", post("/v1/auth/login", "{\"username\":\"\xff\"}"), 400, fault.FieldInvalid},
		{"an empty body", post("/v1/auth/login", ``), 400, fault.FieldInvalid},
		{"a body of white space", post("/v1/auth/login", "  "), 400, fault.FieldInvalid},
		{"white space around the object is taken", post("/v1/auth/login", " {\"username\":\"ann\"}\n"), 200, ""},
		{"R58 a body of 64 KiB is taken", post("/v1/auth/login", `{}`+strings.Repeat(" ", 64<<10-2)), 200, ""},
		{"R58 a body of 64 KiB and a byte", post("/v1/auth/login", `{}`+strings.Repeat(" ", 64<<10-1)), 413, fault.BodyTooLarge},
		{"R58 the same in chunks", func(r *http.Request) {
			withBody(r, `{}`+strings.Repeat(" ", 64<<10-1))
			r.ContentLength = -1
		}, 413, fault.BodyTooLarge},
		{"in chunks, within the limit, is taken", func(r *http.Request) { withBody(r, `{}`); r.ContentLength = -1 }, 200, ""},
		{"R39 a login by GET", at(http.MethodGet, "/v1/auth/login"), 405, fault.MethodNotAllowed},
		{"F16 a refresh by GET", at(http.MethodGet, "/v1/auth/refresh?refresh_token="+canary), 405, fault.MethodNotAllowed},
		{"R08 F16 a token in the query", func(r *http.Request) { r.URL.RawQuery = "refresh_token=" + canary }, 400, fault.FieldInvalid},
		{"R08 an access token in the query", at(http.MethodGet, "/v1/sessions?access_token="+canary), 400, fault.FieldInvalid},
		{"a list by GET is taken", at(http.MethodGet, "/v1/sessions?page_size=5&page_token=p"), 200, ""},
		{"a query parameter twice", at(http.MethodGet, "/v1/sessions?page_size=5&page_size=6"), 400, fault.FieldInvalid},
		{"a query parameter that is no number", at(http.MethodGet, "/v1/sessions?page_size="+canary), 400, fault.FieldInvalid},
		{"G06 a method override on a form", func(r *http.Request) {
			r.URL.Path = "/v1/sessions"
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("X-Http-Method-Override", "GET")
		}, 405, fault.MethodNotAllowed},
		{"G06 a form as a long GET", func(r *http.Request) {
			r.URL.Path = "/v1/sessions"
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}, 405, fault.MethodNotAllowed},
		{"a delete is taken", at(http.MethodDelete, "/v1/sessions/mine"), 200, ""},
		{"a delete with a body", func(r *http.Request) { r.Method = http.MethodDelete; r.URL.Path = "/v1/sessions/mine" }, 400, fault.FieldInvalid},
		{"G10 a path with two slashes", func(r *http.Request) { r.URL.Path = "//v1/auth/login" }, 404, fault.RouteNotFound},
		{"G10 a path without a slash", func(r *http.Request) { r.URL.Path = "v1/auth/login" }, 404, fault.RouteNotFound},
		{"G10 an empty path", func(r *http.Request) { r.URL.Path = "" }, 404, fault.RouteNotFound},
		{"G10 a path with a slash behind", func(r *http.Request) { r.URL.Path = "/v1/auth/login/" }, 404, fault.RouteNotFound},
		{"G10 a path in another case", func(r *http.Request) { r.URL.Path = "/v1/auth/Login" }, 404, fault.RouteNotFound},
		{"G10 an escaped letter", at(http.MethodGet, "/v1/%73essions"), 404, fault.RouteNotFound},
		{"G10 an escaped slash", at(http.MethodDelete, "/v1/sessions%2fmine"), 404, fault.RouteNotFound},
		{"G10 a verb on an identifier", at(http.MethodDelete, "/v1/sessions/mine:x"), 404, fault.RouteNotFound},
		{"G10 dots", at(http.MethodDelete, "/v1/sessions/.."), 404, fault.RouteNotFound},
		{"G10 the gRPC path", func(r *http.Request) { r.URL.Path = "/authsvc.v1.AuthService/Login" }, 404, fault.RouteNotFound},
		{"G14 metrics", at(http.MethodGet, "/metrics"), 404, fault.RouteNotFound},
		{"G14 profiles", at(http.MethodGet, "/debug/pprof/"), 404, fault.RouteNotFound},
		{"G14 readiness", at(http.MethodGet, "/readyz"), 404, fault.RouteNotFound},
		{"G14 the root, asked by a health probe", func(r *http.Request) {
			at(http.MethodGet, "/")(r)
			r.Header.Set("User-Agent", "GoogleHC/1.0")
		}, 404, fault.RouteNotFound},
		{"G01 one authorization header is taken", header("Authorization", "Bearer a"), 200, ""},
		{"G01 two authorization headers", header("Authorization", "Bearer a", "Bearer b"), 401, fault.TokenInvalid},
		{"an authorization header that is not ASCII", header("Authorization", "Bearer \xc3\xa4"), 401, fault.TokenInvalid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, nil)
			resp := h.do(request(tt.change))
			text, st := read(t, resp)
			if resp.StatusCode != tt.want {
				t.Fatalf("answered %d %s, want %d", resp.StatusCode, text, tt.want)
			}
			if tt.reason != "" && st.detail("ErrorInfo")["reason"] != string(tt.reason) {
				t.Errorf("the reason is %v, want %s", st.detail("ErrorInfo")["reason"], tt.reason)
			}
			if refused := h.services.count() == 0; refused != (tt.want != 200) {
				t.Errorf("a service was called: %t", !refused)
			}
			if strings.Contains(text, canary) || strings.Contains(h.log.String(), canary) {
				t.Errorf("R63 a value of the request is in the answer or the log:\n%s\n%s", text, h.log)
			}
			if got := resp.Header.Get("Cache-Control"); got != "no-store" {
				t.Errorf("R07 Cache-Control is %q", got)
			}
			if got := resp.Header.Get("X-Content-Type-Options"); got != "nosniff" {
				t.Errorf("X-Content-Type-Options is %q", got)
			}
			if tt.want == 405 && resp.Header.Get("Allow") == "" {
				t.Error("a 405 without Allow")
			}
		})
	}
}
