package rpc_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/verify"
)

// run tails the log and hands out the feed until the test ends.
func (s *served) run(t *testing.T) *served {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 2)
	go func() { ended <- s.tail.Run(ctx) }()
	go func() { ended <- s.feed.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended; <-ended })
	return s
}

// revoke appends the end of one token.
func (s *served) revoke(t *testing.T, jti string) verify.Target {
	t.Helper()
	if err := s.db.Revocations().Append(t.Context(), journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: jti}}}); err != nil {
		t.Fatal(err)
	}
	return verify.TargetOf(issuer, verify.KindToken, jti)
}

// seat is a watcher of the tests: it holds what the feed told it, and checks that nothing was left out.
type seat struct {
	stream  grpc.ServerStreamingClient[authsvcv1.WatchTrustResponse]
	stop    context.CancelFunc
	cursor  string
	jwks    string
	targets map[verify.Target]int
	parts   int  // of the snapshot
	whole   bool // the snapshot has ended
	deltas  int
	beats   []*authsvcv1.TrustHeartbeat
}

// watch opens a stream by the credentials in ctx.
func (s *served) watch(ctx context.Context, t *testing.T, cursor string) *seat {
	t.Helper()
	return watchOn(ctx, t, s.conn, cursor)
}

func watchOn(ctx context.Context, t *testing.T, conn *grpc.ClientConn, cursor string) *seat {
	t.Helper()
	ctx, stop := context.WithCancel(ctx)
	t.Cleanup(stop)
	return &seat{stop: stop, targets: map[verify.Target]int{}, stream: must(authsvcv1.NewTrustServiceClient(conn).WatchTrust(ctx,
		&authsvcv1.WatchTrustRequest{Cursor: cursor}))(t)}
}

// next takes one message in.
func (w *seat) next(t *testing.T) error {
	t.Helper()
	m, err := w.stream.Recv()
	if err != nil {
		return err
	}
	take := func(rs []*authsvcv1.Revocation) {
		for _, r := range rs {
			if len(r.GetTarget()) != 16 {
				t.Fatalf("a target of %d bytes", len(r.GetTarget()))
			}
			w.targets[verify.Target(r.GetTarget())]++
		}
	}
	switch e := m.GetEvent().(type) {
	case *authsvcv1.WatchTrustResponse_Snapshot:
		if w.parts++; w.whole || (w.parts == 1) != (len(e.Snapshot.GetJwks()) > 0) {
			t.Fatalf("part %d of the snapshot: the key set is %d bytes, ended before: %v", w.parts, len(e.Snapshot.GetJwks()), w.whole)
		} else if w.parts == 1 {
			w.jwks = string(e.Snapshot.GetJwks())
		}
		take(e.Snapshot.GetRevocations())
		w.cursor, w.whole = e.Snapshot.GetCursor(), e.Snapshot.GetCursor() != ""
	case *authsvcv1.WatchTrustResponse_Delta:
		if !w.whole || e.Delta.GetAfter() != w.cursor {
			t.Fatalf("a delta after %q for one who stands at %q; snapshot ended: %v", e.Delta.GetAfter(), w.cursor, w.whole)
		}
		if w.deltas++; len(e.Delta.GetJwks()) > 0 {
			w.jwks = string(e.Delta.GetJwks())
		}
		take(e.Delta.GetRevocations())
		w.cursor = e.Delta.GetCursor()
	case *authsvcv1.WatchTrustResponse_Heartbeat:
		if !w.whole || e.Heartbeat.GetCursor() != w.cursor {
			t.Fatalf("a heartbeat at %q for one who stands at %q; snapshot ended: %v", e.Heartbeat.GetCursor(), w.cursor, w.whole)
		}
		w.beats = append(w.beats, e.Heartbeat)
	default:
		t.Fatalf("an unknown event: %v", m)
	}
	return nil
}

// until takes messages in until something is so.
func (w *seat) until(t *testing.T, so func() bool) {
	t.Helper()
	for !so() {
		if err := w.next(t); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *seat) begun() bool { return len(w.beats) > 0 }

func TestAWatcherGetsAllThenWhatIsNewAndHeartbeats(t *testing.T) {
	t.Parallel()
	s := serve(t, nil).run(t)
	before := s.revoke(t, "before")
	if err := s.tail.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	w := s.watch(with(t, basicOf("rs", s.secret)), t, "")
	w.until(t, w.begun)
	keySet := must(authsvcv1.NewTrustServiceClient(s.conn).GetKeySet(t.Context(), &authsvcv1.GetKeySetRequest{}))(t)
	if w.targets[before] != 1 || w.parts != 1 || w.jwks != string(keySet.GetJwks()) || w.cursor != s.tail.Position() {
		t.Errorf("begun with %d entries in %d parts at %s, keys %s", len(w.targets), w.parts, w.cursor, w.jwks)
	}
	after := s.revoke(t, "after")
	w.until(t, func() bool { return w.targets[after] == 1 })
	beats := len(w.beats)
	w.until(t, func() bool { return len(w.beats) > beats })
}
