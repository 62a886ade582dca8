package guard_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// agedKeys is a source of keys of somebody's own, which takes theirs for too old.
type agedKeys struct {
	verify.KeySource
	err error
}

func (a *agedKeys) Key(ctx context.Context, kid string) (*verify.Key, error) {
	if a.err != nil {
		return nil, a.err
	}
	return a.KeySource.Key(ctx, kid)
}

// TestR61KeysThatAreTooOldAreNoVerdict under a rule that goes on by old revocations: no signature was looked at.
func TestR61KeysThatAreTooOldAreNoVerdict(t *testing.T) {
	t.Parallel()
	feed := idleFeed(t)
	if err := feed.Stream()(part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
		t.Fatal(err)
	}
	keys := &agedKeys{KeySource: feed}
	v, err := verify.New(verify.Options{Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: keys, Revocations: feed,
		Now: func() time.Time { return time.Unix(issued+60, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	g := newGuard(t, guard.Options{Verifier: v, Feed: feed})
	good := token(nil)
	other := token(map[string]any{"sub": "another"})
	forged := "Bearer " + other[:strings.LastIndex(other, ".")] + good[strings.LastIndex(good, "."):]
	for name, rule := range map[string]guard.Rule{
		"any": {Authenticated: true}, "on by exp": {Authenticated: true, HonourExp: true}, "a user's, on by exp": {User: true, HonourExp: true},
	} {
		for _, err := range []error{verify.ErrStale, fmt.Errorf("mine: %w", verify.ErrStale), verify.ErrNotReady} {
			keys.err = err
			for _, authorization := range []string{forged, "Bearer " + good} {
				if _, reason := g.Decide(t.Context(), rule, []string{authorization}); reason != guard.ReasonReplicaStale {
					t.Errorf("R61 %s, keys that say %q: got %q", name, err, reason)
				}
			}
		}
		keys.err = nil
		if _, reason := g.Decide(t.Context(), rule, []string{forged}); reason != guard.ReasonTokenInvalid {
			t.Errorf("%s, keys that are there, a forged token: got %q", name, reason)
		}
		if _, reason := g.Decide(t.Context(), rule, []string{"Bearer " + good}); reason != "" {
			t.Errorf("the twin: %s, keys that are there: got %q", name, reason)
		}
	}
}
