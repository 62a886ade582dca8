package live

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // tests look into the database file as a thief or a broken disk would
)

// speech is what a process says; it may be read while the process speaks.
type speech struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *speech) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *speech) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// await asks again and again until holds says yes; two minutes are patience, not a measurement.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// stopped makes a folder by serve -dev and stops the server, so that another may be started in it by a configuration.
func stopped(t *testing.T) (string, dev) {
	t.Helper()
	dir := t.TempDir()
	s := start(t, dir)
	s.stop(t)
	return dir, s.dev
}

// configure writes a configuration for the folder; settings is YAML that follows what every configuration needs.
func configure(t *testing.T, dir, settings string) string {
	t.Helper()
	issuer, err := os.ReadFile(filepath.Join(dir, "issuer"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "authsvc.yaml")
	text := fmt.Sprintf("issuer: %s\ndatabase: {path: %q}\nsecrets: {key_encryption_keys_file: %q, refresh_keys_file: %q}\n%s",
		issuer, filepath.Join(dir, "authsvc.db"), filepath.Join(dir, "kek.json"), filepath.Join(dir, "refresh.json"), settings)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// plain is the doors of a configuration without TLS.
const plain = "http: {address: \"127.0.0.1:0\"}\ngrpc: {address: \"127.0.0.1:0\"}\nops: {address: \"127.0.0.1:0\"}\n"

// serve runs serve -config in a folder of serve -dev. The server's URLs are of the schemes that it logged.
func serve(t *testing.T, dir string, d dev, settings, scheme string) (*server, *speech) {
	t.Helper()
	return serveBy(t, configure(t, dir, settings), d, scheme)
}

// serveBy runs serve -config with a file.
func serveBy(t *testing.T, config string, d dev, scheme string) (*server, *speech) {
	t.Helper()
	return serveIn(t, config, d, scheme)
}

// serveIn does so with more variables in its environment.
func serveIn(t *testing.T, config string, d dev, scheme string, environ ...string) (*server, *speech) {
	t.Helper()
	s, said := launch(t, config, d, environ...)
	s.serves(t, said, scheme)
	return s, said
}

// launch starts serve -config with a file, and does not wait for it.
func launch(t *testing.T, config string, d dev, environ ...string) (*server, *speech) {
	t.Helper()
	said := &speech{}
	s := &server{dev: d, out: said, exited: make(chan error, 1)}
	s.cmd = process("serve", "-config", config)
	s.cmd.Env = append(s.cmd.Env, environ...)
	s.cmd.Stdout, s.cmd.Stderr = said, said
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.exited <- s.cmd.Wait() }()
	t.Cleanup(func() { s.kill(t) })
	return s, said
}

// serves waits until serve -config is ready, and learns its addresses from what it says.
func (s *server) serves(t *testing.T, said *speech, scheme string) {
	t.Helper()
	await(t, "serve -config is ready", func() bool {
		select {
		case err := <-s.exited:
			s.exited <- err
			t.Fatalf("serve -config ended: %v\n%s", err, said)
		default:
		}
		for line := range strings.Lines(said.String()) {
			var l struct{ Msg, HTTP, GRPC, Ops string }
			if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "serving" {
				s.HTTP, s.GRPC, s.Ops = scheme+"://"+l.HTTP, l.GRPC, "http://"+l.Ops
				return s.probe("/readyz") == http.StatusOK
			}
		}
		return false
	})
}

// probe gives the status of an operators' endpoint, or 0 where there is no answer.
func (s *server) probe(path string) int {
	resp, err := http.Get(s.Ops + path)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// metric sums the samples of a metric whose line holds all the words.
func (s *server) metric(t *testing.T, name string, words ...string) (sum float64) {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(call(t, "GET", s.Ops+"/metrics", "", nil).raw))
next:
	for lines.Scan() {
		rest, found := strings.CutPrefix(lines.Text(), name)
		if !found || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, w := range words {
			if !strings.Contains(rest, w) {
				continue next
			}
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += v
	}
	return sum
}

// memory is the resident set of the process, in MiB.
func (s *server) memory(t *testing.T) int {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(content), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib >> 10
}

// command runs the command line beside the server.
func command(stdin string, args ...string) (string, error) {
	cmd := process(args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// operate is a command that must succeed.
func operate(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	out, err := command(stdin, args...)
	if err != nil {
		t.Fatalf("authsvc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// database opens the file beside the server; one connection, so that a lock can be held on it.
func database(t *testing.T, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "authsvc.db")+"?_pragma=busy_timeout(10000)")
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1)
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func run(t *testing.T, db *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := db.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

// text gives the one value that a query asks for.
func text(t *testing.T, db *sql.DB, query string, args ...any) (v string) {
	t.Helper()
	if err := db.QueryRow(query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// from gives a client whose connections come from another loopback address, and so, by the last but one byte, from
// another network as the throttle sees it.
func from(t *testing.T, ip string) *http.Client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	tr := &http.Transport{DialContext: d.DialContext, MaxIdleConnsPerHost: 16}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// say posts JSON to a path, as another person would.
func (s *server) say(t *testing.T, c *http.Client, path string, body any, header ...string) answer {
	t.Helper()
	raw, ok := body.(string)
	if !ok {
		content, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		raw = string(content)
	}
	a, err := again(t.Context(), answer.paused, func() (answer, error) {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.HTTP+path, strings.NewReader(raw))
		if err != nil {
			return answer{}, err
		}
		r.Header.Set("Content-Type", "application/json")
		for i := 0; i+1 < len(header); i += 2 {
			r.Header.Add(header[i], header[i+1])
		}
		return do(c, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func do(c *http.Client, r *http.Request) (a answer, err error) {
	resp, err := c.Do(r)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(resp.Body)
	a = answer{code: resp.StatusCode, header: resp.Header, raw: b.String()}
	_ = json.Unmarshal(b.Bytes(), &a.json)
	return a, err
}

// credentials is the body of a login.
func (s *server) credentials(username, password string) map[string]any {
	return map[string]any{"username": username, "password": password, "client_id": s.PublicClientID}
}

// reason is the stable word of an error.
func (a answer) reason() string {
	details, _ := a.json["details"].([]any)
	for _, d := range details {
		if m, ok := d.(map[string]any); ok {
			if r, ok := m["reason"].(string); ok {
				return r
			}
		}
	}
	return ""
}

// certificate writes a self-signed pair for 127.0.0.1 into the folder and gives a pool that trusts it.
func certificate(t *testing.T, dir string) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	return certificateFor(t, dir, time.Hour)
}

// certificateFor is one that is good for so long.
func certificateFor(t *testing.T, dir string, left time.Duration) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(left),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(parsed)
	return cert, key, pool
}

// secure serves with TLS on both public doors.
func secure(t *testing.T, dir string, d dev) (*server, *tls.Config) {
	t.Helper()
	cert, key, pool := certificate(t, dir)
	pair := fmt.Sprintf("tls: {cert_file: %q, key_file: %q}", cert, key)
	s, _ := serve(t, dir, d, fmt.Sprintf("http: {address: \"127.0.0.1:0\", %s}\ngrpc: {address: \"127.0.0.1:0\", %s}\nops: {address: \"127.0.0.1:0\"}\n", pair, pair), "https")
	return s, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, ServerName: "127.0.0.1"}
}
