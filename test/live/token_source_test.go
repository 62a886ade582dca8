package live

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// TestAServiceCallsAnotherByItsOwnToken has a guarded service, over gRPC and HTTP, and a caller with a TokenSource; all that
// either knows comes from the real server.
func TestAServiceCallsAnotherByItsOwnToken(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	w := watch(t, s, nil)
	g, err := guard.New(guard.Options{Verifier: w.Verifier, Feed: w.Feed, Rules: map[string]guard.Rule{
		grpc_health_v1.Health_Check_FullMethodName: {Scopes: []string{"demo.read"}},
		"GET /": {Scopes: []string{"demo.read"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(g.UnaryServerInterceptor()), grpc.StreamInterceptor(g.StreamServerInterceptor()))
	grpc_health_v1.RegisterHealthServer(server, whoCalls{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	web := httptest.NewServer(g.Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		claims, _ := guard.ClaimsFromContext(r.Context())
		_, _ = io.WriteString(w, claims.Subject)
	})))
	t.Cleanup(web.Close)
	w.ready(t)

	for _, c := range []struct {
		name, secret, scope string
		resources           []string
		code                codes.Code
		reason              string
	}{
		{"a token of the service's own", s.ServiceClientSecret, "demo.read", []string{s.Audience}, codes.OK, ""},
		{"of all that it has", s.ServiceClientSecret, "", nil, codes.OK, ""},
		{"without the scope", s.ServiceClientSecret, "demo.write", nil, codes.PermissionDenied, ""},
		{"a wrong secret", "canary-canary-canary", "", nil, codes.Unauthenticated, "invalid_client"},
		{"a scope that it has not", s.ServiceClientSecret, "admin.all", nil, codes.Unauthenticated, "invalid_scope"},
		{"an audience that it has not", s.ServiceClientSecret, "", []string{"https://other.example"}, codes.Unauthenticated, "invalid_target"},
	} {
		source, err := guard.NewTokenSource(guard.TokenSourceOptions{URL: s.HTTP, ClientID: s.ServiceClientID, ClientSecret: c.secret,
			Scope: c.scope, Resources: c.resources, PlaintextCalls: true})
		if err != nil {
			t.Fatal(err)
		}
		conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(source))
		if err != nil {
			t.Fatal(err)
		}
		_, err = grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: s.ServiceClientID})
		_ = conn.Close()
		if status.Code(err) != c.code || c.reason != "" && !strings.HasSuffix(err.Error(), ": "+c.reason) || err != nil && strings.Contains(err.Error(), c.secret) {
			t.Errorf("%s, over gRPC: %v", c.name, err)
		}
		transport, err := source.Transport(nil, web.URL)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: transport}).Get(web.URL)
		switch {
		case c.reason != "":
			if !errors.Is(err, guard.ErrTokenRefused) {
				t.Errorf("%s, over HTTP: %v", c.name, err)
			}
		case err != nil:
			t.Errorf("%s, over HTTP: %v", c.name, err)
		default:
			text, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if (resp.StatusCode == http.StatusOK) != (c.code == codes.OK) || c.code == codes.OK && string(text) != s.ServiceClientID {
				t.Errorf("%s, over HTTP: %d %s", c.name, resp.StatusCode, text)
			}
		}
	}
}

// whoCalls wants its caller's name in the request.
type whoCalls struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (whoCalls) Check(ctx context.Context, r *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if claims, ok := guard.ClaimsFromContext(ctx); !ok || claims.Subject != r.GetService() {
		return nil, status.Error(codes.Internal, "another caller")
	}
	return &grpc_health_v1.HealthCheckResponse{}, nil
}

// TestF01F17ATokenSourceKeepsItsSession refreshes at the real server: after an answer that was lost, from two sources that share
// their storage, and after the session's end.
func TestF01F17ATokenSourceKeepsItsSession(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	w := watch(t, s, nil)
	in := s.login(t)
	w.ready(t)
	target, err := url.Parse(s.HTTP)
	if err != nil {
		t.Fatal(err)
	}
	var lost atomic.Bool // whether answers are lost
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(r *http.Response) error {
			if lost.Load() && r.StatusCode == http.StatusOK {
				panic(http.ErrAbortHandler) // the server has decided, and nobody hears of it
			}
			return nil
		}})
	t.Cleanup(proxy.Close)
	store := guard.NewRefreshToken(in.text("refresh_token"))
	open := func() *guard.TokenSource {
		source, err := guard.NewTokenSource(guard.TokenSourceOptions{URL: proxy.URL, ClientID: s.PublicClientID, RefreshToken: store})
		if err != nil {
			t.Fatal(err)
		}
		return source
	}
	kept := func() string { token, _ := store.Load(t.Context()); return token }

	lost.Store(true)
	source := open()
	if _, err := source.Token(t.Context()); err == nil || errors.Is(err, guard.ErrTokenRefused) || strings.Contains(err.Error(), kept()) {
		t.Errorf("F17 an answer that was lost: %v", err)
	}
	if kept() != in.text("refresh_token") {
		t.Error("F17 something was stored of an answer that never came")
	}
	lost.Store(false)
	var token string
	await(t, "F17 the next try succeeds", func() bool { token, err = source.Token(t.Context()); return err == nil })
	if claims, err := w.Verify(t.Context(), token); err != nil || claims.SessionID != in.text("session_id") {
		t.Errorf("the token: %v", err)
	}
	for generation := range 3 { // sources that come one after the other, as a service that is started again
		before, answers := kept(), make(chan error)
		for range 2 {
			go func() {
				token, err := open().Token(context.Background())
				if err == nil {
					_, err = w.Verify(context.Background(), token)
				}
				answers <- err
			}()
		}
		for range 2 {
			if err := <-answers; err != nil {
				t.Errorf("F01 generation %d: %v", generation, err)
			}
		}
		if kept() == before {
			t.Errorf("generation %d: the storage holds the same", generation)
		}
	}
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": kept()}); a.code != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.code, a.raw)
	}
	if _, err := open().Token(t.Context()); !errors.Is(err, guard.ErrTokenRefused) || !strings.HasSuffix(err.Error(), ": REFRESH_INVALID") {
		t.Errorf("an ended session: %v", err)
	}
	await(t, "the session's tokens are refused", func() bool { return errors.Is(w.says(t, token), verify.ErrRevoked) })
}
