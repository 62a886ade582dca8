package app_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/app"
	"github.com/authsvc/authsvc/internal/config"
)

// setup is a configuration in which nothing is wrong, with a certificate for names, from a day to another relative to today.
func setup(t *testing.T, from, to int, names ...string) config.Config {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, content []byte) string {
		path := filepath.Join(dir, name)
		if kind != "" {
			content = pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content})
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().AddDate(0, 0, from), NotAfter: time.Now().AddDate(0, 0, to), DNSNames: names}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.Issuer = "https://auth.example.com"
	c.HTTP.Address = "0.0.0.0:8443"
	c.HTTP.TLS = config.TLS{CertFile: write("cert.pem", "CERTIFICATE", der), KeyFile: write("key.pem", "PRIVATE KEY", key)}
	c.GRPC.Address, c.GRPC.TLS = "0.0.0.0:9443", c.HTTP.TLS
	c.Database.Path = filepath.Join(dir, "authsvc.db")
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c.Secrets.KeyEncryptionKeysFile = write("kek.json", "", fmt.Appendf(nil, `{"keys": [{"id": "a", "key": "%sA"}]}`, strings.Repeat("k", 42)))
	c.Secrets.RefreshKeysFile = write("refresh.json", "", fmt.Appendf(nil, `{"keys": [{"id": 1, "key": "%sA"}]}`, strings.Repeat("r", 42)))
	return c
}

func TestCheckSetupLooksAtCertificatesAsClientsDo(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		setup config.Config
		want  []string
	}{
		{"a good one", setup(t, -1, 30, "auth.example.com"), nil},
		{"one for all names of the domain", setup(t, -1, 30, "*.example.com"), nil},
		{"one that has expired", setup(t, -30, -1, "auth.example.com"), []string{"http.tls.cert_file: the certificate expired on ", "grpc.tls.cert_file: the certificate expired on "}},
		{"one of tomorrow", setup(t, 1, 30, "auth.example.com"), []string{"http.tls.cert_file: the certificate is good from ", "grpc.tls.cert_file: the certificate is good from "}},
		{"one for another name", setup(t, -1, 30, "login.example.com"), []string{"http.tls.cert_file: the certificate is not for the issuer's name: "}},
		{"one for another name, behind a proxy", proxied(setup(t, -1, 30, "authsvc.internal")), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var lines []string
			if err := app.CheckSetup(t.Context(), tt.setup, false); err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != len(tt.want) {
				t.Fatalf("said %q, want %q", lines, tt.want)
			}
			for i, want := range tt.want {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("said %q, want %q", lines[i], want)
				}
			}
			if err := app.CheckConfig(tt.setup); err != nil {
				t.Errorf("it keeps a server from starting: %v", err)
			}
		})
	}
}

func proxied(c config.Config) config.Config {
	c.Gateway.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	return c
}

func TestWhoeverComesWhileABackupIsRestoredIsToldOfThat(t *testing.T) {
	t.Parallel()
	c := setup(t, -1, 30, "auth.example.com")
	restore, err := app.Alone(c.Database)
	if err != nil {
		t.Fatal(err)
	}
	says := fmt.Sprintf("process %d restores a backup to %s", os.Getpid(), c.Database.Path)
	for what, http := range map[string][]string{"a second restore": nil, "a server": {"127.0.0.1:8080"}} {
		if _, err := app.Alone(c.Database, http...); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", what, err, says)
		}
	}
	if err := app.CheckSetup(t.Context(), c, false); err == nil || !strings.Contains(err.Error(), says) {
		t.Errorf("config check: %v", err)
	}
	if err := restore.Close(); err != nil {
		t.Fatal(err)
	}
	if err := app.CheckSetup(t.Context(), c, false); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestCheckSetupTellsItsOwnServerFromAnother(t *testing.T) {
	t.Parallel()
	c := setup(t, -1, 30, "auth.example.com")
	if err := app.CheckSetup(t.Context(), c, false); err != nil {
		t.Fatalf("before there was a server: %v", err)
	}
	lock, err := app.Alone(c.Database, c.HTTP.Address, "[::]:8443")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := app.Alone(c.Database, "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another server, process %d, serves", os.Getpid())) {
		t.Fatalf("a second server: %v", err)
	}
	if err := app.CheckSetup(t.Context(), c, false); err != nil {
		t.Errorf("beside its own server: %v", err)
	}
	for _, address := range []string{"127.0.0.1:8443", "127.0.0.1:0"} {
		other := c
		other.HTTP.Address = address
		if err := app.CheckSetup(t.Context(), other, false); err == nil || !strings.HasPrefix(err.Error(), "database.path: another server, process ") {
			t.Errorf("by a configuration with %s: %v", address, err)
		}
		if err := app.CheckSetup(t.Context(), other, true); err != nil {
			t.Errorf("offline: %v", err)
		}
	}
	if err := lock.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := app.Alone(c.Database, "127.0.0.1:1")
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	pg, err := app.Alone(config.Database{URL: "postgres://127.0.0.1/"})
	if err != nil || pg.Close() != nil {
		t.Errorf("with PostgreSQL: %v", err)
	}
}

func TestCheckSetupNamesTheDatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	const nobody = "127.0.0.1:1" // a port that is given to nobody who asks for any
	c := setup(t, -1, 30, "auth.example.com")
	c.Database = config.Database{URL: "postgres://authsvc@" + nobody + "/authsvc", Password: "geheim"}
	if err := app.CheckSetup(t.Context(), c, false); err == nil || !strings.HasPrefix(err.Error(), "database.url: cannot reach "+nobody) || strings.Contains(err.Error(), "geheim") {
		t.Errorf("it says %v", err)
	}
	if err := app.CheckSetup(t.Context(), c, true); err != nil {
		t.Errorf("offline: %v", err)
	}
}
