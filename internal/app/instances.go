package app

import (
	"context"
	"math"
	"time"

	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/revocation"
)

// Instance is a server as the command line shows it. Times are the database's; what it has read and what its clock said is as of
// SeenAt.
type Instance struct {
	ID        string    `json:"instance_id"` // of one start; its log says it, too
	Host      string    `json:"host,omitempty"`
	Version   string    `json:"version,omitempty"`
	Live      bool      `json:"live"`       // seen within 15 s
	StartedAt time.Time `json:"start_time"` // of its first sign of life
	SeenAt    time.Time `json:"seen_time"`
	Behind    *int64    `json:"behind,omitempty"` // rows of the revocation log that it had not read; nil where it reads another history
	Lag       string    `json:"lag"`              // the age of its last completed read of the log
	ClockSkew string    `json:"clock_skew"`       // how far its clock is ahead of the database's
}

// Instances lists the servers of the installation that were seen within the last hour, the oldest start first.
func (a *Admin) Instances(ctx context.Context) ([]Instance, error) {
	all, now, err := a.db.Instances().List(ctx)
	if err != nil {
		return nil, err
	}
	log, err := a.db.Revocations().Tail(ctx, math.MaxInt64) // its end alone
	if err != nil {
		return nil, err
	}
	views := make([]Instance, 0, len(all))
	for _, i := range all {
		views = append(views, viewInstance(i, log, now))
	}
	return views, nil
}

func viewInstance(i instance.Instance, log revocation.Page, now time.Time) Instance {
	v := Instance{ID: i.ID, Host: i.Host, Version: i.Version, Live: i.Live(now), StartedAt: utc(i.StartedAt), SeenAt: utc(i.SeenAt),
		Lag: i.Lag.Round(time.Millisecond).String(), ClockSkew: i.Clock.Sub(i.SeenAt).Round(time.Millisecond).String()}
	if i.Epoch == log.Epoch {
		behind := max(0, log.Head-i.Position)
		v.Behind = &behind
	}
	return v
}
