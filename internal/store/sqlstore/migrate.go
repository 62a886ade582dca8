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

// migrate brings the schema to the newest version where it may, and otherwise only checks it.
func migrate(ctx context.Context, t *tx, may bool) error {
	files, err := fs.Glob(migrations, "migrations/*.sql") // sorted
	if err != nil {
		return err
	}
	version, err := schemaVersion(t)
	switch {
	case err != nil:
		return err
	case version == len(files):
		return nil
	case version > len(files):
		return fmt.Errorf("%w: it has version %d, this program knows %d", ErrSchemaNewer, version, len(files))
	case !may:
		return fmt.Errorf("%w: it has version %d, this program needs %d", ErrSchemaOlder, version, len(files))
	}
	if _, err := t.conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("sqlstore: migrate: %w", err)
	}
	if err := apply(ctx, t, files); err != nil {
		_, _ = t.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		return fmt.Errorf("sqlstore: migrate: %w", err)
	}
	if _, err := t.conn.ExecContext(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("sqlstore: migrate: %w", err)
	}
	return nil
}

// apply runs inside the transaction, and reads the version again there: another process may have come first.
func apply(ctx context.Context, t *tx, files []string) error {
	version, err := schemaVersion(t)
	if err != nil {
		return err
	}
	if version == 0 {
		if _, err := t.conn.ExecContext(ctx, `CREATE TABLE schema_version (version INTEGER NOT NULL) STRICT`); err != nil {
			return err
		}
		if _, err := t.conn.ExecContext(ctx, `INSERT INTO schema_version (version) VALUES (0)`); err != nil {
			return err
		}
	}
	for i := version; i < len(files); i++ {
		text, err := migrations.ReadFile(files[i])
		if err != nil {
			return err
		}
		if _, err := t.conn.ExecContext(ctx, string(text)); err != nil {
			return fmt.Errorf("%s: %w", strings.TrimPrefix(files[i], "migrations/"), err)
		}
	}
	if version == 0 {
		var epoch [16]byte
		ids.Random(epoch[:])
		if _, err := t.conn.ExecContext(ctx, `INSERT INTO installation (only_row, epoch) VALUES (1, ?)`, epoch[:]); err != nil {
			return err
		}
	}
	_, err = t.conn.ExecContext(ctx, `UPDATE schema_version SET version = ?`, max(version, len(files)))
	return err
}

// schemaVersion is zero for an empty database.
func schemaVersion(t *tx) (int, error) {
	var tables int
	if err := t.once(`SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'schema_version'`).Scan(&tables); err != nil {
		return 0, fmt.Errorf("sqlstore: this is not a database of authsvc: %w", err)
	}
	if tables == 0 {
		return 0, nil
	}
	var version int
	if err := t.once(`SELECT version FROM schema_version`).Scan(&version); err != nil {
		return 0, fmt.Errorf("sqlstore: read the schema's version: %w", err)
	}
	return version, nil
}
