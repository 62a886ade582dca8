package verify_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/big"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/verify"
)

// encoded is an EMSA-PKCS1-v1_5 block (RFC 8017 §9.2) of 256 bytes, from its parts.
func encoded(lead, kind, filler byte, separator []byte, tail []byte) []byte {
	em := append(bytes.Repeat([]byte{filler}, 256-len(separator)-len(tail)), separator...)
	em = append(em, tail...)
	em[0], em[1] = lead, kind
	return em
}

// Signatures made with the private key over blocks that only a careless verifier takes for the right one.
func TestSignatureFaults(t *testing.T) {
	t.Parallel()
	key := ourKey()
	signed := encode(header) + "." + encode(payload)
	digest := sha256.Sum256([]byte(signed))
	raw := func(em []byte) *big.Int { return new(big.Int).Exp(new(big.Int).SetBytes(em), key.D, key.N) }
	token := func(s *big.Int) string { return signed + "." + encode(s.FillBytes(make([]byte, 256))) }
	info := append([]byte("\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"), digest[:]...)
	zero := []byte{0}
	right := raw(encoded(0, 1, 0xff, zero, info))
	twin := token(right)
	if twin != mint(t, header, payload) {
		t.Fatal("the block made by hand is not the one of RFC 8017")
	}
	block := func(em []byte) string { return token(raw(em)) }
	infoWith := func(old, replacement string) []byte { return bytes.Replace(info, []byte(old), []byte(replacement), 1) }
	garbage := bytes.Repeat([]byte{0x5a}, 100)
	flipped := bytes.Clone(info)
	flipped[len(flipped)-1] ^= 1
	holed := encoded(0, 1, 0xff, zero, info)
	holed[100] = 0xfe
	early := encoded(0, 1, 0xff, zero, info)
	early[50] = 0
	whole := right.FillBytes(make([]byte, 256))
	text := func(sig []byte) string { return signed + "." + encode(sig) }
	run(t, newVerifier(t, nil), []attack{
		{"J24 block type 2", block(encoded(0, 2, 0xff, zero, info)), twin, verify.ErrSignature},
		{"J24 block type 0", block(encoded(0, 0, 0, zero, info)), twin, verify.ErrSignature},
		{"J24 first byte 1", block(encoded(1, 1, 0xff, zero, info)), twin, verify.ErrSignature},
		{"J24 padding of zeros", block(encoded(0, 1, 0, zero, info)), twin, verify.ErrSignature},
		{"J24 padding with another byte in it", block(holed), twin, verify.ErrSignature},
		{"J24 padding that ends early", block(early), twin, verify.ErrSignature},
		{"J24 no separator", block(encoded(0, 1, 0xff, []byte{0xff}, info)), twin, verify.ErrSignature},
		{"J24 short padding, garbage after the digest (Bleichenbacher 2006)", block(encoded(0, 1, 0xff, zero, append(bytes.Clone(info), garbage...))), twin, verify.ErrSignature},
		{"J24 short padding, garbage before the digest", block(encoded(0, 1, 0xff, zero, append(bytes.Clone(garbage), info...))), twin, verify.ErrSignature},
		{"J24 one byte after the digest", block(encoded(0, 1, 0xff, zero, append(bytes.Clone(info), 0))), twin, verify.ErrSignature},
		{"J24 the digest alone", block(encoded(0, 1, 0xff, zero, digest[:])), twin, verify.ErrSignature},
		{"J24 another digest", block(encoded(0, 1, 0xff, zero, flipped)), twin, verify.ErrSignature},
		{"J24 NULL parameters left out", block(encoded(0, 1, 0xff, zero, append([]byte("\x30\x2f\x30\x0b\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x04\x20"), digest[:]...))), twin, verify.ErrSignature},
		{"J24 parameters not NULL", block(encoded(0, 1, 0xff, zero, infoWith("\x05\x00\x04\x20", "\x04\x00\x04\x20"))), twin, verify.ErrSignature},
		{"J24 length in the long form", block(encoded(0, 1, 0xff, zero, append([]byte("\x30\x81\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20"), digest[:]...))), twin, verify.ErrSignature},
		{"J24 the name of SHA-512", block(encoded(0, 1, 0xff, zero, infoWith("\x02\x01\x05", "\x02\x03\x05"))), twin, verify.ErrSignature},
		{"J24 the name of SHA-224", block(encoded(0, 1, 0xff, zero, infoWith("\x02\x01\x05", "\x02\x04\x05"))), twin, verify.ErrSignature},
		{"J24 the signature 0", token(new(big.Int)), twin, verify.ErrSignature},
		{"J24 the signature 1", token(big.NewInt(1)), twin, verify.ErrSignature},
		{"J24 the signature n-1", token(new(big.Int).Sub(key.N, big.NewInt(1))), twin, verify.ErrSignature},
		{"J24 the signature n", token(key.N), twin, verify.ErrSignature},
		{"J24 the signature's negative", token(new(big.Int).Sub(key.N, right)), twin, verify.ErrSignature},
		{"J24 the signature plus n, 257 bytes", text(new(big.Int).Add(right, key.N).FillBytes(make([]byte, 257))), twin, verify.ErrSignature},
		{"J24 a zero in front, 257 bytes", text(append([]byte{0}, whole...)), twin, verify.ErrSignature},
		{"J24 a zero behind, 257 bytes", text(append(bytes.Clone(whole), 0)), twin, verify.ErrSignature},
		{"J24 truncated at the end", text(whole[:255]), twin, verify.ErrSignature},
		{"J24 truncated at the front", text(whole[1:]), twin, verify.ErrSignature},
		{"J24 one byte", text(whole[:1]), twin, verify.ErrSignature},
		{"J24 reversed", text(reversed(whole)), twin, verify.ErrSignature},
		{"J24 twice", text(append(bytes.Clone(whole), whole...)), twin, verify.ErrSignature},
		{"J24 513 bytes", text(make([]byte, 513)), twin, verify.ErrMalformed},
		{"J24 the signature of another token", signed + mint(t, header, payload+" ")[strings.LastIndexByte(mint(t, header, payload+" "), '.'):], twin, verify.ErrSignature},
	})
}

func reversed(b []byte) []byte {
	out := bytes.Clone(b)
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

func TestJ24EveryFlippedBitOfTheSignatureIsRefused(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, nil)
	good := mint(t, header, payload)
	_, _, signature, err := verify.Segments(good)
	if err != nil {
		t.Fatal(err)
	}
	signed := good[:strings.LastIndexByte(good, '.')+1]
	for bit := range 8 * len(signature) {
		signature[bit/8] ^= 1 << (bit % 8)
		if _, err := v.Verify(t.Context(), signed+encode(signature)); !errors.Is(err, verify.ErrSignature) {
			t.Fatalf("with bit %d flipped: %v", bit, err)
		}
		signature[bit/8] ^= 1 << (bit % 8)
	}
	if _, err := v.Verify(t.Context(), signed+encode(signature)); err != nil {
		t.Errorf("the twin was refused: %v", err)
	}
}
