package guard_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// TestR64TheTokenLeavesForItsOriginsAlone steers requests elsewhere by all that steers one. Beneath is a real transport, that tells
// where it would connect to.
func TestR64TheTokenLeavesForItsOriginsAlone(t *testing.T) {
	t.Parallel()
	var dialed string
	base := &http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
		dialed = address
		return nil, errors.New("as far as it goes")
	}}
	base.DialTLSContext = base.DialContext
	transport, err := sourceBy(t, numbered(300), nil).Transport(base, "https://invoice.example", "https://B\u00fccher.example:8443", "http://[::1]:80")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		url    url.URL
		host   string
		dialed string // empty: it must not be
	}{
		"its origin":                               {url.URL{Scheme: "https", Host: "invoice.example"}, "", "invoice.example:443"},
		"in capitals":                              {url.URL{Scheme: "https", Host: "INVOICE.Example"}, "", "INVOICE.Example:443"},
		"with the port":                            {url.URL{Scheme: "https", Host: "invoice.example:443"}, "", "invoice.example:443"},
		"with an empty port":                       {url.URL{Scheme: "https", Host: "invoice.example:"}, "", "invoice.example:443"},
		"with a user, whom a transport ignores":    {url.URL{Scheme: "https", Host: "invoice.example", User: url.UserPassword("evil.example", "x")}, "", "invoice.example:443"},
		"another port":                             {url.URL{Scheme: "https", Host: "invoice.example:8443"}, "", ""},
		"a port with a zero in front":              {url.URL{Scheme: "https", Host: "invoice.example:0443"}, "", ""},
		"a dot at the end":                         {url.URL{Scheme: "https", Host: "invoice.example."}, "", ""},
		"a scheme that is safer, and another port": {url.URL{Scheme: "https", Host: "[::1]"}, "", ""},
		"a capital that IDNA makes two letters":    {url.URL{Scheme: "https", Host: "\u0130nvoice.example"}, "", ""},
		"a letter that looks alike":                {url.URL{Scheme: "https", Host: "\u0456nvoice.example"}, "", ""},
		"a name in Unicode":                        {url.URL{Scheme: "https", Host: "b\u00fccher.example:8443"}, "", "xn--bcher-kva.example:8443"},
		"the same in punycode, which was not said": {url.URL{Scheme: "https", Host: "xn--bcher-kva.example:8443"}, "", ""},
		"IPv6":                                  {url.URL{Scheme: "http", Host: "[::1]"}, "", "[::1]:80"},
		"IPv6 with a zone":                      {url.URL{Scheme: "http", Host: "[::1%eth0]"}, "", ""},
		"IPv6 in other words":                   {url.URL{Scheme: "http", Host: "[0:0:0:0:0:0:0:1]"}, "", ""},
		"a host beside it that is the same":     {url.URL{Scheme: "https", Host: "invoice.example"}, "Invoice.example:443", "invoice.example:443"},
		"a host beside it that is another":      {url.URL{Scheme: "https", Host: "invoice.example"}, "evil.example", ""},
		"a host beside it at another port":      {url.URL{Scheme: "https", Host: "invoice.example"}, "invoice.example:8443", ""},
		"ours as the host beside another":       {url.URL{Scheme: "https", Host: "evil.example"}, "invoice.example", ""},
		"another in the request's line":         {url.URL{Scheme: "https", Host: "invoice.example", Opaque: "//evil.example/"}, "", ""},
		"no host":                               {url.URL{Scheme: "https", Path: "/"}, "invoice.example", ""},
		"a host that has a port and a user":     {url.URL{Scheme: "https", Host: "evil.example:1@invoice.example"}, "", ""},
		"a host that goes on behind a fragment": {url.URL{Scheme: "https", Host: "evil.example#.invoice.example"}, "", ""},
	} {
		dialed = ""
		content := &body{Reader: strings.NewReader("x")}
		r := (&http.Request{Method: http.MethodPost, URL: &c.url, Host: c.host, Header: http.Header{}, Body: content}).WithContext(t.Context())
		resp, err := transport.RoundTrip(r)
		if err == nil {
			_ = resp.Body.Close()
			t.Errorf("%s: answered", name)
		}
		if dialed != c.dialed || !content.closed || len(r.Header) > 0 {
			t.Errorf("%s: connects to %q, want %q: %v; body closed %v, header %v", name, dialed, c.dialed, err, content.closed, r.Header)
		}
	}
	content := &body{Reader: strings.NewReader("x")}
	if resp, err := transport.RoundTrip(&http.Request{Body: content}); err == nil || resp != nil || !content.closed {
		t.Errorf("without a URL: %v %v, body closed %v", resp, err, content.closed)
	}
}

// TestR64AReverseProxysCallerChoosesNoHost stands between callers and an origin of several hosts.
func TestR64AReverseProxysCallerChoosesNoHost(t *testing.T) {
	t.Parallel()
	var hosts []string
	origin := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { hosts = append(hosts, r.Host) }))
	t.Cleanup(origin.Close)
	at, err := url.Parse(origin.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport, err := sourceBy(t, numbered(300), nil).Transport(nil, origin.URL)
	if err != nil {
		t.Fatal(err)
	}
	quiet := slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	for _, c := range []struct {
		name  string
		proxy *httputil.ReverseProxy
		want  int
	}{
		{"one that passes the host on", &httputil.ReverseProxy{Transport: transport, ErrorLog: quiet,
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(at); r.Out.Host = r.In.Host }}, http.StatusBadGateway},
		{"the twin: one that does not", &httputil.ReverseProxy{Transport: transport, ErrorLog: quiet,
			Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(at) }}, http.StatusOK},
	} {
		w := httptest.NewRecorder()
		c.proxy.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "http://evil.example/", nil))
		if w.Code != c.want {
			t.Errorf("%s: got %d, want %d", c.name, w.Code, c.want)
		}
	}
	if len(hosts) != 1 || hosts[0] != at.Host {
		t.Errorf("the origin was asked for %q", hosts)
	}
}

