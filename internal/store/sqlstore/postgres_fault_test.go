package sqlstore_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// failing is how long a call waits where servers are lost: long enough for a busy machine, and some calls of each test wait for all of it.
const failing = 5 * time.Second

func TestD09ALockedRowIsWaitedForAndThenUnavailable(t *testing.T) {
	t.Parallel()
	url := schema(t)
	f := undriven(t, sqlstore.Options{URL: url})
	short := hasty(t, sqlstore.Options{URL: url, Password: pgtest.Password}, time.Second)
	other := open(t, sqlstore.Options{URL: url, Password: pgtest.Password})
	s := f.login(t, t)
	begun, release, held := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() { held <- other.HoldRow(context.Background(), s.ID, begun, release) }()
	<-begun
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			_, err := short.Sessions().Redeem(t.Context(), present(s, 1))
			wantUnavailable(t, err)
		})
	}
	wg.Wait() // nobody hangs
	until(t, "reads go on", func() bool {
		_, _, _, err := short.Sessions().Get(t.Context(), s.ID)
		return err == nil
	})
	close(release)
	if err := <-held; err != nil {
		t.Error(err)
	}
	out, err := f.Sessions().Redeem(t.Context(), present(s, 1))
	if err != nil || out.Verdict != session.Issue || out.Session.Head != 2 {
		t.Errorf("a call that failed has written, or the row is locked still: %v %v", out, err)
	}
}

func TestAProcessThatStopsInATransactionHoldsItsLocksNoLongerThanACall(t *testing.T) {
	t.Parallel()
	url := schema(t)
	other := undriven(t, sqlstore.Options{URL: url})
	stopped := hasty(t, sqlstore.Options{URL: url, Password: pgtest.Password}, 2*time.Second)
	s := other.login(t, t)
	var release chan struct{}
	held := make(chan error, 1)
	until(t, "it has the row", func() bool { // which a busy machine may not give it in time
		begun := make(chan struct{})
		release = make(chan struct{})
		go func() { held <- stopped.HoldRow(context.Background(), s.ID, begun, release) }()
		select {
		case <-begun:
			return true
		case err := <-held:
			wantUnavailable(t, err)
			return false
		}
	})
	out, err := other.Sessions().Redeem(t.Context(), present(s, 1))
	if err != nil || out.Verdict != session.Issue {
		t.Errorf("it waited, and got %v %v", out.Verdict, err)
	}
	close(release)
	wantUnavailable(t, <-held)
}

func TestD09WhatTheDatabaseLetsGiveWayIsDoneAgain(t *testing.T) {
	t.Parallel()
	f := newPostgres(t)
	for _, code := range []string{"40001", "40P01"} {
		tries := 0
		err := f.Collide(t.Context(), code, 3, &tries)
		if err != nil || tries != 4 {
			t.Errorf("%s: %d tries: %v", code, tries, err)
		}
	}
	p, err := f.Revocations().Tail(t.Context(), 0)
	if err != nil || len(p.Entries) != 2 {
		t.Errorf("what was tried four times is there %d times: %v", len(p.Entries), err)
	}
	tries := 0
	if err := f.Collide(t.Context(), "23514", 3, &tries); err == nil || tries != 1 || fault.From(err).Kind != fault.Internal {
		t.Errorf("the twin, an error that stays: %d tries, %v", tries, err)
	}
}

func TestD10AUsedUpPostgreSQLPoolIsADeadlineAndNotReady(t *testing.T) {
	t.Parallel()
	url := schema(t, "pool_max_conns=3")
	account := undriven(t, sqlstore.Options{URL: url}).account.ID
	f := hasty(t, sqlstore.Options{URL: url, Password: pgtest.Password}, 300*time.Millisecond)
	release, err := f.HoldPool(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, f.Ping(t.Context()))
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			if i%2 == 0 {
				wantUnavailable(t, f.Revocations().Append(t.Context(), revoke("t")))
				return
			}
			_, err := f.Accounts().Get(t.Context(), account)
			wantUnavailable(t, err)
		})
	}
	wg.Wait() // nobody hangs
	// The list that every verification asks does not age meanwhile: the log has a connection of its own.
	until(t, "the log is read", func() bool {
		_, err := f.Revocations().Changed(t.Context())
		if err == nil {
			_, err = f.Revocations().Tail(t.Context(), 0)
		}
		return err == nil
	})
	release()
	until(t, "with free connections it is ready", func() bool { return f.Ping(t.Context()) == nil })
}

