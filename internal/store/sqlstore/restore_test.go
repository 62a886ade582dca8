package sqlstore_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// restored makes a database with one session, a backup of it, and then what the backup does not have.
func restored(t *testing.T) (path, backup string, f *fixture) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "db")
	f = newFixture(t, path)
	f.login(t, t)
	backup = beside(path, "copy")
	if _, err := sqlstore.Backup(t.Context(), path, backup); err != nil {
		t.Fatal(err)
	}
	if err := f.Revocations().Append(t.Context(), pair()); err != nil {
		t.Fatal(err)
	}
	return path, backup, f
}

func TestARestoreReplacesADatabaseInOneStep(t *testing.T) {
	t.Parallel()
	path, backup, f := restored(t)
	o := sqlstore.RestoreOptions{Path: path, Backup: backup}
	if _, err := sqlstore.BeginRestore(t.Context(), o); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a database that is there: %v", err)
	}
	o.Replace = true
	if _, err := sqlstore.BeginRestore(t.Context(), o); !errors.Is(err, sqlstore.ErrInUse) {
		t.Errorf("while a server has it: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := sqlstore.BeginRestore(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.OpenExisting(t.Context(), sqlstore.Options{Path: path, OpTimeout: 50 * time.Millisecond}); err == nil {
		t.Error("a command opened the database during a restore")
	}
	db, err := r.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if db.Epoch() == f.Epoch() || db.Epoch() == ([16]byte{}) {
		t.Error("the epoch is not new")
	}
	if err := db.Revocations().Append(t.Context(), pair()); err != nil {
		t.Fatal(err)
	}
	_, kept, err := r.Finish(t.Context())
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	if n := numbers(t, kept, `SELECT COUNT(*) FROM audit WHERE event = 'pair'`); n[0] != 1 {
		t.Errorf("%s has %d records", kept, n[0])
	}
	again := open(t, sqlstore.Options{Path: path})
	if again.Epoch() != db.Epoch() {
		t.Error("the epoch of the restored database is another one")
	}
	if page, err := again.Revocations().Tail(t.Context(), 0); err != nil || page.Head != 1 || page.Epoch != db.Epoch() {
		t.Errorf("%+v, %v", page, err)
	}
	names := slices.DeleteFunc(files(t, path), func(n string) bool { return strings.HasPrefix(n, "db-") })
	if want := []string{"copy", "db", filepath.Base(kept)}; !cmp.Equal(names, want) {
		t.Errorf("there are %q, want %q", names, want)
	}
}

func TestARestoreThatIsGivenUpChangesNothing(t *testing.T) {
	t.Parallel()
	path, backup, f := restored(t)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, ""} {
		if name == "" { // and where there is no database, there is none then
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
		r, err := sqlstore.BeginRestore(t.Context(), sqlstore.RestoreOptions{Path: path, Backup: backup, Replace: true})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Open(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		want := []string{"copy", "db"}
		if name == "" {
			want = want[:1]
		} else if n := numbers(t, path, `SELECT COUNT(*) FROM audit WHERE event = 'pair'`); n[0] != 1 {
			t.Errorf("the database has %d records", n[0])
		}
		if got := files(t, path); !cmp.Equal(got, want) {
			t.Errorf("there are %q, want %q", got, want)
		}
	}
}

func TestARestoreOverAWreckKeepsItWithItsLog(t *testing.T) {
	t.Parallel()
	path, backup, f := restored(t)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	wreck := strings.Repeat("a wreck ", 2048)
	write(t, path, wreck)
	write(t, path+"-wal", "its log")
	write(t, path+"-journal", "its journal")
	write(t, path+".restoring", "of a restore that was killed")
	write(t, path+".restoring-wal", "and its log")
	r, err := sqlstore.BeginRestore(t.Context(), sqlstore.RestoreOptions{Path: path, Backup: backup, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, kept, err := r.Finish(t.Context())
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{kept: wreck, kept + "-wal": "its log", kept + "-journal": "its journal"} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s holds %.40q, %v", name, got, err)
		}
	}
	if got, err := sqlstore.Inspect(t.Context(), path); err != nil || got.Sessions != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	// A log without its database would be played into the new file.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for _, log := range []string{path + "-wal", path + "-journal"} {
		write(t, log, "x")
		if _, err := sqlstore.BeginRestore(t.Context(), sqlstore.RestoreOptions{Path: path, Backup: backup}); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), log) {
			t.Errorf("beside a log without a database: %v", err)
		}
		if err := os.Remove(log); err != nil {
			t.Fatal(err)
		}
	}
}

