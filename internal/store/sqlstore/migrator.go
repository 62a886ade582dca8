package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// lockFor is how long a change waits for a table before it steps back and lets those pass that queue behind it. A table that
	// the revocation log's readers wait for must be theirs again before what they know is a second old.
	lockFor = 500 * time.Millisecond
	// lockTries is how often it tries, lockPause how long it waits in between, half as long again at most.
	lockTries = 20
	lockPause = time.Second
	// fillPause is the longest pause after a batch, which else is as long as the batch took: half of the time is others'.
	fillPause = time.Second
)

// Migrator brings the schema of a database to this program's version, while servers work on it.
type Migrator struct {
	words *dialect
	now   func() time.Time
	pause time.Duration
	tries int

	file *sql.DB // of SQLite
	lite *lite

	conn *pgx.Conn // of PostgreSQL
	pool *pool     // only what a connection asks it for
	user string
}

// OpenMigrator connects to a database, whatever the version of its schema. It refuses a file that belongs to another user
// (ErrNotOwner) or is not there (ErrNoDatabase).
func OpenMigrator(ctx context.Context, o Options) (*Migrator, error) {
	if (o.Path == "") == (o.URL == "") {
		return nil, errors.New("sqlstore: exactly one of Path and URL is required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.OpTimeout <= 0 {
		o.OpTimeout = 5 * time.Second
	}
	m := &Migrator{now: o.Now, pause: lockPause, tries: lockTries}
	var err error
	if m.words, err = words(o); err != nil {
		return nil, err
	}
	if o.URL != "" {
		err = m.connect(ctx, o)
	} else {
		err = m.open(ctx, o)
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

func (m *Migrator) open(ctx context.Context, o Options) (err error) {
	if err := prepareFile(o.Path, false); err != nil {
		return err
	}
	if m.file, err = sql.Open("sqlite", dsn(o.Path, lockFor, true)); err != nil {
		return fmt.Errorf("sqlstore: %w", err)
	}
	m.file.SetMaxOpenConns(1)
	conn, err := m.file.Conn(ctx)
	if err != nil {
		return fmt.Errorf("sqlstore: open: %w", err)
	}
	m.lite = &lite{conn: conn, words: m.words, stmts: map[string]*prepared{}}
	return m.settle(ctx)
}

func (m *Migrator) connect(ctx context.Context, o Options) error {
	c, err := poolConfig(o)
	if err != nil {
		return err
	}
	conf := c.ConnConfig
	if conf.RuntimeParams["application_name"] == "authsvc" {
		conf.RuntimeParams["application_name"] = "authsvc migrate"
	}
	if m.conn, err = pgx.ConnectConfig(ctx, conf); err != nil {
		return connectProblem(err, conf)
	}
	m.user = conf.User
	m.pool = &pool{words: m.words, timeout: o.OpTimeout, driven: o.driven}
	if err := m.pool.sound(ctx, m.conn); err != nil {
		return err
	}
	if _, err := m.conn.Exec(ctx, `SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', $1, false)`,
		fmt.Sprint(lockFor.Milliseconds())); err != nil {
		return fmt.Errorf("database.url: %w", err)
	}
	// So that a backend whose migrate up was killed does not build on for nobody, with the lock of all migrations.
	if _, err := m.conn.Exec(ctx, `SELECT set_config('client_connection_check_interval', '2s', false)
		WHERE current_setting('server_version_num')::int >= 140000`); err != nil {
		return fmt.Errorf("database.url: %w", err)
	}
	return m.settle(ctx)
}

// settle reads how far the schema is, so that statements fit it.
func (m *Migrator) settle(ctx context.Context) error {
	e, err := m.words.extent(m.on(ctx).once)
	m.words.version.Store(int64(e.version))
	if m.pool != nil {
		err = m.pool.barred(err)
	}
	return err
}

// on is the connection for one call.
func (m *Migrator) on(ctx context.Context) migrator {
	if m.conn != nil {
		return &pgConn{ctx: ctx, conn: m.conn, p: m.pool}
	}
	m.lite.now = micros(m.now().UTC())
	return m.lite
}

// Close gives up the connection.
func (m *Migrator) Close() (err error) {
	if m.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err = m.conn.Close(ctx)
	}
	if m.lite != nil {
		m.lite.forget()
		err = m.lite.conn.Close()
	}
	if m.file != nil {
		err = errors.Join(err, m.file.Close())
	}
	return err
}

// Status says how far the schema is, and whether somebody is at it.
func (m *Migrator) Status(ctx context.Context) (Schema, error) {
	s, err := m.words.report(m.on(ctx))
	if err != nil || m.conn == nil {
		return s, err
	}
	return s, m.overlook(ctx, &s)
}

// Up does what is still to be done, step by step, and tells of each as it goes on. Whatever ends it, the next Up goes on
// from there. It gives up where a lock is not to be had, with nothing half-done.
func (m *Migrator) Up(ctx context.Context, tell func(Step)) error {
	if tell == nil {
		tell = func(Step) {}
	}
	if m.conn != nil {
		leave, err := m.enter(ctx, tell)
		if err != nil {
			return err
		}
		defer leave()
	}
	e, err := m.words.extent(m.on(ctx).once)
	switch {
	case err != nil:
		return err
	case e.version == empty:
		return m.first(ctx, tell)
	case e.oldest > m.words.newest():
		return m.words.runs(e)
	}
	for _, v := range m.words.history[:min(e.version, m.words.newest())] {
		if err := m.finish(ctx, v, e.version, tell); err != nil {
			return err
		}
	}
	for _, v := range m.words.history[min(e.version, m.words.newest()):] {
		err := m.patiently(ctx, v.steps[0].Step, tell, func() error { return m.change(ctx, v) })
		if err != nil {
			return err
		}
		if err := m.finish(ctx, v, v.number, tell); err != nil {
			return err
		}
	}
	return nil
}

// first makes the whole schema.
func (m *Migrator) first(ctx context.Context, tell func(Step)) error {
	if err := m.on(ctx).mayMake(); err != nil {
		return err
	}
	if _, err := m.words.make(ctx, m.on(ctx)); err != nil {
		return m.explain("", err)
	}
	m.words.version.Store(int64(m.words.newest()))
	for _, v := range m.words.history {
		for _, s := range v.steps {
			told(tell, s.Step, Done, "")
		}
	}
	return nil
}

// change makes one version's change, unless another process has.
func (m *Migrator) change(ctx context.Context, v version) (err error) {
	c := m.on(ctx)
	if err := c.lockSchema(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = c.script(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}()
	if m.conn != nil {
		if err := c.script(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d", lockFor.Milliseconds())); err != nil {
			return err
		}
	}
	e, err := m.words.extent(c.once)
	if err != nil {
		return err
	}
	if e.version < v.number {
		if err := m.words.change(ctx, c, v, false); err != nil {
			return err
		}
	}
	if err := c.script(ctx, "COMMIT"); err != nil {
		return err
	}
	m.words.version.Store(int64(max(e.version, v.number)))
	return nil
}

// finish does what of a version's steps is still open.
func (m *Migrator) finish(ctx context.Context, v version, reached int, tell func(Step)) error {
	if reached < tracked {
		return nil
	}
	open, err := m.words.unfinished(m.on(ctx))
	if err != nil {
		return err
	}
	all, err := m.words.report(m.on(ctx))
	if err != nil {
		return err
	}
	for _, s := range open {
		if s.Version != v.number {
			continue
		}
		s.Percent = all.named(s.Name).Percent
		do := func() error { return m.fill(ctx, s, tell) }
		if s.Kind == Index {
			do = func() error { return m.index(ctx, s, tell) }
		}
		if err := m.patiently(ctx, s.Step, tell, do); err != nil {
			return err
		}
	}
	return nil
}

// index builds an index; PostgreSQL does it beside everything else, and whatever a crash left of it is built anew.
func (m *Migrator) index(ctx context.Context, s step, tell func(Step)) error {
	if m.conn != nil {
		return m.concurrently(ctx, s, tell)
	}
	return m.transaction(ctx, func(c migrator) error {
		if err := c.script(ctx, s.text); err != nil {
			return err
		}
		return m.words.finished(c, s)
	})
}

// fill works through a backfill, batch by batch.
func (m *Migrator) fill(ctx context.Context, s step, tell func(Step)) error {
	for more := true; more; {
		began := time.Now()
		if err := m.transaction(ctx, func(c migrator) (err error) {
			more, err = m.words.fill(c, s)
			return err
		}); err != nil {
			return err
		}
		all, err := m.words.report(m.on(ctx))
		if err != nil {
			return err
		}
		if now := all.named(s.Name); now.State != Done {
			told(tell, now, Running, "")
		}
		if err := pause(ctx, min(time.Since(began), fillPause)); err != nil {
			return err
		}
	}
	return nil
}

// transaction runs f as one, that waits for a lock no longer than a change does.
func (m *Migrator) transaction(ctx context.Context, f func(migrator) error) error {
	c := m.on(ctx)
	begin := "BEGIN IMMEDIATE"
	if m.conn != nil {
		begin = "BEGIN"
	}
	err := c.script(ctx, begin)
	if err == nil {
		if err = f(c); err == nil {
			err = c.script(ctx, "COMMIT")
		}
		if err != nil {
			_ = c.script(context.WithoutCancel(ctx), "ROLLBACK")
		}
	}
	return err
}

// patiently does one step, and again after a while where somebody else had what it needs.
func (m *Migrator) patiently(ctx context.Context, s Step, tell func(Step), do func() error) error {
	told(tell, s, Running, "")
	for try := 1; ; try++ {
		err := do()
		if err == nil {
			s.Percent = 100
			told(tell, s, Done, "")
			return nil
		}
		if !contended(err) || ctx.Err() != nil {
			return m.explain(s.Name, err)
		}
		if try == m.tries {
			return fmt.Errorf("%s: others held what it needs, %d times for %s; what is half done was undone. A long transaction is in the way%s: end it, or run authsvc migrate up again later: %w",
				s.Name, try, lockFor, m.longest(ctx), err)
		}
		told(tell, s, Running, fmt.Sprintf("waits for a lock; tried %d of %d times", try, m.tries))
		if err := pause(ctx, m.pause+rand.N(m.pause/2+1)); err != nil {
			return err
		}
	}
}

func told(tell func(Step), s Step, state State, note string) {
	if s.State, s.Note = state, note; state == Done {
		s.Percent = 100
	}
	tell(s)
}

func pause(ctx context.Context, d time.Duration) error {
	wait := time.NewTimer(d)
	defer wait.Stop()
	select {
	case <-wait.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// contended reports that another process had a lock for too long.
func contended(err error) bool {
	var said *pgconn.PgError
	return collided(err) || busy(err) || errors.As(err, &said) && said.Code == "55P03"
}

// explain says what to do about an error that trying again does not mend.
func (m *Migrator) explain(what string, err error) error {
	var said *pgconn.PgError
	if what = strings.TrimSpace(what); what != "" {
		err = fmt.Errorf("%s: %w", what, err)
	}
	if errors.As(err, &said) && said.Code == "42501" {
		return fmt.Errorf("database.url: user %q may not change the schema: run authsvc migrate up as the owner of its tables: %w", m.user, err)
	}
	return fmt.Errorf("sqlstore: migrate: %w", err)
}
