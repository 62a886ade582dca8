package bench

import (
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/store/pgtest"
)

// known is how many of a database's sessions have a token that the benchmark knows. They lie anywhere among the rest.
const known = 20_000

// fill puts sessions into the database of a running server, copies of one that it wrote, of 50 times fewer accounts, and gives
// the refresh tokens of some of them.
func fill(b *testing.B, in *installation, pg *pgtest.Server, name string, sessions int) []string {
	b.Helper()
	model := in.login(b).GetSessionId()
	keys := in.refreshKeys(b)
	count := min(sessions, known)
	tokens := make([]string, count)
	var rows strings.Builder
	for i := range tokens {
		sid := ids.New[ids.Session]()
		hash, _, token, err := keys.New(sid)
		if err != nil {
			b.Fatal(err)
		}
		tokens[i] = token
		fmt.Fprintf(&rows, "%d\t%s\t\\\\x%s\n", 1+i*(sessions/count), sid, hex.EncodeToString(hash[:]))
	}
	file := must(pg.Put(name+".tsv", []byte(rows.String())))
	// An identifier is 16 bytes in base64url.
	id := func(of string) string {
		return `translate(rtrim(encode(substring(sha256((` + of + `)::bytea) FOR 16), 'base64'), '='), '+/', '-_')`
	}
	columns := func(table string, but map[string]string) (names, values string) {
		all := strings.Split(query(b, pg, name, `SELECT string_agg(column_name, ',' ORDER BY ordinal_position) FROM information_schema.columns WHERE table_name = '`+table+`'`), ",")
		from := make([]string, len(all))
		for i, c := range all {
			if from[i] = "m." + c; but[c] != "" {
				from[i] = but[c]
			}
		}
		return strings.Join(all, ", "), strings.Join(from, ", ")
	}
	accounts := sessions / 50
	account := id(fmt.Sprintf(`'account ' || g %% %d`, accounts))
	names, values := columns("accounts", map[string]string{"id": account, "username": `'user-' || g`})
	query(b, pg, name, fmt.Sprintf(`INSERT INTO accounts (%s) SELECT %s FROM generate_series(0, %d) g, (SELECT a.* FROM accounts a JOIN sessions s ON s.account = a.id WHERE s.id = '%s') m`,
		names, values, accounts-1, model))
	query(b, pg, name, `CREATE TABLE known (n bigint PRIMARY KEY, id text, hash bytea); COPY known FROM '`+file+`'; ANALYZE known`)
	names, values = columns("sessions", map[string]string{"id": `COALESCE(k.id, ` + id(`'session ' || g`) + `)`, "account": account,
		"secret_hash": `COALESCE(k.hash, m.secret_hash)`})
	query(b, pg, name, fmt.Sprintf(`INSERT INTO sessions (%s) SELECT %s FROM generate_series(1, %d) g LEFT JOIN known k ON k.n = g, (SELECT * FROM sessions WHERE id = '%s') m`,
		names, values, sessions, model))
	query(b, pg, name, `DROP TABLE known`)
	query(b, pg, name, `VACUUM ANALYZE`)
	rand.Shuffle(len(tokens), func(i, k int) { tokens[i], tokens[k] = tokens[k], tokens[i] })
	return tokens
}

// executed is what PostgreSQL says of the redemptions in a database: how many, and for how long it executed them in all, in nanoseconds.
func executed(b *testing.B, pg *pgtest.Server, name string) (calls, took float64) {
	b.Helper()
	said := strings.Fields(query(b, pg, "postgres", `SELECT sum(calls) || ' ' || sum(total_exec_time) FROM pg_stat_statements
		WHERE query LIKE 'UPDATE sessions%RETURNING%' AND dbid = (SELECT oid FROM pg_database WHERE datname = '`+name+`')`))
	if len(said) != 2 {
		b.Fatalf("PostgreSQL says %q of the redemptions", said)
	}
	return must(strconv.ParseFloat(said[0], 64)), 1e6 * must(strconv.ParseFloat(said[1], 64))
}

// BenchmarkPostgreSQLScale refreshes in a database that has room for all of it in the machine's memory.
func BenchmarkPostgreSQLScale(b *testing.B) {
	large := 1_000_000
	if soaking {
		large = 10_000_000
	}
	pg := database(b, "shared_buffers=1GB", "max_wal_size=4GB", "maintenance_work_mem=256MB")
	type size struct {
		name     string
		sessions int
		cpu      []float64 // of the service for a call, by rounds that count
		spent    []float64 // at PostgreSQL
	}
	refreshing := func(s *size) func() cost {
		create(b, pg, s.name)
		in := replicate(b, 1, settle(b, roleURL(s.name, "", address(pg)), ""))[0]
		tokens := fill(b, in, pg, s.name, s.sessions)
		h := &holders{in: in, tokens: tokens}
		var next atomic.Int64
		// A caller owns every sixteenth session.
		mine := len(tokens) / callers
		drive(b, in.process, 1, 1, func(ctx context.Context, _ int) error { return h.refresh(ctx, 0) })
		warm := false
		return func() cost {
			calls, spent := executed(b, pg, s.name)
			c := drive(b, in.process, callers, 2500, func(ctx context.Context, caller int) error { return h.refresh(ctx, caller*mine+int(next.Add(1))%mine) })
			more, after := executed(b, pg, s.name)
			if warm {
				s.cpu, s.spent = append(s.cpu, c.CPU), append(s.spent, (after-spent)/(more-calls))
			}
			warm = true
			return c
		}
	}
	many, few := &size{name: "many", sessions: large}, &size{name: "few", sessions: 10_000}
	p := alternate(b, refreshing(many), refreshing(few))
	for _, s := range []*size{many, few} {
		b.Logf("%d sessions: blocks hit, read, dirtied and bytes of WAL for a call: %s; redemptions, and of these without a touch of an index: %s", s.sessions,
			query(b, pg, "postgres", `SELECT sum(shared_blks_hit)/sum(calls), sum(shared_blks_read)/sum(calls), sum(shared_blks_dirtied)/sum(calls), sum(wal_bytes)/sum(calls)
			FROM pg_stat_statements WHERE query LIKE 'UPDATE sessions%RETURNING%' AND dbid = (SELECT oid FROM pg_database WHERE datname = '`+s.name+`')`),
			query(b, pg, s.name, `SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'sessions'`))
	}
	name := fmt.Sprintf("Refresh with %d sessions in PostgreSQL", large)
	var together, alone []float64
	for i := range many.spent {
		together = append(together, (many.cpu[i]+many.spent[i])/(few.cpu[i]+few.spent[i]))
		alone = append(alone, many.spent[i]/few.spent[i])
	}
	sum := func(s *size) string { return took(median(s.cpu) + median(s.spent)) }
	report(b, name+", CPU of the service and time of the statement at PostgreSQL", sum(many), "with 10^4 "+sum(few), fmt.Sprintf("%.2f ×", median(together)),
		"≤ 1.3 ×", median(together) <= 1.3)
	report(b, "the same, CPU of the service alone", took(p.ours.CPU), "with 10^4 "+took(p.limit.CPU), fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.3 ×", p.cpu <= 1.3)
	report(b, "the same, time of the statement alone", took(median(many.spent)), "with 10^4 "+took(median(few.spent)), fmt.Sprintf("%.2f ×", median(alone)), "–", true)
}
