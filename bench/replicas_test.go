package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/redistest"
)

// The service's user in PostgreSQL, and its pool.
const (
	role       = "authsvc"
	rolesWord  = "horse battery staple"
	connection = "pool_max_conns=10&pool_min_conns=10"
)

// database starts a PostgreSQL with the service's user. It does not wait for a disk, as pgtest's servers do not: what the disk
// takes is the same for all who commit, and is no CPU of the service's.
func database(b testing.TB, settings ...string) *pgtest.Server {
	b.Helper()
	pg, err := pgtest.Start(b.Context(), append(settings, "shared_preload_libraries=pg_stat_statements")...)
	if errors.Is(err, pgtest.ErrMissing) && !required {
		b.Skip(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = pg.Close() })
	query(b, pg, "postgres", `CREATE EXTENSION pg_stat_statements`)
	query(b, pg, "postgres", `CREATE ROLE `+role+` LOGIN PASSWORD '`+rolesWord+`'`)
	return pg
}

// query asks as the superuser.
func query(b testing.TB, pg *pgtest.Server, database, text string) string {
	b.Helper()
	out, err := pg.SQL(b.Context(), database, text)
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// counters starts a Redis.
func counters(b testing.TB) *redistest.Server {
	b.Helper()
	r, err := redistest.Start(b.Context())
	if errors.Is(err, redistest.ErrMissing) && !required {
		b.Skip(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = r.Close() })
	return r
}

// roleURL names a database with the service's user and pool, at the addresses given.
func roleURL(name, password string, addresses ...string) string {
	u := url.URL{Scheme: "postgres", User: url.User(role), Host: strings.Join(addresses, ","), Path: "/" + name, RawQuery: "sslmode=disable&" + connection}
	if password != "" {
		u.User = url.UserPassword(role, password)
	}
	return u.String()
}

func address(pg *pgtest.Server) string { return fmt.Sprint("127.0.0.1:", pg.Port) }

// create makes a database of the service's user.
func create(b testing.TB, pg *pgtest.Server, name string) {
	b.Helper()
	query(b, pg, "postgres", `CREATE DATABASE `+name+` OWNER `+role)
}

// fleet are replicas on one PostgreSQL. The first made the schema and has the accounts' and the clients' names.
type fleet []*installation

// settle writes the settings of an installation on PostgreSQL, and on Redis if it has an address.
func settle(b testing.TB, url, redis string) string {
	b.Helper()
	file := filepath.Join(b.TempDir(), "password")
	if err := os.WriteFile(file, []byte(rolesWord+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	text := fmt.Sprintf("database: {url: %q, password_file: %q}", url, file)
	if redis != "" {
		text += fmt.Sprintf("\nredis: {addresses: [%q]}", redis)
	}
	return text
}

// replicate starts so many replicas.
func replicate(b testing.TB, n int, settings string) fleet {
	b.Helper()
	first := arrange(b, settings, nil)
	first.furnish(b)
	f := fleet{first}
	for range n - 1 {
		other := arrange(b, settings, first)
		other.start(b)
		f = append(f, other)
	}
	return f
}

func (f fleet) processes() (all []*process) {
	for _, in := range f {
		all = append(all, in.process)
	}
	return all
}

func (f fleet) cpu() (sum time.Duration) {
	for _, in := range f {
		sum += in.process.cpu()
	}
	return sum
}

// any is one of them.
func (f fleet) any() authsvcv1.AuthServiceClient { return f[rand.N(len(f))].auth }

// What a server may do by itself is learnt while nobody calls it, for longer than it takes between two of its signs of life.
const learnFor = 7 * time.Second

// usual are the round trips of a server that nobody calls.
func (t *trips) usual() map[string]int {
	before, usual := t.counted(), map[string]int{}
	time.Sleep(learnFor)
	for text, n := range t.counted() {
		if n > before[text] {
			usual[text] = n - before[text]
		}
	}
	return usual
}

func BenchmarkPostgreSQLRefresh(b *testing.B) {
	pg := database(b)
	create(b, pg, "authsvc")
	create(b, pg, "bare")
	in := replicate(b, 1, settle(b, roleURL("authsvc", "", address(pg)), ""))[0]
	h := newHolders(b, in, callers)
	const sent, got = 88 - 3, 953 - 3 // about, as in SQLite's row: the limit's message has a header of its own
	limited := limit(b, "update", strconv.Itoa(got), roleURL("bare", rolesWord, address(pg)))
	plain := bare(b, limited, in, sent)
	const n = 2500
	p := alternate(b, func() cost { return drive(b, in.process, callers, n, h.refresh) }, func() cost { return drive(b, limited, callers, n, plain) })
	report(b, "Refresh on PostgreSQL, CPU", took(p.ours.CPU), "gRPC + RS256 + pgx UPDATE "+took(p.limit.CPU), fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.25 ×", p.cpu <= 1.25)
	b.Logf("calls/s of %d callers: %.0f, limit %.0f", callers, 1e9/p.ours.Wall, 1e9/p.limit.Wall)
}

// BenchmarkPostgreSQLRoundTrips counts what the server asks of PostgreSQL while sessions are refreshed, one after the other.
func BenchmarkPostgreSQLRoundTrips(b *testing.B) {
	pg := database(b)
	create(b, pg, "authsvc")
	var t trips
	w := newTap(b, address(pg), t.postgres)
	in := replicate(b, 1, settle(b, roleURL("authsvc", "", w.address), ""))[0]
	h := newHolders(b, in, 1)
	refresh := func(n int) {
		for range n {
			if err := h.refresh(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}
	}
	drive(b, in.process, callers, 200, func(ctx context.Context, _ int) error { // each connection prepares what it runs
		_, err := in.auth.Refresh(ctx, &authsvcv1.RefreshRequest{RefreshToken: h.tokens[0], ClientId: app})
		return err
	})
	usual := t.usual()
	refresh(20)
	const n = 500
	sum, own := t.during(n, func() { refresh(n) }, usual)
	for text, n := range own {
		b.Logf("by itself: %d times %.60s", n, text)
	}
	report(b, "round trips to PostgreSQL for a Refresh", fmt.Sprintf("%d for %d", sum, n), "–", fmt.Sprintf("%.2f", float64(sum)/n), "1", sum == n)
}

func BenchmarkRedisRoundTrips(b *testing.B) {
	pg, r := database(b), counters(b)
	create(b, pg, "authsvc")
	var t trips
	w := newTap(b, r.Address(), t.redis)
	in := replicate(b, 1, settle(b, roleURL("authsvc", "", address(pg)), w.address))[0]
	h := newHolders(b, in, 1)
	tokens := in.tokens(b, 10)
	usual := t.usual()
	for _, of := range []struct {
		name string
		n    int
		most int
		call func() error
	}{
		{"Login", 20, 1, func() error { in.login(b); return nil }},
		{"Refresh", 200, 1, func() error { return h.refresh(b.Context(), 0) }},
		{"Introspect", 500, 0, func() error {
			return introspected(in.auth.Introspect(in.asService(b.Context()), &authsvcv1.IntrospectRequest{Token: tokens[0]}))
		}},
	} {
		sum, own := t.during(of.n, func() {
			for range of.n {
				if err := of.call(); err != nil {
					b.Fatal(err)
				}
			}
		}, usual)
		for what, n := range own {
			b.Logf("by itself: %d times %s", n, what)
		}
		report(b, "round trips to Redis for one "+of.name, fmt.Sprintf("%d for %d", sum, of.n), "–", fmt.Sprintf("%.2f", float64(sum)/float64(of.n)),
			fmt.Sprintf("≤ %d", of.most), sum <= of.most*of.n)
	}
}

// mix is what callers ask of a fleet: of a hundred calls two revoke a token, a third of the others refreshes, and the rest
// introspects, each at any of the replicas. There is no login in it: the password's hash would hide what replicas cost.
func (f fleet) mix(b *testing.B, callers int) func(ctx context.Context, caller int) error {
	b.Helper()
	h := newHolders(b, f[0], callers)
	tokens, access := f[0].tokens(b, warmTokens), make([]string, callers)
	var next atomic.Int64
	return func(ctx context.Context, caller int) error {
		k := next.Add(1)
		switch {
		case k%50 == 0 && access[caller] != "":
			_, err := f.any().Revoke(ctx, &authsvcv1.RevokeRequest{Token: access[caller]})
			access[caller] = ""
			return err
		case k%3 == 0:
			out, err := f.any().Refresh(ctx, &authsvcv1.RefreshRequest{RefreshToken: h.tokens[caller], ClientId: app})
			if err == nil {
				h.tokens[caller], access[caller] = out.GetRefreshToken(), out.GetAccessToken()
			}
			return err
		default:
			return introspected(f.any().Introspect(f[0].asService(ctx), &authsvcv1.IntrospectRequest{Token: tokens[k%warmTokens]}))
		}
	}
}

// BenchmarkReplicasCost adds up the CPU of all replicas, with all that they do by themselves. Beside three replicas of one
// installation stand three servers that have nothing to do with each other, each with the same load: what three processes
// take from each other on the cores of one machine is then on both sides, and what they do for each other on one. One server
// with a third of the callers, that has the machine to itself, is measured too.
func BenchmarkReplicasCost(b *testing.B) {
	const n, each, turns = 3, 500, 41 // many short turns: what else the machine does then falls on both sides
	pg := database(b)
	create(b, pg, "replicas")
	replicas := replicate(b, n, settle(b, roleURL("replicas", "", address(pg)), ""))
	var apart fleet
	var calls [n]func(context.Context, int) error
	for i := range n {
		name := fmt.Sprint("apart", i)
		create(b, pg, name)
		one := replicate(b, 1, settle(b, roleURL(name, "", address(pg)), ""))
		apart, calls[i] = append(apart, one...), one.mix(b, callers)
	}
	all := replicas.mix(b, n*callers)
	together := func() cost { return driveAll(b, replicas.processes(), n*callers, n*each, all) }
	p := takeTurns(b, turns, together, func() cost {
		return driveAll(b, apart.processes(), n*callers, n*each, func(ctx context.Context, caller int) error { return calls[caller%n](ctx, caller/n) })
	})
	const of = "CPU per call of refreshes, introspections and revocations, 3 replicas"
	report(b, of, took(p.ours.CPU), "3 servers of one replica "+took(p.limit.CPU), fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.1 ×", p.cpu <= 1.1)
	p = takeTurns(b, turns, together, func() cost { return driveAll(b, apart[:1].processes(), callers, each, calls[0]) })
	report(b, of+" on the same cores", took(p.ours.CPU), "1 server "+took(p.limit.CPU), fmt.Sprintf("%.2f ×", p.cpu), "–", true)
	const idle = 10 * time.Second
	before := replicas.cpu()
	time.Sleep(idle)
	report(b, "CPU of a replica that nobody calls, per second", took(float64(replicas.cpu()-before)/n/idle.Seconds()), "–", "", "–", true)
}
