// Package ids makes and checks the identifiers and random secrets of authsvc: 16 random bytes for an identifier, 32 for
// a secret, both as unpadded base64url (RFC 4648 §5), so that they pass through URLs, headers and shells untouched.
package ids

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
)

// Typed identifiers, each the 22 base64url characters of 16 random bytes; a client's may also be chosen by its operator.
type (
	// Account names an account; it is the sub of a person's tokens.
	Account string
	// Client names an OAuth client; it is client_id, and the sub of a service's tokens.
	Client string
	// Device names a device on which somebody has signed in.
	Device string
	// Session names a session; it is the sid claim.
	Session string
	// Token names an access token; it is the jti claim.
	Token string
)

// ErrMalformed is what Bytes answers for anything that New could not have made.
var ErrMalformed = errors.New("ids: not the base64url of 16 bytes")

// New gives a fresh identifier.
func New[T ~string]() T {
	var b [16]byte
	rand.Read(b[:])
	return From[T](b)
}

// From gives the text of a raw identifier.
func From[T ~string](b [16]byte) T { return T(base64.RawURLEncoding.EncodeToString(b[:])) }

// Bytes gives the 16 bytes of an identifier, refusing every non-canonical spelling.
func Bytes[T ~string](id T) ([16]byte, error) {
	var b [16]byte
	if len(id) != 22 {
		return b, ErrMalformed
	}
	if n, err := base64.RawURLEncoding.Strict().Decode(b[:], []byte(id)); err != nil || n != 16 {
		return b, ErrMalformed
	}
	return b, nil
}

// Secret gives 256 random bits as text, for client secrets and bootstrap passwords.
func Secret() string {
	var b [32]byte
	rand.Read(b[:])
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Random fills b with random bytes, for keys and session secrets.
func Random(b []byte) { rand.Read(b) }

// HashSecret is how a random secret is stored: SHA-256, since 256 random bits need no slow hash.
func HashSecret(secret string) [32]byte { return sha256.Sum256([]byte(secret)) }
