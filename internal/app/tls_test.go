package app_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/app"
	"github.com/authsvc/authsvc/internal/config"
)

// writePair writes a certificate with this serial number, and its key.
func writePair(t *testing.T, c config.TLS, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	public, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, c.CertFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: public}), serial)
	write(t, c.KeyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), serial)
}

// write writes a file with a time of its own.
func write(t *testing.T, name string, content []byte, at int64) {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, time.Time{}, time.Unix(at, 0)); err != nil {
		t.Fatal(err)
	}
}

// TestARenewedCertificateIsServed renews a pair while it is served, first with a file that is broken.
func TestARenewedCertificateIsServed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		pair := config.TLS{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
		writePair(t, pair, 1)
		var log bytes.Buffer
		conf, err := app.TLSConfig(pair, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range []struct {
			name   string
			change func()
			serial int64
			logged bool
		}{
			{"as it was at the start", func() {}, 1, false},
			{"a broken certificate leaves the old one, and is said", func() { write(t, pair.CertFile, []byte("half"), 2) }, 1, true},
			{"so does one that is gone", func() { _ = os.Remove(pair.CertFile) }, 1, true},
			{"a whole pair is served", func() { writePair(t, pair, 3) }, 3, false},
		} {
			step.change()
			<-time.After(6 * time.Second)
			log.Reset()
			got, err := conf.GetCertificate(&tls.ClientHelloInfo{})
			if err != nil {
				t.Fatal(err)
			}
			leaf, err := x509.ParseCertificate(got.Certificate[0])
			if err != nil {
				t.Fatal(err)
			}
			if leaf.SerialNumber.Int64() != step.serial || strings.Contains(log.String(), "level=ERROR") != step.logged {
				t.Errorf("%s: serial %v, log %q", step.name, leaf.SerialNumber, log.String())
			}
		}
	})
}
