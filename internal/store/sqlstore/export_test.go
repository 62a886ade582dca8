package sqlstore

import (
	"context"
	"time"

	"github.com/authsvc/authsvc/internal/session"
)

// Overwrite puts any refresh state and any times into a row.
func (db *DB) Overwrite(ctx context.Context, s session.Session) error {
	return change(ctx, db, locks{}, func(t *tx) error {
		var ended any
		if !s.EndedAt.IsZero() {
			ended = micros(s.EndedAt)
		}
		_, err := t.exec(`UPDATE sessions SET base = ?, head = ?, low = ?, redeemed_at = ?, device = ?, elsewhere = ?, elsewhere_of = ?,
			forks = ?, auth_time = ?, idle_ends_at = ?, ends_at = ?, ended_at = ? WHERE id = ?`,
			int64(s.Base), int64(s.Head), int64(s.Low), micros(s.RedeemedAt), encodeDevice(s.Device), s.Elsewhere, int64(s.ElsewhereOf),
			s.Forks, micros(s.AuthTime), micros(s.IdleEndsAt), micros(s.EndsAt), ended, string(s.ID))
		return err
	})
}

// Exec runs any statement as an operation.
func (db *DB) Exec(ctx context.Context, query string, args ...any) error {
	return change(ctx, db, locks{}, func(t *tx) error {
		_, err := t.exec(query, args...)
		return err
	})
}

// Number reads one number on the writer's connection.
func (db *DB) Number(ctx context.Context, query string) (int64, error) {
	return write(ctx, db, locks{}, func(t *tx) (int64, error) { return scanInt(t.row(query)) })
}

// Hold is an operation that calls begun, waits for release, and then succeeds.
func (db *DB) Hold(ctx context.Context, begun, release chan struct{}) error {
	return change(ctx, db, locks{}, func(*tx) error {
		close(begun)
		<-release
		return nil
	})
}

// Panic is an operation that panics.
func (db *DB) Panic(ctx context.Context) error {
	return change(ctx, db, locks{}, func(*tx) error { panic("boom") })
}

// Queued is how many operations wait for the writer.
func (db *DB) Queued() int { return len(db.w.queue) }

// Plans gives the engine's plan of every statement that was used so far.
func (db *DB) Plans(ctx context.Context) (map[string]string, error) {
	db.readers.mu.Lock()
	var queries []string
	for _, s := range db.readers.stmts {
		queries = append(queries, s.text)
	}
	db.readers.mu.Unlock()
	return write(ctx, db, locks{}, func(t *tx) (map[string]string, error) {
		lite := t.connection.(*lite)
		for _, s := range lite.stmts {
			queries = append(queries, s.text)
		}
		plans := map[string]string{}
		for _, q := range queries {
			if len(q) < 30 { // BEGIN, COMMIT, SAVEPOINT and the pragmas
				continue
			}
			var args []any
			for _, c := range q {
				if c == '?' {
					args = append(args, 1)
				}
			}
			rows, err := lite.conn.QueryContext(ctx, "EXPLAIN QUERY PLAN "+q, args...)
			if err != nil {
				return nil, err
			}
			for rows.Next() {
				var id, parent, unused int
				var detail string
				if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
					return nil, err
				}
				plans[q] += detail + "\n"
			}
			if err := rows.Close(); err != nil {
				return nil, err
			}
		}
		return plans, nil
	})
}

// AtSchema makes a program of an earlier version, as far as the schema goes.
func AtSchema(o Options, version int) Options {
	o.newest = version
	return o
}

// Hurried makes a Migrator give up soon.
func (m *Migrator) Hurried(tries int) *Migrator {
	m.tries, m.pause = tries, time.Millisecond
	return m
}
