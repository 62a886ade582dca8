package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/store/pgtest"
)

// installed is an installation on PostgreSQL: the server, the configuration, and where its password stands.
type installed struct {
	pg               *pgtest.Server
	config, password string
	dev
}

// onPostgreSQL makes a database with a user of its own, who may make nothing but tables in it, and a configuration.
func onPostgreSQL(t *testing.T, settings ...string) installed {
	t.Helper()
	pg, err := pgtest.Start(t.Context(), append(settings, "shared_preload_libraries=pg_stat_statements")...)
	if errors.Is(err, pgtest.ErrMissing) {
		lacking(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, q := range []string{`CREATE EXTENSION pg_stat_statements`, `CREATE ROLE authsvc LOGIN PASSWORD 'horse battery staple'`,
		`CREATE DATABASE authsvc OWNER authsvc`} {
		if _, err := pg.SQL(t.Context(), "postgres", q); err != nil {
			t.Fatal(err)
		}
	}
	dir, d := stopped(t)
	in := installed{pg: pg, config: configure(t, dir, plain), password: filepath.Join(dir, "password"), dev: d}
	if err := os.WriteFile(in.password, []byte("horse battery staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	url := strings.Replace(pg.URL("authsvc"), "postgres@", "authsvc@", 1)
	before, after, _ := strings.Cut(string(text), "database: {")
	_, after, _ = strings.Cut(after, "}\n")
	text = fmt.Appendf(nil, "%sdatabase: {url: %q, password_file: %q}\n%s", before, url, in.password, after)
	if err := os.WriteFile(in.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return in
}

// statements is how often the database has executed something for the service, by its text.
func (in installed) statements(t *testing.T) map[string]int {
	t.Helper()
	out, err := in.pg.SQL(t.Context(), "postgres", `SELECT calls || ' ' || regexp_replace(query, '\s+', ' ', 'g')
		FROM pg_stat_statements JOIN pg_roles ON pg_roles.oid = userid WHERE rolname = 'authsvc'`)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]int{}
	for line := range strings.Lines(out) {
		calls, query, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(calls)
		if err != nil {
			t.Fatal(err)
		}
		all[query] += n
	}
	return all
}

// furnish makes a person, an app and a service beside the servers that run, and waits until each of them knows all three.
func (in installed) furnish(t *testing.T, servers ...*server) {
	t.Helper()
	operate(t, "", "client", "create", "-config", in.config, "-kind", "public", "-id", "app", "-audience", "https://api.example", "-default-audience", "https://api.example")
	var service struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	made := operate(t, "", "client", "create", "-config", in.config, "-o", "json", "-kind", "confidential", "-audience", "https://api.example",
		"-default-audience", "https://api.example")
	if err := json.Unmarshal([]byte(made), &service); err != nil {
		t.Fatal(err)
	}
	operate(t, phrase+"\n", "account", "create", "-config", in.config, "ada")
	for _, s := range servers {
		s.PublicClientID, s.ServiceClientID, s.ServiceClientSecret, s.Username, s.Password, s.Audience = "app", service.ID, service.Secret, "ada", phrase, "https://api.example"
		await(t, "who was created beside it can sign in, and the service may ask", func() bool {
			a := s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password))
			return a.code == http.StatusOK && s.introspect(t, a.text("access_token")).json["active"] == true
		})
	}
}

func TestTheServiceRunsOnPostgreSQL(t *testing.T) {
	t.Parallel()
	in := onPostgreSQL(t)
	operate(t, "", "config", "check", "-config", in.config)
	if out := operate(t, "", "config", "print", "-config", in.config); strings.Contains(out, "staple") || !strings.Contains(out, "authsvc@127.0.0.1") {
		t.Errorf("the configuration is printed as %s", out)
	}
	s, _ := serveBy(t, in.config, in.dev, "http")
	in.furnish(t, s)
	kept, revoked := s.login(t), s.login(t)
	first, again := s.refresh(t, kept.text("refresh_token")), s.refresh(t, kept.text("refresh_token"))
	if first.code != 200 || first.text("refresh_token") != again.text("refresh_token") {
		t.Errorf("two refreshes with one token answered %d and %d, equal successors: %v", first.code, again.code, first.text("refresh_token") == again.text("refresh_token"))
	}
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": revoked.text("refresh_token")}); a.code != 200 || a.text("position") == "" {
		t.Errorf("revoke: %d %s", a.code, a.raw)
	}
	if a := s.introspect(t, revoked.text("access_token")); a.json["active"] != false {
		t.Errorf("a revoked token is introspected as %s", a.raw)
	}
	in.introspectionAsksNothing(t, s, first.text("access_token"))

	// Beside it runs a second one, on the same database and key files.
	other, _ := serveBy(t, in.config, s.dev, "http")
	if a := other.introspect(t, first.text("access_token")); a.json["active"] != true {
		t.Errorf("the other replica introspects a token as %s", a.raw)
	}
	elsewhere := other.login(t)
	if a := call(t, "POST", other.HTTP+"/v1/auth/revoke", "", map[string]any{"token": elsewhere.text("refresh_token")}); a.code != 200 {
		t.Fatal(a.raw)
	}
	await(t, "what one replica revoked is refused by the other", func() bool {
		return s.introspect(t, elsewhere.text("access_token")).json["active"] == false
	})
	other.stop(t)

	s.kill(t)
	s, said := serveBy(t, in.config, s.dev, "http")
	next := s.refresh(t, first.text("refresh_token"))
	if next.code != 200 || s.introspect(t, kept.text("access_token")).json["active"] != true {
		t.Errorf("after kill -9 an honest session got %d %s", next.code, next.raw)
	}
	if a := s.refresh(t, revoked.text("refresh_token")); a.code != 401 || s.introspect(t, revoked.text("access_token")).json["active"] != false {
		t.Errorf("after kill -9 a revoked session got %d %s", a.code, a.raw)
	}
	in.outage(t, s, next.text("refresh_token"))
	if strings.Contains(said.String(), "staple") {
		t.Errorf("the password is in the log: %s", said)
	}
}

// introspectionAsksNothing counts statements: the background goes on, at a few a second, and nothing is asked per token.
func (in installed) introspectionAsksNothing(t *testing.T, s *server, token string) {
	t.Helper()
	const calls = 400
	before := in.statements(t)
	for range calls {
		if a := s.introspect(t, token); a.json["active"] != true {
			t.Fatal(a.raw)
		}
	}
	for query, n := range in.statements(t) {
		if n -= before[query]; n > calls/4 {
			t.Errorf("%d introspections executed %d times %s", calls, n, query)
		}
	}
	// The twin: a refresh is one statement.
	before = in.statements(t)
	in2 := s.login(t)
	for token, n := in2.text("refresh_token"), 0; n < 20; n++ {
		a := s.refresh(t, token)
		if a.code != 200 {
			t.Fatal(a.raw)
		}
		token = a.text("refresh_token")
	}
	rotations := 0
	for query, n := range in.statements(t) {
		if strings.HasPrefix(query, "UPDATE sessions SET base = head") {
			rotations += n - before[query]
		}
	}
	if rotations != 20 {
		t.Errorf("20 refreshes were %d rotations", rotations)
	}
}

// outage takes the database away and brings it back: not ready but alive, nobody is signed out, no restart is needed.
func (in installed) outage(t *testing.T, s *server, refresh string) {
	t.Helper()
	if err := in.pg.Kill(); err != nil {
		t.Fatal(err)
	}
	await(t, "without its database it is not ready", func() bool { return s.probe("/readyz") == http.StatusServiceUnavailable })
	if code := s.probe("/livez"); code != http.StatusOK {
		t.Errorf("without its database it answers %d to /livez", code)
	}
	if a := s.refresh(t, refresh); a.code != http.StatusServiceUnavailable {
		t.Errorf("without its database a refresh got %d %s", a.code, a.raw)
	}
	if err := in.pg.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "it is ready again", func() bool { return s.probe("/readyz") == http.StatusOK })
	if a := s.refresh(t, refresh); a.code != http.StatusOK {
		t.Errorf("after the outage an honest refresh got %d %s", a.code, a.raw)
	}
}

func TestAWrongPasswordOfTheDatabaseIsSaidAndNotShown(t *testing.T) {
	t.Parallel()
	in := onPostgreSQL(t)
	if err := os.WriteFile(in.password, []byte("geheim"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"serve", "-config", in.config}, {"account", "list", "-config", in.config}, {"config", "check", "-config", in.config}} {
		out, err := command("", args...)
		if err == nil || !strings.Contains(out, "database.password_file") || strings.Contains(out, "geheim") {
			t.Errorf("%v says %q, %v", args, out, err)
		}
	}
}
