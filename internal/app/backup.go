package app

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// Backup says what stands in a backup, and what does not.
type Backup struct {
	File     string    `json:"file"`
	Bytes    int64     `json:"bytes"`
	Schema   int       `json:"schema_version"`
	Epoch    string    `json:"epoch"`
	Position int64     `json:"position"`           // of the newest row of the revocation log
	LastAt   time.Time `json:"last_time,omitzero"` // of its newest audit record
	Sessions int       `json:"sessions"`           // that nobody had ended
	NotInIt  []KeyFile `json:"not_in_it"`          // without these it is of no use
}

// KeyFile is a file of secrets, and the setting that names it.
type KeyFile struct {
	Setting string `json:"setting"`
	File    string `json:"file"`
}

// errNotSQLite answers who would copy a PostgreSQL with the tools of SQLite.
var errNotSQLite = errors.New("database.url is a PostgreSQL, which has its own tools: pg_basebackup and the archive of its WAL; docs/backup.md has the commands and the drill")

// MakeBackup copies the SQLite database of an installation to a new file, beside a running server or without one.
func MakeBackup(ctx context.Context, o AdminOptions, out string) (Backup, error) {
	cfg, err := fileConfig(o)
	if err != nil {
		return Backup{}, err
	}
	c, err := sqlstore.Backup(ctx, cfg.Database.Path, out)
	if err != nil {
		return Backup{}, fmt.Errorf("no backup was made: %w", err)
	}
	return viewBackup(c, out, cfg), nil
}

// fileConfig is adminConfig for an installation on SQLite.
func fileConfig(o AdminOptions) (config.Config, error) {
	cfg, err := adminConfig(o)
	if err == nil && cfg.Database.URL != "" {
		err = errNotSQLite
	}
	return cfg, err
}

func viewBackup(c sqlstore.Copy, file string, cfg config.Config) Backup {
	return Backup{File: file, Bytes: c.Bytes, Schema: c.Schema, Epoch: hex.EncodeToString(c.Epoch[:]), Position: c.Position, LastAt: c.LastAt, Sessions: c.Sessions,
		NotInIt: []KeyFile{{"secrets.key_encryption_keys_file", kekSource(cfg.Secrets).name}, {"secrets.refresh_keys_file", refreshSource(cfg.Secrets).name}}}
}

// RestoreOptions say which backup is to become the database of which installation, and what of it may live.
type RestoreOptions struct {
	AdminOptions
	File    string
	Replace bool // a database that is there makes way, and is kept under another name
	// KeepKeys lets the backup's signing keys sign on; otherwise every one is compromised, and there are two new ones.
	KeepKeys bool
	// KeepSessions lets the backup's sessions live; otherwise everything that began until now is cut off, for good.
	KeepSessions bool
}

// Restored says what a restore has done.
type Restored struct {
	Database     string `json:"database"`
	Kept         string `json:"kept,omitempty"` // the name of the database that made way
	Schema       int    `json:"schema_version"`
	Epoch        string `json:"epoch"`
	KeptKeys     bool   `json:"kept_keys"`
	KeptSessions bool   `json:"kept_sessions"`
	Ended        int    `json:"ended_sessions"`   // those of the backup; the server marks them as ended bit by bit, and the cut-off has ended them already
	Signer       string `json:"signer,omitempty"` // the kid of the new one
}

// Restore is a restore under way: the backup has been checked, nothing is changed, and no server can have the database until Close.
type Restore struct {
	o      RestoreOptions
	cfg    config.Config
	sealer *keys.Sealer
	r      *sqlstore.Restore
	alone  io.Closer // no server starts meanwhile
}

