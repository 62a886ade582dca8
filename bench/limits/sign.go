package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"strconv"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

// sign is a bare gRPC call that signs what it got by RS256, and answers as many bytes as it is told to at its start.
func sign(args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	return serveGRPC(func(_ context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
		digest := sha256.Sum256(in.GetValue())
		signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
		if err != nil {
			return nil, err
		}
		out := make([]byte, size)
		copy(out, signature)
		return wrapperspb.Bytes(out), nil
	})
}
