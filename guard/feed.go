package guard

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// The ages of a Feed's knowledge that count.
const (
	// MaxAge is the greatest at which a token still passes.
	MaxAge = 60 * time.Second
	// MaxAgeSensitive is that of a Rule that is Sensitive.
	MaxAgeSensitive = 2 * time.Second
	// StaleAge is the age past which an accept counts as stale; Options.Observe is told.
	StaleAge = 5 * time.Second
)

const (
	connectLimit  = 10 * time.Second // for one connection, its handshakes included
	silenceLimit  = 10 * time.Second // between two messages; the server sends one each second
	snapshotLimit = 2 * time.Minute  // from the call to the end of its snapshot
	snapshotMost  = 10_000_000       // entries of one snapshot, so that an endless one does not eat the memory
	messageLimit  = 16 << 20         // bytes of one message
	windowSize    = 1 << 20          // bytes on the way to us, a snapshot's for the most part
	sweepEvery    = time.Minute
	clockWarning  = 30 * time.Second       // by which the wall clock may be behind Now in silence
	firstWindow   = 500 * time.Millisecond // a reconnect comes at a random moment of its window
	lastWindow    = 5 * time.Second
	streamLife    = time.Hour              // then it is begun anew: two clocks that run apart by 100 ppm are 0.4 s apart by then
	steadyAfter   = 10 * time.Second       // a stream that lived so long makes the next window the first again
	lateLimit     = 500 * time.Millisecond // a heartbeat whose stream's clock is so far behind ours is late
	lateMost      = 10                     // late heartbeats in a row after which the stream is begun anew ...
	lateAfter     = time.Minute            // ... if it has lived so long
	neverDated    = math.MinInt64
)

// errRenew ends a stream that is old enough. It is no fault.
var errRenew = errors.New("the stream is begun anew")

// FeedOptions say where the trust feed comes from and who asks for it.
type FeedOptions struct {
	// Target is the gRPC address of authsvc, host:port. Required.
	Target string
	// Issuer is the iss of the tokens, as in verify.Options. Required.
	Issuer string
	// ClientID and ClientSecret are those of a confidential client. Required.
	ClientID     string
	ClientSecret string
	// TLS is for the connection. Nil means the system's roots, or no TLS where Target is a loopback address.
	TLS *tls.Config
	// Insecure gives up TLS for any Target. Whoever can answer in the server's place then owns this verifier, and whoever can
	// listen has the secret.
	Insecure bool
	// Logger gets a warning where the feed breaks, an error where authsvc refuses it, and a word where it is whole again; nil means
	// that nothing is logged.
	Logger *slog.Logger
	// Meter is where OpenTelemetry measures the feed, from Run's beginning to its end; docs/verify.md lists what. Nil means that nothing
	// is measured. Feeds are told apart by their issuers; of two that follow the same one, one's age would hide the other's.
	Meter metric.MeterProvider
}

// Feed keeps the issuer's keys and all live revocations in memory, as TrustService.WatchTrust tells them, so that a revocation
// counts here a moment after it was made, with no call per token. It is a verify.KeySource and a verify.RevocationSource, and is
// to be both of one Verifier, and its clock: keys alone know nothing of revocations.
//
// The feed knows how old its knowledge is. For each token that it lets pass with an age a, no revocation that hits it was
// committed earlier than a before; beyond MaxAge Check answers verify.ErrStale, before the first whole snapshot
// verify.ErrNotReady.
type Feed struct {
	o     FeedOptions
	dial  []grpc.DialOption
	clock *clock // what all times below are counted by

	list    *verify.List
	keys    atomic.Pointer[verify.Static] // nil before the first whole snapshot
	date    atomic.Int64                  // nanoseconds of clock that the knowledge is complete up to; neverDated before
	server  atomic.Int64                  // the latest wall clock of the server that a dated heartbeat told, Unix seconds
	lag     atomic.Int64                  // nanoseconds of the last heartbeat's, by the server's word
	applied atomic.Uint64
	breaks  atomic.Uint64
	meter   *feedMeter
	running atomic.Bool
	ready   chan struct{} // closed once Check lets tokens pass
	open    openStreams   // that guards let in and that have not ended

	introspector *introspector

	mu     sync.Mutex
	jwks   string // what keys was read from
	cursor string // newest applied
	fault  error  // why the last stream ended
}

