package sqlstore_test

import (
	"context"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// ends are the ways in which a session ends, each as the operation that is answered once it has.
func ends(f *fixture, s session.Session) map[string]struct {
	j  journal.Journal
	do func(context.Context) error
} {
	all := map[string]struct {
		j  journal.Journal
		do func(context.Context) error
	}{}
	for name, e := range map[string]journal.End{
		"session": {Session: s.ID},
		"account": {Account: s.Account},
		"others":  {Account: s.Account, Except: "another"},
		"client":  {Client: s.Client},
		"all":     {All: true},
	} {
		e.Reason = journal.EndedByRevoke
		j := journal.Journal{Ends: []journal.End{e}}
		c := all[name]
		c.j = j
		switch name {
		case "account":
			c.do = func(ctx context.Context) error { return f.Accounts().SetState(ctx, s.Account, 1, account.Disabled, j) }
		case "client":
			c.do = func(ctx context.Context) error { return f.Clients().Delete(ctx, s.Client, 1, j) }
		default:
			c.do = func(ctx context.Context) error { _, err := f.Sessions().End(ctx, "", j); return err }
		}
		all[name] = c
	}
	return all
}

// wantDead looks at a session that was ended, by the store and by its newest token.
func wantDead(t *testing.T, f *fixture, s session.Session, head uint32) {
	t.Helper()
	got, alive, _, err := f.Sessions().Get(t.Context(), s.ID)
	if err != nil || alive || got.EndedAt.IsZero() || got.Head != head {
		t.Errorf("it is alive %v, ended %v, at head %d: %v", alive, got.EndedAt, got.Head, err)
	}
	if out, err := f.Sessions().Redeem(t.Context(), present(s, head)); err != nil || out.Verdict != session.Invalid {
		t.Errorf("its newest token got %v %v", out.Verdict, err)
	}
	p, err := f.Revocations().Tail(t.Context(), 0)
	if err != nil || len(p.Entries) != 1 {
		t.Errorf("the log has %v: %v", p.Entries, err)
	}
}

// The redemption comes first and is not committed yet: whatever ends the session waits for its row, and then ends the row
// that the redemption left.
func TestAnEndThatMeetsARedemptionStillEndsTheSession(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"session", "account", "others", "client", "all"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			application := "meets-" + name
			url := schema(t, "application_name="+application)
			_, in, _ := strings.Cut(url, "search_path=")
			in, _, _ = strings.Cut(in, "&")
			f := undriven(t, sqlstore.Options{URL: url})
			s := f.login(t, t)
			redeeming, err := admin.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = redeeming.Rollback(context.Background()) }()
			if _, err := redeeming.Exec(t.Context(), "UPDATE "+in+".sessions SET base = head, head = head + 1 WHERE id = $1", string(s.ID)); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- ends(f, s)[name].do(context.Background()) }()
			until(t, "the end waits for the row", func() bool { return waiting(t, application) == 1 })
			if err := redeeming.Commit(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			wantDead(t, f, s, 2)
		})
	}
}

// The end comes first: a redemption whose snapshot is older waits for the row, and then finds it ended.
func TestARedemptionThatMeetsAnEndIsRefused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"session", "account", "others", "client", "all"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			application := "met-" + name
			f := undriven(t, sqlstore.Options{URL: schema(t, "application_name="+application)})
			s := f.login(t, t)
			written, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			go func() { ended <- f.AppendSlowly(context.Background(), ends(f, s)[name].j, written, release) }()
			<-written
			type answer struct {
				session.Redeemed
				err error
			}
			redeemed := make(chan answer, 1)
			go func() {
				out, err := f.Sessions().Redeem(context.Background(), present(s, 1))
				redeemed <- answer{out, err}
			}()
			until(t, "the redemption waits for the row", func() bool { return waiting(t, application) == 1 })
			close(release)
			if err := <-ended; err != nil {
				t.Fatal(err)
			}
			if out := <-redeemed; out.err != nil || out.Verdict != session.Invalid {
				t.Errorf("it got %v %v", out.Verdict, out.err)
			}
			wantDead(t, f, s, 1)
		})
	}
}

// A server that takes no more writes has been relieved by another: none of the connections to it is asked again, for
// what it says about revocations is old.
func TestD08AServerThatTurnsReadOnlyIsLeftWithEveryConnection(t *testing.T) {
	t.Parallel()
	f := undriven(t, sqlstore.Options{URL: schema(t, "pool_max_conns=3")})
	fill := func() {
		t.Helper()
		release, err := f.HoldPool(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		release()
		until(t, "the pool is full", func() bool { return f.Idle() == 3 })
	}
	fill()
	tries := 0
	wantUnavailable(t, f.Collide(t.Context(), "25006", 1, &tries))
	until(t, "all connections are given up", func() bool { return f.Idle() == 0 })
	if err := f.Ping(t.Context()); err != nil {
		t.Errorf("a new connection is not made: %v", err)
	}
	fill()
	tries = 0
	if err := f.Collide(t.Context(), "23514", 1, &tries); fault.From(err).Kind != fault.Internal {
		t.Error(err)
	}
	if err := f.Ping(t.Context()); err != nil || f.Idle() < 2 {
		t.Errorf("the twin, an error of the statement alone, left %d connections: %v", f.Idle(), err)
	}
}

func TestCommitsThatWouldWaitForNoStandbyAreRefused(t *testing.T) {
	t.Parallel()
	local := schema(t, "synchronous_commit=local")
	db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: local, Password: pgtest.Password})
	if err == nil {
		_ = db.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "synchronous_commit is local") {
		t.Errorf("it said %v", err)
	}
	open(t, sqlstore.Options{URL: schema(t, "synchronous_commit=remote_apply"), Password: pgtest.Password}) // the twin
}
