package verify_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// BenchmarkLimit is what no verifier can do without: the bare signature check, and encoding/json into the same fields.
func BenchmarkLimit(b *testing.B) {
	token, key := mint(b, header, payload), &ourKey().PublicKey
	b.ReportAllocs()
	for b.Loop() {
		parts := strings.Split(token, ".")
		signature, err := base64.RawURLEncoding.DecodeString(parts[2])
		if err != nil {
			b.Fatal(err)
		}
		digest := sha256.Sum256([]byte(token[:len(parts[0])+1+len(parts[1])]))
		if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature); err != nil {
			b.Fatal(err)
		}
		var h struct{ Alg, Typ, Kid string }
		var c struct {
			Iss, Sub, Jti, Sid, Scope string
			ClientID                  string `json:"client_id"`
			Aud, Amr                  []string
			Exp, Iat, Nbf             int64
			AuthTime                  int64 `json:"auth_time"`
		}
		for i, into := range []any{&h, &c} {
			text, err := base64.RawURLEncoding.DecodeString(parts[i])
			if err != nil {
				b.Fatal(err)
			}
			if err := json.Unmarshal(text, into); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkLimitSignature is the bare signature check alone.
func BenchmarkLimitSignature(b *testing.B) {
	key := ourKey()
	digest := sha256.Sum256([]byte("x"))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, digest[:], signature); err != nil {
			b.Fatal(err)
		}
	}
}

func listOf(b *testing.B, entries int) *verify.List {
	b.Helper()
	list := readyList(b)
	for i := range entries {
		list.Apply(verify.NewRevocation(issuer, verify.KindToken, numbered("revoked-%d", i), time.Time{}, time.Time{}))
	}
	return list
}

// BenchmarkVerifyUnseen verifies a token as if for the first time.
func BenchmarkVerifyUnseen(b *testing.B) {
	v := newVerifier(b, func(o *verify.Options) { o.CacheBytes, o.Revocations = -1, listOf(b, 0) })
	token, ctx := mint(b, header, payload), context.Background()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(ctx, token); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkVerifySeen verifies 10^5 tokens that were seen before, on 16 goroutines, with and without 10^5 live revocations.
func BenchmarkVerifySeen(b *testing.B) {
	for _, entries := range []int{0, 100_000} {
		b.Run(numbered("revocations=%d", entries), func(b *testing.B) {
			offset := time.Until(now())
			v := newVerifier(b, func(o *verify.Options) {
				o.CacheBytes, o.Revocations = 512<<20, listOf(b, entries)
				o.Now = func() time.Time { return time.Now().Add(offset) }
			})
			key, err := verify.NewKey("key-1", &ourKey().PublicKey)
			if err != nil {
				b.Fatal(err)
			}
			tokens := make([]string, 100_000)
			random, signature := rand.NewChaCha8([32]byte{}), make([]byte, 256)
			for i := range tokens {
				text := strings.Replace(payload, `"jti":"tok"`, numbered(`"jti":"tok%d"`, i), 1)
				_, _ = random.Read(signature) // never fails
				tokens[i] = encode(header) + "." + encode(text) + "." + encode(signature)
				if err := v.Admit(tokens[i], key); err != nil {
					b.Fatal(err)
				}
			}
			// Nine tokens in a set of eight places happen, if seldom; the ninth cannot be verified here.
			tokens = slices.DeleteFunc(tokens, func(token string) bool { return !v.Cached(token) })
			if len(tokens) < 99_990 {
				b.Fatalf("only %d of 100000 tokens were kept", len(tokens))
			}
			ctx := context.Background()
			var next atomic.Int64
			b.SetParallelism((16 + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for i := next.Add(1) * 7919; pb.Next(); i += 104729 { // an order that no cache foresees
					if _, err := v.Verify(ctx, tokens[i%int64(len(tokens))]); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
