package session_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

// proseModel compares a decision with what the prose of the six rules says, for every small row and every token, sender
// and age that differ in the eyes of a rule. It gives the first difference, or "". It notices what no promise to holders
// depends on: an alert, the last instant of the window, what is remembered for later.
func proseModel(f decide) (story string, rows int) {
	const most = 3
	for base := range uint32(most) {
		for head := base + 1; head <= base+most; head++ {
			for low := range base + 1 {
				for away := range 5 {
					for awayOf := range base + 1 {
						for _, forks := range []int{0, 1, forkCap - 1, forkCap} {
							r := storetest.Row{Base: base, Head: head, Low: low, Away: away, AwayOf: awayOf, Forks: forks}
							rows++
							if story := proseOf(f, r); story != "" {
								return story, rows
							}
						}
					}
				}
			}
		}
	}
	return "", rows
}

// proseOf presents every token to one row, which its owner redeemed from the device 0, 0 last.
func proseOf(f decide, row storetest.Row) string {
	for _, age := range []time.Duration{0, window - 1, window, window + 1, 100 * window} {
		row.Late = age > window
		was := session.Rotation{Base: row.Base, Head: row.Head, Low: row.Low, RedeemedAt: epoch.Add(-age), Elsewhere: row.Away,
			ElsewhereOf: row.AwayOf, Forks: row.Forks}
		for g := uint32(1); g <= row.Head+2; g++ {
			for sender := range byte(4) {
				next, verdict, moved := row.Present(g, sender&1, sender>>1)
				want := session.Decision{Verdict: verdict, Rotated: moved, Alert: g > row.Head, End: verdict == session.Reused}
				want.Next = session.Rotation{Base: next.Base, Head: next.Head, Low: next.Low, RedeemedAt: was.RedeemedAt,
					Device: modelDevice(next.Network, next.Agent), Elsewhere: next.Away, ElsewhereOf: next.AwayOf, Forks: next.Forks}
				if moved {
					want.Next.RedeemedAt = epoch
				}
				want.Changed = want.Next != was
				if got := f(was, g, modelDevice(sender&1, sender>>1), epoch, window); got != want {
					return fmt.Sprintf("generation %d from %d, %v after the redemption, to %+v:\nthe prose says %+v\n    decided is %+v", g, sender, age, row, want, got)
				}
			}
		}
	}
	return ""
}

func TestModelEveryDecisionIsWhatTheProseSays(t *testing.T) {
	t.Parallel()
	story, rows := proseModel(session.Decide)
	t.Logf("%d rows", rows)
	if story != "" {
		t.Error(story)
	}
}

// traveller is one owner whose answers get lost and whose network changes between two tries of one token.
type traveller struct {
	row   modelRow
	owner uint8
	last  uint8 // the network of the last redemption
	away  uint8 // generations in a row that were replayed from another device, in the window; it stays where it is full
	of    uint8 // the generation replayed so last
}

// travelModel gives the story of a traveller who is refused too early or answered too late, or "". Two generations in a row
// may be replayed from another device, each as often as it takes; from the third on such replays are refused for good.
func travelModel(f decide, depth int) (string, int) {
	return explore(traveller{row: newModelRow(), owner: 1}, depth, func(w traveller, emit func(traveller, step, string)) {
		for net := range uint8(2) {
			n := w
			row, d := w.row.present(f, w.owner, net, 0)
			if row.head > maxHead {
				continue
			}
			n.row = row
			switch {
			case row.base != w.row.base: // redeemed: the run is broken where the generation before was not replayed elsewhere
				n.last = net
				if w.of != w.row.base && w.away < 3 {
					n.away = 0
				}
			case w.row.age <= windowTicks && w.owner == w.row.base && net != w.last && w.of != w.owner:
				n.away, n.of = w.away+1, w.owner
			}
			elsewhere := w.row.age <= windowTicks && w.owner == w.row.base && net != w.last
			broken := ""
			switch {
			case d.End:
				broken = "the traveller's session is ended"
			case elsewhere && n.away >= 3 && d.Verdict != session.Superseded:
				broken = "the third generation replayed elsewhere, or a later one, is answered"
			case !(elsewhere && n.away >= 3) && d.Verdict != session.Issue:
				broken = "the traveller is refused before the third generation"
			}
			emit(n, step{"the owner asks, and the answer is lost, from network", net}, broken)
			if broken == "" && d.Verdict == session.Issue {
				n.owner = row.head
				emit(n, step{"the owner refreshes from network", net}, "")
			}
		}
		n := w
		n.row.age = longTicks
		emit(n, step{"ticks pass:", longTicks}, "")
	})
}

const travelDepth = 12

func TestModelATravellerIsRefusedFromTheThirdGenerationOn(t *testing.T) {
	t.Parallel()
	story, states := travelModel(session.Decide, travelDepth)
	t.Logf("%d states", states)
	if story != "" {
		t.Errorf("a journey breaks the promise:\n%s", story)
	}
}
