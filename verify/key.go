package verify

import (
	"context"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
)

// The sizes of RSA moduli that are accepted, in bits: below is too weak, above is a way to make verifiers burn their time.
const (
	minModulus = 2048
	maxModulus = 4096
)

// KeySource finds the issuer's public keys. Key is called on every Verify and must be fast where the answer is known. It
// answers ErrKeyUnknown for a kid that the issuer does not publish now, and ErrNotReady while it has no keys at all. A key that
// the source no longer serves ends every verdict that stood on it.
type KeySource interface {
	Key(ctx context.Context, kid string) (*Key, error)
}

// Key is one RSA public key that may sign access tokens. It never changes.
type Key struct {
	id     string
	public *rsa.PublicKey
}

// NewKey makes a key, or says why no token should be believed on its word: the modulus has less than 2048 or more than
// 4096 bits, is even or has the mark of CVE-2017-15361; the exponent is even or below 65537; the id is not 1 to 64 characters of
// base64url.
func NewKey(id string, public *rsa.PublicKey) (*Key, error) {
	if !validKeyID(id) {
		return nil, errors.New("verify: the key id is not 1 to 64 characters of base64url")
	}
	if public == nil || public.N == nil || public.N.Sign() <= 0 {
		return nil, errors.New("verify: the key has no modulus")
	}
	switch bits := public.N.BitLen(); {
	case bits < minModulus || bits > maxModulus:
		return nil, fmt.Errorf("verify: the modulus has %d bits, not %d to %d", bits, minModulus, maxModulus)
	case public.N.Bit(0) == 0:
		return nil, errors.New("verify: the modulus is even")
	case public.E < 65537 || public.E&1 == 0 || public.E > 1<<31-1:
		return nil, errors.New("verify: the exponent is not an odd number from 65537 to 2^31-1")
	case infineon(public.N):
		return nil, errors.New("verify: the modulus comes from a generator that is broken (CVE-2017-15361)")
	}
	return &Key{id: id, public: &rsa.PublicKey{N: new(big.Int).Set(public.N), E: public.E}}, nil
}

// ID is the key's kid.
func (k *Key) ID() string { return k.id }

func (k *Key) equal(other *Key) bool {
	return k.id == other.id && k.public.E == other.public.E && k.public.N.Cmp(other.public.N) == 0
}

// infineon tells moduli of the ROCA kind: modulo every small prime they are powers of 65537, which chance gives about one
// modulus in 2^27 (Nemec et al., The Return of Coppersmith's Attack, §3.4).
func infineon(n *big.Int) bool {
	primes := [...]int64{
		3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109,
		113, 127, 131, 137, 139, 149, 151, 157, 163, 167,
	}
	rest := new(big.Int)
	for _, p := range primes {
		r := rest.Mod(n, big.NewInt(p)).Int64()
		power := int64(1)
		for power != r {
			if power = power * 65537 % p; power == 1 {
				return false
			}
		}
	}
	return true
}

// keySet is what one reading of a JWK Set gave.
type keySet struct {
	keys    map[string]*Key
	dropped []error // one for each key that was not taken
}

// key answers for the set as KeySource does.
func (s *keySet) key(kid string) (*Key, error) {
	if k, ok := s.keys[kid]; ok {
		return k, nil
	}
	return nil, ErrKeyUnknown
}

// readKeySet reads a JWK Set (RFC 7517 §5). A key that cannot be used is dropped, and so is every key whose kid is there twice:
// nobody can say which one was meant. It is an error if no key is left. Keys equal to those of old stay the same object.
func readKeySet(data []byte, old *keySet) (*keySet, error) {
	strict := reader{s: string(data)}
	if !strict.open('{') {
		return nil, errors.New("verify: the key set is not a JSON object")
	}
	strict.i--
	if !strict.skip(0) || !strict.end() {
		return nil, errors.New("verify: the key set is not strict JSON")
	}
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, errors.New("verify: the key set has no list of keys")
	}
	set, count := &keySet{keys: make(map[string]*Key, len(doc.Keys))}, map[string]int{}
	for i, raw := range doc.Keys {
		kid, k, err := readKey(raw)
		if count[kid]++; kid != "" && count[kid] > 1 {
			delete(set.keys, kid)
			err = errors.New("verify: the kid is in the set more than once")
		}
		if err != nil {
			set.dropped = append(set.dropped, fmt.Errorf("key %d of the set: %w", i, err))
			continue
		}
		if old != nil && old.keys[kid] != nil && old.keys[kid].equal(k) {
			k = old.keys[kid]
		}
		set.keys[kid] = k
	}
	if len(set.keys) == 0 {
		return nil, errors.Join(append([]error{errors.New("verify: the key set has no usable key")}, set.dropped...)...)
	}
	return set, nil
}

