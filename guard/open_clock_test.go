package guard_test

import (
	"context"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// TestP12AClockSetBeforeTheFeedLooked: the clock of this machine is set right, or goes on after a suspension, within the second in
// which the first stream of a feed has begun.
func TestP12AClockSetBeforeTheFeedLooked(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set, after time.Duration
	}{
		"P12 it is set ahead":        {400 * time.Second, time.Second},
		"the twin, where it was not": {0, 300 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(time.Until(time.Unix(issued, 0).Add(c.set))) // so that after its setting it says what the bubble's does
				h := newHall(t)
				h.serve(t, echo, h.guard(t).StreamServerInterceptor())
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				h.DialWith(func(context.Context, string) (net.Conn, error) { return nil, errors.New("cut off") })
				go func() { _ = h.Run(ctx) }()
				dies := h.open(t, "Both", token(nil))
				dies.echoes(t, "before")
				h.step.Add(int64(c.set))
				began := time.Now()
				dies.ended(t, name, expired)
				if passed := time.Since(began); passed != c.after {
					t.Errorf("the end came after %s, want %s", passed, c.after)
				}
			})
		})
	}
}

// TestP12AVerifierWithoutTheFeedsClock judges calls by the wall clock, and its open streams end by the feed's all the same.
func TestP12AVerifierWithoutTheFeedsClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Unix(issued, 0)))
		h := newHall(t)
		v, err := verify.New(verify.Options{Issuer: "https://auth.example", AnyAudience: true, Keys: h.Feed, Revocations: h.Feed})
		if err != nil {
			t.Fatal(err)
		}
		g := newGuard(t, guard.Options{Verifier: v, Feed: h.Feed, Default: guard.Rule{Authenticated: true}})
		h.serve(t, echo, g.StreamServerInterceptor())
		dies, twin := h.open(t, "Both", token(nil)), h.open(t, "Both", token(map[string]any{"exp": issued + 900}))
		dies.echoes(t, "before")
		twin.echoes(t, "before")
		h.must(t, beatAt(0, 400)) // the server says that it is later
		dies.ended(t, "P12 by what the server says", expired)
		twin.echoes(t, "after")
		md := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token(nil)))
		if _, err := g.UnaryServerInterceptor()(md, nil, &grpc.UnaryServerInfo{FullMethod: "/t/x"},
			func(context.Context, any) (any, error) { return struct{}{}, nil }); err != nil {
			t.Errorf("a call, by the wall clock: %v", err)
		}
	})
}

// TestP12FromOneRunToTheNext: between them streams stay open; the second tells what was revoked meanwhile, and after it exp still ends
// them.
func TestP12FromOneRunToTheNext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		began := time.Now()
		listener, server := bufconn.Listen(1<<20), grpc.NewServer(grpc.WaitForHandlers(true))
		authsvcv1.RegisterTrustServiceServer(server, &peer{script: func(_ *peer, call int, s watch) error {
			if call == 1 {
				return serveFrom(s, "c1")
			}
			return serveFrom(s, "d1", entry(verify.KindSession, "sess"))
		}})
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
		h.DialWith(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) })
		h.serve(t, echo, h.guard(t).StreamServerInterceptor())
		run := func(during func()) {
			ctx, stop := context.WithCancel(t.Context())
			over := make(chan error)
			go func() { over <- h.Run(ctx) }()
			synctest.Wait()
			during()
			stop()
			if err := <-over; !errors.Is(err, context.Canceled) {
				t.Errorf("Run gave %v", err)
			}
		}
		dies, twin := h.open(t, "Both", token(nil)), h.open(t, "Both", token(map[string]any{"sid": "other"}))
		both := func(when string) {
			dies.echoes(t, when)
			twin.echoes(t, when)
		}
		both("before a Run")
		run(func() { both("in the first") })
		time.Sleep(10 * time.Second) // of the bubble's clock
		both("between the two")
		run(func() {
			dies.ended(t, "P12 in the second", guard.ReasonTokenRevoked)
			twin.echoes(t, "in the second")
		})
		twin.echoes(t, "after the second")
		twin.ended(t, "P12 after the second", expired)
		if passed := time.Since(began); passed != 300*time.Second {
			t.Errorf("ended after %s", passed)
		}
		synctest.Wait()
		if streams, targets := h.Open(); streams != 0 || targets != 0 {
			t.Errorf("%d streams are left behind, by %d targets", streams, targets)
		}
	})
}

// TestP12ARevocationWhileAStreamIsJudged is told between the list's answer and the timer's setting: where the clock is read for the last
// time, as often as for the stream before.
func TestP12ARevocationWhileAStreamIsJudged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, base, told := newHall(t), time.Now(), make(chan error, 1)
		var reads, at atomic.Int64
		h.CountBy(func() (time.Duration, int64) {
			if n := reads.Add(1); n == at.Load() {
				at.Store(0)
				go func() { told <- h.tell(change("c1", "c2", nil, entry(verify.KindSession, "sess"))) }()
				for range 1000 { // it may be held up by the judgement, so it is not waited for
					runtime.Gosched()
				}
			}
			return time.Since(base), issued*int64(time.Second) + int64(time.Since(base))
		}, func() time.Duration { return time.Since(base) })
		h.serve(t, echo, h.guard(t).StreamServerInterceptor())
		reads.Store(0)
		twin := h.open(t, "Both", token(map[string]any{"sid": "other", "jti": "other"}))
		twin.echoes(t, "before")
		at.Store(reads.Swap(0))
		dies := h.open(t, "Both", token(nil))
		dies.ended(t, "P12 in the midst of the judgement", guard.ReasonTokenRevoked)
		if err := <-told; err != nil || time.Since(base) != 0 {
			t.Errorf("P12 it took %s, and the feed says %v", time.Since(base), err)
		}
		twin.echoes(t, "after")
	})
}
