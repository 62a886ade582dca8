package session_test

import (
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/session"
)

// ruleOf says which of the six rules a presented token meets, by their prose.
func ruleOf(r session.Rotation, g uint32, d session.Device, now time.Time, window time.Duration) int {
	in := now.Sub(r.RedeemedAt) <= window
	switch {
	case g == r.Head:
		return 1
	case g > r.Head:
		return 2
	case g == r.Base && in:
		return 3
	case g != r.Base && g >= r.Low && in && d.UserAgent == r.Device.UserAgent:
		return 4
	case g == r.Base:
		return 5
	default:
		return 6
	}
}

// without is Decide with one rule taken out: what met it is theft, as anything that meets no rule; without rule 6 itself
// nothing is, and such tokens are refused as duplicates.
func without(rule int) decide {
	return func(r session.Rotation, g uint32, d session.Device, now time.Time, window time.Duration) session.Decision {
		switch {
		case ruleOf(r, g, d, now, window) != rule:
			return session.Decide(r, g, d, now, window)
		case rule == 6:
			return session.Decision{Verdict: session.Superseded, Next: r}
		default:
			return session.Decision{Verdict: session.Reused, Next: r, End: true}
		}
	}
}

// altered is Decide with one clause of a rule taken out: fix changes what that rule has decided.
func altered(rule int, fix func(was session.Rotation, g uint32, now time.Time, d *session.Decision)) decide {
	return func(r session.Rotation, g uint32, from session.Device, now time.Time, window time.Duration) session.Decision {
		d := session.Decide(r, g, from, now, window)
		if ruleOf(r, g, from, now, window) == rule {
			fix(r, g, now, &d)
			d.Changed = d.Next != r
		}
		return d
	}
}

// asIf is Decide with a condition of a rule taken out: what see makes of the request is what is decided upon.
func asIf(rule int, see func(r session.Rotation, g uint32, d *session.Device, now *time.Time)) decide {
	return func(r session.Rotation, g uint32, d session.Device, now time.Time, window time.Duration) session.Decision {
		d2, now2 := d, now
		see(r, g, &d2, &now2)
		if ruleOf(r, g, d2, now2, window) == rule {
			return session.Decide(r, g, d2, now2, window)
		}
		return session.Decide(r, g, d, now, window)
	}
}

