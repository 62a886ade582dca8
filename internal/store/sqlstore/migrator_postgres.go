package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// enter waits until no other process migrates, outside any transaction: an index that is built concurrently waits for every
// transaction, and would wait for one that waits for its builder.
func (m *Migrator) enter(ctx context.Context, tell func(Step)) (leave func(), err error) {
	key := m.pool.key("migrate", "")
	for waiting := false; ; waiting = true {
		var mine bool
		if err := m.conn.QueryRow(ctx, `SELECT pg_try_advisory_lock($1)`, key).Scan(&mine); err != nil {
			return nil, m.explain("", err)
		}
		if mine {
			return func() { // with the connection it goes in any case
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				defer cancel()
				_, _ = m.conn.Exec(ctx, `SELECT pg_advisory_unlock($1)`, key)
			}, nil
		}
		if !waiting {
			tell(Step{State: Running, Note: "another authsvc migrate up is at work; waits for it"})
		}
		if err := pause(ctx, min(m.pause, 250*time.Millisecond)); err != nil {
			return nil, err
		}
	}
}

// overlook adds to a report whether somebody migrates, and at what an index is.
func (m *Migrator) overlook(ctx context.Context, s *Schema) error {
	var atWork bool
	if err := m.conn.QueryRow(ctx, `SELECT EXISTS (SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
		AND (classid::bigint << 32) | objid::bigint = $1)`, m.pool.key("migrate", "")).Scan(&atWork); err != nil {
		return m.explain("", err)
	}
	for i := range s.Steps {
		one := &s.Steps[i]
		if !atWork || one.State == Done {
			continue
		}
		one.State = Running
		if one.Kind != Index {
			return nil
		}
		var phase string
		var done, total int64
		err := m.conn.QueryRow(ctx, `SELECT phase, blocks_done, blocks_total FROM pg_stat_progress_create_index
			WHERE datname = current_database() LIMIT 1`).Scan(&phase, &done, &total)
		if err == nil {
			one.Note = phase
			one.Percent = int(done * 99 / max(total, 1))
		} else if !errors.Is(err, pgx.ErrNoRows) {
			return m.explain("", err)
		}
		return nil
	}
	return nil
}

// concurrently builds an index beside everything else, outside a transaction. It takes no lock that anybody waits for, and so
// waits without a bound, for every transaction that has begun before it.
func (m *Migrator) concurrently(ctx context.Context, s step, tell func(Step)) error {
	c := m.on(ctx)
	if err := c.script(ctx, "SET lock_timeout = 0"); err != nil {
		return err
	}
	defer func() {
		_ = c.script(context.WithoutCancel(ctx), fmt.Sprintf("SET lock_timeout = %d", lockFor.Milliseconds()))
	}()
	var valid bool
	err := m.conn.QueryRow(ctx, `SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
		JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND c.relname = $1`, s.index).Scan(&valid)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return err
	case valid: // built, but nobody wrote it down
		return m.words.finished(c, s)
	default:
		told(tell, s.Step, Running, "drops what an earlier run left of it")
		if err := c.script(ctx, "DROP INDEX CONCURRENTLY "+s.index); err != nil {
			return err
		}
	}
	told(tell, s.Step, Running, "builds it beside the service, and waits for every transaction that began before")
	if err := c.script(ctx, strings.Replace(m.words.schema.Replace(s.text), "INDEX ", "INDEX CONCURRENTLY ", 1)); err != nil {
		return err
	}
	return m.words.finished(c, s)
}

// longest names the oldest transaction of others, as far as this user may see them.
func (m *Migrator) longest(ctx context.Context) string {
	if m.conn == nil {
		return ""
	}
	var pid int
	var user, application string
	var age float64
	if err := m.conn.QueryRow(ctx, `SELECT pid, usename, application_name, extract(epoch FROM clock_timestamp() - xact_start)::float8 FROM pg_stat_activity
		WHERE datname = current_database() AND pid <> pg_backend_pid() AND xact_start IS NOT NULL ORDER BY xact_start LIMIT 1`).
		Scan(&pid, &user, &application, &age); err != nil {
		return ""
	}
	return fmt.Sprintf(", such as that of process %d (user %s, %q), which began %s ago", pid, user, application, time.Duration(age*float64(time.Second)).Round(time.Second))
}
