package session

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
)

// The layout of a refresh token: a prefix that names the format, then the base64url of
// key id ‖ sid ‖ generation (big-endian) ‖ session secret ‖ MAC.
const (
	// TokenPrefix begins every refresh token, and no JWT: it tells the two apart.
	TokenPrefix = "rt1."

	atSession    = 1
	atGeneration = atSession + 16
	atSecret     = atGeneration + 4
	atMAC        = atSecret + 16
	tokenBytes   = atMAC + 16

	// tokenLength is the length of the text of every refresh token, in bytes.
	tokenLength = len(TokenPrefix) + (tokenBytes*8+5)/6

	// minKeyBytes is the least length of a refresh key: that of the hash's output (RFC 2104 §3).
	minKeyBytes = 32

	// macDomain separates this MAC from any other use of the same key.
	macDomain = "authsvc refresh token rt1\x00"

	redacted = "redacted"
)

// RefreshKey is one entry of the refresh key file.
type RefreshKey struct {
	ID   byte
	Key  []byte // at least 32 random bytes; may be empty where Gone is set
	Gone bool   // withdrawn: whatever it made is REFRESH_INVALID, unlike what an unlisted key made
}

// Format prints the entry without its key, whatever the verb.
func (k RefreshKey) Format(s fmt.State, _ rune) {
	fmt.Fprintf(s, "RefreshKey{%d %s}", k.ID, redacted)
}

// LogValue keeps the key out of structured logs.
func (k RefreshKey) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }

// RefreshKeys makes and reads refresh tokens, and device tokens, of one issuer. It is immutable and safe for concurrent use.
type RefreshKeys struct {
	issuer   []byte // framed by its length
	preamble []byte // what the MAC of every refresh token begins with: the domain and the issuer
	first    byte
	byID     map[byte]RefreshKey
}

// NewRefreshKeys takes the list of the key file: the first serves new sessions, the others only those that were born with
// them. It refuses an empty issuer, an empty list, an id listed twice, a key under 32 bytes, and a first key that is gone.
func NewRefreshKeys(issuer string, keys []RefreshKey) (*RefreshKeys, error) {
	if issuer == "" || uint64(len(issuer)) > math.MaxUint32 {
		return nil, errors.New("session: the refresh keys need an issuer")
	}
	if len(keys) == 0 {
		return nil, errors.New("session: no refresh key")
	}
	if keys[0].Gone {
		return nil, fmt.Errorf("session: refresh key %d is gone, and the first key must serve new sessions", keys[0].ID)
	}
	k := &RefreshKeys{first: keys[0].ID, byID: make(map[byte]RefreshKey, len(keys))}
	k.issuer = append(binary.BigEndian.AppendUint32(nil, uint32(len(issuer))), issuer...)
	k.preamble = append([]byte(macDomain), k.issuer...)
	for _, key := range keys {
		if _, twice := k.byID[key.ID]; twice {
			return nil, fmt.Errorf("session: refresh key %d is listed twice", key.ID)
		}
		if !key.Gone && len(key.Key) < minKeyBytes {
			return nil, fmt.Errorf("session: refresh key %d has %d bytes, and needs at least %d", key.ID, len(key.Key), minKeyBytes)
		}
		key.Key = append([]byte(nil), key.Key...)
		k.byID[key.ID] = key
	}
	return k, nil
}

// Lists reports whether the key file has an entry with this id, withdrawn or not.
func (k *RefreshKeys) Lists(id byte) bool {
	_, ok := k.byID[id]
	return ok
}

// Format prints nothing of the keys, whatever the verb.
func (k *RefreshKeys) Format(s fmt.State, _ rune) {
	_, _ = io.WriteString(s, "RefreshKeys{"+redacted+"}")
}

// LogValue keeps the keys out of structured logs.
func (k *RefreshKeys) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(k)) }

// New draws a session secret for sid and gives what its row stores, the secret's SHA-256 and the key's id, and the token
// of generation 1. It fails, wrapping ids.ErrMalformed, only where sid is not an identifier.
func (k *RefreshKeys) New(sid ids.Session) (secretHash [32]byte, keyID byte, token string, err error) {
	raw, err := ids.Bytes(sid)
	if err != nil {
		return secretHash, 0, "", fmt.Errorf("session: refresh token for a malformed sid: %w", err)
	}
	var secret [16]byte
	ids.Random(secret[:])
	key := k.byID[k.first]
	return sha256.Sum256(secret[:]), key.ID, k.encode(key, raw, 1, secret), nil
}

