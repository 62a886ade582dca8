package live

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestASetupOnPostgreSQLIsChecked has every secret come from the environment, and faults of the database found before a server starts.
func TestASetupOnPostgreSQLIsChecked(t *testing.T) {
	t.Parallel()
	in := onPostgreSQL(t)
	dir := filepath.Dir(in.config)
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	var environ []string
	bare := string(text)
	for name, file := range map[string]string{"AUTHSVC_DATABASE_PASSWORD": in.password, "AUTHSVC_SECRETS_KEY_ENCRYPTION_KEYS": filepath.Join(dir, "kek.json"),
		"AUTHSVC_SECRETS_REFRESH_KEYS": filepath.Join(dir, "refresh.json")} {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		environ = append(environ, name+"="+string(content))
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	bare = strings.Replace(bare, `, password_file: "`+in.password+`"`, "", 1)
	before, after, _ := strings.Cut(bare, "secrets: {")
	_, after, _ = strings.Cut(after, "}\n")
	if err := os.WriteFile(in.config, []byte(before+after), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(environ ...string) (string, error) {
		cmd := process("config", "check", "-config", in.config)
		cmd.Env = append(cmd.Env, environ...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := check(environ...); err != nil {
		t.Fatalf("before the first start it says %s, %v", out, err)
	}
	if out, err := check(); err == nil || !strings.Contains(out, "secrets.refresh_keys_file: is required, or AUTHSVC_SECRETS_REFRESH_KEYS") {
		t.Errorf("without its environment it says %s, %v", out, err)
	}
	s, said := serveIn(t, in.config, in.dev, "http", environ...)
	if out, err := check(environ...); err != nil {
		t.Errorf("beside the server it says %s, %v", out, err)
	}
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	await(t, "it reads its file again, and its environment", func() bool { return s.reloads(t, "ok") == 1 })
	if out, err := check(append(environ, "AUTHSVC_DATABASE_PASSWORD=geheim")...); err == nil || !strings.Contains(out, "database.password_file: ") || strings.Contains(out, "geheim") {
		t.Errorf("with a wrong password it says %s, %v", out, err)
	}
	wrong := `AUTHSVC_SECRETS_KEY_ENCRYPTION_KEYS={"keys": [{"id": "dev-1", "key": "` + strings.Repeat("w", 42) + `A"}]}`
	if out, err := check(append(environ, wrong)...); err == nil || !strings.Contains(out, "authsvc: secrets.key_encryption_keys_file: ") || strings.Contains(out, "www") {
		t.Errorf("with key-encryption keys of another installation it says %s, %v", out, err)
	}
	if _, err := in.pg.SQL(t.Context(), "authsvc", `INSERT INTO schema_steps (version, step) VALUES (1000, 0)`); err != nil {
		t.Fatal(err)
	}
	if out, err := check(environ...); err != nil {
		t.Errorf("on a newer schema that only adds it says %s, %v", out, err)
	}
	if _, err := in.pg.SQL(t.Context(), "authsvc", `UPDATE schema_version SET version = 1000`); err != nil { // the oldest program that may run
		t.Fatal(err)
	}
	if out, err := check(environ...); err == nil || !strings.Contains(out, "database.url: ") || !strings.Contains(out, "newer than this program") {
		t.Errorf("on a newer schema that takes something away it says %s, %v", out, err)
	}
	for _, pair := range environ {
		_, value, _ := strings.Cut(pair, "=")
		if strings.Contains(said.String(), strings.TrimSpace(value)) {
			t.Error("the log holds a secret of the environment")
		}
	}
	if _, err := os.Stat(in.password); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the password's file is there: %v", err)
	}
}
