package app

import (
	"context"
	"errors"
	"time"

	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// Schema is how far the schema of a database is.
type Schema = sqlstore.Schema

// SchemaStep is one step of a Schema.
type SchemaStep = sqlstore.Step

// MigrateStatus says how far the schema of an installation's database is, whatever its version.
func MigrateStatus(ctx context.Context, o AdminOptions) (Schema, error) {
	return migrating(ctx, o, func(m *sqlstore.Migrator) error { return nil })
}

// MigrateUp brings the schema to this program's version beside running servers, tells of each step as it goes on, and gives
// how far the schema is then. Whatever ends it, the next call goes on from there.
func MigrateUp(ctx context.Context, o AdminOptions, tell func(SchemaStep)) (Schema, error) {
	return migrating(ctx, o, func(m *sqlstore.Migrator) error { return m.Up(ctx, tell) })
}

func migrating(ctx context.Context, o AdminOptions, do func(*sqlstore.Migrator) error) (s Schema, err error) {
	cfg, err := adminConfig(o)
	if err != nil {
		return s, err
	}
	database, err := databaseOptions(cfg.Database)
	if err != nil {
		return s, err
	}
	m, err := sqlstore.OpenMigrator(ctx, database)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if err := do(m); err != nil {
		return s, err
	}
	return m.Status(ctx)
}

// sayOutdated warns where the schema lacks what this program brings: it works, and the operator decides when that comes.
func (a *App) sayOutdated(ctx context.Context) error {
	s, err := a.db.Schema(ctx)
	if err == nil && s.Pending() > 0 && a.cfg.Database.URL != "" {
		a.log.Warn("the database's schema lacks steps of this version: run authsvc migrate up, while the servers run",
			"database", s.Database, "program", s.Program, "steps", s.Pending())
	}
	return err
}

// fillEvery is the pause between two batches of what a migration left to be filled in.
const fillEvery = 50 * time.Millisecond

// fill works through what a migration of an SQLite file left to be filled in, beside the calls.
func (a *App) fill(ctx context.Context) error {
	tick := time.NewTicker(fillEvery)
	defer tick.Stop()
	failing := false
	for {
		more, err := a.db.Fill(ctx)
		switch {
		case err == nil && !more:
			return nil
		case err != nil && ctx.Err() == nil && !failing:
			a.log.Warn("a migration cannot fill in rows; it is tried again", "error", err)
			failing = true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
