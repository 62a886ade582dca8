package sqlstore

import (
	"context"
	"database/sql"
	"fmt"
	"runtime"
	"sync"
)

// readers is the pool of connections that never write.
type readers struct {
	source *sql.DB
	words  *dialect
	mu     sync.RWMutex
	stmts  map[string]*prepared // by the text that is common
}

func openReaders(dsn string, words *dialect) (*readers, error) {
	source, err := sql.Open("sqlite", dsn)
	if err != nil {
		return nil, fmt.Errorf("sqlstore: %w", err)
	}
	n := max(4, 2*runtime.GOMAXPROCS(0))
	source.SetMaxOpenConns(n)
	source.SetMaxIdleConns(n)
	return &readers{source: source, words: words, stmts: map[string]*prepared{}}, nil
}

func (r *readers) close() error {
	if r == nil {
		return nil
	}
	return r.source.Close()
}

func (r *readers) stmt(ctx context.Context, query string) (*prepared, error) {
	query = r.words.fit(query)
	r.mu.RLock()
	s := r.stmts[query]
	r.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	words := r.words.statement(query)
	stmt, err := r.source.PrepareContext(ctx, words.text)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if other := r.stmts[query]; other != nil {
		_ = stmt.Close()
		return other, nil
	}
	r.stmts[query] = &prepared{words, stmt}
	return r.stmts[query], nil
}

// beside is a read on a connection of its own, beside the writer.
func beside[T any](ctx context.Context, db *DB, fn func(queries) (T, error)) (T, error) {
	var zero T
	select {
	case <-db.w.quit:
		return zero, unavailable(errClosed)
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, db.timeout)
	defer cancel()
	v, err := fn(read{ctx, db.readers, micros(db.instant())})
	if err != nil {
		return zero, translate(err)
	}
	return v, nil
}

// read is one call's view of the pool.
type read struct {
	ctx context.Context
	r   *readers
	now int64
}

func (r read) time() int64 { return r.now }

func (r read) row(query string, args ...any) scanner {
	s, err := r.r.stmt(r.ctx, query)
	if err != nil {
		return failed{err}
	}
	return s.QueryRowContext(r.ctx, s.bind(args, r.time)...)
}

func (r read) rows(query string, args ...any) (rowset, error) {
	s, err := r.r.stmt(r.ctx, query)
	if err != nil {
		return nil, err
	}
	return s.QueryContext(r.ctx, s.bind(args, r.time)...) //nolint:rowserrcheck // collect asks
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
