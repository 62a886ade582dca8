package verify_test

import (
	"crypto"
	"crypto/hmac"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"hash"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/authsvc/authsvc/verify"
)

func TestHeaderAttacks(t *testing.T) {
	t.Parallel()
	good := mint(t, header, payload)
	signed := func(h string) string { return mint(t, h, payload) }
	head := func(old, replacement string) string { return signed(with(t, header, old, replacement)) }
	parts := strings.Split(good, ".")
	unsigned := func(alg string) string {
		return encode(with(t, header, "RS256", alg)) + "." + parts[1] + "."
	}
	attacks := []attack{
		{"J01 alg none without a signature", unsigned("none"), good, verify.ErrMalformed},
		{"J01 alg None without a signature", unsigned("None"), good, verify.ErrMalformed},
		{"J01 alg nOnE with a signature", head("RS256", "nOnE"), good, verify.ErrMalformed},
		{"J01 alg RS256 with an empty signature", parts[0] + "." + parts[1] + ".", good, verify.ErrMalformed},
		{"J01 alg in another case", head("RS256", "rs256"), good, verify.ErrMalformed},
		{"J01 alg missing", head(`"alg":"RS256",`, ""), good, verify.ErrMalformed},
		{"J04 kid that walks the file system", head("key-1", "../../dev/null"), good, verify.ErrMalformed},
		{"J04 kid that is SQL", head("key-1", "' OR 1=1"), good, verify.ErrMalformed},
		{"J04 kid with NUL", head("key-1", `key-1\u0000`), good, verify.ErrMalformed},
		{"J04 kid of 4 KiB", head("key-1", strings.Repeat("a", 4096)), good, verify.ErrMalformed},
		{"J04 kid of 65 characters", head("key-1", strings.Repeat("a", 65)), good, verify.ErrMalformed},
		{"J04 kid that is a number", head(`"key-1"`, "1"), good, verify.ErrMalformed},
		{"J04 kid missing", head(`,"kid":"key-1"`, ""), good, verify.ErrMalformed},
		{"J04 kid empty", head("key-1", ""), good, verify.ErrMalformed},
		{"J04 kid that nobody knows", head("key-1", "key-2"), good, verify.ErrKeyUnknown},
		{"J07 crit with an unknown extension", head(`,"kid"`, `,"crit":["x"],"x":1,"kid"`), good, verify.ErrMalformed},
		{"J07 crit empty", head(`,"kid"`, `,"crit":[],"kid"`), good, verify.ErrMalformed},
		{"J07 crit naming an absent header", head(`,"kid"`, `,"crit":["exp"],"kid"`), good, verify.ErrMalformed},
		{"J08 b64 false with crit", head(`,"kid"`, `,"b64":false,"crit":["b64"],"kid"`), good, verify.ErrMalformed},
		{"J09 alg twice", head(`{"alg"`, `{"alg":"none","alg"`), good, verify.ErrMalformed},
		{"J09 alg twice, once with an escape", head(`{"alg"`, `{"al\u0067":"none","alg"`), good, verify.ErrMalformed},
		{"J09 alg twice, once in another case", head(`{"alg"`, `{"Alg":"none","alg"`), good, verify.ErrMalformed},
		{"J09 alg in another case only", head(`{"alg"`, `{"ALG"`), good, verify.ErrMalformed},
		{"J22 typ JWT, as an ID token has it", head("at+jwt", "JWT"), good, verify.ErrMalformed},
		{"J22 typ absent", head(`"typ":"at+jwt",`, ""), good, verify.ErrMalformed},
		{"J22 typ of a logout token", head("at+jwt", "logout+jwt"), good, verify.ErrMalformed},
		{"J22 typ of a DPoP proof", head("at+jwt", "dpop+jwt"), good, verify.ErrMalformed},
		{"J22 typ of a security event token", head("at+jwt", "secevent+jwt"), good, verify.ErrMalformed},
		{"J22 typ of a client assertion", head("at+jwt", "client-authentication+jwt"), good, verify.ErrMalformed},
		{"J22 typ of a status list", head("at+jwt", "statuslist+jwt"), good, verify.ErrMalformed},
		{"J22 typ in another case", head("at+jwt", "AT+JWT"), good, verify.ErrMalformed},
		{"J22 typ with its media type's tree", head("at+jwt", "application/at+jwt"), good, verify.ErrMalformed},
		{"R29 zip", head(`,"kid"`, `,"zip":"DEF","kid"`), good, verify.ErrMalformed},
		{"R28 a member that means nothing", head(`,"kid"`, `,"cty":"x","kid"`), good, verify.ErrMalformed},
		{"R29 header is an array", signed("[" + header + "]"), good, verify.ErrMalformed},
		{"R29 header with something after it", signed(header + "{}"), good, verify.ErrMalformed},
		{"R29 header with a trailing comma", head(`"key-1"}`, `"key-1",}`), good, verify.ErrMalformed},
		{"R29 header that is not UTF-8", head("key-1", "key-1\xff"), good, verify.ErrMalformed},
	}
	run(t, newVerifier(t, nil), attacks)
}

