package verify_test

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/verify"
)

const (
	issuer   = "https://auth.example"
	audience = "https://api.example"

	issued  = 1_800_000_000
	expires = issued + 300

	header  = `{"alg":"RS256","typ":"at+jwt","kid":"key-1"}`
	payload = `{"iss":"https://auth.example","sub":"acct","aud":["https://api.example"],"exp":1800000300,` +
		`"iat":1800000000,"nbf":1800000000,"jti":"tok","client_id":"web","sid":"sess",` +
		`"scope":"orders.read orders.write","auth_time":1799990000,"amr":["pwd"]}`
)

// now is a minute into the life of the payload above.
func now() time.Time { return time.Unix(issued+60, 0) }

// The keys of the suite, made once: the issuer's, and another's.
var (
	ourKey   = sync.OnceValue(newRSA)
	otherKey = sync.OnceValue(newRSA)
)

func newRSA() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(nil, 2048)
	if err != nil {
		panic(err)
	}
	return key
}

func encode[T string | []byte](b T) string { return base64.RawURLEncoding.EncodeToString([]byte(b)) }

// mint signs the two texts as they are.
func mint(t testing.TB, header, payload string) string {
	t.Helper()
	return mintWith(t, ourKey(), header, payload)
}

func mintWith(t testing.TB, key *rsa.PrivateKey, header, payload string) string {
	t.Helper()
	signed := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + encode(signature)
}

// with replaces one text that must be there.
func with(t testing.TB, text, old, replacement string) string {
	t.Helper()
	if strings.Count(text, old) != 1 {
		t.Fatalf("%q is not in %q once", old, text)
	}
	return strings.Replace(text, old, replacement, 1)
}

func jwk(kid string, key *rsa.PublicKey, extra ...string) string {
	e := big.NewInt(int64(key.E)).Bytes()
	fields := append([]string{
		`"kty":"RSA"`, `"kid":"` + kid + `"`, `"n":"` + encode(key.N.Bytes()) + `"`, `"e":"` + encode(e) + `"`,
	}, extra...)
	return "{" + strings.Join(fields, ",") + "}"
}

func jwks(keys ...string) []byte { return []byte(`{"keys":[` + strings.Join(keys, ",") + `]}`) }

func ourKeys(t testing.TB) *verify.Static {
	t.Helper()
	s, err := verify.NewStatic(jwks(jwk("key-1", &ourKey().PublicKey, `"use":"sig"`, `"alg":"RS256"`)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func newVerifier(t testing.TB, change func(*verify.Options)) *verify.Verifier {
	t.Helper()
	o := verify.Options{Issuer: issuer, Audiences: []string{audience}, Keys: ourKeys(t), Now: now}
	if change != nil {
		change(&o)
	}
	v, err := verify.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// attack is a bad token, and its unsafe twin: the same with the fault taken out.
type attack struct {
	name string
	bad  string
	twin string
	want error
}

// run presents each attack twice, so that a cache would show, and its twin, which must be accepted.
func run(t *testing.T, v *verify.Verifier, attacks []attack) {
	t.Helper()
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			for range 2 {
				if claims, err := v.Verify(t.Context(), a.bad); !errors.Is(err, a.want) || claims != nil {
					t.Errorf("the attack gave claims %v and error %v, want %v", claims, err, a.want)
				}
			}
			if _, err := v.Verify(t.Context(), a.twin); err != nil {
				t.Errorf("the twin was refused: %v", err)
			}
		})
	}
}

func numbered(format string, n int) string { return fmt.Sprintf(format, n) }
