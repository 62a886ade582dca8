package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
)

// KEK is a key-encryption key. It lives outside the database, in the key file.
type KEK struct {
	ID  string // 1 to 64 characters of A-Z a-z 0-9 . _ -; stands in the clear in what it seals
	Key []byte // 32 bytes
}

// String keeps the key out of logs.
func (k KEK) String() string { return "KEK{" + k.ID + " redacted}" }

// GoString keeps the key out of logs that print with %#v.
func (k KEK) GoString() string { return k.String() }

// ErrKEKUnknown is in the chain of what Open answers when no KEK has the id that sealed; the message names the id.
var ErrKEKUnknown = errors.New("no key-encryption key has this id")

// ErrSealBroken is in the chain of what Open answers when the KEK is wrong, or the sealed bytes or their row were altered.
var ErrSealBroken = errors.New("the seal does not open: wrong key-encryption key, or altered or swapped row")

// Sealer seals the private halves with AES-256-GCM. The first KEK seals, all of them open.
type Sealer struct {
	first string
	aeads map[string]cipher.AEAD
}

// What is sealed is sealVersion ‖ length of the KEK's id ‖ the id ‖ nonce (12 bytes) ‖ ciphertext and tag.
const sealVersion = 1

// sealPurpose binds a seal to this use, so that bytes sealed for something else never open as a signing key.
const sealPurpose = "authsvc/signing-key"

// NewSealer takes the KEKs in order. It refuses an empty list, a repeated or malformed id, and a key that is not 32 bytes.
func NewSealer(keks []KEK) (*Sealer, error) {
	if len(keks) == 0 {
		return nil, errors.New("keys: no key-encryption key is configured")
	}
	s := &Sealer{first: keks[0].ID, aeads: make(map[string]cipher.AEAD, len(keks))}
	for _, k := range keks {
		if !validKEKID(k.ID) {
			return nil, fmt.Errorf("keys: the key-encryption key id %q is not 1 to 64 characters of A-Z a-z 0-9 . _ -", k.ID)
		}
		if s.aeads[k.ID] != nil {
			return nil, fmt.Errorf("keys: the key-encryption key id %q stands twice", k.ID)
		}
		if len(k.Key) != 32 {
			return nil, fmt.Errorf("keys: the key-encryption key %q has %d bytes, not 32", k.ID, len(k.Key))
		}
		block, err := aes.NewCipher(k.Key)
		if err != nil {
			return nil, fmt.Errorf("keys: the key-encryption key %q: %w", k.ID, err)
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, fmt.Errorf("keys: the key-encryption key %q: %w", k.ID, err)
		}
		s.aeads[k.ID] = aead
	}
	return s, nil
}

func validKEKID(id string) bool {
	if len(id) == 0 || len(id) > 64 {
		return false
	}
	for _, c := range []byte(id) {
		if (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '.' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// Seal seals a private key (PKCS #8 DER) for the row kid with the first KEK.
func (s *Sealer) Seal(kid string, der []byte) []byte {
	out := append([]byte{sealVersion, byte(len(s.first))}, s.first...)
	return s.aeads[s.first].Seal(out, nil, der, associated(kid))
}

// Open gives back what Seal was given for the same kid. Its errors name the KEK id and the kid, never key material.
func (s *Sealer) Open(kid string, sealed []byte) ([]byte, error) {
	id, rest, err := splitSealed(sealed)
	if err != nil {
		return nil, fmt.Errorf("keys: signing key %s: %w", kid, err)
	}
	aead := s.aeads[id]
	if aead == nil {
		return nil, fmt.Errorf("keys: signing key %s is sealed with the key-encryption key %q: %w", kid, id, ErrKEKUnknown)
	}
	der, err := aead.Open(nil, nil, rest, associated(kid))
	if err != nil {
		return nil, fmt.Errorf("keys: signing key %s, key-encryption key %q: %w", kid, id, ErrSealBroken)
	}
	return der, nil
}

// Current reports whether the first KEK sealed these bytes, so that rewrap has nothing to do.
func (s *Sealer) Current(sealed []byte) bool {
	id, _, err := splitSealed(sealed)
	return err == nil && id == s.first
}

// Generate makes a new key, sealed; it is the Generator of a running server.
func (s *Sealer) Generate() (Key, error) {
	private, key, err := Generate()
	if err != nil {
		return Key{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return Key{}, fmt.Errorf("keys: encode %s: %w", key.ID, err)
	}
	key.Sealed = s.Seal(key.ID, der)
	return key, nil
}

// private opens the private half of a row and proves that it belongs to the row's public half.
func (s *Sealer) private(k Key, public *rsa.PublicKey) (*rsa.PrivateKey, error) {
	if len(k.Sealed) == 0 {
		return nil, fmt.Errorf("keys: signing key %s has no private half", k.ID)
	}
	der, err := s.Open(k.ID, k.Sealed)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("keys: the private half of %s is not PKCS #8", k.ID)
	}
	private, ok := parsed.(*rsa.PrivateKey)
	if !ok || !private.PublicKey.Equal(public) {
		return nil, fmt.Errorf("keys: the private half of %s belongs to another key", k.ID)
	}
	return private, nil
}

func splitSealed(sealed []byte) (id string, rest []byte, err error) {
	if len(sealed) < 2 || sealed[0] != sealVersion || len(sealed) < 2+int(sealed[1]) {
		return "", nil, fmt.Errorf("not a sealed key: %w", ErrSealBroken)
	}
	n := 2 + int(sealed[1])
	return string(sealed[2:n]), sealed[n:], nil
}

func associated(kid string) []byte {
	return []byte(sealPurpose + "\x00" + Algorithm + "\x00" + kid)
}
