package password

import (
	_ "embed" // for the list
	"strings"
	"unicode/utf8"

	"github.com/authsvc/authsvc/internal/fault"
)

// list holds common passwords: lower case, sorted, one a line; common/README.md names its source and licence. It stays
// text that is searched in place, so that it costs no time at start and no memory beside the binary's own.
//
//go:embed common/list.txt
var list string

// product is a word that nobody's password should be made of here.
const product = "authsvc"

// Policy says whether a new password may be set: long enough, not common, not made of what everybody knows about the
// account. There are no rules of composition and no expiry (NIST SP 800-63B-4 §3.1.1.2).
type Policy struct{}

// NewPolicy makes the policy.
func NewPolicy() *Policy { return &Policy{} }

// Check answers Invalid/PASSWORD_REJECTED, with the field password, where the password may not be set for that username.
func (*Policy) Check(password, username string) error {
	n, err := normal(password)
	if err != nil {
		f := fault.From(err)
		return rejected(f.Violations[0].Description)
	}
	if utf8.RuneCountInString(n) < MinCodePoints {
		return rejected("must have at least 15 characters; a few words will do")
	}
	n = strings.ToLower(n)
	if Common(n) || run(n) || repeats(n) {
		return rejected("is one that attackers try first")
	}
	rest := n
	for _, word := range []string{strings.ToLower(username), product} {
		if utf8.RuneCountInString(word) >= 3 {
			rest = strings.ReplaceAll(rest, word, "")
		}
	}
	if rest != n && (utf8.RuneCountInString(rest) < 8 || Common(rest) || run(rest) || repeats(rest)) {
		return rejected("is little more than the username or the name of this service")
	}
	return nil
}

// Common reports whether the password, in lower case, is on the bundled list.
func Common(lower string) bool {
	if lower == "" || strings.ContainsRune(lower, '\n') {
		return false
	}
	low, high := 0, len(list) // both at the beginning of a line
	for low < high {
		start := low + (high-low)/2
		start = strings.LastIndexByte(list[:start], '\n') + 1
		end := start + strings.IndexByte(list[start:], '\n')
		switch c := strings.Compare(list[start:end], lower); {
		case c == 0:
			return true
		case c < 0:
			low = end + 1
		default:
			high = start
		}
	}
	return false
}

// repeats reports whether s is a short or common piece written over and over: "abcabcabcabcabc", "passwordpassword".
func repeats(s string) bool {
	for unit := 1; unit <= len(s)/2; unit++ {
		if len(s)%unit == 0 && strings.Repeat(s[:unit], len(s)/unit) == s && (unit <= 5 || Common(s[:unit]) || run(s[:unit])) {
			return true
		}
	}
	return false
}

// run reports whether s walks along the alphabet or the digits, in either direction: "abcdefghijklmnop", "890123456789012".
func run(s string) bool {
	step := func(a, b byte, by int) bool {
		switch {
		case a >= '0' && a <= '9':
			return int(b) == '0'+(int(a)-'0'+by+10)%10
		case a >= 'a' && a <= 'z':
			return int(b) == 'a'+(int(a)-'a'+by+26)%26
		}
		return false
	}
	up, down := len(s) > 1, len(s) > 1
	for i := 1; i < len(s); i++ {
		up, down = up && step(s[i-1], s[i], 1), down && step(s[i-1], s[i], -1)
	}
	return up || down
}

func rejected(why string) error {
	return &fault.Error{Kind: fault.Invalid, Reason: fault.PasswordRejected, Message: "the new password " + why,
		Violations: []fault.Violation{{Field: "password", Description: why}}}
}
