package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/store/redistest"
)

// diagnosis is what the doctor finds, by check.
type diagnosis struct {
	byCheck map[string][]found
	code    int
	text    string
}

type found struct {
	Level, Check, Found, Do string
}

// examine runs the doctor.
func examine(t *testing.T, installation ...string) diagnosis {
	t.Helper()
	cmd := process(append([]string{"doctor", "-o", "json"}, installation...)...)
	out, err := cmd.Output()
	d := diagnosis{byCheck: map[string][]found{}, text: string(out)}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		d.code = exit.ExitCode()
		d.text += string(exit.Stderr)
	} else if err != nil {
		t.Fatal(err)
	}
	var all []found
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("%v\n%s", err, d.text)
	}
	problems := 0
	for _, f := range all {
		d.byCheck[f.Check] = append(d.byCheck[f.Check], f)
		if f.Level == "problem" {
			problems++
		}
	}
	if (d.code == 0) != (problems == 0) || d.code > 1 {
		t.Errorf("it ends with %d after %d problems", d.code, problems)
	}
	return d
}

// says wants a finding of a check, with a level and words of what was found or is to be done.
func (d diagnosis) says(t *testing.T, check, level string, words ...string) {
	t.Helper()
	if !slices.ContainsFunc(d.byCheck[check], func(f found) bool {
		return f.Level == level && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(f.Found+" "+f.Do, w) })
	}) {
		t.Errorf("the doctor says of %q no %s with %q\n%s", check, level, words, d.text)
	}
}

// comes examines until a check finds something with a level: a server says that it runs with its next sign of life, and on a busy machine an answer
// of the database or of Redis may be slow for a while, which is a finding of its own.
func comes(t *testing.T, check, level string, installation ...string) (d diagnosis) {
	t.Helper()
	await(t, fmt.Sprintf("the doctor finds of %q something that is %s", check, level), func() bool {
		d = examine(t, installation...)
		return slices.ContainsFunc(d.byCheck[check], func(f found) bool { return f.Level == level })
	})
	return d
}

