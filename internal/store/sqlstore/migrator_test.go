package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

func migrator(t *testing.T, o sqlstore.Options) *sqlstore.Migrator {
	t.Helper()
	m, err := sqlstore.OpenMigrator(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func status(t *testing.T, o sqlstore.Options) sqlstore.Schema {
	t.Helper()
	s, err := migrator(t, o).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// steps says in a few words what became of each step from version 3 on.
func steps(s sqlstore.Schema) (all []string) {
	for _, step := range s.Steps {
		if step.Version > before {
			all = append(all, fmt.Sprintf("%s %s", step.Kind, step.State))
		}
	}
	return all
}

// TestStoreOnTheSchemaBefore: what the suite asks of a store holds on the oldest schema that is served on. The groups are those
// whose statements have another text there.
func TestStoreOnTheSchemaBefore(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Stores {
		clock := storetest.NewClock()
		db := open(t, sqlstore.AtSchema(sqlstore.Options{Path: sqlstore.Memory, Now: clock.Now, OpTimeout: time.Minute}, before))
		return storetest.Stores{Accounts: db.Accounts(), Clients: db.Clients(), Sessions: db.Sessions(), Keys: db.Keys(),
			Revocations: db.Revocations(), Audit: db.Audit(), Instances: db.Instances(), Clock: clock}
	}, "cut-offs", "keys", "revocations", "reappend", "journals")
}

// older makes a database of the schema before, with rows in the log that a migration has to fill in, and gives the server of it.
func older(t *testing.T, o sqlstore.Options, rows int) *fixture {
	t.Helper()
	f := &fixture{DB: open(t, sqlstore.AtSchema(o, before))}
	f.seed(t, "app")
	insert := `INSERT INTO revocations (kind, id, not_before, expires_at) SELECT 'jti', 'old' || n, 0, 4102444800000000 + n FROM `
	if o.URL == "" {
		insert = `WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < ` + fmt.Sprint(rows) + `) ` + insert + `s`
	} else {
		insert += `generate_series(1, ` + fmt.Sprint(rows) + `) AS s (n)`
	}
	if err := f.Exec(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestABackfillGoesOnWhereItWasStopped(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"SQLite", "PostgreSQL"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			o := sqlstore.Options{Path: filepath.Join(t.TempDir(), "db")}
			if engine == "PostgreSQL" {
				o = sqlstore.Options{URL: schema(t), Password: pgtest.Password}
			}
			f := older(t, o, 1700)
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			err := migrator(t, o).Up(ctx, func(s sqlstore.Step) {
				if s.Kind == sqlstore.Backfill && s.Percent > 0 {
					stop()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("who is stopped ends with %v", err)
			}
			s := status(t, o)
			if diff := cmp.Diff([]string{"expand done", "index done", "backfill pending"}, steps(s)); diff != "" || s.Steps[len(s.Steps)-1].Percent != 29 || s.Pending() != 1 {
				t.Errorf("after 500 of 1,700 rows: %+v (-want +got)\n%s", s.Steps[len(s.Steps)-1], diff)
			}
			// What an earlier program still appends is reached, too, and what is filled in is not touched again.
			if err := f.Exec(t.Context(), `UPDATE revocations SET committed_at = 7 WHERE position = 3`); err != nil {
				t.Fatal(err)
			}
			if err := f.Revocations().Append(t.Context(), revoke("late")); err != nil {
				t.Fatal(err)
			}
			var seen []int
			if err := migrator(t, o).Up(t.Context(), func(s sqlstore.Step) { seen = append(seen, s.Percent) }); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]int{29, 58, 88, 99, 100}, seen); diff != "" {
				t.Errorf("it went on by (-want +got)\n%s", diff)
			}
			for query, want := range map[string]int64{`SELECT COUNT(*) FROM revocations WHERE committed_at = 0`: 0,
				`SELECT COUNT(*) FROM revocations WHERE committed_at = 7`:                       1,
				`SELECT COUNT(*) FROM revocations WHERE committed_at = expires_at - 1020000000`: 1700} {
				if n, err := f.Number(t.Context(), query); err != nil || n != want {
					t.Errorf("%s: %d, want %d, error %v", query, n, want, err)
				}
			}
			if s := status(t, o); s.Pending() != 0 || s.Database != 3 || s.OldestProgram != before {
				t.Errorf("at the end: %+v", s)
			}
			if err := migrator(t, o).Up(t.Context(), func(s sqlstore.Step) { t.Errorf("there was still %v to do", s) }); err != nil {
				t.Error(err)
			}
		})
	}
}

// named gives options whose migrator is seen under its own name.
func named(t *testing.T) (o sqlstore.Options, application string) {
	t.Helper()
	application = fmt.Sprint("migrate", schemas.Add(1))
	return sqlstore.Options{URL: schema(t, "application_name="+application), Password: pgtest.Password, OpTimeout: time.Minute}, application
}

// terminate waits until a migrator waits for a lock, and ends its backend, which gives the locks that it has up a moment after it says so.
func terminate(t *testing.T, application string) {
	t.Helper()
	var backend int
	until(t, "the migrator waits and is ended", func() bool {
		var ended bool
		err := admin.QueryRow(t.Context(), `SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1
			AND wait_event_type = 'Lock'`, application).Scan(&backend, &ended)
		return err == nil && ended
	})
	until(t, "the backend is gone", func() bool {
		var there bool
		err := admin.QueryRow(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_stat_activity WHERE pid = $1)`, backend).Scan(&there)
		return err == nil && !there
	})
}

func TestACrashInAnyStepLeavesWhatTheNextRunGoesOnFrom(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, holds string
		left        []string
	}{
		{"in the change", `SELECT 1 FROM revocations LIMIT 1`, []string{"expand pending", "index pending", "backfill pending"}},
		{"while the index is built", `DELETE FROM audit WHERE id = -1`, []string{"expand done", "index pending", "backfill pending"}},
		{"in the second batch", `UPDATE revocations SET kind = kind WHERE position = 700`, []string{"expand done", "index done", "backfill pending"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o, application := named(t)
			f := older(t, sqlstore.Options{URL: strings.Replace(o.URL, application, "server", 1), Password: o.Password}, 1200)
			plain := o
			plain.URL = strings.Replace(o.URL, application, "other", 1)
			if strings.Contains(c.name, "batch") { // whose lock would be in the way of the change
				ctx, stop := context.WithCancel(t.Context())
				if err := migrator(t, plain).Up(ctx, func(s sqlstore.Step) {
					if s.Kind == sqlstore.Backfill {
						stop()
					}
				}); !errors.Is(err, context.Canceled) {
					t.Fatal(err)
				}
			}
			other := holding(t, plain.URL, c.holds)
			ended := make(chan error, 1)
			go func() { ended <- migrator(t, o).Up(t.Context(), nil) }()
			terminate(t, application)
			if err := <-ended; err == nil || !strings.Contains(err.Error(), "57P01") {
				t.Errorf("who lost its backend says %v", err)
			}
			s := status(t, plain)
			if diff := cmp.Diff(c.left, steps(s)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if strings.Contains(c.name, "index") {
				var invalid bool
				if err := other.QueryRow(t.Context(), `SELECT NOT indisvalid FROM pg_index WHERE indexrelid = 'audit_event'::regclass`).Scan(&invalid); err != nil || !invalid {
					t.Errorf("the crash left no invalid index: %v", err)
				}
			}
			round1(t, f)
			if err := other.Rollback(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := migrator(t, plain).Up(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if s := status(t, plain); s.Pending() != 0 {
				t.Errorf("after the next run: %v", steps(s))
			}
			n, err := f.Number(t.Context(), `SELECT count(*) FROM pg_index WHERE indexrelid = 'audit_event'::regclass AND indisvalid`)
			if err != nil || n != 1 {
				t.Errorf("%d valid indexes, error %v", n, err)
			}
			round1(t, f)
		})
	}
}

// round1 signs in, refreshes and revokes.
func round1(t *testing.T, f *fixture) {
	t.Helper()
	s := f.login(t, t)
	if out, err := f.Sessions().Redeem(t.Context(), present(s, 1)); err != nil || out.Verdict != session.Issue {
		t.Errorf("a refresh: %v, %v", out.Verdict, err)
	}
	if err := f.Revocations().Append(t.Context(), revoke(string(s.ID))); err != nil {
		t.Error(err)
	}
	tail(t, f.DB)
}

// TestALockThatIsNotToBeHadIsGivenUp: a call of the service may take no longer than five times as long as a change waits, which is half a second.
func TestALockThatIsNotToBeHadIsGivenUp(t *testing.T) {
	t.Parallel()
	o, application := named(t)
	f := older(t, sqlstore.Options{URL: strings.Replace(o.URL, application, "server", 1), Password: o.Password}, 10)
	other := holding(t, strings.Replace(o.URL, application, "reader", 1), `SELECT 1 FROM revocations LIMIT 1`)
	var calls sync.WaitGroup
	stopped, clock := make(chan struct{}), pulse(t)
	calls.Go(func() {
		for {
			select {
			case <-stopped:
				return
			default:
			}
			began := clock.Now()
			if round1(t, f); clock.Now()-began > 4*2500*time.Millisecond {
				t.Errorf("four calls took %v", clock.Now()-began)
			}
		}
	})
	var notes []string
	err := migrator(t, o).Hurried(3).Up(t.Context(), func(s sqlstore.Step) { notes = append(notes, s.Note) })
	close(stopped)
	calls.Wait()
	if err == nil || !strings.Contains(err.Error(), "A long transaction is in the way") || !strings.Contains(err.Error(), "0003_commit_times") ||
		!strings.Contains(err.Error(), `"reader"`) {
		t.Errorf("it gave up with %v", err)
	}
	if diff := cmp.Diff([]string{"", "waits for a lock; tried 1 of 3 times", "waits for a lock; tried 2 of 3 times"}, notes); diff != "" {
		t.Errorf("meanwhile it said (-want +got)\n%s", diff)
	}
	if s := status(t, o); s.Database != before || s.Pending() != 3 {
		t.Errorf("it left %+v", s)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := migrator(t, o).Up(t.Context(), nil); err != nil {
		t.Errorf("the twin, without the reader: %v", err)
	}
}

func TestOfTwoThatMigrateOneWaits(t *testing.T) {
	t.Parallel()
	o, application := named(t)
	older(t, o, 10)
	plain := strings.Replace(o.URL, application, "other", 1)
	writer := holding(t, plain, `DELETE FROM audit WHERE id = -1`) // which the index waits for
	first, second := make(chan error), make(chan error)
	go func() { first <- migrator(t, o).Up(t.Context(), nil) }()
	until(t, "the first is at the index", func() bool {
		s := status(t, o)
		return len(s.Steps) > 3 && s.Steps[3].State == sqlstore.Running && strings.Contains(s.Steps[3].Note, "waiting for writers")
	})
	waits := make(chan string, 100)
	go func() {
		second <- migrator(t, o).Up(t.Context(), func(s sqlstore.Step) { waits <- s.Note })
	}()
	if note := <-waits; !strings.Contains(note, "another authsvc migrate up is at work") {
		t.Errorf("the second says %q", note)
	}
	if err := writer.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-first, <-second); err != nil {
		t.Error(err)
	}
	if len(waits) != 0 {
		t.Errorf("the second did %q", <-waits)
	}
}

func TestWhatMayNotBeMigratedSaysWhy(t *testing.T) {
	t.Parallel()
	o := sqlstore.Options{URL: schema(t), Password: pgtest.Password}
	name := o.URL[strings.LastIndex(o.URL, "=")+1:]
	f := older(t, o, 10)
	for _, q := range []string{`CREATE ROLE ` + name + `_serves LOGIN PASSWORD '` + pgtest.Password + `'`, `GRANT USAGE ON SCHEMA ` + name + ` TO ` + name + `_serves`,
		`GRANT ALL ON ALL TABLES IN SCHEMA ` + name + ` TO ` + name + `_serves`} {
		if _, err := admin.Exec(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	serves := o
	serves.URL = strings.Replace(o.URL, "postgres@", name+"_serves@", 1)
	if err := migrator(t, serves).Up(t.Context(), nil); err == nil || !strings.Contains(err.Error(), `user "`+name+`_serves" may not change the schema`) {
		t.Errorf("who may not says %v", err)
	}
	open(t, serves) // serves on
	if err := f.Exec(t.Context(), `UPDATE schema_version SET version = 1`); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.Open(t.Context(), o); !errors.Is(err, sqlstore.ErrSchemaOlder) || !strings.Contains(err.Error(), "database.url: ") || !strings.Contains(err.Error(), "authsvc migrate up") {
		t.Errorf("a schema that is too old: %v", err)
	}
	if err := f.Exec(t.Context(), `UPDATE schema_version SET version = 2`); err != nil {
		t.Fatal(err)
	}
	if err := migrator(t, o).Up(t.Context(), nil); err != nil {
		t.Errorf("the twin, by the owner: %v", err)
	}
	if err := f.Exec(t.Context(), `INSERT INTO schema_steps (version, step) VALUES (4, 0)`); err != nil {
		t.Fatal(err)
	}
	open(t, o) // an expansion of a newer program
	if s := status(t, o); s.Database != 4 || s.OldestProgram != before || s.Steps[len(s.Steps)-1].Name != "0004, of a newer program" {
		t.Errorf("beside a newer program: %+v", s)
	}
	if err := f.Exec(t.Context(), `UPDATE schema_version SET version = 4`); err != nil {
		t.Fatal(err)
	}
	_, opens := sqlstore.Open(t.Context(), o)
	for _, err := range []error{migrator(t, o).Up(t.Context(), nil), opens} {
		if !errors.Is(err, sqlstore.ErrSchemaNewer) || !strings.Contains(err.Error(), "database.url: ") {
			t.Errorf("a contraction of a newer program: %v", err)
		}
	}
}

func TestAnEmptyDatabaseIsMigratedAtOnce(t *testing.T) {
	t.Parallel()
	o := sqlstore.Options{URL: schema(t), Password: pgtest.Password}
	if s := status(t, o); s.Database != 0 || s.Pending() != len(s.Steps) {
		t.Errorf("an empty one: %+v", s)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := migrator(t, o).Up(t.Context(), nil); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if s := status(t, o); s.Database != s.Program || s.Pending() != 0 {
		t.Errorf("after it: %+v", s)
	}
	open(t, o)
	if _, err := sqlstore.OpenMigrator(t.Context(), sqlstore.Options{Path: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, sqlstore.ErrNoDatabase) {
		t.Errorf("a file that is not there: %v", err)
	}
}

func TestAnOlderDatabaseIsMigratedThroughEveryVersion(t *testing.T) {
	t.Parallel()
	o := sqlstore.Options{URL: schema(t), Password: pgtest.Password}
	if _, err := sqlstore.Open(t.Context(), sqlstore.AtSchema(o, 1)); !errors.Is(err, sqlstore.ErrSchemaOlder) {
		t.Fatal(err)
	}
	if s := status(t, o); s.Database != 1 {
		t.Fatalf("%+v", s)
	}
	if err := migrator(t, o).Up(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	f := &fixture{DB: open(t, o)}
	f.seed(t, "app")
	round1(t, f)
}
