package guard

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/verify"
)

// How often an open stream is judged again at the least, where no Feed wakes it.
const (
	askEvery  = time.Second // the Verifier's Revocations, which say nothing by themselves
	timeEvery = time.Minute // the clock, which may be set ahead

	timerLeast = time.Millisecond // so that a clock that stands still keeps nobody busy
)

// openStream is a stream that was let in by a token, while its handler runs. Its timer judges it again, in a goroutine of its own:
// at exp, when the feed wakes it, and each time that every has passed.
type openStream struct {
	subject   verify.Subject
	expires   time.Time
	now       func() time.Time
	source    verify.RevocationSource // what it is judged by; nil: by exp alone
	every     time.Duration
	index     *openStreams // that it stands in; nil without a feed
	meter     *guardMeter
	cancel    context.CancelCauseFunc
	transport interface{ WriteStatus(st *status.Status) error } // nil where the transport has none

	ended atomic.Pointer[streamEnd]

	mu    sync.Mutex
	timer *time.Timer
	woken bool // and not judged since; then the timer is set to nothing else
	over  bool // it was ended, or its handler has returned; nobody sets the timer any more
}

// streamEnd is why a stream was ended, and the status that says so.
type streamEnd struct {
	cause  error // verify.ErrRevoked or verify.ErrExpired
	status *status.Status
}

func (e *streamEnd) Error() string              { return "guard: the stream was ended: " + e.cause.Error() }
func (e *streamEnd) Unwrap() error              { return e.cause }
func (e *streamEnd) GRPCStatus() *status.Status { return e.status }

// watch begins to watch a stream, and judges it once more: what was revoked since its token was judged is either in the list by
// now or will be looked up in the index. Whoever calls it calls close.
func (g *Guard) watch(ctx context.Context, claims *verify.Claims) (context.Context, *openStream) {
	s := &openStream{subject: g.verifier.Subject(claims), expires: claims.ExpiresAt, now: g.verifier.Now, every: timeEvery, meter: g.meter}
	if source := g.verifier.Revocations(); source != nil {
		s.source, s.every = source, askEvery
	}
	if feed, ok := s.source.(*Feed); ok {
		s.source, s.every, s.now, s.index = feed.list, math.MaxInt64, feed.Now, &feed.open
	}
	s.transport, _ = grpc.ServerTransportStreamFromContext(ctx).(interface{ WriteStatus(st *status.Status) error })
	ctx, s.cancel = context.WithCancelCause(ctx)
	s.timer = time.AfterFunc(math.MaxInt64, s.judge)
	if s.index != nil {
		s.index.add(s)
	}
	s.judge()
	return ctx, s
}

// judge ends the stream if its token is not good any more, and sets the timer otherwise. It leaves no time for skew: that is for
// calls, which are short.
func (s *openStream) judge() {
	s.mu.Lock()
	s.woken = false // before the source is asked: who wakes the stream from now on may know more than it says
	s.mu.Unlock()
	revoked := s.source != nil && errors.Is(s.source.Check(&s.subject), verify.ErrRevoked)
	s.mu.Lock()
	left := s.left()
	switch {
	case s.over:
	case revoked:
		defer s.end(s.decide(verify.ErrRevoked))
	case left <= 0:
		defer s.end(s.decide(verify.ErrExpired))
	default:
		s.set(left)
	}
	s.mu.Unlock()
}

func (s *openStream) left() time.Duration { return s.expires.Sub(s.now()) }

// set is called with the lock held.
func (s *openStream) set(left time.Duration) {
	if s.woken {
		left = 0
	}
	if left > 0 {
		left = min(max(left, timerLeast), s.every)
	}
	s.timer.Reset(left)
}

// decide is called with the lock held, once at most.
func (s *openStream) decide(cause error) *streamEnd {
	e := &streamEnd{cause, refuse(context.Background(), cause).status()}
	s.over = true
	s.ended.Store(e)
	return e
}

// end is where each stream comes once that ends before its handler does. A receipt or a send that the handler is blocked in breaks
// off when the status is written, which may itself wait, for a peer that does not read.
func (s *openStream) end(e *streamEnd) {
	s.meter.streamEnded(e.cause)
	s.cancel(e)
	if s.transport != nil {
		_ = s.transport.WriteStatus(e.status) // it fails where the stream has ended by itself
	}
}

// wake has the stream judged at once.
func (s *openStream) wake() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.woken = true; !s.over {
		s.set(0)
	}
}

// rearm sets the timer by the clock as it stands.
func (s *openStream) rearm() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.set(s.left())
	}
}

// close is for when the handler has returned. It leaves nothing of the stream behind.
func (s *openStream) close() {
	s.mu.Lock()
	s.over = true
	s.timer.Stop()
	s.mu.Unlock()
	if s.index != nil {
		s.index.remove(s)
	}
	s.cancel(nil)
}

// err is what the handler gets from the moment at which the stream was ended, and nil before.
func (s *openStream) err() error {
	if e := s.ended.Load(); e != nil {
		return e
	}
	return nil
}

// watchedStream is a guardedStream that can be ended. What its handler finds after the end, also in a call that was under way, is
// the status of the end, and nothing more of what it sends goes out.
type watchedStream struct {
	guardedStream
	open *openStream
}

// RecvMsg implements grpc.ServerStream.
func (s watchedStream) RecvMsg(m any) error {
	return s.unlessEnded(func() error { return s.ServerStream.RecvMsg(m) })
}

// SendHeader implements grpc.ServerStream.
func (s watchedStream) SendHeader(md metadata.MD) error {
	return s.unlessEnded(func() error { return s.ServerStream.SendHeader(md) })
}

// SendMsg implements grpc.ServerStream.
func (s watchedStream) SendMsg(m any) error {
	return s.unlessEnded(func() error { return s.ServerStream.SendMsg(m) })
}

func (s watchedStream) unlessEnded(do func() error) error {
	if err := s.open.err(); err != nil {
		return err
	}
	err := do()
	if ended := s.open.err(); ended != nil {
		return ended
	}
	return err
}
