package guard

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
)

var _ credentials.PerRPCCredentials = (*TokenSource)(nil)

// GetRequestMetadata gives gRPC the authorization of a call; for grpc.WithPerRPCCredentials. Its errors are what the call ends
// with: UNAUTHENTICATED where the server refuses a token, UNAVAILABLE where there is none at the moment.
func (s *TokenSource) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	token, err := s.Token(ctx)
	var f *tokenFault
	switch {
	case err == nil:
		return map[string]string{"authorization": "Bearer " + token}, nil
	case !errors.As(err, &f):
		return nil, status.FromContextError(err).Err()
	case f.refused:
		return nil, status.Error(codes.Unauthenticated, err.Error())
	default:
		return nil, status.Error(codes.Unavailable, err.Error())
	}
}

// RequireTransportSecurity tells gRPC to send tokens over TLS only, except where PlaintextCalls is set.
func (s *TokenSource) RequireTransportSecurity() bool { return !s.o.PlaintextCalls }

// Transport puts the newest access token into HTTP requests (RFC 6750 §2.1) to these origins, such as https://orders.example or
// https://orders.example:8443, of which there is at least one. Without PlaintextCalls an origin of the scheme http has a loopback
// IP address. Base makes the requests; nil means http.DefaultTransport.
//
// A request to any other origin fails, the next hop of a redirect included: a transport is asked for each hop, and must not hand
// the token to whoever a redirect names. It fails too where its Host is another's, for a front that serves several goes by that;
// httputil.ReverseProxy passes the Host of its own caller on unless Rewrite sets it. A request that has an Authorization is sent as
// it is. When a token is answered 401, the source is told (Refused). An answer's Request is the caller's, without the token.
func (s *TokenSource) Transport(base http.RoundTripper, origins ...string) (http.RoundTripper, error) {
	t := &tokenTransport{source: s, base: base, origins: map[string]bool{}}
	if base == nil {
		t.base = http.DefaultTransport
	}
	if len(origins) == 0 {
		return nil, errors.New("guard: a Transport needs an origin")
	}
	for _, o := range origins {
		u, err := url.Parse(o)
		if err != nil || u.Hostname() == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || strings.ContainsAny(o, "?#") {
			return nil, errors.New("guard: an origin is not scheme://host or scheme://host:port")
		}
		ip := net.ParseIP(u.Hostname()) // no name: only its dial would tell where it leads, and that is base's
		if u.Scheme != "https" && (u.Scheme != "http" || !s.o.PlaintextCalls && (ip == nil || !ip.IsLoopback())) {
			return nil, errors.New("guard: an origin is not https, and no loopback IP address")
		}
		t.origins[originOf(u)] = true
	}
	return t, nil
}

type tokenTransport struct {
	source  *TokenSource
	base    http.RoundTripper
	origins map[string]bool
}

// RoundTrip sends a copy of the request: a transport may not change its caller's.
func (t *tokenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := t.leadsHome(r); err != nil {
		closeBody(r)
		return nil, err
	}
	for name := range r.Header {
		if strings.EqualFold(name, "Authorization") {
			return t.base.RoundTrip(r)
		}
	}
	token, err := t.source.Token(r.Context())
	if err != nil {
		closeBody(r)
		return nil, err
	}
	sent := r.Clone(r.Context())
	if sent.Header == nil {
		sent.Header = http.Header{}
	}
	sent.Header.Set("Authorization", "Bearer "+token)
	response, err := t.base.RoundTrip(sent)
	if err != nil {
		return response, err
	}
	response.Request = r // whoever prints it must not have the token
	if response.StatusCode == http.StatusUnauthorized {
		t.source.Refused(token)
	}
	return response, nil
}

// leadsHome says whether all that steers a request names an origin of ours: its URL, and the Host beside it.
func (t *tokenTransport) leadsHome(r *http.Request) error {
	if r.URL == nil || r.URL.Opaque != "" { // the latter goes into the request's line as it is, and may name another host
		return errors.New("guard: a request without a plain URL gets no access token")
	}
	origin := originOf(r.URL)
	if t.origins[origin] && r.Host != "" {
		origin = originOf(&url.URL{Scheme: r.URL.Scheme, Host: r.Host})
	}
	if !t.origins[origin] {
		return fmt.Errorf("guard: %q is no origin that gets the access token", origin)
	}
	return nil
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close() // it was not read, and the request fails anyway
	}
}

// originOf is scheme, host and port (RFC 6454 §4), as they count for a connection. Letters beyond ASCII stay as they are: what a name
// in Unicode leads to is IDNA's to say, and to that İ is no i.
func originOf(u *url.URL) string {
	scheme, port := lower(u.Scheme), u.Port()
	switch {
	case port == "" && scheme == "https":
		port = "443"
	case port == "" && scheme == "http":
		port = "80"
	}
	return scheme + "://" + net.JoinHostPort(lower(u.Hostname()), port)
}

// lower makes ASCII letters small.
func lower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			r += 'a' - 'A'
		}
		return r
	}, s)
}
