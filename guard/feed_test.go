package guard_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

type (
	event = *authsvcv1.WatchTrustResponse
	watch = grpc.ServerStreamingServer[authsvcv1.WatchTrustResponse]
)

// keySet is a JWK Set in which our key stands under each kid.
func keySet(kids ...string) []byte {
	var all []string
	for _, kid := range kids {
		all = append(all, fmt.Sprintf(`{"kty":"RSA","kid":%q,"n":%q,"e":%q}`,
			kid, encode(key().N.Bytes()), encode(big.NewInt(int64(key().E)).Bytes())))
	}
	return []byte(`{"keys":[` + strings.Join(all, ",") + `]}`)
}

func entry(kind verify.Kind, id string) *authsvcv1.Revocation {
	target := verify.TargetOf("https://auth.example", kind, id)
	return &authsvcv1.Revocation{Target: target[:]}
}

func part(jwks []byte, cursor string, entries ...*authsvcv1.Revocation) event {
	return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Snapshot{
		Snapshot: &authsvcv1.TrustSnapshot{Jwks: jwks, Cursor: cursor, Revocations: entries}}}
}

func change(after, cursor string, jwks []byte, entries ...*authsvcv1.Revocation) event {
	return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Delta{
		Delta: &authsvcv1.TrustDelta{After: after, Cursor: cursor, Jwks: jwks, Revocations: entries}}}
}

func beat(cursor string, elapsed, lag time.Duration) event {
	return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Heartbeat{Heartbeat: &authsvcv1.TrustHeartbeat{
		Cursor: cursor, Elapsed: durationpb.New(elapsed), Lag: durationpb.New(lag), ServerTime: timestamppb.Now()}}}
}

// peer is a server whose every word is the test's.
type peer struct {
	authsvcv1.UnimplementedTrustServiceServer
	script func(p *peer, call int, s watch) error

	mu      sync.Mutex
	more    chan event // for the script, of the bubble
	cursors []string   // what each call asked for
	auth    []string
}

func (p *peer) WatchTrust(r *authsvcv1.WatchTrustRequest, s watch) error {
	p.mu.Lock()
	p.cursors = append(p.cursors, r.GetCursor())
	p.auth = metadata.ValueFromIncomingContext(s.Context(), "authorization")
	call := len(p.cursors)
	p.mu.Unlock()
	return p.script(p, call, s)
}

func (p *peer) asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.cursors)
}

// say sends events one after the other.
func say(s watch, events ...event) error {
	for _, e := range events {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	return nil
}

// tick sends a heartbeat each second, until the stream ends.
func tick(s watch, cursor string, lag func(elapsed time.Duration) time.Duration) error {
	began := time.Now()
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		elapsed := time.Since(began)
		if err := s.Send(beat(cursor, elapsed, lag(elapsed))); err != nil {
			return err
		}
		select {
		case <-s.Context().Done():
			return s.Context().Err()
		case <-ticker.C:
		}
	}
}

func noLag(time.Duration) time.Duration { return 0 }

// serveFrom is a good stream from a cursor on: a whole snapshot, and heartbeats.
func serveFrom(s watch, cursor string, entries ...*authsvcv1.Revocation) error {
	if err := say(s, part(keySet("key-1"), cursor, entries...)); err != nil {
		return err
	}
	return tick(s, cursor, noLag)
}

// world is a feed that follows a peer over a connection in memory, within a bubble of testing/synctest.
type world struct {
	*guard.Feed
	*peer
	verifier *verify.Verifier
	log      *bytes.Buffer
	gate     atomic.Pointer[chan struct{}] // stands between the connection and its reader; nil: open
}

