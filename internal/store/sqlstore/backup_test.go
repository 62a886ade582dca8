package sqlstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// beside names a new file in the folder of a database.
func beside(path, name string) string { return filepath.Join(filepath.Dir(path), name) }

// files lists what is in the folder of a database.
func files(t *testing.T, path string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestABackupBesideAWriterIsOneMomentOfIt(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "it's 100% a ?db#1")
	f := newFixture(t, path)
	// Each operation writes two rows, a session's end and its audit record, so that half of one could be seen.
	began, stop := make(chan struct{}), make(chan struct{})
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for i := 0; ; i++ {
				if err := f.Revocations().Append(context.Background(), pair()); err != nil {
					t.Error(err)
					return
				}
				if i == 20 {
					began <- struct{}{}
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 4 {
		<-began
	}
	var last int64
	for i := range 5 {
		page, err := f.Revocations().Tail(t.Context(), 0)
		if err != nil {
			t.Fatal(err)
		}
		out := beside(path, fmt.Sprintf("copy %d's.db", i))
		c, err := sqlstore.Backup(t.Context(), path, out)
		if err != nil {
			t.Fatal(err)
		}
		if c.Position < max(page.Head, last) || c.Position < 80 {
			t.Errorf("the copy is at %d, and %d was committed before it was asked for", c.Position, page.Head)
		}
		last = c.Position
		n := numbers(t, out, `SELECT COUNT(*) FROM revocations`, `SELECT COUNT(*) FROM audit WHERE event = 'pair'`)
		if n[0] != n[1] || n[0] != c.Position {
			t.Errorf("the copy holds %d entries and %d records, at %d", n[0], n[1], c.Position)
		}
		if c.Epoch != f.Epoch() || c.Schema < 2 || c.LastAt.IsZero() {
			t.Errorf("the copy is said to be %+v", c)
		}
		if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 || info.Size() != c.Bytes {
			t.Errorf("%v, %v", info, err)
		}
	}
	close(stop)
	writers.Wait()
	if names := files(t, path); slices.ContainsFunc(names, func(n string) bool {
		return strings.Contains(n, "partial") || strings.HasPrefix(n, "copy") && !strings.HasSuffix(n, ".db")
	}) {
		t.Errorf("left behind: %q", names)
	}
}

// pair is a change of two rows.
func pair() journal.Journal {
	return journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: string(ids.New[ids.Token]())}},
		Audit: []journal.Record{{Event: "pair", Outcome: "ok"}}}
}

