package sqlstore

import (
	"context"
	"fmt"
	"time"

	"github.com/authsvc/authsvc/internal/journal"
)

// scanner is one row, or why there is none.
type scanner interface{ Scan(dest ...any) error }

// failed is a row that could not be asked for.
type failed struct{ err error }

func (f failed) Scan(...any) error { return f.err }

// rowset is the answer of a query.
type rowset interface {
	scanner
	Next() bool
	Err() error
	Close() error
}

// queries is what a read may do; an operation offers it too.
type queries interface {
	row(query string, args ...any) scanner
	rows(query string, args ...any) (rowset, error)
}

// connection is a transaction of either engine.
type connection interface {
	queries
	exec(query string, args ...any) (touched int64, err error)
}

// tx is one operation inside a transaction.
type tx struct {
	connection
	now     time.Time // the operation's time, in whole microseconds
	entries []entry   // of the revocation log, appended last of all
	grew    bool      // they were appended
}

type entry struct {
	kind                 journal.Kind
	id                   string
	notBefore, expiresAt int64
}

// write runs fn as one operation: all or nothing, and committed before write returns without error. fn may run more than
// once, so it changes nothing but the database. A call that waits longer than its context or OpTimeout is Unavailable.
func write[T any](ctx context.Context, db *DB, l locks, fn func(*tx) (T, error)) (T, error) {
	if db.pg != nil {
		return operate(ctx, db, db.pg.source, l, fn)
	}
	return queued(ctx, db, false, fn)
}

// change is write for operations without a result.
func change(ctx context.Context, db *DB, l locks, fn func(*tx) error) error {
	_, err := write(ctx, db, l, func(t *tx) (struct{}, error) { return struct{}{}, fn(t) })
	return err
}

// view runs a read, which is one statement and so one consistent picture. It sees every change acknowledged before it.
func view[T any](ctx context.Context, db *DB, fn func(q queries) (T, error)) (T, error) {
	switch {
	case db.pg != nil:
		return ask(ctx, db.pg, db.pg.source, false, fn)
	case db.memory: // one connection holds the whole database
		return queued(ctx, db, true, func(t *tx) (T, error) { return fn(t) })
	default:
		return beside(ctx, db, fn)
	}
}

// follow is view for the revocation log, which never waits for the connections that calls have taken.
func follow[T any](ctx context.Context, db *DB, fn func(q queries) (T, error)) (T, error) {
	if db.pg != nil {
		return ask(ctx, db.pg, db.pg.tail, false, fn)
	}
	return view(ctx, db, fn)
}

// mend is change for what must be done before the store is open at a server: see pool.admit.
func mend(ctx context.Context, db *DB, l locks, fn func(*tx) error) error {
	if db.pg == nil {
		return change(ctx, db, l, fn)
	}
	_, err := operate(ctx, db, db.pg.tail, l, func(t *tx) (struct{}, error) { return struct{}{}, fn(t) })
	return err
}

// finish appends to the log what the operation has listed, in the order in which it did.
func (t *tx) finish() error {
	if len(t.entries) == 0 {
		return nil
	}
	if c, ok := t.connection.(interface{ lockLog() error }); ok {
		if err := c.lockLog(); err != nil {
			return err
		}
	}
	for _, e := range t.entries {
		if _, err := t.exec(`INSERT INTO revocations (kind, id, not_before, expires_at, committed_at) VALUES (?, ?, ?, ?, ?)`,
			string(e.kind), e.id, e.notBefore, e.expiresAt, micros(t.now)); err != nil {
			return err
		}
	}
	t.entries, t.grew = nil, true
	return nil
}

// safely runs an operation to its end, and survives a panic of it, which then fails alone.
func safely(run func(*tx) error, t *tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("sqlstore: panic in an operation: %v", p)
		}
	}()
	if err := run(t); err != nil {
		return err
	}
	return t.finish()
}

// collect reads all rows of a query.
func collect[T any](q queries, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.rows(query, args...)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // what went wrong is in Err
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}
