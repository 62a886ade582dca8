package sqlstore_test

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

// holding is a transaction of somebody else that has run a statement and goes on.
func holding(t *testing.T, url, query string) pgx.Tx {
	t.Helper()
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	c.Password = pgtest.Password
	conn, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	other, err := conn.Begin(t.Context())
	if err == nil {
		_, err = other.Exec(t.Context(), query)
	}
	if err != nil {
		t.Fatal(err)
	}
	return other
}

// What a sweep finds, for three kinds of rows: the statement that makes some due, and the one that says how many are left.
func dueRows(n int) map[string][2]string {
	return map[string][2]string{
		"sessions": {fmt.Sprintf(`INSERT INTO sessions SELECT 'due' || n, 'nobody', 'app', '', 0, 0, 1, 0, 0, '', 0, 0, 0, 0, 1, 1, 1, 1, 1, NULL, '', '',
			'[]', '[]', '', '', '', 1 FROM generate_series(1, %d) AS n`, n), `SELECT count(*) FROM sessions WHERE id LIKE 'due%'`},
		"audit": {fmt.Sprintf(`INSERT INTO audit (time, event, outcome, reason, actor, subject, client, session, ip, user_agent, request_id)
			SELECT n, 'old', 'ok', '', '', '', '', '', '', '', '' FROM generate_series(1, %d) AS n`, n), `SELECT count(*) FROM audit WHERE event = 'old'`},
		"revocations": {fmt.Sprintf(`INSERT INTO revocations (kind, id, not_before, expires_at) SELECT 'jti', 'due' || n, 0, n
			FROM generate_series(1, %d) AS n`, n+1), // the newest stays
			`SELECT count(*) - 1 FROM revocations WHERE id LIKE 'due%'`},
	}
}

func TestReplicasSweepBesideEachOther(t *testing.T) {
	t.Parallel()
	const rows, batch = 300, 40
	url, clock := schema(t), storetest.NewClock()
	o := sqlstore.Driven(sqlstore.Options{URL: url, Password: pgtest.Password, OpTimeout: time.Minute}, clock.Now)
	var replicas []*sqlstore.DB
	for range 3 {
		replicas = append(replicas, open(t, o))
	}
	for _, q := range dueRows(rows) {
		if err := replicas[0].Exec(t.Context(), q[0]); err != nil {
			t.Fatal(err)
		}
	}
	sweeps := func(db *sqlstore.DB) map[string]func() (int, error) {
		return map[string]func() (int, error){
			"sessions":    func() (int, error) { return db.Sessions().Sweep(t.Context(), time.Hour, batch) },
			"audit":       func() (int, error) { return db.Audit().Prune(t.Context(), time.Hour, batch) },
			"revocations": func() (int, error) { return db.Revocations().Sweep(t.Context(), batch) },
		}
	}
	var all sync.WaitGroup
	swept := map[string]*atomic.Int64{"sessions": {}, "audit": {}, "revocations": {}}
	for _, db := range replicas {
		for name, sweep := range sweeps(db) {
			all.Go(func() {
				for {
					n, err := sweep()
					if err != nil || n > batch {
						t.Errorf("a sweep of %s took %d rows at once: %v", name, n, err)
					}
					if swept[name].Add(int64(n)); n == 0 || err != nil {
						return
					}
				}
			})
		}
	}
	all.Wait()
	for name, q := range dueRows(rows) {
		left, err := replicas[0].Number(t.Context(), q[1])
		if err != nil || left != 0 || swept[name].Load() != rows {
			t.Errorf("%s: %d of %d rows were swept, %d are left, error %v", name, swept[name].Load(), rows, left, err)
		}
	}
}

// TestASweepWaitsForNobody: a statement that has to wait fails here, since what it would wait for stays until it has ended.
func TestASweepWaitsForNobody(t *testing.T) {
	t.Parallel()
	url, clock := schema(t), storetest.NewClock()
	f := &fixture{DB: open(t, sqlstore.Driven(sqlstore.Options{URL: url, Password: pgtest.Password, OpTimeout: time.Minute}, clock.Now)), clock: clock}
	f.seed(t, "app")
	used, ended := f.login(t, t), f.login(t, t)
	if _, err := f.Sessions().End(t.Context(), "", journal.Journal{Ends: []journal.End{{Session: ended.ID, Reason: "test"}}}); err != nil {
		t.Fatal(err)
	}
	for _, q := range dueRows(10) {
		if err := f.Exec(t.Context(), q[0]); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Exec(t.Context(), `UPDATE sessions SET sweep_at = 2 WHERE id = ?`, string(used.ID)); err != nil {
		t.Fatal(err)
	}
	quick := open(t, sqlstore.Driven(sqlstore.Options{URL: url, Password: pgtest.Password, OpTimeout: 10 * time.Second}, clock.Now))
	sweep := func() (n [3]int, errs [3]error) {
		n[0], errs[0] = quick.Sessions().Sweep(t.Context(), time.Hour, 100)
		n[1], errs[1] = quick.Audit().Prune(t.Context(), time.Hour, 100)
		n[2], errs[2] = quick.Revocations().Sweep(t.Context(), 100)
		return n, errs
	}
	// Another replica is in the middle of its sweep: it has a few of each, among them a session that lives on and is redeemed.
	other := holding(t, url, `DELETE FROM audit WHERE time <= 4`)
	for _, q := range []string{`DELETE FROM revocations WHERE expires_at BETWEEN 1 AND 4`, `DELETE FROM sessions WHERE id IN ('due1', 'due2', 'due3', 'due4')`,
		`UPDATE sessions SET head = head WHERE id = '` + string(used.ID) + `'`} {
		if _, err := other.Exec(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if n, errs := sweep(); n != [3]int{6, 6, 6} || errs != [3]error{} {
		t.Errorf("beside another sweep %v rows were swept, errors %v", n, errs)
	}
	// The twin: whoever does not leave them out has to wait.
	var said *pgconn.PgError
	waits := holding(t, url, `SET LOCAL lock_timeout = '100ms'`)
	if _, err := waits.Exec(t.Context(), `DELETE FROM audit WHERE id IN (SELECT id FROM audit WHERE time < 100)`); !errors.As(err, &said) || said.Code != "55P03" {
		t.Errorf("a sweep that leaves nothing out ended with %v", err)
	}
	if err := other.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, errs := sweep(); n != [3]int{5, 4, 4} || errs != [3]error{} {
		t.Errorf("after it %v rows were swept, errors %v", n, errs)
	}
	out, err := f.Sessions().Redeem(t.Context(), present(used, 1))
	if err != nil || out.Verdict != session.Issue {
		t.Errorf("a session that was only marked anew: %v, %v", out.Verdict, err)
	}
	if _, _, _, err := f.Sessions().Get(t.Context(), "due1"); fault.From(err).Kind != fault.NotFound {
		t.Errorf("a swept session: %v", err)
	}
}
