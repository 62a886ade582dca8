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

func (a *App) buildGauges(context.Context) error {
	if a.redis != nil {
		if err := a.meter.observe([]gauge{{"authsvc.redis.up", "", "1 while Redis is asked, 0 while it counts as away.", a.redisUp}}, nil); err != nil {
			return err
		}
	}
	return a.meter.observe([]gauge{
		{"authsvc.revocation.position", "", "Newest row of the revocation log that this replica holds.", func() float64 { return float64(a.tail.Row()) }},
		{"authsvc.schema.version", "", "Version of the database's schema that this replica works by.", func() float64 { return float64(a.db.SchemaVersion()) }},
		{"authsvc.revocation.lag", "s", "Age of the start of the last completed read of the revocation log.", func() float64 { return a.tail.Lag().Seconds() }},
		{"authsvc.revocation.live", "", "Live entries in memory.", func() float64 { return float64(a.list.Len()) }},
		{"authsvc.instances", "", "Servers of this installation that run, as this one knows: seen in the database within 15 s; at least 1.", func() float64 { return float64(a.register.Live()) }},
		{"authsvc.hashing.running", "", "Password hashes being computed.", func() float64 { return float64(a.hasher.Stats().Running) }},
		{"authsvc.hashing.queued", "", "Callers waiting for a hashing slot.", func() float64 { return float64(a.hasher.Stats().Queued) }},
		{"authsvc.hashing.shed", "", "Calls refused because the hashing queue was full, since the start.", func() float64 { return float64(a.hasher.Stats().Shed) }},
		{"authsvc.hashing.done", "", "Password hashes computed since the start, those for unknown names included.", func() float64 { return float64(a.hasher.Stats().Done) }},
		{"authsvc.key.age", "s", "Age of the signing key since it became active.", a.keyAge},
		{"authsvc.key.pending_age", "s", "Age of the next signing key since it was published; 0 where there is none.", a.pendingKeyAge},
		{"authsvc.feed.watchers", "", "Open streams of the trust feed.", func() float64 { return float64(a.feed.Stats().Watchers) }},
	}, []gauge{
		{"authsvc.revocation.entries", "", "Entries of the revocation log that this replica has read since its start, whoever revoked.", func() float64 { return float64(a.tail.Entries()) }},
		{"authsvc.revocation.hints", "", "Hints that something was appended to the revocation log; without them it is looked at by the clock.", func() float64 { return float64(a.tail.Hints()) }},
		{"authsvc.revocation.histories", "", "Times that the database turned out to have another history than before, by a failover or a restore.", a.histories},
		{"authsvc.revocation.reappended", "", "Entries that this replica appended again since the database had lost them, by a failover or a restore.", func() float64 { return float64(a.tail.Reappended()) }},
		{"authsvc.feed.deltas", "", "Changes that the trust feed handed out, each once for all watchers.", func() float64 { return float64(a.feed.Stats().Deltas) }},
		{"authsvc.feed.cut", "", "Watchers of the trust feed that were cut off because they did not keep up.", func() float64 { return float64(a.feed.Stats().Cut) }},
		{"authsvc.feed.snapshots", "", "Whole snapshots that the trust feed put together.", func() float64 { return float64(a.feed.Stats().Snapshots) }},
	})
}

func (a *App) histories() float64 { return float64(a.tail.Histories()) + number(a.db.Renewed()) }

func (a *App) keyAge() float64 {
	s := a.ring.Status()
	for _, k := range s.Set.Keys {
		if k.ID == s.Signer && !k.ActivatedAt.IsZero() {
			return a.storeNow().Sub(k.ActivatedAt).Seconds()
		}
	}
	return 0
}

func (a *App) pendingKeyAge() float64 {
	for _, k := range a.ring.Status().Set.Keys {
		if k.State == keys.Pending {
			return a.storeNow().Sub(k.PublishedAt).Seconds()
		}
	}
	return 0
}
