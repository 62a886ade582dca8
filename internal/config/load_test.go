package config_test

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/authsvc/authsvc/internal/config"
)

var samePrefix = cmpopts.EquateComparable(netip.Prefix{})

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "authsvc.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadReads(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		text    string
		environ []string
		change  func(*config.Config)
	}{
		{"an empty file as the defaults", "", nil, func(*config.Config) {}},
		{"a file of comments as the defaults", "# nothing\n", nil, func(*config.Config) {}},
		{"a lone setting", "issuer: https://a.example", nil, func(c *config.Config) { c.Issuer = "https://a.example" }},
		{"every kind of value", `
issuer: "https://a.example"
http: {address: "0.0.0.0:8443", tls: {cert_file: c.pem, key_file: k.pem}}
grpc:
  address: '[::1]:9000'
  reflection: true
gateway:
  trusted_proxies: [10.0.0.0/8, "fd00::/8"]
  cors_origins:
    - https://app.example.com
keys:
  rotate_every: 240h
session:
  max_per_account: 5
`, nil, func(c *config.Config) {
			c.Issuer = "https://a.example"
			c.HTTP = config.Listener{Address: "0.0.0.0:8443", TLS: config.TLS{CertFile: "c.pem", KeyFile: "k.pem"}}
			c.GRPC.Address, c.GRPC.Reflection = "[::1]:9000", true
			c.Gateway.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
			c.Gateway.CORSOrigins = []string{"https://app.example.com"}
			c.Keys.RotateEvery = 240 * time.Hour
			c.Session.MaxPerAccount = 5
		}},
		{"the environment above the file", "http: {address: 127.0.0.1:1}\nlog: {level: warn}",
			[]string{"AUTHSVC_HTTP_ADDRESS=127.0.0.1:2", "AUTHSVC_GRPC_ADDRESS=127.0.0.1:3", "AUTHSVC_GATEWAY_TRUSTED_PROXIES=10.0.0.0/8, 10.1.0.0/16",
				"AUTHSVC_OPS_PPROF=true", "AUTHSVC_KEYS_PREPUBLISH=30m", "PATH=/bin"},
			func(c *config.Config) {
				c.HTTP.Address, c.GRPC.Address, c.Log.Level, c.Ops.PProf = "127.0.0.1:2", "127.0.0.1:3", "warn", true
				c.Gateway.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.1.0.0/16")}
				c.Keys.Prepublish = 30 * time.Minute
			}},
		{"the environment of the tests not at all", "", []string{"AUTHSVC_TEST_ANYTHING=1"}, func(*config.Config) {}},
		{"a value with an equals sign whole", "", []string{"AUTHSVC_DATABASE_PATH=/a=b"}, func(c *config.Config) { c.Database.Path = "/a=b" }},
		{"a number where a text is asked for as text", "database: {path: 8080}", nil, func(c *config.Config) { c.Database.Path = "8080" }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := config.Load(file(t, tt.text), tt.environ)
			if err != nil {
				t.Fatal(err)
			}
			want := config.Default()
			tt.change(&want)
			if diff := cmp.Diff(want, got, samePrefix); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestLoadRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		text    string
		environ []string
		want    string
	}{
		{"an unknown key, by name and line", "issuer: a\nisuer: b", nil, "line 2: isuer: is not a setting"},
		{"an unknown key in a section, by its path", "http:\n  port: 80", nil, "line 2: http.port: is not a setting"},
		{"a key in the wrong case", "Issuer: a", nil, "Issuer: is not a setting"},
		{"a dotted key", "http.address: a", nil, "http.address: is not a setting"},
		{"an inlined struct by its Go name", "grpc: {listener: {address: a}}", nil, "grpc.listener: is not a setting"},
		{"a key that stands twice", "log: {level: info, level: debug}", nil, "line 1: log.level: stands twice"},
		{"a section that stands twice", "log:\n  level: info\nlog:\n  format: json", nil, "line 3: log: stands twice"},
		{"a key without a value", "issuer:", nil, "issuer: has no value"},
		{"a null", "issuer: null", nil, "issuer: has no value"},
		{"a value where a section is asked for", "http: 1", nil, "http: is a section"},
		{"a section where a value is asked for", "issuer: {a: b}", nil, "issuer: is not a section"},
		{"a list where a value is asked for", "issuer: [a]", nil, "issuer: is not a list"},
		{"a value where a list is asked for", "gateway: {cors_origins: a}", nil, "gateway.cors_origins: is a list"},
		{"a bad entry of a list, by its number", "gateway: {trusted_proxies: [10.0.0.0/8, x]}", nil, "gateway.trusted_proxies: entry 2: is not a network"},
		{"a bool that is another word", "grpc: {reflection: yes}", nil, "grpc.reflection: must be true or false"},
		{"a number that is none", "session: {max_per_account: many}", nil, "session.max_per_account: is not a whole number"},
		{"a number beyond its range", "session: {max_per_account: 99999999999999999999}", nil, "session.max_per_account: is not a whole number"},
		{"a duration without its unit", "keys: {prepublish: 30}", nil, "keys.prepublish: is not a duration"},
		{"an anchor", "issuer: &a b", nil, "issuer: must be a plain or quoted value"},
		{"an alias", "log: {level: &a info, format: *a}", nil, "log.format: must be a plain or quoted value"},
		{"a merge key", "log: {<<: {level: info}}", nil, "a key must be a plain name"},
		{"a tag", "issuer: !!binary aGk=", nil, "issuer: must be a plain or quoted value"},
		{"two documents", "issuer: a\n---\nissuer: b", nil, "more than one document"},
		{"a list as document", "- a", nil, "is not a mapping"},
		{"what is no YAML", "a: b: c", nil, "is not valid YAML"},
		{"a file beyond 64 KiB", strings.Repeat("# long\n", 10_000), nil, "is larger than 64 KiB"},
		{"an unknown variable", "", []string{"AUTHSVC_HTTP_PORT=x"}, "AUTHSVC_HTTP_PORT: is not a setting"},
		{"a variable that names a section", "", []string{"AUTHSVC_HTTP=x"}, "AUTHSVC_HTTP: is not a setting"},
		{"a variable with a bad value", "", []string{"AUTHSVC_KEYS_PREPUBLISH=soon"}, "AUTHSVC_KEYS_PREPUBLISH: is not a duration"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := config.Load(file(t, tt.text), tt.environ)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Load: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestLoadReportsAllProblemsTogether(t *testing.T) {
	t.Parallel()
	_, err := config.Load(file(t, "a: 1\nhttp: {b: 2}\ngrpc: {reflection: 3}"), []string{"AUTHSVC_C=4"})
	if err == nil {
		t.Fatal("Load took it")
	}
	for _, want := range []string{"a: is not", "http.b: is not", "grpc.reflection: must", "AUTHSVC_C: is not"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}

func TestR63LoadRepeatsNoValue(t *testing.T) {
	t.Parallel()
	const secret = "hunter2hunter2"
	for _, text := range []string{"issuer: [" + secret + "]", "keys: {prepublish: " + secret + "}", "session: {max_per_account: " + secret + "}",
		"gateway: {trusted_proxies: [" + secret + "]}", secret, "log: \"" + secret, "a: b: " + secret, "issuer: {" + secret, "- " + secret + "\n- {",
		"issuer: 'x\n  " + secret, "\t" + secret + ": 1", "log: {level: x, level: " + secret + "}", "issuer: *" + secret} {
		_, err := config.Load(file(t, text), nil)
		if err == nil {
			t.Errorf("%q was taken", text)
		} else if strings.Contains(err.Error(), secret) {
			t.Errorf("the error repeats the value: %v", err)
		}
	}
}

func TestLoadNamesAFileThatIsMissing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "none.yaml")
	if _, err := config.Load(path, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("Load: %v, want an error that names %s", err, path)
	}
}

func TestPrintedConfigurationLoadsAgain(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.Issuer = "https://a.example/\"<&>\\#: {é}"
	c.Gateway.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	c.Gateway.CORSOrigins = []string{"https://a.example", "- b"}
	c.GRPC.Reflection = true
	c.HTTP.TLS.KeyFile = "null"
	var b strings.Builder
	if err := c.Print(&b); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load(file(t, b.String()), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	if diff := cmp.Diff(c, got, samePrefix); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func FuzzLoad(f *testing.F) {
	for _, seed := range []string{"", "issuer: https://a.example", "http: {address: \"127.0.0.1:1\"}\ngrpc:\n  reflection: true\n",
		"gateway: {trusted_proxies: [10.0.0.0/8]}", "a: &a [*a]", "<<: {issuer: x}", "issuer: |\n  x\n", "? a\n: b", "---\n...\n---\n"} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "in.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(path, nil)
		if err != nil {
			return
		}
		var b strings.Builder
		if err := c.Print(&b); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := config.Load(path, nil)
		if err != nil {
			t.Fatalf("what Print wrote does not load: %v\n%s", err, b.String())
		}
		var second strings.Builder
		if err := again.Print(&second); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(b.String(), second.String()); diff != "" {
			t.Errorf("printing and loading changes the configuration (-want +got)\n%s", diff)
		}
	})
}

func TestTheConfigurationInJSONSaysTheSame(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.Issuer = "https://auth.example.com"
	c.Gateway.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "c.yaml") // JSON is YAML
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := config.Load(path, nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if diff := cmp.Diff(c, again, cmpopts.EquateEmpty(), samePrefix); diff != "" {
		t.Errorf("(-said in Go +read from JSON)\n%s", diff)
	}
}

func TestAPasswordInTheDatabasesURLIsNotPrinted(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://authsvc:geheim@127.0.0.1/authsvc":          "postgres://authsvc:redacted@127.0.0.1/authsvc",
		"postgres://authsvc@127.0.0.1/authsvc?password=geheim": "postgres://authsvc@127.0.0.1/authsvc?password=redacted",
		"host=127.0.0.1 password=geheim":                       "redacted",
		"postgres://authsvc:geheim%zz@127.0.0.1/authsvc":       "redacted",
		"postgres://authsvc@127.0.0.1/authsvc?sslmode=disable": "postgres://authsvc@127.0.0.1/authsvc?sslmode=disable",
	} {
		c := config.Default()
		c.Database.URL = url
		var b strings.Builder
		if err := c.Print(&b); err != nil {
			t.Fatal(err)
		}
		j, err := c.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), want) || strings.Contains(b.String(), "geheim") || !strings.Contains(string(j), want) || strings.Contains(string(j), "geheim") {
			t.Errorf("%s is printed as %s and %s", url, b.String(), j)
		}
	}
}
