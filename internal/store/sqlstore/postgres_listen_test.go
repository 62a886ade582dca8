package sqlstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/verify"
)

const issuer = "https://auth.example.com"

// replica is a store with a revocation log that follows it.
type replica struct {
	*sqlstore.DB
	log  *revocation.Log
	list *verify.List
}

// following opens a store and runs its log. With an hour between two looks nothing but hints brings anything.
func following(t *testing.T, o sqlstore.Options, every time.Duration, hints bool) replica {
	t.Helper()
	o.Password = pgtest.Password
	return followed(t, open(t, o), every, hints)
}

// followed runs the log of a store that is open: after a restart or a failover nothing else opens it again.
func followed(t *testing.T, db *sqlstore.DB, every time.Duration, hints bool) replica {
	t.Helper()
	r := replica{DB: db}
	var err error
	if r.list, err = verify.NewList(verify.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	ro := revocation.Options{Store: r.Revocations(), Issuer: issuer, List: r.list, Every: every}
	if hints {
		ro.Hints = []revocation.Hints{r.Hints()}
	}
	if r.log, err = revocation.New(ro); err == nil {
		until(t, "the log is read", func() bool { return r.log.CatchUp(t.Context()) == nil }) // which a short call of a busy machine may not do
	}
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.log.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if hints {
		until(t, "it listens", func() bool { return r.log.Hints() > 0 })
	}
	return r
}

// refuses reports whether the replica knows the end of a token.
func (r replica) refuses(id string) bool {
	return errors.Is(r.list.Check(&verify.Subject{Token: verify.TargetOf(issuer, verify.KindToken, id), AuthTime: time.Now().Unix()}), verify.ErrRevoked)
}

func TestWhatOneStoreAppendsAnotherHearsOf(t *testing.T) {
	t.Parallel()
	url := schema(t)
	here := undriven(t, sqlstore.Options{URL: url})
	there := following(t, sqlstore.Options{URL: url}, time.Hour, true)
	for n := range 20 {
		id := fmt.Sprint("token-", n)
		if there.refuses(id) {
			t.Fatal("it is refused before it is revoked")
		}
		if err := here.Revocations().Append(t.Context(), revoke(id)); err != nil {
			t.Fatal(err)
		}
		until(t, "a hint brings it", func() bool { return there.refuses(id) })
	}
	// What appends nothing, and what is rolled back, says nothing.
	heard := there.log.Hints()
	s := here.login(t, t)
	if out, err := here.Sessions().Redeem(t.Context(), present(s, 1)); err != nil || !out.Rotated {
		t.Fatal(out, err)
	}
	tries := 0
	if err := here.Collide(t.Context(), "23514", 1, &tries); err == nil {
		t.Fatal("what was to fail was committed")
	}
	ends := journal.Journal{Ends: []journal.End{{Session: s.ID, Reason: journal.EndedByRevoke}}, Revokes: revoke("with it").Revokes}
	if _, err := here.Sessions().End(t.Context(), "", ends); err != nil {
		t.Fatal(err)
	}
	until(t, "a hint brings the end", func() bool { return there.refuses("with it") })
	if n := there.log.Hints() - heard; n != 1 {
		t.Errorf("one operation that appended two entries, and three that appended nothing, gave %d hints", n)
	}
	// Another schema of the same database has a channel of its own.
	other := undriven(t, sqlstore.Options{URL: schema(t)})
	if err := other.Revocations().Append(t.Context(), revoke("elsewhere")); err != nil {
		t.Fatal(err)
	}
	if err := here.Revocations().Append(t.Context(), revoke("last")); err != nil {
		t.Fatal(err)
	}
	until(t, "a hint brings the last", func() bool { return there.refuses("last") })
	if n := there.log.Hints() - heard; n != 2 {
		t.Errorf("%d hints, with another schema's", n-1)
	}
}

func TestWithoutHintsTheClockBringsIt(t *testing.T) {
	t.Parallel()
	url := schema(t)
	here := undriven(t, sqlstore.Options{URL: url})
	there := following(t, sqlstore.Options{URL: url}, 20*time.Millisecond, false)
	if err := here.Revocations().Append(t.Context(), revoke("unheard")); err != nil {
		t.Fatal(err)
	}
	until(t, "the clock brings it", func() bool { return there.refuses("unheard") })
	if f := newFixture(t, sqlstore.Memory); f.Hints() != nil {
		t.Error("SQLite has hints")
	}
}

func TestAListenerWhoseConnectionEndsConnectsAgain(t *testing.T) {
	t.Parallel()
	url := schema(t, "application_name=heard")
	here := undriven(t, sqlstore.Options{URL: url})
	there := following(t, sqlstore.Options{URL: url}, time.Hour, true)
	for n := range 3 {
		heard := there.log.Hints()
		until(t, "the one before is gone", func() bool {
			return ask(t, server, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'heard-listen'`) == "1"
		})
		ended, err := server.SQL(t.Context(), "postgres", `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'heard-listen'`)
		if err != nil || ended != "1" {
			t.Fatalf("%s listeners: %v", ended, err)
		}
		id := fmt.Sprint("meanwhile-", n)
		if err := here.Revocations().Append(t.Context(), revoke(id)); err != nil {
			t.Fatal(err)
		}
		until(t, "what came meanwhile is read once it listens again", func() bool { return there.refuses(id) })
		until(t, "it listens again", func() bool { return there.log.Hints() > heard })
	}
	if err := here.Revocations().Append(t.Context(), revoke("afterwards")); err != nil {
		t.Fatal(err)
	}
	until(t, "hints come as before", func() bool { return there.refuses("afterwards") })
}

// stalling is a connection that the network may forget: what is written goes nowhere then, and nothing is read.
type stalling struct {
	net.Conn
	listens func(*stalling) // is told once that it is a listener's
	stalled atomic.Bool
}

func (c *stalling) Read(b []byte) (int, error) {
	for {
		n, err := c.Conn.Read(b)
		if n == 0 || !c.stalled.Load() {
			return n, err
		}
	}
}

func (c *stalling) Write(b []byte) (int, error) {
	if c.stalled.Load() {
		return len(b), nil
	}
	if bytes.Contains(b, []byte("LISTEN ")) {
		c.listens(c)
	}
	return c.Conn.Write(b)
}

func TestAListenerNoticesThatItsConnectionIsForgotten(t *testing.T) {
	t.Parallel()
	url := schema(t)
	here := undriven(t, sqlstore.Options{URL: url})
	var listener atomic.Pointer[stalling] // the newest
	o := sqlstore.Configured(sqlstore.Options{URL: url}, func(c *pgxpool.Config) {
		c.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return &stalling{Conn: conn, listens: listener.Store}, err
		}
	})
	there := following(t, sqlstore.HeardFor(o, 50*time.Millisecond), time.Hour, true)
	listener.Load().stalled.Store(true)
	if err := here.Revocations().Append(t.Context(), revoke("unheard")); err != nil {
		t.Fatal(err)
	}
	until(t, "it listens on another connection, and reads what it had not heard of", func() bool { return there.refuses("unheard") })
	if listener.Load().stalled.Load() {
		t.Error("it has read that, and does not listen")
	}
}

func TestAListenerLeavesAFlood(t *testing.T) {
	t.Parallel()
	url := schema(t, "application_name=flooded")
	here := undriven(t, sqlstore.Options{URL: url})
	there := following(t, sqlstore.Options{URL: url}, 20*time.Millisecond, true)
	listener := func(what string) string {
		t.Helper()
		said, err := server.SQL(t.Context(), "postgres", `SELECT `+what+` FROM pg_stat_activity WHERE application_name = 'flooded-listen'`)
		if err != nil {
			t.Fatal(err)
		}
		return said
	}
	channel, first := listener(`substring(query FROM 'authsvc_[0-9a-f]+')`), listener(`pid`)
	for n, left := 0, false; !left; n++ {
		// Anybody may: it is another text each time, or PostgreSQL would tell it once.
		if _, err := admin.Exec(t.Context(), `SELECT count(pg_notify($1, i::text)) FROM generate_series(1, 30000) i`, channel); err != nil {
			t.Fatal(err)
		}
		id := fmt.Sprint("meanwhile-", n)
		if err := here.Revocations().Append(t.Context(), revoke(id)); err != nil {
			t.Fatal(err)
		}
		until(t, "the clock brings it", func() bool { return there.refuses(id) })
		left = listener(`pid`) != first
	}
	until(t, "it listens again", func() bool { pid := listener(`pid`); return pid != "" && pid != first })
}

func TestHintsDoNotHoldUpClose(t *testing.T) {
	t.Parallel()
	db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: schema(t), Password: pgtest.Password})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	heard, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() { ended <- db.Hints().Listen(ctx, func() { heard <- struct{}{} }) }()
	<-heard
	if err := db.Close(); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAnAppendTakesNoMoreRoundTripsForItsHint(t *testing.T) {
	t.Parallel()
	var count atomic.Int64
	f := undriven(t, sqlstore.Configured(sqlstore.Options{URL: schema(t, "pool_max_conns=1")}, func(c *pgxpool.Config) {
		c.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return &flights{Conn: conn, count: &count}, err
		}
		c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false }
	}))
	for range 2 { // the first time its statements are prepared
		count.Store(0)
		if err := f.Revocations().Append(t.Context(), revoke("t")); err != nil {
			t.Fatal(err)
		}
	}
	if n := count.Load(); n != 4 {
		t.Errorf("an append took %d round trips, want four: its locks, the log's with the hint, the entry, the commit", n)
	}
}

// TestHintsFollowAFailover has a standby take over: whoever listened at the primary hears what is appended there.
func TestHintsFollowAFailover(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("starts two servers")
	}
	schema(t) // skips where there is no PostgreSQL
	primary, err := pgtest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	closed := func(s *pgtest.Server) {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { closed(primary) })
	standby, err := primary.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closed(standby) })
	both := strings.Replace(standby.URL("postgres"), "/postgres?", fmt.Sprintf(",127.0.0.1:%d/postgres?", primary.Port), 1)
	here := undriven(t, sqlstore.Options{URL: both, OpTimeout: failing})
	followed(t, here.DB, 20*time.Millisecond, false)
	there := following(t, sqlstore.Options{URL: both, OpTimeout: failing}, time.Hour, true)
	if err := here.Revocations().Append(t.Context(), revoke("before")); err != nil {
		t.Fatal(err)
	}
	until(t, "a hint brings it", func() bool { return there.refuses("before") })
	heard := there.log.Hints()
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	until(t, "it listens at the new primary", func() bool { return there.log.Hints() > heard })
	until(t, "it is appended there", func() bool { return here.Revocations().Append(t.Context(), revoke("after")) == nil })
	until(t, "a hint brings it", func() bool { return there.refuses("after") })
}
