package guard_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/guard"
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

func ExampleGuard_UnaryServerInterceptor() {
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
	server := grpc.NewServer(
		grpc.UnaryInterceptor(g.UnaryServerInterceptor()),
		grpc.StreamInterceptor(g.StreamServerInterceptor()),
	)
	defer server.Stop()

	_, err = g.UnaryServerInterceptor()(context.Background(), nil, &grpc.UnaryServerInfo{FullMethod: "/shop.v1.Orders/List"}, nil)
	fmt.Println(status.Code(err), status.Convert(err).Message())
	// Output: Unauthenticated a bearer token is required
}