// FeedStatus says how a feed stands.
type FeedStatus struct {
	Ready   bool          // whether Check judges tokens at the moment
	Age     time.Duration // of the knowledge; the greatest Duration before there is any
	Cursor  string        // the newest place in the server's log that was applied; empty before the first, and while all is asked for anew
	Applied uint64        // entries that were applied, repeated ones included
	Live    int           // revocations in memory
}

// NewFeed makes a feed, or says which option is missing or unsafe. It connects to nothing: that is Run's part.
func NewFeed(o FeedOptions) (*Feed, error) {
	dial, err := o.dial()
	if err != nil {
		return nil, err
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.ClientSecret = "" // it is in dial, where fmt does not print it
	list, err := verify.NewList(verify.ListOptions{})
	if err != nil {
		return nil, err
	}
	meter, err := newFeedMeter(o.Meter, o.Issuer)
	if err != nil {
		return nil, fmt.Errorf("guard: FeedOptions.Meter: %w", err)
	}
	f := &Feed{o: o, dial: dial, clock: systemClock(), meter: meter, list: list, ready: make(chan struct{})}
	f.introspector = &introspector{feed: f}
	f.date.Store(neverDated)
	return f, nil
}

// Run follows the feed until ctx ends, and gives its error. It outlives every fault: it connects again, at a random moment
// within half a second at first and within 5 s later, and goes on where it stood or asks for all anew. A feed has one Run at a
// time.
func (f *Feed) Run(ctx context.Context) error {
	if !f.running.CompareAndSwap(false, true) {
		return errors.New("guard: the feed runs already")
	}
	defer f.running.Store(false)
	defer f.meter.register(ctx, f)()
	var sweeper sync.WaitGroup
	defer sweeper.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sweeper.Go(func() { f.sweep(ctx) })
	f.introspector.open(ctx)
	defer f.introspector.close()
	sweeper.Go(func() { f.followClock(ctx) })
	window := firstWindow
	for {
		began := f.now()
		err := f.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, errRenew) {
			continue
		}
		f.broke(ctx, err)
		if f.now()-began >= steadyAfter {
			window = firstWindow
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rand.N(window)):
		}
		window = min(2*window, lastWindow)
	}
}

// broke notes why a stream ended. What has broken the feed's own rules is not gone on from, nor is a cursor that the server
// cannot read.
func (f *Feed) broke(ctx context.Context, err error) {
	f.breaks.Add(1)
	f.mu.Lock()
	again := f.fault != nil && f.fault.Error() == err.Error()
	f.fault = err
	if isBroken(err) || status.Code(err) == codes.InvalidArgument {
		f.cursor = ""
	}
	f.mu.Unlock()
	switch code := status.Code(err); {
	case again:
	case code == codes.Unauthenticated || code == codes.PermissionDenied: // which no time heals
		f.o.Logger.ErrorContext(ctx, "authsvc refuses the trust feed", "target", f.o.Target, "client_id", f.o.ClientID, "error", brief(err))
	default:
		f.o.Logger.WarnContext(ctx, "the trust feed broke", "target", f.o.Target, "error", brief(err))
	}
}

// brief is an error for the log: a proxy's may have a whole page in it.
func brief(err error) string { return fmt.Sprintf("%.400s", err.Error()) }

// follow lives through one stream. It never gives nil.
func (f *Feed) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, err := grpc.NewClient("dns:///"+f.o.Target, f.dial...)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // it has no error that would change anything
	if err := connect(ctx, conn); err != nil {
		return err
	}
	silence := time.AfterFunc(silenceLimit, func() { cancel(errors.New("the server has gone silent")) })
	defer silence.Stop()
	endless := time.AfterFunc(snapshotLimit, func() { cancel(errors.New("the snapshot took too long")) })
	defer endless.Stop()
	defer time.AfterFunc(streamLife-rand.N(streamLife/4), func() { cancel(errRenew) }).Stop()

	// What the server dates counts from when it received this call, which was not before this moment.
	s := &stream{feed: f, sent: f.now()}
	f.mu.Lock()
	s.cursor = f.cursor
	f.mu.Unlock()
	watch, err := authsvcv1.NewTrustServiceClient(conn).WatchTrust(ctx, &authsvcv1.WatchTrustRequest{Cursor: s.cursor})
	for err == nil {
		var message *authsvcv1.WatchTrustResponse
		if message, err = watch.Recv(); err != nil {
			break
		}
		silence.Reset(silenceLimit)
		if err = s.take(message); err == nil && s.whole && endless.Stop() {
			f.o.Logger.InfoContext(ctx, "the trust feed is whole", "target", f.o.Target, "revocations", f.list.Len())
		}
	}
	if cause := context.Cause(ctx); cause != nil && status.Code(err) == codes.Canceled {
		return cause
	}
	return err
}