// within runs body in a bubble with a feed that runs against the script.
func within(t *testing.T, script func(p *peer, call int, s watch) error, body func(t *testing.T, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{peer: &peer{script: script, more: make(chan event)}, log: &bytes.Buffer{}}
		listener, server := bufconn.Listen(1<<20), grpc.NewServer(grpc.WaitForHandlers(true))
		authsvcv1.RegisterTrustServiceServer(server, w.peer)
		var running sync.WaitGroup
		running.Go(func() { _ = server.Serve(listener) })
		var err error
		w.Feed, err = guard.NewFeed(guard.FeedOptions{
			Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "s3cret:%",
			Logger: slog.New(slog.NewTextHandler(w.log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		w.DialWith(func(ctx context.Context, _ string) (net.Conn, error) {
			conn, err := listener.DialContext(ctx)
			return stoppable{conn, w}, err
		})
		w.verifier, err = verify.New(verify.Options{
			Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: w.Feed, Revocations: w.Feed,
			Now: func() time.Time { return time.Unix(issued+60, 0) },
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		running.Go(func() {
			if err := w.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("Run gave %v", err)
			}
		})
		body(t, w)
		stop()
		server.Stop()
		running.Wait()
		if strings.Contains(w.log.String(), "s3cret") {
			t.Errorf("the log tells the secret: %s", w.log)
		}
	})
}

// says is what Verify answers for a token with these claims changed.
func (w *world) says(t *testing.T, change map[string]any) error {
	t.Helper()
	_, err := w.verifier.Verify(t.Context(), token(change))
	return err
}

// want compares what Verify answers.
func (w *world) want(t *testing.T, when string, change map[string]any, want error) {
	t.Helper()
	if err := w.says(t, change); !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", when, err, want)
	}
}

func TestFeedFollowsTheServer(t *testing.T) {
	t.Parallel()
	within(t, func(p *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "", entry(verify.KindToken, "dead")), part(nil, "c1"), beat("c1", 0, 0)); err != nil {
			return err
		}
		for e := range p.more {
			if err := s.Send(e); err != nil {
				return err
			}
		}
		return nil
	}, func(t *testing.T, w *world) {
		defer close(w.more)
		w.want(t, "R32 before anything came", nil, verify.ErrNotReady)
		if _, err := w.Key(t.Context(), "key-1"); !errors.Is(err, verify.ErrNotReady) {
			t.Errorf("R32 a key before anything came: %v", err)
		}
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		w.want(t, "after the snapshot", nil, nil)
		w.want(t, "an entry of the first part", map[string]any{"jti": "dead"}, verify.ErrRevoked)
		tell := func(e event) { w.more <- e; synctest.Wait() }
		tell(change("c1", "c2", nil, entry(verify.KindSession, "sess")))
		w.want(t, "J29 a token that was found good, after its session's end", nil, verify.ErrRevoked)
		w.want(t, "another session's", map[string]any{"sid": "other"}, nil)
		tell(change("c2", "c2", keySet("key-1", "key-2")))
		if _, err := w.Key(t.Context(), "key-2"); err != nil {
			t.Errorf("a key that was added: %v", err)
		}
		tell(change("c2", "c3", nil, entry(verify.KindKey, "key-2")))
		if _, err := w.Key(t.Context(), "key-2"); !errors.Is(err, verify.ErrKeyUnknown) {
			t.Errorf("J28 a key that is listed: %v", err)
		}
		tell(change("c3", "c3", keySet("key-1", "key-2", "key-3")))
		if _, err := w.Key(t.Context(), "key-2"); !errors.Is(err, verify.ErrKeyUnknown) {
			t.Errorf("J28 a listed key that a newer set still has: %v", err)
		}
		tell(change("c3", "c4", keySet("key-3")))
		w.want(t, "J28 a key that was withdrawn", map[string]any{"sid": "other"}, verify.ErrKeyUnknown)
		if s := w.Status(); !s.Ready || s.Cursor != "c4" || s.Applied != 3 || s.Live != 3 {
			t.Errorf("status %+v", s)
		}
		if len(w.asked()) != 1 {
			t.Errorf("the stream was begun %d times", len(w.asked()))
		}
		if want := "Basic c3ZjOnMzY3JldCUzQSUyNQ=="; !slices.Equal(w.auth, []string{want}) { // svc:s3cret%3A%25
			t.Errorf("authorization %q", w.auth)
		}
	})
}

// TestWhatBreaksAFeed sends bad input after a whole snapshot. The stream is given up, nothing of the bad message counts, what
// counted before goes on, and all is asked for anew; the twin, the same without its fault, is taken.
func TestWhatBreaksAFeed(t *testing.T) {
	t.Parallel()
	dead := entry(verify.KindToken, "dead")
	short, past, early := entry(verify.KindToken, "x"), entry(verify.KindToken, "x"), entry(verify.KindToken, "x")
	short.Target, past.ExpireTime, early.NotBefore = short.Target[:15], -1, -1
	long := entry(verify.KindToken, "x")
	long.Target = append(slices.Clone(long.Target), 0)
	for name, c := range map[string]struct {
		bad  []event
		twin []event
	}{
		"a gap":                       {[]event{change("c2", "c3", nil, dead)}, []event{change("c1", "c3", nil, dead)}},
		"a duplicate":                 {[]event{change("c1", "c2", nil), change("c1", "c2", nil, dead)}, []event{change("c1", "c2", nil), change("c2", "c3", nil, dead)}},
		"two in the wrong order":      {[]event{change("c2", "c3", nil, dead), change("c1", "c2", nil)}, []event{change("c1", "c2", nil), change("c2", "c3", nil, dead)}},
		"a change of another epoch":   {[]event{change("z1", "z2", nil, dead)}, []event{change("c1", "z2", nil, dead)}},
		"a change without a cursor":   {[]event{change("c1", "", nil, dead)}, []event{change("c1", "c2", nil, dead)}},
		"an event that is not known":  {[]event{{}}, []event{change("c1", "c2", nil, dead)}},
		"a target of 15 bytes":        {[]event{change("c1", "c2", nil, dead, short)}, []event{change("c1", "c2", nil, dead, entry(verify.KindToken, "x"))}},
		"a target of 17 bytes":        {[]event{change("c1", "c2", nil, dead, long)}, []event{change("c1", "c2", nil, dead)}},
		"a negative expiry":           {[]event{change("c1", "c2", nil, dead, past)}, []event{change("c1", "c2", nil, dead)}},
		"a negative cut-off":          {[]event{change("c1", "c2", nil, dead, early)}, []event{change("c1", "c2", nil, dead)}},
		"J27 a key set that is HTML":  {[]event{change("c1", "c2", []byte("<html>"), dead)}, []event{change("c1", "c2", keySet("key-1", "key-9"), dead)}},
		"J27 a key set without keys":  {[]event{change("c1", "c2", keySet(), dead)}, []event{change("c1", "c2", keySet("key-1"), dead)}},
		"a second snapshot":           {[]event{part(keySet("key-1"), "c2", dead)}, []event{change("c1", "c2", keySet("key-1"), dead)}},
		"a heartbeat of elsewhere":    {[]event{beat("c0", 0, 0)}, []event{beat("c1", 0, 0), change("c1", "c2", nil, dead)}},
		"a heartbeat without times":   {[]event{{Event: &authsvcv1.WatchTrustResponse_Heartbeat{Heartbeat: &authsvcv1.TrustHeartbeat{Cursor: "c1"}}}}, []event{beat("c1", 0, 0), change("c1", "c2", nil, dead)}},
		"a heartbeat from the future": {[]event{beat("c1", -time.Second, 0)}, []event{beat("c1", time.Hour, 0), change("c1", "c2", nil, dead)}},
		"a heartbeat of negative lag": {[]event{beat("c1", 0, -time.Hour)}, []event{beat("c1", 0, time.Hour), change("c1", "c2", nil, dead)}},
	} {
		run := func(t *testing.T, events []event, calls int, want error) {
			t.Parallel()
			within(t, func(p *peer, call int, s watch) error {
				if call > 1 {
					<-p.more
					return serveFrom(s, "d1", dead)
				}
				if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
					return err
				}
				if err := say(s, events...); err != nil {
					return err
				}
				<-s.Context().Done()
				return s.Context().Err()
			}, func(t *testing.T, w *world) {
				if err := w.Ready(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(firstWindow) // of the bubble's clock
				synctest.Wait()
				w.want(t, "what counted before", nil, nil)
				w.want(t, "an entry of the message", map[string]any{"jti": "dead"}, want)
				if asked := w.asked(); len(asked) != calls || asked[len(asked)-1] != "" {
					t.Errorf("asked for %q", asked)
				}
				close(w.more)
				if calls > 1 {
					synctest.Wait()
					w.want(t, "an entry of the new snapshot", map[string]any{"jti": "dead"}, verify.ErrRevoked)
				}
			})
		}
		t.Run(name, func(t *testing.T) { run(t, c.bad, 2, nil) })
		t.Run(name+": the twin", func(t *testing.T) { run(t, c.twin, 1, verify.ErrRevoked) })
	}
}

const firstWindow = 500 * time.Millisecond

// TestR32WhatIsNoWholeSnapshot begins streams that never say all: nothing is let through on their word.
func TestR32WhatIsNoWholeSnapshot(t *testing.T) {
	t.Parallel()
	keys := keySet("key-1")
	for name, c := range map[string]struct {
		events []event
		calls  int // within the first five seconds: 1 where there is only more to wait for
		want   error
	}{
		"nothing":                             {nil, 1, verify.ErrNotReady},
		"a part":                              {[]event{part(keys, "")}, 1, verify.ErrNotReady},
		"a part and heartbeats":               {[]event{part(keys, ""), beat("", 0, 0), beat("c1", time.Second, 0)}, 1, verify.ErrNotReady},
		"a heartbeat alone":                   {[]event{beat("c1", 0, 0)}, 1, verify.ErrNotReady},
		"a heartbeat before the snapshot":     {[]event{beat("c1", 0, 0), part(keys, "c1")}, 1, verify.ErrNotReady},
		"a snapshot without a date":           {[]event{part(keys, "c1")}, 1, verify.ErrNotReady},
		"a snapshot of long ago":              {[]event{part(keys, "c1"), beat("c1", 0, guard.MaxAge+time.Second)}, 1, verify.ErrNotReady},
		"a server that has read nothing yet":  {[]event{part(keys, "c1"), beat("c1", 0, 1<<63-1)}, 1, verify.ErrNotReady},
		"a change without a snapshot":         {[]event{change("", "c1", keys), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"a snapshot without keys":             {[]event{part(nil, "c1"), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"a snapshot with keys that are none":  {[]event{part([]byte("{}"), "c1"), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"keys in the second part":             {[]event{part(keys, ""), part(keys, "c1"), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"a bad entry in the last part":        {[]event{part(keys, ""), part(nil, "c1", &authsvcv1.Revocation{}), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"the twin: a snapshot in one part":    {[]event{part(keys, "c1"), beat("c1", 0, 0)}, 1, nil},
		"the twin: a snapshot in three parts": {[]event{part(keys, ""), part(nil, ""), part(nil, "c1"), beat("c1", 0, 0)}, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			within(t, func(_ *peer, call int, s watch) error {
				if call == 1 {
					if err := say(s, c.events...); err != nil {
						return err
					}
				}
				<-s.Context().Done()
				return s.Context().Err()
			}, func(t *testing.T, w *world) {
				time.Sleep(5 * time.Second)
				synctest.Wait()
				w.want(t, name, nil, c.want)
				if asked := w.asked(); len(asked) != c.calls {
					t.Errorf("asked for %q", asked)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := w.Ready(ctx); (err == nil) != (c.want == nil) || err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Ready gave %v", err)
				}
			})
		})
	}
}

func TestASnapshotThatNeverEndsIsGivenUp(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, call int, s watch) error {
		if call > 1 {
			return serveFrom(s, "c1")
		}
		jwks := keySet("key-1")
		for i := 0; ; i++ {
			if err := s.Send(part(jwks, "", entry(verify.KindToken, fmt.Sprint(i)))); err != nil {
				return err
			}
			jwks = nil
			time.Sleep(time.Second)
		}
	}, func(t *testing.T, w *world) {
		time.Sleep(110 * time.Second)
		w.want(t, "while it goes on", nil, verify.ErrNotReady)
		time.Sleep(20 * time.Second)
		w.want(t, "the next stream", nil, nil)
		w.want(t, "an entry of the endless one", map[string]any{"jti": "1"}, nil)
		if !strings.Contains(w.log.String(), "the snapshot took too long") {
			t.Errorf("the log: %s", w.log)
		}
	})
}

// TestP02AFeedThatIsCutOff loses the server for good: what is known serves for MaxAge, and not a moment longer.
func TestP02AFeedThatIsCutOff(t *testing.T) {
	t.Parallel()
	up := true
	var mu sync.Mutex
	within(t, func(_ *peer, _ int, s watch) error {
		mu.Lock()
		defer mu.Unlock()
		if !up {
			return status.Error(codes.Unavailable, "away")
		}
		if err := say(s, part(keySet("key-1"), "c1", entry(verify.KindToken, "dead")), beat("c1", 0, 0)); err != nil {
			return err
		}
		up = false
		return status.Error(codes.Unavailable, "going away")
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, after := range []time.Duration{0, 4 * time.Second, 56 * time.Second} {
			time.Sleep(after)
			w.want(t, "within the limit", nil, nil)
		}
		time.Sleep(time.Nanosecond)
		w.want(t, "beyond the limit", nil, verify.ErrNotReady)
		w.want(t, "beyond the limit a revoked token is still revoked", map[string]any{"jti": "dead"}, verify.ErrRevoked)
		if _, err := w.Key(t.Context(), "key-1"); err != nil {
			t.Errorf("R32 the last good keys: %v", err)
		}
		if s := w.Status(); s.Ready || s.Age != guard.MaxAge+1 {
			t.Errorf("status %+v", s)
		}
		time.Sleep(9 * time.Minute)
		w.want(t, "ten minutes later", nil, verify.ErrNotReady)
		asked := w.asked()
		if n := len(asked); n < 120 || n > 500 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		for _, cursor := range asked[1:] {
			if cursor != "c1" {
				t.Fatalf("asked for %q", asked)
			}
		}
		mu.Lock()
		up = true
		mu.Unlock()
		time.Sleep(6 * time.Second)
		w.want(t, "when it is back", nil, nil)
	})
}

// TestADatabaseThatIsGone lets the server's heart beat on while its own knowledge gets old.
func TestADatabaseThatIsGone(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1")); err != nil {
			return err
		}
		return tick(s, "c1", func(elapsed time.Duration) time.Duration { return max(0, elapsed-10*time.Second) })
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*time.Second + guard.MaxAge)
		w.want(t, "as long as the last read is young enough", nil, nil)
		time.Sleep(2 * time.Second)
		w.want(t, "beyond that", nil, verify.ErrNotReady)
		if len(w.asked()) != 1 {
			t.Errorf("asked for %q", w.asked())
		}
	})
}

// stoppable is a connection that hands on nothing while the process is stopped; what is sent waits.
type stoppable struct {
	net.Conn
	w *world
}

func (c stoppable) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if gate := c.w.gate.Load(); gate != nil {
		<-*gate
	}
	return n, err
}

// TestAVerifierThatWasStopped stops the reader while the server writes on and then dies. What waited is read after that, and
// says nothing about now.
func TestAVerifierThatWasStopped(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
			return err
		}
		for second := 1; second <= 5; second++ {
			time.Sleep(time.Second)
			if err := s.Send(beat("c1", time.Duration(second)*time.Second, 0)); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return s.Context().Err()
	}, func(t *testing.T, w *world) {
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		stop := make(chan struct{})
		w.gate.Store(&stop)
		time.Sleep(7500 * time.Millisecond)
		if age := w.Status().Age; age != 8*time.Second {
			t.Fatalf("while it is stopped: age %s", age)
		}
		w.gate.Store(nil)
		close(stop)
		synctest.Wait()
		if age := w.Status().Age; age != 4*time.Second { // the last heartbeat was of second 5, and this is second 9
			t.Errorf("after it goes on: age %s", age)
		}
	})
}

// TestHeartbeatsThatWaitedAreOld delivers heartbeats ever later: what is read is dated by when it was written, however soon after
// its reading the knowledge is asked for.
func TestHeartbeatsThatWaitedAreOld(t *testing.T) {
	t.Parallel()
	within(t, func(p *peer, _ int, s watch) error {
		for e := range p.more {
			if err := s.Send(e); err != nil {
				return err
			}
		}
		return nil
	}, func(t *testing.T, w *world) {
		defer close(w.more)
		w.more <- part(keySet("key-1"), "c1")
		for second := range 8 { // each waited nine seconds longer than the one before
			w.more <- beat("c1", time.Duration(second)*time.Second, 0)
			synctest.Wait()
			if want := time.Duration(second) * 8 * time.Second; w.Status().Age != want {
				t.Fatalf("the heartbeat of second %d, read in second %d: age %s", second, 9*second, w.Status().Age)
			}
			if second < 7 {
				w.want(t, "while it is young", nil, nil)
				time.Sleep(9 * time.Second)
			}
		}
		time.Sleep(guard.MaxAge - 56*time.Second + 1)
		w.want(t, "beyond the limit, a moment after a heartbeat", nil, verify.ErrNotReady)
		w.more <- beat("c1", 3*time.Second, 0)
		synctest.Wait()
		if age := w.Status().Age; age != guard.MaxAge+1 {
			t.Errorf("an older heartbeat moved the date: age %s", age)
		}
		w.more <- beat("c1", 67*time.Second, 0)
		synctest.Wait()
		w.want(t, "the twin: a heartbeat of now", nil, nil)
	})
}

// TestAServerAheadOfUs tells a longer time than has passed.
func TestAServerAheadOfUs(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1"), beat("c1", time.Hour, 0)); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if age := w.Status().Age; age != 0 {
			t.Errorf("age %s", age)
		}
	})
}

