package oauth2

import (
	"errors"
	"net/url"
	"strings"
)

// MaxTarget is the longest audience or resource indicator, in bytes.
const MaxTarget = 256

// ErrTarget is what CheckTarget answers.
var ErrTarget = errors.New("oauth2: a target is an absolute URI without fragment, or a name of letters, digits and . _ ~ -, of at most 256 bytes")

// CheckTarget says whether s can name whom a token is for: an absolute URI without fragment (RFC 8707 §2), or a plain name.
// Targets are compared byte for byte, so nothing is normalised.
func CheckTarget(s string) error {
	if s == "" || len(s) > MaxTarget {
		return ErrTarget
	}
	plain := true
	for _, c := range []byte(s) {
		if c <= 0x20 || c > 0x7e || strings.IndexByte("\"<>\\^`{|}#", c) >= 0 {
			return ErrTarget
		}
		plain = plain && (c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("._~-", c) >= 0)
	}
	if plain {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil || !u.IsAbs() || u.User != nil || u.Host == "" && u.Opaque == "" && u.Path == "" {
		return ErrTarget
	}
	return nil
}
