package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/config"
)

// sound gives a configuration that Validate accepts, with its files in a folder of the test's.
func sound(t *testing.T) (config.Config, string) {
	t.Helper()
	dir := t.TempDir()
	c := config.Default()
	c.Issuer = "https://auth.example.com"
	c.Database.Path = filepath.Join(dir, "authsvc.db")
	c.Secrets.KeyEncryptionKeysFile = write(t, filepath.Join(dir, "kek.json"), "{}", 0o600)
	c.Secrets.RefreshKeysFile = write(t, filepath.Join(dir, "refresh.json"), "{}", 0o400)
	return c, dir
}

func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// certificate writes a self-signed pair.
func certificate(t *testing.T, dir string) config.TLS {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return config.TLS{
		CertFile: write(t, filepath.Join(dir, "cert.pem"), text("CERTIFICATE", cert), 0o644),
		KeyFile:  write(t, filepath.Join(dir, "key.pem"), text("PRIVATE KEY", der), 0o600),
	}
}

func TestValidateAccepts(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(t *testing.T, c *config.Config, dir string)
	}{
		{"loopback without TLS", func(*testing.T, *config.Config, string) {}},
		{"an http issuer on loopback", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "http://127.0.0.1:8080" }},
		{"an issuer with a path", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "https://example.com/auth" }},
		{"every interface with TLS", func(t *testing.T, c *config.Config, dir string) {
			c.HTTP.TLS = certificate(t, dir)
			c.GRPC.TLS, c.HTTP.Address, c.GRPC.Address = c.HTTP.TLS, ":8443", "0.0.0.0:9443"
		}},
		{"port 0 three times", func(_ *testing.T, c *config.Config, _ string) {
			c.HTTP.Address, c.GRPC.Address, c.Ops.Address = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
		}},
		{"operators' doors where the network keeps others away", func(_ *testing.T, c *config.Config, _ string) { c.Ops = config.Ops{Address: ":9091", Exposed: true} }},
		{"a collector by its name", func(_ *testing.T, c *config.Config, _ string) { c.Telemetry.Endpoint = "otel.example.com:4317" }},
		{"profiles on loopback", func(_ *testing.T, c *config.Config, _ string) { c.Ops.PProf = true }},
		{"an admin socket in a folder that is to be made", func(_ *testing.T, c *config.Config, dir string) { c.Admin.Socket = dir + "/none/s" }},
		{"an admin socket in a folder of the service's own", func(_ *testing.T, c *config.Config, dir string) { c.Admin.Socket = dir + "/s" }},
		{"PostgreSQL with verified TLS and a password in a file", func(t *testing.T, c *config.Config, dir string) {
			c.Database = config.Database{URL: "postgres://authsvc@db.example.com/authsvc?sslmode=verify-full",
				PasswordFile: write(t, filepath.Join(dir, "password"), "geheim", 0o400)}
		}},
		{"PostgreSQL on loopback, trusting its user", func(_ *testing.T, c *config.Config, _ string) {
			c.Database = config.Database{URL: "postgres://authsvc@127.0.0.1:5433/authsvc"}
		}},
		{"exact origins and networks", func(_ *testing.T, c *config.Config, _ string) {
			c.Gateway.CORSOrigins = []string{"https://app.example.com", "http://localhost:3000"}
			c.Gateway.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, dir := sound(t)
			tt.change(t, &c, dir)
			if err := c.Validate(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestValidateRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(t *testing.T, c *config.Config, dir string)
		want   string
	}{
		{"no issuer", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "" }, "issuer: is required"},
		{"R11 an http issuer elsewhere", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "http://auth.example.com" }, "issuer: must begin with https://"},
		{"R11 a relative issuer", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "auth.example.com" }, "issuer: must be an absolute URL"},
		{"R11 an issuer with a slash at its end", func(_ *testing.T, c *config.Config, _ string) { c.Issuer += "/" }, "issuer: must not end with a slash"},
		{"R11 an issuer with a query", func(_ *testing.T, c *config.Config, _ string) { c.Issuer += "?a" }, "issuer: must not have a query"},
		{"an issuer with an empty query", func(_ *testing.T, c *config.Config, _ string) { c.Issuer += "?" }, "issuer: must not have a query"},
		{"an issuer with a fragment", func(_ *testing.T, c *config.Config, _ string) { c.Issuer += "#a" }, "issuer: must not have a query or a fragment"},
		{"an issuer with a user", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "https://u@example.com" }, "issuer: must not hold a user"},
		{"R11 an issuer in capitals", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "https://Example.com" }, "issuer: must be in lower case"},
		{"an issuer with a dotted path", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "https://example.com/a/../b" }, "issuer: is not in its normal form"},
		{"another scheme", func(_ *testing.T, c *config.Config, _ string) { c.Issuer = "ftp://example.com" }, "issuer: must begin with https://"},
		{"http for everyone without TLS", func(_ *testing.T, c *config.Config, _ string) { c.HTTP.Address = ":8080" }, "http.tls: is required"},
		{"grpc for everyone without TLS", func(_ *testing.T, c *config.Config, _ string) { c.GRPC.Address = "10.0.0.1:9090" }, "grpc.tls: is required"},
		{"operators' doors for everyone", func(_ *testing.T, c *config.Config, _ string) { c.Ops.Address = ":9091" }, "ops.address: must be a loopback address"},
		{"a collector without a name", func(_ *testing.T, c *config.Config, _ string) { c.Telemetry.Endpoint = ":4317" }, "telemetry.endpoint: must begin with the collector's name"},
		{"a collector without a port", func(_ *testing.T, c *config.Config, _ string) { c.Telemetry.Endpoint = "otel.example.com" }, "telemetry.endpoint: must be host:port"},
		{"a collector by its name, in the clear", func(_ *testing.T, c *config.Config, _ string) {
			c.Telemetry.Endpoint, c.Telemetry.Insecure = "otel.example.com:4317", true
		}, "telemetry.insecure: would send traces in the clear"},
		{"profiles for everyone", func(_ *testing.T, c *config.Config, _ string) {
			c.Ops = config.Ops{Address: ":9091", Exposed: true, PProf: true}
		}, "ops.pprof: is for a loopback address alone"},
		{"a listener by a host's name", func(_ *testing.T, c *config.Config, _ string) { c.HTTP.Address = "example.com:80" }, "http.address: the host must be"},
		{"an address without a port", func(_ *testing.T, c *config.Config, _ string) { c.HTTP.Address = "127.0.0.1" }, "http.address: must be host:port"},
		{"a port by its name", func(_ *testing.T, c *config.Config, _ string) { c.HTTP.Address = "127.0.0.1:http" }, "http.address: the port must be"},
		{"two listeners on one address", func(_ *testing.T, c *config.Config, _ string) { c.GRPC.Address = c.HTTP.Address }, "grpc.address: is the same as http.address"},
		{"a certificate without its key", func(t *testing.T, c *config.Config, dir string) { c.HTTP.TLS.CertFile = certificate(t, dir).CertFile }, "http.tls.key_file: is required"},
		{"a key without its certificate", func(t *testing.T, c *config.Config, dir string) { c.GRPC.TLS.KeyFile = certificate(t, dir).KeyFile }, "grpc.tls.cert_file: is required"},
		{"a certificate's key that others may read", func(t *testing.T, c *config.Config, dir string) {
			c.HTTP.TLS = certificate(t, dir)
			write(t, c.HTTP.TLS.KeyFile, "", 0o644)
		}, "http.tls.key_file: " /* path */},
		{"a certificate that is none", func(t *testing.T, c *config.Config, dir string) {
			c.HTTP.TLS = certificate(t, dir)
			write(t, c.HTTP.TLS.CertFile, "no", 0o644)
		}, "http.tls: cert_file and key_file are not"},
		{"PostgreSQL over a network without TLS", func(_ *testing.T, c *config.Config, _ string) {
			c.Database = config.Database{URL: "postgres://authsvc@db.example.com/authsvc"}
		}, "database.url: must say sslmode=verify-full"},
		{"a password in the URL", func(_ *testing.T, c *config.Config, _ string) {
			c.Database = config.Database{URL: "postgres://authsvc:geheim@127.0.0.1/authsvc"}
		}, "database.url: holds a password"},
		{"two databases", func(_ *testing.T, c *config.Config, _ string) {
			c.Database.URL = "postgres://authsvc@127.0.0.1/authsvc"
		},
			"database.url: stands beside database.path"},
		{"a password without its URL", func(t *testing.T, c *config.Config, dir string) {
			c.Database.PasswordFile = write(t, filepath.Join(dir, "password"), "geheim", 0o600)
		}, "database.password_file: is for database.url"},
		{"a password that others may read", func(t *testing.T, c *config.Config, dir string) {
			c.Database = config.Database{URL: "postgres://authsvc@127.0.0.1/authsvc", PasswordFile: write(t, filepath.Join(dir, "password"), "geheim", 0o644)}
		}, "database.password_file: "},
		{"no database", func(_ *testing.T, c *config.Config, _ string) { c.Database.Path = "" }, "database.path: is required"},
		{"a database in no folder", func(_ *testing.T, c *config.Config, dir string) { c.Database.Path = dir + "/none/a.db" }, "does not exist: create it"},
		{"a database in a folder for everyone", func(t *testing.T, c *config.Config, dir string) {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}, "a folder of the service's own, with mode 0700"},
		{"a database that is a folder", func(_ *testing.T, c *config.Config, dir string) { c.Database.Path = dir }, "is not a regular file"},
		{"an admin socket in no folder", func(_ *testing.T, c *config.Config, dir string) { c.Admin.Socket = dir + "/none/none/s" }, "admin.socket: the folder"},
		{"an admin socket in a folder for everyone", func(t *testing.T, c *config.Config, dir string) {
			c.Admin.Socket = dir + "/shared/s"
			if err := errors.Join(os.Mkdir(dir+"/shared", 0o700), os.Chmod(dir+"/shared", 0o777)); err != nil {
				t.Fatal(err)
			}
		}, "admin.socket: others may write to the folder"},
		{"an admin socket where a file is", func(_ *testing.T, c *config.Config, _ string) { c.Admin.Socket = c.Secrets.RefreshKeysFile }, "is there and is not a socket"},
		{"no key-encryption keys", func(_ *testing.T, c *config.Config, _ string) { c.Secrets.KeyEncryptionKeysFile = "" }, "secrets.key_encryption_keys_file: is required"},
		{"a key file that is missing", func(_ *testing.T, c *config.Config, dir string) { c.Secrets.RefreshKeysFile = dir + "/none" }, "none does not exist"},
		{"a key file that others may read", func(t *testing.T, c *config.Config, dir string) {
			write(t, c.Secrets.KeyEncryptionKeysFile, "{}", 0o640)
		}, "has mode 0640: make it 0600 or 0400"},
		{"one file for both kinds of keys", func(_ *testing.T, c *config.Config, _ string) {
			c.Secrets.RefreshKeysFile = c.Secrets.KeyEncryptionKeysFile
		}, "secrets.refresh_keys_file: must not be the file"},
		{"a network with host bits", func(_ *testing.T, c *config.Config, _ string) {
			c.Gateway.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}
		}, "gateway.trusted_proxies: 10.0.0.1/8 is not a network"},
		{"R57 trust in everyone", func(_ *testing.T, c *config.Config, _ string) {
			c.Gateway.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}
		}, "gateway.trusted_proxies: 0.0.0.0/0 would let"},
		{"G18 an origin with a path", func(_ *testing.T, c *config.Config, _ string) { c.Gateway.CORSOrigins = []string{"https://a.example/"} }, "gateway.cors_origins"},
		{"G18 every origin", func(_ *testing.T, c *config.Config, _ string) { c.Gateway.CORSOrigins = []string{"*"} }, "gateway.cors_origins"},
		{"G18 the null origin", func(_ *testing.T, c *config.Config, _ string) { c.Gateway.CORSOrigins = []string{"null"} }, "gateway.cors_origins"},
		{"G18 origins by pattern", func(_ *testing.T, c *config.Config, _ string) {
			c.Gateway.CORSOrigins = []string{"https://*.example.com"}
		}, "gateway.cors_origins"},
		{"a plain http origin", func(_ *testing.T, c *config.Config, _ string) { c.Gateway.CORSOrigins = []string{"http://a.example"} }, "gateway.cors_origins"},
		{"keys that rotate before they are known", func(_ *testing.T, c *config.Config, _ string) { c.Keys.Prepublish = time.Minute }, "keys: prepublish"},
		{"no session at all", func(_ *testing.T, c *config.Config, _ string) { c.Session.MaxPerAccount = 0 }, "session.max_per_account"},
		{"an unknown level", func(_ *testing.T, c *config.Config, _ string) { c.Log.Level = "loud" }, "log.level"},
		{"an unknown format", func(_ *testing.T, c *config.Config, _ string) { c.Log.Format = "xml" }, "log.format"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, dir := sound(t)
			tt.change(t, &c, dir)
			if err := c.Validate(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Validate: %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestValidateReportsAllProblemsTogether(t *testing.T) {
	t.Parallel()
	c := config.Default()
	c.Log.Level = ""
	err := c.Validate()
	if err == nil {
		t.Fatal("Validate took it")
	}
	for _, want := range []string{"issuer:", "database.path:", "secrets.key_encryption_keys_file:", "secrets.refresh_keys_file:", "log.level:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error lacks %q:\n%v", want, err)
		}
	}
}
