package main

import (
	"context"
	"strconv"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echo is a bare grpc-go unary call: it answers as many bytes as it is told to at its start.
func echo(args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	out := make([]byte, size)
	return serveGRPC(func(context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
		return wrapperspb.Bytes(out), nil
	})
}
