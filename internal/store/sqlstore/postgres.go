package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// pool is a PostgreSQL database. An operation is a transaction of its own at READ COMMITTED, on a pooled connection, with
// its locks taken before it reads; a redemption of the newest token is one statement, which needs none. Docs/adr/0013 says
// why that is enough.
type pool struct {
	source  *pgxpool.Pool
	tail    *pgxpool.Pool // one connection for the revocation log, so that the list does not age while all others are taken
	words   *dialect
	timeout time.Duration
	schema  string
	user    string
	creates bool             // the user may make tables in the schema
	driven  func() time.Time // a test's clock instead of the database's; nil otherwise
	closed  atomic.Bool
	// appending has a place for each operation that may append to the revocation log at the same time: they wait for each
	// other, and for a slow standby, and leave connections to those who do not.
	appending chan struct{}

	gate atomic.Pointer[gate] // where the source is open; nil before Open has looked
	mu   sync.Mutex
	last string // the snapshot that changed saw, and of which server
	// The newest timeline of a server's history that any connection has met.
	system   string
	timeline uint32
}

// What a statement says when the database lost its connection, or chose it to give way, may be asked again: after a
// restart every pooled connection fails once.
const (
	mostTries = 100
	firstWait = time.Millisecond
	longWait  = 50 * time.Millisecond
)

// retry runs f on a connection of one of the pool's sources until it succeeds, fails for good, or ctx ends.
func (p *pool) retry(ctx context.Context, from *pgxpool.Pool, f func(*pgxpool.Conn) error) error {
	wait := firstWait
	for try := 1; ; try++ {
		err := p.once(ctx, from, f)
		var unsettled *unsettledError
		if errors.As(err, &unsettled) && unsettled.wait(ctx) {
			try--
			continue
		}
		again := collided(err)
		var lost *lostError
		if errors.As(err, &lost) {
			again, wait = true, firstWait
		}
		if !again || try == mostTries || ctx.Err() != nil {
			return err
		}
		pause := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return err
		}
		wait = min(2*wait, longWait)
	}
}

func (p *pool) once(ctx context.Context, from *pgxpool.Pool, f func(*pgxpool.Conn) error) error {
	if p.closed.Load() {
		return unavailable(errClosed)
	}
	conn, err := lend(ctx, from, p.timeout/2)
	if err != nil {
		return unavailable(err)
	}
	defer giveBack(conn)
	if err = f(conn); readOnly(err) {
		p.source.Reset() // another server took over: what this one reads is old, on every connection to it
		p.tail.Reset()
	}
	return err
}

// idleKey is where a connection keeps how long it was not used, and longIdle after how long it is asked whether it lives.
const (
	idleKey  = "authsvc.idle"
	longIdle = time.Second
)

// idled is pgxpool's question whether to ask a connection if it lives. It never does, since it would keep the place of one that
// does not answer until it has said farewell: see giveBack.
func idled(_ context.Context, c pgxpool.ShouldPingParams) bool {
	c.Conn.PgConn().CustomData()[idleKey] = c.IdleDuration
	return false
}