func TestAStreamThatStallsIsBegunAnew(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, call int, s watch) error {
		if call == 1 {
			if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		}
		return serveFrom(s, "c2", entry(verify.KindToken, "dead"))
	}, func(t *testing.T, w *world) {
		time.Sleep(12 * time.Second)
		w.want(t, "the next stream's entry", map[string]any{"jti": "dead"}, verify.ErrRevoked)
		w.want(t, "the keys", nil, nil)
		if asked := w.asked(); !slices.Equal(asked, []string{"", "c1"}) {
			t.Errorf("asked for %q", asked)
		}
	})
}

// TestAnotherEpoch answers a cursor with the whole snapshot of another history: it is merged, and nothing is forgotten.
func TestAnotherEpoch(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, call int, s watch) error {
		if call == 1 {
			if err := say(s, part(keySet("key-1"), "epoch1-5", entry(verify.KindToken, "one")), beat("epoch1-5", 0, 0)); err != nil {
				return err
			}
			return status.Error(codes.Unavailable, "restored from a copy")
		}
		return serveFrom(s, "epoch2-5", entry(verify.KindToken, "two"))
	}, func(t *testing.T, w *world) {
		time.Sleep(2 * time.Second)
		for _, jti := range []string{"one", "two"} {
			w.want(t, jti, map[string]any{"jti": jti}, verify.ErrRevoked)
		}
		w.want(t, "the twin: neither", nil, nil)
		if s := w.Status(); s.Cursor != "epoch2-5" {
			t.Errorf("status %+v", s)
		}
	})
}

