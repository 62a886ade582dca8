package keys

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
)

// Algorithm is the only algorithm that authsvc signs with (RFC 7518 §3.3). One key has one algorithm.
const Algorithm = "RS256"

// keyBits is the size of a new key: the only one with a fast path in Go, and it is the verifiers who pay.
const keyBits = 2048

// publicJWK is what the world sees of a key (RFC 7517 §4, RFC 7518 §6.3.1): the members that a verifier needs, in a fixed
// order, and no room for a private one.
type publicJWK struct {
	Type      string `json:"kty"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
	ID        string `json:"kid"`
	Modulus   string `json:"n"`
	Exponent  string `json:"e"`
}

// Generate makes an RSA key pair of 2048 bits with e = 65537. The Key has its ID (RFC 7638 thumbprint) and its Public JWK;
// it is neither sealed nor in a state.
func Generate() (*rsa.PrivateKey, Key, error) {
	private, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return nil, Key{}, fmt.Errorf("keys: generate: %w", err)
	}
	id := thumbprint(&private.PublicKey)
	public, err := json.Marshal(describe(id, &private.PublicKey))
	if err != nil {
		return nil, Key{}, fmt.Errorf("keys: encode %s: %w", id, err)
	}
	return private, Key{ID: id, Public: public}, nil
}

func describe(id string, public *rsa.PublicKey) publicJWK {
	return publicJWK{
		Type: "RSA", Use: "sig", Algorithm: Algorithm, ID: id,
		Modulus:  base64.RawURLEncoding.EncodeToString(public.N.Bytes()),
		Exponent: base64.RawURLEncoding.EncodeToString(big.NewInt(int64(public.E)).Bytes()),
	}
}

// thumbprint is the kid of a key: SHA-256 of its required members in lexicographic order, without spaces (RFC 7638 §3).
func thumbprint(public *rsa.PublicKey) string {
	d := describe("", public)
	sum := sha256.Sum256([]byte(`{"e":"` + d.Exponent + `","kty":"` + d.Type + `","n":"` + d.Modulus + `"}`))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// parsePublic reads a stored public JWK and proves that it is the key that its row names: a kid is a hash of the key, so a
// row whose public half was exchanged cannot keep its kid. A member that it does not know, such as a private one, is refused.
func parsePublic(kid string, raw []byte) (*rsa.PublicKey, error) {
	var d publicJWK
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&d); err != nil || dec.More() {
		return nil, fmt.Errorf("keys: the public JWK of %s cannot be read", kid)
	}
	n, err := base64.RawURLEncoding.Strict().DecodeString(d.Modulus)
	if err != nil {
		return nil, fmt.Errorf("keys: the public JWK of %s has a malformed modulus", kid)
	}
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: 65537}
	if describe(kid, public) != d {
		return nil, fmt.Errorf("keys: the public JWK of %s names another kid, alg, use or exponent", kid)
	}
	if thumbprint(public) != kid {
		return nil, fmt.Errorf("keys: the row of %s holds another key: its thumbprint differs", kid)
	}
	if public.N.BitLen() != keyBits {
		return nil, fmt.Errorf("keys: the key %s has %d bits, not %d", kid, public.N.BitLen(), keyBits)
	}
	return public, nil
}

// renderJWKS gives the JWK Set (RFC 7517 §5) of the keys, byte for byte the same for the same keys in the same order.
func renderJWKS(ids []string, publics []*rsa.PublicKey) ([]byte, error) {
	set := struct {
		Keys []publicJWK `json:"keys"`
	}{Keys: make([]publicJWK, 0, len(ids))}
	for i, id := range ids {
		set.Keys = append(set.Keys, describe(id, publics[i]))
	}
	out, err := json.Marshal(set)
	if err != nil {
		return nil, fmt.Errorf("keys: encode the JWK Set: %w", err)
	}
	return out, nil
}
