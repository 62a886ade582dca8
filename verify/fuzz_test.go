package verify_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// FuzzVerify looks for a panic, and for a second spelling of a good token.
func FuzzVerify(f *testing.F) {
	good := mint(f, header, payload)
	f.Add(good)
	f.Add(good + "=")
	f.Add(strings.Replace(good, ".", "\n.", 1))
	f.Add("..")
	v := newVerifier(f, nil)
	f.Fuzz(func(t *testing.T, token string) {
		if _, err := v.Verify(t.Context(), token); err == nil && token != good {
			t.Errorf("%q was accepted", token)
		}
		h, p, s, err := verify.Segments(token)
		if err == nil && encode(h)+"."+encode(p)+"."+encode(s) != token {
			t.Errorf("%q is not the only spelling", token)
		}
	})
}

// FuzzHeader compares the strict reader with encoding/json: what it accepts, the other reads alike.
func FuzzHeader(f *testing.F) {
	f.Add(header, false)
	f.Add(`{"alg":"RS256","typ":"at+jwt","kid":"k","x5t":[{"a":null}]}`, true)
	f.Add(`{"alg":"none"}`, false)
	f.Fuzz(func(t *testing.T, text string, foreign bool) {
		kid, err := verify.ReadHeader(text, foreign)
		if err != nil {
			return
		}
		var other struct{ Alg, Typ, Kid string }
		if err := json.Unmarshal([]byte(text), &other); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if other.Alg != "RS256" || other.Typ != "at+jwt" || other.Kid != kid || kid == "" {
			t.Errorf("%q: read as kid %q, by the other as %+v", text, kid, other)
		}
	})
}

// FuzzClaims does the same for payloads.
func FuzzClaims(f *testing.F) {
	f.Add(payload, false)
	f.Add(strings.Replace(payload, `1800000300`, `1800000300.5`, 1), true)
	f.Add(strings.Replace(payload, `["https://api.example"]`, `"a\ud83d\ude00\n"`, 1), false)
	f.Add(strings.Replace(payload, `"sub"`, `"x":{"y":[1,-0.5e+3,true,false,null,"\u00e9"]},"sub"`, 1), false)
	f.Fuzz(func(t *testing.T, text string, foreign bool) {
		c, err := verify.ReadClaims(text, foreign)
		if err != nil {
			return
		}
		var other struct {
			Iss, Sub, Jti, Sid, Scope string
			ClientID                  string `json:"client_id"`
			Aud                       any
			Amr                       []string
			Exp, Iat                  float64
		}
		if err := json.Unmarshal([]byte(text), &other); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if other.Iss != c.Issuer || other.Sub != c.Subject || other.Jti != c.ID || other.Sid != c.SessionID ||
			other.Scope != c.Scope || other.ClientID != c.ClientID || len(other.Amr) != len(c.AMR) {
			t.Errorf("%q: read as %+v, by the other as %+v", text, c, other)
		}
		if !time.Unix(int64(other.Exp), 0).Equal(c.ExpiresAt) || !time.Unix(int64(other.Iat), 0).Equal(c.IssuedAt) {
			t.Errorf("%q: times %v %v, by the other %v %v", text, c.ExpiresAt, c.IssuedAt, other.Exp, other.Iat)
		}
		switch aud := other.Aud.(type) {
		case string:
			if len(c.Audience) != 1 || c.Audience[0] != aud {
				t.Errorf("%q: audience %q", text, c.Audience)
			}
		case []any:
			if len(c.Audience) != len(aud) || c.Audience[0] != aud[0] {
				t.Errorf("%q: audience %q", text, c.Audience)
			}
		default:
			t.Errorf("%q: an audience of type %T was accepted", text, aud)
		}
	})
}

// FuzzKeySet looks for a panic, and for a key that should have been dropped.
func FuzzKeySet(f *testing.F) {
	f.Add(ours(), "key-1")
	f.Add(both(), "key-2")
	f.Add([]byte(`{"keys":[{"kty":"RSA","kid":"a","n":"AQAB","e":"AQAB"}]}`), "a")
	f.Fuzz(func(t *testing.T, set []byte, kid string) {
		s, err := verify.NewStatic(set)
		if err != nil {
			return
		}
		if !json.Valid(set) {
			t.Errorf("%q was accepted", set)
		}
		if k, err := s.Key(t.Context(), kid); err == nil && k.ID() != kid {
			t.Errorf("asked for %q, got %q", kid, k.ID())
		}
	})
}
