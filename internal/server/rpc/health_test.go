package rpc_test

import (
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/authsvc/authsvc/internal/server/rpc"
)

// TestR58NoServiceOfTheServerTakesALargeMessage asks the health, which is open to everybody and keeps the name that is
// watched for as long as the watch lasts.
func TestR58NoServiceOfTheServerTakesALargeMessage(t *testing.T) {
	t.Parallel()
	server := rpc.NewServer(nil)
	healthv1.RegisterHealthServer(server, health.NewServer())
	l := bufconn.Listen(1 << 20)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn := must(grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })))(t)
	t.Cleanup(func() { conn.Close() })
	client := healthv1.NewHealthClient(conn)
	for _, tt := range []struct {
		name  string
		bytes int
		taken bool
	}{
		{"the twin: a name of 60 KiB", 60 << 10, true},
		{"R58 a name of 100 KiB", 100 << 10, false},
	} {
		request := &healthv1.HealthCheckRequest{Service: strings.Repeat("a", tt.bytes)}
		if _, err := client.Check(t.Context(), request); (status.Code(err) == codes.NotFound) != tt.taken {
			t.Errorf("%s: a check gives %v", tt.name, err)
		}
		ctx, stop := context.WithCancel(t.Context())
		if _, err := must(client.Watch(ctx, request))(t).Recv(); (err == nil) != tt.taken {
			t.Errorf("%s: a watch gives %v", tt.name, err)
		}
		stop()
	}
}
