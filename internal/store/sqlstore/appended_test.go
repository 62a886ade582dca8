package sqlstore_test

import (
	"sync/atomic"
	"testing"

	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

func TestWhatIsAppendedIsToldAfterItsCommit(t *testing.T) {
	t.Parallel()
	for name, options := range map[string]func(t *testing.T) sqlstore.Options{
		"SQLite": func(t *testing.T) sqlstore.Options { return sqlstore.Options{Path: t.TempDir() + "/a.db"} },
		"memory": func(*testing.T) sqlstore.Options { return sqlstore.Options{Path: sqlstore.Memory} },
		"PostgreSQL": func(t *testing.T) sqlstore.Options {
			return sqlstore.Options{URL: schema(t), Password: pgtest.Password}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var told atomic.Int64
			var db *sqlstore.DB
			o := options(t)
			o.Appended = func() { told.Add(1) }
			db = open(t, o)
			want := func(n int64, after string) {
				t.Helper()
				if got := told.Load(); got != n {
					t.Errorf("after %s it was told %d times, not %d", after, got, n)
				}
			}
			if err := db.Revocations().Append(t.Context(), journal.Journal{Audit: []journal.Record{{Event: "x", Outcome: "ok"}}}); err != nil {
				t.Fatal(err)
			}
			want(0, "a change that appended nothing")
			if err := db.Revocations().Append(t.Context(), revoke("one")); err != nil {
				t.Fatal(err)
			}
			want(1, "a revocation")
			if err := db.Revocations().Append(t.Context(), journal.Journal{Revokes: []journal.Revocation{{Kind: "none", ID: "x"}}}); err == nil {
				t.Fatal("an unknown kind is appended")
			}
			want(1, "one that failed")
			if err := db.Revocations().Append(t.Context(), revoke("two")); err != nil {
				t.Fatal(err)
			}
			want(2, "another revocation")
		})
	}
}