// TestA07R63WhatHoldsASecretPrintsWithoutIt prints by every verb, as JSON and to logs, each alone and within something.
func TestA07R63WhatHoldsASecretPrintsWithoutIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, printWithoutSecrets)
}

func printWithoutSecrets(t *testing.T) {
	t.Helper()
	o := guard.TokenSourceOptions{URL: "http://127.0.0.1:1", ClientID: "svc", ClientSecret: "canary-secret", RefreshToken: guard.NewRefreshToken("canary-refresh")}
	source, err := guard.NewTokenSource(o)
	if err != nil {
		t.Fatal(err)
	}
	source.AskBy(&authority{answer: func(int, string) (int, string, error) { return 200, granted("canary-access", 300, "canary-next"), nil }})
	transport, err := source.Transport(handler(func(*http.Request) int { return http.StatusOK }), "https://orders.example")
	if err != nil {
		t.Fatal(err)
	}
	request, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://orders.example/", nil)
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Wait() // fmt reads what a renewal writes, where it is not asked to print
	if response.Request != request || request.Header.Get("Authorization") != "" {
		t.Errorf("the answer's request has the header %v", response.Request.Header)
	}
	fo := guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "canary-secret"}
	feed, err := guard.NewFeed(fo)
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.New(verify.Options{Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: feed, Revocations: feed})
	if err != nil {
		t.Fatal(err)
	}
	g := newGuard(t, guard.Options{Verifier: v, Feed: feed})
	withUser := o
	withUser.URL = "https://svc:canary@auth.example"
	malformed := o
	malformed.URL = "https://svc:canary@auth.example/%z"
	var noSource *guard.TokenSource
	var noFeed *guard.Feed
	for name, v := range map[string]any{
		"the options of a source": o, "one who holds a source": struct{ source *guard.TokenSource }{source}, "one who holds a feed": struct{ feed *guard.Feed }{feed},
		"a guard": g, "a pointer to them": &o, "with a user": withUser, "malformed": malformed, "a source": source, "its store": o.RefreshToken, "a transport": transport,
		"the options of a feed": fo, "a pointer to those": &fo, "a feed": feed, "no source": noSource, "no feed": noFeed, "an answer": response,
	} {
		var text strings.Builder
		for _, within := range []any{v, []any{v}, map[string]any{"a": v}, struct{ A any }{v}} {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%e"} {
				_, _ = fmt.Fprintf(&text, verb, within)
			}
			if encoded, err := json.Marshal(within); err == nil {
				text.Write(encoded)
			}
			slog.New(slog.NewTextHandler(&text, nil)).Info("x", "v", within)
			slog.New(slog.NewJSONHandler(&text, nil)).Info("x", "v", within)
		}
		if s := text.String(); strings.Contains(s, "canary") || strings.Contains(s, "63616e617279") || strings.Contains(s, "63616E617279") || strings.Contains(s, "Y2FuYXJ5") {
			t.Errorf("A07 R63 %s: %.2000s", name, s)
		}
	}
	for v, want := range map[any]string{
		source: `TokenSource{URL: "http://127.0.0.1:1", ClientID: "svc", secrets redacted}`,
		feed:   `Feed{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", secrets redacted}`,
	} {
		if got := fmt.Sprint(v); got != want {
			t.Errorf("prints %s", got)
		}
	}
}

// TestATLSConfigThatOthersUseToo offers h2, as gRPC and http.Transport write it into theirs.
func TestATLSConfigThatOthersUseToo(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, granted("at", 300, "")) }))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	for _, offered := range [][]string{nil, {"h2"}, {"h2", "http/1.1"}} {
		o := guard.TokenSourceOptions{URL: server.URL, ClientID: "svc", ClientSecret: sourceSecret, TLS: &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: trusting(server).RootCAs, NextProtos: offered}}
		s, err := guard.NewTokenSource(o)
		if err != nil {
			t.Fatal(err)
		}
		if token, err := s.Token(t.Context()); token != "at" || err != nil {
			t.Errorf("%q: %q %v", offered, token, err)
		}
		if len(o.TLS.NextProtos) != len(offered) {
			t.Errorf("the caller's own was changed to %q", o.TLS.NextProtos)
		}
	}
}

// TestR63ACertificateWritesNoLines has a server that nobody trusts, whose name holds a line break.
func TestR63ACertificateWritesNoLines(t *testing.T) {
	t.Parallel()
	for names, told := range map[string]bool{"orders.example": true, "a\nlevel=INFO msg=forged": false} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{names}, NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewUnstartedServer(http.NotFoundHandler())
		server.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
		server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
		server.StartTLS()
		t.Cleanup(server.Close)
		_, err = sourceAt(t, strings.Replace(server.URL, "127.0.0.1", "localhost", 1), nil).Token(t.Context())
		if reasonOf(t, err) != "unavailable" || strings.Contains(err.Error(), "forged") || strings.Contains(err.Error(), "x509") != told {
			t.Errorf("%q: %v", names, err)
		}
	}
}
