package sqlstore_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
)

func TestAThousandRefreshesDoNotGrowTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	f := newFixture(t, path)
	s := f.login(t, t)
	size := func() int64 {
		t.Helper()
		exec(t, raw(t, path), `PRAGMA wal_checkpoint(TRUNCATE)`)
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	var first int64
	for g := uint32(1); g <= 1000; g++ {
		if out, err := f.Sessions().Redeem(t.Context(), present(s, g)); err != nil || !out.Rotated {
			t.Fatal(out, err)
		}
		if g == 1 {
			first = size()
		}
		f.clock.Advance(time.Minute)
	}
	if grown := size() - first; grown > 4096 {
		t.Errorf("grown by %d bytes", grown)
	}
}

// With 10^6 sessions a statement that reads a whole table is a second of the one writer.
func TestNoStatementReadsAWholeTable(t *testing.T) {
	t.Parallel()
	f := newFixture(t, filepath.Join(t.TempDir(), "db"))
	useEverything(t, f)
	plans, err := f.Plans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(plans) < 20 {
		t.Fatalf("only %d statements were seen", len(plans))
	}
	for query, plan := range plans {
		for line := range strings.Lines(plan) {
			whole := strings.HasPrefix(line, "SCAN ") && !strings.Contains(line, "USING")
			for _, small := range []string{"SCAN i\n", "SCAN installation\n", "SCAN CONSTANT ROW\n", "SCAN pending_ends\n", "SCAN (subquery", "SCAN given\n", "SCAN k\n", "SCAN due\n", "SCAN schema_version\n"} {
				whole = whole && !strings.HasPrefix(line, small)
			}
			if whole {
				t.Errorf("%s\n%s", query, plan)
			}
		}
	}
}

// useEverything runs the statements that the tables' indexes are for.
func useEverything(t *testing.T, f *fixture) {
	t.Helper()
	ctx := t.Context()
	s := f.login(t, t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	redeem := func(g uint32) {
		t.Helper()
		_, err := f.Sessions().Redeem(ctx, present(s, g))
		must(err)
	}
	redeem(1)
	redeem(1)
	f.clock.Advance(time.Minute)
	redeem(2)
	redeem(0) // theft
	for _, e := range []journal.End{{Session: s.ID}, {Account: f.account.ID, Except: "x"}, {Account: f.account.ID}, {Client: "app"}} {
		e.Reason = "test"
		_, err := f.Sessions().End(ctx, f.account.ID, journal.Journal{Ends: []journal.End{e}})
		if err != nil && fault.From(err).Kind != fault.NotFound {
			t.Fatal(err)
		}
	}
	_, err := f.Sessions().Sweep(ctx, time.Hour, 10)
	must(err)
	_, err = f.Revocations().Sweep(ctx, 10)
	must(err)
	_, err = f.Audit().Prune(ctx, time.Hour, 10)
	must(err)
	for _, filter := range []audit.Filter{{}, {Subjects: []string{"x"}}, {Subjects: []string{"x", "y"}}} {
		_, err = f.Audit().List(ctx, filter, 5, 10)
		must(err)
	}
	for _, id := range []ids.Account{"", f.account.ID} {
		_, err = f.Sessions().List(ctx, id, session.Cursor{CreatedAt: f.clock.Now(), ID: "x"}, 10)
		must(err)
	}
	_, _, _, err = f.Sessions().Get(ctx, s.ID)
	must(err)
	_, err = f.Revocations().Tail(ctx, 0)
	must(err)
	_, err = f.Instances().Beat(ctx, instance.Instance{ID: "a"})
	must(err)
	_, _, err = f.Instances().List(ctx)
	must(err)
	_, err = f.Instances().Sweep(ctx, 10)
	must(err)
	must(f.Instances().Leave(ctx, "a"))
	_, err = f.Accounts().ByUsername(ctx, "ada")
	must(err)
	_, err = f.Accounts().List(ctx, "a", 10)
	must(err)
	must(f.Accounts().SetState(ctx, f.account.ID, 1, account.Disabled, revoke("t")))
	must(f.Accounts().Delete(ctx, f.account.ID, 2, journal.Journal{}))
}
