package verify_test

import (
	"crypto/rsa"
	"math/big"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/verify"
)

func TestKeysThatAreDropped(t *testing.T) {
	t.Parallel()
	public := &ourKey().PublicKey
	ones := func(bits uint) *big.Int { // an odd number of so many bits
		n := new(big.Int).Lsh(big.NewInt(1), bits)
		return n.Sub(n, big.NewInt(1))
	}
	pub := func(n *big.Int, e int) *rsa.PublicKey { return &rsa.PublicKey{N: n, E: e} }
	// A power of 65537 is one modulo every prime, which is the mark of ROCA.
	roca := new(big.Int).Exp(big.NewInt(65537), big.NewInt(127), nil)
	good := jwk("bad", public)
	for name, bad := range map[string]string{
		"J25 a modulus of 1024 bits":        jwk("bad", pub(ones(1024), 65537)),
		"J25 a modulus of 2047 bits":        jwk("bad", pub(ones(2047), 65537)),
		"J25 a modulus of 4097 bits":        jwk("bad", pub(ones(4097), 65537)),
		"J25 a modulus of 16384 bits":       jwk("bad", pub(ones(16384), 65537)),
		"J25 an even modulus":               jwk("bad", pub(new(big.Int).Lsh(ones(2047), 1), 65537)),
		"J25 a ROCA modulus":                jwk("bad", pub(roca, 65537)),
		"J25 e of 1":                        jwk("bad", pub(public.N, 1)),
		"J25 e of 3":                        jwk("bad", pub(public.N, 3)),
		"J25 e even":                        jwk("bad", pub(public.N, 65538)),
		"J25 e of 5 bytes":                  with(t, good, `"e":"AQAB"`, `"e":"AQABAQA"`),
		"J25 use enc":                       jwk("bad", public, `"use":"enc"`),
		"J25 alg RS512":                     jwk("bad", public, `"alg":"RS512"`),
		"J25 key_ops sign":                  jwk("bad", public, `"key_ops":["sign","verify"]`),
		"J25 kty EC":                        with(t, good, `"kty":"RSA"`, `"kty":"EC"`),
		"J25 kty oct":                       with(t, good, `"kty":"RSA"`, `"kty":"oct","k":"AAAA"`),
		"J25 private exponent":              jwk("bad", public, `"d":"AAAA"`),
		"J25 a private prime":               jwk("bad", public, `"p":""`),
		"J25 no kid":                        with(t, good, `"kid":"bad",`, ""),
		"J25 kid with other characters":     with(t, good, `"kid":"bad"`, `"kid":"../bad"`),
		"J25 kid a number":                  with(t, good, `"kid":"bad"`, `"kid":7`),
		"J25 n missing":                     `{"kty":"RSA","kid":"bad","e":"AQAB"}`,
		"J25 n padded":                      with(t, good, `","e"`, `=","e"`),
		"J25 n is no base64url":             `{"kty":"RSA","kid":"bad","n":"!!!!","e":"AQAB"}`,
		"J25 a key that is not an object":   `"bad"`,
		"J25 a duplicate kid":               good + "," + jwk("bad", &otherKey().PublicKey),
		"J25 a duplicate kid, one unusable": good + "," + jwk("bad", public, `"use":"enc"`),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := verify.NewStatic(jwks(jwk("key-1", public), bad, jwk("key-3", &otherKey().PublicKey)))
			if err != nil {
				t.Fatalf("the other keys were lost: %v", err)
			}
			if k, err := s.Key(t.Context(), "bad"); err == nil {
				t.Errorf("the key is served as %q", k.ID())
			}
			if len(s.Dropped()) == 0 {
				t.Error("nobody is told that a key was dropped")
			}
			for _, kid := range []string{"key-1", "key-3"} {
				if _, err := s.Key(t.Context(), kid); err != nil {
					t.Errorf("%s is not usable: %v", kid, err)
				}
			}
		})
	}
	s, err := verify.NewStatic(jwks(good, jwk("key-1", public, `"use":"sig"`, `"alg":"RS256"`, `"key_ops":["verify"]`, `"x5t":"abc"`)))
	if err != nil || len(s.Dropped()) != 0 {
		t.Errorf("the twins were refused: %v %v", err, s.Dropped())
	}
}

func TestSetsThatGiveNoKey(t *testing.T) {
	t.Parallel()
	good := string(jwks(jwk("key-1", &ourKey().PublicKey)))
	for name, bad := range map[string]string{
		"HTML":                     "<html></html>",
		"nothing":                  "",
		"an array":                 "[]",
		"no keys member":           "{}",
		"no keys":                  `{"keys":[]}`,
		"keys of the wrong type":   `{"keys":{}}`,
		"keys twice":               strings.Replace(good, `{"keys"`, `{"keys":[],"keys"`, 1),
		"something after the set":  good + "x",
		"a member of a key twice":  strings.Replace(good, `"kty"`, `"kty":"EC","kty"`, 1),
		"a set that is not UTF-8":  strings.Replace(good, "key-1", "key-\xff", 1),
		"only a key that is unfit": string(jwks(jwk("key-1", &ourKey().PublicKey, `"use":"enc"`))),
		"a set nested without end": strings.Repeat(`{"keys":`, 100),
	} {
		if _, err := verify.NewStatic([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := verify.NewStatic([]byte(good)); err != nil {
		t.Errorf("the twin was refused: %v", err)
	}
}

func TestNewKeyTakesNoKeyWithoutANumber(t *testing.T) {
	t.Parallel()
	for name, public := range map[string]*rsa.PublicKey{"nil": nil, "no modulus": {E: 65537}, "zero": {N: new(big.Int), E: 65537}} {
		if _, err := verify.NewKey("key-1", public); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if k, err := verify.NewKey("key-1", &ourKey().PublicKey); err != nil || k.ID() != "key-1" {
		t.Errorf("the twin was refused: %v", err)
	}
}