// A key signs by one algorithm, whatever the header says.
func TestAlgorithmConfusion(t *testing.T) {
	t.Parallel()
	good := mint(t, header, payload)
	public := &ourKey().PublicKey
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	mac := func(secret []byte) string {
		signed := encode(with(t, header, "RS256", "HS256")) + "." + encode(payload)
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(signed))
		return signed + "." + encode(m.Sum(nil))
	}
	signed := func(alg, claimed string, h crypto.Hash, sum func() hash.Hash, pss bool) string {
		text := encode(with(t, header, "RS256", claimed)) + "." + encode(payload)
		digest := sum()
		digest.Write([]byte(text))
		var signature []byte
		var err error
		if pss {
			signature, err = rsa.SignPSS(rand.NewChaCha8([32]byte{1}), ourKey(), h, digest.Sum(nil), nil)
		} else {
			signature, err = rsa.SignPKCS1v15(nil, ourKey(), h, digest.Sum(nil))
		}
		if err != nil {
			t.Fatalf("%s: %v", alg, err)
		}
		return text + "." + encode(signature)
	}
	run(t, newVerifier(t, nil), []attack{
		{"J02 HS256 keyed with the PEM", mac(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), good, verify.ErrMalformed},
		{"J02 HS256 keyed with the DER", mac(der), good, verify.ErrMalformed},
		{"J02 HS256 keyed with the JWK", mac([]byte(jwk("key-1", public))), good, verify.ErrMalformed},
		{"J03 RS384", signed("RS384", "RS384", crypto.SHA384, sha512.New384, false), good, verify.ErrMalformed},
		{"J03 RS512", signed("RS512", "RS512", crypto.SHA512, sha512.New, false), good, verify.ErrMalformed},
		{"J03 PS256", signed("PS256", "PS256", crypto.SHA256, sha256.New, true), good, verify.ErrMalformed},
		{"J03 RS384 that says RS256", signed("RS384", "RS256", crypto.SHA384, sha512.New384, false), good, verify.ErrSignature},
		{"J03 PS256 that says RS256", signed("PS256", "RS256", crypto.SHA256, sha256.New, true), good, verify.ErrSignature},
		{"J03 signed by another key", mintWith(t, otherKey(), header, payload), good, verify.ErrSignature},
	})
}

func TestNothingIsFetchedThatAHeaderNames(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		_, _ = w.Write(jwks(jwk("key-1", &otherKey().PublicKey)))
	}))
	t.Cleanup(server.Close)
	good := mint(t, header, payload)
	theirs := func(member string) string {
		return mintWith(t, otherKey(), with(t, header, `,"kid"`, `,`+member+`,"kid"`), payload)
	}
	for name, foreign := range map[string]bool{"our issuer": false, "a foreign issuer": true} {
		v := newVerifier(t, func(o *verify.Options) { o.ForeignIssuer = foreign })
		t.Run(name, func(t *testing.T) {
			run(t, v, []attack{
				{"J05 jku", theirs(`"jku":"` + server.URL + `"`), good, verify.ErrMalformed},
				{"J05 x5u", theirs(`"x5u":"` + server.URL + `"`), good, verify.ErrMalformed},
				{"J05 jku of the cloud's metadata", theirs(`"jku":"http://169.254.169.254/"`), good, verify.ErrMalformed},
				{"J05 jwk inside", theirs(`"jwk":` + jwk("key-1", &otherKey().PublicKey)), good, verify.ErrMalformed},
				{"J05 x5c inside", theirs(`"x5c":["MIIB"]`), good, verify.ErrMalformed},
			})
		})
	}
	t.Cleanup(func() {
		if n := calls.Load(); n != 0 {
			t.Errorf("the header's address was called %d times", n)
		}
	})
}

