package extauthz

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// Config is the section "forward_auth" of the configuration: what reverse proxies may ask about the requests that they are about to
// pass on. Envoy asks over gRPC (ext_authz), nginx, Traefik and Caddy by GET /forward-auth.
type Config struct {
	// Audiences are the APIs behind such proxies, by the names that tokens carry as aud; a proxy's own configuration chooses among
	// them. Empty: proxies are not served.
	Audiences []string `yaml:"audiences"`
	// Headers names the headers that tell an API whom a token speaks for.
	Headers Headers `yaml:"headers"`
}

// Headers names for each claim the header that carries it to the API behind the proxy; empty: none does.
type Headers struct {
	// Subject is the header of sub: the account, or the client where a service calls for itself.
	Subject string `yaml:"sub"`
	// ClientID is the header of client_id.
	ClientID string `yaml:"client_id"`
	// SessionID is the header of sid, which a service's own token has not.
	SessionID string `yaml:"sid"`
	// Scope is the header of scope: words separated by spaces.
	Scope string `yaml:"scope"`
	// TokenID is the header of jti.
	TokenID string `yaml:"jti"`
	// AuthTime is the header of auth_time, in Unix seconds.
	AuthTime string `yaml:"auth_time"`
	// ExpiresAt is the header of exp, in Unix seconds.
	ExpiresAt string `yaml:"exp"`
}

// DefaultConfig serves no proxies, and names the headers of sub, client_id, sid and scope.
func DefaultConfig() Config {
	return Config{Headers: Headers{Subject: "X-Auth-Subject", ClientID: "X-Auth-Client", SessionID: "X-Auth-Session", Scope: "X-Auth-Scope"}}
}

const (
	maxAudiences = 64
	maxAudience  = 256 // bytes
	maxHeader    = 64  // bytes of a header's name
)

// Validate says all that is wrong, or nothing.
func (c Config) Validate() error {
	var problems []error
	add := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }
	if len(c.Audiences) > maxAudiences {
		add("audiences: are %d; at most %d", len(c.Audiences), maxAudiences)
	}
	for i, a := range c.Audiences {
		switch {
		case a == "" || len(a) > maxAudience || strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }):
			add("audiences: entry %d must be 1 to %d printable ASCII characters without spaces, quotes and backslashes", i+1, maxAudience)
		case slices.Contains(c.Audiences[:i], a):
			add("audiences: %q stands twice", a)
		}
	}
	seen := map[string]string{}
	for _, h := range c.Headers.list() {
		switch lower := strings.ToLower(h.name); {
		case h.name == "":
		case len(h.name) > maxHeader || strings.ContainsFunc(h.name, notInName):
			add("headers.%s: %q is not a header's name of at most %d letters, digits and hyphens; proxies do not agree on others", h.claim, h.name, maxHeader)
		case reserved(lower):
			add("headers.%s: %s has a meaning of its own: take a name such as X-Auth-Subject", h.claim, h.name)
		case seen[lower] != "":
			add("headers.%s: %s carries %s already", h.claim, h.name, seen[lower])
		default:
			seen[lower] = h.claim
		}
	}
	return errors.Join(problems...)
}

// notInName reports characters that a name may not have here. RFC 9110 §5.6.2 allows more of them, among them the underscore, which
// some proxies drop and some servers take for a hyphen.
func notInName(r rune) bool {
	return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

// reserved reports names that a proxy, a server or HTTP itself acts on.
func reserved(lower string) bool {
	for _, prefix := range []string{"x-forwarded-", "proxy-", "content-", "access-control-", "sec-", "x-accel-", "x-envoy-", "grpc-", "if-"} {
		if strings.HasPrefix(lower, prefix) {
			return true
		}
	}
	return slices.Contains([]string{"authorization", "cookie", "set-cookie", "host", "connection", "keep-alive", "te", "trailer",
		"transfer-encoding", "upgrade", "expect", "forwarded", "proxy", "x-original-url", "x-rewrite-url", "x-real-ip", "x-request-id", "date", "server", "location", "vary", "age",
		"etag", "cache-control", "retry-after", "www-authenticate", "x-content-type-options", "x-http-method-override", "user-agent", "accept", "origin", "range",
		"referer", "via", "traceparent", "tracestate"}, lower)
}

// identity is one claim, and the header that carries it.
type identity struct {
	claim, name string
	value       func(*verify.Claims) string // empty where the token has it not
}

func (h Headers) list() []identity {
	seconds := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return strconv.FormatInt(t.Unix(), 10)
	}
	return []identity{
		{"sub", h.Subject, func(c *verify.Claims) string { return c.Subject }},
		{"client_id", h.ClientID, func(c *verify.Claims) string { return c.ClientID }},
		{"sid", h.SessionID, func(c *verify.Claims) string { return c.SessionID }},
		{"scope", h.Scope, func(c *verify.Claims) string { return c.Scope }},
		{"jti", h.TokenID, func(c *verify.Claims) string { return c.ID }},
		{"auth_time", h.AuthTime, func(c *verify.Claims) string { return seconds(c.AuthTime) }},
		{"exp", h.ExpiresAt, func(c *verify.Claims) string { return seconds(c.ExpiresAt) }},
	}
}
