package sqlstore_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	process "os/exec"
	"os/user"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authsvc/authsvc/internal/store/machine"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// bouncer is a PgBouncer before the server of all tests, with a database and a user of its own behind it.
type bouncer struct {
	name string // of its database and its user
	port int
	file string
	cmd  *process.Cmd
}

// passing is what PgBouncer is told to let connections ask for, and does not pass on.
const passing = "ignore_startup_parameters = statement_timeout,lock_timeout,idle_in_transaction_session_timeout,default_transaction_isolation"

// pooled starts PgBouncer. Without one on the machine the test is skipped, except where everything is required.
func pooled(t *testing.T, name string, settings ...string) *bouncer {
	t.Helper()
	schema(t) // skips where there is no PostgreSQL
	path, err := process.LookPath("pgbouncer")
	if err != nil {
		path = "/usr/sbin/pgbouncer"
	}
	if _, err := os.Stat(path); err != nil {
		if os.Getenv("AUTHSVC_TEST_REQUIRE") != "" {
			t.Fatal("PgBouncer is not installed (Debian: pgbouncer)")
		}
		t.Skip("PgBouncer is not installed (Debian: pgbouncer)")
	}
	name = fmt.Sprint(name, "_", schemas.Add(1))
	for _, q := range []string{`CREATE ROLE ` + name + ` LOGIN PASSWORD '` + pgtest.Password + `'`, `CREATE DATABASE ` + name + ` OWNER ` + name} {
		if _, err := server.SQL(t.Context(), "postgres", q); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 { // another process may take the port first
		if b := bounce(t, path, name, settings...); b != nil {
			return b
		}
	}
	t.Fatal("PgBouncer does not start")
	return nil
}

// bounce starts PgBouncer on a free port, and gives nil where it ends.
func bounce(t *testing.T, path, name string, settings ...string) *bouncer {
	t.Helper()
	port, err := machine.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	b := &bouncer{name: name, port: port}
	b.write(t, settings...)
	var said bytes.Buffer
	b.cmd = process.Command(path, b.file)
	b.cmd.Stderr = &said
	if os.Geteuid() == 0 { // which it refuses to be
		b.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: postgres(t)}
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = b.cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = b.cmd.Process.Kill()
		<-ended
	})
	failed := false
	until(t, "PgBouncer listens", func() bool {
		select {
		case <-ended:
			failed = true
			t.Log(said.String())
			return true
		default:
		}
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(b.port)))
		return err == nil && c.Close() == nil
	})
	if failed {
		return nil
	}
	return b
}

// postgres is the user as whom the server runs.
func postgres(t *testing.T) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

func (b *bouncer) write(t *testing.T, settings ...string) {
	t.Helper()
	var err error
	if b.file, err = server.Put("pgbouncer-"+b.name+".ini", fmt.Appendf(nil, "[databases]\n* = host=127.0.0.1 port=%d user=%s password='%s'\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"+
		"unix_socket_dir =\nauth_type = any\ndefault_pool_size = 40\n%s\n", server.Port, b.name, pgtest.Password, b.port, strings.Join(settings, "\n"))); err != nil {
		t.Fatal(err)
	}
}

func (b *bouncer) url(more ...string) string {
	return strings.Replace(server.URL(b.name, more...), fmt.Sprint(":", server.Port), fmt.Sprint(":", b.port), 1)
}

// opens gives what Open, OpenExisting and a Migrator say, which are of one mind.
func (b *bouncer) opens(t *testing.T, url string) error {
	t.Helper()
	o := sqlstore.Options{URL: url, Password: pgtest.Password, OpTimeout: time.Minute}
	db, err := sqlstore.Open(t.Context(), o)
	if err == nil {
		err = db.Close()
	}
	m, migrating := sqlstore.OpenMigrator(t.Context(), o)
	if migrating == nil {
		migrating = m.Close()
	}
	if (err == nil) != (migrating == nil) {
		t.Errorf("a server is told %v, and a migrator %v", err, migrating)
	}
	return err
}