func TestSpellings(t *testing.T) {
	t.Parallel()
	good := mint(t, header, payload)
	p := strings.Split(good, ".")
	// 256 bytes leave 4 unused bits in the last character: other characters would decode to the same bytes.
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	last := strings.IndexByte(alphabet, good[len(good)-1])
	attacks := []attack{
		{"J12 padded signature", good + "==", good, verify.ErrMalformed},
		{"J12 padded header", p[0] + "=." + p[1] + "." + p[2], good, verify.ErrMalformed},
		{"J12 a line feed at the end", good + "\n", good, verify.ErrMalformed},
		{"J12 a line break inside the signature", p[0] + "." + p[1] + "." + p[2][:9] + "\r\n" + p[2][9:], good, verify.ErrMalformed},
		{"J12 four line feeds inside the payload", p[0] + "." + p[1][:8] + "\n\n\n\n" + p[1][8:] + "." + p[2], good, verify.ErrMalformed},
		{"J12 a space at the front", " " + good, good, verify.ErrMalformed},
		{"J12 a space at the end", good + " ", good, verify.ErrMalformed},
		{"J12 the other alphabet", strings.NewReplacer("-", "+", "_", "/").Replace(good), good, verify.ErrMalformed},
		{"J12 flipped trailing bits", good[:len(good)-1] + string(alphabet[last|1]), good, verify.ErrMalformed},
		{"J15 JSON serialization, flattened", `{"protected":"` + p[0] + `","payload":"` + p[1] + `","signature":"` + p[2] + `"}`, good, verify.ErrMalformed},
		{"J15 JSON serialization without protected", `{"payload":"` + p[1] + `","signature":"` + p[2] + `"}`, good, verify.ErrMalformed},
		{"J15 JSON serialization, one of two signatures good", `{"payload":"` + p[1] + `","signatures":[{"protected":"` + p[0] + `","signature":"AA"},{"protected":"` + p[0] + `","signature":"` + p[2] + `"}]}`, good, verify.ErrMalformed},
		{"J16 JWE", encode(`{"alg":"RSA-OAEP","enc":"A256GCM"}`) + ".AAAA.AAAA.AAAA.AAAA", good, verify.ErrMalformed},
		{"J16 JWE with PBES2 and a count of 2^31-1", encode(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA"}`) + ".AAAA.AAAA.AAAA.AAAA", good, verify.ErrMalformed},
		{"J16 JWE with a zip bomb", encode(`{"alg":"dir","enc":"A128GCM","zip":"DEF"}`) + "..AAAA.AAAA.AAAA", good, verify.ErrMalformed},
		{"R29 one segment", p[0], good, verify.ErrMalformed},
		{"R29 two segments", p[0] + "." + p[1], good, verify.ErrMalformed},
		{"R29 four segments", good + "." + p[2], good, verify.ErrMalformed},
		{"R29 no payload", p[0] + ".." + p[2], good, verify.ErrMalformed},
		{"R29 no header", "." + p[1] + "." + p[2], good, verify.ErrMalformed},
		{"R29 nothing", "", good, verify.ErrMalformed},
		{"R29 dots", "...", good, verify.ErrMalformed},
	}
	// The alphabets differ only in two characters, and a token need not have them.
	if !strings.ContainsAny(good, "-_") {
		attacks[7].bad = p[0] + "." + p[1] + "." + "+" + p[2][1:]
	}
	// The last character may have its lowest bit set already only if it were not canonical.
	if last&1 == 1 {
		t.Fatal("the encoder does not write canonical base64url")
	}
	run(t, newVerifier(t, nil), attacks)
}

func TestSizes(t *testing.T) {
	t.Parallel()
	padded := func(n int) string {
		return mint(t, header, with(t, payload, `{"iss"`, `{"pad":"`+strings.Repeat("x", n)+`","iss"`))
	}
	n := 5000
	for len(padded(n)) < 8192-64 {
		n += 32
	}
	for len(padded(n+1)) <= 8192 {
		n++
	}
	twin, bad := padded(n), padded(n+2)
	if len(twin) > 8192 || len(bad) <= 8192 {
		t.Fatalf("sizes %d and %d do not stand around the limit", len(twin), len(bad))
	}
	run(t, newVerifier(t, nil), []attack{
		{"J14 just over 8 KiB", bad, twin, verify.ErrMalformed},
		{"J14 64 KiB", padded(64 << 10), twin, verify.ErrMalformed},
		{"J14 10 MB that are no token", strings.Repeat("a", 10<<20), twin, verify.ErrMalformed},
	})
}

func TestClaimAttacks(t *testing.T) {
	t.Parallel()
	good := mint(t, header, payload)
	body := func(old, replacement string) string { return mint(t, header, with(t, payload, old, replacement)) }
	const aud = `["https://api.example"]`
	const exp = `"exp":1800000300`
	attacks := []attack{
		{"J09 sub twice", body(`"sub":"acct"`, `"sub":"admin","sub":"acct"`), good, verify.ErrMalformed},
		{"J09 sub twice, once in another case", body(`"sub":"acct"`, `"Sub":"admin","sub":"acct"`), good, verify.ErrMalformed},
		{"J09 sub twice, once with a long s", body(`"sub":"acct"`, `"ſub":"admin","sub":"acct"`), good, verify.ErrMalformed},
		{"J09 a name twice in a nested object", body(`"sub":"acct"`, `"act":{"a":1,"a":2},"sub":"acct"`), body(`"sub":"acct"`, `"act":{"a":1,"b":2},"sub":"acct"`), verify.ErrMalformed},
		{"J17 exp missing", body(exp+",", ""), good, verify.ErrMalformed},
		{"J17 exp null", body(exp, `"exp":null`), good, verify.ErrMalformed},
		{"J17 exp a string", body(exp, `"exp":"1800000300"`), good, verify.ErrMalformed},
		{"J17 exp with an exponent", body(exp, `"exp":18000003e2`), good, verify.ErrMalformed},
		{"J17 exp with a fraction", body(exp, `"exp":1800000300.5`), good, verify.ErrMalformed},
		{"J17 exp negative", body(exp, `"exp":-1`), good, verify.ErrMalformed},
		{"J17 exp beyond any calendar", body(exp, `"exp":99999999999999999999`), good, verify.ErrMalformed},
		{"J17 exp not after iat", body(exp, `"exp":1800000000`), good, verify.ErrMalformed},
		{"J19 iat an hour ahead", body(`"exp":1800000300,"iat":1800000000`, `"exp":1800003900,"iat":1800003600`), good, verify.ErrNotYetValid},
		{"J19 iat 61 s ahead", body(`"iat":1800000000`, `"iat":1800000121`), body(`"iat":1800000000`, `"iat":1800000120`), verify.ErrNotYetValid},
		{"J19 nbf beyond the skew", body(`"nbf":1800000000`, `"nbf":1800000091`), body(`"nbf":1800000000`, `"nbf":1800000090`), verify.ErrNotYetValid},
		{"J19 lives longer than 15 min", body(exp, `"exp":1800000901`), body(exp, `"exp":1800000900`), verify.ErrMalformed},
		{"J20 aud empty", body(aud, `[]`), good, verify.ErrMalformed},
		{"J20 aud of an empty name", body(aud, `[""]`), good, verify.ErrMalformed},
		{"J20 aud an object", body(aud, `{}`), good, verify.ErrMalformed},
		{"J20 aud a number", body(aud, `1`), good, verify.ErrMalformed},
		{"J20 aud absent", body(`"aud":`+aud+",", ""), good, verify.ErrMalformed},
		{"J20 aud null", body(aud, `null`), good, verify.ErrMalformed},
		{"J20 aud in another case", body(aud, `["https://API.example"]`), good, verify.ErrAudience},
		{"J20 aud with a trailing slash", body(aud, `["https://api.example/"]`), good, verify.ErrAudience},
		{"J20 aud of somebody else", body(aud, `["https://other.example"]`), body(aud, `["https://other.example","https://api.example"]`), verify.ErrAudience},
		{"J20 aud a string of somebody else", body(aud, `"https://other.example"`), body(aud, `"https://api.example"`), verify.ErrAudience},
		{"J21 iss with a trailing slash", body(`"https://auth.example"`, `"https://auth.example/"`), good, verify.ErrIssuer},
		{"J21 iss over http", body(`"https://auth.example"`, `"http://auth.example"`), good, verify.ErrIssuer},
		{"J21 iss in another case", body(`"https://auth.example"`, `"https://Auth.example"`), good, verify.ErrIssuer},
		{"J21 iss with a homograph", body(`"https://auth.example"`, `"https://аuth.example"`), good, verify.ErrIssuer},
		{"J21 iss of another tenant", body(`"https://auth.example"`, `"https://auth.example/t2"`), good, verify.ErrIssuer},
		{"J21 iss missing", body(`"iss":"https://auth.example",`, ""), good, verify.ErrMalformed},
		{"R27 sub missing", body(`"sub":"acct",`, ""), good, verify.ErrMalformed},
		{"R27 sub empty", body(`"sub":"acct"`, `"sub":""`), good, verify.ErrMalformed},
		{"R27 sub a number", body(`"sub":"acct"`, `"sub":7`), good, verify.ErrMalformed},
		{"R27 client_id missing", body(`"client_id":"web",`, ""), good, verify.ErrMalformed},
		{"R27 jti missing", body(`"jti":"tok",`, ""), good, verify.ErrMalformed},
		{"R27 iat missing", body(`"iat":1800000000,`, ""), good, verify.ErrMalformed},
		{"R27 nbf missing", body(`"nbf":1800000000,`, ""), good, verify.ErrMalformed},
		{"R27 scope missing", body(`"scope":"orders.read orders.write",`, ""), body(`"scope":"orders.read orders.write"`, `"scope":""`), verify.ErrMalformed},
		{"R27 scope an array", body(`"orders.read orders.write"`, `["orders.read"]`), good, verify.ErrMalformed},
		{"R27 auth_time missing, which cut-offs need", body(`"auth_time":1799990000,`, ""), good, verify.ErrMalformed},
		{"R27 sid null", body(`"sid":"sess"`, `"sid":null`), body(`"sid":"sess",`, ""), verify.ErrMalformed},
		{"R27 sid empty", body(`"sid":"sess"`, `"sid":""`), good, verify.ErrMalformed},
		{"R27 amr of a number", body(`["pwd"]`, `[1]`), body(`,"amr":["pwd"]`, ""), verify.ErrMalformed},
		{"R29 payload with something after it", mint(t, header, payload+" x"), mint(t, header, payload+" "), verify.ErrMalformed},
		{"R29 payload with half a surrogate pair", body(`"acct"`, `"a\ud800"`), body(`"acct"`, `"a\ud83d\ude00"`), verify.ErrMalformed},
		{"R29 payload with a raw control character", body(`"acct"`, "\"a\x01\""), good, verify.ErrMalformed},
		{"R29 payload that is not UTF-8", body(`"acct"`, "\"a\xc0\xaf\""), good, verify.ErrMalformed},
		{"R29 payload nested without end", body(`"sub":"acct"`, `"x":`+strings.Repeat("[", 500)+strings.Repeat("]", 500)+`,"sub":"acct"`), body(`"sub":"acct"`, `"x":[[[[]]]],"sub":"acct"`), verify.ErrMalformed},
		{"R29 payload with a trailing comma", body(`["pwd"]}`, `["pwd"],}`), good, verify.ErrMalformed},
		{"R29 payload with a number that has a leading zero", body(`"sub":"acct"`, `"x":01,"sub":"acct"`), body(`"sub":"acct"`, `"x":-0.1e+7,"sub":"acct"`), verify.ErrMalformed},
		{"R29 payload that is no object", mint(t, header, `"x"`), good, verify.ErrMalformed},
	}
	run(t, newVerifier(t, nil), attacks)
}
