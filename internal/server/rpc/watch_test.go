package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/service"
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
	part    uint32            // of a change, that comes next
	commits map[time.Time]int // what the deltas say
	beats   []*authsvcv1.TrustHeartbeat
}

// watch opens a stream by the credentials in ctx.
func (s *served) watch(ctx context.Context, t *testing.T, cursor string) *seat {
	t.Helper()
	return watchOn(ctx, t, s.conn, cursor)
}

func watchOn(ctx context.Context, t *testing.T, conn *grpc.ClientConn, cursor string) *seat {
	t.Helper()
	ctx, stop := context.WithTimeout(ctx, 5*time.Minute) // so that a test fails and does not hang
	t.Cleanup(stop)
	return &seat{stop: stop, targets: map[verify.Target]int{}, commits: map[time.Time]int{}, stream: must(authsvcv1.NewTrustServiceClient(conn).WatchTrust(ctx,
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
		if e.Snapshot.GetPart() != uint32(w.parts) {
			t.Fatalf("the snapshot goes on with part %d after %d parts", e.Snapshot.GetPart(), w.parts)
		}
		if w.parts++; w.whole || (w.parts == 1) != (len(e.Snapshot.GetJwks()) > 0) {
			t.Fatalf("part %d of the snapshot: the key set is %d bytes, ended before: %v", w.parts, len(e.Snapshot.GetJwks()), w.whole)
		} else if w.parts == 1 {
			w.jwks = string(e.Snapshot.GetJwks())
		}
		if named := e.Snapshot.GetIssuer() == "https://auth.example"; named != (w.parts == 1) {
			t.Fatalf("part %d of the snapshot is of %q", w.parts, e.Snapshot.GetIssuer())
		}
		take(e.Snapshot.GetRevocations())
		w.cursor, w.whole = e.Snapshot.GetCursor(), e.Snapshot.GetCursor() != ""
	case *authsvcv1.WatchTrustResponse_Delta:
		if !w.whole || e.Delta.GetAfter() != w.cursor || e.Delta.GetPart() != w.part {
			t.Fatalf("a delta after %q for one who stands at %q; snapshot ended: %v", e.Delta.GetAfter(), w.cursor, w.whole)
		}
		if w.part = 0; e.Delta.GetMore() {
			w.part = e.Delta.GetPart() + 1
		}
		if e.Delta.CommitTime != nil {
			w.commits[e.Delta.GetCommitTime().AsTime()]++
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
	asked := time.Now()
	after := s.revoke(t, "after")
	w.until(t, func() bool { return w.targets[after] == 1 })
	for at := range w.commits {
		if at.Before(asked.Add(-time.Millisecond)) || at.After(time.Now()) || len(w.commits) != 1 {
			t.Errorf("it was committed at %v, the change says %v", asked, w.commits)
		}
	}
	if len(w.commits) == 0 {
		t.Error("the change does not say when it was committed")
	}
	beats := len(w.beats)
	w.until(t, func() bool { return len(w.beats) > beats })
}

// ends takes messages in until the stream ends, and gives how.
func (w *seat) ends(t *testing.T) (codes.Code, string) {
	t.Helper()
	for {
		if err := w.next(t); err != nil {
			if errors.Is(err, io.EOF) {
				t.Fatal("the stream ended as if it were over")
			}
			reason := ""
			for _, d := range status.Convert(err).Details() {
				if d, ok := d.(*errdetails.ErrorInfo); ok {
					reason = d.GetReason()
				}
			}
			return status.Code(err), reason
		}
	}
}

// await looks until something is so.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(time.Minute); !so(); {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("never: " + what)
		}
	}
}

func TestP02ACursorIsAnsweredByWhatItsHolderLacks(t *testing.T) {
	t.Parallel()
	s := serve(t, nil).run(t)
	ctx := with(t, basicOf("rs", s.secret))
	old := s.revoke(t, "old")
	if err := s.tail.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	at := s.tail.View().Cursor
	missed := s.revoke(t, "missed while it was cut off")
	if err := s.tail.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name    string
		cursor  string
		old     bool
		missed  bool
		refused bool
	}{
		{"nothing held", "", true, true, false},
		{"all but the newest held", at.String(), false, true, false},
		{"all held", revocation.Cursor{Epoch: at.Epoch, Row: at.Row + 1}.String(), false, false, false},
		{"nothing of this history held", revocation.Cursor{Epoch: at.Epoch}.String(), true, true, false},
		{"P08 ahead of the log after a fresh look", revocation.Cursor{Epoch: at.Epoch, Row: 1 << 40}.String(), true, true, false},
		{"P08 another history, at a row that this one has", revocation.Cursor{Epoch: [16]byte{1}, Row: at.Row}.String(), true, true, false},
		{"malformed", "cursor", false, false, true},
		{"a cursor and more", at.String() + "AAAA", false, false, true},
		{"a negative row", revocation.Cursor{Epoch: at.Epoch, Row: -1}.String(), false, false, true},
	} {
		w := s.watch(ctx, t, tt.cursor)
		if tt.refused {
			if code, reason := w.ends(t); code != codes.InvalidArgument || reason != "FIELD_INVALID" {
				t.Errorf("%s: %v %s", tt.name, code, reason)
			}
			continue
		}
		w.until(t, w.begun)
		if (w.targets[old] == 1) != tt.old || (w.targets[missed] == 1) != tt.missed || w.cursor != s.tail.Position() || w.jwks == "" {
			t.Errorf("%s: got the old %d times, the missed %d times, now at %s", tt.name, w.targets[old], w.targets[missed], w.cursor)
		}
		w.stop()
	}
}

