package rest_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/server/rest"
)

// listen starts the server on a free loopback port.
func listen(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rest.NewServer(open(t, nil), nil)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	return l.Addr().String()
}

// say sends raw bytes and gives the first answer, and whether the server then closed the connection.
func say(t *testing.T, addr, text string) (code int, header http.Header, closed bool) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, nil)
	if err != nil {
		return 0, nil, true
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return resp.StatusCode, resp.Header, true
	}
	if !resp.Close {
		return resp.StatusCode, resp.Header, false
	}
	_, err = reader.ReadByte()
	return resp.StatusCode, resp.Header, err != nil
}

func TestG13SmugglingAndUpgrades(t *testing.T) {
	t.Parallel()
	addr := listen(t)
	const head = "POST /v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
	tests := []struct {
		name, text string
		code       int
		closed     bool
	}{
		{"a plain request keeps the connection", head + "Content-Length: 2\r\n\r\n{}", 200, false},
		{"chunks end the connection", head + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 200, true},
		{"TE beside CL ends the connection before the smuggled request", head +
			"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", 200, true},
		{"two lengths", head + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, true},
		{"an unknown transfer encoding", head + "Transfer-Encoding: xchunked\r\n\r\n", 501, true},
		{"a preface of HTTP/2 without TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404, true},
		{"R58 a header list of 15 KiB is taken", head + "X: " + strings.Repeat("a", 15<<10) + "\r\nContent-Length: 2\r\n\r\n{}", 200, false},
		{"R58 a header list of 17 KiB is not", head + "X: " + strings.Repeat("a", 17<<10) + "\r\nContent-Length: 2\r\n\r\n{}", 431, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			code, _, closed := say(t, addr, tt.text)
			if code != tt.code || closed != tt.closed {
				t.Errorf("answered %d, closed %t; want %d, %t", code, closed, tt.code, tt.closed)
			}
		})
	}
	code, header, _ := say(t, addr, head+"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nContent-Length: 2\r\n\r\n{}")
	if code != 200 || header.Get("Upgrade") != "" {
		t.Errorf("an upgrade to h2c is answered %d %v, want it ignored", code, header)
	}
}

func TestR58LimitsAreSet(t *testing.T) {
	t.Parallel()
	plain := rest.NewServer(http.NotFoundHandler(), nil)
	if plain.Protocols.HTTP2() || plain.Protocols.UnencryptedHTTP2() || !plain.Protocols.HTTP1() {
		t.Errorf("without TLS the protocols are %s", plain.Protocols)
	}
	secure := rest.NewServer(http.NotFoundHandler(), &tls.Config{MinVersion: tls.VersionTLS12})
	if !secure.Protocols.HTTP2() || secure.Protocols.UnencryptedHTTP2() || secure.HTTP2.MaxConcurrentStreams != 128 {
		t.Errorf("with TLS the protocols are %s, the streams %d", secure.Protocols, secure.HTTP2.MaxConcurrentStreams)
	}
	for _, s := range []*http.Server{plain, secure} {
		if s.ReadHeaderTimeout <= 0 || s.ReadTimeout <= 0 || s.WriteTimeout < rest.MaxTimeout || s.IdleTimeout <= 0 {
			t.Errorf("a phase has no time: %v %v %v %v", s.ReadHeaderTimeout, s.ReadTimeout, s.WriteTimeout, s.IdleTimeout)
		}
	}
}

func TestHTTP2OverTLS(t *testing.T) {
	t.Parallel()
	donor := httptest.NewTLSServer(nil) // for its certificate, and a client that trusts it
	t.Cleanup(donor.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rest.NewServer(open(t, nil), &tls.Config{MinVersion: tls.VersionTLS12, Certificates: donor.TLS.Certificates})
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(l, "", "") }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-done
	})
	client := donor.Client()
	client.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	t.Cleanup(client.CloseIdleConnections)
	resp, err := client.Post("https://"+l.Addr().String()+"/v1/auth/login", "application/json", strings.NewReader(`{"username":"ann"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := fmt.Sprint(resp.ProtoMajor, " ", resp.StatusCode); got != "2 200" {
		t.Errorf("answered %s, want 2 200", got)
	}
}