// What a killed restore has left may be all that somebody still has of the backup.
func TestARestoreFromALeftoverIsRefusedAndLosesNothing(t *testing.T) {
	t.Parallel()
	path, backup, f := restored(t)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if all := sqlstore.Leftovers(path); len(all) > 0 {
		t.Errorf("nothing was restored, and left are %q", all)
	}
	content, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	link := beside(path, "link")
	if err := os.Symlink("db", link); err != nil {
		t.Fatal(err)
	}
	left := path + ".restoring"
	for _, name := range []string{left, left + "-wal"} {
		if err := os.Rename(backup, name); err != nil {
			t.Fatal(err)
		}
		alias := beside(path, "alias")
		if err := os.Symlink(name, alias); err != nil {
			t.Fatal(err)
		}
		for _, from := range []string{name, alias} {
			for _, at := range []string{path, link} {
				_, err := sqlstore.BeginRestore(t.Context(), sqlstore.RestoreOptions{Path: at, Backup: from, Replace: true})
				if err == nil || !strings.Contains(err.Error(), from+" is what a restore that was killed has left") {
					t.Errorf("%s over %s: %v", from, at, err)
				}
				if got := sqlstore.Leftovers(at); !cmp.Equal(got, []string{name}) {
					t.Errorf("%q are left beside %s, want %s", got, at, name)
				}
			}
		}
		if got, err := os.ReadFile(name); err != nil || string(got) != string(content) {
			t.Errorf("%s holds %d bytes, %v", name, len(got), err)
		}
		if err := os.Rename(name, backup); err != nil { // the twin: under another name it is a backup like any other
			t.Fatal(err)
		}
		if err := os.Remove(alias); err != nil {
			t.Fatal(err)
		}
	}
	r, err := sqlstore.BeginRestore(t.Context(), sqlstore.RestoreOptions{Path: path, Backup: backup, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestAFileOfAnotherProgramIsLeftAlone(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, holds string
		want        error
	}{
		{"one with tables", `CREATE TABLE notes (a); INSERT INTO notes VALUES (1)`, sqlstore.ErrNotOurs},
		{"the twin, one that is empty", `PRAGMA user_version = 1`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "db")
			write(t, path, "")
			db := raw(t, path)
			exec(t, db, tt.holds)
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			m, err := sqlstore.OpenMigrator(t.Context(), sqlstore.Options{Path: path})
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("migrate says %v, want %v", err, tt.want)
			}
			if m != nil {
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			}
			served, err := sqlstore.Open(t.Context(), sqlstore.Options{Path: path})
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("a server says %v, want %v", err, tt.want)
			}
			if served != nil {
				if err := served.Close(); err != nil {
					t.Error(err)
				}
			}
			if n := numbers(t, path, `SELECT COUNT(*) FROM sqlite_master WHERE name = 'installation'`); (n[0] == 1) != (tt.want == nil) {
				t.Errorf("it has %d of our tables", n[0])
			}
		})
	}
}

func TestAnOlderBackupIsMigrated(t *testing.T) {
	t.Parallel()
	path, backup, f := restored(t)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	exec(t, raw(t, backup), `UPDATE schema_version SET version = 1; DROP TABLE schema_steps; DROP INDEX audit_event; ALTER TABLE revocations DROP COLUMN committed_at; DROP TABLE instances; ALTER TABLE installation DROP COLUMN lineage`)
	r, err := sqlstore.BeginRestore(t.Context(), sqlstore.RestoreOptions{Path: path, Backup: backup, Replace: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	schema, _, err := r.Finish(t.Context())
	if err := errors.Join(err, r.Close()); err != nil || schema < 2 || r.Copy().Schema != 1 {
		t.Errorf("from version %d to %d, %v", r.Copy().Schema, schema, err)
	}
	if _, err := open(t, sqlstore.Options{Path: path}).Revocations().Tail(t.Context(), 0); err != nil {
		t.Error(err)
	}
}