// lend gives a connection that lives: one that was not used for a while has to answer within a time.
func lend(ctx context.Context, from *pgxpool.Pool, answer time.Duration) (*pgxpool.Conn, error) {
	for {
		conn, err := from.Acquire(ctx)
		if err != nil {
			return nil, err
		}
		if idle, _ := conn.Conn().PgConn().CustomData()[idleKey].(time.Duration); idle <= longIdle {
			return conn, nil
		}
		if err = within(ctx, answer, conn.Ping); err == nil {
			return conn, nil
		}
		giveBack(conn)
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// giveBack ends a loan. A connection that was given up says farewell for up to 15 s where nothing answers; its place in the pool is
// free at once, or else a database that is back would not be reached for as long.
func giveBack(conn *pgxpool.Conn) {
	if conn.Conn().IsClosed() {
		conn.Hijack()
		return
	}
	conn.Release()
}

// lostError is the end of a connection at a moment when nothing can have been committed.
type lostError struct{ error }

func (e *lostError) Unwrap() error { return e.error }

// lost marks an error after which the same may be asked on another connection.
func lost(ctx context.Context, conn *pgxpool.Conn, err error) error {
	if err != nil && ctx.Err() == nil && conn.Conn().IsClosed() {
		return &lostError{err}
	}
	return err
}

// operate runs one operation in a transaction.
func operate[T any](ctx context.Context, db *DB, from *pgxpool.Pool, l locks, fn func(*tx) (T, error)) (T, error) {
	var v, zero T
	p, grew := db.pg, false
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	if l.appends {
		select {
		case p.appending <- struct{}{}:
			defer func() { <-p.appending }()
		case <-ctx.Done():
			return zero, unavailable(ctx.Err())
		}
	}
	err := p.retry(ctx, from, func(conn *pgxpool.Conn) error {
		c := &pgConn{ctx: ctx, conn: conn.Conn(), p: p}
		t := &tx{connection: c}
		err := c.begin(l)
		if err == nil {
			t.now = instantOf(c.now)
			err = safely(func(t *tx) (err error) {
				v, err = fn(t)
				return err
			}, t)
		}
		if err != nil {
			c.rollback()
			return lost(ctx, conn, err)
		}
		grew = t.grew
		return c.commit()
	})
	if err != nil {
		return zero, translate(err)
	}
	if grew {
		db.news()
	}
	return v, nil
}

// ask runs one reading statement. Settled waits for whoever has the installation alone, so that a cut-off which is being
// committed is seen.
func ask[T any](ctx context.Context, p *pool, from *pgxpool.Pool, settled bool, fn func(queries) (T, error)) (T, error) {
	var v, zero T
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	err := p.retry(ctx, from, func(conn *pgxpool.Conn) (err error) {
		v, err = fn(&pgConn{ctx: ctx, conn: conn.Conn(), p: p, settled: settled})
		return lost(ctx, conn, err)
	})
	if err != nil {
		return zero, translate(err)
	}
	return v, nil
}

// settled is view for what must not overtake the end of a client or of everything.
func settled[T any](ctx context.Context, db *DB, fn func(q queries) (T, error)) (T, error) {
	if db.pg == nil {
		return view(ctx, db, fn)
	}
	return ask(ctx, db.pg, db.pg.source, true, fn)
}

// alone runs one changing statement that is its own transaction: one round trip. Nothing is asked again that may have
// been committed.
func alone[T any](ctx context.Context, p *pool, fn func(queries) (T, error)) (T, error) {
	var v, zero T
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	err := p.retry(ctx, p.source, func(conn *pgxpool.Conn) (err error) {
		c := &pgConn{ctx: ctx, conn: conn.Conn(), p: p}
		if v, err = fn(c); err == nil {
			return c.replicated()
		}
		if pgconn.SafeToRetry(err) { // nothing was sent
			return lost(ctx, conn, err)
		}
		return err
	})
	if err != nil {
		return zero, translate(err)
	}
	return v, nil
}

// pgConn is a connection for one call.
type pgConn struct {
	ctx     context.Context //nolint:containedctx // it lives as long as one call
	conn    *pgx.Conn
	p       *pool
	settled bool
	now     int64
}

func (c *pgConn) time() int64 { return micros(c.p.driven().UTC().Truncate(time.Microsecond)) }

func (c *pgConn) exec(query string, args ...any) (int64, error) {
	s := c.p.words.statement(query)
	tag, err := c.conn.Exec(c.ctx, s.text, s.bind(args, c.time)...)
	return tag.RowsAffected(), err
}

func (c *pgConn) row(query string, args ...any) scanner {
	s := c.p.words.statement(query)
	args = s.bind(args, c.time)
	if !c.settled {
		return c.conn.QueryRow(c.ctx, s.text, args...)
	}
	// Two statements, one round trip, and one implicit transaction: the second takes its snapshot when the lock is had.
	var b pgx.Batch
	b.Queue(lockShared, c.p.key("installation", ""))
	b.Queue(s.text, args...)
	answers := c.conn.SendBatch(c.ctx, &b)
	if _, err := answers.Exec(); err != nil {
		_ = answers.Close()
		return failed{err}
	}
	return lastRow{answers}
}

// lastRow is the row of the last statement of a batch.
type lastRow struct{ answers pgx.BatchResults }

func (r lastRow) Scan(dest ...any) error {
	err := r.answers.QueryRow().Scan(dest...)
	if closing := r.answers.Close(); err == nil {
		err = closing
	}
	return err
}

func (c *pgConn) rows(query string, args ...any) (rowset, error) {
	s := c.p.words.statement(query)
	rows, err := c.conn.Query(c.ctx, s.text, s.bind(args, c.time)...)
	return pgRows{rows}, err
}

type pgRows struct{ pgx.Rows }

// Close implements rowset; what went wrong is in Err.
func (r pgRows) Close() error {
	r.Rows.Close()
	return nil
}

const (
	lockShared = `SELECT pg_advisory_xact_lock_shared($1)`
	lockAlone  = `SELECT pg_advisory_xact_lock($1)`
	lockRow    = `SELECT id FROM sessions WHERE id = $1 FOR UPDATE`
	notify     = `SELECT pg_notify($1, '')` // nothing is sent unless the transaction commits
	clock      = `SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint`
)

// begin opens the transaction, takes its locks in the one order that all keep, and then reads the clock: one round trip.
func (c *pgConn) begin(l locks) error {
	var b pgx.Batch
	b.Queue(`BEGIN`)
	switch {
	case l.alone:
		b.Queue(lockAlone, c.p.key("installation", ""))
	case l.row == "":
		b.Queue(lockShared, c.p.key("installation", ""))
	}
	slices.Sort(l.accounts)
	for _, a := range slices.Compact(l.accounts) {
		b.Queue(lockAlone, c.p.key("account", a))
	}
	if l.row != "" {
		b.Queue(lockRow, string(l.row))
	}
	b.Queue(clock)
	answers := c.conn.SendBatch(c.ctx, &b)
	for range b.Len() - 1 {
		if _, err := answers.Exec(); err != nil {
			_ = answers.Close()
			return err
		}
	}
	err := answers.QueryRow().Scan(&c.now)
	if closing := answers.Close(); err == nil {
		err = closing
	}
	if c.p.driven != nil {
		c.now = c.time()
	}
	return err
}

// lockLog is taken before a position is, and held to the end: positions are committed in their order, so that a tail which
// has seen one will never see a lower one come. In the same flight it says that those who listen are to be told of the commit.
func (c *pgConn) lockLog() error {
	var b pgx.Batch
	b.Queue(lockAlone, c.p.key("log", ""))
	b.Queue(notify, c.p.channel())
	return c.conn.SendBatch(c.ctx, &b).Close()
}

func (c *pgConn) commit() error {
	tag, err := c.conn.Exec(c.ctx, `COMMIT`)
	if err == nil && tag.String() != "COMMIT" {
		err = fmt.Errorf("sqlstore: the transaction ended with %s", tag)
	}
	if err == nil {
		err = c.replicated()
	}
	if err != nil && !collided(err) {
		err = unavailable(err) // nobody knows what became of it
	}
	return err
}

// rollback ends the transaction without a trace. A connection that cannot do that in time is closed, and its server then
// does it.
func (c *pgConn) rollback() {
	if c.conn.IsClosed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), time.Second)
	defer cancel()
	if _, err := c.conn.Exec(ctx, `ROLLBACK`); err != nil {
		_ = c.conn.Close(ctx)
	}
}

