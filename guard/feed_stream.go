package guard

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// broken is the error of a stream that broke the rules of the feed. Nobody can say what was lost, so all is asked for anew.
type broken string

func (b broken) Error() string { return "the trust feed is broken: " + string(b) }

func isBroken(err error) bool {
	var b broken
	return errors.As(err, &b)
}

// serverTimeMost is a second of the year 2242, within what nanoseconds can count.
const serverTimeMost = 1 << 33

// stream is one call of WatchTrust as its messages come. A message counts whole or not at all.
type stream struct {
	feed   *Feed
	sent   time.Duration // when the call was sent, by the feed's clock
	cursor string        // newest applied; before the snapshot is whole, what was asked for
	whole  bool          // the snapshot has been applied
	part   uint32        // of a change, that comes next
	late   int           // heartbeats in a row that were late
	delays delays

	// The parts of a snapshot that is not whole yet.
	parts   int
	pending []verify.Revocation
	keys    *verify.Static
	jwks    string
}

func (s *stream) take(m *authsvcv1.WatchTrustResponse) error {
	switch e := m.GetEvent().(type) {
	case *authsvcv1.WatchTrustResponse_Snapshot:
		return s.snapshot(e.Snapshot)
	case *authsvcv1.WatchTrustResponse_Delta:
		return s.delta(e.Delta)
	case *authsvcv1.WatchTrustResponse_Heartbeat:
		return s.heartbeat(e.Heartbeat)
	default:
		return broken("an event that is not known")
	}
}

// snapshot gathers the parts, and applies them with the last.
func (s *stream) snapshot(m *authsvcv1.TrustSnapshot) error {
	if s.whole {
		return broken("a snapshot after the snapshot")
	}
	if m.GetPart() != uint32(s.parts) {
		return broken("a part of the snapshot is missing")
	}
	if s.parts++; (s.parts == 1) != (len(m.GetJwks()) > 0) {
		return broken("the key set is not in the first part of the snapshot")
	}
	if issuer := m.GetIssuer(); issuer != "" && issuer != s.feed.o.Issuer {
		return broken(fmt.Sprintf("it is of the issuer %.200q, and FeedOptions.Issuer is %q", issuer, s.feed.o.Issuer))
	}
	if s.parts == 1 {
		if err := s.readKeys(m.GetJwks()); err != nil {
			return err
		}
	}
	var err error
	if s.pending, err = appendRevocations(s.pending, m.GetRevocations()); err != nil {
		return err
	}
	if len(s.pending) > snapshotMost {
		return broken("the snapshot does not end")
	}
	if m.GetCursor() == "" {
		return nil
	}
	s.apply(s.pending, m.GetCursor())
	s.pending, s.whole = nil, true
	return nil
}

func (s *stream) delta(m *authsvcv1.TrustDelta) error {
	switch {
	case !s.whole:
		return broken("a change before the snapshot")
	case m.GetAfter() != s.cursor:
		return broken("a change that does not follow the last")
	case m.GetCursor() == "":
		return broken("a change without a cursor")
	case m.GetPart() != s.part:
		return broken("a part of a change is missing")
	case m.GetMore() && m.GetCursor() != m.GetAfter():
		return broken("a cursor before the end of its change")
	}
	revocations, err := appendRevocations(nil, m.GetRevocations())
	if err != nil {
		return err
	}
	if len(m.GetJwks()) > 0 {
		if err := s.readKeys(m.GetJwks()); err != nil {
			return err
		}
	}
	s.apply(revocations, m.GetCursor())
	if delay, ok := s.delays.part(m, s.feed.now()); ok {
		s.feed.meter.delayed(delay)
	}
	if s.part = 0; m.GetMore() {
		s.part = m.GetPart() + 1
	}
	return nil
}

