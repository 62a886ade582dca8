package deploy

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/authsvc/authsvc/test/ports"
)

// behind stands for all replicas, at both of their doors.
type behind struct {
	died   atomic.Int64  // calls that were read whole, and whose connection was cut
	speak  chan struct{} // lets the stream say something
	server *httptest.Server
}

func (b *behind) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	switch {
	case strings.HasSuffix(r.URL.Path, "/Die"):
		b.died.Add(1)
		panic(http.ErrAbortHandler)
	case strings.HasSuffix(r.URL.Path, "/WatchTrust"):
		w.Header().Set("Content-Type", "application/grpc")
		for {
			select {
			case <-r.Context().Done():
				return
			case <-b.speak:
			}
			_, _ = w.Write([]byte{0, 0, 0, 0, 0})
			w.(http.Flusher).Flush()
		}
	}
	if r.ProtoMajor == 2 {
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		defer w.Header().Set("Grpc-Status", "0")
	}
	_ = json.NewEncoder(w).Encode(r.Header)
}

// balancer runs nginx with compose/nginx.conf, and gives the URLs of REST and of gRPC.
func balancer(t *testing.T, dir string, b *behind) (rest, rpc string) {
	t.Helper()
	nginx, err := exec.LookPath("nginx")
	if err != nil {
		if nginx = "/usr/sbin/nginx"; !exists(nginx) {
			lacking(t, "nginx")
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "authsvc.crt"), filepath.Join(dir, "authsvc.key"))
	if err != nil {
		t.Fatal(err)
	}
	b.server = httptest.NewUnstartedServer(b)
	b.server.TLS, b.server.EnableHTTP2 = &tls.Config{Certificates: []tls.Certificate{pair}}, true
	b.server.StartTLS()
	t.Cleanup(b.server.Close)
	rest, rpc = fmt.Sprint("127.0.0.1:", ports.Hold(t)), fmt.Sprint("127.0.0.1:", ports.Hold(t))
	own := t.TempDir()
	words := []string{"listen 8443 ", "listen " + rest + " ", "listen 9443 ", "listen " + rpc + " ", "/run/secrets/", dir + "/", "/tmp/", own + "/"}
	for n := 1; n <= 3; n++ {
		words = append(words, fmt.Sprintf("authsvc-%d:8080", n), b.server.Listener.Addr().String(), fmt.Sprintf("authsvc-%d:9090", n), b.server.Listener.Addr().String())
	}
	conf := filepath.Join(own, "nginx.conf")
	if err := os.WriteFile(conf, []byte(strings.NewReplacer(words...).Replace(read(t, root+"/deploy/compose/nginx.conf"))), 0o600); err != nil {
		t.Fatal(err)
	}
	said, err := os.Create(filepath.Join(own, "said"))
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	cmd := exec.Command(nginx, "-p", own, "-e", "stderr", "-c", conf, "-g", "daemon off;")
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(read(t, said.Name()))
		}
	})
	deadline, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, address := range []string{rest, rpc} {
		for {
			conn, err := (&net.Dialer{}).DialContext(deadline, "tcp", address)
			if err == nil {
				_ = conn.Close()
				break
			}
			if deadline.Err() != nil {
				t.Fatalf("nginx does not listen: %v", err)
			}
		}
	}
	return "https://" + rest, "https://" + rpc
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestL11TheBalancerSaysWhoCallsAndRepeatsNothing sends through the balancer's own configuration what a stranger would.
func TestL11TheBalancerSaysWhoCallsAndRepeatsNothing(t *testing.T) {
	t.Parallel()
	dir, b := secrets(t), &behind{speak: make(chan struct{})}
	rest, rpc := balancer(t, dir, b)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(read(t, filepath.Join(dir, "ca.crt"))))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	var connections int
	send := func(method, url string, header http.Header) (int, string) {
		t.Helper()
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) {
			if !i.Reused {
				connections++
			}
		}})
		r, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		for name, values := range header {
			r.Header[name] = values
		}
		resp, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}

	// What a caller says about itself is overwritten; what it says about its token is passed on, which is the twin.
	stranger := http.Header{"X-Forwarded-For": {"203.0.113.9", "127.0.0.1"}, "X_Forwarded_For": {"203.0.113.9"}, "X-Request-Id": {"chosen-by-a-stranger"},
		"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Authorization": {"Bearer t"}}
	for name, url := range map[string]string{"REST": rest + "/v1/auth/login", "gRPC": rpc + "/authsvc.v1.AuthService/Login"} {
		code, text := send(http.MethodPost, url, stranger)
		var got http.Header
		if err := json.Unmarshal([]byte(text), &got); err != nil || code != http.StatusOK {
			t.Fatalf("%s: %d %s", name, code, text)
		}
		if from := strings.Join(got["X-Forwarded-For"], "|"); from != "127.0.0.1" || strings.Contains(text, "203.0.113.9") {
			t.Errorf("%s: the replica hears that the call is from %q: %s", name, from, text)
		}
		if id := got.Get("X-Request-Id"); name == "REST" && !regexp.MustCompile("^[0-9a-f]{32}$").MatchString(id) {
			t.Errorf("%s: the stranger chose the request's id: %q", name, id)
		}
		if got.Get("Authorization") != "Bearer t" {
			t.Errorf("%s: the token did not arrive: %s", name, text)
		}
	}
	for _, hidden := range []string{rest + "/forward-auth", rest + "//forward-auth", rest + "/%66orward-auth", rest + "/x/../forward-auth?audience=a", rpc + "/envoy.service.auth.v3.Authorization/Check"} {
		if code, text := send(http.MethodPost, hidden, nil); code != http.StatusNotFound {
			t.Errorf("%s is open to everybody: %d %s", hidden, code, text)
		}
	}
	outlives(t, client, rpc, b, func() int {
		before := connections
		for range 100 {
			if code, text := send(http.MethodPost, rpc+"/authsvc.v1.AuthService/Refresh", nil); code != http.StatusOK {
				t.Fatalf("%d %s", code, text)
			}
		}
		return connections - before
	})

	// A call that a replica has read may have been done: it is not sent to another. The twin: one that changes nothing is.
	for name, url := range map[string]string{"REST": rest + "/Die", "gRPC": rpc + "/authsvc.v1.AuthService/Die"} {
		before := b.died.Load()
		if code, text := send(http.MethodPost, url, nil); code < 500 || b.died.Load()-before != 1 {
			t.Errorf("%s: a POST was executed %d times: %d %s", name, b.died.Load()-before, code, text)
		}
	}
	before := b.died.Load()
	if code, text := send(http.MethodGet, rest+"/Die", nil); code != http.StatusServiceUnavailable || b.died.Load()-before < 2 || !strings.Contains(text, `"code":14`) {
		t.Errorf("a GET was tried %d times: %d %s", b.died.Load()-before, code, text)
	}
}

// outlives sends more calls than a connection may carry, by calls of which each sends a hundred, beside a stream on the same
// connection, which goes on.
func outlives(t *testing.T, client *http.Client, rpc string, b *behind, calls func() (connections int)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, rpc+"/authsvc.v1.TrustService/WatchTrust", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	began := make(chan struct{})
	go func() { b.speak <- struct{}{}; close(began) }()
	stream, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	<-began
	message := make([]byte, 5)
	if _, err := io.ReadFull(stream.Body, message); err != nil {
		t.Fatal(err)
	}
	connections := 0
	for range 11 { // in between it says something, as a feed does each second: nginx takes one that is silent for 15 s for dead
		connections += calls()
		select {
		case b.speak <- struct{}{}:
		case <-time.After(time.Minute):
			t.Fatal("the stream has gone")
		}
		if _, err := io.ReadFull(stream.Body, message); err != nil {
			t.Fatalf("a stream was cut with the connection's number of calls: %v", err)
		}
	}
	if connections == 0 {
		t.Error("1100 calls were taken from one connection: nothing bounds what it opens and resets")
	}
}