func TestD07D16TheDoctorOnPostgreSQL(t *testing.T) {
	t.Parallel()
	in := onPostgreSQL(t, "fsync=on", "full_page_writes=on", "max_connections=60")
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "sslmode=disable", "sslmode=disable&pool_max_conns=10", 1)) // whatever the machine has
	if err := os.WriteFile(in.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := serveBy(t, in.config, in.dev, "http")
	at := []string{"-config", in.config}
	comes(t, "servers", "ok", at...)
	d := comes(t, "database", "ok", at...)
	if d.code != 0 {
		t.Errorf("a sound installation\n%s", d.text)
	}
	d.says(t, "database", "ok")
	d.says(t, "postgresql", "ok", "PostgreSQL ")
	d.says(t, "postgresql", "note", "archive_mode is off")
	d.says(t, "replication", "note", "no standby is connected")
	d.says(t, "clock", "ok")
	d.says(t, "redis", "note", "redis.addresses")
	d.says(t, "servers", "ok", "runs since")
	d.says(t, "signing keys", "ok", "follows")
	d.says(t, "feed", "note", "admin.socket")

	sql := func(database string, statements ...string) {
		t.Helper()
		for _, q := range statements {
			if _, err := in.pg.SQL(t.Context(), database, q); err != nil {
				t.Fatal(err)
			}
		}
	}
	standby, err := in.pg.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	examine(t, at...).says(t, "replication", "note", "may not see", "GRANT pg_monitor TO authsvc")
	sql("postgres", `GRANT pg_monitor TO authsvc`)
	examine(t, at...).says(t, "replication", "ok", "a failover loses nothing")
	sql("postgres", `ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
	await(t, "the standby is asynchronous", func() bool {
		state, err := in.pg.SQL(t.Context(), "postgres", `SELECT sync_state FROM pg_stat_replication`)
		return err == nil && state == "async"
	})
	d = examine(t, at...)
	d.says(t, "replication", "warning", "a failover loses the newest ones", "synchronous_standby_names = 'ANY 1 (*)'")
	if d.code != 0 {
		t.Errorf("a warning is no problem\n%s", d.text)
	}

	// What a server's clock says, driven by rows of servers that are not there.
	row := func(id string, skew string) string {
		return fmt.Sprintf(`INSERT INTO instances SELECT '%s', 'elsewhere', 'v0', t, t, t + %s, epoch, 0, 0 FROM installation,
			(SELECT (extract(epoch FROM now()) * 1000000)::bigint + 60000000 AS t) AS n`, id, skew)
	}
	sql("authsvc", row("slow", "-3000000"), row("fast", "3600000000"))
	d = examine(t, at...)
	d.says(t, "servers", "warning", "server slow", "behind the database's", "NTP")
	d.says(t, "servers", "problem", "server fast", "1h0m0s ahead of the database's")
	d.says(t, "servers", "note", "different releases", "v0")
	d.says(t, "connections", "ok", "3 servers", "at most 36")
	sql("authsvc", row("third", "0"))
	examine(t, at...).says(t, "connections", "warning", "4 servers", "no room for one server more", "pool_max_conns")
	sql("authsvc", row("fourth", "0"))
	examine(t, at...).says(t, "connections", "problem", "5 servers", "max_connections")
	sql("authsvc", `DELETE FROM instances WHERE host = 'elsewhere'`)
	if d := examine(t, at...); d.code != 0 {
		t.Errorf("the twin, without them\n%s", d.text)
	}

	// Commits that hang do not hang the doctor.
	s.stop(t)
	sql("postgres", `ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'`, `SELECT pg_reload_conf()`)
	if err := standby.Stop(); err != nil {
		t.Fatal(err)
	}
	await(t, "the standby is gone", func() bool {
		n, err := in.pg.SQL(t.Context(), "postgres", `SELECT count(*) FROM pg_stat_replication`)
		return err == nil && n == "0"
	})
	d = examine(t, at...)
	d.says(t, "replication", "problem", "no standby is connected", "ALTER SYSTEM SET synchronous_standby_names")
	d.says(t, "servers", "note", "no server runs")

	if err := os.WriteFile(in.password, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	examine(t, at...).says(t, "database", "problem", "database.password_file")
	if err := in.pg.Stop(); err != nil {
		t.Fatal(err)
	}
	d = examine(t, at...)
	d.says(t, "database", "problem", "database.url: cannot reach")
	d.says(t, "configuration", "ok")
	d.says(t, "certificates", "ok")
}

func TestTheDoctorKnowsAServerThatForgets(t *testing.T) {
	t.Parallel()
	in := onPostgreSQL(t) // which runs as tests are run: fast, and for nothing that has to last
	s, _ := serveBy(t, in.config, in.dev, "http")
	s.stop(t)
	d := examine(t, "-config", in.config)
	d.says(t, "postgresql", "problem", "fsync is off", "set fsync = on")
	d.says(t, "postgresql", "problem", "full_page_writes is off")
	if _, err := in.pg.SQL(t.Context(), "authsvc", `UPDATE schema_version SET version = 99`); err != nil {
		t.Fatal(err)
	}
	examine(t, "-config", in.config).says(t, "database", "problem", "newer than this program", "use the release that the servers run")
}

// TestD10TheDoctorOfADatabaseThatIsSilent has one that takes connections, and says nothing.
func TestD10TheDoctorOfADatabaseThatIsSilent(t *testing.T) {
	t.Parallel()
	dir, _ := stopped(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	config := configure(t, dir, plain)
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	before, after, _ := strings.Cut(string(text), "database: {")
	_, after, _ = strings.Cut(after, "}\n")
	if err := os.WriteFile(config, fmt.Appendf(nil, "%sdatabase: {url: \"postgres://authsvc@%s/authsvc?sslmode=disable\"}\n%s", before, l.Addr(), after), 0o600); err != nil {
		t.Fatal(err)
	}
	d := examine(t, "-config", config)
	d.says(t, "database", "problem")
	d.says(t, "configuration", "ok")
	d.says(t, "certificates", "ok")
	if len(d.byCheck["signing keys"]) > 0 {
		t.Errorf("what needs the database was looked at\n%s", d.text)
	}
}

func TestD18TheDoctorOnSQLite(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "40m")
	s := start(t, dir)
	s.login(t)
	d := comes(t, "servers", "ok", "-dir", dir)
	d.says(t, "disk", "problem", "database.path", "make room")
	d.says(t, "servers", "ok", "runs since")
	d.says(t, "feed", "ok", "0 services")
	w := watch(t, s, nil)
	w.ready(t)
	examine(t, "-dir", dir).says(t, "feed", "ok", "1 services")
	d.says(t, "refresh keys", "ok", "[1]")
	if len(d.byCheck["replication"])+len(d.byCheck["clock"]) > 0 {
		t.Errorf("SQLite has neither\n%s", d.text)
	}
	s.kill(t) // without a farewell

	db := database(t, dir)
	run(t, db, `UPDATE instances SET seen_at = seen_at - 60000000`)
	examine(t, "-dir", dir).says(t, "servers", "warning", "did not take its leave")
	day := "86400000000"
	run(t, db, `UPDATE signing_keys SET activated_at = activated_at - 40 * `+day+`, published_at = published_at - 40 * `+day)
	examine(t, "-dir", dir).says(t, "signing keys", "warning", "was to follow", "authsvc keys rotate")
	run(t, db, `DELETE FROM signing_keys WHERE state = 'pending'`)
	examine(t, "-dir", dir).says(t, "signing keys", "warning", "no pending signing key")
	run(t, db, `INSERT INTO pending_ends VALUES ('all', '', 1, 'operator')`)
	run(t, db, `INSERT INTO revocations (kind, id, not_before, expires_at) VALUES ('jti', 'a', 0, 1), ('jti', 'b', 0, 1)`)
	d = examine(t, "-dir", dir)
	d.says(t, "cleaning", "warning", "cut-offs are still being carried out")
	d.says(t, "cleaning", "warning", "1 entries of the revocation log")

	put := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	get := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	kek, refresh := get("kek.json"), get("refresh.json")
	key := strings.Repeat("k", 42) + "A"
	put("kek.json", strings.Replace(kek, "[", `[{"id": "new", "key": "`+key+`"}, `, 1))
	examine(t, "-dir", dir).says(t, "signing keys", "warning", "its first key has not sealed", "authsvc keys rewrap")
	put("kek.json", `{"keys": [{"id": "new", "key": "`+key+`"}]}`)
	examine(t, "-dir", dir).says(t, "signing keys", "problem", "secrets.key_encryption_keys_file", "put the key-encryption key that sealed it back")
	put("kek.json", kek)
	put("refresh.json", `{"keys": [{"id": 7, "key": "`+key+`"}]}`)
	examine(t, "-dir", dir).says(t, "refresh keys", "problem", "[1]", `"gone": true`)
	put("refresh.json", refresh)
	examine(t, "-dir", dir).says(t, "refresh keys", "ok") // the twin

	settings := configure(t, dir, plain)
	cert, pairKey, _ := certificate(t, dir)
	text := get("authsvc.yaml")
	put("authsvc.yaml", strings.Replace(text, `http: {address: "127.0.0.1:0"}`, fmt.Sprintf(`http: {address: "127.0.0.1:0", tls: {cert_file: %q, key_file: %q}}`, cert, pairKey), 1))
	d = examine(t, "-config", settings)
	d.says(t, "certificates", "problem", "http.tls", "renew it") // in an hour
	put("authsvc.yaml", strings.Replace(get("authsvc.yaml"), cert, cert+"x", 1))
	d = examine(t, "-config", settings)
	d.says(t, "certificates", "problem", "http.tls", "cert.pemx")
	d.says(t, "configuration", "problem", "cert.pemx")
	put("authsvc.yaml", text+"surprise: 1\n")
	if out, err := command("", "doctor", "-config", settings); err == nil || !strings.Contains(out, "surprise") {
		t.Errorf("an unknown setting: %q, %v", out, err)
	}
}

func TestD01TheDoctorOnRedis(t *testing.T) {
	t.Parallel()
	r, err := redistest.Start(t.Context(), "user authsvc on >horse-battery-staple ~authsvc:* &authsvc:* -@all +eval +evalsha +get +set +del +time +publish +subscribe +ping",
		"user mean on >horse-battery-staple ~authsvc:* &authsvc:* -@all +get +set +ping")
	if errors.Is(err, redistest.ErrMissing) {
		lacking(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	dir, _ := stopped(t)
	file := filepath.Join(dir, "redis-password")
	password := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	as := func(user, level string) diagnosis {
		t.Helper()
		return comes(t, "redis", level, "-config", configure(t, dir, plain+fmt.Sprintf("redis: {addresses: [%q], username: %s, password_file: %q}\n", r.Address(), user, file)))
	}
	password("horse-battery-staple")
	as("authsvc", "ok").says(t, "redis", "ok", "all that it is asked for")
	as("mean", "problem").says(t, "redis", "problem", "redis.")
	password("wrong")
	d := as("authsvc", "problem")
	d.says(t, "redis", "problem", "redis.password_file")
	if strings.Contains(d.text, "wrong") || strings.Contains(d.text, "staple") {
		t.Errorf("a password stands in %s", d.text)
	}
	password("horse-battery-staple")
	if err := r.Pause(); err != nil {
		t.Fatal(err)
	}
	as("authsvc", "warning").says(t, "redis", "warning", "away")
	if err := r.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	as("authsvc", "warning").says(t, "redis", "warning", "away")
}
