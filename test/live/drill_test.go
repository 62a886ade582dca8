package live

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/test/ports"
	"github.com/authsvc/authsvc/verify"
)

// postgresDir makes a folder that PostgreSQL's user owns, and gives what a process needs to run as that user.
func postgresDir(t *testing.T) (string, *syscall.SysProcAttr) {
	t.Helper()
	dir, err := os.MkdirTemp("", "authsvc-drill-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if os.Geteuid() != 0 {
		return dir, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		lacking(t, "%v", pgtest.ErrMissing)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	return dir, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
}

// startHere is start with a gRPC door that a later start finds free again.
func startHere(t *testing.T, dir string) *server {
	t.Helper()
	return start(t, dir, "-grpc", fmt.Sprint("127.0.0.1:", ports.Hold(t)))
}

// documented gives the line of docs/backup.md that begins so, with what stands there for a place replaced.
func documented(t *testing.T, begin string, replacements ...string) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/backup.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, begin) {
			return strings.NewReplacer(replacements...).Replace(strings.TrimSpace(line))
		}
	}
	t.Fatalf("docs/backup.md has no line that begins with %q", begin)
	return ""
}

// TestD07TheDrillForPostgreSQL restores to the moment before a revocation, by the commands of docs/backup.md. The server of authsvc that
// runs through it and a verifier on its feed know what the database has forgotten.
func TestD07TheDrillForPostgreSQL(t *testing.T) {
	t.Parallel()
	dir, as := postgresDir(t)
	sh := func(line string) string {
		t.Helper()
		bin, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
		cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
		cmd.SysProcAttr, cmd.Dir = as, dir
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "PATH=") }), "PGPASSWORD="+pgtest.Password, "PGUSER=postgres",
			"PATH="+strings.Join(append(bin, os.Getenv("PATH")), ":"))
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", line, err, out)
		}
		return string(out)
	}
	archive := filepath.Join(dir, "archive")
	sh("mkdir " + archive)
	command := documented(t, "archive_command = ", "archive_command = ", "", "/srv/archive", archive)
	in := onPostgreSQL(t, "archive_mode=on", "archive_command="+strings.Trim(command, "'"))
	again := ports.Hold(t)
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	here := fmt.Sprintf("127.0.0.1:%d", in.pg.Port)
	text = []byte(strings.Replace(string(text), here, fmt.Sprintf("%s,127.0.0.1:%d", here, again), 1))
	if err := os.WriteFile(in.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := serveBy(t, in.config, in.dev, "http")
	in.furnish(t, s)
	sh(documented(t, "pg_basebackup ", "-h db.example.com -U backup", fmt.Sprintf("-h 127.0.0.1 -p %d -U postgres", in.pg.Port), "/srv/base/$(date +%F)", filepath.Join(dir, "base")))
	w := watch(t, s, nil)
	revoked, kept := s.login(t), s.login(t)
	w.ready(t)
	moment, err := in.pg.SQL(t.Context(), "postgres", `SELECT clock_timestamp()`)
	if err != nil {
		t.Fatal(err)
	}
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": revoked.text("refresh_token")}); a.code != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.code, a.raw)
	}
	await(t, "the verifier knows", func() bool { return errors.Is(w.says(t, revoked.text("access_token")), verify.ErrRevoked) })
	last, err := in.pg.SQL(t.Context(), "postgres", `SELECT pg_walfile_name(pg_switch_wal())`)
	if err != nil {
		t.Fatal(err)
	}
	await(t, "the archive has it", func() bool { _, err := os.Stat(filepath.Join(archive, last)); return err == nil })
	if err := in.pg.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := w.says(t, revoked.text("access_token")); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("while there is no database: %v", err)
	}

	script, err := os.ReadFile("../../deploy/postgresql/drill")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "drill"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // by its own process id, which pg_ctl reads; there is none if the drill failed
		cmd := exec.CommandContext(context.Background(), "sh", "-c", "for p in *work/data/postmaster.pid; do test ! -f $p || kill -INT $(head -n 1 $p) || exit 1; done")
		cmd.SysProcAttr, cmd.Dir = as, dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	drill := documented(t, "sudo -u postgres deploy/postgresql/drill ", "sudo -u postgres deploy/postgresql/drill", "./drill", "/srv/base/2026-11-21", "base", "/srv/archive", "archive",
		"2026-11-21 12:00:00+00", moment, "/var/lib/postgresql/drill", "work", "5433", strconv.Itoa(again))
	if out := sh(drill); !strings.Contains(out, "on timeline 2") {
		t.Errorf("the drill said %s", out)
	}
	// Debian keeps the configuration outside the data folder, so that a backup of it has none.
	sh("cp -a base bare && rm bare/postgresql.conf bare/pg_hba.conf bare/pg_ident.conf")
	if out := sh(strings.NewReplacer(" base ", " bare ", " work ", " barework ", strconv.Itoa(again), strconv.Itoa(ports.Hold(t))).Replace(drill)); !strings.Contains(out, "on timeline 2") {
		t.Errorf("the drill of a backup without configuration said %s", out)
	}
	if n := strings.TrimSpace(sh(fmt.Sprintf(`psql -X -A -t -h 127.0.0.1 -p %d -d authsvc -c "SELECT count(*) FROM sessions WHERE id = '%s'"`, again, revoked.text("session_id")))); n != "1" {
		t.Fatalf("the restored database has %s rows of a session from before the moment", n)
	}

	await(t, "the server works on the restored database", func() bool {
		return s.refresh(t, kept.text("refresh_token")).code == http.StatusOK
	})
	if a := s.refresh(t, revoked.text("refresh_token")); a.code != http.StatusUnauthorized {
		t.Errorf("D07 a refresh token that was revoked after the moment answered %d %s", a.code, a.raw)
	}
	if a := s.introspect(t, revoked.text("access_token")); a.json["active"] != false {
		t.Errorf("D07 a token that was revoked after the moment is introspected as %s", a.raw)
	}
	await(t, "the verifier follows, and the twin is good", func() bool {
		return w.says(t, kept.text("access_token")) == nil && w.says(t, s.login(t).text("access_token")) == nil
	})
	if err := w.says(t, revoked.text("access_token")); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("D07 the verifier says of what was revoked after the moment: %v", err)
	}
	fresh := watch(t, s, nil) // one that knew nothing
	fresh.ready(t)
	if err := fresh.says(t, revoked.text("access_token")); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("D07 a new verifier says of what was revoked after the moment: %v", err)
	}
	await(t, "the server has said which history it follows", func() bool { // it does with its next sign of life
		return slices.ContainsFunc(examine(t, "-config", in.config).byCheck["servers"], func(f found) bool { return f.Level == "ok" && strings.Contains(f.Found, "runs since") })
	})
	for _, begin := range []string{"authsvc revoke ", "authsvc keys revoke "} { // where no server was left
		operate(t, "", strings.Fields(documented(t, begin, "authsvc ", "", "/etc/authsvc/authsvc.yaml", in.config))...)
	}
	await(t, "nothing from before is good", func() bool { return s.introspect(t, kept.text("access_token")).json["active"] == false })
	if a := s.refresh(t, kept.text("refresh_token")); a.code != http.StatusUnauthorized {
		t.Errorf("after everything was cut off a refresh token answered %d %s", a.code, a.raw)
	}
}
