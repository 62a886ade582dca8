package session_test

import (
	"testing"

	"github.com/authsvc/authsvc/internal/session"
)

// pair is an owner and a thief who each keep refreshing from a storage of their own.
type pair struct {
	row          modelRow
	owner, thief uint8 // what each storage holds; the thief's is 0 before the theft
	did          [2]bool
	rounds       uint8 // how often both have got an answer since the theft
	losses       uint8
}

// thiefKind is how the thief differs from the owner.
type thiefKind struct {
	name       string
	net, agent uint8
	patient    bool // he never comes within the window of the owner, nor the owner within his
}

// In so many rounds they are always noticed. Rule 3 answers the replays of two generations in a row; a lost answer may cost
// it a round that it does not see, after which it counts anew; and who comes late in the last round is noticed in the next.
const noticedRounds = 7

// pairModel gives the story of two devices that both keep refreshing, each having got an answer in noticedRounds rounds,
// without one of them having been refused or the session ended; or "".
func pairModel(f decide, thief thiefKind, depth int) (string, int) {
	return explore(pair{row: newModelRow(), owner: 1}, depth, func(w pair, emit func(pair, step, string)) {
		refresh := func(who int, gen, net, agent uint8, name string) {
			row, d := w.row.present(f, gen, net, agent)
			if d.End || d.Verdict != session.Issue || row.head > maxHead {
				return // found
			}
			n := w
			n.row = row
			if thief.patient {
				n.row.age = longTicks
			}
			if n.losses == 0 {
				lost := n
				lost.losses++
				emit(lost, step{name + " refreshes and loses the answer, with generation", gen}, "")
			}
			if who == 0 {
				n.owner = row.head
			} else {
				n.thief = row.head
			}
			broken := ""
			if w.thief != 0 {
				n.did[who] = true
				if n.did[0] && n.did[1] {
					n.did, n.rounds = [2]bool{}, w.rounds+1
				}
				if n.rounds == noticedRounds {
					broken = "two devices keep refreshing and nobody notices"
				}
			}
			emit(n, step{name + " refreshes with generation", gen}, broken)
		}
		refresh(0, w.owner, 0, 0, "the owner")
		if w.thief == 0 {
			n := w
			n.thief = w.owner
			emit(n, step{"the thief copies generation", w.owner}, "")
		} else {
			refresh(1, w.thief, thief.net, thief.agent, "the thief")
		}
		for _, ticks := range []uint8{1, windowTicks, longTicks} {
			n := w
			n.row.age = older(w.row.age, ticks, longTicks)
			emit(n, step{"ticks pass:", ticks}, "")
		}
	})
}

var thieves = []thiefKind{
	{name: "on another network", net: 1},
	{name: "with another user agent", agent: 1},
	{name: "on another network with another user agent", net: 1, agent: 1},
	{name: "on the owner's device, coming after the window", patient: true},
}

const pairDepth = 34

func TestModelTwoDevicesThatBothKeepRefreshingAreFound(t *testing.T) {
	t.Parallel()
	for _, thief := range thieves {
		t.Run(thief.name, func(t *testing.T) {
			t.Parallel()
			story, states := pairModel(session.Decide, thief, pairDepth)
			t.Logf("%d states", states)
			if story != "" {
				t.Errorf("a thief %s stays unnoticed:\n%s", thief.name, story)
			}
		})
	}
}

// past is one owner's history, and what an outsider may conclude from it about every token ever issued.
type past struct {
	row   modelRow
	owner uint8
	quiet uint8 // ticks since the head last moved
	floor uint8 // below it, every generation was out of use before a whole window passed without a move
}

// pastModel gives the story of a history after which a copy of some old token gets less than it should: theft must be
// called theft, a duplicate that may be honest must end nothing, and no history makes the head run away from the base.
func pastModel(f decide, depth int) (string, int) {
	return explore(past{row: newModelRow(), owner: 1}, depth, func(w past, emit func(past, step, string)) {
		row, d := w.row.present(f, w.owner, 0, 0)
		how := step{"the owner refreshes with generation", w.owner}
		switch {
		case d.End || d.Verdict != session.Issue:
			emit(w, how, "the owner is refused")
		case row.head > maxHead:
		default:
			n := w
			n.row = row
			if row.head != w.row.head {
				if w.quiet > windowTicks {
					n.floor = row.base
				}
				n.quiet = 0
			}
			broken := n.judge(f)
			emit(n, step{"the owner loses the answer to generation", w.owner}, broken)
			n.owner = row.head
			emit(n, how, broken)
		}
		for _, ticks := range []uint8{1, windowTicks, longTicks} {
			n := w
			n.row.age, n.quiet = older(w.row.age, ticks, longTicks), older(w.quiet, ticks, longTicks)
			emit(n, step{"ticks pass:", ticks}, n.judge(f))
		}
	})
}

// judge presents a copy of every token but the head's, from the owner's device and from another user agent.
func (w past) judge(f decide) string {
	if w.row.head > w.row.base+1+forkCap {
		return "late retries without end move the head without end"
	}
	for g := uint8(1); g < w.row.head; g++ {
		for agent := range uint8(2) {
			_, d := w.row.present(f, g, 0, agent)
			inUse := g == w.row.base
			theft := !inUse && (g < w.floor || w.quiet > windowTicks || agent != 0)
			switch {
			case theft && !(d.End && d.Verdict == session.Reused):
				return "a stolen token comes back and the session lives on"
			case !theft && d.End:
				return "a token that may be an honest duplicate ends the session"
			case !theft && !inUse && d.Verdict != session.Superseded:
				return "a duplicate is answered with a token"
			}
		}
	}
	return ""
}

const pastDepth = 26

func TestModelCopiesOfOldTokensAreTheft(t *testing.T) {
	t.Parallel()
	story, states := pastModel(session.Decide, pastDepth)
	t.Logf("%d states", states)
	if story != "" {
		t.Errorf("a history breaks the promise:\n%s", story)
	}
}
