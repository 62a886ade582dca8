package oauth2

import (
	"encoding/base64"
	"errors"
	"net/url"
	"strings"
)

// Caps of client authentication, in bytes: the header, and each decoded part.
const (
	maxBasicHeader = 2048
	maxBasicPart   = 256
)

// ErrBasicMissing says that the header is absent or of another scheme.
var ErrBasicMissing = errors.New("oauth2: no HTTP Basic client authentication")

// ErrBasicMalformed says that the header is of the Basic scheme and cannot be read. It never holds what the header held.
var ErrBasicMalformed = errors.New("oauth2: malformed HTTP Basic client authentication")

// ParseBasic reads the Authorization header of a client (RFC 6749 §2.3.1): canonical base64 (RFC 7617) of the client id, one
// colon and the secret, each form-encoded and of printable ASCII (RFC 6749 appendix A), neither empty.
func ParseBasic(header string) (id, secret string, err error) {
	scheme, credentials, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Basic") {
		return "", "", ErrBasicMissing
	}
	if len(header) > maxBasicHeader || strings.ContainsAny(credentials, "\r\n") { // the decoder would skip line breaks
		return "", "", ErrBasicMalformed
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(credentials)
	if err != nil {
		return "", "", ErrBasicMalformed
	}
	left, right, found := strings.Cut(string(raw), ":")
	if !found || strings.Contains(right, ":") {
		return "", "", ErrBasicMalformed
	}
	id, okID := basicPart(left)
	secret, okSecret := basicPart(right)
	if !okID || !okSecret {
		return "", "", ErrBasicMalformed
	}
	return id, secret, nil
}

func basicPart(encoded string) (string, bool) {
	s, err := url.QueryUnescape(encoded)
	if err != nil || s == "" || len(s) > maxBasicPart {
		return "", false
	}
	for _, c := range []byte(s) {
		if c < 0x20 || c > 0x7e {
			return "", false
		}
	}
	return s, true
}
