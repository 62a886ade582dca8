package verify_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// exampleIssuer is an issuer in miniature: it publishes a key and signs one token.
func exampleIssuer() (server *httptest.Server, token string) {
	key := ourKey()
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(jwks(jwk("key-1", &key.PublicKey)))
	}))
	t := time.Now().Unix()
	signed := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil,
		`{"iss":"https://auth.example","sub":"acct","aud":["https://api.example"],"exp":%d,"iat":%d,"nbf":%d,`+
			`"jti":"tok","client_id":"web","sid":"sess","scope":"orders.read","auth_time":%d}`, t+300, t, t, t))
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
	if err != nil {
		panic(err)
	}
	return server, signed + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func Example() {
	server, token := exampleIssuer()
	defer server.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	keys, err := verify.NewJWKS(verify.JWKSOptions{URL: server.URL})
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() { _ = keys.Run(ctx) }()
	<-keys.Ready()

	v, err := verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: keys,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	claims, err := v.Verify(ctx, token)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(claims.Subject, claims.HasScope("orders.read"), claims.HasScope("orders.write"))
	// Output: acct true false
}

func ExampleList() {
	server, token := exampleIssuer()
	defer server.Close()
	keys, err := verify.NewStatic(jwks(jwk("key-1", &ourKey().PublicKey)))
	if err != nil {
		fmt.Println(err)
		return
	}
	list, err := verify.NewList(verify.ListOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	v, err := verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: keys, Revocations: list,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ask := func() {
		_, err := v.Verify(context.Background(), token)
		fmt.Println(errors.Is(err, verify.ErrNotReady), errors.Is(err, verify.ErrRevoked), err == nil)
	}
	ask() // nobody has said that the list is complete
	list.SetReady(true)
	ask()
	list.Apply(verify.NewRevocation("https://auth.example", verify.KindSession, "sess", time.Time{}, time.Now().Add(17*time.Minute)))
	ask()
	// Output:
	// true false false
	// false false true
	// false true false
}