// Presented is a refresh token whose MAC was good. It prints as redacted; the secret sits in a closure, so that even a struct
// that holds a Presented in an unexported field, where fmt cannot call its methods, prints none of it.
type Presented struct {
	Session    ids.Session
	Generation uint32   // at least 1
	SecretHash [32]byte // SHA-256 of the session secret, to be compared with the row's

	keyID  byte
	secret func() [16]byte
}

// Format prints the session and the generation, and nothing that helps to forge a token, whatever the verb.
func (p Presented) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, p.String()) }

// String names the session and the generation; the rest is redacted.
func (p Presented) String() string {
	return fmt.Sprintf("Presented{%s %d %s}", string(p.Session), p.Generation, redacted)
}

// GoString is String: %#v shows no more than %v.
func (p Presented) GoString() string { return p.String() }

// LogValue keeps the secret out of structured logs.
func (p Presented) LogValue() slog.Value { return slog.StringValue(p.String()) }

// Parse reads a refresh token and checks its MAC, in constant time and without I/O. Every token has exactly one spelling.
// A key id that is not listed is Unavailable/REFRESH_KEY_UNKNOWN, since another replica may have been given that key
// already. Everything else that is wrong, a withdrawn key included, is Unauthenticated/REFRESH_INVALID, in one wording.
func (k *RefreshKeys) Parse(token string) (Presented, error) {
	raw, ok := decodeToken(token)
	if !ok {
		return Presented{}, errInvalid()
	}
	key, listed := k.byID[raw[0]]
	if !listed {
		return Presented{}, fault.New(fault.Unavailable, fault.RefreshKeyUnknown, "this replica does not have the key of the refresh token")
	}
	if key.Gone {
		return Presented{}, errInvalid()
	}
	if want := k.mac(key, raw[:atMAC]); !hmac.Equal(want[:], raw[atMAC:]) {
		return Presented{}, errInvalid()
	}
	secret := [16]byte(raw[atSecret:atMAC])
	p := Presented{
		Session:    ids.From[ids.Session]([16]byte(raw[atSession:atGeneration])),
		Generation: binary.BigEndian.Uint32(raw[atGeneration:atSecret]),
		SecretHash: sha256.Sum256(secret[:]),
		keyID:      key.ID,
		secret:     func() [16]byte { return secret },
	}
	if p.Generation == 0 {
		return Presented{}, errInvalid() // generation 0 is never issued
	}
	return p, nil
}

// Successor gives the token of the same session at another generation: the same bytes each time, under the key that the
// session was born with. p comes from Parse of these same keys; for any other the answer is empty.
func (k *RefreshKeys) Successor(p Presented, generation uint32) string {
	key, listed := k.byID[p.keyID]
	sid, err := ids.Bytes(p.Session)
	if !listed || key.Gone || p.secret == nil || err != nil {
		return ""
	}
	return k.encode(key, sid, generation, p.secret())
}

// encode writes the one spelling of a token.
func (k *RefreshKeys) encode(key RefreshKey, sid [16]byte, generation uint32, secret [16]byte) string {
	raw := make([]byte, 0, tokenBytes)
	raw = append(raw, key.ID)
	raw = append(raw, sid[:]...)
	raw = binary.BigEndian.AppendUint32(raw, generation)
	raw = append(raw, secret[:]...)
	mac := k.mac(key, raw)
	raw = append(raw, mac[:]...)
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// mac covers the domain, the issuer framed by its length, and the fixed-length body, so that no two inputs run together.
func (k *RefreshKeys) mac(key RefreshKey, body []byte) [16]byte {
	h := hmac.New(sha256.New, key.Key)
	h.Write(k.preamble)
	h.Write(body)
	return [16]byte(h.Sum(nil)[:16])
}

// decodeToken undoes the text form. The decoder itself skips line breaks, which the exact count of bytes then refuses.
func decodeToken(token string) ([tokenBytes]byte, bool) {
	var raw [tokenBytes]byte
	if len(token) != tokenLength || token[:len(TokenPrefix)] != TokenPrefix {
		return raw, false
	}
	n, err := base64.RawURLEncoding.Strict().Decode(raw[:], []byte(token[len(TokenPrefix):]))
	return raw, err == nil && n == tokenBytes
}

// errInvalid is one answer for every bad token, so that it tells nothing about why.
func errInvalid() error {
	return fault.New(fault.Unauthenticated, fault.RefreshInvalid, "the refresh token is not valid")
}
