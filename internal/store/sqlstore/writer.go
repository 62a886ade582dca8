package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// maxBatch bounds how many operations share a transaction.
const maxBatch = 256

// The life of an operation. Its caller may take it back only while it is queued.
const (
	opQueued int32 = iota
	opBegun
	opAbandoned
)

// op is one operation in the writer's queue.
type op struct {
	ctx   context.Context
	run   func(*tx) error
	read  bool // changes nothing: a read of a database in memory
	state atomic.Int32
	err   error // written before done is closed
	done  chan struct{}
}

// writer is the one goroutine that changes the database.
type writer struct {
	db      *DB
	source  *sql.DB
	t       *tx // nil until connected, and after a connection was given up
	queue   chan *op
	quit    chan struct{}
	stopped chan struct{}
}

func newWriter(db *DB, source *sql.DB) *writer {
	return &writer{db: db, source: source, queue: make(chan *op, 4*maxBatch), quit: make(chan struct{}), stopped: make(chan struct{})}
}

// tx is the writer's connection inside a transaction, as one operation sees it.
type tx struct {
	conn  *sql.Conn
	stmts map[string]*sql.Stmt
	now   time.Time // the operation's time, in whole microseconds
}

// write runs fn as one operation: all or nothing, and committed before write returns without error. A call that waits
// longer than its context or OpTimeout is Unavailable: an operation that had not begun is then skipped, one that had is
// finished without its caller.
func write[T any](ctx context.Context, db *DB, fn func(*tx) (T, error)) (T, error) {
	return queued(ctx, db, false, fn)
}

func queued[T any](ctx context.Context, db *DB, read bool, fn func(*tx) (T, error)) (T, error) {
	var v, zero T
	o := &op{read: read, done: make(chan struct{}), run: func(t *tx) (err error) {
		v, err = fn(t)
		return err
	}}
	if err := db.w.submit(ctx, o); err != nil {
		return zero, err
	}
	return v, nil
}

// change is write for operations without a result.
func change(ctx context.Context, db *DB, fn func(*tx) error) error {
	return db.w.submit(ctx, &op{done: make(chan struct{}), run: fn})
}

func (w *writer) submit(ctx context.Context, o *op) error {
	ctx, cancel := context.WithTimeout(ctx, w.db.timeout)
	defer cancel()
	if err := ctx.Err(); err != nil {
		return unavailable(err)
	}
	o.ctx = ctx
	select {
	case <-w.quit:
		return unavailable(errClosed)
	default:
	}
	select {
	case w.queue <- o:
	case <-ctx.Done():
		return unavailable(ctx.Err())
	case <-w.stopped:
		return unavailable(errClosed)
	}
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		o.state.CompareAndSwap(opQueued, opAbandoned)
		return unavailable(ctx.Err())
	case <-w.stopped:
		select {
		case <-o.done:
			return o.err
		default:
			return unavailable(errClosed)
		}
	}
}

// run is the writer's goroutine: whatever waits together is committed together.
func (w *writer) run() {
	defer close(w.stopped)
	batch := make([]*op, 0, maxBatch)
	for {
		select {
		case o := <-w.queue:
			batch = append(batch, o)
		case <-w.quit:
			select {
			case o := <-w.queue: // accepted before Close
				batch = append(batch, o)
			default:
				return
			}
		}
	fill:
		for len(batch) < maxBatch {
			select {
			case o := <-w.queue:
				batch = append(batch, o)
			default:
				break fill
			}
		}
		w.commit(batch)
		clear(batch)
		batch = batch[:0]
	}
}

// commit runs a batch in one transaction and answers its members after the COMMIT. Where the transaction as a whole
// fails, every member fails, the refused ones too: they may have been refused for what another member had written.
func (w *writer) commit(batch []*op) {
	err := w.begin()
	if err == nil {
		var wrote bool
		if wrote, err = w.runAll(batch); err == nil && wrote {
			_, err = w.t.exec("COMMIT")
		} else if err == nil {
			err = w.rollback()
		}
		if err != nil {
			_ = w.rollback()
		} else if wrote {
			w.db.commits.Add(1)
		}
	}
	for _, o := range batch {
		if err != nil {
			o.err = unavailable(err)
		}
		close(o.done)
	}
}

