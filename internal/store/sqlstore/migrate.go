package sqlstore

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"slices"

	"github.com/authsvc/authsvc/internal/ids"
)

// The schema's versions, one file each, in order; parseMigrations says how one is written. Our own few lines instead of a
// migration library: two processes may open a new file together, so the check and the change must be one transaction on the
// writer's connection, which in memory is the only one; and what a running service bears is more than "run this text".
//
//go:embed migrations/*.sql
var migrations embed.FS

const (
	// supported is the oldest schema that this program serves on: fit has a text for each statement that it lacks.
	supported = 2
	// tracked is the first version whose steps stand in schema_steps.
	tracked = 3
	// empty is the version of a database without a schema.
	empty = -1
)

// migrator is a connection that the schema can be changed on.
type migrator interface {
	connection
	// once reads a row by a statement that is not kept.
	once(query string) scanner
	// script runs statements without arguments, as many as the text holds.
	script(ctx context.Context, text string) error
	// lockSchema begins a transaction in which no other process changes the schema.
	lockSchema(ctx context.Context) error
	// mayMake says what keeps the connection's user from making tables, if anything does.
	mayMake() error
}

// extent is how far a database's schema is.
type extent struct {
	version int // of the newest migration whose change was made, or empty
	oldest  int // the oldest program that may run on it, as the version that it is made for
}

// extent reads how far the schema is, by one statement after the other. ErrNotOurs: there is something of another program, in a file
// anything, in a PostgreSQL, which may be shared, what has the name of something of ours.
func (d *dialect) extent(one func(query string) scanner) (e extent, err error) {
	var there [2]int
	for i, table := range []string{"schema_version", "schema_steps"} {
		if err := one(fmt.Sprintf(d.table, table)).Scan(&there[i]); err != nil {
			return e, fmt.Errorf("sqlstore: this is not a database of authsvc: %w", err)
		}
	}
	if there[0] == 0 {
		var other string
		if err := one(d.others).Scan(&other); err != nil {
			return e, schemaProblem(err)
		}
		if other != "" {
			return e, d.notOurs(other)
		}
		return extent{empty, 0}, nil
	}
	var ours bool
	if err := one(d.ours).Scan(&ours); err != nil {
		return e, schemaProblem(err)
	}
	if !ours {
		return e, d.notOurs("schema_version")
	}
	if there[1] > 0 {
		if err := one(`SELECT MAX(version) FROM schema_steps`).Scan(&e.version); err != nil {
			return e, schemaProblem(err)
		}
	}
	if err := one(`SELECT version FROM schema_version`).Scan(&e.oldest); err != nil {
		return e, schemaProblem(err)
	}
	e.version = max(e.version, e.oldest)
	return e, nil
}

// notOurs says what of another program is there.
func (d *dialect) notOurs(what string) error {
	if !d.numbered {
		return fmt.Errorf("%w: what is called %s there is another program's", ErrNotOurs, what)
	}
	return fmt.Errorf("database.url: %w: what is called %s there is another program's: name an empty database, or add search_path=NAME with a schema of its own", ErrNotOurs, what)
}

func schemaProblem(err error) error {
	if errors.Is(err, sql.ErrNoRows) {
		err = errors.New("its table has no row: restore a backup")
	}
	return fmt.Errorf("sqlstore: read the schema's version: %w", err)
}

// newest is the version of the schema that this program is made for.
func (d *dialect) newest() int { return len(d.history) }

// migrate makes the schema of an empty database, and otherwise sees whether this program may run on what there is. SQLite's is
// brought up to date, where that is allowed: the process that serves owns the file.
func (d *dialect) migrate(ctx context.Context, m migrator, may bool) error {
	e, err := d.extent(m.once)
	if err != nil {
		return err
	}
	if e.version == empty {
		if err := m.mayMake(); err != nil {
			return err
		}
	}
	makes := may && e.version == empty
	if may && !d.numbered && !makes {
		if makes, err = d.lacks(m, e); err != nil {
			return err
		}
	}
	if makes {
		if e, err = d.make(ctx, m); err != nil {
			return fmt.Errorf("sqlstore: migrate: %w", err)
		}
	}
	d.version.Store(int64(e.version))
	return d.runs(e)
}

