package verify

import (
	"encoding/base64"
	"strings"
)

// maxSignature is the signature of the largest key that is accepted, RSA 4096.
const maxSignature = 512

// parts are the three segments of a compact JWS (RFC 7515 §7.1), decoded, and the text that was signed.
type parts struct {
	header, payload   string
	signed, signature []byte
}

// split takes a token of at most maxToken bytes apart. It accepts exactly one spelling of each token: three non-empty
// segments, canonical base64url without padding. (The standard decoder skips line breaks even when strict, so they are
// refused first.)
func split(token string) (parts, error) {
	if strings.IndexByte(token, '\n') >= 0 || strings.IndexByte(token, '\r') >= 0 {
		return parts{}, malformed("a line break")
	}
	first := strings.IndexByte(token, '.')
	last := strings.LastIndexByte(token, '.')
	if first <= 0 || last <= first+1 || last == len(token)-1 {
		return parts{}, malformed("not three segments")
	}
	if base64.RawURLEncoding.DecodedLen(len(token)-last-1) > maxSignature {
		return parts{}, malformed("the signature is too long")
	}
	raw := []byte(token)
	coding := base64.RawURLEncoding.Strict()
	room := make([]byte, base64.RawURLEncoding.DecodedLen(last-1))
	n, err := coding.Decode(room, raw[:first])
	if err != nil {
		return parts{}, malformed("the header is not canonical base64url")
	}
	p := parts{header: string(room[:n]), signed: raw[:last:last]}
	// A fourth segment's dot is not of the alphabet, so it fails here.
	if n, err = coding.Decode(room, raw[first+1:last]); err != nil {
		return parts{}, malformed("the payload is not canonical base64url")
	}
	p.payload = string(room[:n])
	p.signature = make([]byte, base64.RawURLEncoding.DecodedLen(len(token)-last-1))
	if _, err = coding.Decode(p.signature, raw[last+1:]); err != nil {
		return parts{}, malformed("the signature is not canonical base64url")
	}
	return p, nil
}

// readHeader checks the JOSE header and gives the kid, which is all that is ever used of it.
func readHeader(header string, foreign bool) (kid string, err error) {
	var room [8]string
	seen := room[:0]
	r := reader{s: header}
	if !r.open('{') {
		return "", malformed("the header is not a JSON object")
	}
	var alg, typ string
	for {
		name, more, ok := r.member(&seen)
		if !ok {
			return "", malformed("the header is not strict JSON")
		}
		if !more {
			break
		}
		switch name {
		case "alg":
			alg, ok = r.text()
		case "typ":
			typ, ok = r.text()
		case "kid":
			kid, ok = r.text()
		default:
			ok = foreign && !foldsTo(name, "alg", "typ", "kid", "crit", "b64", "zip", "jwk", "jku", "x5u", "x5c") && r.skip(0)
		}
		if !ok {
			return "", malformed("a header member is not allowed or has the wrong type")
		}
	}
	switch {
	case !r.end():
		return "", malformed("something follows the header's object")
	case alg != algorithm:
		return "", malformed("alg is not RS256")
	case typ != accessTokenType:
		return "", malformed("typ is not at+jwt")
	case !validKeyID(kid):
		return "", malformed("kid is missing or has other characters than A-Z a-z 0-9 _ -")
	}
	return kid, nil
}

// validKeyID is the rule for kids, in tokens and in key sets: 1 to 64 characters of base64url.
func validKeyID(kid string) bool {
	if kid == "" || len(kid) > 64 {
		return false
	}
	for i := range len(kid) {
		c := kid[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}