// PrepareRestore checks the backup against this program and the installation's key files, and that no server has the database.
func PrepareRestore(ctx context.Context, o RestoreOptions) (_ *Restore, err error) {
	r := &Restore{o: o}
	if r.cfg, err = fileConfig(o.AdminOptions); err != nil {
		return nil, err
	}
	if r.sealer, err = loadSealer(r.cfg.Secrets); err != nil {
		return nil, named("secrets.key_encryption_keys_file", err)
	}
	refresh, err := loadRefreshKeys(r.cfg.Secrets, r.cfg.Issuer)
	if err != nil {
		return nil, named("secrets.refresh_keys_file", err)
	}
	if r.r, err = sqlstore.BeginRestore(ctx, sqlstore.RestoreOptions{Path: r.cfg.Database.Path, Backup: o.File, Replace: o.Replace}); err != nil {
		return nil, err
	}
	// After SQLite's own lock: a server that waits for that has this one, and would go on with the old file.
	if r.alone, err = alone(r.cfg.Database); err != nil {
		return nil, errors.Join(err, r.r.Close())
	}
	if err := fits(r.r.Copy(), r.sealer, refresh); err != nil {
		return nil, errors.Join(fmt.Errorf("%s and the key files do not belong together: %w", o.File, err), r.Close())
	}
	return r, nil
}

// fits refuses key files without which the backup is of no use.
func fits(c sqlstore.Copy, sealer *keys.Sealer, refresh *session.RefreshKeys) error {
	for _, k := range c.Sealed {
		if _, err := sealer.Open(k.ID, k.Sealed); err != nil {
			return named("secrets.key_encryption_keys_file", err)
		}
	}
	for _, id := range c.RefreshKeys {
		if !refresh.Lists(id) {
			return fmt.Errorf(`secrets.refresh_keys_file: sessions were made with refresh key %d, which is not in it: put it back, or give it up by {"id": %[1]d, "gone": true}`, id)
		}
	}
	return nil
}

// Backup says what is to be restored.
func (r *Restore) Backup() Backup { return viewBackup(r.r.Copy(), r.o.File, r.cfg) }

// Database is the path that it is to have.
func (r *Restore) Database() string { return r.cfg.Database.Path }

// CarryOut restores. Until the last step, which happens or does not, the database is as it was.
func (r *Restore) CarryOut(ctx context.Context) (done Restored, err error) {
	db, err := r.r.Open(ctx)
	if err != nil {
		return done, fmt.Errorf("nothing was restored: %w", err)
	}
	epoch := db.Epoch()
	done = Restored{Database: r.Database(), Epoch: hex.EncodeToString(epoch[:]), KeptKeys: r.o.KeepKeys, KeptSessions: r.o.KeepSessions}
	if err = r.invalidate(ctx, db, &done); err == nil {
		done.Schema, done.Kept, err = r.r.Finish(ctx)
	}
	if err != nil {
		return Restored{}, fmt.Errorf("nothing was restored: %w", err)
	}
	return done, nil
}

// invalidate ends in the new file what may have been ended since the backup was made.
func (r *Restore) invalidate(ctx context.Context, db *sqlstore.DB, done *Restored) error {
	caller := service.Operator(os.Getuid())
	before := r.r.Copy().Epoch
	revocations, err := service.NewRevocations(db.Sessions(), db.Clients(), db.Revocations(), committed{})
	if err != nil {
		return err
	}
	if !r.o.KeepSessions {
		done.Ended = r.r.Copy().Sessions
	}
	if err = revocations.Restored(ctx, caller, hex.EncodeToString(before[:]), r.o.KeepKeys, r.o.KeepSessions); err != nil {
		return err
	}
	if r.o.KeepKeys {
		return nil
	}
	k, err := service.NewKeys(service.KeysOptions{Store: db.Keys(), Sealer: r.sealer, Config: r.cfg.Keys, Tail: committed{}})
	if err != nil {
		return err
	}
	done.Signer, err = k.RevokeAll(ctx, caller)
	return err
}

// Close lets servers have the database, and removes what was not finished.
func (r *Restore) Close() error { return errors.Join(r.r.Close(), r.alone.Close()) }
