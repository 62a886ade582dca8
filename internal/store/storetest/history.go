package storetest

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/authsvc/authsvc/internal/session"
)

// Kind is what a call of a history does.
type Kind int

// The kinds of calls.
const (
	Refresh Kind = iota // presents Generation from the device Network, Agent
	End                 // ends the session
	Access              // asks whether the session's access token number Token is active
	Current             // asks whether the refresh token of Generation is active
	Kill                // revokes the access token number Token alone
	Pause               // lets more than a reuse window pass, for every session
	listed              // the end of the session has come to the list in memory
)

// Call is what a caller asked.
type Call struct {
	Kind           Kind
	Session        int
	Generation     uint32
	Network, Agent byte
	Token          uint // below 64
}

// Answer is what the caller was told.
type Answer struct {
	Verdict session.Verdict
	Head    uint32 // of Issue: the generation of the token that was given
	Active  bool
	Lost    bool // Unavailable: a Pause took the decision past its deadline, so nothing was decided
}

// History is a record of concurrent calls, each with the moments at which it was made and answered. Many goroutines
// may write to it.
type History struct {
	moment atomic.Int64
	mu     sync.Mutex
	calls  []porcupine.Operation
}

// Do makes a call and records it.
func (h *History) Do(caller int, c Call, f func() Answer) Answer {
	asked := h.moment.Add(1)
	a := f()
	h.Add(caller, c, a, asked, h.moment.Add(1))
	return a
}

// Add records a call that was made and answered at the given moments.
func (h *History) Add(caller int, c Call, a Answer, asked, answered int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, porcupine.Operation{ClientId: caller, Input: c, Output: a, Call: asked, Return: answered})
	if c.Kind == End || c.Kind == Refresh && a.Verdict == session.Reused {
		// Before such an answer goes out the list in memory has the end, but somewhat after the store.
		h.calls = append(h.calls, porcupine.Operation{ClientId: caller, Input: Call{Kind: listed, Session: c.Session}, Output: a, Call: asked, Return: answered})
	}
}

// Len is the number of calls recorded.
func (h *History) Len() int { return len(h.calls) }

// Linearizable reports whether one order of the calls, each at one moment between question and answer, has all the
// answers that the six rules give; story tells the session whose calls have none. It is called when all calls are answered.
func (h *History) Linearizable(t *testing.T) (ok bool, story string) {
	t.Helper()
	for _, c := range h.calls {
		if c.Output.(Answer).Lost && !h.excused(c) {
			return false, fmt.Sprintf("unavailable although no time passed: %+v", c.Input)
		}
	}
	h.delayPauses()
	for _, calls := range bySession(h.calls) {
		switch porcupine.CheckOperationsTimeout(sequential(), calls, 5*time.Minute) {
		case porcupine.Ok:
		case porcupine.Illegal:
			return false, tell(calls)
		case porcupine.Unknown:
			t.Fatalf("a history of %d calls took more than five minutes to judge", len(calls))
		}
	}
	return true, ""
}

// excused reports whether the deadline of a decision may have passed: a pause began while the call was under way, or one
// with the same token from the same device, whose decision it may share.
func (h *History) excused(c porcupine.Operation) bool {
	return slices.ContainsFunc(h.calls, func(p porcupine.Operation) bool {
		return p.Input.(Call).Kind == Pause && slices.ContainsFunc(h.calls, func(x porcupine.Operation) bool {
			return x.Input == c.Input && atOnce(x, p) && atOnce(x, c)
		})
	})
}

// delayPauses lets a pause count as late as the last refresh that was under way when it came. Such a refresh may have read
// the clock before the pause, and be committed, and so be seen by those who only ask, after it.
func (h *History) delayPauses() {
	for i := range h.calls {
		if p := &h.calls[i]; p.Input.(Call).Kind == Pause {
			until := p.Return
			for _, c := range h.calls {
				if c.Input.(Call).Kind == Refresh && atOnce(*p, c) {
					until = max(until, c.Return)
				}
			}
			p.Return = until
		}
	}
}

func atOnce(a, b porcupine.Operation) bool { return a.Call < b.Return && b.Call < a.Return }

