package app

import (
	"context"
	"time"

	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/server/ops"
)

// part is something without which a replica should get no traffic.
type part struct {
	name    string
	missing string // a word for who asks, empty where it is there
}

// readiness looks at all of them.
func (a *App) readiness(ctx context.Context) []part {
	all := []part{{name: "serving"}, {name: "database"}, {name: "revocation log"}, {name: "signing key"}}
	switch a.state.Load() {
	case starting:
		all[0].missing = "starting"
	case draining:
		all[0].missing = "draining"
	}
	if err := a.db.Ping(ctx); err != nil {
		all[1].missing = all[1].name
	}
	if a.tail.Lag() > 2*time.Second {
		all[2].missing = all[2].name
	}
	if a.ring.Status().Ready != nil {
		all[3].missing = all[3].name
	}
	return all
}

// ready says why this replica should get no traffic, or nil.
func (a *App) ready(ctx context.Context) error {
	var missing ops.NotReady
	for _, p := range a.readiness(ctx) {
		if p.missing != "" {
			missing = append(missing, p.missing)
		}
	}
	if len(missing) > 0 {
		return missing
	}
	return nil
}

// scrapeFor bounds what a reader of the metrics waits for the database.
const scrapeFor = 2 * time.Second

// buildStates shows what alerts are made of.
func (a *App) buildStates(context.Context) error {
	if err := a.meter.observe([]gauge{
		{"authsvc.clock.skew", "s", "How far this machine's clock is ahead of the database's, less than 0 where it is behind.", func() float64 { return a.ring.Status().Ahead.Seconds() }},
		{"authsvc.key.overdue", "s", "How long ago the next signing key was to take over; 0 where it is not late.", a.keyOverdue},
		{"authsvc.config.refused", "", "1 where the configuration that was last read again is refused, so that the one before holds; else 0.", func() float64 { return number(a.meter.refused.Load()) }},
	}, nil); err != nil {
		return err
	}
	parts := []parted{
		{"authsvc.ready", "", "1 where the part is there, 0 where it is missing, so that this replica should get no traffic.", "check", func(ctx context.Context) map[string]float64 {
			ctx, cancel := context.WithTimeout(ctx, scrapeFor)
			defer cancel()
			shown := map[string]float64{}
			for _, p := range a.readiness(ctx) {
				shown[p.name] = number(p.missing == "")
			}
			return shown
		}},
		{"authsvc.certificate.expiry", "s", "When the certificate of a listener ends, in seconds since 1970.", "listener", func(context.Context) map[string]float64 { return a.expiries() }},
	}
	if _, pooled := a.db.Connections(); !pooled {
		return a.meter.observeParts(parts...)
	}
	if err := a.meter.observe(nil, []gauge{{"authsvc.database.waits", "", "Operations that found no idle connection to the database, since the start.", func() float64 {
		c, _ := a.db.Connections()
		return float64(c.Waits)
	}}}); err != nil {
		return err
	}
	return a.meter.observeParts(append(parts, parted{"authsvc.database.connections", "", "Connections to the database: used, idle, and the most that there may be.", "state",
		func(context.Context) map[string]float64 {
			c, _ := a.db.Connections()
			return map[string]float64{"used": float64(c.Used), "idle": float64(c.Idle), "most": float64(c.Most)}
		}})...)
}

func number(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// expiries is when each listener's certificate ends; whoever looks lets it be read again if its files have changed.
func (a *App) expiries() map[string]float64 {
	shown := map[string]float64{}
	for listener, conf := range a.shown {
		if pair, err := conf.GetCertificate(nil); err == nil && pair.Leaf != nil {
			shown[listener] = float64(pair.Leaf.NotAfter.Unix())
		}
	}
	return shown
}

// keyOverdue goes by the database's time.
func (a *App) keyOverdue() float64 {
	s := a.ring.Status()
	var active, pending keys.Key
	for _, k := range s.Set.Keys {
		switch {
		case k.ID == s.Signer:
			active = k
		case k.State == keys.Pending:
			pending = k
		}
	}
	if active.ID == "" {
		return 0 // nothing signs, which readiness says
	}
	return max(0, s.Set.Now.Add(s.Age).Sub(rotationDue(active, pending, a.cfg.Keys)).Seconds())
}
