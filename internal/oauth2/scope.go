package oauth2

import (
	"errors"
	"slices"
	"strings"
)

// MaxScope is the longest scope parameter, in bytes.
const MaxScope = 1024

// ErrScope is what ParseScope answers for a malformed scope.
var ErrScope = errors.New("oauth2: a scope is words of printable ASCII without quotes and backslashes, with single spaces between them")

// Scopes are scope words, each once.
type Scopes []string

// ParseScope reads a scope parameter (RFC 6749 §3.3), strictly: at least one word, single spaces, at most MaxScope bytes. A
// word that stands twice is kept once, where it stood first.
func ParseScope(s string) (Scopes, error) {
	if len(s) > MaxScope {
		return nil, ErrScope
	}
	var out Scopes
	for word := range strings.SplitSeq(s, " ") {
		if !ValidScopeWord(word) {
			return nil, ErrScope
		}
		if !slices.Contains(out, word) {
			out = append(out, word)
		}
	}
	return out, nil
}

// ValidScopeWord reports whether s is a scope-token of RFC 6749 §3.3: 1*( %x21 / %x23-5B / %x5D-7E ).
func ValidScopeWord(s string) bool {
	for _, c := range []byte(s) {
		if c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return false
		}
	}
	return s != "" && len(s) <= MaxScope
}

// String gives the scope parameter.
func (s Scopes) String() string { return strings.Join(s, " ") }
