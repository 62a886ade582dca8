package model

import (
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/authsvc/authsvc/test/soak"
)

// each is how many schedules one call of rapid.Check draws, unless its flags say otherwise.
const each = 100

// Prove plays some hundred schedules against a subject, 50,000 in a soak. None may break the promise, and together they must have
// brought about all that Seen counts.
func Prove(t *testing.T, subject Subject) {
	t.Helper()
	var all Seen
	for range soak.Count(300, 50_000) / each {
		rapid.Check(t, func(rt *rapid.T) {
			seen, err := Run(t, subject, Draw(rt))
			if err != nil {
				rt.Fatal(err)
			}
			all.add(seen)
		})
	}
	if all.Accepts == 0 || all.Old == 0 || all.Refusals == 0 || all.Unready == 0 || all.Resumes == 0 || all.Broken == 0 {
		t.Errorf("the schedules are empty: %+v", all)
	}
}

// Catch plays schedules against broken subjects, by the name of what is broken. One of 2,000 must show each.
func Catch(t *testing.T, subjects map[string]Subject) {
	t.Helper()
	left, plans := maps.Clone(subjects), 0
	for plans < 2000 && len(left) > 0 {
		rapid.Check(t, func(rt *rapid.T) {
			if len(left) == 0 {
				return
			}
			plan := Draw(rt)
			plans++
			for name, subject := range left {
				if _, err := Run(t, subject, plan); err != nil {
					delete(left, name)
					t.Logf("%s: schedule %d: %v", name, plans, err)
				}
			}
		})
	}
	for name := range left {
		t.Errorf("%s: none of %d schedules shows it", name, plans)
	}
}
