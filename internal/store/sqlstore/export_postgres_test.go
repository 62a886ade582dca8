package sqlstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

// Driven makes PostgreSQL take a test's clock for its own.
func Driven(o Options, now func() time.Time) Options {
	o.driven = now
	return o
}

// Configured lets a test see to the connections of the pool.
func Configured(o Options, f func(*pgxpool.Config)) Options {
	o.configure = f
	return o
}

// HeardFor makes a listener ask after its connection once it has heard nothing for so long.
func HeardFor(o Options, d time.Duration) Options {
	o.heardFor = d
	return o
}

// AppendSlowly appends a journal, and commits when release is closed.
func (db *DB) AppendSlowly(ctx context.Context, j journal.Journal, written, release chan struct{}) error {
	return change(ctx, db, needs(j), func(t *tx) error {
		if _, err := t.commit(j); err != nil {
			return err
		}
		if err := t.finish(); err != nil {
			return err
		}
		close(written)
		<-release
		return nil
	})
}

// HoldPool takes every connection of the pool, until release is called.
func (db *DB) HoldPool(ctx context.Context) (release func(), err error) {
	var held []*pgxpool.Conn
	release = func() {
		for _, c := range held {
			c.Release()
		}
	}
	for range db.pg.source.Config().MaxConns {
		c, err := db.pg.source.Acquire(ctx)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, c)
	}
	return release, nil
}

// Idle is how many connections wait in the pool.
func (db *DB) Idle() int32 { return db.pg.source.Stat().IdleConns() }

// PostgresPlans gives the engine's plan of every statement that was used so far, where it reads no whole table that it
// has an index for.
func (db *DB) PostgresPlans(ctx context.Context) (map[string]string, error) {
	plans := map[string]string{}
	conn, err := db.pg.source.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, `SET enable_seqscan = off; SET enable_bitmapscan = off; SET plan_cache_mode = force_generic_plan`); err != nil {
		return nil, err
	}
	for _, s := range db.words.all() {
		if strings.HasPrefix(s.text, "SELECT pg_current_snapshot") {
			continue
		}
		nulls := strings.TrimSuffix(strings.Repeat("NULL,", strings.Count(s.text, "$")), ",")
		if nulls != "" {
			nulls = "(" + nulls + ")"
		}
		if _, err := conn.Exec(ctx, "PREPARE looked AS "+s.text); err != nil {
			return nil, fmt.Errorf("%s: %w", s.text, err)
		}
		rows, err := conn.Query(ctx, "EXPLAIN EXECUTE looked"+nulls)
		if err != nil {
			return nil, err
		}
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				return nil, err
			}
			plans[s.text] += line + "\n"
		}
		if rows.Close(); rows.Err() != nil {
			return nil, rows.Err()
		}
		if _, err := conn.Exec(ctx, "DEALLOCATE looked"); err != nil {
			return nil, err
		}
	}
	return plans, conn.Conn().Close(ctx)
}

func (s *statements) all() (all []*statement) {
	s.known.Range(func(_, v any) bool {
		all = append(all, v.(*statement))
		return true
	})
	return all
}

// HoldRow is an operation that locks a session's row, calls begun, and waits for release.
func (db *DB) HoldRow(ctx context.Context, id ids.Session, begun, release chan struct{}) error {
	return change(ctx, db, locks{row: id}, func(*tx) error {
		close(begun)
		<-release
		return nil
	})
}

// Collide is an operation that appends a revocation and then fails with an SQLSTATE of the engine, the first few times.
func (db *DB) Collide(ctx context.Context, code string, times int, tries *int) error {
	return change(ctx, db, locks{}, func(t *tx) error {
		if err := t.revoke(journal.Revocation{Kind: journal.KindToken, ID: "again"}); err != nil {
			return err
		}
		if *tries++; *tries > times {
			return nil
		}
		if err := t.finish(); err != nil {
			return err
		}
		_, err := t.exec(`DO $$ BEGIN RAISE EXCEPTION 'as asked' USING ERRCODE = '` + code + `'; END $$`)
		return err
	})
}
