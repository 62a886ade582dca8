package live

import (
	"database/sql"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// With -dump the dumps of the newest schema are kept, before the next migration is written: what the next version of the
// program is to run on.
//
//	go test ./test/live -run TestADumpIsWhatItWasMadeOf -dump ../../internal/store/sqlstore/testdata
var dumpTo = flag.String("dump", "", "a `folder` for dumps of the newest schema")

// past is what stands beside a dump: the secrets that its rows were made with, and tokens that its holders still have.
type past struct {
	Issuer      string          `json:"issuer"`
	KEK         json.RawMessage `json:"kek"`
	RefreshKeys json.RawMessage `json:"refresh_keys"`
	ServiceID   string          `json:"service_client_id"`
	Secret      string          `json:"service_client_secret"`
	Live        string          `json:"live"`       // a refresh token that was never presented
	Rotated     string          `json:"rotated"`    // one of the fourth generation
	Revoked     string          `json:"revoked"`    // of a session that somebody ended
	CutOff      string          `json:"cut_off"`    // of an account that was cut off
	Disabled    string          `json:"disabled"`   // of an account that was disabled
	Unfinished  string          `json:"unfinished"` // of a client whose end a sweep has still to finish
	RevokedKID  string          `json:"revoked_kid"`
}

// centuries lets a session of a dump outlive its test.
const centuries = "876000h"

// live through what leaves rows of every kind.
func (p *past) live(t *testing.T, dir, config string, d dev) {
	t.Helper()
	for path, into := range map[string]*json.RawMessage{"kek.json": &p.KEK, "refresh.json": &p.RefreshKeys} {
		text, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		*into = text
	}
	on := func(args ...string) []string { return append(args, "-config", config) }
	s, _ := serveBy(t, config, d, "http")
	for _, id := range []string{"app", "old"} {
		operate(t, "", on("client", "create", "-kind", "public", "-id", id, "-audience", "https://api.example", "-default-audience",
			"https://api.example", "-session-ttl", centuries, "-session-idle-ttl", centuries)...)
	}
	made := operate(t, "", on("client", "create", "-o", "json", "-kind", "confidential", "-audience", "https://api.example",
		"-default-audience", "https://api.example")...)
	var service struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	if err := json.Unmarshal([]byte(made), &service); err != nil {
		t.Fatal(err)
	}
	p.Issuer, p.ServiceID, p.Secret = d.Issuer, service.ID, service.Secret
	for _, name := range []string{"ada", "bob", "eve"} {
		operate(t, phrase+"\n", on("account", "create", name)...)
	}
	login := func(name, client string) (a answer) {
		t.Helper()
		await(t, name+" can sign in", func() bool {
			a = s.say(t, http.DefaultClient, "/v1/auth/login", map[string]any{"username": name, "password": phrase, "client_id": client})
			return a.code == http.StatusOK
		})
		return a
	}
	s.PublicClientID = "app"
	p.Live = login("ada", "app").text("refresh_token")
	p.Rotated = login("ada", "app").text("refresh_token")
	for range 3 {
		a := s.refresh(t, p.Rotated)
		if a.code != http.StatusOK {
			t.Fatal(a.raw)
		}
		p.Rotated = a.text("refresh_token")
	}
	p.Revoked = login("ada", "app").text("refresh_token")
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": p.Revoked}); a.code != http.StatusOK {
		t.Fatal(a.raw)
	}
	p.CutOff, p.Disabled, p.Unfinished = login("bob", "app").text("refresh_token"), login("eve", "app").text("refresh_token"), login("ada", "old").text("refresh_token")
	operate(t, "", on("revoke", "-sub", "bob")...)
	operate(t, "", on("account", "disable", "eve")...)
	var set []struct{ KID, State string }
	if err := json.Unmarshal([]byte(operate(t, "", on("keys", "list", "-o", "json")...)), &set); err != nil {
		t.Fatal(err)
	}
	operate(t, "", on("keys", "rotate", "-now")...)
	for _, k := range set {
		if k.State == "active" {
			p.RevokedKID = k.KID
			operate(t, "", on("keys", "revoke", k.KID)...)
		}
	}
	s.stop(t)
}

