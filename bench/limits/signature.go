package main

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"strconv"
	"strings"
)

// given is the file that the loops over a token read.
type given struct {
	Token string `json:"token"`
	Key   []byte `json:"key"` // PKIX
	key   *rsa.PublicKey
}

// read takes the path of a given and how often a round does its work.
func read(args []string) (in given, n int, err error) {
	raw, err := os.ReadFile(args[0])
	if err != nil {
		return in, 0, err
	}
	if err := json.Unmarshal(raw, &in); err != nil {
		return in, 0, err
	}
	public, err := x509.ParsePKIXPublicKey(in.Key)
	if err != nil {
		return in, 0, err
	}
	var ok bool
	if in.key, ok = public.(*rsa.PublicKey); !ok {
		return in, 0, errors.New("not an RSA key")
	}
	n, err = strconv.Atoi(args[1])
	return in, n, err
}

// signature is the bare signature check alone.
func signature(args []string) error {
	in, n, err := read(args)
	if err != nil {
		return err
	}
	parts := strings.Split(in.Token, ".")
	digest := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	raw, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return err
	}
	return rounds(n, func() error { return rsa.VerifyPKCS1v15(in.key, crypto.SHA256, digest[:], raw) })
}
