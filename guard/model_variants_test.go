package guard_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/test/model"
)

func clone(m *authsvcv1.WatchTrustResponse) *authsvcv1.WatchTrustResponse {
	return proto.Clone(m).(*authsvcv1.WatchTrustResponse)
}

// hasty is a verifier that moves its cursor when a change comes, and applies the entries when the next message does.
type hasty struct {
	*guard.Driven
	waiting []*authsvcv1.Revocation
}

func (h *hasty) Begin() string {
	h.waiting = nil
	return h.Driven.Begin()
}

func (h *hasty) Take(m *authsvcv1.WatchTrustResponse) error {
	if h.waiting != nil {
		if err := h.Merge(h.waiting); err != nil {
			return err
		}
		h.waiting = nil
	}
	if d := m.GetDelta(); d != nil {
		m = clone(m)
		h.waiting, m.GetDelta().Revocations = d.GetRevocations(), nil
	}
	return h.Driven.Take(m)
}

// variants are the subjects with one part broken.
func variants(t *testing.T) map[string]model.Subject {
	good := model.Subject{Replica: model.NewReplica(keySet("key-1"), model.Flaws{}), Verifier: driven(t, nil)}
	verifier := func(change func(*guard.Driven)) model.Subject {
		return model.Subject{Replica: good.Replica, Verifier: driven(t, change)}
	}
	reading := func(read func(d *guard.Driven, m *authsvcv1.WatchTrustResponse)) model.Subject {
		return model.Subject{Replica: good.Replica, Verifier: func(c *model.Clock) model.Verifier { return altered{drive(t, c, nil), read} }}
	}
	replica := func(flaws model.Flaws) model.Subject {
		return model.Subject{Replica: model.NewReplica(keySet("key-1"), flaws), Verifier: good.Verifier}
	}
	return map[string]model.Subject{
		"a verifier that dates a heartbeat at its receipt": reading(func(d *guard.Driven, m *authsvcv1.WatchTrustResponse) {
			if h := m.GetHeartbeat(); h != nil {
				h.Elapsed = durationpb.New(d.Sent())
			}
		}),
		"a verifier that forgets to subtract the lag": reading(func(_ *guard.Driven, m *authsvcv1.WatchTrustResponse) {
			if h := m.GetHeartbeat(); h != nil {
				h.Lag = durationpb.New(0)
			}
		}),
		"a verifier that counts from the answer and not from its call": reading(func(d *guard.Driven, m *authsvcv1.WatchTrustResponse) {
			if len(m.GetSnapshot().GetJwks()) > 0 {
				d.SentNow()
			}
		}),
		"a verifier that ignores a gap": reading(func(d *guard.Driven, m *authsvcv1.WatchTrustResponse) {
			if c := m.GetDelta(); c != nil {
				c.After, c.Part = d.Stands(), d.Part()
				if c.GetMore() {
					c.Cursor = c.After
				}
			} else if h := m.GetHeartbeat(); h != nil {
				h.Cursor = d.Stands()
			}
		}),
		"a verifier that takes a heartbeat before the snapshot is whole": verifier(func(d *guard.Driven) { d.Early = true }),
		"a verifier whose date goes back":                                verifier(func(d *guard.Driven) { d.DateBack = true }),
		"a verifier that swaps the snapshot for what it held":            verifier(func(d *guard.Driven) { d.Swap = true }),
		"a verifier that forgets by its own wall clock alone":            verifier(func(d *guard.Driven) { d.OwnClock = true }),
		"a verifier without a limit":                                     verifier(func(d *guard.Driven) { d.Endless = true }),
		"a verifier that allows from a cold start":                       verifier(func(d *guard.Driven) { d.Warm = true }),
		"a verifier whose time stands still while its machine sleeps": {Replica: good.Replica, Verifier: func(c *model.Clock) model.Verifier {
			d := drive(t, c, nil)
			d.CountBy(func() (time.Duration, int64) { return c.Mono(), c.Wall().UnixNano() }, c.Mono)
			return d
		}},
		"a verifier that moves its cursor before the entries count": {Replica: good.Replica, Verifier: func(c *model.Clock) model.Verifier {
			return &hasty{Driven: drive(t, c, nil)}
		}},
		"a replica that goes on in another epoch by the position alone": replica(model.Flaws{ByPositionAlone: true}),
		"a replica whose heartbeats are ahead of what waits to be sent": replica(model.Flaws{BeatsAhead: true}),
		"a replica whose lag counts from the end of a read":             replica(model.Flaws{LagFromTheEnd: true}),
		"a log whose position passes a row that has not committed":      {Replica: good.Replica, Verifier: good.Verifier, EarlyPositions: true},
	}
}

// TestTheModelCatchesWhatBreaksThePromise plays schedules against each variant.
func TestTheModelCatchesWhatBreaksThePromise(t *testing.T) {
	t.Parallel()
	model.Catch(t, variants(t))
}
