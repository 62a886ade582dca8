package rpc_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/test/bufconn"

	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/server/rpc"
	"github.com/authsvc/authsvc/internal/service"
)

// narrow is a connection within a bubble whose streams take no more than 64 KiB that nobody has read, and the number of
// connections that the server holds.
func narrow(t *testing.T, server *grpc.Server) (*grpc.ClientConn, *atomic.Int64) {
	t.Helper()
	l, open := bufconn.Listen(1<<20), &atomic.Int64{}
	go server.Serve(counted{l, open})
	t.Cleanup(server.Stop)
	conn := must(grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<20),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })))(t)
	t.Cleanup(func() { conn.Close() })
	return conn, open
}

// manyEntries are more than a narrow connection takes unread.
const manyEntries = 25_000

func TestP06AWatcherThatNeverReadsItsSnapshotLosesItsPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, p := written(t, func(o *rpc.HubOptions) {
			o.Every, o.Beat, o.Start, o.MaxPerClient = time.Second, time.Second, 10*time.Second, 1
		})
		p.add(manyEntries)
		server := rpc.NewServer(nil)
		s.door.Register(server)
		conn, _ := narrow(t, server)
		ctx := with(t, basicOf("rs", s.secret))
		stalled := watchOn(ctx, t, conn, "")
		time.Sleep(9 * time.Second) // of the bubble's clock
		if n := s.feed.Stats().Watchers; n != 1 {
			t.Fatalf("%d watch", n)
		}
		time.Sleep(2 * time.Second)
		if n := s.feed.Stats().Watchers; n != 0 {
			t.Fatalf("%d watch after the time for the start", n)
		}
		if code, reason := stalled.ends(t); code != codes.Unavailable || reason != "FEED_LAGGING" || stalled.whole {
			t.Errorf("it ends with %v %s; it has all: %v", code, reason, stalled.whole)
		}
		twin := watchOn(ctx, t, conn, "") // it reads, and outlives the time for the start
		twin.until(t, func() bool { return len(twin.beats) > 20 })
	})
}

func TestP12CredentialsThatEndDuringTheSnapshotEndTheStream(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		ends bool
	}{{"the token is revoked", true}, {"the twin: it is not", false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, p := written(t, func(o *rpc.HubOptions) { o.Beat = time.Millisecond })
			p.add(200_000)
			token := s.service(t, "authsvc.trust")
			w := watchOn(with(t, "Bearer "+token), t, s.dial(t, grpc.WithStaticStreamWindowSize(64<<10)), "")
			w.until(t, func() bool { return w.parts == 1 })
			if !tt.ends {
				w.until(t, func() bool { return w.whole })
				return
			}
			must(s.tokens.Revoke(t.Context(), service.RevokeRequest{Token: token, Client: service.ClientAuth{Presented: true, ID: "rs", Secret: s.secret}}))(t)
			if code, reason := w.ends(t); code != codes.Unauthenticated || reason != "TOKEN_REVOKED" || w.whole {
				t.Errorf("it ends with %v %s; it has all: %v", code, reason, w.whole)
			}
		})
	}
}

// TestP06StalledWatchersHoldFewSnapshots has each watcher come to another state of the log, a while after the one before.
func TestP06StalledWatchersHoldFewSnapshots(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, p := written(t, func(o *rpc.HubOptions) { o.Every, o.Beat = 100*time.Millisecond, time.Second })
		p.add(manyEntries)
		server := rpc.NewServer(nil)
		s.door.Register(server)
		conn, _ := narrow(t, server)
		ctx := with(t, basicOf("rs", s.secret))
		const stalled = 12
		for i := range stalled {
			watchOn(ctx, t, conn, "")
			time.Sleep(1100 * time.Millisecond) // of the bubble's clock
			p.add(1)
			if got := s.feed.Stats(); got.Watchers != i+1 || got.Snapshots != uint64(min(i+1, 8)) {
				t.Fatalf("after %d: %+v", i+1, got)
			}
		}
		w := watchOn(ctx, t, conn, "")
		w.until(t, w.begun)
		if len(w.targets) != manyEntries+stalled || s.feed.Stats().Snapshots != 8 {
			t.Errorf("one who reads has %d entries of %d: %+v", len(w.targets), manyEntries+stalled, s.feed.Stats())
		}
	})
}

// shut is a log that nobody can look at until it opens.
type shut struct {
	looked, open chan struct{}
}

func (l shut) View() revocation.View {
	select {
	case l.looked <- struct{}{}:
	default:
	}
	<-l.open
	return revocation.View{}
}

func (shut) Reach(context.Context, revocation.Cursor) error { return nil }

// TestALongLookHoldsUpNobodyWhoDrainsOrCounts: looking and marshalling take their time where there is much that is new.
func TestALongLookHoldsUpNobodyWhoDrainsOrCounts(t *testing.T) {
	t.Parallel()
	l := shut{make(chan struct{}, 1), make(chan struct{})}
	s := serve(t, func(o *rpc.Options) {
		o.Feed = must(rpc.NewHub(rpc.HubOptions{Log: l, Issuer: "https://auth.example", KeySet: func() []byte { return []byte("keys") }}))(t)
	})
	w := s.seat(t, "")
	<-l.looked
	done := make(chan int, 1)
	go func() {
		watchers := s.feed.Stats().Watchers
		s.feed.Drain()
		done <- watchers
	}()
	select {
	case n := <-done:
		if n != 1 {
			t.Errorf("%d watchers", n)
		}
	case <-time.After(time.Minute): // so that a test fails and does not hang
		t.Error("the hub is held up")
	}
	close(l.open)
	if code, reason := w.ends(t); code != codes.Unavailable || reason != "DRAINING" {
		t.Errorf("it ends with %v %s", code, reason)
	}
}

// counted is a listener that knows how many of its connections are open.
type counted struct {
	net.Listener
	open *atomic.Int64
}

func (l counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.open.Add(1)
	return &countedConn{Conn: c, open: l.open}, nil
}

type countedConn struct {
	net.Conn
	closed atomic.Bool
	open   *atomic.Int64
}

func (c *countedConn) Close() error {
	if !c.closed.Swap(true) {
		c.open.Add(-1)
	}
	return c.Conn.Close()
}

// chatty is a health service that says the same until nobody listens.
type chatty struct {
	healthv1.UnimplementedHealthServer
}

func (chatty) Watch(_ *healthv1.HealthCheckRequest, s grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	for {
		if err := s.Send(&healthv1.HealthCheckResponse{Status: healthv1.HealthCheckResponse_SERVING}); err != nil {
			return err
		}
	}
}

// TestR58AnAnswerThatNobodyReadsHoldsNoConnectionForGood: a stream that has ended stays open on its connection until what was
// written before its end has been read.
func TestR58AnAnswerThatNobodyReadsHoldsNoConnectionForGood(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := rpc.NewServer(nil)
		healthv1.RegisterHealthServer(server, chatty{})
		conn, open := narrow(t, server)
		must(healthv1.NewHealthClient(conn).Watch(t.Context(), &healthv1.HealthCheckRequest{}))(t)
		time.Sleep(time.Hour) // of the bubble's clock; the stream has ended at 30 minutes, and the connection takes no new ones
		if open.Load() != 1 {
			t.Errorf("%d connections", open.Load())
		}
		time.Sleep(2 * time.Hour)
		if open.Load() != 0 {
			t.Errorf("%d connections are open", open.Load())
		}
	})
}
