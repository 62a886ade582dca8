package faults

import (
	"fmt"
	"slices"
	"time"

	"github.com/authsvc/authsvc/guard"
)

// What is promised, in figures.
const (
	reuseWindow     = 10 * time.Second // of the client app, the shortest
	skew            = 30 * time.Second // of verify.Options
	introspectLag   = time.Second      // how old the knowledge of an introspection is at most
	backWithin      = 5 * time.Second  // after the end of a fault everything is answered again
	clocksDiffer    = 10 * time.Millisecond
	ruleGenerations = "(1) each generation is redeemed once"
	rulePromise     = "(2) nothing is accepted outside the promise"
	ruleEnds        = "(3) no session ends by itself"
	ruleRotation    = "(4) no verification fails through a rotation of keys"
	ruleBack        = "(5) nothing is away longer than the fault and 5 s"
	ruleLasting     = "(6) what was acknowledged lasts"
	ruleSignIn      = "(7) a wrong password signs nobody in"
)

// violation is a broken promise, with what shows it.
type violation struct {
	rule, text string
	events     []event
}

func (v violation) String() string {
	text := v.rule + ": " + v.text
	for _, e := range v.events {
		text += "\n\t" + e.String()
	}
	return text
}

// check holds a history against everything that is promised. It is a function of the history alone.
func check(h []event) (all []violation) {
	k := know(h)
	for _, rule := range []func(*known) []violation{(*known).generations, (*known).promise, (*known).ends, (*known).rotation, (*known).back,
		(*known).signIns} {
		all = append(all, rule(k)...)
	}
	return all
}

// span is when something was asked for first, and answered first; 0 where never.
type span struct{ asked, answered int64 }

func (s *span) note(e event) {
	if s.asked == 0 || e.Begin < s.asked {
		s.asked = e.Begin
	}
	if e.Out == outOK && (s.answered == 0 || e.End < s.answered) {
		s.answered = e.End
	}
}

// known is a history, put in order.
type known struct {
	events    []event
	refreshes map[string][]event // by session
	sessionOf map[string]string  // by access token
	sessions  map[string]*span   // their ends, that somebody asked for
	thefts    map[string]*span   // their ends, that authsvc said it had made
	tokens    map[string]*span
	kids      map[string]*span
	shared    map[string]int64 // sessions with two holders, and since when
	faults    []event
}

func know(h []event) *known {
	k := &known{events: h, refreshes: map[string][]event{}, sessionOf: map[string]string{}, sessions: map[string]*span{},
		thefts: map[string]*span{}, tokens: map[string]*span{}, kids: map[string]*span{}, shared: map[string]int64{}}
	for _, e := range h {
		if e.Token != "" && e.Session != "" {
			k.sessionOf[e.Token] = e.Session
		}
		switch {
		case e.Op == opRefresh:
			k.refreshes[e.Session] = append(k.refreshes[e.Session], e)
			if e.Out == outRefused && e.Reason == "REFRESH_REUSED" { // ended, and committed, before it was answered
				at(k.thefts, e.Session).note(event{Begin: e.Begin, End: e.End, Out: outOK})
			}
		case e.Op == opRevoke && e.Session != "":
			at(k.sessions, e.Session).note(e)
		case e.Op == opRevoke:
			at(k.tokens, e.Token).note(e)
		case e.Op == opKeyRevoke:
			at(k.kids, e.Kid).note(e)
		case e.Op == opShare:
			k.shared[e.Session] = e.Begin
		case e.Op == opFault || e.Op == opStill:
			k.faults = append(k.faults, e)
		}
	}
	slices.SortFunc(k.faults, func(a, b event) int { return int(a.Begin - b.Begin) })
	return k
}

func at(m map[string]*span, key string) *span {
	if m[key] == nil {
		m[key] = &span{}
	}
	return m[key]
}

// generations: a successor comes from one token only; a token yields another successor only after a window, and nothing once a
// later one was redeemed, nor once its session's end was answered.
func (k *known) generations() (all []violation) {
	for _, session := range sorted(k.refreshes) {
		refreshes := k.refreshes[session]
		parent := map[uint32]event{}
		first := map[uint32]int64{}        // when a token was presented first
		successors := map[uint32][]event{} // different ones of one token
		for _, e := range refreshes {
			if begin, seen := first[e.Gen]; !seen || e.Begin < begin {
				first[e.Gen] = e.Begin
			}
		}
		for _, e := range refreshes {
			if e.Out != outOK {
				continue
			}
			if p, seen := parent[e.Next]; seen && p.Gen != e.Gen {
				all = append(all, violation{ruleGenerations, "one successor of two tokens", []event{p, e}})
			}
			parent[e.Next] = e
			if !slices.ContainsFunc(successors[e.Gen], func(o event) bool { return o.Next == e.Next }) {
				successors[e.Gen] = append(successors[e.Gen], e)
			}
			if _, ended := k.revoked(event{Session: session}); ended != 0 && e.Begin > ended {
				all = append(all, violation{ruleGenerations, "a refresh after the session's end was answered", []event{e}})
			}
		}
		for gen, got := range successors {
			slices.SortFunc(got, func(a, b event) int { return int(a.Next) - int(b.Next) })
			for i, e := range got {
				if e.End-first[gen] < int64(i)*int64(reuseWindow-clocksDiffer) {
					all = append(all, violation{ruleGenerations, "two successors of one token within its window", []event{got[i-1], e}})
				}
			}
		}
		all = append(all, late(refreshes)...)
	}
	return all
}

