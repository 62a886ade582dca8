package config_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/config"
)

// geheim are the variables that hold secrets.
var geheim = []string{"AUTHSVC_DATABASE_PASSWORD", "AUTHSVC_SECRETS_KEY_ENCRYPTION_KEYS", "AUTHSVC_SECRETS_REFRESH_KEYS"}

func TestR63SecretsOfTheEnvironmentAreReadAndNeverPrinted(t *testing.T) {
	t.Parallel()
	const word = "xyzzy-plugh"
	var environ []string
	for _, name := range geheim {
		environ = append(environ, name+"="+word)
	}
	c, err := config.Load("", environ)
	if err != nil {
		t.Fatal(err)
	}
	if string(c.Database.Password) != word || string(c.Secrets.KeyEncryptionKeys) != word || string(c.Secrets.RefreshKeys) != word {
		t.Error("a secret was not read")
	}
	var out bytes.Buffer
	if err := c.Print(&out); err != nil {
		t.Fatal(err)
	}
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := json.Marshal([]any{c.Database, c.Secrets})
	if err != nil {
		t.Fatal(err)
	}
	for how, text := range map[string]string{"print": out.String(), "JSON": string(asJSON), "the JSON of its parts": string(parts), "%v": fmt.Sprintf("%v", c),
		"%+v": fmt.Sprintf("%+v", c), "%#v": fmt.Sprintf("%#v", c), "%s": fmt.Sprintf("%s", c.Database), "%q": fmt.Sprintf("%q", c.Database.Password)} {
		if strings.Contains(text, word) {
			t.Errorf("%s shows a secret", how)
		}
	}
	c.Database.URL = "postgres://authsvc@127.0.0.1/" // the twin: what is no secret is shown
	if out.Reset(); c.Print(&out) != nil || !strings.Contains(out.String(), "postgres://authsvc@127.0.0.1/") {
		t.Errorf("printed:\n%s", out.String())
	}
	if err := c.Validate(); err == nil || strings.Contains(err.Error(), word) {
		t.Errorf("Validate: %v", err)
	}
}

func TestASecretDoesNotBelongIntoTheFile(t *testing.T) {
	t.Parallel()
	_, err := config.Load(file(t, "database:\n  password: xyzzy\nsecrets:\n  refresh_keys: xyzzy\n"), nil)
	if err == nil || strings.Contains(err.Error(), "xyzzy") {
		t.Fatalf("Load: %v", err)
	}
	for _, want := range []string{"line 2: database.password: does not belong into this file: name a file that holds it by password_file, or set AUTHSVC_DATABASE_PASSWORD",
		"line 4: secrets.refresh_keys: does not belong"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestASecretComesFromAFileOrTheEnvironment(t *testing.T) {
	t.Parallel()
	c, dir := sound(t)
	c.Database = config.Database{URL: "postgres://authsvc@127.0.0.1/authsvc", PasswordFile: write(t, filepath.Join(dir, "password"), "geheim", 0o600)}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	both := c
	both.Database.Password, both.Secrets.KeyEncryptionKeys, both.Secrets.RefreshKeys = "a", "b", "c"
	err := both.Validate()
	for _, want := range []string{"database.password_file: stands beside AUTHSVC_DATABASE_PASSWORD", "secrets.key_encryption_keys_file: stands beside AUTHSVC_SECRETS_KEY_ENCRYPTION_KEYS",
		"secrets.refresh_keys_file: stands beside AUTHSVC_SECRETS_REFRESH_KEYS"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("both: %v, want %q", err, want)
		}
	}
	both.Database.PasswordFile, both.Secrets.KeyEncryptionKeysFile, both.Secrets.RefreshKeysFile = "", "", ""
	if err := both.Validate(); err != nil {
		t.Errorf("the environment alone: %v", err)
	}
	both.Secrets.KeyEncryptionKeys = ""
	if err := both.Validate(); err == nil || !strings.Contains(err.Error(), "secrets.key_encryption_keys_file: is required, or AUTHSVC_SECRETS_KEY_ENCRYPTION_KEYS") {
		t.Errorf("neither: %v", err)
	}
}

func TestChangedNamesTheSettingsThatDiffer(t *testing.T) {
	t.Parallel()
	a, b := config.Default(), config.Default()
	if got := config.Changed(a, b); len(got) != 0 {
		t.Errorf("of the same: %v", got)
	}
	b.HTTP.Address, b.Log.Level, b.Limits.AccountFailures = "127.0.0.1:1", "debug", 3
	b.Gateway.CORSOrigins = []string{"https://a.example"}
	b.GRPC.TLS.CertFile = "c"
	want := []string{"grpc.tls.cert_file", "gateway.cors_origins", "http.address", "limits.account_failures", "log.level"}
	got := config.Changed(a, b)
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestLimitsAreCheckedEachByItsName(t *testing.T) {
	t.Parallel()
	c, _ := sound(t)
	c.Limits.AccountFailures, c.Limits.NetworkWindow = 0, 0
	err := c.Validate()
	if err == nil || err.Error() != "limits.account_failures: is 0; it must be 1 to 100\nlimits.network_window: is 0s; it must be 10s to 1h" {
		t.Errorf("Validate: %v", err)
	}
}
