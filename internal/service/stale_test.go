package service_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/service"
)

// behind is a tail that cannot say how fresh it is, or cannot reach a position.
type behind struct {
	caughtUp
	fresh, reach error
	asked        *[]string
}

func (b behind) Fresh(context.Context) error { return b.fresh }

func (b behind) Await(_ context.Context, position string) error {
	*b.asked = append(*b.asked, position)
	return b.reach
}

// TestR10R61AReplicaThatIsBehindCallsNothingActive asks a replica that cannot read the revocation log: it is no verdict, in
// neither direction.
func TestR10R61AReplicaThatIsBehindCallsNothingActive(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	in := c.login(t, "ada")
	rs := must(c.clients.Get(t.Context(), "rs"))(t)
	stale := fault.New(fault.Unavailable, fault.ReplicaStale, "this replica cannot read the revocation log")
	for _, tt := range []struct {
		name         string
		fresh, reach error
		want         fault.Reason // empty: an answer
	}{
		{"the twin: a replica that is not behind", nil, nil, ""},
		{"one that does not know how fresh it is", stale, nil, fault.ReplicaStale},
		{"one that cannot reach the position", nil, stale, fault.ReplicaStale},
	} {
		var asked []string
		o := c.tokenOptions
		o.Tail = behind{fresh: tt.fresh, reach: tt.reach, asked: &asked}
		tokens := must(service.NewTokens(o))(t)
		for _, tok := range []string{in.AccessToken, "nonsense"} {
			got, err := tokens.Introspect(t.Context(), rs, tok, "a position")
			if tt.want != "" {
				wantReason(t, err, tt.want)
			} else if err != nil || got.Active != (tok == in.AccessToken) {
				t.Errorf("%s: active %v, %v", tt.name, got.Active, err)
			}
			if diff := cmp.Diff(service.Introspection{}, got); tt.want != "" && diff != "" {
				t.Errorf("%s: something is told of the token", tt.name)
			}
		}
		if diff := cmp.Diff([]string{"a position", "a position"}, asked); diff != "" {
			t.Errorf("%s: the positions awaited (-want +got)\n%s", tt.name, diff)
		}
		if tt.reach != nil {
			continue // a batch names no position
		}
		batch, err := tokens.BatchIntrospect(t.Context(), rs, []string{in.AccessToken})
		if tt.want != "" {
			wantReason(t, err, tt.want)
			if batch != nil {
				t.Errorf("%s: a batch is answered", tt.name)
			}
		} else if err != nil || len(batch) != 1 || !batch[0].Active {
			t.Errorf("%s: a batch: %v", tt.name, err)
		}
	}
}
