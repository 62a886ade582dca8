package sqlstore

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
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
	t       *lite // nil until connected, and after a connection was given up
	grew    bool  // the batch appended to the revocation log
	queue   chan *op
	quit    chan struct{}
	stopped chan struct{}
}

func newWriter(db *DB, source *sql.DB) *writer {
	return &writer{db: db, source: source, queue: make(chan *op, 4*maxBatch), quit: make(chan struct{}), stopped: make(chan struct{})}
}

// lite is the writer's connection, with its statements prepared.
type lite struct {
	conn  *sql.Conn
	words *dialect
	stmts map[string]*prepared // by the text that is common
	now   int64
}

type prepared struct {
	*statement
	*sql.Stmt
}

// queued runs fn on the writer's goroutine. What a caller takes back before it has begun is skipped; what has begun is
// finished without its caller.
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
	w.grew = false
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
			if w.grew {
				w.db.news()
			}
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
		t := &tx{connection: w.t, now: w.db.instant()}
		w.t.now = micros(t.now)
		if !alone {
			if _, err := w.t.exec("SAVEPOINT op"); err != nil {
				return false, err
			}
		}
		o.err = translate(safely(o.run, t))
		wrote = wrote || o.err == nil && !o.read
		w.grew = w.grew || o.err == nil && t.grew
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

func (w *writer) connect(ctx context.Context) (*lite, error) {
	conn, err := w.source.Conn(ctx)
	if err != nil {
		return nil, err
	}
	w.t = &lite{conn: conn, words: w.db.words, stmts: map[string]*prepared{}}
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
func (t *lite) stmt(query string) (*prepared, error) {
	query = t.words.fit(query)
	if s := t.stmts[query]; s != nil {
		return s, nil
	}
	words := t.words.statement(query)
	s, err := t.conn.PrepareContext(context.Background(), words.text)
	if err != nil {
		return nil, err
	}
	t.stmts[query] = &prepared{words, s}
	return t.stmts[query], nil
}

func (t *lite) time() int64 { return t.now }

// exec runs a statement and gives how many rows it touched. It has no context: a begun operation completes.
func (t *lite) exec(query string, args ...any) (int64, error) {
	s, err := t.stmt(query)
	if err != nil {
		return 0, err
	}
	r, err := s.Exec(s.bind(args, t.time)...)
	if err != nil {
		return 0, err
	}
	return r.RowsAffected()
}

func (t *lite) row(query string, args ...any) scanner {
	s, err := t.stmt(query)
	if err != nil {
		return failed{err}
	}
	return s.QueryRow(s.bind(args, t.time)...)
}

func (t *lite) rows(query string, args ...any) (rowset, error) {
	s, err := t.stmt(query)
	if err != nil {
		return nil, err
	}
	return s.Query(s.bind(args, t.time)...) //nolint:rowserrcheck // collect asks
}

// instant is the store's now.
func (db *DB) instant() time.Time { return db.now().UTC().Truncate(time.Microsecond) }

var errClosed = errors.New("sqlstore: closed")