// readKey reads one JWK. The kid is given even for a key that is refused, so that it counts where another has the same.
func readKey(raw []byte) (kid string, _ *Key, err error) {
	var j struct {
		Type    string   `json:"kty"`
		ID      string   `json:"kid"`
		Use     string   `json:"use"`
		Alg     string   `json:"alg"`
		KeyOps  []string `json:"key_ops"`
		N       string   `json:"n"`
		E       string   `json:"e"`
		Private *string  `json:"d"`
		P       *string  `json:"p"`
		Q       *string  `json:"q"`
		DP      *string  `json:"dp"`
		DQ      *string  `json:"dq"`
		QI      *string  `json:"qi"`
		Secret  *string  `json:"k"`
	}
	if err := json.Unmarshal(raw, &j); err != nil {
		return "", nil, errors.New("verify: a member of the key has the wrong type")
	}
	switch {
	case j.Type != "RSA":
		return j.ID, nil, errors.New("verify: kty is not RSA")
	case j.Use != "" && j.Use != "sig":
		return j.ID, nil, errors.New("verify: use is not sig")
	case j.Alg != "" && j.Alg != algorithm:
		return j.ID, nil, errors.New("verify: alg is not RS256")
	case j.KeyOps != nil && !(len(j.KeyOps) == 1 && j.KeyOps[0] == "verify"):
		return j.ID, nil, errors.New("verify: key_ops is not verify alone")
	case j.Private != nil || j.P != nil || j.Q != nil || j.DP != nil || j.DQ != nil || j.QI != nil || j.Secret != nil:
		return j.ID, nil, errors.New("verify: the key has private parts, so it is no secret any more")
	}
	n, errN := base64.RawURLEncoding.Strict().DecodeString(j.N)
	e, errE := base64.RawURLEncoding.Strict().DecodeString(j.E)
	if errN != nil || errE != nil || len(n) > maxModulus/8+1 || len(e) == 0 || len(e) > 4 {
		return j.ID, nil, errors.New("verify: n or e is not an integer of a size that is accepted")
	}
	public := &rsa.PublicKey{N: new(big.Int).SetBytes(n), E: int(new(big.Int).SetBytes(e).Int64())}
	k, err := NewKey(j.ID, public)
	return j.ID, k, err
}

// Static is a KeySource that never changes, for tests and for keys that are delivered with the program.
type Static struct{ set *keySet }

// NewStatic reads a JWK Set (RFC 7517 §5). Keys that cannot be used are dropped; it is an error if none is left.
func NewStatic(jwks []byte) (*Static, error) {
	set, err := readKeySet(jwks, nil)
	if err != nil {
		return nil, err
	}
	return &Static{set}, nil
}

// Key answers from the set; it never waits.
func (s *Static) Key(_ context.Context, kid string) (*Key, error) { return s.set.key(kid) }

// Without gives the set without the keys whose kid is among the revoked; none may be left. Where nothing is revoked it is the same
// object.
func (s *Static) Without(revoked func(kid string) bool) *Static {
	left := make(map[string]*Key, len(s.set.keys))
	for kid, k := range s.set.keys {
		if !revoked(kid) {
			left[kid] = k
		}
	}
	if len(left) == len(s.set.keys) {
		return s
	}
	return &Static{&keySet{keys: left, dropped: s.set.dropped}}
}

// Dropped says why keys of the set were not taken, one error each.
func (s *Static) Dropped() []error { return append([]error(nil), s.set.dropped...) }