// bySession parts a history into those of its sessions. A pause belongs to each.
func bySession(calls []porcupine.Operation) [][]porcupine.Operation {
	most := 0
	for _, c := range calls {
		most = max(most, c.Input.(Call).Session)
	}
	parts := make([][]porcupine.Operation, most+1)
	for _, c := range calls {
		for i := range parts {
			if in := c.Input.(Call); in.Kind == Pause || in.Session == i {
				parts[i] = append(parts[i], c)
			}
		}
	}
	return parts
}

func tell(calls []porcupine.Operation) string {
	slices.SortFunc(calls, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
	var lines []string
	for _, c := range calls {
		in, out := c.Input.(Call), c.Output.(Answer)
		words := map[Kind]string{
			Refresh: fmt.Sprintf("presents %d from %d/%d: %s, head %d", in.Generation, in.Network, in.Agent, word(out.Verdict), out.Head),
			End:     "ends the session", listed: "has the end listed", Pause: "waits for longer than the window",
			Access:  fmt.Sprintf("asks about access token %d: active %v", in.Token, out.Active),
			Current: fmt.Sprintf("asks about generation %d: active %v", in.Generation, out.Active),
			Kill:    fmt.Sprintf("revokes access token %d", in.Token),
		}[in.Kind]
		if out.Lost {
			words += " (unavailable)"
		}
		lines = append(lines, fmt.Sprintf("%4d to %4d: caller %d %s", c.Call, c.Return, c.ClientId, words))
	}
	return strings.Join(lines, "\n")
}

func word(v session.Verdict) string {
	return [...]string{session.Invalid: "invalid", session.Issue: "issued", session.Superseded: "superseded",
		session.Expired: "expired", session.Reused: "reused", session.ForeignClient: "foreign client"}[v]
}

// told is a session as those who ask one after the other find it.
type told struct {
	Row
	over   bool   // ended, for whoever refreshes
	listed bool   // ended, for whoever shows an access token
	thief  Call   // whose presentation ended it
	dead   uint64 // access tokens that were revoked by themselves, a bit each
	last   Call   // the last refresh, until time passes; sharers of its decision come right after it
	answer Answer // its answer
}

// sequential is one session, asked by one caller after the other.
func sequential() porcupine.Model {
	m := porcupine.NondeterministicModel{
		Init: func() []any { return []any{told{Row: NewRow()}} },
		Step: func(state, input, output any) (next []any) {
			for _, s := range state.(told).step(input.(Call), output.(Answer)) {
				next = append(next, s)
			}
			return next
		},
	}
	return m.ToModel()
}

// step gives how the session may be after such an answer; it may not answer so if that is nothing.
func (s told) step(c Call, a Answer) []told {
	ok := true
	switch c.Kind {
	case Pause:
		s.Late = true
		s.last, s.answer = Call{}, Answer{}
	case End:
		s.over = true
		s.last, s.answer = Call{}, Answer{}
	case listed:
		ok = s.over
		s.listed = true
	case Kill:
		s.dead |= 1 << c.Token
	case Access:
		ok = a.Active == (!s.listed && s.dead&(1<<c.Token) == 0)
	case Current:
		ok = a.Active == (!s.over && (c.Generation == s.Head || c.Generation == s.Base))
	case Refresh:
		return s.refresh(c, a)
	}
	if !ok {
		return nil
	}
	return []told{s}
}

// refresh: calls with the same token from the same device share one decision, the thief's too, and change nothing more.
func (s told) refresh(c Call, a Answer) (next []told) {
	switch {
	case a.Lost:
		return []told{s}
	case s.over && (a.Verdict == session.Invalid || a.Verdict == session.Reused && c == s.thief):
		return []told{s}
	case s.over || c.Generation > s.Head: // nobody has such a token, since no database lost writes here
		return nil
	case c == s.last && a == s.answer:
		next = append(next, s)
	}
	row, verdict, _ := s.Present(c.Generation, c.Network, c.Agent)
	if a.Verdict != verdict || verdict == session.Issue && a.Head != row.Head {
		return next
	}
	s.Row, s.last, s.answer = row, c, a
	if verdict == session.Reused {
		s.over, s.thief = true, c
	}
	return append(next, s)
}