// TestAnOldStreamIsBegunAnew bounds how far two clocks run apart.
func TestAnOldStreamIsBegunAnew(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error { return serveFrom(s, "c1") }, func(t *testing.T, w *world) {
		for range 61 {
			time.Sleep(time.Minute)
			w.want(t, "at all times", nil, nil)
		}
		if asked := w.asked(); !slices.Equal(asked, []string{"", "c1"}) {
			t.Errorf("asked for %q", asked)
		}
		if strings.Contains(w.log.String(), "WARN") {
			t.Errorf("it is logged as a fault: %s", w.log)
		}
	})
}

// TestEntriesLeaveOnceBothClocksSaySo sweeps. The server's clock stands an hour behind ours at first.
func TestEntriesLeaveOnceBothClocksSaySo(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		soon := entry(verify.KindToken, "soon")
		soon.ExpireTime = time.Now().Unix() + 30
		if err := say(s, part(keySet("key-1"), "c1", soon)); err != nil {
			return err
		}
		for second := range 300 {
			b := beat("c1", time.Duration(second)*time.Second, 0)
			if second < 150 {
				b.GetHeartbeat().ServerTime.Seconds -= 3600
			}
			if err := s.Send(b); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
		return nil
	}, func(t *testing.T, w *world) {
		time.Sleep(130 * time.Second)
		if n := w.Status().Live; n != 1 {
			t.Errorf("by one clock alone the list has %d entries", n)
		}
		time.Sleep(60 * time.Second)
		if n := w.Status().Live; n != 0 {
			t.Errorf("by both clocks the list has %d entries", n)
		}
	})
}

