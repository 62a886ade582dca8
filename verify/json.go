package verify

import (
	"strings"
	"unicode/utf8"
)

// Bounds of the JSON that a token or a key set may hold.
const (
	maxDepth   = 8
	maxMembers = 64
)

// maxSeconds is the last second of the year 9999, the most that a NumericDate may be.
const maxSeconds = 253402300799

// reader reads JSON (RFC 8259) strictly: no duplicate names, none that differ only in case, no lone surrogates, bounded
// depth. Its methods stand on the first byte of what they read and report false for anything else. The text's UTF-8 is
// checked by open. Strings without escapes are substrings of the text.
type reader struct {
	s string
	i int
}

// open checks the text's encoding and enters the outermost object or array.
func (r *reader) open(bracket byte) bool {
	if !utf8.ValidString(r.s) {
		return false
	}
	r.space()
	return r.take(bracket)
}

// end says whether nothing but space is left.
func (r *reader) end() bool {
	r.space()
	return r.i == len(r.s)
}

func (r *reader) space() {
	for r.i < len(r.s) {
		switch r.s[r.i] {
		case ' ', '\t', '\n', '\r':
			r.i++
		default:
			return
		}
	}
}

func (r *reader) peek() byte {
	if r.i < len(r.s) {
		return r.s[r.i]
	}
	return 0
}

func (r *reader) take(c byte) bool {
	if r.peek() != c || r.i >= len(r.s) {
		return false
	}
	r.i++
	return true
}

// member reads the next name of an object and stands on its value, or leaves the object (more is false). seen holds the
// names so far; an object reads all of its members through one seen, empty at first.
func (r *reader) member(seen *[]string) (name string, more, ok bool) {
	r.space()
	if r.take('}') {
		return "", false, true
	}
	if len(*seen) > 0 {
		if !r.take(',') {
			return "", false, false
		}
		r.space()
	}
	if name, ok = r.text(); !ok || len(*seen) == maxMembers {
		return "", false, false
	}
	for _, other := range *seen {
		if sameFolded(other, name) {
			return "", false, false
		}
	}
	*seen = append(*seen, name)
	r.space()
	if !r.take(':') {
		return "", false, false
	}
	r.space()
	return name, true, true
}