// heartbeat dates what was applied. It says nothing about a snapshot that is not whole.
func (s *stream) heartbeat(m *authsvcv1.TrustHeartbeat) error {
	elapsed, lag := m.GetElapsed(), m.GetLag()
	switch {
	case !s.whole:
		return nil
	case m.GetCursor() != s.cursor || s.part > 0:
		return broken("a heartbeat of another place")
	case elapsed.CheckValid() != nil || lag.CheckValid() != nil || elapsed.AsDuration() < 0 || lag.AsDuration() < 0:
		return broken("a heartbeat without its times")
	}
	f := s.feed
	f.clock.measure()
	now := f.now()
	// The server received the call after it was sent, so this is not later than the moment it speaks of. That this process may
	// have read the message long after it was written makes no difference. A server that is ahead of us lies.
	spoken := s.sent + min(elapsed.AsDuration(), now-s.sent)
	date := spoken - min(lag.AsDuration(), math.MaxInt64/2)
	if t := m.GetServerTime(); t.IsValid() && t.GetSeconds() >= 0 && t.GetSeconds() < serverTimeMost {
		s.delays.beat(t.AsTime(), spoken)
		f.server.Store(max(f.server.Load(), t.GetSeconds()))
		f.clock.told(t.AsTime().UnixNano())
	}
	f.lag.Store(int64(lag.AsDuration()))
	f.date.Store(max(f.date.Load(), int64(date)))
	f.open.follow(f.Now)
	f.mu.Lock()
	f.fault = nil
	f.mu.Unlock()
	if f.age(f.date.Load()) <= MaxAge {
		select {
		case <-f.ready:
		default:
			close(f.ready)
		}
	}
	return s.behind(now, elapsed.AsDuration())
}

// behind ends a stream whose heartbeats come late for good: while one of the two ends was suspended, the other's time went on, and
// what they count since the call will not meet again.
func (s *stream) behind(now, elapsed time.Duration) error {
	if now-s.sent-elapsed <= lateLimit {
		s.late = 0
		return nil
	}
	if s.late++; s.late >= lateMost && now-s.sent >= lateAfter {
		return errRenew
	}
	return nil
}

// readKeys reads a key set into the stream; apply makes it count. Equal bytes are the set that we have.
func (s *stream) readKeys(jwks []byte) error {
	f := s.feed
	if s.jwks = string(jwks); s.jwks == f.jwks {
		s.keys = f.keys.Load()
		return nil
	}
	keys, err := verify.NewStatic(jwks)
	if err != nil {
		return broken("the key set cannot be used")
	}
	for _, dropped := range keys.Dropped() {
		f.o.Logger.Warn("a key of the set was dropped", "target", f.o.Target, "error", dropped)
	}
	s.keys = keys
	return nil
}

// apply makes a message count: first the entries, which are merged with all that came before, then the keys, without those that
// are revoked, and the cursor last.
func (s *stream) apply(revocations []verify.Revocation, cursor string) {
	f := s.feed
	f.list.Apply(revocations...)
	f.list.SetReady(true)
	f.applied.Add(uint64(len(revocations)))
	// Of the entries only those of keys never expire, and most changes have none.
	forever := func(r verify.Revocation) bool { return r.ExpiresAt.IsZero() }
	if s.keys != f.keys.Load() || slices.ContainsFunc(revocations, forever) {
		s.keys = s.keys.Without(f.revoked)
		f.keys.Store(s.keys)
	}
	s.cursor = cursor
	f.mu.Lock()
	f.jwks, f.cursor = s.jwks, cursor
	f.mu.Unlock()
	f.open.wake(revocations, f.list)
}

// revoked says whether a key is listed.
func (f *Feed) revoked(kid string) bool {
	t := verify.TargetOf(f.o.Issuer, verify.KindKey, kid)
	return f.list.Check(&verify.Subject{Token: t, Key: t, Account: t, Client: t, All: t}) != nil
}

// appendRevocations reads entries, all or none.
func appendRevocations(to []verify.Revocation, entries []*authsvcv1.Revocation) ([]verify.Revocation, error) {
	for _, e := range entries {
		if len(e.GetTarget()) != len(verify.Target{}) || e.GetNotBefore() < 0 || e.GetExpireTime() < 0 {
			return nil, broken("an entry is malformed")
		}
		r := verify.Revocation{Target: verify.Target(e.GetTarget()), NotBefore: e.GetNotBefore()}
		if e.GetExpireTime() > 0 {
			r.ExpiresAt = time.Unix(e.GetExpireTime(), 0)
		}
		to = append(to, r)
	}
	return to, nil
}
