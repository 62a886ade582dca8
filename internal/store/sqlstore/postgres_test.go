package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authsvc/authsvc/internal/fault"
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
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
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
		"a session":            func(ctx context.Context) error { _, _, _, err := f.Sessions().Get(ctx, s.ID); return err },
		"the log":              func(ctx context.Context) error { _, err := f.Revocations().Tail(ctx, 0); return err },
		"whether it changed":   func(ctx context.Context) error { _, err := f.Revocations().Changed(ctx); return err },
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

func TestD09ALockedRowIsWaitedForAndThenUnavailable(t *testing.T) {
	t.Parallel()
	url := schema(t)
	f := undriven(t, sqlstore.Options{URL: url, OpTimeout: time.Second})
	other := open(t, sqlstore.Options{URL: url, Password: pgtest.Password, OpTimeout: time.Minute})
	s := f.login(t, t)
	begun, release, held := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() { held <- other.HoldRow(context.Background(), s.ID, begun, release) }()
	<-begun
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			_, err := f.Sessions().Redeem(t.Context(), present(s, 1))
			wantUnavailable(t, err)
		})
	}
	wg.Wait() // nobody hangs
	if _, _, _, err := f.Sessions().Get(t.Context(), s.ID); err != nil {
		t.Errorf("reads go on: %v", err)
	}
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
	stopped := undriven(t, sqlstore.Options{URL: url, OpTimeout: time.Second})
	s := stopped.login(t, t)
	begun, release, held := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() { held <- stopped.HoldRow(context.Background(), s.ID, begun, release) }()
	<-begun
	other := open(t, sqlstore.Options{URL: url, Password: pgtest.Password, OpTimeout: time.Minute})
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
	f := undriven(t, sqlstore.Options{URL: schema(t, "pool_max_conns=3"), OpTimeout: 300 * time.Millisecond})
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
			_, err := f.Revocations().Tail(t.Context(), 0)
			wantUnavailable(t, err)
		})
	}
	wg.Wait() // nobody hangs
	release()
	if err := f.Ping(t.Context()); err != nil {
		t.Errorf("with free connections it is not ready: %v", err)
	}
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
	if right.Load() < 8*40 {
		t.Errorf("only %d calls were answered", right.Load())
	}
}

