package model

import (
	"errors"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// NewVerifier makes a plain verifier: the client's side of the feed in few lines.
func NewVerifier(c *Clock) Verifier {
	list, err := verify.NewList(verify.ListOptions{})
	if err != nil {
		panic(err) // it gives none
	}
	return &plain{clock: c, list: list, date: -1}
}

type plain struct {
	clock  *Clock
	list   *verify.List
	date   time.Duration // of the clock's boot time; negative where there is none
	cursor string
	server time.Time

	sent    time.Duration
	whole   bool
	part    uint32 // of a snapshot or a change, that comes next
	pending []verify.Revocation
}

// Begin implements Verifier.
func (p *plain) Begin() string {
	p.sent, p.whole, p.part, p.pending = p.clock.Boot(), false, 0, nil
	return p.cursor
}

var errRules = errors.New("this does not follow")

// Take implements Verifier.
func (p *plain) Take(m *authsvcv1.WatchTrustResponse) error {
	s, d, h := m.GetSnapshot(), m.GetDelta(), m.GetHeartbeat()
	cursor := s.GetCursor() + d.GetCursor() + h.GetCursor()
	switch {
	case !p.whole && p.clock.Boot()-p.sent >= snapshotLimit:
		return errRules
	case s != nil && !p.whole && s.GetPart() == p.part:
		p.part++
		if p.pending = append(p.pending, entriesOf(s.GetRevocations())...); cursor != "" {
			p.list.Apply(p.pending...)
			p.list.SetReady(true)
			p.whole, p.part, p.cursor = true, 0, cursor
		}
	case d != nil && p.whole && d.GetAfter() == p.cursor && cursor != "" && d.GetPart() == p.part:
		p.list.Apply(entriesOf(d.GetRevocations())...)
		if p.cursor, p.part = cursor, 0; d.GetMore() {
			p.part = d.GetPart() + 1
		}
	case h != nil && !p.whole: // it dates nothing yet
	case h != nil && cursor == p.cursor && p.part == 0:
		p.date = max(p.date, p.sent+h.GetElapsed().AsDuration()-h.GetLag().AsDuration(), 0)
		p.server = h.GetServerTime().AsTime()
	default:
		p.cursor = ""
		return errRules
	}
	return nil
}

// End implements Verifier.
func (p *plain) End(error) {}

// Check implements Verifier.
func (p *plain) Check(s *verify.Subject) error {
	if p.date < 0 {
		return verify.ErrNotReady
	}
	if err := p.list.Check(s); err != nil {
		return err
	}
	if p.Age() > Limit {
		return verify.ErrStale
	}
	return nil
}

// Age implements Verifier.
func (p *plain) Age() time.Duration {
	if p.date < 0 {
		return -1
	}
	return p.clock.Boot() - p.date
}

// Sweep implements Verifier.
func (p *plain) Sweep() {
	if wall := p.clock.Wall(); wall.Before(p.server) {
		p.list.Sweep(wall)
		return
	}
	p.list.Sweep(p.server)
}

func entriesOf(entries []*authsvcv1.Revocation) []verify.Revocation {
	out := make([]verify.Revocation, len(entries))
	for i, e := range entries {
		out[i] = verify.Revocation{Target: verify.Target(e.GetTarget()), NotBefore: e.GetNotBefore(), ExpiresAt: time.Unix(e.GetExpireTime(), 0)}
	}
	return out
}
