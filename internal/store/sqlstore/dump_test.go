package sqlstore_test

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// before is the version of the schema whose dumps this program must run on. The next one's are made by
// TestADumpIsWhatItWasMadeOf in test/live, before its migration is written.
const before = 2

// loaded makes a database of the dump of a schema, and gives options whose clock stands right after the dump was made.
func loaded(t *testing.T, engine string) sqlstore.Options {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("testdata/schema-%04d.%s.sql", before, engine))
	if err != nil {
		t.Fatal(err)
	}
	o := sqlstore.Options{OpTimeout: time.Minute}
	var last int64
	const newest = `SELECT MAX(time) FROM audit`
	if engine == "sqlite" {
		o.Path = filepath.Join(t.TempDir(), "db")
		conn := raw(t, o.Path)
		exec(t, conn, string(text))
		err = conn.QueryRowContext(t.Context(), newest).Scan(&last)
	} else {
		o.URL, o.Password = schema(t), pgtest.Password
		name := o.URL[strings.LastIndex(o.URL, "=")+1:]
		if _, err := admin.Exec(t.Context(), strings.ReplaceAll(string(text), "public.", name+".")); err != nil {
			t.Fatal(err)
		}
		err = admin.QueryRow(t.Context(), strings.Replace(newest, "audit", name+".audit", 1)).Scan(&last)
	}
	if err != nil {
		t.Fatal(err)
	}
	o.Now = func() time.Time { return time.UnixMicro(last).Add(time.Second).UTC() }
	return sqlstore.Driven(o, o.Now)
}