// late finds tokens that were redeemed after the answer to a later one.
func late(refreshes []event) (all []violation) {
	var newest event // of those that were answered so far
	byEnd := slices.SortedFunc(slices.Values(refreshes), func(a, b event) int { return int(a.End - b.End) })
	byBegin := slices.SortedFunc(slices.Values(refreshes), func(a, b event) int { return int(a.Begin - b.Begin) })
	i := 0
	for _, e := range byBegin {
		for ; i < len(byEnd) && byEnd[i].End < e.Begin; i++ {
			if o := byEnd[i]; o.Out == outOK && o.Gen > newest.Gen {
				newest = o
			}
		}
		if e.Out == outOK && e.Gen < newest.Gen {
			all = append(all, violation{ruleGenerations, "a token is redeemed after a later one", []event{newest, e}})
		}
	}
	return all
}

// revoked gives when all was known to be over for a token, and when anybody first asked for that; 0 where never.
func (k *known) revoked(e event) (asked, answered int64) {
	session := e.Session
	if session == "" {
		session = k.sessionOf[e.Token]
	}
	for i, s := range []*span{k.thefts[session], k.sessions[session], k.tokens[e.Token], k.kids[e.Kid]} {
		if s == nil {
			continue
		}
		if i > 0 && (asked == 0 || s.asked < asked) { // nobody asks for a theft
			asked = s.asked
		}
		if s.answered != 0 && (answered == 0 || s.answered < answered) {
			answered = s.answered
		}
	}
	return asked, answered
}

// promise is that of docs/freshness.md, for the services and for introspection.
func (k *known) promise() (all []violation) {
	for _, e := range k.events {
		if e.Out != outOK || e.Op != opCall && e.Op != opIntrospect {
			continue
		}
		_, answered := k.revoked(e)
		limit := int64(guard.MaxAge)
		if e.Sensitive {
			limit = int64(guard.MaxAgeSensitive)
		}
		var what string
		switch {
		case e.Sent > (e.Exp+1)*1000+skew.Milliseconds():
			what = "a token is accepted after its exp"
		case e.Op == opIntrospect && answered != 0 && e.Begin > answered+int64(introspectLag+clocksDiffer):
			what = "what was revoked is introspected as active"
		case e.Op == opIntrospect:
		case answered != 0 && e.Least > answered:
			what = "a revoked token is accepted by knowledge that has its revocation"
		case answered != 0 && e.Begin-limit > answered:
			what = "a token is accepted that was revoked longer ago than the rule's limit"
		case e.Begin-e.Most > limit:
			what = "a token is accepted by knowledge older than the rule's limit"
		}
		if what != "" {
			text := what
			if answered != 0 {
				text += fmt.Sprintf(", %v after its end was answered", time.Duration(e.Begin-answered))
			}
			all = append(all, violation{rulePromise, text, []event{e}})
		}
	}
	return all
}

// ends: what has one holder and what nobody ended is neither refused a refresh nor called revoked.
func (k *known) ends() (all []violation) {
	for _, e := range k.events {
		if e.Out != outRefused {
			continue
		}
		asked, _ := k.revoked(e)
		session := e.Session
		if session == "" {
			session = k.sessionOf[e.Token]
		}
		since, two := k.shared[session]
		switch {
		case asked != 0 && asked < e.End, two && since < e.End:
		case e.Op == opRefresh:
			all = append(all, violation{ruleEnds, "an honest holder is refused", append(k.around(e), e)})
		case e.Op == opCall && e.Reason == guard.ReasonTokenRevoked, e.Op == opIntrospect && e.Sent < (e.Exp-1)*1000:
			all = append(all, violation{ruleEnds, "a live token is called dead", []event{e}})
		case e.Op == opCall && e.Reason == guard.ReasonTokenExpired && e.Sent < (e.Exp-1)*1000:
			all = append(all, violation{ruleEnds, "a token is called expired before its time", []event{e}})
		}
	}
	return all
}

// around gives the last refreshes of a session before an event.
func (k *known) around(e event) (last []event) {
	for _, o := range k.refreshes[e.Session] {
		if o.Begin < e.Begin {
			last = append(last, o)
		}
	}
	return slices.Clone(last[max(0, len(last)-6):])
}

// rotation: a token whose key nobody revoked is never called invalid.
func (k *known) rotation() (all []violation) {
	for _, e := range k.events {
		if e.Op != opCall || e.Out != outRefused || e.Reason == guard.ReasonTokenRevoked || e.Reason == guard.ReasonTokenExpired {
			continue
		}
		if s := k.kids[e.Kid]; s == nil || s.asked > e.End {
			all = append(all, violation{ruleRotation, "a good token is refused as " + e.Reason, []event{e}})
		}
	}
	return all
}

// back: through the balancer, with one retry by another connection, a call that began longer than 5 s after a fault's end, and was
// answered before the next, was served. A machine that stood still is a fault, too.
func (k *known) back() (all []violation) {
	for _, e := range k.events {
		if e.Out != outAway || e.Via != balancer || !e.Last {
			continue
		}
		excused := slices.ContainsFunc(k.faults, func(f event) bool { return e.End > f.Begin && e.Begin < f.End+int64(backWithin) })
		if !excused {
			all = append(all, violation{ruleBack, "a call fails while all is well", []event{e}})
		}
	}
	return all
}

func (k *known) signIns() (all []violation) {
	for _, e := range k.events {
		if e.Op == opWrong && e.Out == outOK {
			all = append(all, violation{ruleSignIn, "it did", []event{e}})
		}
	}
	return all
}

func sorted[V any](m map[string]V) (keys []string) {
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
