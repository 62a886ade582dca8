package verify

import (
	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// algorithm is the only one that a token may name, RSASSA-PKCS1-v1_5 with SHA-256 (RFC 7518 §3.3). It is fixed here, not
// chosen by a header.
const algorithm = "RS256"

// signature checks signatures. The JOSE library is used here and nowhere else in this package, and only for this: it never
// sees a token, only the text that was signed, the signature and the key.
type signature struct{ rs256 jws.Verifier }

func newSignature() (signature, error) {
	v, err := jws.NewVerifier(jwa.RS256)
	return signature{v}, err
}

// good says whether sig is the key's signature over signed.
func (s signature) good(signed, sig []byte, key *Key) bool {
	return len(sig) == key.public.Size() && s.rs256.Verify(signed, sig, key.public) == nil
}
