package storetest

import "github.com/authsvc/authsvc/internal/session"

// Row is what the six rules of refresh know of one session, and Present is those rules, written from their prose alone:
// a second opinion on session.Decide, which it does not call. Time is only whether the reuse window has passed.
type Row struct {
	Base, Head, Low uint32 // last redeemed, newest issued, and where theft begins
	Network, Agent  byte   // of the device of the last redemption
	Away            int    // generations in a row that were replayed from another device
	AwayOf          uint32 // the generation that was counted last
	Forks           int    // late retries since the last redemption
	Late            bool   // the window since the last redemption or late retry has passed
}

// NewRow is a session that has just begun, at the device 0, 0.
func NewRow() Row { return Row{Head: 1} }

const (
	awayLimit = 3
	forkLimit = 8
)

// Present presents a generation from a device. Moved says that the head has moved, and therefore at which time the next
// window begins.
func (r Row) Present(g uint32, network, agent byte) (next Row, verdict session.Verdict, moved bool) {
	elsewhere := network != r.Network || agent != r.Agent
	switch {
	// 1. The newest is redeemed. The count goes on where the generation before was replayed elsewhere, or is full. If the
	// window had passed, whatever came before this token is old.
	// 2. A token newer than the newest: the database lost writes. The same, and nothing is provably old any more.
	case g >= r.Head:
		next = Row{Base: g, Head: g + 1, Low: r.Low, Network: network, Agent: agent, AwayOf: r.AwayOf}
		if r.AwayOf == r.Base || r.Away >= awayLimit {
			next.Away = r.Away
		}
		if r.Late {
			next.Low = g
		}
		if g > r.Head {
			next.Low = 0
		}
		return next, session.Issue, true
	// 3. The last redeemed one, in the window: its successor again. From another device that is counted, once per
	// generation, and from the third generation on refused.
	case g == r.Base && !r.Late:
		next = r
		if elsewhere && r.AwayOf != g {
			next.Away, next.AwayOf = r.Away+1, g
		}
		if elsewhere && next.Away >= awayLimit {
			return next, session.Superseded, false
		}
		return next, session.Issue, false
	// 5. The last redeemed one, later: the answer was lost. A new successor, the old one is dead; eight times.
	case g == r.Base:
		if r.Forks == forkLimit {
			return r, session.Issue, false
		}
		next = r
		next.Head, next.Low, next.Late, next.Forks = r.Head+1, r.Base, false, r.Forks+1
		return next, session.Issue, true
	// 4. A late duplicate of the same user agent: nothing issued, nothing ended.
	case g >= r.Low && !r.Late && agent == r.Agent:
		return r, session.Superseded, false
	// 6. Anything else is theft.
	default:
		return r, session.Reused, false
	}
}