func TestASnapshotOfAMillionEntries(t *testing.T) {
	t.Parallel()
	const parts, each = 100, 10_000 // about 300 KiB each
	within(t, func(_ *peer, _ int, s watch) error {
		for p := range parts {
			var entries []*authsvcv1.Revocation
			for i := range each {
				entries = append(entries, entry(verify.KindToken, fmt.Sprint("dead-", p*each+i)))
			}
			jwks, cursor := []byte(nil), ""
			if p == 0 {
				jwks = keySet("key-1")
			}
			if p == parts-1 {
				cursor = "c1"
			}
			if err := s.Send(part(jwks, cursor, entries...)); err != nil {
				return err
			}
		}
		return tick(s, "c1", noLag)
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{0, each, parts*each - 1} {
			w.want(t, "one of them", map[string]any{"jti": fmt.Sprint("dead-", i)}, verify.ErrRevoked)
		}
		w.want(t, "the twin", nil, nil)
		if s := w.Status(); s.Live != parts*each {
			t.Errorf("status %+v", s)
		}
	})
}

func TestFeedCostsNoAllocation(t *testing.T) { //nolint:paralleltest // AllocsPerRun
	within(t, func(_ *peer, _ int, s watch) error { return serveFrom(s, "c1", entry(verify.KindToken, "dead")) }, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, subject := t.Context(), &verify.Subject{HasSession: true}
		if n := testing.AllocsPerRun(100, func() {
			if w.Check(subject) != nil {
				t.Error("Check refused")
			}
			if _, err := w.Key(ctx, "key-1"); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func TestReadyTellsWhyNot(t *testing.T) {
	t.Parallel()
	within(t, func(*peer, int, watch) error {
		return status.Error(codes.PermissionDenied, "the scope authsvc.trust is missing")
	}, func(t *testing.T, w *world) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := w.Ready(ctx); err == nil || !strings.Contains(err.Error(), "authsvc.trust") || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Ready gave %v", err)
		}
		if n := strings.Count(w.log.String(), "WARN"); n != 1 {
			t.Errorf("one fault is logged %d times", n)
		}
		if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "runs already") {
			t.Errorf("a second Run gave %v", err)
		}
	})
}

func TestWhatAFeedIsMadeOf(t *testing.T) {
	t.Parallel()
	good := guard.FeedOptions{Target: "auth.example:9090", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "secret"}
	for name, c := range map[string]struct {
		change func(*guard.FeedOptions)
		want   string
	}{
		"all that is needed":      {func(*guard.FeedOptions) {}, ""},
		"its own TLS":             {func(o *guard.FeedOptions) { o.TLS = &tls.Config{MinVersion: tls.VersionTLS13} }, ""},
		"no TLS, and says so":     {func(o *guard.FeedOptions) { o.Insecure = true }, ""},
		"a loopback address":      {func(o *guard.FeedOptions) { o.Target = "[::1]:9090" }, ""},
		"no target":               {func(o *guard.FeedOptions) { o.Target = "" }, "Target"},
		"a target without a port": {func(o *guard.FeedOptions) { o.Target = "auth.example" }, "Target"},
		"a target with a scheme":  {func(o *guard.FeedOptions) { o.Target = "dns:///auth.example:9090" }, "Target"},
		"no issuer":               {func(o *guard.FeedOptions) { o.Issuer = "" }, "Issuer"},
		"no client":               {func(o *guard.FeedOptions) { o.ClientID = "" }, "ClientID"},
		"no secret":               {func(o *guard.FeedOptions) { o.ClientSecret = "" }, "ClientSecret"},
		"TLS and none":            {func(o *guard.FeedOptions) { o.Insecure, o.TLS = true, &tls.Config{MinVersion: tls.VersionTLS13} }, "Insecure"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := good
			c.change(&o)
			_, err := guard.NewFeed(o)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
