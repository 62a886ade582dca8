package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/verify"
)

// failover is a primary and its standby.
type failover struct{ primary, standby *pgtest.Server }

func replicated(t *testing.T) failover {
	t.Helper()
	schema(t) // skips where there is no PostgreSQL
	var p failover
	var err error
	t.Cleanup(func() {
		for _, s := range []*pgtest.Server{p.primary, p.standby} {
			if s != nil {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	if p.primary, err = pgtest.Start(t.Context()); err == nil {
		p.standby, err = p.primary.Standby(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// url names both, the primary first.
func (p failover) url() string {
	return strings.Replace(p.primary.URL("postgres"), "/postgres?", fmt.Sprintf(",127.0.0.1:%d/postgres?", p.standby.Port), 1)
}

func (p failover) failOver(t *testing.T) {
	t.Helper()
	if err := p.primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func ask(t *testing.T, s *pgtest.Server, query string) string {
	t.Helper()
	said, err := s.SQL(t.Context(), "postgres", query)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

// thief redeems one token without a pause, from before the failover on.
type thief struct {
	asked, refused atomic.Int64
	err            atomic.Pointer[string]
}

func (th *thief) goOn(ctx context.Context, db *sqlstore.DB, s session.Session, g uint32) {
	for ctx.Err() == nil {
		out, err := db.Sessions().Redeem(ctx, present(s, g))
		th.asked.Add(1)
		switch {
		case err == nil && out.Verdict == session.Invalid:
			th.refused.Add(1)
		case err == nil || ctx.Err() == nil && fault.From(err).Kind != fault.Unavailable:
			said := fmt.Sprintf("generation %d of session %s got %v %v", g, s.ID, out.Verdict, err)
			th.err.Store(&said)
		}
	}
}

// TestD07F18P04AFailoverThatLostWritesBringsNothingBack kills a primary whose standby had not received what was revoked. Two
// replicas hold it, and thieves try without a pause.
func TestD07F18P04AFailoverThatLostWritesBringsNothingBack(t *testing.T) {
	t.Parallel()
	p := replicated(t)
	f := undriven(t, sqlstore.Options{URL: p.url(), OpTimeout: failing})
	one := followed(t, f.DB, 250*time.Millisecond, false)
	two := following(t, sqlstore.Options{URL: p.url(), OpTimeout: failing}, 250*time.Millisecond, true)
	if err := f.Clients().Create(t.Context(), client.Client{ID: "other", Kind: client.Public}, journal.Journal{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Keys().Apply(t.Context(), 0, keys.Change{Insert: []keys.Key{{ID: "stolen", State: keys.Active}, {ID: "next", State: keys.Pending}}}, journal.Journal{}); err != nil {
		t.Fatal(err)
	}
	revoked, reused, honest, idle := f.login(t, t), f.login(t, t), f.login(t, t), f.login(t, t)
	cut := f.loginBy(t, "other")
	if err := p.primary.Leave(t.Context(), p.standby); err != nil {
		t.Fatal(err)
	}

	if _, err := f.Sessions().End(t.Context(), "", journal.Journal{Ends: []journal.End{{Session: revoked.ID, Reason: journal.EndedByRevoke}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := two.Sessions().End(t.Context(), "", journal.Journal{Ends: []journal.End{{Session: reused.ID, Reason: journal.EndedByReuse}}}); err != nil {
		t.Fatal(err)
	}
	lost := journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindClient, ID: "other"}, {Kind: journal.KindKey, ID: "stolen"}, {Kind: journal.KindToken, ID: "token"}}}
	if err := f.Revocations().Append(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	for g := uint32(1); g < 4; g++ {
		if out, err := f.Sessions().Redeem(t.Context(), present(honest, g)); err != nil || !out.Rotated {
			t.Fatal(out, err)
		}
	}
	for _, r := range []replica{one, two} {
		until(t, "the replicas hold it", func() bool { return r.refuses("token") })
	}
	before, was := two.log.View().Cursor, ask(t, p.primary, `SELECT encode(epoch, 'hex') || lineage FROM installation`)

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	thieves := make([]thief, 6)
	for i := range thieves {
		db, s := one.DB, []session.Session{revoked, reused, cut}[i%3]
		if i >= 3 {
			db = two.DB
		}
		wg.Go(func() { thieves[i].goOn(ctx, db, s, 1) })
	}
	p.failOver(t)
	for i := range thieves {
		from := thieves[i].refused.Load()
		until(t, "the new server decides", func() bool { return thieves[i].refused.Load() > from+20 || thieves[i].err.Load() != nil })
	}
	stop()
	wg.Wait()
	for i := range thieves {
		if said := thieves[i].err.Load(); said != nil {
			t.Errorf("D07: %s", *said)
		}
	}

	is := ask(t, p.standby, `SELECT encode(epoch, 'hex') || lineage FROM installation`)
	if is == was || one.log.View().Cursor.Epoch != two.log.View().Cursor.Epoch || fmt.Sprintf("%x", one.log.View().Cursor.Epoch) != is[:32] {
		t.Errorf("P04: the epoch was %s and is %s, one replica is at %x, the other at %x", was, is, one.log.View().Cursor, two.log.View().Cursor)
	}
	if entries, resumed := two.log.View().After(before); resumed || len(entries) != len(two.log.View().Live) {
		t.Errorf("P04: a cursor of the lost history is gone on from: %d entries", len(entries))
	}
	want := []string{"client other", "jti token", "kid stolen", "sid " + string(revoked.ID), "sid " + string(reused.ID)}
	slices.Sort(want)
	got := ask(t, p.standby, `SELECT string_agg(entry, ',' ORDER BY entry COLLATE "C") FROM (SELECT DISTINCT kind || ' ' || id AS entry FROM revocations) AS all_of_them`)
	if want := strings.Join(want, ","); got != want {
		t.Errorf("D07: the new log has %s, want %s", got, want)
	}
	// Whoever looks afterwards sees in the audit log, once for all replicas, that the history is another and what was appended again.
	changed := ask(t, p.standby, `SELECT count(*) || ' ' || min(subject) FROM audit WHERE event = 'history.changed'`)
	again := ask(t, p.standby, `SELECT sum(split_part(reason, ' ', 1)::int) FROM audit WHERE event = 'history.reappended'`)
	if changed != "1 "+was[:32] || again != fmt.Sprint(len(want)) || one.log.Reappended()+two.log.Reappended() != uint64(len(want)) || one.log.Histories() != 1 || two.log.Histories() != 1 {
		t.Errorf("D07: histories and the epoch before are %q, %s entries of %d were appended again; the replicas count %d and %d, and %d and %d histories",
			changed, again, len(want), one.log.Reappended(), two.log.Reappended(), one.log.Histories(), two.log.Histories())
	}
	for _, r := range []replica{one, two} {
		if !r.refuses("token") || len(r.log.View().Live) < 5 || r.log.View().Live[0].Row == 0 {
			t.Errorf("D07: a replica holds %v", r.log.View().Live)
		}
	}
	set, err := f.Keys().Load(t.Context())
	if signer, wrong := keys.Signer(set); err != nil || wrong != nil || signer.ID != "next" {
		t.Errorf("D07: the signer is %q: %v %v", signer.ID, err, wrong)
	}
	// The twins: whom nobody ended goes on, also where the database has forgotten the last generations (F18).
	if out, err := f.Sessions().Redeem(t.Context(), present(honest, 4)); err != nil || out.Verdict != session.Issue || out.Session.Head != 5 {
		t.Errorf("F18: an honest session got %v, head %d, %v", out.Verdict, out.Session.Head, err)
	}
	if out, err := two.Sessions().Redeem(t.Context(), present(idle, 1)); err != nil || out.Verdict != session.Issue {
		t.Errorf("D07: a session that nobody ended got %v %v", out.Verdict, err)
	}
	p.oldPrimaryReturns(t, one, is)
}

// oldPrimaryReturns starts the server that was replaced. It would take writes; nothing of ours is written there.
func (p failover) oldPrimaryReturns(t *testing.T, r replica, is string) {
	t.Helper()
	if err := p.primary.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "all connections are made anew", func() bool {
		ask(t, p.standby, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'authsvc%'`)
		return r.Revocations().Append(t.Context(), revoke("later")) == nil
	})
	until(t, "it is listed", func() bool { return r.refuses("later") })
	if n := ask(t, p.standby, `SELECT count(*) > 0 FROM revocations WHERE id = 'later'`); n != "t" {
		t.Error("what was written after the failover is not at the new primary")
	}
	if n := ask(t, p.primary, `SELECT count(*) FROM revocations WHERE id = 'later'`); n != "0" {
		t.Error("the primary that was replaced was written to")
	}
	if now := ask(t, p.standby, `SELECT encode(epoch, 'hex') || lineage FROM installation`); now != is {
		t.Errorf("the epoch is %s, and was %s", now, is)
	}
}

func (f *fixture) loginBy(t *testing.T, c ids.Client) session.Session {
	t.Helper()
	id := ids.New[ids.Session]()
	s, _, err := f.Sessions().Create(t.Context(), session.Create{Session: session.Session{ID: id, Account: f.account.ID, Client: c,
		SecretHash: ids.HashSecret(string(id)), IdleTTL: time.Hour}, TTL: time.Hour, AccountVersion: 1}, journal.Journal{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestARestartIsNotServedBeforeItsLogIsRead has nobody read it: then nothing is answered, and in time. Whoever reads it, of
// all processes, opens his own store alone.
func TestARestartIsNotServedBeforeItsLogIsRead(t *testing.T) {
	t.Parallel()
	schema(t) // skips where there is no PostgreSQL
	mine, err := pgtest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mine.Close(); err != nil {
			t.Error(err)
		}
	})
	f := undriven(t, sqlstore.Options{URL: mine.URL("postgres")})
	short := hasty(t, sqlstore.Options{URL: mine.URL("postgres"), Password: pgtest.Password}, 500*time.Millisecond)
	other := open(t, sqlstore.Options{URL: mine.URL("postgres"), Password: pgtest.Password})
	s := f.login(t, t)
	before, err := f.Revocations().Tail(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := mine.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := mine.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	page, err := f.Revocations().Tail(t.Context(), 0) // the log has a connection of its own
	if err != nil || page.Server == before.Server || page.Epoch != before.Epoch {
		t.Fatalf("%+v after %+v: %v", page, before, err)
	}
	_, err = short.Sessions().Redeem(t.Context(), present(s, 1))
	wantUnavailable(t, err)
	wantUnavailable(t, short.Ping(t.Context()))
	waiting := make(chan error)
	go func() {
		_, _, _, err := other.Sessions().Get(t.Context(), s.ID)
		waiting <- err
	}()
	if err := f.Revocations().Settle(t.Context(), page.Server); err != nil {
		t.Fatal(err)
	}
	if out, err := f.Sessions().Redeem(t.Context(), present(s, 1)); err != nil || out.Verdict != session.Issue {
		t.Errorf("the twin: %v %v", out.Verdict, err)
	}
	wantUnavailable(t, short.Ping(t.Context()))
	until(t, "it reads the log itself", func() bool { return short.Revocations().Settle(t.Context(), page.Server) == nil })
	until(t, "the twin, which was refused before, is answered", func() bool { return short.Ping(t.Context()) == nil })
	if err := other.Revocations().Settle(t.Context(), page.Server); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("who had waited for the log got %v", err)
	}
}

// An operator deletes rows of the log, or puts an older copy into the same database.
func TestD07RowsThatAreGoneComeBackUnderAnotherEpoch(t *testing.T) {
	t.Parallel()
	for name, db := range map[string]func() *fixture{
		"a file":     func() *fixture { return newFixture(t, filepath.Join(t.TempDir(), "db")) },
		"memory":     func() *fixture { return newFixture(t, sqlstore.Memory) },
		"PostgreSQL": func() *fixture { return undriven(t, sqlstore.Options{URL: schema(t)}) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := db()
			r := followed(t, f.DB, 10*time.Millisecond, false)
			s := f.login(t, t)
			if _, err := f.Sessions().End(t.Context(), "", journal.Journal{Ends: []journal.End{{Session: s.ID, Reason: journal.EndedByRevoke}}}); err != nil {
				t.Fatal(err)
			}
			if err := f.Revocations().Append(t.Context(), revoke("token")); err != nil {
				t.Fatal(err)
			}
			until(t, "it is known", func() bool { return r.refuses("token") })
			before := r.log.View()
			if err := f.Exec(t.Context(), `DELETE FROM revocations`); err != nil {
				t.Fatal(err)
			}
			if err := f.Exec(t.Context(), `UPDATE sessions SET ended_at = NULL`); err != nil {
				t.Fatal(err)
			}
			until(t, "it is there again", func() bool {
				p, err := f.Revocations().Tail(t.Context(), 0)
				return err == nil && len(p.Entries) == 2 && p.Epoch != before.Cursor.Epoch && r.log.View().Cursor.Row == p.Head
			})
			if out, err := f.Sessions().Redeem(t.Context(), present(s, 1)); err != nil || out.Verdict != session.Invalid {
				t.Errorf("the session got %v %v", out.Verdict, err)
			}
			if v := r.log.View(); len(v.Live) != 2 || v.Live[0].Row == 0 || !r.refuses("token") {
				t.Errorf("it holds %+v", v)
			}
			if err := r.list.Check(&verify.Subject{Token: verify.TargetOf(issuer, verify.KindToken, "alive"), AuthTime: time.Now().Unix()}); errors.Is(err, verify.ErrRevoked) {
				t.Errorf("the twin: %v", err)
			}
		})
	}
}

// TestAStandbyThatHangsIsSeen stops what receives WAL on a standby: it stays connected, and confirms nothing.
func TestAStandbyThatHangsIsSeen(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("two servers of its own")
	}
	p := replicated(t)
	db := undriven(t, sqlstore.Options{URL: p.url(), OpTimeout: 2 * time.Second})
	standbys := func(what string, silent func(time.Duration) bool) {
		t.Helper()
		until(t, what, func() bool {
			s, known, err := db.Server(t.Context())
			return err == nil && known && len(s.Standbys) == 1 && s.Standbys[0].Confirms() && silent(s.Standbys[0].Silent)
		})
	}
	fine := func(d time.Duration) bool { return d == 0 }
	standbys("it has everything", fine)
	pid, err := strconv.Atoi(ask(t, p.standby, `SELECT pid FROM pg_stat_wal_receiver`))
	if err != nil || pid < 2 {
		t.Fatal(pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	goOn := sync.OnceFunc(func() {
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Error(err)
		}
	})
	defer goOn() // before the server is stopped, which waits for it
	ask(t, p.primary, `SET synchronous_commit = local; CREATE TABLE written (a int)`)
	standbys("it says nothing", func(d time.Duration) bool { return d > time.Second })
	goOn()
	standbys("it has everything again", fine)
	if err := p.primary.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlstore.OpenExisting(t.Context(), sqlstore.Options{URL: p.url(), Password: pgtest.Password}); err == nil ||
		!strings.Contains(err.Error(), fmt.Sprintf("none of 127.0.0.1:%d, 127.0.0.1:%d takes writes", p.primary.Port, p.standby.Port)) {
		t.Errorf("where the standby alone is left it says %v", err)
	}
}