// numbers reads from a file that nobody has open.
func numbers(t *testing.T, path string, queries ...string) (all []int64) {
	t.Helper()
	conn := raw(t, path)
	for _, q := range queries {
		var n int64
		if err := conn.QueryRowContext(t.Context(), q).Scan(&n); err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	return all
}

func TestABackupHoldsNothingThatWasDeleted(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	f := newFixture(t, path)
	const secret = "what was sealed and is no more"
	for _, statement := range []string{`INSERT INTO signing_keys VALUES ('k', 'retired', x'', CAST('` + secret + `' AS BLOB), 1, 1, 1, 1, 1)`, `DELETE FROM signing_keys WHERE id = 'k'`} {
		if err := f.Exec(t.Context(), statement); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := sqlstore.Backup(t.Context(), path, beside(path, "copy")); err != nil {
		t.Fatal(err)
	}
	holds := func(names ...string) (found bool) {
		for _, name := range names {
			content, err := os.ReadFile(beside(path, name))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			found = found || bytes.Contains(content, []byte(secret))
		}
		return found
	}
	if holds("copy") {
		t.Error("it does")
	}
	if !holds("db", "db-wal") {
		t.Error("the database holds no trace either: the test shows nothing")
	}
}

func TestABackupThatCannotBeMadeLeavesNothing(t *testing.T) {
	t.Parallel()
	prepare := func(t *testing.T) (path, out string) {
		path = filepath.Join(t.TempDir(), "db")
		f := newFixture(t, path)
		f.login(t, t)
		return path, beside(path, "copy")
	}
	tests := []struct {
		name  string
		fault func(t *testing.T, path, out string) (from, to string)
		want  error
		left  []string
	}{
		{"to a name that is taken", func(t *testing.T, path, out string) (string, string) {
			write(t, out, "mine")
			return path, out
		}, fs.ErrExist, []string{"copy", "db"}},
		{"to a link that leads nowhere", func(t *testing.T, path, out string) (string, string) {
			if err := os.Symlink("nowhere", out); err != nil {
				t.Fatal(err)
			}
			return path, out
		}, fs.ErrExist, []string{"copy", "db"}},
		{"beside another one that is being made", func(t *testing.T, path, out string) (string, string) {
			write(t, out+".partial", "")
			return path, out
		}, fs.ErrExist, []string{"copy.partial", "db"}},
		{"to a folder that is not there", func(_ *testing.T, path, out string) (string, string) {
			return path, filepath.Join(out, "none", "copy")
		}, fs.ErrNotExist, []string{"db"}},
		{"of no database", func(_ *testing.T, path, out string) (string, string) { return path + "none", out }, sqlstore.ErrNoDatabase, []string{"db"}},
		{"of a newer program's", func(t *testing.T, path, out string) (string, string) {
			exec(t, raw(t, path), `UPDATE schema_version SET version = 99`)
			return path, out
		}, sqlstore.ErrSchemaNewer, []string{"db"}},
		{"of a damaged one", func(t *testing.T, path, out string) (string, string) {
			exec(t, raw(t, path), `PRAGMA writable_schema = ON; UPDATE sqlite_master SET rootpage = 3 WHERE name = 'audit'`)
			return path, out
		}, nil, []string{"db"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path, out := prepare(t)
			from, to := tt.fault(t, path, out)
			_, err := sqlstore.Backup(t.Context(), from, to)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("it answered %v, want %v", err, tt.want)
			}
			left := slices.DeleteFunc(files(t, path), func(n string) bool { return n == "db-wal" || n == "db-shm" })
			if diff := cmp.Diff(tt.left, left); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	t.Run("the twin, without a fault, also of an older schema", func(t *testing.T) {
		t.Parallel()
		path, out := prepare(t)
		exec(t, raw(t, path), `UPDATE schema_version SET version = 1; DROP TABLE schema_steps; DROP INDEX audit_event; ALTER TABLE revocations DROP COLUMN committed_at; DROP TABLE instances; ALTER TABLE installation DROP COLUMN lineage`)
		write(t, out+".partial-journal", "of one that was killed, and of which the other file was removed")
		if c, err := sqlstore.Backup(t.Context(), path, out); err != nil || c.Schema != 1 || c.Sessions != 1 || !slices.Equal(c.RefreshKeys, []byte{0}) {
			t.Errorf("%+v, %v", c, err)
		}
		if left := files(t, path); slices.ContainsFunc(left, func(n string) bool { return strings.HasPrefix(n, "copy.partial") }) {
			t.Errorf("left behind: %q", left)
		}
	})
	t.Run("and one that is given up", func(t *testing.T) {
		t.Parallel()
		path, out := prepare(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := sqlstore.Backup(ctx, path, out); !errors.Is(err, context.Canceled) {
			t.Errorf("it answered %v", err)
		}
		if left := files(t, path); slices.Contains(left, "copy") || slices.Contains(left, "copy.partial") {
			t.Errorf("left behind: %q", left)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, to, name string) {
	t.Helper()
	if err := os.Symlink(to, name); err != nil {
		t.Fatal(err)
	}
}

func TestWhatIsNoBackupIsSaidToBeNone(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	f := newFixture(t, path)
	for range 300 {
		f.login(t, t)
	}
	good := beside(path, "good")
	if _, err := sqlstore.Backup(t.Context(), path, good); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		make func(t *testing.T, out string)
		want error
	}{
		{"an empty file", func(t *testing.T, out string) { write(t, out, "") }, sqlstore.ErrDamaged},
		{"a text", func(t *testing.T, out string) { write(t, out, strings.Repeat("no database\n", 1000)) }, sqlstore.ErrDamaged},
		{"a file that begins as one", func(t *testing.T, out string) {
			write(t, out, string(content[:16])+strings.Repeat("x", 10_000))
		}, sqlstore.ErrDamaged},
		{"the first half", func(t *testing.T, out string) { write(t, out, string(content[:len(content)/8192*4096])) }, sqlstore.ErrDamaged},
		{"without its last byte", func(t *testing.T, out string) { write(t, out, string(content[:len(content)-1])) }, sqlstore.ErrDamaged},
		{"with a page of zeros", func(t *testing.T, out string) {
			broken := bytes.Clone(content)
			clear(broken[len(broken)/8192*4096:][:4096])
			write(t, out, string(broken))
		}, sqlstore.ErrDamaged},
		{"another program's", func(t *testing.T, out string) {
			write(t, out, "")
			exec(t, raw(t, out), `CREATE TABLE t (a); INSERT INTO t VALUES (1)`)
		}, sqlstore.ErrNotOurs},
		{"another program's with a table of the same name", func(t *testing.T, out string) {
			write(t, out, "")
			exec(t, raw(t, out), `CREATE TABLE schema_version (version); INSERT INTO schema_version VALUES (1)`)
		}, sqlstore.ErrNotOurs},
		{"a copy of the file alone of a database that is in use", func(t *testing.T, out string) {
			write(t, out, string(content))
			write(t, out+"-wal", "x")
		}, sqlstore.ErrDamaged},
		{"a link to such a copy", func(t *testing.T, out string) {
			write(t, out+".live", string(content))
			write(t, out+".live-wal", "x")
			link(t, out+".live", out)
		}, sqlstore.ErrDamaged},
		{"the twin, a link to a backup", func(t *testing.T, out string) {
			write(t, out+".live", string(content))
			link(t, out+".live", out)
		}, nil},
		{"a copy of a database in the middle of a transaction", func(t *testing.T, out string) {
			write(t, out, string(content))
			write(t, out+"-journal", "x")
		}, sqlstore.ErrDamaged},
		{"one without its installation", func(t *testing.T, out string) {
			write(t, out, string(content))
			exec(t, raw(t, out), `DELETE FROM installation`)
		}, sqlstore.ErrDamaged},
		{"a newer program's", func(t *testing.T, out string) {
			write(t, out, string(content))
			exec(t, raw(t, out), `UPDATE schema_version SET version = 99`)
		}, sqlstore.ErrSchemaNewer},
		{"the twin", func(t *testing.T, out string) { write(t, out, string(content)) }, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "b.db")
			tt.make(t, out)
			before, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := sqlstore.Inspect(t.Context(), out); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Errorf("it is said to be %v, want %v", err, tt.want)
			}
			if after, err := os.ReadFile(out); err != nil || !bytes.Equal(before, after) {
				t.Errorf("it was changed, %v", err)
			}
		})
	}
}
