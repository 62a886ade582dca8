package guard

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// headerLimit is the most that an answer's header may take, in bytes.
const headerLimit = 64 << 10

// TokenSourceOptions say whose tokens a TokenSource gets, and where. With RefreshToken they are a session's, without it the
// client's own.
type TokenSourceOptions struct {
	// URL is authsvc's HTTP address, such as https://auth.example; it may have a path. Required.
	URL string
	// ClientID is the client's. Required.
	ClientID string
	// ClientSecret is the client's. Required, but for the refresh token of a public client.
	ClientSecret string
	// Resources are the audiences of the token (RFC 8707); none means the client's defaults, and where it has none the token is
	// refused. Only without RefreshToken: a session's audiences were chosen at its login.
	Resources []string
	// Scope is the scopes to ask for, separated by spaces; empty means the client's defaults, which may be none, or all
	// that the session has.
	Scope string
	// RefreshToken holds the session's refresh token; nil means the client's own credentials (RFC 6749 §4.4). A session that is not
	// refreshed within its idle time ends, and a source asks only when it is asked.
	RefreshToken RefreshStore
	// TLS is for the connections to URL. Nil means the system's roots.
	TLS *tls.Config
	// Insecure lets URL be http for other than loopback addresses. Whoever can listen then has the secret and the tokens.
	Insecure bool
	// PlaintextCalls lets the tokens go to other services without TLS. Whoever can listen then has the tokens. For HTTP on a
	// loopback address it is not needed.
	PlaintextCalls bool
	// Logger gets a warning for each renewal that fails; nil means that nothing is logged.
	Logger *slog.Logger
}

// connectBy checks the options and sets what the source asks with.
func (s *TokenSource) connectBy(o TokenSourceOptions) error {
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Hostname() == "" || u.User != nil || u.Opaque != "" || strings.ContainsAny(o.URL, "?#"):
		return errors.New("guard: TokenSourceOptions.URL is not a plain absolute URL") // not err, which quotes it
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("guard: TokenSourceOptions.URL is not https")
	case u.Scheme == "http" && !o.Insecure && !loopback(u.Hostname()):
		return errors.New("guard: TokenSourceOptions.URL is not https, and no loopback address")
	case u.Scheme == "https" && o.Insecure:
		return errors.New("guard: TokenSourceOptions.Insecure is for an http URL")
	case u.Scheme == "http" && o.TLS != nil:
		return errors.New("guard: TokenSourceOptions.TLS is for an https URL")
	case o.ClientID == "":
		return errors.New("guard: TokenSourceOptions.ClientID is required")
	case o.ClientSecret == "" && o.RefreshToken == nil:
		return errors.New("guard: TokenSourceOptions.ClientSecret is required without a RefreshToken")
	case len(o.Resources) > 0 && o.RefreshToken != nil:
		return errors.New("guard: TokenSourceOptions.RefreshToken excludes Resources")
	case slices.Contains(o.Resources, ""):
		return errors.New("guard: TokenSourceOptions.Resources has an empty name")
	}
	o.Resources, o.Logger = slices.Clone(o.Resources), discard(o.Logger)
	plain, authorization := o.ClientSecret, ""
	if plain != "" { // RFC 6749 section 2.3.1: both parts are form-encoded first
		userPass := url.QueryEscape(o.ClientID) + ":" + url.QueryEscape(plain)
		authorization = "Basic " + base64.StdEncoding.EncodeToString([]byte(userPass))
	}
	s.secret = func() (string, string) { return plain, authorization }
	o.ClientSecret = ""
	s.o, s.url, s.transport = o, strings.TrimRight(o.URL, "/"), transportTo(u, o)
	return nil
}

// transportTo makes the connections to authsvc. One answer in minutes is worth no connection that is kept, and plain HTTP/1.1.
func transportTo(u *url.URL, o TokenSourceOptions) *http.Transport {
	t := &http.Transport{
		DialContext: new(net.Dialer).DialContext, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: headerLimit,
	}
	if o.TLS != nil {
		t.TLSClientConfig = o.TLS.Clone()
		t.TLSClientConfig.NextProtos = nil // one that gRPC or another http.Transport has used may offer h2, which is not spoken here
	}
	switch {
	case u.Scheme == "http" && !o.Insecure:
		t.DialContext = func(ctx context.Context, _, address string) (net.Conn, error) { return dialLoopback(ctx, address) }
	case !loopback(u.Hostname()):
		t.Proxy = environmentProxy
	}
	return t
}

// environmentProxy is http.ProxyFromEnvironment with an error that does not quote the proxy, which may have a password.
func environmentProxy(r *http.Request) (*url.URL, error) {
	proxy, err := http.ProxyFromEnvironment(r)
	if err != nil {
		return nil, errors.New("the environment's proxy is malformed")
	}
	return proxy, nil
}