func TestD04CallsThatAreGivenUpNeverGetAnothersRow(t *testing.T) {
	t.Parallel()
	f := undriven(t, sqlstore.Options{URL: schema(t, "pool_max_conns=4")})
	sessions := make([]session.Session, 8)
	for i := range sessions {
		sessions[i] = f.login(t, t)
	}
	var right atomic.Int64
	var wg sync.WaitGroup
	for caller := range 8 {
		wg.Go(func() {
			mine := sessions[caller]
			for n := range 60 {
				ctx, cancel := context.WithCancel(t.Context())
				if n%3 == 0 {
					time.AfterFunc(time.Duration(n*caller)*10*time.Microsecond, cancel)
				}
				got, _, _, err := f.Sessions().Get(ctx, mine.ID)
				cancel()
				switch {
				case err == nil && (got.ID != mine.ID || got.SecretHash != mine.SecretHash):
					t.Errorf("asked for %s, got %s", mine.ID, got.ID)
				case err == nil:
					right.Add(1)
				case fault.From(err).Kind != fault.Unavailable:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if right.Load() < 8*20 {
		t.Errorf("only %d calls were answered", right.Load())
	}
}

// TestD06ACrashLosesNothingThatWasAcknowledged kills a server of its own under load, and later lets it wait for a standby
// that is not there.
func TestD06ACrashLosesNothingThatWasAcknowledged(t *testing.T) {
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
	f := undriven(t, sqlstore.Options{URL: mine.URL("postgres", "pool_max_conns=6"), OpTimeout: failing})
	followed(t, f.DB, 20*time.Millisecond, false)
	l := &load{f: f, stop: make(chan struct{}), heads: map[ids.Session]uint32{}}
	for range 4 {
		s := f.login(t, t)
		l.wg.Go(func() { l.refresh(t, s) })
	}
	for range 2 {
		l.wg.Go(func() { l.revoke(t) })
	}
	for range 3 {
		from := l.done.Load()
		until(t, "some changes", func() bool { return l.done.Load() > from+50 })
		if err := mine.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := mine.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		until(t, "it answers again", func() bool { return f.Ping(t.Context()) == nil })
	}
	close(l.stop)
	l.wg.Wait()
	l.judge(t)
	unawaited(t, mine, f)
}

// load is honest clients and an operator, and what they were told.
type load struct {
	f    *fixture
	stop chan struct{}
	wg   sync.WaitGroup
	done atomic.Int64

	mu      sync.Mutex
	heads   map[ids.Session]uint32
	revoked []string
}

// goesOn counts a call that was answered, and lets those fail that the database was away for.
func (l *load) goesOn(t *testing.T, err error) bool {
	t.Helper()
	if err == nil {
		l.done.Add(1)
	} else if fault.From(err).Kind != fault.Unavailable {
		t.Error(err)
	}
	select {
	case <-l.stop:
		return false
	default:
		return true
	}
}

func (l *load) refresh(t *testing.T, s session.Session) {
	t.Helper()
	g := uint32(1)
	for on := true; on; {
		out, err := l.f.Sessions().Redeem(t.Context(), present(s, g))
		on = l.goesOn(t, err)
		if err != nil {
			continue
		}
		if out.Verdict != session.Issue {
			t.Errorf("an honest refresh got %v", out.Verdict)
			return
		}
		g = out.Session.Head
		l.mu.Lock()
		l.heads[s.ID] = g
		l.mu.Unlock()
	}
}

func (l *load) revoke(t *testing.T) {
	t.Helper()
	for on := true; on; {
		id := string(ids.New[ids.Token]())
		err := l.f.Revocations().Append(t.Context(), revoke(id))
		on = l.goesOn(t, err)
		if err == nil {
			l.mu.Lock()
			l.revoked = append(l.revoked, id)
			l.mu.Unlock()
		}
	}
}

// judge looks for everything that was acknowledged.
func (l *load) judge(t *testing.T) {
	t.Helper()
	p, err := l.f.Revocations().Tail(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, e := range p.Entries {
		there[e.ID] = true
	}
	for _, id := range l.revoked {
		if !there[id] {
			t.Errorf("revocation %s was acknowledged and is gone", id)
		}
	}
	if len(l.revoked) == 0 || len(l.heads) != 4 {
		t.Errorf("%d revocations and %d sessions were under load", len(l.revoked), len(l.heads))
	}
	for id, head := range l.heads {
		got, alive, _, err := l.f.Sessions().Get(t.Context(), id)
		if err != nil || !alive || got.Head < head {
			t.Errorf("head %d was acknowledged, %d is stored, alive %v: %v", head, got.Head, alive, err)
		}
	}
}

// unawaited lets every commit wait for a standby that does not exist: what is not replicated is not acknowledged.
func unawaited(t *testing.T, mine *pgtest.Server, f *fixture) {
	t.Helper()
	standby := func(name string) {
		t.Helper()
		for _, q := range []string{`ALTER SYSTEM SET synchronous_standby_names = '` + name + `'`, `SELECT pg_reload_conf()`} {
			if _, err := mine.SQL(t.Context(), "postgres", q); err != nil {
				t.Fatal(err)
			}
		}
		until(t, "the setting holds", func() bool {
			got, err := mine.SQL(t.Context(), "postgres", `SHOW synchronous_standby_names`)
			return err == nil && got == name
		})
	}
	s := f.login(t, t)
	standby("nobody")
	// Not all of the server's processes go by it at once: from the first commit that waits on, all do.
	var wg sync.WaitGroup
	var waits atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		for !waits.Load() {
			if _, err := mine.SQL(ctx, "postgres", `COMMENT ON SCHEMA public IS 'not awaited'`); err != nil {
				t.Error(err)
				return
			}
		}
	})
	until(t, "a commit waits", func() bool {
		waits.Store(ask(t, mine, `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`) != "0")
		return waits.Load()
	})
	unanswered(t, f, s)
	standby("")
	wg.Wait()
	out, err := f.Sessions().Redeem(t.Context(), present(s, 1))
	if err != nil || out.Verdict != session.Issue || out.Session.Head != 2 {
		t.Errorf("a token whose answer was withheld got %v %v", out, err)
	}
	if err := f.Revocations().Append(t.Context(), revoke("awaited")); err != nil {
		t.Error(err)
	}
}

// unanswered makes calls whose commits nobody confirms.
func unanswered(t *testing.T, f *fixture, s session.Session) {
	t.Helper()
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := f.Sessions().Redeem(t.Context(), present(s, 1))
		wantUnavailable(t, err)
	})
	wg.Go(func() { wantUnavailable(t, f.Revocations().Append(t.Context(), revoke("not awaited"))) })
	wg.Wait()
}

// TestD07D08APrimaryThatIsLostTakesNothingWithIt has a synchronous standby, which is never asked, take over.
func TestD07D08APrimaryThatIsLostTakesNothingWithIt(t *testing.T) {
	t.Parallel()
	schema(t) // skips where there is no PostgreSQL
	var servers [2]*pgtest.Server
	t.Cleanup(func() {
		for _, s := range servers {
			if s != nil {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		}
	})
	var err error
	if servers[0], err = pgtest.Start(t.Context()); err == nil {
		servers[1], err = servers[0].Standby(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	primary, standby := servers[0], servers[1]
	if _, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: standby.URL("postgres"), Password: pgtest.Password}); err == nil ||
		!strings.Contains(err.Error(), "is a standby") {
		t.Errorf("D08: of a standby it said %v", err)
	}
	both := strings.Replace(standby.URL("postgres"), "/postgres?", fmt.Sprintf(",127.0.0.1:%d/postgres?", primary.Port), 1)
	f := undriven(t, sqlstore.Options{URL: both, OpTimeout: failing})
	followed(t, f.DB, 20*time.Millisecond, false)
	ended, honest := f.login(t, t), f.login(t, t)
	for g := uint32(1); g < 5; g++ {
		if out, err := f.Sessions().Redeem(t.Context(), present(honest, g)); err != nil || !out.Rotated {
			t.Fatal(out, err)
		}
	}
	if _, err := f.Sessions().End(t.Context(), "", journal.Journal{Ends: []journal.End{{Session: ended.ID, Reason: journal.EndedByRevoke}}}); err != nil {
		t.Fatal(err)
	}
	if err := primary.Kill(); err != nil { // right after the answer
		t.Fatal(err)
	}
	_, err = f.Sessions().Redeem(t.Context(), present(honest, 5))
	wantUnavailable(t, err)
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "the standby is written to", func() bool { return f.Ping(t.Context()) == nil })
	if out, err := f.Sessions().Redeem(t.Context(), present(ended, 1)); err != nil || out.Verdict != session.Invalid {
		t.Errorf("D07: the session that was ended got %v %v", out.Verdict, err)
	}
	if out, err := f.Sessions().Redeem(t.Context(), present(honest, 5)); err != nil || out.Verdict != session.Issue || out.Session.Head != 6 {
		t.Errorf("D07: the honest session got %v, head %d, %v", out.Verdict, out.Session.Head, err)
	}
	p, err := f.Revocations().Tail(t.Context(), 0)
	if err != nil || len(p.Entries) != 1 || p.Entries[0].ID != string(ended.ID) {
		t.Errorf("D07: the log has %v %v", p.Entries, err)
	}
}
