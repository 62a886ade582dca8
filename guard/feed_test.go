package guard_test

import (
	"bytes"
	"context"
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
	"google.golang.org/grpc/metadata"
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

// issuedBy says whose a part of a snapshot is.
func issuedBy(issuer string, e event) event {
	e.GetSnapshot().Issuer = issuer
	return e
}

// nth gives a part of a snapshot its number.
func nth(n uint32, e event) event {
	e.GetSnapshot().Part = n
	return e
}

func change(after, cursor string, jwks []byte, entries ...*authsvcv1.Revocation) event {
	return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Delta{
		Delta: &authsvcv1.TrustDelta{After: after, Cursor: cursor, Jwks: jwks, Revocations: entries}}}
}

// portion makes a change one part of a larger one.
func portion(part uint32, more bool, e event) event {
	e.GetDelta().Part, e.GetDelta().More = part, more
	return e
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

// relay sends what the test says, until it says no more.
func (p *peer) relay(s watch) error {
	for e := range p.more {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	return nil
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
	oracle   oracle                        // answers Introspect
	asks     *guard.Guard                  // that introspects
	slept    atomic.Int64                  // nanoseconds for which the machine was suspended
}

// within runs body in a bubble with a feed that runs against the script.
func within(t *testing.T, script func(p *peer, call int, s watch) error, body func(t *testing.T, w *world), change ...func(*guard.FeedOptions)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{peer: &peer{script: script, more: make(chan event)}, log: &bytes.Buffer{}}
		listener, server := bufconn.Listen(1<<20), grpc.NewServer(grpc.WaitForHandlers(true))
		authsvcv1.RegisterTrustServiceServer(server, w.peer)
		authsvcv1.RegisterAuthServiceServer(server, &w.oracle)
		var running sync.WaitGroup
		running.Go(func() { _ = server.Serve(listener) })
		var err error
		o := guard.FeedOptions{
			Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "s3cret:%",
			Logger: slog.New(slog.NewTextHandler(w.log, nil)),
		}
		for _, set := range change {
			set(&o)
		}
		if w.Feed, err = guard.NewFeed(o); err != nil {
			t.Fatal(err)
		}
		base := time.Now() // a bubble has one clock
		w.CountBy(func() (time.Duration, int64) { return time.Since(base), time.Now().UnixNano() + w.slept.Load() },
			func() time.Duration { return time.Since(base) + time.Duration(w.slept.Load()) })
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
		time.Sleep(time.Second) // there is a time before
		if err := say(s, part(keySet("key-1"), "", entry(verify.KindToken, "dead")), nth(1, part(nil, "c1")), beat("c1", 0, 0)); err != nil {
			return err
		}
		return p.relay(s)
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