// unfinished leaves a cut-off of client "old" as one of more sessions than fit into a transaction does.
func unfinished() []string {
	at := time.Now().Truncate(time.Second).Add(2 * time.Second).UnixMicro()
	return []string{fmt.Sprintf(`UPDATE clients SET not_before = %d WHERE id = 'old'`, at),
		fmt.Sprintf(`INSERT INTO pending_ends (kind, id, not_before, reason) VALUES ('client', 'old', %d, 'revoked')`, at),
		`UPDATE installation SET client_revision = client_revision + 1`}
}

// dumpSQLite gives a database as plain SQL.
func dumpSQLite(t *testing.T, path string) string {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lines := func(query string, args ...any) (all []string) {
		t.Helper()
		rows, err := db.Query(query, args...)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				t.Fatal(err)
			}
			all = append(all, line)
		}
		if rows.Err() != nil {
			t.Fatal(rows.Err())
		}
		return all
	}
	var b strings.Builder
	for _, text := range lines(`SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name`) {
		b.WriteString(text + ";\n")
	}
	for _, table := range lines(`SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_stat%' ORDER BY name`) {
		if table == "sqlite_sequence" { // the rows before made theirs
			b.WriteString("DELETE FROM sqlite_sequence;\n")
		}
		columns := strings.Join(lines(`SELECT 'quote("' || name || '")' FROM pragma_table_info(?) ORDER BY cid`, table), ` || ',' || `)
		for _, values := range lines(`SELECT ` + columns + ` FROM ` + table + ` ORDER BY 1`) {
			b.WriteString("INSERT INTO " + table + " VALUES (" + values + ");\n")
		}
	}
	for _, text := range lines(`SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name`) {
		b.WriteString(text + ";\n")
	}
	return b.String()
}

// loadSQLite makes a database of a dump.
func loadSQLite(t *testing.T, path, dump string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	run(t, db, dump)
	if err := os.Chmod(path, 0o600); err != nil {
		t.Fatal(err)
	}
}

// keep writes a dump into the folder of -dump.
func keep(t *testing.T, version, engine, dump string, p past) {
	t.Helper()
	if *dumpTo == "" {
		return
	}
	beside, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(*dumpTo, 0o755); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(*dumpTo, "schema-000"+version+"."+engine)
	for path, text := range map[string][]byte{name + ".sql": []byte(dump), name + ".json": append(beside, '\n')} {
		if err := os.WriteFile(path, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestADumpIsWhatItWasMadeOf keeps the way in order by which the data of a schema is handed on to the tests of the next one.
func TestADumpIsWhatItWasMadeOf(t *testing.T) {
	t.Parallel()
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		dir, d := stopped(t)
		path := filepath.Join(dir, "authsvc.db")
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		var p past
		p.live(t, dir, configure(t, dir, plain), d)
		db := database(t, dir)
		for _, q := range unfinished() {
			run(t, db, q)
		}
		dump := dumpSQLite(t, path)
		again := filepath.Join(t.TempDir(), "again.db")
		loadSQLite(t, again, dump)
		if diff := cmp.Diff(dump, dumpSQLite(t, again)); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		keep(t, text(t, db, `SELECT version FROM schema_version`), "sqlite", dump, p)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		in := onPostgreSQL(t)
		var p past
		p.live(t, filepath.Dir(in.config), in.config, in.dev)
		ask := func(database, query string) string {
			t.Helper()
			out, err := in.pg.SQL(t.Context(), database, query)
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		for _, q := range unfinished() {
			ask("authsvc", q)
		}
		dump, err := in.pg.Dump(t.Context(), "authsvc")
		if err != nil {
			t.Fatal(err)
		}
		ask("postgres", `CREATE DATABASE again`)
		ask("again", dump)
		again, err := in.pg.Dump(t.Context(), "again")
		if diff := cmp.Diff(dump, again); diff != "" || err != nil {
			t.Errorf("error %v (-want +got)\n%s", err, diff)
		}
		keep(t, ask("authsvc", `SELECT version FROM schema_version`), "postgres", dump, p)
	})
}