// bound has the user's connections begin with what is not passed on.
func (b *bouncer) bound(t *testing.T) {
	t.Helper()
	for _, setting := range []string{"statement_timeout = '5s'", "lock_timeout = '5s'", "idle_in_transaction_session_timeout = '5s'"} {
		if _, err := server.SQL(t.Context(), "postgres", `ALTER ROLE `+b.name+` SET `+setting); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPoolerThatDropsWhatAConnectionAsksForIsNamed(t *testing.T) {
	t.Parallel()
	b := pooled(t, "refusing", "pool_mode = session")
	if err := b.opens(t, b.url()); err == nil || !strings.Contains(err.Error(), "is a pooler that does not pass on") {
		t.Errorf("of one that refuses it says %v", err)
	}
	b = pooled(t, "dropping", "pool_mode = session", passing)
	if err := b.opens(t, b.url()); err == nil || !strings.Contains(err.Error(), "statement_timeout did not arrive at PostgreSQL") {
		t.Errorf("of one that drops them it says %v", err)
	}
}

func TestAPoolerThatLendsByTransactionIsRefused(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"transaction", "statement"} {
		b := pooled(t, "by_"+mode, "pool_mode = "+mode, passing)
		b.bound(t)
		for _, url := range []string{b.url(), b.url("default_query_exec_mode=exec")} {
			if err := b.opens(t, url); err == nil || !strings.Contains(err.Error(), "pool_mode = session") {
				t.Errorf("%s: %v", url, err)
			}
		}
	}
}

func TestAPoolerThatLendsBySessionWorks(t *testing.T) {
	t.Parallel()
	b := pooled(t, "by_session", "pool_mode = session", passing)
	b.bound(t)
	if err := b.opens(t, b.url()); err != nil {
		t.Fatal(err)
	}
	here := undriven(t, sqlstore.Options{URL: b.url()})
	there := following(t, sqlstore.Options{URL: b.url()}, time.Hour, true)
	if err := here.Revocations().Append(t.Context(), revoke("pooled")); err != nil {
		t.Fatal(err)
	}
	until(t, "a hint brings it", func() bool { return there.refuses("pooled") })
	for range 3 {
		if _, err := here.Revocations().Changed(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// It is told otherwise while servers run: that is heard of.
	b.write(t, "pool_mode = transaction", passing)
	if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c, err := pgx.ParseConfig(b.url())
	if err != nil {
		t.Fatal(err)
	}
	c.Password, c.DefaultQueryExecMode = pgtest.Password, pgx.QueryExecModeSimpleProtocol
	other, err := pgx.ConnectConfig(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close(t.Context()) })
	until(t, "the log says that its connection is not its own", func() bool {
		_, began := other.Exec(t.Context(), `BEGIN`) // by what the log asked through last
		_, err := here.Revocations().Changed(t.Context())
		_, ended := other.Exec(t.Context(), `ROLLBACK`)
		if err := errors.Join(began, ended); err != nil {
			t.Fatal(err)
		}
		return err != nil && strings.Contains(err.Error(), "a pooler is in between")
	})
}

func TestWhatIsFoundInADatabaseIsSaid(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ there, want string }{
		"another program's versions, as texts":      {`CREATE TABLE schema_version (installed_rank int, version text); INSERT INTO schema_version VALUES (1, '1.2')`, "what is called schema_version there is another program's"},
		"another program's versions, without any":   {`CREATE TABLE schema_version (version int)`, "what is called schema_version there is another program's"},
		"another program's versions, one like ours": {`CREATE TABLE schema_version (version bigint); INSERT INTO schema_version VALUES (2)`, "what is called schema_version there is another program's"},
		"another program's versions, a view":        {`CREATE VIEW schema_version AS SELECT 2::bigint AS version`, "what is called schema_version there is another program's"},
		"another program's installation":            {`CREATE TABLE installation (a int)`, "what is called installation there is another program's"},
		"both of another program":                   {`CREATE TABLE installation (epoch text); CREATE TABLE schema_version (version bigint)`, "what is called schema_version there is another program's"},
		"another program's accounts":                {`CREATE TABLE accounts (a int)`, "what is called accounts there is another program's"},
		"another program's index":                   {`CREATE TABLE t (a int); CREATE INDEX audit_time ON t (a)`, "what is called audit_time there is another program's"},
		"the twin, other names":                     {`CREATE TABLE notes (a int)`, ""},
	} {
		url := schema(t)
		_, in, _ := strings.Cut(url, "search_path=")
		if _, err := server.SQL(t.Context(), "postgres", `SET search_path = `+in+`; `+c.there); err != nil {
			t.Fatal(err)
		}
		o := sqlstore.Options{URL: url, Password: pgtest.Password, OpTimeout: time.Minute}
		for _, try := range []func() (interface{ Close() error }, error){
			func() (interface{ Close() error }, error) { return sqlstore.OpenMigrator(t.Context(), o) },
			func() (interface{ Close() error }, error) { return sqlstore.Open(t.Context(), o) },
			func() (interface{ Close() error }, error) { return sqlstore.OpenExisting(t.Context(), o) },
		} {
			db, err := try()
			if err == nil {
				err = db.Close()
			}
			if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, sqlstore.ErrNotOurs) || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%s: %v, want %q", name, err, c.want)
			}
		}
	}
}

