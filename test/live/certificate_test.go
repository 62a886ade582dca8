package live

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// shown is the certificate that a door shows, by its hash, or nothing where the handshake fails.
func shown(addr string, pool *x509.CertPool) (sum [32]byte, ok bool) {
	conn, err := tls.Dial("tcp", addr, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, ServerName: "127.0.0.1"})
	if err != nil {
		return sum, false
	}
	defer conn.Close()
	return sha256.Sum256(conn.ConnectionState().PeerCertificates[0].Raw), true
}

// TestACertificateIsReadAgainWhenItsFilesChange replaces the pair under a running server: half of it changes nothing, the
// whole of it is shown to those who come next.
func TestACertificateIsReadAgainWhenItsFilesChange(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits until the server looks at its files again")
	}
	dir, d := stopped(t)
	s, conf := secure(t, dir, d)
	doors := map[string]string{"REST": strings.TrimPrefix(s.HTTP, "https://"), "gRPC": s.GRPC}
	old, ok := shown(doors["REST"], conf.RootCAs)
	if !ok {
		t.Fatal("no handshake with the first certificate")
	}
	certFile := filepath.Join(dir, "cert.pem")
	whole, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(certFile, whole[:len(whole)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	await(t, "the half-written file has been looked at", func() bool {
		for name, addr := range doors {
			if sum, ok := shown(addr, conf.RootCAs); !ok || sum != old {
				t.Fatalf("beside a half-written file %s shows another certificate, or none", name)
			}
		}
		return time.Since(began) > 6*time.Second // a look is due every 5 s
	})
	_, _, pool := certificate(t, dir)
	content, err := os.ReadFile(certFile)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	next := sha256.Sum256(block.Bytes)
	both := conf.RootCAs.Clone()
	both.AppendCertsFromPEM(content)
	for name, addr := range doors {
		await(t, name+" shows the new certificate", func() bool {
			sum, ok := shown(addr, both)
			if !ok || sum != old && sum != next {
				t.Fatalf("while the pair changes %s shows another certificate, or none", name)
			}
			return sum == next
		})
		if _, ok := shown(addr, pool); !ok {
			t.Errorf("who trusts the new certificate alone cannot connect to %s", name)
		}
		if _, ok := shown(addr, conf.RootCAs); ok {
			t.Errorf("%s still shows the old certificate", name)
		}
	}
}