// TestP02ACursorThatAnotherReplicaGaveIsNotTakenForALostHistory: this replica has not read as far yet.
func TestP02ACursorThatAnotherReplicaGaveIsNotTakenForALostHistory(t *testing.T) {
	t.Parallel()
	s := serve(t, nil) // nothing runs, so nothing is read unasked
	at := s.tail.View().Cursor
	first, second := s.revoke(t, "first"), s.revoke(t, "second")
	w := s.watch(with(t, basicOf("rs", s.secret)), t, revocation.Cursor{Epoch: at.Epoch, Row: at.Row + 1}.String())
	w.until(t, w.begun)
	if w.targets[first] != 0 || w.targets[second] != 1 {
		t.Errorf("got the first %d times and the second %d times", w.targets[first], w.targets[second])
	}
}

func TestP01P04NoRevocationIsLostToThoseWhoJoinMeanwhile(t *testing.T) {
	t.Parallel()
	s := serve(t, nil).run(t)
	ctx := with(t, basicOf("rs", s.secret))
	const writers, each, watchers = 4, 50, 50
	var all sync.WaitGroup
	for i := range writers {
		all.Go(func() {
			for k := range each {
				s.revoke(t, fmt.Sprintf("%d of %d", k, i)) // many at once: a later row may be ready before an earlier one
			}
		})
	}
	for i := range watchers {
		all.Go(func() {
			w := s.watch(ctx, t, "")
			if i%2 == 0 { // every other one leaves in the middle, and comes back with its cursor
				w.until(t, func() bool { return w.begun() && len(w.targets) >= writers })
				w.stop()
				held := w.targets
				w = s.watch(ctx, t, w.cursor)
				w.targets = held
			}
			for len(w.targets) < writers*each {
				if err := w.next(t); err != nil {
					t.Error(err)
					return
				}
			}
			for target, n := range w.targets {
				if n != 1 {
					t.Errorf("entry %x came %d times", target, n)
				}
			}
		})
	}
	all.Wait()
}

