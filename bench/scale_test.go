package bench

import (
	"context"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the driver

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/session"
)

// population is how much a database holds.
type population struct{ accounts, sessions, revocations int }

// populated makes an installation that holds so much, and gives it with the refresh tokens of some of its sessions, which
// lie anywhere among the rest. The rows are copies of such as the server wrote, under ids and secrets of their own.
func populated(b *testing.B, p population) (*installation, []string) {
	b.Helper()
	in := install(b)
	revoked := in.login(b)
	if _, err := in.auth.Revoke(b.Context(), &authsvcv1.RevokeRequest{Token: revoked.GetAccessToken()}); err != nil {
		b.Fatal(err)
	}
	model := in.login(b).GetSessionId()
	in.stop(b)
	db := must(sql.Open("sqlite", "file:"+in.path("authsvc.db")))
	defer db.Close()
	tx := must(db.Begin())
	defer tx.Rollback()
	var account string
	if err := tx.QueryRow(`SELECT account FROM sessions WHERE id = ?`, model).Scan(&account); err != nil {
		b.Fatal(err)
	}
	accounts := make([]string, p.accounts)
	add := copier(b, tx, "accounts", account, "id", "username")
	for i := range accounts {
		accounts[i] = ids.New[string]()
		add(accounts[i], fmt.Sprintf("user-%d", i))
	}
	keys := in.refreshKeys(b)
	tokens := make([]string, 0, p.sessions)
	add = copier(b, tx, "sessions", model, "id", "account", "secret_hash")
	for i := range p.sessions {
		sid := ids.New[ids.Session]()
		hash, _, token, err := keys.New(sid)
		if err != nil {
			b.Fatal(err)
		}
		add(string(sid), accounts[i%len(accounts)], hash[:])
		tokens = append(tokens, token)
	}
	// A revoked token stays in the list until it would have expired: these do not within the measurement.
	for range p.revocations {
		if _, err := tx.Exec(`INSERT INTO revocations (kind, id, not_before, expires_at) SELECT kind, ?, not_before, ? FROM revocations WHERE position = 1`,
			ids.New[string](), time.Now().Add(15*time.Minute).UnixMicro()); err != nil {
			b.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		b.Fatal(err)
	}
	in.start(b)
	rand.Shuffle(len(tokens), func(i, k int) { tokens[i], tokens[k] = tokens[k], tokens[i] })
	return in, tokens[:min(len(tokens), 20_000)]
}

// copier gives an insertion into a table that copies the row of the id but for the columns named.
func copier(b *testing.B, tx *sql.Tx, table, id string, columns ...string) func(values ...any) {
	b.Helper()
	rows := must(tx.Query(`SELECT * FROM ` + table + ` LIMIT 0`))
	all := must(rows.Columns())
	rows.Close()
	from := strings.Join(all, ", ")
	for _, c := range columns {
		from = strings.Replace(", "+from+",", ", "+c+",", ", ?,", 1)
		from = strings.Trim(from, ", ")
	}
	insert := must(tx.Prepare(`INSERT INTO ` + table + ` (` + strings.Join(all, ", ") + `) SELECT ` + from + ` FROM ` + table + ` WHERE id = ?`))
	return func(values ...any) {
		if _, err := insert.Exec(append(values, id)...); err != nil {
			b.Fatal(err)
		}
	}
}

// refreshKeys reads the installation's key file as the server does.
func (in *installation) refreshKeys(b *testing.B) *session.RefreshKeys {
	b.Helper()
	var file struct {
		Keys []struct {
			ID  byte   `json:"id"`
			Key string `json:"key"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(must(os.ReadFile(in.path("refresh.json"))), &file); err != nil {
		b.Fatal(err)
	}
	return must(session.NewRefreshKeys(issuer, []session.RefreshKey{{ID: file.Keys[0].ID, Key: must(base64.RawURLEncoding.DecodeString(file.Keys[0].Key))}}))
}

func BenchmarkScale(b *testing.B) {
	small, few := populated(b, population{accounts: 100, sessions: 1000})
	large, many := populated(b, population{accounts: 20_000, sessions: 1_000_000, revocations: 100_000})
	refreshing := func(in *installation, tokens []string) func() cost {
		var next atomic.Int64
		h := &holders{in: in, tokens: tokens}
		// A caller owns every sixteenth session.
		return func() cost {
			return drive(b, in.process, callers, 4000, func(ctx context.Context, caller int) error {
				mine := len(tokens) / callers
				return h.refresh(ctx, caller*mine+int(next.Add(1))%mine)
			})
		}
	}
	introspecting := func(in *installation) func() cost {
		tokens := in.tokens(b, warmTokens)
		var next atomic.Int64
		return func() cost {
			return drive(b, in.process, callers, 20_000, func(ctx context.Context, _ int) error {
				return introspected(in.auth.Introspect(in.asService(ctx), &authsvcv1.IntrospectRequest{Token: tokens[next.Add(1)%warmTokens]}))
			})
		}
	}
	b.Logf("the large database has %s", mebibytes(must(os.Stat(large.path("authsvc.db"))).Size()))
	p := alternate(b, refreshing(large, many), refreshing(small, few))
	report(b, "Refresh with 10^6 sessions, 10^5 revocations, CPU", took(p.ours.CPU), "with 10^3 and 0 "+took(p.limit.CPU),
		fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.2 ×", p.cpu <= 1.2)
	p = alternate(b, introspecting(large), introspecting(small))
	report(b, "Introspect with 10^6 sessions, 10^5 revocations, CPU", took(p.ours.CPU), "with 10^3 and 0 "+took(p.limit.CPU),
		fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.2 ×", p.cpu <= 1.2)
}
