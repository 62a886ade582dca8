package faults

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// tally is what a report says of one kind of fault.
type tally struct {
	times, calls, errors, lost int           // errors: tries without an answer; lost: those whose retry had none either
	longest                    time.Duration // without an answer, after the fault's end
}

// report is a table for people.
func report(h []event, violations []violation) string {
	var out strings.Builder
	fmt.Fprintf(&out, "%-42s %5s %8s %8s %8s %14s\n", "kind", "times", "calls", "errors", "lost", "away after")
	kinds, quiet := tallies(h)
	for _, name := range append(sorted(kinds), "") {
		t, shown := kinds[name], name
		if name == "" {
			t, shown = quiet, "between faults"
		}
		fmt.Fprintf(&out, "%-42s %5d %8d %8d %8d %14v\n", shown, t.times, t.calls, t.errors, t.lost, t.longest.Round(time.Millisecond))
	}
	healthy, disturbed := spreads(h)
	fmt.Fprintf(&out, "revoked at one replica, refused by the services at the others: undisturbed %s; during faults %s\n", percentiles(healthy), percentiles(disturbed))
	fmt.Fprintf(&out, "%s\n", ways(h))
	fmt.Fprintf(&out, "%d violations\n", len(violations))
	return out.String()
}

// tallies counts the calls through the balancer: what began while a fault lasted or within the 5 s after is the fault's.
func tallies(h []event) (kinds map[string]*tally, quiet *tally) {
	kinds, quiet = map[string]*tally{}, &tally{}
	var faults []event
	for _, e := range h {
		if e.Op == opFault || e.Op == opChange {
			faults = append(faults, e)
			if kinds[e.Via] == nil {
				kinds[e.Via] = &tally{}
			}
			kinds[e.Via].times++
		}
	}
	slices.SortFunc(faults, func(a, b event) int { return int(a.Begin - b.Begin) })
	for _, e := range h {
		if e.Via != balancer {
			continue
		}
		t := quiet
		i, _ := slices.BinarySearchFunc(faults, e.Begin+1, func(f event, at int64) int { return int(f.Begin - at) })
		if i > 0 && e.Begin < faults[i-1].End+int64(backWithin) {
			f := faults[i-1]
			t = kinds[f.Via]
			if e.Out == outAway && e.Last && e.End > f.End {
				t.longest = max(t.longest, time.Duration(e.End-f.End))
			}
		}
		if t.calls++; e.Out == outAway {
			if t.errors++; e.Last {
				t.lost++
			}
		}
	}
	return kinds, quiet
}

// spreads gives how long each revocation at one replica took to be refused by the services at the others: where no fault was, and where
// one was.
func spreads(h []event) (healthy, disturbed []time.Duration) {
	type key struct{ token, service string }
	at := map[string]event{} // the first answered revocation, by session or token
	first := map[key]int64{} // the first refusal after that
	tokens := map[string]string{}
	var faults []event
	for _, e := range h {
		switch {
		case e.Op == opFault:
			faults = append(faults, e)
		case e.Op == opRevoke && e.Out == outOK && strings.HasPrefix(e.Via, "replica "):
			id := e.Session + e.Token
			if _, seen := at[id]; !seen {
				at[id] = e
			}
		case e.Op == opCall && e.Out == outRefused && strings.HasPrefix(e.Via, "at replica "):
			if k := (key{e.Token, e.Via}); first[k] == 0 || e.End < first[k] {
				first[k] = e.End
				tokens[e.Token] = e.Session
			}
		}
	}
	for k, end := range first {
		r, known := at[k.token]
		if s, of := at[tokens[k.token]]; of && tokens[k.token] != "" && (!known || s.End < r.End) {
			r, known = s, true
		}
		if !known || k.service == "at "+r.Via {
			continue
		}
		took := max(0, time.Duration(end-r.End))
		if slices.ContainsFunc(faults, func(f event) bool { return end > f.Begin && r.Begin < f.End+int64(backWithin) }) {
			disturbed = append(disturbed, took)
		} else {
			healthy = append(healthy, took)
		}
	}
	return healthy, disturbed
}

func percentiles(all []time.Duration) string {
	if len(all) == 0 {
		return "none"
	}
	slices.Sort(all)
	of := func(p float64) time.Duration {
		return all[min(len(all)-1, int(math.Ceil(p*float64(len(all))))-1)].Round(100 * time.Microsecond)
	}
	return fmt.Sprintf("n=%d p50=%v p99=%v max=%v", len(all), of(0.5), of(0.99), of(1))
}

// ways counts how everything ended.
func ways(h []event) string {
	count := map[string]int{}
	for _, e := range h {
		key := fmt.Sprintf("%s %s", e.Op, e.Out)
		if e.Out == outRefused {
			key += " " + e.Reason
		}
		count[key]++
	}
	var lines []string
	for _, key := range sorted(count) {
		lines = append(lines, fmt.Sprintf("%s %d", key, count[key]))
	}
	return strings.Join(lines, "; ")
}
