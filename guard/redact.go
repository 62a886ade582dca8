package guard

import (
	"fmt"
	"io"
	"net/url"
)

// What holds a secret prints without it, by the verbs of fmt that are for values and, where its fields are exported, as JSON or by
// log/slog. Where fmt does not ask it how, because it stands in an unexported field, there is nothing to find: TokenSource and Feed
// hold secrets in functions and behind pointers only.

// Format prints the options without the secret.
func (o TokenSourceOptions) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, o.line()) }

// MarshalText gives the same line.
func (o TokenSourceOptions) MarshalText() ([]byte, error) { return []byte(o.line()), nil }

func (o TokenSourceOptions) line() string {
	return fmt.Sprintf("TokenSourceOptions{URL: %q, ClientID: %q, secrets redacted}", plainURL(o.URL), o.ClientID)
}

// plainURL is for a URL that nobody has checked yet, and which may have a password.
func plainURL(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "malformed"
	}
	return u.Redacted()
}

// Format prints where the source asks, and as whom.
func (s *TokenSource) Format(f fmt.State, _ rune) {
	if s == nil {
		_, _ = io.WriteString(f, "<nil>")
		return
	}
	_, _ = fmt.Fprintf(f, "TokenSource{URL: %q, ClientID: %q, secrets redacted}", s.url, s.o.ClientID)
}

// Format prints nothing of the token.
func (*refreshMemory) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "RefreshStore{redacted}") }

// Format prints the options without the secret.
func (o FeedOptions) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, o.line()) }

// MarshalText gives the same line.
func (o FeedOptions) MarshalText() ([]byte, error) { return []byte(o.line()), nil }

func (o FeedOptions) line() string {
	return fmt.Sprintf("FeedOptions{Target: %q, Issuer: %q, ClientID: %q, secrets redacted}", o.Target, o.Issuer, o.ClientID)
}

// Format prints where the feed comes from, and who asks for it.
func (f *Feed) Format(out fmt.State, _ rune) {
	if f == nil {
		_, _ = io.WriteString(out, "<nil>")
		return
	}
	_, _ = fmt.Fprintf(out, "Feed{Target: %q, Issuer: %q, ClientID: %q, secrets redacted}", f.o.Target, f.o.Issuer, f.o.ClientID)
}
