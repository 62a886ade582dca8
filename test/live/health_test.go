package live

import (
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// TestHealthIsByExactName probes as an orchestrator does, without credentials: the process, and each service by its name.
func TestHealthIsByExactName(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	client := healthv1.NewHealthClient(wire(t, s.GRPC))
	for name, want := range map[string]codes.Code{
		"": codes.OK, "authsvc.v1.AuthService": codes.OK, "authsvc.v1.SessionService": codes.OK, "authsvc.v1.AccountService": codes.OK, "authsvc.v1.TrustService": codes.OK,
		"authsvc.v1.authservice": codes.NotFound, "authsvc.v1.AuthService/": codes.NotFound, "AuthService": codes.NotFound, "authsvc.v1": codes.NotFound, "*": codes.NotFound,
	} {
		r, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{Service: name})
		if status.Code(err) != want || want == codes.OK && r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v %v", name, r, err)
		}
	}
	watch, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{Service: "authsvc.v1.AuthService"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []healthv1.HealthCheckResponse_ServingStatus{healthv1.HealthCheckResponse_SERVING, healthv1.HealthCheckResponse_NOT_SERVING} {
		r, err := watch.Recv()
		if err != nil || r.GetStatus() != want {
			t.Fatalf("watched: %v %v, want %v", r, err, want)
		}
		if want == healthv1.HealthCheckResponse_SERVING { // and then it is asked to stop
			if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := watch.Recv(); err == nil {
		t.Error("the watch goes on, and holds up the drain")
	}
	err = <-s.exited
	s.exited <- err
	if err != nil {
		t.Errorf("the drain ended with %v: %s", err, s.out)
	}
}
