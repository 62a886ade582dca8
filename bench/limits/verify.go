package main

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strings"
)

// verifyAndDecode is the bare signature check of a token and encoding/json into the fields that a verifier gives.
func verifyAndDecode(args []string) error {
	in, n, err := read(args)
	if err != nil {
		return err
	}
	return rounds(n, func() error {
		parts := strings.Split(in.Token, ".")
		if err := check(in.key, parts); err != nil {
			return err
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
				return err
			}
			if err := json.Unmarshal(text, into); err != nil {
				return err
			}
		}
		return nil
	})
}

func check(key *rsa.PublicKey, parts []string) error {
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	return rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], signature)
}
