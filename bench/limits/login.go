package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"strconv"

	"golang.org/x/crypto/argon2"
)

// login is one argon2id hash at the service's default cost and one signature. Its argument is how often a round does it.
func login(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	password, salt := []byte("a password of some length"), make([]byte, 16)
	return rounds(n, func() error {
		digest := sha256.Sum256(argon2.IDKey(password, salt, 2, 19*1024, 1, 32))
		_, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
		return err
	})
}