func TestModelNoticesEachRuleThatIsMissing(t *testing.T) {
	t.Parallel()
	honest := func(f decide) string {
		story, _ := honestModel(honestRules{decide: f}, 12)
		return story
	}
	pairs := func(thief thiefKind) func(decide) string {
		return func(f decide) string {
			story, _ := pairModel(f, thief, pairDepth)
			return story
		}
	}
	copies := func(f decide) string {
		story, _ := pastModel(f, pastDepth)
		return story
	}
	travel := func(f decide) string {
		story, _ := travelModel(f, travelDepth)
		return story
	}
	prose := func(f decide) string {
		story, _ := proseModel(f)
		return story
	}
	type rotation = session.Rotation
	for _, tt := range []struct {
		name  string
		f     decide
		story func(decide) string
	}{
		{"no rule 1", without(1), honest},
		{"no rule 2", without(2), honest},
		{"no rule 3", without(3), honest},
		{"no rule 4", without(4), honest},
		{"no rule 5", without(5), honest},
		{"no rule 6", without(6), copies},

		{"rule 1 answers without moving the head", altered(1, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			d.Next.Base, d.Next.Head = was.Base, was.Head
		}), honest},
		{"rule 1 leaves the time of redemption", altered(1, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			d.Next.RedeemedAt = was.RedeemedAt
		}), honest},
		{"rule 1 never raises low", altered(1, func(was rotation, _ uint32, _ time.Time, d *session.Decision) { d.Next.Low = was.Low }), copies},
		{"rule 1 always raises low", altered(1, func(_ rotation, g uint32, _ time.Time, d *session.Decision) { d.Next.Low = g }), honest},
		{"rule 1 forgets replays elsewhere", altered(1, func(_ rotation, _ uint32, _ time.Time, d *session.Decision) { d.Next.Elsewhere = 0 }), pairs(thieves[0])},
		{"rule 1 forgets a count that is full", altered(1, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			if was.ElsewhereOf != was.Base {
				d.Next.Elsewhere = 0
			}
		}), travel},
		{"rule 1 never forgets replays elsewhere", altered(1, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			d.Next.Elsewhere = was.Elsewhere
		}), travel},
		{"rule 1 leaves the network", altered(1, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			d.Next.Device.Network = was.Device.Network
		}), travel},
		{"rule 1 leaves the user agent", altered(1, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			d.Next.Device.UserAgent = was.Device.UserAgent
		}), prose},
		{"rule 1 leaves the forks", altered(1, func(was rotation, _ uint32, _ time.Time, d *session.Decision) { d.Next.Forks = was.Forks }), prose},
		{"rule 1 raises low at the window's last instant", altered(1, func(was rotation, g uint32, now time.Time, d *session.Decision) {
			if now.Sub(was.RedeemedAt) >= window {
				d.Next.Low = g
			}
		}), prose},
		{"rule 2 leaves low", altered(2, func(was rotation, _ uint32, _ time.Time, d *session.Decision) { d.Next.Low = was.Low }), prose},
		{"rule 2 raises no alert", altered(2, func(_ rotation, _ uint32, _ time.Time, d *session.Decision) { d.Alert = false }), prose},
		{"rule 2 answers without moving the head", altered(2, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			d.Next.Base, d.Next.Head = was.Base, was.Head
		}), honest},
		{"rule 2 raises low as rule 1 does", altered(2, func(_ rotation, g uint32, _ time.Time, d *session.Decision) { d.Next.Low = g }), honest},
		{"rule 3 whatever the time", asIf(3, func(r rotation, g uint32, _ *session.Device, now *time.Time) {
			if g == r.Base {
				*now = r.RedeemedAt
			}
		}), pairs(thieves[3])},
		{"rule 3 does not count replays elsewhere", altered(3, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			d.Verdict, d.Next = session.Issue, was
		}), pairs(thieves[1])},
		{"rule 3 gives a new successor", altered(3, func(was rotation, _ uint32, now time.Time, d *session.Decision) {
			d.Next.Head, d.Next.RedeemedAt, d.Rotated = was.Head+1, now, true
		}), honest},
		{"rule 3 ends with the window's last instant", asIf(5, func(r rotation, g uint32, _ *session.Device, now *time.Time) {
			if g == r.Base && now.Sub(r.RedeemedAt) == window {
				*now = now.Add(1)
			}
		}), prose},
		{"rule 3 does not look at the network", asIf(3, func(r rotation, _ uint32, d *session.Device, _ *time.Time) {
			d.Network = r.Device.Network
		}), pairs(thieves[0])},
		{"rule 3 does not look at the user agent", asIf(3, func(r rotation, _ uint32, d *session.Device, _ *time.Time) {
			d.UserAgent = r.Device.UserAgent
		}), pairs(thieves[1])},
		{"rule 3 counts each replay", altered(3, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			if d.Next == was && was.ElsewhereOf == was.Base && was.Elsewhere > 0 && was.Elsewhere < 3 {
				d.Next.Elsewhere++
			}
		}), travel},
		{"rule 3 counts the device of the last redemption", altered(3, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			if was.ElsewhereOf != was.Base {
				d.Next.Elsewhere, d.Next.ElsewhereOf = was.Elsewhere+1, was.Base
			}
		}), travel},
		{"rule 3 refuses from the second generation on", altered(3, func(_ rotation, _ uint32, _ time.Time, d *session.Decision) {
			if d.Next.Elsewhere == 2 {
				d.Verdict = session.Superseded
			}
		}), travel},
		{"rule 3 refuses from the fourth generation on", altered(3, func(_ rotation, _ uint32, _ time.Time, d *session.Decision) {
			if d.Next.Elsewhere == 3 {
				d.Verdict = session.Issue
			}
		}), travel},
		{"rule 3 refuses the device of the last redemption too", altered(3, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			if was.Elsewhere >= 3 {
				d.Verdict = session.Superseded
			}
		}), travel},
		{"rule 3 ends what it refuses", altered(3, func(_ rotation, _ uint32, _ time.Time, d *session.Decision) {
			if d.Verdict == session.Superseded {
				d.Verdict, d.End = session.Reused, true
			}
		}), travel},
		{"rule 3 starts the window anew", altered(3, func(_ rotation, _ uint32, now time.Time, d *session.Decision) { d.Next.RedeemedAt = now }), prose},
		{"rule 4 whatever low", func(r rotation, g uint32, d session.Device, now time.Time, window time.Duration) session.Decision {
			all := r
			all.Low = 0
			if ruleOf(all, g, d, now, window) == 4 {
				return session.Decision{Verdict: session.Superseded, Next: r}
			}
			return session.Decide(r, g, d, now, window)
		}, copies},
		{"rule 4 answers with the newest token", altered(4, func(_ rotation, _ uint32, _ time.Time, d *session.Decision) { d.Verdict = session.Issue }), copies},
		{"rule 4 starts the window anew", altered(4, func(_ rotation, _ uint32, now time.Time, d *session.Decision) { d.Next.RedeemedAt = now }), prose},
		{"rule 4 whatever the time", asIf(4, func(r rotation, _ uint32, _ *session.Device, now *time.Time) { *now = r.RedeemedAt }), copies},
		{"rule 4 whatever the user agent", asIf(4, func(r rotation, _ uint32, d *session.Device, _ *time.Time) { *d = r.Device }), copies},
		{"rule 4 on the same network only", func(r rotation, g uint32, d session.Device, now time.Time, window time.Duration) session.Decision {
			if ruleOf(r, g, d, now, window) == 4 && d != r.Device {
				return session.Decision{Verdict: session.Reused, Next: r, End: true}
			}
			return session.Decide(r, g, d, now, window)
		}, honest},
		{"rule 5 answers the same head", altered(5, func(was rotation, _ uint32, _ time.Time, d *session.Decision) { d.Next = was }), pairs(thieves[3])},
		{"rule 5 leaves the time of redemption", altered(5, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			d.Next.RedeemedAt = was.RedeemedAt
		}), honest},
		{"rule 5 leaves low", altered(5, func(was rotation, _ uint32, _ time.Time, d *session.Decision) { d.Next.Low = was.Low }), copies},
		{"rule 5 remembers the device", func(r rotation, g uint32, d session.Device, now time.Time, window time.Duration) session.Decision {
			out := session.Decide(r, g, d, now, window)
			if out.Rotated && ruleOf(r, g, d, now, window) == 5 {
				out.Next.Device = d
			}
			return out
		}, prose},
		{"rule 5 stops one retry early", altered(5, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			if was.Forks == forkCap-1 {
				d.Next, d.Rotated = was, false
			}
		}), prose},
		{"rule 5 without its limit", altered(5, func(was rotation, _ uint32, now time.Time, d *session.Decision) {
			d.Next.Head, d.Next.Low, d.Next.RedeemedAt, d.Next.Forks = was.Head+1, was.Base, now, was.Forks+1
		}), copies},
		{"rule 5 ends at its limit", altered(5, func(was rotation, _ uint32, _ time.Time, d *session.Decision) {
			if d.Next == was {
				d.Verdict, d.End = session.Reused, true
			}
		}), copies},
		{"rule 6 refuses and does not end", altered(6, func(_ rotation, _ uint32, _ time.Time, d *session.Decision) { d.End = false }), copies},
		{"rule 6 ends and calls it a duplicate", altered(6, func(_ rotation, _ uint32, _ time.Time, d *session.Decision) { d.Verdict = session.Superseded }), copies},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			story := tt.story(tt.f)
			if story == "" {
				t.Fatal("the model does not notice")
			}
			t.Logf("noticed:\n%s", story)
		})
	}
}

func TestModelNoticesEachPromiseOfTheOthersThatIsBroken(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		rules honestRules
	}{
		{"a tab stores an answer though storage has moved on", honestRules{decide: session.Decide, storeAnyway: true}},
		{"a tab stores an answer that comes too late", honestRules{decide: restartingWindow, lateReplays: true, noFailover: true, storeLate: true}},
		{"a stopped replica decides long after the request", honestRules{decide: session.Decide, noDeadline: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			story, _ := honestModel(tt.rules, 12)
			if story == "" {
				t.Fatal("the model does not notice")
			}
			t.Logf("noticed:\n%s", story)
		})
	}
}
