package guard_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/guard"
)

// What must come out nowhere.
const (
	sourceSecret  = "canary+secret/with = odd & letters"
	sourceRefresh = "rt1.canary-refresh-token"
)

// granted is a good answer; next is empty for a client's own token.
func granted(access string, seconds int, next string) string {
	if next != "" {
		next = fmt.Sprintf(`,"refresh_token":%q,"session_id":"s"`, next)
	}
	return fmt.Sprintf(`{"access_token":%q,"token_type":"Bearer","expires_in":%d,"scope":"a b"%s}`, access, seconds, next)
}

// statusOf is how the REST door says a fault.
func statusOf(reason string) string {
	return fmt.Sprintf(`{"code":16,"message":"no","details":[{"@type":"type.googleapis.com/google.rpc.RequestInfo","requestId":"r"},`+
		`{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":%q,"domain":"authsvc"}]}`, reason)
}

// sourceAt is a source of the client's own tokens, or with a refresh token of a session's.
func sourceAt(t testing.TB, url string, store guard.RefreshStore) *guard.TokenSource {
	t.Helper()
	s, err := guard.NewTokenSource(guard.TokenSourceOptions{URL: url, ClientID: "svc", ClientSecret: sourceSecret, RefreshToken: store})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// reasonOf is what an error of a source comes to, after a look for canaries.
func reasonOf(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	for e := err; e != nil; e = errors.Unwrap(e) {
		for _, canary := range []string{"canary", url.QueryEscape(sourceSecret), base64.StdEncoding.EncodeToString([]byte("svc:" + url.QueryEscape(sourceSecret)))} {
			if strings.Contains(e.Error(), canary) {
				t.Errorf("R63 A07 an error tells a secret: %v", e)
			}
		}
	}
	if len(err.Error()) > 1200 {
		t.Errorf("an error of %d bytes", len(err.Error()))
	}
	if errors.Is(err, guard.ErrTokenRefused) {
		return strings.TrimPrefix(strings.TrimPrefix(err.Error(), guard.ErrTokenRefused.Error()), ": ")
	}
	return "unavailable"
}

func TestTokenSourceAsksAsTheServerReads(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		o    guard.TokenSourceOptions
		path string
		want []string // path, content type, whether there is Basic, body
	}{
		"credentials": {guard.TokenSourceOptions{ClientSecret: sourceSecret}, "",
			[]string{"/oauth2/token", "application/x-www-form-urlencoded", "svc%3A1:" + url.QueryEscape(sourceSecret), "grant_type=client_credentials"}},
		"credentials, with resources and a scope, under a path": {guard.TokenSourceOptions{ClientSecret: "s", Scope: "a b", Resources: []string{"https://x/?a=b", "urn:y"}}, "/auth/",
			[]string{"/auth/oauth2/token", "application/x-www-form-urlencoded", "svc%3A1:s", "grant_type=client_credentials&resource=https%3A%2F%2Fx%2F%3Fa%3Db&resource=urn%3Ay&scope=a+b"}},
		"a public client's refresh token": {guard.TokenSourceOptions{RefreshToken: guard.NewRefreshToken(sourceRefresh)}, "",
			[]string{"/v1/auth/refresh", "application/json", "", `{"client_id":"svc:1","refresh_token":"` + sourceRefresh + `"}`}},
		"a confidential client's refresh token": {guard.TokenSourceOptions{ClientSecret: "s", Scope: "a", RefreshToken: guard.NewRefreshToken(sourceRefresh)}, "/auth",
			[]string{"/auth/v1/auth/refresh", "application/json", "svc%3A1:s", `{"client_id":"svc:1","refresh_token":"` + sourceRefresh + `","scope":"a"}`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				basic, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Authorization"), "Basic "))
				got = []string{r.Method + " " + r.RequestURI, r.Header.Get("Content-Type"), string(basic), string(body)}
				_, _ = io.WriteString(w, granted("at", 300, "next"))
			}))
			t.Cleanup(server.Close)
			c.o.URL, c.o.ClientID = server.URL+c.path, "svc:1"
			s, err := guard.NewTokenSource(c.o)
			if err != nil {
				t.Fatal(err)
			}
			if token, err := s.Token(t.Context()); token != "at" || err != nil {
				t.Errorf("%q %v", token, err)
			}
			c.want[0] = "POST " + c.want[0]
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// TestR61WhatIsNoToken lets a server say what it may not. The token is asked for twice: by credentials and by a refresh token.
func TestR61WhatIsNoToken(t *testing.T) {
	t.Parallel()
	var elsewhere atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		elsewhere.Add(1)
		_, _ = io.WriteString(w, granted("at", 300, "next"))
	}))
	t.Cleanup(other.Close)
	good := granted("at", 300, "next")
	const un = "unavailable"
	for name, c := range map[string]struct {
		code   int
		header string
		body   string
		oauth  string // what comes of it for credentials
		rest   string // and for a refresh token
	}{
		"a token":                          {200, "", good, "", ""},
		"the type in another case":         {200, "", strings.Replace(good, "Bearer", "bEARER", 1), "", ""},
		"what is not known beside it":      {200, "", strings.Replace(good, "{", `{"x":{"y":[1]},`, 1), "", ""},
		"a refresh token is not there":     {200, "", granted("at", 300, ""), "", un},
		"R61 500":                          {500, "", `{"error":"server_error"}`, un, un},
		"R61 500 with a token":             {500, "", good, un, un},
		"201 with a token":                 {201, "", good, un, un},
		"429 with Retry-After":             {429, "Retry-After: 7", `{"error":"temporarily_unavailable"}`, un, un},
		"503 of the REST door":             {503, "Retry-After: 1", statusOf("STORE_UNAVAILABLE"), un, un},
		"HTML":                             {200, "", "<html>" + good + "</html>", un, un},
		"a proxy's 403":                    {403, "", "<html>no</html>", un, un},
		"404":                              {404, "", statusOf("ROUTE_NOT_FOUND"), un, un},
		"nothing":                          {200, "", "", un, un},
		"R64 a redirect":                   {302, "Location: " + other.URL, good, un, un},
		"R64 a redirect that keeps POST":   {307, "Location: " + other.URL, good, un, un},
		"R64 10 MB":                        {200, "", strings.Repeat(" ", 10<<20) + good, un, un},
		"a body of 64 KiB":                 {200, "", strings.Repeat(" ", 64<<10-len(good)) + good, "", ""},
		"a byte more":                      {200, "", strings.Repeat(" ", 64<<10+1-len(good)) + good, un, un},
		"another type":                     {200, "", strings.Replace(good, "Bearer", "DPoP", 1), un, un},
		"no type":                          {200, "", strings.Replace(good, "token_type", "token_typ", 1), un, un},
		"a name in another case":           {200, "", strings.Replace(good, "token_type", "Token_type", 1), un, un},
		"no life":                          {200, "", strings.Replace(good, "expires_in", "expires", 1), un, un},
		"a life of nothing":                {200, "", granted("at", 0, "next"), un, un},
		"a life that is over":              {200, "", granted("at", -300, "next"), un, un},
		"a life of 300 years":              {200, "", strings.Replace(good, "300", "9467280000", 1), "", ""},
		"a life without end":               {200, "", strings.Replace(good, "300", "92233720368547758070", 1), un, un},
		"a life with an exponent":          {200, "", strings.Replace(good, "300", "3e2", 1), un, un},
		"a life of a part of a second":     {200, "", strings.Replace(good, "300", "1.5", 1), un, un},
		"a life in quotes":                 {200, "", strings.Replace(good, "300", `"300"`, 1), un, un},
		"no token":                         {200, "", granted("", 300, "next"), un, un},
		"a token with a line break":        {200, "", granted("a\r\nX-Admin: 1", 300, "next"), un, un},
		"a token of 9 KiB":                 {200, "", granted(strings.Repeat("a", 9<<10), 300, "next"), un, un},
		"a token that is null":             {200, "", strings.Replace(good, `"at"`, "null", 1), un, un},
		"a token twice":                    {200, "", strings.Replace(good, "{", `{"access_token":"bt",`, 1), un, un},
		"two answers":                      {200, "", good + good, un, un},
		"half an answer":                   {200, "", good[:len(good)/2], un, un},
		"a list":                           {200, "", "[" + good + "]", un, un},
		"invalid UTF-8":                    {200, "", strings.Replace(good, "a b", "\xff", 1), un, un},
		"invalid_client":                   {401, "", `{"error":"invalid_client","error_description":"canary"}`, "invalid_client", un},
		"invalid_target":                   {400, "", `{"error":"invalid_target"}`, "invalid_target", un},
		"a reason in 500":                  {500, "", `{"error":"invalid_client"}`, un, un},
		"temporarily unavailable, as 400":  {400, "", `{"error":"temporarily_unavailable"}`, un, un},
		"a word that is none":              {400, "", `{"error":"no <b>canary</b>"}`, un, un},
		"the session has ended":            {401, "", statusOf("REFRESH_INVALID"), un, "REFRESH_INVALID"},
		"theft":                            {401, "", statusOf("REFRESH_REUSED"), un, "REFRESH_REUSED"},
		"CLIENT_INVALID":                   {401, "", statusOf("CLIENT_INVALID"), un, "CLIENT_INVALID"},
		"INVALID_SCOPE":                    {400, "", statusOf("INVALID_SCOPE"), un, "INVALID_SCOPE"},
		"superseded":                       {401, "", statusOf("REFRESH_SUPERSEDED"), un, un},
		"a reason of another domain":       {401, "", strings.Replace(statusOf("REFRESH_INVALID"), "authsvc", "other", 1), un, un},
		"R63 the refresh token for a word": {401, "", statusOf(sourceRefresh), un, un},
		"R63 the secret for a word":        {401, "", `{"error":"` + sourceSecret + `"}`, un, un},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if field, value, ok := strings.Cut(c.header, ": "); ok {
					w.Header().Set(field, value)
				}
				w.WriteHeader(c.code)
				_, _ = io.WriteString(w, c.body)
			}))
			t.Cleanup(server.Close)
			store := guard.NewRefreshToken(sourceRefresh)
			for want, s := range map[*string]*guard.TokenSource{&c.oauth: sourceAt(t, server.URL, nil), &c.rest: sourceAt(t, server.URL, store)} {
				token, err := s.Token(t.Context())
				if got := reasonOf(t, err); got != *want || (token == "at") != (*want == "") {
					t.Errorf("got %q, want %q: %v", got, *want, err)
				}
			}
			if kept, _ := store.Load(t.Context()); (kept == "next") != (c.rest == "") {
				t.Errorf("the storage holds %q", kept)
			}
		})
	}
	t.Cleanup(func() {
		if elsewhere.Load() > 0 {
			t.Error("R64 a redirect was followed")
		}
	})
}

