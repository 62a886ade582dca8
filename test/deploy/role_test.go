package deploy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/store/pgtest"
)

// TestTheRoleKeepsItsPasswordWhereNoneIsGiven: role.sql may be run again, and psql goes on where a command in backquotes fails.
func TestTheRoleKeepsItsPasswordWhereNoneIsGiven(t *testing.T) {
	t.Parallel()
	pg, err := pgtest.Start(t.Context())
	if errors.Is(err, pgtest.ErrMissing) {
		lacking(t, "PostgreSQL")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Close(); err != nil {
			t.Error(err)
		}
	})
	dir := t.TempDir()
	password, empty := filepath.Join(dir, "password"), filepath.Join(dir, "empty")
	for file, text := range map[string]string{password: "of the role\n", empty: ""} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	role := func(file string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "psql", "-X", "-h", "127.0.0.1", "-p", strconv.Itoa(pg.Port), "-U", "postgres", "-d", "postgres", "-f", root+"/deploy/postgresql/role.sql")
		cmd.Env = append(os.Environ(), "PGPASSWORD="+pgtest.Password, "AUTHSVC_PASSWORD_FILE="+file)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := role(password); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	hash := func() string {
		h, err := pg.SQL(t.Context(), "postgres", `SELECT rolpassword FROM pg_authid WHERE rolname = 'authsvc'`)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	made := hash()
	if !strings.HasPrefix(made, "SCRAM-SHA-256$") {
		t.Fatalf("the role's password is kept as %q", made)
	}
	for what, file := range map[string]string{"no variable": "", "no file": filepath.Join(dir, "none"), "an empty file": empty} {
		if out, err := role(file); err == nil || !strings.Contains(out, "AUTHSVC_PASSWORD_FILE names no file") {
			t.Errorf("%s: %v %s", what, err, out)
		}
		if h := hash(); h != made {
			t.Errorf("%s changed the password to %q", what, h)
		}
	}
	if out, err := role(password); err != nil || hash() == "" {
		t.Errorf("a second time: %v %s", err, out)
	}
}

// TestOthersMayEnterTheFolderOfTheSecrets: the service reads its configuration in /etc/authsvc, beside secrets that it cannot read.
func TestOthersMayEnterTheFolderOfTheSecrets(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("openssl"); err != nil {
		lacking(t, "openssl")
	}
	parent := filepath.Join(t.TempDir(), "authsvc")
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", "umask 022 && "+root+"/deploy/secrets.sh "+filepath.Join(parent, "secrets")).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for dir, want := range map[string]os.FileMode{parent: 0o755, filepath.Join(parent, "secrets"): 0o700} {
		if i, err := os.Stat(dir); err != nil || i.Mode().Perm() != want {
			t.Errorf("%s: %v %v, want %v", dir, i.Mode(), err, want)
		}
	}
}