// unreplicated is where a connection keeps the warning that a commit was not awaited on the standby.
const unreplicated = "authsvc.unreplicated"

var errUnreplicated = errors.New("sqlstore: the commit was not awaited on a standby")

// replicated says whether the commit just made is where synchronous_standby_names wants it. If not, a failover may undo
// it, and so nobody is told that it was done.
func (c *pgConn) replicated() error {
	data := c.conn.PgConn().CustomData()
	if _, warned := data[unreplicated]; !warned {
		return nil
	}
	delete(data, unreplicated)
	return unavailable(errUnreplicated)
}

// key names an advisory lock of this schema.
func (p *pool) key(kind, id string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(p.schema + "\x00" + kind + "\x00" + id))
	return int64(h.Sum64())
}

// changed compares what a statement would see now with what one would have seen then. Every transaction of the cluster
// that wrote makes a difference, whoever it belonged to, and so does another server, or another start of it.
func (p *pool) changed(ctx context.Context) (bool, error) {
	now, err := ask(ctx, p, p.tail, false, func(q queries) (string, error) {
		c := q.(*pgConn)
		var seen string
		var backend int64
		err := c.row(`SELECT pg_current_snapshot()::text, pg_backend_pid()`).Scan(&seen, &backend)
		if err == nil && backend != c.server().backend { // a pooler that was told otherwise since Open
			err = errUnpinned
		}
		return c.server().name + " " + seen, err
	})
	if err != nil {
		if errors.Is(err, errUnpinned) {
			p.tail.Reset()
		}
		return false, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	changed := now != p.last
	p.last = now
	return changed, nil
}

func (p *pool) close() {
	if p != nil && p.closed.CompareAndSwap(false, true) {
		for _, source := range []*pgxpool.Pool{p.source, p.tail} {
			if source != nil {
				source.Close() // waits for those who have a connection
			}
		}
	}
}
