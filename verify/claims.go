package verify

import (
	"strings"
	"time"
)

// Claims are what a good access token says (RFC 9068 §2.2). They are shared between callers: do not write to them.
type Claims struct {
	Issuer    string    // iss
	Subject   string    // sub: the account, or the client for a service's own token
	ClientID  string    // client_id
	SessionID string    // sid: the session; empty for a service's own token
	ID        string    // jti
	Scope     string    // scope: words separated by spaces
	Audience  []string  // aud
	AMR       []string  // amr (RFC 8176); may be empty
	ExpiresAt time.Time // exp, UTC
	IssuedAt  time.Time // iat, UTC
	NotBefore time.Time // nbf, UTC; zero if absent
	AuthTime  time.Time // auth_time, UTC: when the session began; zero if absent
	KeyID     string    // kid of the header: the key that signed the token
}

// HasScope says whether scope, one word, is among the token's scopes. The comparison is exact.
func (c *Claims) HasScope(scope string) bool {
	if scope == "" || strings.IndexByte(scope, ' ') >= 0 {
		return false
	}
	for rest := c.Scope; rest != ""; {
		var word string
		word, rest, _ = strings.Cut(rest, " ")
		if word == scope {
			return true
		}
	}
	return false
}

// The claims that were seen, as bits.
const (
	sawIssuer = 1 << iota
	sawSubject
	sawAudience
	sawClient
	sawToken
	sawExpires
	sawIssued
	sawNotBefore
	sawAuthTime
	sawScope

	// RFC 9068 §2.2 makes these required for every issuer.
	requiredOfAll = sawIssuer | sawSubject | sawAudience | sawClient | sawToken | sawExpires | sawIssued
	// authsvc always writes these too; its revocations compare auth_time.
	requiredOfOurs = requiredOfAll | sawNotBefore | sawAuthTime | sawScope
)

// readClaims reads the payload into t. A claim that we know must have its type and be spelled exactly; what we do not know is
// checked for its form and ignored (RFC 7519 §4).
func readClaims(t *verified, payload string, foreign bool) error {
	var room [24]string
	seen, saw := room[:0], 0
	r := reader{s: payload}
	if !r.open('{') {
		return malformed("the payload is not a JSON object")
	}
	for {
		name, more, ok := r.member(&seen)
		if !ok {
			return malformed("the payload is not strict JSON")
		}
		if !more {
			break
		}
		bit, ok := readClaim(t, &r, name, foreign)
		if !ok {
			return malformed("a claim has the wrong type or spelling")
		}
		saw |= bit
	}
	if !r.end() {
		return malformed("something follows the payload's object")
	}
	required := requiredOfOurs
	if foreign {
		required = requiredOfAll
	}
	if saw&required != required {
		return malformed("a required claim is missing")
	}
	t.settle(saw)
	if t.exp <= t.iat {
		return malformed("exp is not after iat")
	}
	return nil
}

func readClaim(t *verified, r *reader, name string, foreign bool) (bit int, ok bool) {
	c := &t.claims
	switch name {
	case "iss":
		c.Issuer, ok = r.word()
		return sawIssuer, ok
	case "sub":
		c.Subject, ok = r.word()
		return sawSubject, ok
	case "client_id":
		c.ClientID, ok = r.word()
		return sawClient, ok
	case "jti":
		c.ID, ok = r.word()
		return sawToken, ok
	case "sid":
		c.SessionID, ok = r.word()
		return 0, ok
	case "scope":
		c.Scope, ok = r.text()
		return sawScope, ok
	case "aud":
		if r.peek() == '"' {
			var one string
			one, ok = r.word()
			c.Audience = []string{one}
			return sawAudience, ok
		}
		c.Audience, ok = r.words()
		return sawAudience, ok && len(c.Audience) > 0
	case "amr":
		c.AMR, ok = r.words()
		return 0, ok
	case "exp":
		t.exp, ok = r.seconds(foreign)
		return sawExpires, ok
	case "iat":
		t.iat, ok = r.seconds(foreign)
		return sawIssued, ok
	case "nbf":
		t.nbf, ok = r.seconds(foreign)
		return sawNotBefore, ok
	case "auth_time":
		t.auth, ok = r.seconds(foreign)
		return sawAuthTime, ok
	}
	if foldsTo(name, "iss", "sub", "client_id", "jti", "sid", "scope", "aud", "amr", "exp", "iat", "nbf", "auth_time") {
		return 0, false
	}
	return 0, r.skip(0)
}

// settle writes the times of the claims.
func (t *verified) settle(saw int) {
	c := &t.claims
	c.ExpiresAt, c.IssuedAt = time.Unix(t.exp, 0).UTC(), time.Unix(t.iat, 0).UTC()
	if saw&sawNotBefore != 0 {
		c.NotBefore = time.Unix(t.nbf, 0).UTC()
	}
	if saw&sawAuthTime != 0 {
		c.AuthTime = time.Unix(t.auth, 0).UTC()
	}
}

func foldsTo(name string, known ...string) bool {
	for _, k := range known {
		if strings.EqualFold(name, k) {
			return true
		}
	}
	return false
}
