package sqlstore_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

// newPostgres is newFixture in a schema of its own, with a driven clock.
func newPostgres(t *testing.T) *fixture {
	t.Helper()
	clock := storetest.NewClock()
	o := sqlstore.Options{URL: schema(t), Password: pgtest.Password, OpTimeout: time.Minute}
	f := &fixture{DB: open(t, sqlstore.Driven(o, clock.Now)), clock: clock}
	f.seed(t, "app")
	return f
}

// undriven is a fixture by the database's own clock.
func undriven(t *testing.T, o sqlstore.Options) *fixture {
	t.Helper()
	o.Password = pgtest.Password
	f := &fixture{DB: open(t, o)}
	f.seed(t, "app")
	return f
}

// until waits for a condition that other processes bring about.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatal("this did not come: " + what)
		case <-tick.C:
		}
	}
}

// waiting is how many connections of a database wait for an advisory lock or a row.
func waiting(t *testing.T, application string) int {
	t.Helper()
	n, err := server.SQL(t.Context(), "postgres",
		`SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = '`+application+`'`)
	if err != nil {
		t.Fatal(err)
	}
	var count int
	if _, err := fmt.Sscan(n, &count); err != nil {
		t.Fatal(err)
	}
	return count
}

// flights counts round trips: what is written after something was read begins one.
type flights struct {
	net.Conn
	writing atomic.Bool
	count   *atomic.Int64
}

func (c *flights) Write(b []byte) (int, error) {
	if !c.writing.Swap(true) {
		c.count.Add(1)
	}
	return c.Conn.Write(b)
}

func (c *flights) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		c.writing.Store(false)
	}
	return n, err
}

func TestARedemptionIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	var count atomic.Int64
	o := sqlstore.Configured(sqlstore.Options{URL: schema(t, "pool_max_conns=1")}, func(c *pgxpool.Config) {
		c.ConnConfig.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
			return &flights{Conn: conn, count: &count}, err
		}
		c.ShouldPing = func(context.Context, pgxpool.ShouldPingParams) bool { return false } // of what was idle for a second
	})
	f := undriven(t, o)
	s := f.login(t, t)
	redeem := func(g uint32) session.Redeemed {
		t.Helper()
		r := present(s, g)
		r.Deadline = time.Now().Add(time.Minute)
		out, err := f.Sessions().Redeem(t.Context(), r)
		if err != nil || out.Verdict != session.Issue {
			t.Fatal(out.Verdict, err)
		}
		return out
	}
	redeem(1) // prepares the statement
	before := count.Load()
	for g := uint32(2); g < 22; g++ {
		redeem(g)
	}
	if n := count.Load() - before; n != 20 {
		t.Errorf("20 redemptions took %d round trips", n)
	}
	for what, ask := range map[string]func(context.Context) error{
		"a session":          func(ctx context.Context) error { _, _, _, err := f.Sessions().Get(ctx, s.ID); return err },
		"the log":            func(ctx context.Context) error { _, err := f.Revocations().Tail(ctx, 0); return err },
		"whether it changed": func(ctx context.Context) error { _, err := f.Revocations().Changed(ctx); return err },
		"a server's beat": func(ctx context.Context) error {
			_, err := f.Instances().Beat(ctx, instance.Instance{ID: "a"})
			return err
		},
		"a client for a token": func(ctx context.Context) error { _, _, _, err := f.Clients().Begin(ctx, "app"); return err },
	} {
		for range 2 { // the first time it is prepared
			before = count.Load()
			if err := ask(t.Context()); err != nil {
				t.Fatal(what, err)
			}
		}
		if n := count.Load() - before; n != 1 {
			t.Errorf("%s took %d round trips", what, n)
		}
	}
}