// lacks reports whether a schema lacks anything of this program's, backfills aside.
func (d *dialect) lacks(m migrator, e extent) (bool, error) {
	if e.version < d.newest() || e.version < tracked {
		return e.version < d.newest(), nil
	}
	open, err := d.unfinished(m)
	return slices.ContainsFunc(open, func(s step) bool { return s.Kind == Index }), err
}

// runs says what keeps this program from running on a schema.
func (d *dialect) runs(e extent) error {
	setting := "database.path"
	if d.numbered {
		setting = "database.url"
	}
	switch {
	case e.version == empty && d.numbered:
		return fmt.Errorf("%s: %w: start the server once, or run authsvc migrate up", setting, ErrNoDatabase)
	case e.version == empty:
		return fmt.Errorf("%w: start the server once", ErrNoDatabase)
	case e.oldest > d.newest():
		return fmt.Errorf("%s: %w: it has version %d, on which programs of version %d or later run, and this one is of version %d: start the newer program",
			setting, ErrSchemaNewer, e.version, e.oldest, d.newest())
	case e.version < supported:
		return fmt.Errorf("%s: %w: it has version %d, this program runs on %d to %d: run authsvc migrate up",
			setting, ErrSchemaOlder, e.version, supported, d.newest())
	}
	return nil
}

// make brings the schema to the newest version in one transaction, all but backfills, and reads there how far it is: another
// process may have come first.
func (d *dialect) make(ctx context.Context, m migrator) (extent, error) {
	if err := m.lockSchema(ctx); err != nil {
		return extent{}, err
	}
	e, err := d.makeLocked(ctx, m)
	if err == nil {
		err = m.script(ctx, "COMMIT")
	}
	if err != nil {
		_ = m.script(context.WithoutCancel(ctx), "ROLLBACK")
	}
	return e, err
}

func (d *dialect) makeLocked(ctx context.Context, m migrator) (extent, error) {
	e, err := d.extent(m.once)
	if err != nil || e.oldest > d.newest() {
		return e, err
	}
	fresh := e.version == empty
	if fresh {
		if err := d.begin(ctx, m); err != nil {
			return e, err
		}
	}
	for _, v := range d.history[min(max(e.version, 0), d.newest()):] {
		if err := d.change(ctx, m, v, fresh); err != nil {
			return e, fmt.Errorf("%s: %w", v.name, err)
		}
		e = extent{v.number, v.oldest}
	}
	if e.version < tracked {
		return e, d.epoch(m, fresh)
	}
	open, err := d.unfinished(m)
	if err != nil {
		return e, err
	}
	for _, s := range open {
		if s.Kind != Index {
			continue
		}
		if err := m.script(ctx, s.text); err != nil {
			return e, fmt.Errorf("%s: %w", s.Name, err)
		}
		if err := d.finished(m, s); err != nil {
			return e, err
		}
	}
	return e, d.epoch(m, fresh)
}

// begin makes what the first migration stands on.
func (d *dialect) begin(ctx context.Context, m migrator) error {
	return m.script(ctx, d.schema.Replace(`CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT;
		INSERT INTO schema_version (version) VALUES (0)`))
}

// epoch names the history of a database that has just begun.
func (d *dialect) epoch(m migrator, fresh bool) error {
	if !fresh {
		return nil
	}
	var epoch [16]byte
	ids.Random(epoch[:])
	_, err := m.exec(`INSERT INTO installation (only_row, epoch) VALUES (1, ?)`, epoch[:])
	return err
}

// change makes the change of one version, and writes down which of its steps are still to be done. In a fresh database nothing
// is to be filled in.
func (d *dialect) change(ctx context.Context, m migrator, v version, fresh bool) error {
	if err := m.script(ctx, d.schema.Replace(v.steps[0].text)); err != nil {
		return err
	}
	for i, s := range v.steps {
		if v.number < tracked {
			break
		}
		insert := `INSERT INTO schema_steps (version, step) VALUES (?, ?)`
		if i == 0 || fresh && s.Kind == Backfill {
			insert = `INSERT INTO schema_steps (version, step, done_at) VALUES (?, ?, @now)`
		}
		if _, err := m.exec(insert, v.number, i); err != nil {
			return err
		}
	}
	_, err := m.exec(`UPDATE schema_version SET version = ?`, v.oldest)
	return err
}