// sameFolded is strings.EqualFold with a shortcut: folding changes the length only outside ASCII.
func sameFolded(a, b string) bool {
	if len(a) != len(b) && ascii(a) && ascii(b) {
		return false
	}
	return strings.EqualFold(a, b)
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// word reads a string that is not empty.
func (r *reader) word() (string, bool) {
	s, ok := r.text()
	return s, ok && s != ""
}

// words reads an array of strings that are not empty.
func (r *reader) words() ([]string, bool) {
	if !r.take('[') {
		return nil, false
	}
	out := make([]string, 0, 2)
	for {
		r.space()
		if r.take(']') {
			return out[:len(out):len(out)], true
		}
		if len(out) > 0 {
			if !r.take(',') {
				return nil, false
			}
			r.space()
		}
		s, ok := r.word()
		if !ok || len(out) == maxMembers {
			return nil, false
		}
		out = append(out, s)
	}
}

// text reads a string.
func (r *reader) text() (string, bool) {
	if !r.take('"') {
		return "", false
	}
	for start := r.i; r.i < len(r.s); r.i++ {
		switch c := r.s[r.i]; {
		case c == '"':
			r.i++
			return r.s[start : r.i-1], true
		case c == '\\':
			return r.escaped(start)
		case c < 0x20:
			return "", false
		}
	}
	return "", false
}

// escaped reads on, from the first backslash, a string that began at start.
func (r *reader) escaped(start int) (string, bool) {
	var b strings.Builder
	b.WriteString(r.s[start:r.i])
	for r.i < len(r.s) {
		c := r.s[r.i]
		r.i++
		switch {
		case c == '"':
			return b.String(), true
		case c < 0x20:
			return "", false
		case c != '\\':
			b.WriteByte(c)
		default:
			char, ok := r.escape()
			if !ok {
				return "", false
			}
			b.WriteRune(char)
		}
	}
	return "", false
}

func (r *reader) escape() (rune, bool) {
	c := r.peek()
	r.i++
	switch c {
	case '"', '\\', '/':
		return rune(c), true
	case 'b':
		return '\b', true
	case 'f':
		return '\f', true
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	case 'u':
		return r.unicode()
	}
	return 0, false
}

// unicode reads the four digits of a \u escape, and the second half of a surrogate pair; half a pair is refused.
func (r *reader) unicode() (rune, bool) {
	const high, low, end = 0xd800, 0xdc00, 0xe000
	first, ok := r.hex4()
	if !ok || first < high || first >= end {
		return first, ok
	}
	if first >= low || !r.take('\\') || !r.take('u') {
		return 0, false
	}
	second, ok := r.hex4()
	if !ok || second < low || second >= end {
		return 0, false
	}
	return (first-high)<<10 + (second - low) + 0x10000, true
}

func (r *reader) hex4() (rune, bool) {
	if len(r.s)-r.i < 4 {
		return 0, false
	}
	var n rune
	for range 4 {
		c := rune(r.s[r.i])
		r.i++
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | c
	}
	return n, true
}

// seconds reads a NumericDate (RFC 7519 §2) between 1970 and 9999: digits only, or with a fraction, which is cut off. Exponents
// are refused.
func (r *reader) seconds(fraction bool) (int64, bool) {
	start := r.i
	var n int64
	for ; r.i < len(r.s) && '0' <= r.s[r.i] && r.s[r.i] <= '9'; r.i++ {
		n = n*10 + int64(r.s[r.i]-'0')
		if n > maxSeconds {
			return 0, false
		}
	}
	digits := r.i - start
	if digits == 0 || digits > 1 && r.s[start] == '0' {
		return 0, false
	}
	if fraction && r.take('.') && !r.digits() {
		return 0, false
	}
	c := r.peek()
	return n, c != '.' && c != 'e' && c != 'E'
}

func (r *reader) digits() bool {
	start := r.i
	for r.i < len(r.s) && '0' <= r.s[r.i] && r.s[r.i] <= '9' {
		r.i++
	}
	return r.i > start
}

// skip reads any value and forgets it, as strictly as the others.
func (r *reader) skip(depth int) bool {
	if depth == maxDepth {
		return false
	}
	switch c := r.peek(); c {
	case '"':
		_, ok := r.text()
		return ok
	case '{':
		return r.skipObject(depth)
	case '[':
		return r.skipArray(depth)
	case 't':
		return r.literal("true")
	case 'f':
		return r.literal("false")
	case 'n':
		return r.literal("null")
	default:
		return r.number()
	}
}

func (r *reader) skipObject(depth int) bool {
	r.i++
	var seen []string
	for {
		_, more, ok := r.member(&seen)
		if !ok || !more {
			return ok
		}
		if !r.skip(depth + 1) {
			return false
		}
	}
}

func (r *reader) skipArray(depth int) bool {
	r.i++
	for first := true; ; first = false {
		r.space()
		if r.take(']') {
			return true
		}
		if !first {
			if !r.take(',') {
				return false
			}
			r.space()
		}
		if !r.skip(depth + 1) {
			return false
		}
	}
}

func (r *reader) literal(word string) bool {
	if !strings.HasPrefix(r.s[r.i:], word) {
		return false
	}
	r.i += len(word)
	return true
}

func (r *reader) number() bool {
	r.take('-')
	if !r.take('0') && !r.digits() {
		return false
	}
	if r.take('.') && !r.digits() {
		return false
	}
	if r.take('e') || r.take('E') {
		if !r.take('+') {
			r.take('-')
		}
		return r.digits()
	}
	return true
}
