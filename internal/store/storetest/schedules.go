package storetest

import (
	"sync"
	"sync/atomic"
	"time"

	"pgregory.net/rapid"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
)

var scheduleCases = []testCase{
	{"F05 F08 concurrent refreshes, ends and questions have an order in which the six rules give every answer", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		rapid.Check(s.T, func(rt *rapid.T) {
			x, _, err := s.Sessions.Create(s.ctx(), atHome(creation(a, "app")), none)
			if err != nil {
				rt.Fatal(err)
			}
			plans := rapid.SliceOfN(rapid.SliceOfN(rapid.Custom(drawMove), 1, 6), 1, 5).Draw(rt, "callers")
			p := play{suite: s, session: x}
			p.newest.Store(1)
			var all sync.WaitGroup
			for caller, moves := range plans {
				all.Go(func() {
					for _, m := range moves {
						p.make(caller, m)
					}
				})
			}
			all.Wait()
			if ok, story := p.history.Linearizable(s.T); !ok {
				rt.Fatalf("no order of these calls has these answers:\n%s", story)
			}
			s.end(journal.End{Session: x.ID}) // so that the account has no more of them than it may
		})
	}},
}

func atHome(c session.Create) session.Create {
	c.Session.Device = session.Device{}
	return c
}

// move is one step of a caller's plan: mostly a presentation of the newest generation that anybody has seen by then, or of
// one that many before it.
type move struct {
	kind           Kind
	back           uint32
	network, agent byte
}

func drawMove(t *rapid.T) move {
	kinds := []Kind{Refresh, Refresh, Refresh, Refresh, Refresh, Refresh, Refresh, Refresh, Current, Current, Pause, End}
	m := move{kind: rapid.SampledFrom(kinds).Draw(t, "kind")}
	if m.kind == Refresh || m.kind == Current {
		m.back = rapid.SampledFrom([]uint32{0, 0, 0, 0, 0, 1, 1, 2}).Draw(t, "back")
		m.network = rapid.SampledFrom([]byte{0, 0, 0, 1}).Draw(t, "network")
		m.agent = rapid.SampledFrom([]byte{0, 0, 0, 0, 0, 1}).Draw(t, "agent")
	}
	return m
}

// play is one session under a schedule.
type play struct {
	*suite
	session session.Session
	newest  atomic.Uint32
	history History
}

func (p *play) make(caller int, m move) {
	c := Call{Kind: m.kind, Network: m.network, Agent: m.agent, Generation: p.newest.Load()}
	if m.back < c.Generation {
		c.Generation -= m.back
	}
	p.history.Do(caller, c, func() (a Answer) {
		switch m.kind {
		case Refresh:
			return p.refresh(c)
		case Current:
			row, alive, _, err := p.Sessions.Get(p.ctx(), p.session.ID)
			if err != nil {
				p.Error(err)
			}
			a.Active = alive && (c.Generation == row.Head || c.Generation == row.Base)
		case End:
			if _, err := p.Sessions.End(p.ctx(), "", journal.Journal{Ends: []journal.End{{Session: p.session.ID, Reason: journal.EndedByRevoke}}}); err != nil {
				p.Error(err)
			}
		case Pause:
			p.Clock.Advance(31 * time.Second)
		case Access, Kill, listed:
			p.Errorf("a schedule has no calls of kind %d", m.kind)
		}
		return a
	})
}

func (p *play) refresh(c Call) Answer {
	r := present(p.session, c.Generation)
	r.Device = session.Device{Network: [8]byte{c.Network}, UserAgent: [8]byte{c.Agent}}
	r.Deadline = p.Clock.Now().Add(5 * time.Second)
	out, err := p.Sessions.Redeem(p.ctx(), r)
	if err != nil {
		if fault.From(err).Kind != fault.Unavailable {
			p.Error(err)
		}
		return Answer{Lost: true}
	}
	if out.Verdict != session.Issue {
		return Answer{Verdict: out.Verdict}
	}
	for {
		seen := p.newest.Load()
		if out.Session.Head <= seen || p.newest.CompareAndSwap(seen, out.Session.Head) {
			return Answer{Verdict: session.Issue, Head: out.Session.Head}
		}
	}
}
