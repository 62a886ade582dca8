package client

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
)

// Bounds and defaults of a client's lifetimes.
const (
	DefaultAccessTTL      = 5 * time.Minute
	MaxAccessTTL          = 15 * time.Minute
	DefaultSessionIdleTTL = 14 * 24 * time.Hour
	DefaultSessionTTL     = 90 * 24 * time.Hour
	DefaultReuseWindow    = 30 * time.Second
	MinReuseWindow        = 10 * time.Second
	MaxReuseWindow        = 60 * time.Second
	maxEntries            = 64
	maxEntry              = 256
	maxInToken            = 4 << 10 // bytes of all audiences and scopes together; verifiers take tokens of 8 KiB
)

// Defaults fills the lifetimes that are zero.
func (c Client) Defaults() Client {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.AccessTTL, DefaultAccessTTL)
	set(&c.SessionIdleTTL, DefaultSessionIdleTTL)
	set(&c.SessionTTL, DefaultSessionTTL)
	set(&c.ReuseWindow, DefaultReuseWindow)
	return c
}

// Validate checks a client that is about to be created, with issuer as the service's own audience.
func (c Client) Validate(issuer string) error {
	switch {
	case c.ID == "" || len(c.ID) > 128:
		return fault.Field("client_id", "must be 1 to 128 bytes")
	case len(c.Name) > 128:
		return fault.Field("name", "must be at most 128 bytes")
	case c.Kind != Public && c.Kind != Confidential:
		return fault.Field("kind", "must be public or confidential")
	case c.Kind == Public && len(c.Secrets) > 0:
		return fault.Field("secrets", "a public client has none")
	case len(c.Secrets) > 2:
		return fault.Field("secrets", "at most two are valid at a time")
	case c.AccessTTL < time.Second || c.AccessTTL > MaxAccessTTL:
		return fault.Field("access_ttl", "must be 1 s to 15 min")
	case c.SessionTTL < c.AccessTTL || c.SessionIdleTTL < c.AccessTTL || c.SessionIdleTTL > c.SessionTTL:
		return fault.Field("session_ttl", fmt.Sprintf("is %v: must be at least the idle lifetime (%v), and that at least an access token's (%v)",
			c.SessionTTL, c.SessionIdleTTL, c.AccessTTL))
	case c.ReuseWindow < MinReuseWindow || c.ReuseWindow > MaxReuseWindow:
		return fault.Field("reuse_window", "must be 10 s to 60 s")
	case c.Kind == Confidential && slices.Contains(c.DefaultAudiences, issuer):
		return fault.Field("default_audiences", "the issuer must be asked for by name by a confidential client")
	}
	for _, l := range []struct {
		field string
		all   []string
		of    []string
	}{
		{"audiences", c.Audiences, c.Audiences}, {"default_audiences", c.DefaultAudiences, c.Audiences},
		{"scopes", c.Scopes, c.Scopes}, {"default_scopes", c.DefaultScopes, c.Scopes},
	} {
		if len(l.all) > maxEntries {
			return fault.Field(l.field, "at most 64 entries")
		}
		for _, v := range l.all {
			if v == "" || len(v) > maxEntry || strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == '\\' }) {
				return fault.Field(l.field, "each entry must be 1 to 256 printable ASCII characters without spaces, quotes and backslashes")
			}
			if !slices.Contains(l.of, v) {
				return fault.Field(l.field, "must be a subset of what the client may ask for")
			}
		}
	}
	if len(c.Audiences) == 0 && !c.privileged() {
		return fault.Field("audiences", "name at least one: a client without any can get no token")
	}
	if spelled(c.Audiences)+spelled(c.Scopes) > maxInToken {
		return fault.Field("audiences", "with the scopes these are longer than 4 KiB; a token with all of them would be longer than verifiers take")
	}
	return nil
}

// spelled is how many bytes the entries take in a token.
func spelled(entries []string) int {
	text, err := json.Marshal(entries)
	if err != nil { // strings always marshal
		return maxInToken + 1
	}
	return len(text)
}

// Authentic reports, in constant time for each secret, whether secret is one of the client's valid ones.
func (c Client) Authentic(secret string, now time.Time) bool {
	if c.Kind != Confidential {
		return false
	}
	h := ids.HashSecret(secret)
	ok := 0
	for _, s := range c.Secrets {
		valid := s.ExpiresAt.IsZero() || now.Before(s.ExpiresAt)
		if valid {
			ok |= subtle.ConstantTimeCompare(h[:], s.Hash[:])
		}
	}
	return ok == 1
}

// Audience resolves the audiences of a request: those asked for, each of which must be allowed, or the defaults. A client
// with an authsvc.* scope may ask for the issuer although it is not listed. parameter is what the request calls them, for the
// words of Invalid/INVALID_TARGET.
func (c Client) Audience(asked []string, issuer, parameter string) ([]string, error) {
	if len(asked) == 0 {
		if len(c.DefaultAudiences) == 0 {
			return nil, invalidTarget(parameter, "is required: the client has no default; name what the token is for")
		}
		return slices.Clone(c.DefaultAudiences), nil
	}
	if len(asked) > maxEntries {
		return nil, invalidTarget(parameter, "may be there at most 64 times")
	}
	out := make([]string, 0, len(asked))
	for _, a := range asked {
		if !slices.Contains(c.Audiences, a) && !(a == issuer && c.privileged()) {
			return nil, invalidTarget(parameter, "names what the client may not ask for; name audiences that the client is registered with, or none for its defaults")
		}
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

func invalidTarget(parameter, description string) error {
	f := fault.Field(parameter, description)
	f.Reason = fault.InvalidTarget
	return f
}

func (c Client) privileged() bool {
	return slices.ContainsFunc(c.Scopes, func(s string) bool { return strings.HasPrefix(s, "authsvc.") })
}

// Sees reports whether the client may introspect a token with these audiences: one of its own, other than the issuer.
func (c Client) Sees(audience []string, issuer string) bool {
	return slices.ContainsFunc(audience, func(a string) bool { return a != issuer && slices.Contains(c.Audiences, a) })
}