func TestAUserWithoutARightIsToldWhich(t *testing.T) {
	t.Parallel()
	empty, full := schema(t), schema(t)
	open(t, sqlstore.Options{URL: full, Password: pgtest.Password, OpTimeout: time.Minute})
	guest, names := fmt.Sprint("guest_", schemas.Add(1)), make([]string, 2)
	for i, url := range []string{empty, full} {
		_, names[i], _ = strings.Cut(url, "search_path=")
	}
	if _, err := server.SQL(t.Context(), "postgres", fmt.Sprintf(`CREATE ROLE %s LOGIN PASSWORD '%s'; GRANT USAGE ON SCHEMA %s, %s TO %[1]s`, guest, pgtest.Password, names[0], names[1])); err != nil {
		t.Fatal(err)
	}
	tries := func(url string) (opened, existing, up error) {
		o := sqlstore.Options{URL: strings.Replace(url, "postgres@", guest+"@", 1), Password: pgtest.Password, OpTimeout: time.Minute}
		db, opened := sqlstore.Open(t.Context(), o)
		if opened == nil {
			opened = db.Close()
		}
		if db, existing = sqlstore.OpenExisting(t.Context(), o); existing == nil {
			existing = db.Close()
		}
		m, up := sqlstore.OpenMigrator(t.Context(), o)
		if up == nil {
			up = errors.Join(m.Up(t.Context(), nil), m.Close())
		}
		return opened, existing, up
	}
	says := func(url, right string) {
		t.Helper()
		opened, existing, up := tries(url)
		for what, err := range map[string]error{"Open": opened, "OpenExisting": existing, "migrate up": up} {
			if err == nil || !strings.HasPrefix(err.Error(), "database.url: ") || !strings.Contains(err.Error(), right) {
				t.Errorf("%s: %v, want %q", what, err, right)
			}
		}
	}
	says(empty, fmt.Sprintf(`GRANT CREATE ON SCHEMA "%s" TO "%s"`, names[0], guest))
	says(full, fmt.Sprintf(`GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "%s" TO "%s"`, names[1], guest))
	for i, grant := range []string{`CREATE ON SCHEMA `, `SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA `} { // the twins
		if _, err := server.SQL(t.Context(), "postgres", `GRANT `+grant+names[i]+` TO `+guest); err != nil {
			t.Fatal(err)
		}
	}
	for _, url := range []string{empty, full} {
		if opened, existing, up := tries(url); errors.Join(opened, existing, up) != nil {
			t.Error(opened, existing, up)
		}
	}
}

// TestSettingsOfTheUserDoNotMatter gives one user what others set for reasons of their own.
func TestSettingsOfTheUserDoNotMatter(t *testing.T) {
	t.Parallel()
	url := schema(t)
	_, name, _ := strings.Cut(url, "search_path=")
	odd := "odd_" + name
	var text strings.Builder
	fmt.Fprintf(&text, `CREATE ROLE %s LOGIN PASSWORD '%s'; GRANT ALL ON SCHEMA %s TO %[1]s;`, odd, pgtest.Password, name)
	for _, setting := range []string{"statement_timeout = 1", "lock_timeout = 1", "idle_in_transaction_session_timeout = 1", "default_transaction_isolation = 'serializable'",
		"default_transaction_deferrable = on", "standard_conforming_strings = off", "jit = on", "jit_above_cost = 0", "timezone = 'Asia/Kathmandu'",
		"datestyle = 'German'", "intervalstyle = 'iso_8601'", "bytea_output = 'escape'", "client_encoding = 'LATIN1'", "extra_float_digits = -15",
		"plan_cache_mode = 'force_generic_plan'", "enable_indexscan = off", "quote_all_identifiers = on", "row_security = off", "search_path = 'nowhere'",
		"client_min_messages = 'debug1'"} {
		fmt.Fprintf(&text, `ALTER ROLE %s SET %s;`, odd, setting)
	}
	if _, err := server.SQL(t.Context(), "postgres", text.String()); err != nil {
		t.Fatal(err)
	}
	url = strings.Replace(url, "postgres@", odd+"@", 1)
	f := undriven(t, sqlstore.Options{URL: url})
	s := f.login(t, t)
	if out, err := f.Sessions().Redeem(t.Context(), present(s, 1)); err != nil || !out.Rotated || out.Session.SecretHash != s.SecretHash {
		t.Error(out, err)
	}
	r := following(t, sqlstore.Options{URL: url}, time.Hour, true)
	if err := f.Revocations().Append(t.Context(), revoke(`zurück\n'`)); err != nil {
		t.Fatal(err)
	}
	until(t, "a hint brings it", func() bool { return r.refuses(`zurück\n'`) })
	if skew := time.Since(must(f.Clock(t.Context()))); skew.Abs() > time.Minute {
		t.Errorf("its time is %v off", skew)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