func TestD14ThreeReplicasMayBeginOnAnEmptyDatabaseTogether(t *testing.T) {
	t.Parallel()
	url := schema(t)
	var epochs [3][16]byte
	var wg sync.WaitGroup
	for i := range epochs {
		wg.Go(func() {
			db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Password: pgtest.Password})
			if err != nil {
				t.Error(err)
				return
			}
			epochs[i] = db.Epoch()
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if epochs[0] != epochs[1] || epochs[0] != epochs[2] || epochs[0] == [16]byte{} {
		t.Fatal("two histories of one database")
	}
}

func TestOpenPostgreSQLSaysWhichSettingIsWrong(t *testing.T) {
	t.Parallel()
	made := func(change string) string {
		url := schema(t)
		db := open(t, sqlstore.Options{URL: url, Password: pgtest.Password})
		if change != "" {
			if err := db.Exec(t.Context(), change); err != nil {
				t.Fatal(err)
			}
		}
		return url
	}
	at := func(from, to string) string { return strings.Replace(server.URL("postgres"), from, to, 1) }
	port := fmt.Sprint(":", server.Port)
	if _, err := server.SQL(t.Context(), "postgres", `CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		url, password, want string
	}{
		"a wrong password":          {schema(t), "guess", "database.password_file: "},
		"no password":               {schema(t), "", "database.password_file: "},
		"a wrong user":              {at("postgres@", "nobody@"), pgtest.Password, `database.password_file: `},
		"a wrong database":          {server.URL("none"), pgtest.Password, `database.url: there is no database "none"`},
		"a wrong port":              {at(port, ":1"), pgtest.Password, "database.url: cannot reach 127.0.0.1:1"},
		"a schema that is not":      {server.URL("postgres", "search_path=none"), pgtest.Password, "database.url: there is no schema"},
		"another encoding":          {server.URL("latin"), pgtest.Password, "encoding is LATIN1"},
		"a database that is read":   {schema(t, "default_transaction_read_only=on"), pgtest.Password, "is a standby, or read-only"},
		"commits that are not kept": {schema(t, "synchronous_commit=off"), pgtest.Password, "synchronous_commit is off"},
		"no URL":                    {"host=127.0.0.1", pgtest.Password, "database.url: must be a URL"},
		"a password in the URL":     {at("postgres@", "postgres:guess@"), "", "database.password_file"},
		"a schema that is newer":    {made(`UPDATE schema_version SET version = version + 1`), pgtest.Password, sqlstore.ErrSchemaNewer.Error()},
	} {
		db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: c.url, Password: c.password, OpTimeout: 10 * time.Second})
		if err == nil {
			_ = db.Close()
			t.Errorf("%s was opened", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; it does not say %q", name, err, c.want)
		}
		if strings.Contains(err.Error(), "guess") || strings.Contains(err.Error(), pgtest.Password) {
			t.Errorf("%s: the password is in %v", name, err)
		}
	}
	existing := func(url string) error {
		db, err := sqlstore.OpenExisting(t.Context(), sqlstore.Options{URL: url, Password: pgtest.Password})
		if err == nil {
			err = db.Close()
		}
		return err
	}
	for name, c := range map[string]struct {
		url  string
		want error
	}{
		"an empty schema":       {schema(t), sqlstore.ErrNoDatabase},
		"an older schema":       {made(`UPDATE schema_version SET version = version - 1`), sqlstore.ErrSchemaOlder},
		"a newer schema":        {made(`UPDATE schema_version SET version = version + 1`), sqlstore.ErrSchemaNewer},
		"the twin: it is there": {made(""), nil},
	} {
		if err := existing(c.url); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://authsvc@db.example.com/authsvc?sslmode=verify-full":                                   "",
		"postgresql://authsvc@db.example.com:6432/authsvc?sslmode=verify-full&pool_max_conns=7":           "",
		"postgres://authsvc@127.0.0.1/authsvc":                                                            "",
		"postgres://authsvc@[::1]/authsvc?sslmode=disable":                                                "",
		"postgres://authsvc@localhost/authsvc":                                                            "",
		"postgres:///authsvc?host=/run/postgresql":                                                        "",
		"postgres://a@one.example.com,two.example.com/x?sslmode=verify-full&target_session_attrs=primary": "",
		"postgres://authsvc@db.example.com/authsvc":                                                       "must say sslmode=verify-full",
		"postgres://authsvc@db.example.com/authsvc?sslmode=disable":                                       "must say sslmode=verify-full",
		"postgres://authsvc@db.example.com/authsvc?sslmode=require":                                       "must say sslmode=verify-full",
		"postgres://authsvc@db.example.com/authsvc?sslmode=verify-ca":                                     "must say sslmode=verify-full",
		"postgres://authsvc@127.0.0.1,db.example.com/authsvc?sslmode=prefer":                              "db.example.com is neither",
		"postgres://authsvc@127.0.0.1/authsvc?target_session_attrs=any":                                   "target_session_attrs",
		"postgres://authsvc:geheim@127.0.0.1/authsvc":                                                     "holds a password",
		"postgres://authsvc@127.0.0.1/authsvc?password=geheim":                                            "holds a password",
		"postgres://authsvc@127.0.0.1/authsvc?pool_max_conns=none":                                        "cannot be used",
		"mysql://127.0.0.1/authsvc":                                                                       "must be a URL",
		"host=127.0.0.1 password=geheim":                                                                  "must be a URL",
	} {
		err := sqlstore.CheckURL(url)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("the password is in %v", err)
		}
	}
}

func TestClosedPostgreSQLIsUnavailable(t *testing.T) {
	t.Parallel()
	db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: schema(t), Password: pgtest.Password})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	wantUnavailable(t, db.Revocations().Append(t.Context(), revoke("t")))
	wantUnavailable(t, db.Ping(t.Context()))
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
	f := undriven(t, sqlstore.Options{URL: mine.URL("postgres", "pool_max_conns=6"), OpTimeout: 2 * time.Second})
	stop := make(chan struct{})
	acknowledged := make([]session.Redeemed, 4)
	var revoked [2][]string
	var wg sync.WaitGroup
	for i := range acknowledged {
		s := f.login(t, t)
		acknowledged[i] = session.Redeemed{Session: s}
		wg.Go(func() {
			for g := uint32(1); ; {
				select {
				case <-stop:
					return
				default:
				}
				out, err := f.Sessions().Redeem(t.Context(), present(s, g))
				switch {
				case err != nil:
					if fault.From(err).Kind != fault.Unavailable {
						t.Error(err)
					}
				case out.Verdict != session.Issue:
					t.Errorf("an honest refresh got %v", out.Verdict)
					return
				default:
					acknowledged[i], g = out, out.Session.Head
				}
			}
		})
	}
	for i := range revoked {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				id := fmt.Sprint(i, "-", n)
				if err := f.Revocations().Append(t.Context(), revoke(id)); err == nil {
					revoked[i] = append(revoked[i], id)
				} else if fault.From(err).Kind != fault.Unavailable {
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		head := func() int64 {
			p, err := f.Revocations().Tail(t.Context(), 0)
			if err != nil {
				return -1
			}
			return p.Head
		}
		from := head()
		until(t, "some revocations", func() bool { return head() > from+20 })
		if err := mine.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := mine.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		until(t, "it answers again", func() bool { return f.Ping(t.Context()) == nil })
	}
	close(stop)
	wg.Wait()
	p, err := f.Revocations().Tail(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, e := range p.Entries {
		there[e.ID] = true
	}
	for _, id := range append(revoked[0], revoked[1]...) {
		if !there[id] {
			t.Errorf("revocation %s was acknowledged and is gone", id)
		}
	}
	for _, a := range acknowledged {
		got, alive, _, err := f.Sessions().Get(t.Context(), a.Session.ID)
		if err != nil || !alive || got.Head < a.Session.Head {
			t.Errorf("head %d was acknowledged, %d is stored, alive %v: %v", a.Session.Head, got.Head, alive, err)
		}
	}
	unawaited(t, mine, f)
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
	_, err := f.Sessions().Redeem(t.Context(), present(s, 1))
	wantUnavailable(t, err)
	wantUnavailable(t, f.Revocations().Append(t.Context(), revoke("not awaited")))
	standby("")
	out, err := f.Sessions().Redeem(t.Context(), present(s, 1))
	if err != nil || out.Verdict != session.Issue || out.Session.Head != 2 {
		t.Errorf("a token whose answer was withheld got %v %v", out, err)
	}
	if err := f.Revocations().Append(t.Context(), revoke("awaited")); err != nil {
		t.Error(err)
	}
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
	f := undriven(t, sqlstore.Options{URL: both, OpTimeout: 2 * time.Second})
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
