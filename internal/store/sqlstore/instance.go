package sqlstore

import (
	"context"
	"time"

	"github.com/authsvc/authsvc/internal/instance"
)

type instances struct{ db *DB }

// Beat is one statement, and with PostgreSQL one round trip. Its own row is left out of the count, since a statement may or
// may not see what it writes itself.
func (s instances) Beat(ctx context.Context, i instance.Instance) (int, error) {
	if err := storable("instance", i.ID, i.Host, i.Version); err != nil {
		return 0, err
	}
	beat := func(q queries) (int, error) {
		var others int
		err := q.row(`INSERT INTO instances (id, host, version, started_at, seen_at, clock, epoch, position, lag)
			VALUES (?, ?, ?, @now, @now, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, clock = excluded.clock, epoch = excluded.epoch,
				position = excluded.position, lag = excluded.lag
			RETURNING (SELECT count(*) FROM instances AS o WHERE o.seen_at > @now - ? AND o.id <> ?)`,
			i.ID, i.Host, i.Version, micros(i.Clock), i.Epoch[:], i.Position, i.Lag.Microseconds(), instance.Living.Microseconds(), i.ID).Scan(&others)
		return others + 1, err
	}
	if s.db.pg != nil {
		return alone(ctx, s.db.pg, beat)
	}
	return write(ctx, s.db, locks{}, func(t *tx) (int, error) { return beat(t) })
}

func (s instances) List(ctx context.Context) (all []instance.Instance, now time.Time, err error) {
	var at int64
	rows, err := view(ctx, s.db, func(q queries) ([]instance.Instance, error) {
		return collect(q, func(s scanner) (i instance.Instance, err error) {
			var started, seen, clock, lag int64
			var epoch []byte
			err = s.Scan(&at, &i.ID, &i.Host, &i.Version, &started, &seen, &clock, &epoch, &i.Position, &lag)
			copy(i.Epoch[:], epoch)
			i.StartedAt, i.SeenAt, i.Clock, i.Lag = instantOf(started), instantOf(seen), instantOf(clock), ttl(lag)
			return i, err
		}, `SELECT @now, COALESCE(x.id, ''), COALESCE(x.host, ''), COALESCE(x.version, ''), COALESCE(x.started_at, 0), COALESCE(x.seen_at, 0),
			COALESCE(x.clock, 0), x.epoch, COALESCE(x.position, 0), COALESCE(x.lag, 0)
			FROM installation i LEFT JOIN instances x ON x.seen_at > @now - ? ORDER BY x.started_at, x.id`, instance.Kept.Microseconds())
	})
	for _, i := range rows {
		if i.ID != "" { // none is one row without a server
			all = append(all, i)
		}
	}
	return all, instantOf(at), err
}

func (s instances) Leave(ctx context.Context, id string) error {
	return change(ctx, s.db, locks{}, func(t *tx) error {
		_, err := t.exec(`DELETE FROM instances WHERE id = ?`, id)
		return err
	})
}

func (s instances) Sweep(ctx context.Context, limit int) (int, error) {
	return write(ctx, s.db, locks{}, func(t *tx) (int, error) {
		n, err := t.exec(`DELETE FROM instances WHERE id IN (SELECT id FROM instances WHERE seen_at <= ? ORDER BY seen_at LIMIT ? @skip)`,
			micros(t.now.Add(-instance.Kept)), max(limit, 0))
		return int(n), err
	})
}
