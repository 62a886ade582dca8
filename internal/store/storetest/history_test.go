package storetest_test

import (
	"testing"

	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

// said is one call of a made-up history, in the order of the questions; together with the one before it, it is under way
// at the same time.
type said struct {
	call     storetest.Call
	answer   storetest.Answer
	together bool
}

func from(network, agent byte, g uint32, v session.Verdict, head uint32) said {
	return said{call: storetest.Call{Kind: storetest.Refresh, Generation: g, Network: network, Agent: agent}, answer: storetest.Answer{Verdict: v, Head: head}}
}

func issued(g, head uint32) said { return from(0, 0, g, session.Issue, head) }

func refused(g uint32, v session.Verdict) said { return from(0, 0, g, v, 0) }

func asked(k storetest.Kind, g uint32, active bool) said {
	return said{call: storetest.Call{Kind: k, Generation: g, Token: uint(g)}, answer: storetest.Answer{Active: active}}
}

func meanwhile(s said) said {
	s.together = true
	return s
}

func lost(s said) said {
	s.answer = storetest.Answer{Lost: true}
	return s
}

func history(calls []said) *storetest.History {
	h := &storetest.History{}
	for i, c := range calls {
		at, until := int64(10*i+1), int64(10*i+2)
		if c.together {
			at -= 10
		}
		if i+1 < len(calls) && calls[i+1].together {
			until += 10
		}
		h.Add(i, c.call, c.answer, at, until)
	}
	return h
}

// Each history that no service may show has a twin beside it, which one may: the same with the fault taken out.
func TestTheCheckCatchesAWrongHistory(t *testing.T) {
	t.Parallel()
	pause, end := said{call: storetest.Call{Kind: storetest.Pause}}, said{call: storetest.Call{Kind: storetest.End}}
	stale := func(last said) []said { return []said{issued(1, 2), issued(2, 3), pause, issued(3, 4), last} }
	// Three generations that are each replayed from another network in the window.
	roaming := func(third said) []said {
		return []said{issued(1, 2), from(1, 0, 1, session.Issue, 2), issued(2, 3), from(1, 0, 2, session.Issue, 3), issued(3, 4), third}
	}
	for _, tt := range []struct {
		name        string
		wrong, twin []said
	}{
		{"F05 two successors for one token in the window", []said{issued(1, 2), issued(1, 3)}, []said{issued(1, 2), issued(1, 2)}},
		{"F05 two successors for two calls at once", []said{issued(1, 2), meanwhile(issued(1, 3))}, []said{issued(1, 2), meanwhile(issued(1, 2))}},
		{"F08 a refresh after a revocation had been answered", []said{end, issued(1, 2)}, []said{end, meanwhile(issued(1, 2))}},
		{"F08 a refresh after a late retry after a revocation", []said{issued(1, 2), end, pause, issued(1, 3)}, []said{issued(1, 2), end, pause, refused(1, session.Invalid)}},
		{"R10 an access token active after a revocation had been answered", []said{end, asked(storetest.Access, 0, true)}, []said{end, meanwhile(asked(storetest.Access, 0, true))}},
		{"R10 an access token inactive, and nobody revoked it", []said{asked(storetest.Access, 0, false), end}, []said{asked(storetest.Access, 0, true), end}},
		{"R10 one access token's revocation ends another", []said{asked(storetest.Kill, 1, false), asked(storetest.Access, 0, false)},
			[]said{asked(storetest.Kill, 1, false), asked(storetest.Access, 0, true), asked(storetest.Access, 1, false)}},
		{"one access token's revocation ends the session", []said{asked(storetest.Kill, 1, false), refused(1, session.Invalid)}, []said{asked(storetest.Kill, 1, false), issued(1, 2)}},
		{"a refresh token of the past called active", []said{issued(1, 2), issued(2, 3), asked(storetest.Current, 1, true)},
			[]said{issued(1, 2), issued(2, 3), asked(storetest.Current, 2, true), asked(storetest.Current, 1, false)}},
		{"F04 a stolen token comes back and the session lives on", append(stale(refused(1, session.Reused)), issued(4, 5)),
			append(stale(refused(1, session.Reused)), refused(4, session.Invalid), asked(storetest.Access, 0, false))},
		{"F04 a stolen token comes back and is taken for a duplicate", stale(refused(1, session.Superseded)), stale(refused(1, session.Reused))},
		{"F04 the thief's access token lives on", append(stale(refused(1, session.Reused)), asked(storetest.Access, 0, true)), append(stale(refused(1, session.Reused)), asked(storetest.Access, 0, false))},
		{"a late duplicate called theft", []said{issued(1, 2), issued(2, 3), refused(1, session.Reused)}, []said{issued(1, 2), issued(2, 3), refused(1, session.Superseded)}},
		{"a late duplicate from another user agent let pass", []said{issued(1, 2), issued(2, 3), from(0, 1, 1, session.Superseded, 0)},
			[]said{issued(1, 2), issued(2, 3), from(0, 1, 1, session.Reused, 0)}},
		{"a late duplicate given a token", []said{issued(1, 2), issued(2, 3), issued(1, 3)}, []said{issued(1, 2), issued(2, 3), issued(2, 3)}},
		{"F02 a late retry given the successor that was lost", []said{issued(1, 2), pause, issued(1, 2)}, []said{issued(1, 2), pause, issued(1, 3), issued(1, 3), issued(3, 4)}},
		{"F03 the dead successor of a late retry redeemed", []said{issued(1, 2), pause, issued(1, 3), issued(2, 4)}, []said{issued(1, 2), pause, issued(1, 3), refused(2, session.Superseded)}},
		{"two late retries at once given two successors", []said{issued(1, 2), pause, issued(1, 3), meanwhile(issued(1, 4))}, []said{issued(1, 2), pause, issued(1, 3), meanwhile(issued(1, 3))}},
		{"the third generation replayed elsewhere is answered", roaming(from(1, 0, 3, session.Issue, 4)), roaming(from(1, 0, 3, session.Superseded, 0))},
		{"the second generation replayed elsewhere is refused", roaming(from(1, 0, 3, session.Superseded, 0))[2:], roaming(from(1, 0, 3, session.Superseded, 0))[:4]},
		{"a late retry from elsewhere answered again, with no decision to share", append(roaming(pause), from(1, 0, 3, session.Issue, 5), issued(3, 5), from(1, 0, 3, session.Issue, 5)),
			append(roaming(pause), from(1, 0, 3, session.Issue, 5), meanwhile(from(1, 0, 3, session.Issue, 5)), issued(3, 5), from(1, 0, 3, session.Superseded, 0))},
		{"an answer to nobody's token", []said{issued(2, 3), issued(1, 2)}, []said{issued(1, 2), issued(2, 3)}},
		{"a refresh that was answered before a pause is taken for late", []said{issued(1, 2), issued(1, 3), pause}, []said{issued(1, 2), meanwhile(pause), issued(1, 3)}},
		{"unavailable though no time passed", []said{lost(issued(1, 2))}, []said{lost(issued(1, 2)), meanwhile(pause)}},
		{"unavailable, and redeemed all the same", []said{lost(issued(1, 2)), meanwhile(pause), issued(2, 3), refused(1, session.Superseded)},
			[]said{lost(issued(1, 2)), meanwhile(pause), issued(1, 2), issued(2, 3), refused(1, session.Superseded)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if ok, _ := history(tt.wrong).Linearizable(t); ok {
				t.Error("the wrong history passes")
			}
			if ok, story := history(tt.twin).Linearizable(t); !ok {
				t.Errorf("its twin does not pass:\n%s", story)
			}
		})
	}
}