// The database's clock counts, in whole microseconds, whatever this process believes (D16).
func TestD16TimesAreTheDatabases(t *testing.T) {
	t.Parallel()
	wrong := func() time.Time { return time.Now().AddDate(1, 0, 0) }
	f := undriven(t, sqlstore.Options{URL: schema(t), Now: wrong})
	said := func() time.Time {
		t.Helper()
		_, now, err := f.Clients().Revision(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return now
	}
	before := said()
	s := f.login(t, t)
	r := present(s, 1)
	r.Deadline = said().Add(time.Minute)
	out, err := f.Sessions().Redeem(t.Context(), r)
	if err != nil || out.Verdict != session.Issue {
		t.Fatal(out.Verdict, err)
	}
	after := said()
	if s.CreatedAt.Before(before) || out.Now.Before(s.CreatedAt) || after.Before(out.Now) || out.Now.Sub(before) > time.Minute {
		t.Errorf("times %v, %v, %v, %v do not rise", before, s.CreatedAt, out.Now, after)
	}
	if out.Now != out.Session.RedeemedAt || out.Now != out.Session.LastUsedAt || out.Now != out.Now.Truncate(time.Microsecond) {
		t.Errorf("one statement has two times: %+v", out)
	}
	r.Generation, r.Deadline = 2, before
	if _, err := f.Sessions().Redeem(t.Context(), r); fault.From(err).Kind != fault.Unavailable {
		t.Errorf("past its deadline it was decided: %v", err)
	}
}

func TestP04ARowThatCommitsLateIsNotSkipped(t *testing.T) {
	t.Parallel()
	url := schema(t, "application_name=p04")
	one := undriven(t, sqlstore.Options{URL: url})
	other := open(t, sqlstore.Options{URL: url, Password: pgtest.Password})
	var position int64
	var seen []string
	read := func(db *sqlstore.DB) {
		t.Helper()
		p, err := db.Revocations().Tail(t.Context(), position)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range p.Entries {
			seen = append(seen, e.ID)
		}
		position = p.Head
	}
	written, release, first, second := make(chan struct{}), make(chan struct{}), make(chan error, 1), make(chan error, 1)
	go func() { first <- one.AppendSlowly(context.Background(), revoke("first"), written, release) }()
	<-written
	go func() { second <- other.Revocations().Append(context.Background(), revoke("second")) }()
	until(t, "the second append waits for the first", func() bool { return waiting(t, "p04") == 1 })
	read(other)
	if len(seen) != 0 || position != 0 {
		t.Errorf("a row was seen before those that come first: %v up to %d", seen, position)
	}
	close(release)
	for _, done := range []chan error{first, second} {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	read(one.DB)
	if strings.Join(seen, " ") != "first second" {
		t.Errorf("the tail read %v", seen)
	}
	// The twin: nobody holds back, and nobody waits.
	if err := other.Revocations().Append(t.Context(), revoke("third")); err != nil {
		t.Fatal(err)
	}
	if read(other); strings.Join(seen, " ") != "first second third" {
		t.Errorf("the tail read %v", seen)
	}
}

// What begins while a cut-off is being committed waits for it, however long the standby takes.
func TestNothingBeginsBesideACutOffThatIsBeingCommitted(t *testing.T) {
	t.Parallel()
	for kind, id := range map[journal.Kind]string{journal.KindClient: "app", journal.KindAll: "", journal.KindSubject: "account"} {
		name := "cut " + string(kind)
		f := undriven(t, sqlstore.Options{URL: schema(t, "application_name="+strings.ReplaceAll(name, " ", "-"))})
		if id == "account" {
			id = string(f.account.ID)
		}
		j := journal.Journal{Revokes: []journal.Revocation{{Kind: kind, ID: id}}}
		written, release, cut := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() { cut <- f.AppendSlowly(context.Background(), j, written, release) }()
		<-written
		var s session.Session
		var service time.Time
		var wg sync.WaitGroup
		wg.Go(func() { s = f.login(t, t) })
		want := 1
		if kind != journal.KindSubject {
			want = 2
			wg.Go(func() {
				var err error
				if _, _, service, err = f.Clients().Begin(context.Background(), "app"); err != nil {
					t.Error(err)
				}
			})
		}
		until(t, "they wait for the cut-off", func() bool { return waiting(t, strings.ReplaceAll(name, " ", "-")) == want })
		close(release)
		wg.Wait()
		if err := <-cut; err != nil {
			t.Fatal(err)
		}
		p, err := f.Revocations().Tail(t.Context(), 0)
		if err != nil || len(p.Entries) != 1 {
			t.Fatal(p, err)
		}
		if s.AuthTime.Before(p.Entries[0].NotBefore) || want == 2 && service.Before(p.Entries[0].NotBefore) {
			t.Errorf("%s at %v: what waited for it began at %v and %v", name, p.Entries[0].NotBefore, s.AuthTime, service)
		}
	}
}

func TestALongPostgreSQLLogIsReadInPages(t *testing.T) {
	t.Parallel()
	f := undriven(t, sqlstore.Options{URL: schema(t), OpTimeout: time.Minute})
	const beyond = 10
	if err := f.Exec(t.Context(), fmt.Sprintf(`INSERT INTO revocations (kind, id, not_before, expires_at)
		SELECT 'jti', 'token-' || i, 0, %d FROM generate_series(1, %d) AS i`, time.Now().Add(time.Hour).UnixMicro(), revocation.PageSize+beyond)); err != nil {
		t.Fatal(err)
	}
	page, err := f.Revocations().Tail(t.Context(), 0)
	if err != nil || len(page.Entries) != revocation.PageSize || !page.More || page.Head != revocation.PageSize+beyond {
		t.Fatalf("the first page has %d entries up to %d, more: %v; %v", len(page.Entries), page.Head, page.More, err)
	}
	page, err = f.Revocations().Tail(t.Context(), page.Entries[len(page.Entries)-1].Position)
	if err != nil || len(page.Entries) != beyond || page.More {
		t.Fatalf("the second page has %d entries, more: %v; %v", len(page.Entries), page.More, err)
	}
}

func TestNoPostgreSQLStatementMustReadAWholeTable(t *testing.T) {
	t.Parallel()
	f := newPostgres(t)
	useEverything(t, f)
	plans, err := f.PostgresPlans(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(plans) < 20 {
		t.Fatalf("only %d statements were seen", len(plans))
	}
	for query, plan := range plans {
		if strings.Contains(query, "UNION ALL SELECT not_before FROM pending_ends") { // of the creation of a client
			continue
		}
		for line := range strings.Lines(plan) {
			_, table, whole := strings.Cut(line, "Seq Scan on ")
			if whole && !strings.HasPrefix(table, "installation") && !strings.HasPrefix(table, "pending_ends") && !strings.HasPrefix(table, "clients") &&
				!strings.HasPrefix(table, "signing_keys") && !strings.HasPrefix(table, "schema_version") {
				t.Errorf("%s\n%s", query, plan)
			}
		}
	}
}

// A redemption writes its row and no index, into the page where the row was.
func TestARedemptionTouchesNoIndex(t *testing.T) {
	t.Parallel()
	url := schema(t)
	_, name, _ := strings.Cut(url, "search_path=")
	url += "&pool_max_conns=1" // whose server process counts
	f := undriven(t, sqlstore.Options{URL: url})
	s := f.login(t, t)
	const times = 300
	for g := uint32(1); g <= times; g++ {
		if out, err := f.Sessions().Redeem(t.Context(), present(s, g)); err != nil || !out.Rotated {
			t.Fatal(out, err)
		}
	}
	if err := f.Exec(t.Context(), `SELECT pg_stat_force_next_flush()`); err != nil {
		t.Fatal(err)
	}
	var updated, inPlace int
	until(t, "the database has counted", func() bool {
		said, err := server.SQL(t.Context(), "postgres",
			`SELECT n_tup_upd || ' ' || n_tup_hot_upd FROM pg_stat_all_tables WHERE relname = 'sessions' AND schemaname = '`+name+`'`)
		if err != nil {
			t.Fatal(err)
		}
		_, err = fmt.Sscan(said, &updated, &inPlace)
		return err == nil && updated >= times
	})
	if inPlace < times*9/10 {
		t.Errorf("of %d redemptions %d touched no index", updated, inPlace)
	}
}