// TestR63WhatIsNoHTTP sends back what it was sent, in the places that an HTTP client quotes in its errors.
func TestR63WhatIsNoHTTP(t *testing.T) {
	t.Parallel()
	for _, answer := range []string{"%s\r\n\r\n", "HTTP/1.1 %s\r\n\r\n", "HTTP/1.1 200 OK\r\n%s\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: %s\r\n\r\n", ""} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			if answer != "" {
				_, _ = fmt.Fprintf(conn, answer, r.Header.Get("Authorization")+string(body))
			}
			_ = conn.Close()
		}))
		for _, store := range []guard.RefreshStore{nil, guard.NewRefreshToken(sourceRefresh)} {
			if _, err := sourceAt(t, server.URL, store).Token(t.Context()); reasonOf(t, err) != "unavailable" {
				t.Errorf("%q: %v", answer, err)
			}
		}
		server.Close()
		if _, err := sourceAt(t, server.URL, nil).Token(t.Context()); reasonOf(t, err) != "unavailable" {
			t.Errorf("nobody there: %v", err)
		}
	}
}

func TestTokenSourceOptions(t *testing.T) {
	t.Parallel()
	store := guard.NewRefreshToken(sourceRefresh)
	with := func(change func(o *guard.TokenSourceOptions)) guard.TokenSourceOptions {
		o := guard.TokenSourceOptions{URL: "https://auth.example", ClientID: "svc", ClientSecret: "canary"}
		change(&o)
		return o
	}
	at := func(url string) guard.TokenSourceOptions {
		return with(func(o *guard.TokenSourceOptions) { o.URL = url })
	}
	for name, c := range map[string]struct {
		o    guard.TokenSourceOptions
		good bool
	}{
		"https":                        {at("https://auth.example/a"), true},
		"loopback":                     {at("http://127.0.0.1:1"), true},
		"loopback, the other":          {at("http://[::1]:1"), true},
		"loopback by name":             {at("http://localhost:1"), true},
		"http elsewhere":               {at("http://auth.example"), false},
		"the twin: it is said":         {with(func(o *guard.TokenSourceOptions) { o.URL, o.Insecure = "http://auth.example", true }), true},
		"Insecure with https":          {with(func(o *guard.TokenSourceOptions) { o.Insecure = true }), false},
		"another scheme":               {at("ftp://auth.example"), false},
		"no URL":                       {at(""), false},
		"no host":                      {at("https://"), false},
		"a port without a host":        {at("https://:443"), false},
		"a path alone":                 {at("/canary"), false},
		"a user":                       {at("https://canary:canary@auth.example"), false},
		"a query":                      {at("https://auth.example/?canary"), false},
		"an empty query":               {at("https://auth.example/?"), false},
		"a fragment":                   {at("https://auth.example/#canary"), false},
		"a URL that does not parse":    {at("https://auth.example/%zcanary"), false},
		"no client":                    {with(func(o *guard.TokenSourceOptions) { o.ClientID = "" }), false},
		"no secret":                    {with(func(o *guard.TokenSourceOptions) { o.ClientSecret = "" }), false},
		"a public client's session":    {with(func(o *guard.TokenSourceOptions) { o.ClientSecret, o.RefreshToken = "", store }), true},
		"resources":                    {with(func(o *guard.TokenSourceOptions) { o.Resources = []string{"a"} }), true},
		"resources of a session":       {with(func(o *guard.TokenSourceOptions) { o.Resources, o.RefreshToken = []string{"a"}, store }), false},
		"a resource without a name":    {with(func(o *guard.TokenSourceOptions) { o.Resources = []string{"a", ""} }), false},
		"an http URL with TLS options": {with(func(o *guard.TokenSourceOptions) { o.URL, o.TLS = "http://127.0.0.1:1", trusting(nil) }), false},
	} {
		if _, err := guard.NewTokenSource(c.o); (err == nil) != c.good || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTheSourceAsksOverTLS has a server whose certificate is its own.
func TestTheSourceAsksOverTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, granted("at", 300, "")) }))
	t.Cleanup(server.Close)
	o := guard.TokenSourceOptions{URL: server.URL, ClientID: "svc", ClientSecret: sourceSecret, TLS: trusting(server)}
	for _, trusted := range []bool{true, false} {
		if !trusted {
			o.TLS = nil
		}
		s, err := guard.NewTokenSource(o)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Token(t.Context()); reasonOf(t, err) != map[bool]string{true: "", false: "unavailable"}[trusted] {
			t.Errorf("trusted %v: %v", trusted, err)
		}
	}
}

// TestACallerWhoLeaves gets its own error; the renewal goes on for the next.
func TestACallerWhoLeaves(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	begun, proceed := make(chan struct{}), make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked.Add(1)
		close(begun)
		<-proceed
		_, _ = io.WriteString(w, granted("at", 300, ""))
	}))
	t.Cleanup(server.Close)
	s := sourceAt(t, server.URL, nil)
	ctx, leave := context.WithCancel(t.Context())
	go func() { <-begun; leave() }()
	if _, err := s.Token(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("the caller who left: %v", err)
	}
	close(proceed)
	if token, err := s.Token(t.Context()); token != "at" || err != nil || asked.Load() != 1 {
		t.Errorf("the next: %q %v after %d requests", token, err, asked.Load())
	}
}
