package guard_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

func ExampleGuard_Middleware() {
	g, err := guard.New(guard.Options{
		Verifier: verifier(true), // made with verify.New
		Rules: map[string]guard.Rule{
			"GET /orders":  {Scopes: []string{"orders.read"}},
			"POST /orders": {Scopes: []string{"orders.write"}},
			"GET /healthz": {Public: true},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	orders := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		claims, _ := guard.ClaimsFromContext(r.Context())
		fmt.Println("orders of", claims.Subject)
	})
	handler := g.Middleware(orders)

	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodDelete} {
		r := httptest.NewRequestWithContext(context.Background(), method, "/orders", nil)
		r.Header.Set("Authorization", "Bearer "+token(nil))
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		fmt.Println(method, w.Code)
	}
	// Output:
	// orders of acct
	// GET 200
	// POST 403
	// DELETE 403
}

func ExampleGuard_ServerOptions() {
	g, err := guard.New(guard.Options{
		Verifier: verifier(true), // made with verify.New
		Rules: map[string]guard.Rule{
			"/shop.v1.Orders/List":         {Scopes: []string{"orders.read"}},
			"/grpc.health.v1.Health/Check": {Public: true},
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	server := grpc.NewServer(g.ServerOptions()...)
	defer server.Stop()

	_, err = g.UnaryServerInterceptor()(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/shop.v1.Orders/List"}, nil)
	fmt.Println(status.Code(err), status.Convert(err).Message())
	// Output: Unauthenticated a bearer token is required
}

// exampleServer is an authsvc in miniature: it revokes the session "sess" when it is told to.
func exampleServer() (target string, revoke chan<- struct{}, stop func()) {
	told := make(chan struct{})
	p := &peer{script: func(_ *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "1"), beat("1", 0, 0)); err != nil {
			return err
		}
		<-told
		if err := say(s, change("1", "2", nil, entry(verify.KindSession, "sess"))); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer()
	authsvcv1.RegisterTrustServiceServer(server, p)
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), told, server.Stop
}

func ExampleFeed() {
	target, revoke, stop := exampleServer()
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	feed, err := guard.NewFeed(guard.FeedOptions{
		Target: target, Issuer: "https://auth.example", ClientID: "orders", ClientSecret: "its secret",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() { _ = feed.Run(ctx) }()
	v, err := verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: feed, Revocations: feed,
		Now: func() time.Time { return time.Unix(issued+60, 0) }, // when the example's token was new
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	if err := feed.Ready(ctx); err != nil { // or serve at once, and answer UNAVAILABLE until then
		fmt.Println(err)
		return
	}
	claims, err := v.Verify(ctx, token(nil))
	fmt.Println(claims.Subject, err)

	close(revoke)
	for err == nil { // a moment
		_, err = v.Verify(ctx, token(nil))
	}
	fmt.Println(errors.Is(err, verify.ErrRevoked))
	// Output:
	// acct <nil>
	// true
}
