package app

import (
	"bytes"
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// Run serves until ctx ends, then drains: no new work is taken, what was begun is finished. It calls listening once all
// doors answer, and is ready after that.
func (a *App) Run(ctx context.Context, listening func() error) error {
	loops, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	failed := make(chan error, 16)
	start := func(what string, run func(context.Context) error) {
		wg.Go(func() {
			if err := run(loops); err != nil && loops.Err() == nil {
				a.log.Error("a part of the service stopped", "part", what, "error", err)
				failed <- err
			}
		})
	}
	if a.redis != nil {
		start("Redis", a.redis.Run)
	}
	start("revocation log", a.tail.Run)
	start("register", a.register.Run) // which leaves when the loops end, after the drain
	start("keys", a.ring.Run)
	start("pulse", a.pulse.Run)
	start("feed", a.feed.Run)
	start("clients", a.followClients)
	start("cleaning", a.clean)
	start("configuration", a.reloading)
	start("filling", a.fill)
	start("gRPC", func(context.Context) error { return a.grpc.Serve(a.doors.GRPC) })
	start("HTTP", func(context.Context) error { return serveHTTP(a.http, a.doors.HTTP) })
	start("ops", func(context.Context) error { return serveHTTP(a.ops, a.doors.Ops) })
	if a.admin != nil {
		start("admin", func(context.Context) error { return a.admin.Serve(a.doors.admin) })
	}
	err := listening()
	if err == nil {
		a.state.Store(serving)
		a.health.Resume()
		a.health.SetServingStatus("", healthv1.HealthCheckResponse_SERVING)
		a.log.Info("serving", "issuer", a.cfg.Issuer, "instance", a.register.ID(), "http", a.doors.HTTP.Addr().String(), "grpc", a.doors.GRPC.Addr().String(), "ops", a.doors.Ops.Addr().String())
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}
	a.drain()
	stop()
	wg.Wait()
	return err
}

func serveHTTP(s *http.Server, l net.Listener) (err error) {
	if s.TLSConfig != nil {
		err = s.ServeTLS(l, "", "") // the pair comes from TLSConfig.GetCertificate
	} else {
		err = s.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// saidByHTTP takes what net/http logs by itself. Of strangers' handshakes that is for Debug; that the listener takes nobody
// in, since the process has no files left, is for whoever runs it.
type saidByHTTP struct{ log *slog.Logger }

// Write takes one line.
func (s saidByHTTP) Write(line []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.HasPrefix(line, []byte("http: Accept error")) {
		level = slog.LevelError
	}
	s.log.Log(context.Background(), level, string(bytes.TrimSpace(line)))
	return len(line), nil
}

func errorLog(l *slog.Logger) *log.Logger { return log.New(saidByHTTP{l}, "", 0) }

// drainFor bounds the drain; a call takes at most service.DecisionTimeout to decide.
const drainFor = 15 * time.Second

func (a *App) drain() {
	a.state.Store(draining)
	a.health.stop()
	a.log.Info("draining")
	ctx, cancel := context.WithTimeout(context.Background(), drainFor)
	defer cancel()
	a.feed.Drain() // its streams would last as long as the drain; the connections are told to go elsewhere right after
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := a.http.Shutdown(ctx); err != nil {
			_ = a.http.Close()
		}
	})
	wg.Go(func() {
		done := make(chan struct{})
		go func() { a.grpc.GracefulStop(); close(done) }()
		select {
		case <-done:
		case <-ctx.Done():
			a.grpc.Stop()
		}
	})
	wg.Wait()
	if a.admin != nil {
		a.admin.Stop() // which waits for the call that is under way
	}
	if err := a.ops.Shutdown(ctx); err != nil {
		_ = a.ops.Close()
	}
}

// followClients reads the clients again when their revision moves, so that what the CLI changes acts within a second.
func (a *App) followClients(ctx context.Context) error {
	return following(ctx, a.log, a.clients.Refresh)
}

// following says once that the clients cannot be read, and once that they can be again: a store may be away for long.
func following(ctx context.Context, logger *slog.Logger, refresh func(context.Context) error) error {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := refresh(ctx)
		switch {
		case err != nil && ctx.Err() == nil && !failing:
			logger.Warn("clients cannot be read", "error", err)
			failing = true
		case err == nil && failing:
			logger.Info("clients are read again")
			failing = false
		}
	}
}

// How long what has ended is kept, how much one sweep touches, and how often there is one. One that left something goes on
// soon: at fifty rows a second alone, a log that grows faster would grow for good.
const (
	keepSessions = 30 * 24 * time.Hour
	keepAudit    = 90 * 24 * time.Hour
	sweepRows    = 500
	sweepEvery   = 10 * time.Second
	sweepSoon    = 100 * time.Millisecond
)

// sweep deletes at most limit rows of what is over, and gives how many it touched.
type sweep func(ctx context.Context, limit int) (int, error)

// clean deletes what is over, in small batches.
func (a *App) clean(ctx context.Context) error {
	return sweeping(ctx, a.log,
		func(ctx context.Context, limit int) (int, error) {
			return a.db.Sessions().Sweep(ctx, keepSessions, limit)
		},
		a.db.Revocations().Sweep,
		a.db.Instances().Sweep,
		func(ctx context.Context, limit int) (int, error) { return a.db.Audit().Prune(ctx, keepAudit, limit) })
}

func sweeping(ctx context.Context, logger *slog.Logger, sweeps ...sweep) error {
	timer := time.NewTimer(sweepEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		next := sweepEvery
		var failed error
		for _, s := range sweeps {
			n, err := s(ctx, sweepRows)
			if failed = errors.Join(failed, err); n >= sweepRows {
				next = sweepSoon
			}
		}
		if failed != nil {
			next = sweepEvery
			if ctx.Err() == nil {
				logger.Warn("cleaning failed; it is tried again", "error", failed)
			}
		}
		timer.Reset(next)
	}
}