// connect waits until the connection stands or has failed, which the call will then say. It is not part of the call, whose
// beginning dates all that follows.
func connect(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn.Connect()
	for {
		state := conn.GetState()
		if state == connectivity.Ready || state == connectivity.TransientFailure {
			return nil
		}
		if !conn.WaitForStateChange(ctx, state) {
			return fmt.Errorf("no connection: %w", ctx.Err())
		}
	}
}

// sweep forgets entries that no token needs any more. An entry has expired when both clocks say so, the server's and our own: one
// that runs ahead must not bring a dead token back. Now is never behind either of them, so it would forget too soon for a Verifier
// that goes by another clock.
func (f *Feed) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	behind := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		by := f.forget()
		if was := behind; by <= clockWarning {
			behind = false
		} else if behind = true; !was {
			f.o.Logger.WarnContext(ctx, "the wall clock is behind what it or authsvc said before; tokens expire by the latest",
				"behind", by)
		}
	}
}

// forget is one sweep. It says by how much the wall clock is behind Now.
func (f *Feed) forget() (behind time.Duration) {
	latest := f.Now()
	_, nanoseconds := f.clock.read()
	wall := time.Unix(0, nanoseconds)
	f.list.Sweep(time.Unix(min(f.server.Load(), wall.Unix()), 0))
	return latest.Sub(wall)
}

// Ready waits until the feed judges tokens: the first whole snapshot has come, and it is not older than MaxAge. It gives nil
// then, or the error of ctx with why the last try failed.
func (f *Feed) Ready(ctx context.Context) error {
	select {
	case <-f.ready:
		return nil
	default:
	}
	select {
	case <-f.ready:
		return nil
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil {
		return fmt.Errorf("guard: the trust feed is not ready: %w: %w", ctx.Err(), f.fault)
	}
	return fmt.Errorf("guard: the trust feed is not ready: %w", ctx.Err())
}

// Status says how the feed stands. It is not for the path of a call.
func (f *Feed) Status() FeedStatus {
	f.mu.Lock()
	cursor := f.cursor
	f.mu.Unlock()
	age := f.age(f.date.Load())
	return FeedStatus{
		Ready: f.keys.Load() != nil && age <= MaxAge, Age: age, Cursor: cursor, Applied: f.applied.Load(), Live: f.list.Len(),
	}
}

// Key finds a key of the newest set; a key that is revoked is not in it. The last good set stays while the server is away. It
// never waits.
func (f *Feed) Key(ctx context.Context, kid string) (*verify.Key, error) {
	keys := f.keys.Load()
	if keys == nil {
		return nil, verify.ErrNotReady
	}
	return keys.Key(ctx, kid)
}

// Check says whether anything that the feed has told hits the token: verify.ErrRevoked, which holds at any age, or
// verify.ErrStale where the knowledge is older than MaxAge, or verify.ErrNotReady where there is none. It takes no lock and
// allocates nothing.
func (f *Feed) Check(s *verify.Subject) error {
	// In this order: the date belongs to what the list holds after it was read, and the age ends with the verdict.
	date := f.date.Load()
	if date == neverDated {
		return verify.ErrNotReady
	}
	if err := f.list.Check(s); err != nil {
		return err
	}
	if f.age(date) > MaxAge {
		return verify.ErrStale
	}
	return nil
}

// Now is for verify.Options.Now: the latest of the wall clock, what authsvc has told as its own, and the highest that either
// has been, plus the time since, suspension included. It is never set back, so an expired token stays expired while the wall clock
// is wrong; one that ran ahead is believed until the process ends. It takes no lock and allocates nothing.
func (f *Feed) Now() time.Time { return f.clock.latest() }

// now counts the time that has passed, suspension included.
func (f *Feed) now() time.Duration { return f.clock.passed() }

func (f *Feed) age(date int64) time.Duration {
	if date == neverDated {
		return math.MaxInt64
	}
	return f.now() - time.Duration(date)
}