// unfinished gives the steps of this program's migrations that are still to be done, in their order.
func (d *dialect) unfinished(q queries) ([]step, error) {
	type place struct{ version, step int }
	open, err := collect(q, func(s scanner) (p place, err error) { return p, s.Scan(&p.version, &p.step) },
		`SELECT version, step FROM schema_steps WHERE done_at = 0 ORDER BY version, step`)
	var steps []step
	for _, p := range open {
		if p.version <= d.newest() && p.step < len(d.history[p.version-1].steps) {
			steps = append(steps, d.history[p.version-1].steps[p.step])
		}
	}
	return steps, err
}

func (d *dialect) finished(c connection, s step) error {
	_, err := c.exec(`UPDATE schema_steps SET done_at = @now WHERE version = ? AND step = ?`, s.Version, s.place)
	return err
}

// fillRows is how many rows a backfill touches in one transaction.
const fillRows = 500

// fill goes on with a backfill by one batch, in the caller's transaction; more is false when it is done. Two that fill the same
// take turns at the step's row. It goes on to the end of the table as that is now: while it runs, servers of the version before
// may still write rows as they knew them.
func (d *dialect) fill(c connection, s step) (more bool, err error) {
	n, err := c.exec(`UPDATE schema_steps SET reached = reached WHERE version = ? AND step = ? AND done_at = 0`, s.Version, s.place)
	if err != nil || n == 0 {
		return false, err
	}
	var reached, last int64
	if err := c.row(`SELECT reached, last_row FROM schema_steps WHERE version = ? AND step = ?`, s.Version, s.place).Scan(&reached, &last); err != nil {
		return false, err
	}
	if last == 0 {
		if _, err := c.exec(`UPDATE schema_steps SET first_row = (SELECT COALESCE(MIN(`+s.column+`), 1) FROM `+s.table+`),
			last_row = (SELECT COALESCE(MAX(`+s.column+`), 1) FROM `+s.table+`) WHERE version = ? AND step = ?`, s.Version, s.place); err != nil {
			return false, err
		}
	}
	var rows int
	var upper int64
	if err := c.row(`SELECT COUNT(*), COALESCE(MAX(`+s.column+`), 0) FROM (SELECT `+s.column+` FROM `+s.table+` WHERE `+s.column+` > ? ORDER BY `+
		s.column+` LIMIT ?) AS batch`, reached, fillRows).Scan(&rows, &upper); err != nil {
		return false, err
	}
	if rows == 0 {
		return false, d.finished(c, s)
	}
	if _, err := c.exec(s.text, reached, upper); err != nil {
		return false, err
	}
	_, err = c.exec(`UPDATE schema_steps SET reached = ? WHERE version = ? AND step = ?`, upper, s.Version, s.place)
	return true, err
}

// Fill does one batch of what a migration of SQLite left to be filled in beside the service, and reports whether there is
// more. With PostgreSQL there is nothing for it: migrate up does it, once for all servers.
func (db *DB) Fill(ctx context.Context) (more bool, err error) {
	if db.pg != nil || db.words.version.Load() < tracked {
		return false, nil
	}
	return write(ctx, db, locks{}, func(t *tx) (bool, error) {
		open, err := db.words.unfinished(t)
		if err != nil || len(open) == 0 || open[0].Kind != Backfill {
			return false, err
		}
		more, err := db.words.fill(t, open[0])
		if err != nil {
			return false, fmt.Errorf("%s: %w", open[0].Name, err)
		}
		return more || len(open) > 1, nil
	})
}

func (t *lite) once(query string) scanner { return t.conn.QueryRowContext(context.Background(), query) }

func (t *lite) script(ctx context.Context, text string) error {
	_, err := t.conn.ExecContext(ctx, text)
	return err
}

func (t *lite) lockSchema(ctx context.Context) error { return t.script(ctx, "BEGIN IMMEDIATE") }

func (t *lite) mayMake() error { return nil }

func (c *pgConn) once(query string) scanner { return c.conn.QueryRow(c.ctx, query) }

func (c *pgConn) script(ctx context.Context, text string) error {
	_, err := c.conn.PgConn().Exec(ctx, text).ReadAll()
	return err
}

func (c *pgConn) lockSchema(ctx context.Context) error {
	if err := c.script(ctx, "BEGIN; SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '60s'"); err != nil {
		return err
	}
	_, err := c.conn.Exec(ctx, lockAlone, c.p.key("schema", ""))
	return err
}