// besideServer opens a database as a program of some version that does not migrate it.
func besideServer(t *testing.T, o sqlstore.Options, version int) *sqlstore.DB {
	t.Helper()
	db, err := sqlstore.OpenExisting(t.Context(), sqlstore.AtSchema(o, version))
	if err != nil {
		t.Fatalf("a program of version %d: %v", version, err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// tail reads the whole log.
func tail(t *testing.T, db *sqlstore.DB) []revocation.Entry {
	t.Helper()
	page, err := db.Revocations().Tail(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return page.Entries
}

// round is a bit of everything that a service does, and leaves things as they were for the next one.
func round(t *testing.T, db *sqlstore.DB, name string) {
	t.Helper()
	ctx := t.Context()
	live, err := db.Sessions().List(ctx, "", session.Cursor{}, 100)
	if err != nil || len(live) != 2 {
		t.Fatalf("%s: %d live sessions, error %v", name, len(live), err)
	}
	for _, s := range live {
		if out, err := db.Sessions().Redeem(ctx, present(s, s.Head)); err != nil || out.Verdict != session.Issue || !out.Rotated {
			t.Errorf("%s: a refresh is answered by %v, rotated %v, error %v", name, out.Verdict, out.Rotated, err)
		}
	}
	if err := db.Revocations().Append(ctx, revoke(name)); err != nil {
		t.Errorf("%s: revoke: %v", name, err)
	}
	if log := tail(t, db); !slices.ContainsFunc(log, func(e revocation.Entry) bool { return e.ID == name && !e.CommittedAt.IsZero() }) {
		t.Errorf("%s: what was revoked is not in the log, or without its time", name)
	}
	set, err := db.Keys().Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rotate := keys.Change{Insert: []keys.Key{{ID: name, State: keys.Pending, Public: []byte("{}"), Sealed: []byte("x")}}}
	j := journal.Journal{Audit: []journal.Record{{Event: "key.rotate", Outcome: "ok", Subject: name}}}
	for _, k := range set.Keys {
		switch k.State {
		case keys.Active:
			rotate.Move = append(rotate.Move, keys.Move{ID: k.ID, To: keys.Retired, GoneIn: time.Hour})
		case keys.Pending:
			rotate.Move = append(rotate.Move, keys.Move{ID: k.ID, To: keys.Active})
		case keys.Retired:
			rotate.Move = append(rotate.Move, keys.Move{ID: k.ID, To: keys.Compromised})
			j.Revokes = []journal.Revocation{{Kind: journal.KindKey, ID: k.ID}}
			j.Audit = append(j.Audit, journal.Record{Event: "key.revoke", Outcome: "ok", Subject: k.ID})
		}
	}
	if err := db.Keys().Apply(ctx, set.Version, rotate, j); err != nil {
		t.Errorf("%s: rotate: %v", name, err)
	}
	if _, err := db.Sessions().Sweep(ctx, time.Hour, 100); err != nil {
		t.Errorf("%s: sweep: %v", name, err)
	}
	if found, err := db.Audit().List(ctx, audit.Filter{Event: "key.rotate"}, 0, 10); err != nil || len(found) == 0 || found[0].Subject != name {
		t.Errorf("%s: the audit log has %v, error %v", name, found, err)
	}
}

func TestD17TheDataOfTheSchemaBeforeIsServedBeforeAndAfterAMigration(t *testing.T) {
	t.Parallel()
	for _, engine := range []string{"sqlite", "postgres"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			o := loaded(t, engine)
			const newest = 3
			db := besideServer(t, o, newest)
			if v := db.SchemaVersion(); v != before {
				t.Fatalf("the dump has version %d", v)
			}
			old := tail(t, db)
			if len(old) != 4 || old[3].Kind != journal.KindKey || !old[3].CommittedAt.IsZero() || old[0].CommittedAt.IsZero() {
				t.Errorf("the log of the dump is %+v", old)
			}
			for _, n := range []string{"first", "second"} {
				round(t, db, n+" round on the schema before")
			}
			if n, err := db.Sessions().Sweep(t.Context(), time.Hour, 10); err != nil || n != 0 {
				t.Errorf("after the sweeps that finished an end, one more touched %d rows, error %v", n, err)
			}
			m := migrator(t, o)
			if err := m.Up(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			round(t, db, "round of one that was open")
			if v := db.SchemaVersion(); v != newest {
				t.Errorf("who was open works by version %d", v)
			}
			for _, e := range tail(t, db) {
				switch {
				case e.CommittedAt.IsZero():
					t.Errorf("nobody knows when %+v was committed", e)
				case e.Position == old[3].Position && e.CommittedAt.Sub(o.Now()).Abs() > time.Minute:
					t.Errorf("the key of the dump was revoked at %v", e.CommittedAt)
				}
			}
			// Back to the program before, which serves on, and forward again.
			round(t, besideServer(t, o, before), "round of the program before")
			if engine == "postgres" {
				round(t, open(t, sqlstore.AtSchema(o, before)), "round of the server before")
			}
			round(t, open(t, o), "round of this server")
			log := tail(t, db)
			if last := log[len(log)-1]; last.Kind != journal.KindKey || last.CommittedAt.IsZero() {
				t.Errorf("a key that this program revokes: %+v", last)
			}
		})
	}
}

func TestAServerOfSQLiteMigratesWhatItServes(t *testing.T) {
	t.Parallel()
	o := loaded(t, "sqlite")
	db := open(t, o)
	round(t, db, "round before the rows are filled in")
	for more := true; more; {
		var err error
		if more, err = db.Fill(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := db.Schema(t.Context()); err != nil || s.Pending() != 0 || s.Database != s.Program {
		t.Errorf("%+v, %v", s, err)
	}
	if log := tail(t, db); log[3].CommittedAt.IsZero() {
		t.Errorf("the key of the dump: %+v", log[3])
	}
	round(t, besideServer(t, o, before), "round of the program before")
}

// TestTheAuditLogIsFoundByItsEvents shows the plan before and after.
func TestTheAuditLogIsFoundByItsEvents(t *testing.T) {
	t.Parallel()
	o := loaded(t, "sqlite")
	plan := func() (found string) {
		var id, parent, unused sql.NullInt64
		if err := raw(t, o.Path).QueryRowContext(t.Context(), `EXPLAIN QUERY PLAN SELECT id FROM audit WHERE id < 9 AND event = 'login' ORDER BY id DESC LIMIT 50`).
			Scan(&id, &parent, &unused, &found); err != nil {
			t.Fatal(err)
		}
		return found
	}
	if found := plan(); !strings.Contains(found, "PRIMARY KEY (rowid<?)") {
		t.Errorf("before: %s", found)
	}
	if err := migrator(t, o).Up(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if found := plan(); !strings.Contains(found, "audit_event (event=? AND id<?)") {
		t.Errorf("after: %s", found)
	}
}
