package guard_test

import (
	"testing"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/test/model"
)

// driven makes verifiers of the model from the real feed, broken or not.
func driven(t *testing.T, change func(*guard.Driven)) func(*model.Clock) model.Verifier {
	return func(c *model.Clock) model.Verifier { return drive(t, c, change) }
}

func drive(t *testing.T, c *model.Clock, change func(*guard.Driven)) *guard.Driven {
	t.Helper()
	f, err := guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: model.Issuer, ClientID: "svc", ClientSecret: "s3cret"})
	if err != nil {
		t.Fatal(err)
	}
	f.CountBy(func() (time.Duration, int64) { return c.Mono(), c.Wall().UnixNano() }, c.Boot)
	d := &guard.Driven{Feed: f}
	if change != nil {
		change(d)
	}
	return d
}

// TestP01P02P04P08ThePromiseHoldsUnderAnySchedule plays random schedules of commits, slow reads, lost databases, restores, cut, stalled and
// damaged streams, stopped and suspended verifiers and wrong wall clocks against the real stream of the feed.
func TestP01P02P04P08ThePromiseHoldsUnderAnySchedule(t *testing.T) {
	t.Parallel()
	subject := model.Subject{Replica: model.NewReplica(keySet("key-1"), model.Flaws{}), Verifier: driven(t, nil)}
	model.Prove(t, subject)
}

// altered is a verifier that reads something else than what came.
type altered struct {
	*guard.Driven
	read func(d *guard.Driven, m *authsvcv1.WatchTrustResponse)
}

func (a altered) Take(m *authsvcv1.WatchTrustResponse) error {
	m = clone(m)
	a.read(a.Driven, m)
	return a.Driven.Take(m)
}
