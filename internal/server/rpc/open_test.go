package rpc_test

import (
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// anothers is a service of another door.
type anothers struct {
	healthv1.UnimplementedHealthServer
}

func (anothers) Check(_ context.Context, r *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	switch r.GetService() {
	case "panic":
		panic("canary")
	case "stale":
		return nil, fault.New(fault.Unavailable, fault.ReplicaStale, "too old")
	}
	return &healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}, nil
}

func (anothers) Watch(*healthv1.HealthCheckRequest, grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	return nil
}

// TestAnothersServiceRunsInThePipeline: what the pipeline gives our own services, it gives those of other doors.
func TestAnothersServiceRunsInThePipeline(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	server := rpc.NewServer(nil)
	healthv1.RegisterHealthServer(s.door.Open(server), anothers{})
	l := bufconn.Listen(1 << 20)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn := must(grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })))(t)
	t.Cleanup(func() { conn.Close() })
	client := healthv1.NewHealthClient(conn)
	for _, tt := range []struct {
		name, service string
		code          codes.Code
		reason        string
	}{
		{"twin: a call by anybody", "", codes.OK, ""},
		{"G16 a panic", "panic", codes.Internal, "INTERNAL"},
		{"a fault", "stale", codes.Unavailable, "REPLICA_STALE"},
		{"R58 a message over 64 KiB", strings.Repeat("a", 70<<10), codes.ResourceExhausted, ""},
	} {
		_, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: tt.service})
		reason, id := "", ""
		for _, d := range status.Convert(err).Details() {
			switch d := d.(type) {
			case *errdetails.ErrorInfo:
				reason = d.GetReason()
			case *errdetails.RequestInfo:
				id = d.GetRequestId()
			}
		}
		if status.Code(err) != tt.code || reason != tt.reason || (id == "") != (err == nil) || strings.Contains(status.Convert(err).Message(), "canary") {
			t.Errorf("%s: %v, the reason %q, the request id %q", tt.name, err, reason, id)
		}
	}
	if n := s.panics.Load(); n != 1 {
		t.Errorf("%d panics were counted, want 1", n)
	}
	if _, err := must(client.Watch(t.Context(), &healthv1.HealthCheckRequest{}))(t).Recv(); status.Code(err) != codes.PermissionDenied {
		t.Errorf("G17 a stream of another door, which nobody gave a rule: %v", err)
	}
}
