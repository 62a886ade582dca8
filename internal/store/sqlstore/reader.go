package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// scanner is one row, or why there is none.
type scanner interface{ Scan(dest ...any) error }

// failed is a row that could not be asked for.
type failed struct{ err error }

func (f failed) Scan(...any) error { return f.err }

// queries is what a read may do; the writer's transaction offers it too.
type queries interface {
	row(query string, args ...any) scanner
	rows(query string, args ...any) (*sql.Rows, error)
}

// view runs a read, which is one statement and so one consistent picture. It sees every change acknowledged before it.
func view[T any](ctx context.Context, db *DB, fn func(q queries, now time.Time) (T, error)) (T, error) {
	var zero T
	if db.memory { // one connection holds the whole database
		return queued(ctx, db, true, func(t *tx) (T, error) { return fn(t, t.now) })
	}
	select {
	case <-db.w.quit:
		return zero, unavailable(errClosed)
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, db.timeout)
	defer cancel()
	v, err := fn(read{ctx, db.readers}, db.instant())
	if err != nil {
		return zero, translate(err)
	}
	return v, nil
}

// readers is the pool of connections that never write.
type readers struct {
	source *sql.DB
	mu     sync.RWMutex
	stmts  map[string]*sql.Stmt
}

func openReaders(dsn string) (*readers, error) {
	source, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("sqlstore: %w", err)
	}
	n := max(4, 2*runtime.GOMAXPROCS(0))
	source.SetMaxOpenConns(n)
	source.SetMaxIdleConns(n)
	return &readers{source: source, stmts: map[string]*sql.Stmt{}}, nil
}

func (r *readers) close() error {
	if r == nil {
		return nil
	}
	return r.source.Close()
}

func (r *readers) stmt(ctx context.Context, query string) (*sql.Stmt, error) {
	r.mu.RLock()
	s := r.stmts[query]
	r.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	s, err := r.source.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if other := r.stmts[query]; other != nil {
		_ = s.Close()
		return other, nil
	}
	r.stmts[query] = s
	return s, nil
}

// read is one call's view of the pool.
type read struct {
	ctx context.Context
	r   *readers
}

func (r read) row(query string, args ...any) scanner {
	s, err := r.r.stmt(r.ctx, query)
	if err != nil {
		return failed{err}
	}
	return s.QueryRowContext(r.ctx, args...)
}

func (r read) rows(query string, args ...any) (*sql.Rows, error) {
	s, err := r.r.stmt(r.ctx, query)
	if err != nil {
		return nil, err
	}
	return s.QueryContext(r.ctx, args...)
}

// collect reads all rows of a query.
func collect[T any](q queries, scan func(scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.rows(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
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

// watcher sees commits of every connection but its own, and its own never writes.
type watcher struct {
	source *sql.DB
	mu     sync.Mutex
	conn   *sql.Conn // nil until asked, and after an error
	stmt   *sql.Stmt
	last   int64
	primed bool
}

func openWatcher(dsn string) (*watcher, error) {
	source, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("sqlstore: %w", err)
	}
	source.SetMaxOpenConns(1) // data_version is a number per connection
	return &watcher{source: source}, nil
}

func (w *watcher) close() error {
	if w == nil {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		_ = w.stmt.Close()
		_ = w.conn.Close()
		w.conn, w.stmt = nil, nil
	}
	return w.source.Close()
}

// changed asks for the connection's data_version. A number of another connection says nothing, so the connection is
// pinned; after an error it is given up, and the first answer of the next one counts as a change.
func (w *watcher) changed(ctx context.Context) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		conn, err := w.source.Conn(ctx)
		if err != nil {
			return false, err
		}
		stmt, err := conn.PrepareContext(ctx, `PRAGMA data_version`)
		if err != nil {
			_ = conn.Close()
			return false, err
		}
		w.conn, w.stmt, w.primed = conn, stmt, false
	}
	var version int64
	if err := w.stmt.QueryRowContext(ctx).Scan(&version); err != nil {
		_ = w.stmt.Close()
		_ = w.conn.Close()
		w.conn, w.stmt = nil, nil
		return false, err
	}
	changed := !w.primed || version != w.last
	w.last, w.primed = version, true
	return changed, nil
}
