package sqlstore

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"strings"

	"github.com/authsvc/authsvc/internal/ids"
)

// The schema's versions, one file each, in order. Our own few lines instead of a migration library: two processes may
// open a new file together, so the check and the change must be one transaction on the writer's connection, which in
// memory is the only one.
//
//go:embed migrations/*.sql
var migrations embed.FS

// migrator is a connection that the schema can be changed on.
type migrator interface {
	connection
	// once reads a row by a statement that is not kept.
	once(query string) scanner
	// script runs statements without arguments, as many as the text holds.
	script(ctx context.Context, text string) error
	// lockSchema begins a transaction in which no other process changes the schema.
	lockSchema(ctx context.Context) error
}

// migrate brings the schema to the newest version where it may, and otherwise only checks it.
func (d *dialect) migrate(ctx context.Context, m migrator, may bool) error {
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return err
	}
	version, err := d.version(m)
	switch {
	case err != nil:
		return err
	case version == len(files):
		return nil
	case version > len(files):
		return fmt.Errorf("%w: it has version %d, this program knows %d", ErrSchemaNewer, version, len(files))
	case version == empty && !may:
		return fmt.Errorf("%w: start the server once", ErrNoDatabase)
	case !may:
		return fmt.Errorf("%w: it has version %d, this program needs %d", ErrSchemaOlder, version, len(files))
	}
	if err := m.lockSchema(ctx); err != nil {
		return fmt.Errorf("sqlstore: migrate: %w", err)
	}
	if err := d.apply(ctx, m, files); err != nil {
		_ = m.script(context.WithoutCancel(ctx), "ROLLBACK")
		return fmt.Errorf("sqlstore: migrate: %w", err)
	}
	if err := m.script(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("sqlstore: migrate: %w", err)
	}
	return nil
}

// apply runs inside the transaction, and reads the version again there: another process may have come first.
func (d *dialect) apply(ctx context.Context, m migrator, files []string) error {
	version, err := d.version(m)
	if err != nil {
		return err
	}
	if version == empty {
		if err := m.script(ctx, d.schema.Replace(`CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT;
			INSERT INTO schema_version (version) VALUES (0)`)); err != nil {
			return err
		}
	}
	for i := max(version, 0); i < len(files); i++ {
		text, err := migrations.ReadFile(files[i])
		if err != nil {
			return err
		}
		if err := m.script(ctx, d.schema.Replace(string(text))); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimPrefix(files[i], "migrations/"), err)
		}
	}
	if version == empty {
		var epoch [16]byte
		ids.Random(epoch[:])
		if _, err := m.exec(`INSERT INTO installation (only_row, epoch) VALUES (1, ?)`, epoch[:]); err != nil {
			return err
		}
	}
	return m.script(ctx, fmt.Sprintf(`UPDATE schema_version SET version = %d`, max(version, len(files))))
}

// empty is the version of a database without a schema.
const empty = -1

func (d *dialect) version(m migrator) (int, error) {
	var tables int
	if err := m.once(d.tables).Scan(&tables); err != nil {
		return 0, fmt.Errorf("sqlstore: this is not a database of authsvc: %w", err)
	}
	if tables == 0 {
		return empty, nil
	}
	var version int
	if err := m.once(`SELECT version FROM schema_version`).Scan(&version); err != nil {
		return 0, fmt.Errorf("sqlstore: read the schema's version: %w", err)
	}
	return version, nil
}

func (t *lite) once(query string) scanner { return t.conn.QueryRowContext(context.Background(), query) }

func (t *lite) script(ctx context.Context, text string) error {
	_, err := t.conn.ExecContext(ctx, text)
	return err
}

func (t *lite) lockSchema(ctx context.Context) error { return t.script(ctx, "BEGIN IMMEDIATE") }

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