func TestP01ARevokedTokenIsDeadAtEveryWatcher(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // by the clock of a bubble, which the machine's load does not move
		s := serve(t, nil).run(t)
		const watchers, tokens = 20, 20
		var all sync.WaitGroup
		var mu sync.Mutex
		sent, waits := map[verify.Target]time.Time{}, []time.Duration(nil)
		ready := make(chan struct{}, watchers)
		for range watchers {
			all.Go(func() {
				w := s.watch(with(t, basicOf("rs", s.secret)), t, "")
				w.until(t, w.begun)
				ready <- struct{}{}
				for seen := map[verify.Target]bool{}; len(seen) < tokens; {
					if err := w.next(t); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					for target := range w.targets {
						if at, ok := sent[target]; ok && !seen[target] {
							seen[target], waits = true, append(waits, time.Since(at))
						}
					}
					mu.Unlock()
				}
				if len(w.targets) != tokens {
					t.Errorf("%d are revoked", len(w.targets))
				}
			})
		}
		for range watchers {
			<-ready
		}
		for i := range tokens {
			mu.Lock()
			sent[verify.TargetOf(issuer, verify.KindToken, fmt.Sprint("token ", i))] = time.Now()
			mu.Unlock()
			s.revoke(t, fmt.Sprint("token ", i))
			time.Sleep(7 * time.Millisecond) // of the bubble's clock
		}
		all.Wait()
		slices.Sort(waits)
		if len(waits) != watchers*tokens || waits[len(waits)-1] > 100*time.Millisecond {
			t.Fatalf("%d of %d came, the last after %v", len(waits), watchers*tokens, waits[len(waits)-1])
		}
	})
}

func TestP12AStreamEndsWithTheCredentialsThatOpenedIt(t *testing.T) {
	t.Parallel()
	token := func(s *served, t *testing.T) string {
		return must(s.tokens.ClientCredentials(t.Context(), service.ClientCredentialsRequest{ClientID: "rs", Secret: s.secret,
			Resources: []string{issuer}, Scope: "authsvc.trust"}))(t).AccessToken
	}
	operator := service.Operator(1000)
	for _, tt := range []struct {
		name   string
		bearer bool
		change func(s *served, t *testing.T, token string)
		want   string
		within time.Duration // of a client's secret: what is in memory is a second old when it is looked at
	}{
		{"the token is revoked", true, func(s *served, t *testing.T, token string) {
			must(s.tokens.Revoke(t.Context(), service.RevokeRequest{Token: token, Client: service.ClientAuth{Presented: true, ID: "rs", Secret: s.secret}}))(t)
		}, "TOKEN_REVOKED", time.Second},
		{"the token expires", true, func(s *served, _ *testing.T, _ string) { s.ahead.Store(int64(time.Hour)) }, "TOKEN_EXPIRED", time.Second},
		{"the twin: another token is revoked", true, func(s *served, t *testing.T, _ string) {
			must(s.tokens.Revoke(t.Context(), service.RevokeRequest{Token: token(s, t), Client: service.ClientAuth{Presented: true, ID: "rs", Secret: s.secret}}))(t)
		}, "", 0},
		{"the client's secret is replaced", false, func(s *served, t *testing.T, _ string) {
			must(s.admin.RotateSecret(t.Context(), operator, "rs", 0))(t)
		}, "CLIENT_INVALID", 2 * time.Second},
		{"the twin: the old secret stays valid for an hour", false, func(s *served, t *testing.T, _ string) {
			must(s.admin.RotateSecret(t.Context(), operator, "rs", time.Hour))(t)
		}, "", 0},
		{"the client is deleted", false, func(s *served, t *testing.T, _ string) {
			if err := s.admin.Delete(t.Context(), operator, "rs"); err != nil {
				t.Error(err)
			}
		}, "CLIENT_INVALID", 2 * time.Second},
		{"the twin: a secret does not expire with tokens", false, func(s *served, _ *testing.T, _ string) { s.ahead.Store(int64(time.Hour)) }, "", 0},
		{"the store goes away, so that nothing can be decided", false, func(s *served, _ *testing.T, _ string) { s.db.Close() }, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := serve(t, nil).run(t)
				authorization, bearer := basicOf("rs", s.secret), ""
				if tt.bearer {
					bearer = token(s, t)
					authorization = "Bearer " + bearer
				}
				w := s.watch(with(t, authorization), t, "")
				w.until(t, w.begun)
				tt.change(s, t, bearer)
				changed := time.Now()
				if tt.want == "" {
					w.until(t, func() bool { return len(w.beats) == 10 })
					return
				}
				if code, reason := w.ends(t); code != codes.Unauthenticated || reason != tt.want || time.Since(changed) > tt.within {
					t.Errorf("ended with %v %s after %v", code, reason, time.Since(changed))
				}
			})
		})
	}
}
