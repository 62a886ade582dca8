package session

import (
	"crypto/sha256"
	"crypto/subtle"
	"math"
	"net/netip"
	"time"
)

const (
	// elsewhereLimit is how many generations in a row may be replayed from another device before such replays are refused.
	elsewhereLimit = 3
	// forkLimit is how many late retries move the head before they are answered with the same head again.
	forkLimit = 8
)

// Decision is what Decide says about one presented token. The store carries it out: swap Next in where Changed, end the
// session where End.
type Decision struct {
	Verdict Verdict  // Issue answers generation Next.Head
	Next    Rotation // the row's refresh state afterwards; equal to the present one unless Changed
	Changed bool     // Next differs and must be swapped in, conditional on the state that was decided upon
	Rotated bool     // Head moved
	Alert   bool     // a token newer than the row: the database lost writes
	End     bool     // theft: end the session and commit that before answering
}

// Decide applies the six rules of refresh to a token of generation g that passed Check. It is pure: now is the store's
// clock, and window the client's reuse window, inclusive at its end.
//
//  1. The head is redeemed, and its successor becomes the head.
//  2. A generation above the head can only be one that we made, so the database lost writes: it is redeemed likewise, with
//     an alert.
//  3. The last redeemed generation, in the window, is a retry: the same head again. Retries from another device are
//     counted, and refused from the third generation on.
//  4. An older generation, in the window, from the same user agent, is a late duplicate: nothing is issued, nothing ended.
//  5. The last redeemed generation, later, means that the answer was lost: a new head, and the old one is dead.
//  6. Anything else is theft.
func Decide(r Rotation, g uint32, d Device, now time.Time, window time.Duration) Decision {
	inWindow := now.Sub(r.RedeemedAt) <= window
	switch {
	case g >= r.Head:
		return redeem(r, g, d, now, inWindow)
	case g == r.Base && inWindow:
		return replay(r, d)
	case g == r.Base:
		return fork(r, now)
	case g >= r.Low && inWindow && d.UserAgent == r.Device.UserAgent:
		// Networks change in the middle of a request, so only the user agent counts; nothing is issued here anyway.
		return Decision{Verdict: Superseded, Next: r}
	default:
		return Decision{Verdict: Reused, Next: r, End: true}
	}
}

// redeem is rules 1 and 2.
func redeem(r Rotation, g uint32, d Device, now time.Time, inWindow bool) Decision {
	if g == math.MaxUint32 {
		return Decision{Verdict: Expired, Next: r} // no generation follows; wrapping would reissue old tokens
	}
	next := r
	next.Base, next.Head = g, g+1
	next.RedeemedAt, next.Device, next.Forks = now, d, 0
	// The count survives only in an unbroken run of generations that were replayed elsewhere, or once it is full.
	if r.Elsewhere < elsewhereLimit && r.ElsewhereOf != r.Base {
		next.Elsewhere = 0
	}
	lostWrites := g > r.Head
	switch {
	case lostWrites:
		next.Low = 0 // the row does not know what it issued, so nothing below is provably old
	case !inWindow:
		next.Low = g
	}
	return Decision{Verdict: Issue, Next: next, Changed: true, Rotated: true, Alert: lostWrites}
}

// replay is rule 3.
func replay(r Rotation, d Device) Decision {
	if d == r.Device {
		return Decision{Verdict: Issue, Next: r}
	}
	next := r
	if r.ElsewhereOf != r.Base {
		next.Elsewhere, next.ElsewhereOf = r.Elsewhere+1, r.Base
	}
	verdict := Issue
	if next.Elsewhere >= elsewhereLimit {
		verdict = Superseded
	}
	return Decision{Verdict: verdict, Next: next, Changed: next != r}
}

// fork is rule 5.
func fork(r Rotation, now time.Time) Decision {
	if r.Forks >= forkLimit || r.Head == math.MaxUint32 {
		return Decision{Verdict: Issue, Next: r}
	}
	next := r
	next.Head++
	next.Low, next.RedeemedAt = r.Base, now
	next.Forks++
	return Decision{Verdict: Issue, Next: next, Changed: true, Rotated: true}
}

// Check is what precedes Decide, in this order: a wrong secret is Invalid, another client is ForeignClient, a session that
// ended, that a cut-off killed or whose account or client may not act is Invalid, and one whose idle or absolute end has
// come is Expired. Issue means: go on to Decide.
// notBefore is the latest cut-off of account, client and installation, zero if there is none; now is the store's clock.
func Check(s Session, r Redeem, accountMayAct bool, notBefore, now time.Time) Verdict {
	switch {
	case s.ID != r.Session || subtle.ConstantTimeCompare(s.SecretHash[:], r.SecretHash[:]) != 1:
		return Invalid
	case s.Client != r.Client:
		return ForeignClient
	case !s.EndedAt.IsZero() || s.AuthTime.Before(notBefore) || !accountMayAct:
		return Invalid
	case s.Expired(now):
		return Expired
	default:
		return Issue
	}
}

// IdleEnd is when the session ends if it is used at now and never again: now + IdleTTL, but never past the absolute end.
func (s Session) IdleEnd(now time.Time) time.Time {
	if end := now.Add(s.IdleTTL); end.Before(s.EndsAt) {
		return end
	}
	return s.EndsAt
}

// HashDevice gives what a row remembers of a sender: its network, an IPv4 /24 or an IPv6 /64, and its user agent, each as
// a truncated hash. An IPv4 address mapped into IPv6 counts as IPv4; an invalid address is a network of its own.
func HashDevice(ip netip.Addr, userAgent string) Device {
	ip = ip.Unmap().WithZone("")
	bits := 64
	if ip.Is4() {
		bits = 24
	}
	network := "invalid"
	if p, err := ip.Prefix(bits); err == nil {
		network = p.String()
	}
	return Device{Network: truncatedHash("network\x00" + network), UserAgent: truncatedHash("user agent\x00" + userAgent)}
}

func truncatedHash(s string) [8]byte {
	sum := sha256.Sum256([]byte(s))
	return [8]byte(sum[:8])
}

// Expired reports whether the idle or the absolute end has come at now.
func (s Session) Expired(now time.Time) bool {
	return !now.Before(s.IdleEndsAt) || !now.Before(s.EndsAt)
}