// runAll runs each member in its savepoint. Its error is the transaction's; a member's own stays with the member.
func (w *writer) runAll(batch []*op) (wrote bool, err error) {
	alone := len(batch) == 1
	for _, o := range batch {
		if !o.state.CompareAndSwap(opQueued, opBegun) {
			continue
		}
		if err := o.ctx.Err(); err != nil {
			o.err = unavailable(err)
			continue
		}
		w.t.now = w.db.instant()
		if !alone {
			if _, err := w.t.exec("SAVEPOINT op"); err != nil {
				return false, err
			}
		}
		o.err = translate(safely(o.run, w.t))
		wrote = wrote || o.err == nil && !o.read
		if alone {
			return wrote, nil
		}
		if o.err != nil {
			// This fails where the engine has rolled the whole transaction back, as it may on a full disk.
			if _, err := w.t.exec("ROLLBACK TO op"); err != nil {
				return false, err
			}
		}
		if _, err := w.t.exec("RELEASE op"); err != nil {
			return false, err
		}
	}
	return wrote, nil
}

// safely keeps the writer alive through a panic of one operation, which then fails alone.
func safely(run func(*tx) error, t *tx) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("sqlstore: panic in an operation: %v", p)
		}
	}()
	return run(t)
}

// begin starts the transaction. Another process may hold the lock: it tries again after 1 to 10 ms, for OpTimeout at most.
func (w *writer) begin() error {
	giveUp := time.NewTimer(w.db.timeout)
	defer giveUp.Stop()
	for {
		err := w.tryBegin()
		if err == nil || !busy(err) {
			return err
		}
		pause := time.NewTimer(time.Millisecond + rand.N(9*time.Millisecond))
		select {
		case <-pause.C:
		case <-giveUp.C:
			pause.Stop()
			return err
		}
	}
}

func (w *writer) tryBegin() error {
	if w.t == nil {
		ctx, cancel := context.WithTimeout(context.Background(), w.db.timeout)
		defer cancel()
		t, err := w.connect(ctx)
		if err != nil {
			return err
		}
		if _, err := t.exec(`PRAGMA busy_timeout = 20`); err != nil {
			return err
		}
	}
	_, err := w.t.exec("BEGIN IMMEDIATE")
	if err != nil && !busy(err) {
		_ = w.rollback()
	}
	return err
}

// rollback ends the transaction without a trace. A connection that cannot even do that is given up.
func (w *writer) rollback() error {
	if w.t == nil {
		return nil
	}
	_, err := w.t.exec("ROLLBACK")
	if err == nil || noTransaction(err) {
		return nil
	}
	if !w.db.memory {
		w.disconnect()
	}
	return err
}

func (w *writer) connect(ctx context.Context) (*tx, error) {
	conn, err := w.source.Conn(ctx)
	if err != nil {
		return nil, err
	}
	w.t = &tx{conn: conn, stmts: map[string]*sql.Stmt{}}
	return w.t, nil
}

// disconnect makes database/sql throw the connection away instead of pooling it.
func (w *writer) disconnect() {
	if w.t == nil {
		return
	}
	for _, s := range w.t.stmts {
		_ = s.Close()
	}
	_ = w.t.conn.Raw(func(any) error { return driver.ErrBadConn })
	_ = w.t.conn.Close()
	w.t = nil
}

func (w *writer) close() error {
	w.disconnect()
	return w.source.Close()
}

// stmt gives the prepared statement, which lives as long as the connection.
func (t *tx) stmt(query string) (*sql.Stmt, error) {
	if s := t.stmts[query]; s != nil {
		return s, nil
	}
	s, err := t.conn.PrepareContext(context.Background(), query)
	if err != nil {
		return nil, err
	}
	t.stmts[query] = s
	return s, nil
}

// exec runs a statement and gives how many rows it touched. It has no context: a begun operation completes.
func (t *tx) exec(query string, args ...any) (int64, error) {
	s, err := t.stmt(query)
	if err != nil {
		return 0, err
	}
	r, err := s.Exec(args...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *tx) row(query string, args ...any) scanner {
	s, err := t.stmt(query)
	if err != nil {
		return failed{err}
	}
	return s.QueryRow(args...)
}

func (t *tx) rows(query string, args ...any) (*sql.Rows, error) {
	s, err := t.stmt(query)
	if err != nil {
		return nil, err
	}
	return s.Query(args...)
}

// once reads a row by a statement that is not kept.
func (t *tx) once(query string) scanner { return t.conn.QueryRowContext(context.Background(), query) }

// instant is the store's now.
func (db *DB) instant() time.Time { return db.now().UTC().Truncate(time.Microsecond) }

var errClosed = errors.New("sqlstore: closed")
