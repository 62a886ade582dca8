package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type answer func(context.Context, *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error)

// serveGRPC serves one unary method, /limit/Call, with the options that grpc-go has by itself.
func serveGRPC(a answer) error {
	s := grpc.NewServer()
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "limit", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Call",
		Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
			var in wrapperspb.BytesValue
			if err := decode(&in); err != nil {
				return nil, err
			}
			return a(ctx, &in)
		},
	}}}, nil)
	l, err := listen()
	if err != nil {
		return err
	}
	return s.Serve(l)
}

// listen takes a free port, prints it, and ends the process with its standard input.
func listen() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	fmt.Println(l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return l, nil
}
