package verify_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"math/big"
	"os"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/verify"
)

// The vectors of Project Wycheproof; testdata/wycheproof/README.md says which, from where, and under what licence.
type (
	vectors struct {
		Count  int           `json:"numberOfTests"`
		Groups []vectorGroup `json:"testGroups"`
	}
	vectorGroup struct {
		Comment string          `json:"comment"`
		Public  json.RawMessage `json:"public"`
		Private json.RawMessage `json:"private"`
		Tests   []vector        `json:"tests"`
	}
	vector struct {
		ID      int      `json:"tcId"`
		Comment string   `json:"comment"`
		JWS     string   `json:"jws"`
		Result  string   `json:"result"`
		Flags   []string `json:"flags"`
	}
	vectorKey struct {
		ID  string `json:"kid"`
		Alg string `json:"alg"`
		N   string `json:"n"`
		E   string `json:"e"`
		X   string `json:"x"`
		Y   string `json:"y"`
		K   string `json:"k"`
	}
)

func (v vector) String() string { return fmt.Sprintf("tcId %d %s", v.ID, v.Comment) }

func readVectors(t *testing.T, name string) vectors {
	t.Helper()
	data, err := os.ReadFile("testdata/wycheproof/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	count, seen := 0, map[int]bool{}
	for _, g := range v.Groups {
		for _, test := range g.Tests {
			if test.Result != "valid" && test.Result != "invalid" {
				t.Errorf("%v: nothing is laid down for the result %q", test, test.Result)
			}
			if seen[test.ID] {
				t.Errorf("%v is there twice", test)
			}
			seen[test.ID] = true
			count++
		}
	}
	if count != v.Count {
		t.Errorf("%s holds %d vectors and says %d", name, count, v.Count)
	}
	return v
}

// members gives the group's keys as text: those that a verifier would be handed.
func (g vectorGroup) members(t *testing.T) []string {
	t.Helper()
	raw := g.Public
	if raw == nil {
		raw = g.Private
	}
	return keyMembers(t, raw)
}

// keyMembers gives the keys of a JWK Set, or a JWK alone.
func keyMembers(t *testing.T, raw json.RawMessage) []string {
	t.Helper()
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	if set.Keys == nil {
		return []string{string(raw)}
	}
	var out []string
	for _, k := range set.Keys {
		out = append(out, string(k))
	}
	return out
}

func parseVectorKey(t *testing.T, member string) vectorKey {
	t.Helper()
	var k vectorKey
	if err := json.Unmarshal([]byte(member), &k); err != nil {
		t.Fatal(err)
	}
	return k
}

func decoded(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return b
}

func (k vectorKey) rsa(t *testing.T) *rsa.PublicKey {
	t.Helper()
	return &rsa.PublicKey{N: new(big.Int).SetBytes(decoded(t, k.N)), E: int(new(big.Int).SetBytes(decoded(t, k.E)).Int64())}
}

// block opens an RSA signature: the bytes that it was made over.
func (k vectorKey) block(t *testing.T, signature []byte) []byte {
	t.Helper()
	public := k.rsa(t)
	em := new(big.Int).Exp(new(big.Int).SetBytes(signature), big.NewInt(int64(public.E)), public.N)
	return em.FillBytes(make([]byte, public.Size()))
}

// bare is the careless verifier: the standard library's check alone, by the algorithm it is told, over the text as it stands.
func (k vectorKey) bare(t *testing.T, alg, jws string) bool {
	t.Helper()
	dot := strings.LastIndexByte(jws, '.')
	if dot < 0 {
		return false
	}
	signed := []byte(jws[:dot])
	signature, err := base64.RawURLEncoding.DecodeString(jws[dot+1:])
	if err != nil {
		return false
	}
	h, sum := map[string]crypto.Hash{"256": crypto.SHA256, "384": crypto.SHA384, "512": crypto.SHA512}[alg[2:]],
		map[string]func() hash.Hash{"256": sha256.New, "384": sha512.New384, "512": sha512.New}[alg[2:]]
	digest := sum()
	digest.Write(signed)
	switch alg[:2] {
	case "HS":
		mac := hmac.New(sum, decoded(t, k.K))
		mac.Write(signed)
		return hmac.Equal(mac.Sum(nil), signature)
	case "ES":
		point := append(append([]byte{4}, decoded(t, k.X)...), decoded(t, k.Y)...)
		public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
		if err != nil || len(signature) != 64 {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
		return ecdsa.Verify(public, digest.Sum(nil), r, s)
	case "PS":
		return rsa.VerifyPSS(k.rsa(t), h, digest.Sum(nil), signature, &rsa.PSSOptions{SaltLength: h.Size()}) == nil
	}
	if public := k.rsa(t); public.E != 1 {
		return rsa.VerifyPKCS1v15(public, h, digest.Sum(nil), signature) == nil
	}
	// The standard library takes no exponent of 1, under which a signature is the padded block itself.
	return bytes.HasSuffix(k.block(t, signature), digest.Sum(nil))
}

// The steps of reading a token, in their order, and what refuses a vector.
const (
	segments  = "the segments" // not three of canonical base64url, or one is empty
	header1   = "the header"   // alg is not RS256, or kid has other characters
	keyFound  = "the key"      // not in the set, or dropped from it
	signature = "the signature"
	accepted  = "nothing"
)

// refusedBy takes a token as far as its signature, as Verify does. The vectors have no typ, which Verify asks for: it is added to
// what the header's reader sees, and the signature is checked over the vector's own text.
func refusedBy(t *testing.T, jws string, keys *verify.Static) string {
	t.Helper()
	header, _, _, err := verify.Segments(jws)
	if err != nil {
		return segments
	}
	if _, err := verify.ReadHeader(header, false); err == nil {
		t.Error("a header without typ was read")
	}
	kid, err := verify.ReadHeader(strings.Replace(header, "{", `{"typ":"at+jwt",`, 1), false)
	if err != nil {
		return header1
	}
	if keys == nil {
		return keyFound
	}
	key, err := keys.Key(t.Context(), kid)
	if err != nil {
		return keyFound
	}
	if good, err := verify.SignatureGood(jws, key); err != nil || !good {
		return signature
	}
	return accepted
}

// vectorSpan says what refuses the vectors from one number to another, and why where they are valid by Wycheproof's word.
type vectorSpan struct {
	from, to int
	by       string
	stricter string
}

// vectorSpans has each vector of json_web_signature_test.json once. No vector is "acceptable".
func vectorSpans() []vectorSpan {
	const alg, empty, kid, spelling = "alg is not RS256", "an access token has claims, so its payload is not empty",
		"kid has other characters than A-Z a-z 0-9 _ -", "a character that is not of base64url, in the header or the payload"
	return []vectorSpan{
		{1, 1, header1, alg}, {2, 2, header1, ""}, {3, 4, segments, ""}, {5, 5, header1, ""}, {6, 7, segments, ""},
		{8, 8, header1, ""}, {9, 17, segments, ""},
		{18, 18, header1, alg}, {19, 19, header1, ""}, {20, 21, segments, ""}, {22, 22, header1, ""},
		{23, 24, segments, ""}, {25, 25, header1, ""}, {26, 30, segments, ""}, {31, 32, header1, ""},
		{33, 33, accepted, ""}, {34, 34, signature, ""}, {35, 36, segments, ""}, {37, 37, signature, ""},
		{38, 39, segments, ""}, {40, 40, keyFound, ""}, {41, 45, segments, ""}, {46, 258, signature, ""},
		{259, 259, segments, empty}, {260, 263, accepted, ""},
		{264, 264, segments, empty}, {265, 267, header1, alg},
		{325, 325, segments, empty}, {326, 328, header1, alg}, {329, 331, header1, ""}, {332, 332, keyFound, ""},
		{333, 340, header1, ""}, {341, 344, segments, ""},
		{345, 345, header1, kid}, {349, 349, header1, kid},
		{353, 353, keyFound, ""}, {355, 355, keyFound, ""},
		{357, 359, header1, alg}, {360, 366, segments, ""}, {367, 367, header1, ""}, {368, 369, segments, ""},
		{370, 370, header1, ""}, {371, 371, segments, ""}, {372, 373, segments, spelling}, {374, 375, segments, ""},
		{376, 377, header1, alg},
	}
}

func spanOf(t *testing.T, v vector) vectorSpan {
	t.Helper()
	for _, s := range vectorSpans() {
		if s.from <= v.ID && v.ID <= s.to {
			return s
		}
	}
	t.Fatalf("%v: nothing is laid down", v)
	return vectorSpan{}
}

// Each vector is refused where it should be, or accepted up to its signature, and Verify refuses the invalid ones. The
// unsafe twins are the valid ones of the same groups, which the bare check accepts.
func TestJ24WycheproofSignatures(t *testing.T) {
	t.Parallel()
	results := map[string]int{}
	for _, g := range readVectors(t, "json_web_signature_test.json").Groups {
		members := g.members(t)
		group, err := verify.NewStatic(jwks(members...))
		if err != nil {
			group = nil
		}
		both, err := verify.NewStatic(jwks(append(members, jwk("key-1", &ourKey().PublicKey))...))
		if err != nil {
			t.Fatal(err)
		}
		key := parseVectorKey(t, members[0])
		for _, v := range g.Tests {
			t.Run(fmt.Sprintf("%s %v", g.Comment, v), func(t *testing.T) {
				want := spanOf(t, v)
				if got := refusedBy(t, v.JWS, group); got != want.by {
					t.Errorf("refused by %s, want %s", got, want.by)
				}
				if v.Result == "valid" {
					if (want.by == accepted) != (want.stricter == "") {
						t.Errorf("valid, and no reason is given for refusing it")
					}
					if want.stricter == "" && !key.bare(t, key.Alg, v.JWS) {
						t.Error("the bare check refuses the twin")
					}
					return
				}
				if want.by == accepted {
					t.Error("invalid, and accepted")
				}
				refusedByVerify(t, v.JWS, both)
			})
			results[v.Result]++
		}
	}
	if results["valid"] != 25 || results["invalid"] != 287 {
		t.Errorf("ran %v", results)
	}
}

// refusedByVerify presents a token to verifiers that know these keys, of our own issuer and of another's.
func refusedByVerify(t *testing.T, jws string, keys *verify.Static) {
	t.Helper()
	for _, foreign := range []bool{false, true} {
		v := newVerifier(t, func(o *verify.Options) { o.Keys, o.ForeignIssuer, o.CacheBytes = keys, foreign, -1 })
		claims, err := v.Verify(context.Background(), jws)
		if claims != nil || !errors.Is(err, verify.ErrMalformed) {
			t.Errorf("Verify gave claims %v and error %v, want ErrMalformed: the vectors have no typ", claims, err)
		}
		if _, err := v.Verify(context.Background(), mint(t, header, payload)); err != nil {
			t.Errorf("Verify refused the twin of ours beside it: %v", err)
		}
	}
}

// The files were copied by hand. A signature opens under its key to something with structure only if every character is right.
func TestWycheproofVectorsAreTrueCopies(t *testing.T) {
	t.Parallel()
	padded, lenient := 0, map[int]bool{365: true, 366: true, 368: true, 369: true, 371: true, 375: true}
	for _, g := range readVectors(t, "json_web_signature_test.json").Groups {
		k := parseVectorKey(t, g.members(t)[0])
		for _, v := range g.Tests {
			first, last := strings.IndexByte(v.JWS, '.'), strings.LastIndexByte(v.JWS, '.')
			switch {
			case v.ID == 372 || v.ID == 373: // its signature is 357's, over the text without the stray character
				if !k.bare(t, "HS256", strings.Replace(v.JWS, "?", "", 1)) {
					t.Errorf("%v: not the valid one with a stray character", v)
				}
			case lenient[v.ID]: // its signature is over the text as it is misspelt
				if !k.bare(t, "HS256", v.JWS) {
					t.Errorf("%v: not signed as it stands", v)
				}
			case v.Result == "valid", k.Alg == "": // without alg: a key for encryption, beside a token that is good otherwise
				alg := k.Alg
				if alg == "" {
					alg = "RS256"
				}
				if !k.bare(t, alg, v.JWS) {
					t.Errorf("%v: the bare check refuses it", v)
				}
			case strings.HasPrefix(v.Comment, "Using"):
				if !k.bare(t, strings.TrimPrefix(v.Comment, "Using"), v.JWS) {
					t.Errorf("%v: not signed that way", v)
				}
			case len(v.Flags) == 1 && v.Flags[0] == "ModifiedSignature": // PSS: EMSA-PSS ends so (RFC 8017 §9.1.1)
				if em := k.block(t, decoded(t, v.JWS[last+1:])); em[len(em)-1] != 0xbc {
					t.Errorf("%v: opens to nothing padded", v)
				}
			case len(v.Flags) == 1 && v.Flags[0] == "ModifiedPadding":
				s := decoded(t, v.JWS[last+1:])
				em := k.block(t, s)
				if len(s) != 256 || !bytes.HasPrefix(em, append([]byte{0, 1}, bytes.Repeat([]byte{0xff}, 8)...)) || k.bare(t, "RS256", v.JWS) {
					t.Errorf("%v: %d bytes that open to %x", v, len(s), em)
				}
				if h, p := decoded(t, v.JWS[:first]), decoded(t, v.JWS[first+1:last]); string(h) != `{"alg":"RS256","kid":"kid-rsa-sign"}` || string(p) != "foo" {
					t.Errorf("%v: header %s, payload %s", v, h, p)
				}
				padded++
			}
		}
	}
	if padded != 213 {
		t.Errorf("%d vectors with a modified padding", padded)
	}
}

// Keys that Wycheproof calls unfit are dropped, each for its own reason, and the good key beside them serves. The unsafe twin: by the
// bare check all but two of the vectors are well signed, so nothing but the reading of the keys refuses them.
func TestJ25WycheproofKeySets(t *testing.T) {
	t.Parallel()
	const kty, alg = "kty is not RSA", "alg is not RS256"
	reasons := map[int]string{
		1: kty, 2: kty, 3: kty, 4: kty, 6: "use is not sig", 7: "CVE-2017-15361", 8: "the modulus has 1024 bits",
		9: "the exponent is not", 10: kty, 11: kty, 12: kty, 13: kty, 14: kty, 15: kty, 16: kty, 17: kty, 18: kty, 19: kty,
		20: kty, 21: kty, 22: kty, 23: kty, 24: alg, 25: kty, 26: kty,
	}
	symmetric := map[int]bool{2: true, 13: true, 14: true, 15: true} // valid ones of HMAC keys, which verify never takes
	badlySigned := map[int]bool{3: true, 22: true}                   // a modified signature; a point that is not on the curve
	algs := map[int]string{11: "HS384", 12: "HS512", 14: "HS384", 15: "HS512", 17: "HS384", 18: "HS512"}
	ours := jwk("key-1", &ourKey().PublicKey)
	for _, g := range readVectors(t, "json_web_key_test.json").Groups {
		members := g.members(t)
		for _, v := range g.Tests {
			t.Run(fmt.Sprintf("%s %v", g.Comment, v), func(t *testing.T) {
				t.Parallel()
				group, err := verify.NewStatic(jwks(members...))
				k, by := parseVectorKey(t, members[0]), "RS256"
				if k.K != "" || reasons[v.ID] == kty && k.X == "" {
					by = "HS256"
				} else if k.X != "" {
					by = "ES256"
				}
				if algs[v.ID] != "" {
					by = algs[v.ID]
				}
				if k.bare(t, by, v.JWS) == badlySigned[v.ID] {
					t.Errorf("by the bare check well signed: %v", badlySigned[v.ID])
				}
				if v.ID == 5 {
					if err != nil || len(group.Dropped()) != 0 || refusedBy(t, v.JWS, group) != accepted {
						t.Errorf("the valid RSA key is refused: %v", err)
					}
					members = keyMembers(t, g.Private)
					droppedBeside(t, members, ours, v, "private parts")
					return
				}
				if v.Result == "valid" != symmetric[v.ID] {
					t.Error("valid, and no reason is given for refusing it")
				}
				if err == nil {
					t.Error("the set has no usable key, and was accepted")
				}
				droppedBeside(t, members, ours, v, reasons[v.ID])
			})
		}
	}
}

// droppedBeside reads the bad keys in one set with a good one.
func droppedBeside(t *testing.T, bad []string, good string, v vector, reason string) {
	t.Helper()
	set, err := verify.NewStatic(jwks(append([]string{good}, bad...)...))
	if err != nil {
		t.Fatalf("the other key was lost: %v", err)
	}
	if n := len(set.Dropped()); n != len(bad) {
		t.Errorf("%d keys were dropped, of %d", n, len(bad))
	}
	if all := errors.Join(set.Dropped()...); reason == "" || !strings.Contains(fmt.Sprint(all), reason) {
		t.Errorf("dropped because of %v, want %q", all, reason)
	}
	for _, member := range bad {
		if _, err := set.Key(t.Context(), parseVectorKey(t, member).ID); !errors.Is(err, verify.ErrKeyUnknown) {
			t.Errorf("an unfit key is served: %v", err)
		}
	}
	refusedByVerify(t, v.JWS, set)
}
