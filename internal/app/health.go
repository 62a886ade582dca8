package app

import (
	"context"
	"time"

	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// lastWord is how long a watcher of the health has to hear that this server is being stopped, before its stream ends.
const lastWord = 100 * time.Millisecond

// healthServer is the standard one, whose watchers do not hold up a drain: the standard one lets them stay as long as they like.
type healthServer struct {
	*health.Server
	stopped chan struct{} // closed by stop
}

func newHealth() *healthServer {
	return &healthServer{Server: health.NewServer(), stopped: make(chan struct{})}
}

// stop tells all watchers that nothing is served any more, and then ends their streams.
func (h *healthServer) stop() {
	h.Shutdown()
	close(h.stopped)
}

// Watch implements the health service.
func (h *healthServer) Watch(r *healthv1.HealthCheckRequest, stream healthv1.Health_WatchServer) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	go func() {
		select {
		case <-ctx.Done():
		case <-h.stopped:
			time.AfterFunc(lastWord, cancel)
		}
	}()
	return h.Server.Watch(r, endingWatch{stream, ctx})
}

// endingWatch is a watcher's stream with an end of ours.
type endingWatch struct {
	healthv1.Health_WatchServer
	ctx context.Context //nolint:containedctx // grpc.ServerStream hands its context out by a method
}

// Context implements grpc.ServerStream.
func (w endingWatch) Context() context.Context { return w.ctx }
