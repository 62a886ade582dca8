package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	shopv1 "github.com/authsvc/authsvc/examples/two-services/gen/shop/v1"
	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// addresses are where the client finds what it calls, and how another terminal operates authsvc.
type addresses struct {
	authsvc, orders, stock string
	operate                func(args string) string
}

// between is the time between two calls of the client. What is measured is exact to it.
const between = 2 * time.Millisecond

// play signs in, calls and watches, then revokes the session, and says for how long both still went on.
func play(ctx context.Context, d demo, at addresses) error {
	var conns [3]*grpc.ClientConn
	for i, address := range []string{at.authsvc, at.orders, at.stock} {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return err
		}
		defer conn.Close() //nolint:errcheck // nothing is left to be said on it
		conns[i] = conn
	}
	auth, orders, stock := authsvcv1.NewAuthServiceClient(conns[0]), shopv1.NewOrderServiceClient(conns[1]), shopv1.NewStockServiceClient(conns[2])

	session, err := auth.Login(ctx, &authsvcv1.LoginRequest{Username: d.Username, Password: d.Password, ClientId: d.PublicClientID})
	if err != nil {
		return err
	}
	mine := metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+session.GetAccessToken())
	order, err := orders.GetOrder(mine, &shopv1.GetOrderRequest{OrderId: "1"})
	if err != nil {
		return err
	}
	stream, err := stock.WatchStock(mine, &shopv1.WatchStockRequest{Item: order.GetItem()})
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); err != nil {
		return err
	}
	fmt.Printf("signed in; orders says that %d of the item %q are in stock\n", order.GetInStock(), order.GetItem())

	var calls atomic.Int64
	refused := falling(func() error {
		for {
			if _, err := orders.GetOrder(mine, &shopv1.GetOrderRequest{OrderId: "1"}); err != nil {
				return err
			}
			calls.Add(1)
			time.Sleep(between)
		}
	})
	ended := falling(func() error {
		for {
			if _, err := stream.Recv(); err != nil {
				return err
			}
		}
	})
	fmt.Printf("the client calls orders every %v, and has a stream of stock open\n", between)
	fmt.Printf("press Enter to revoke the session; or, in another terminal:\n    %s\n", at.operate("session revoke "+session.GetSessionId()))

	var answered time.Time
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-entered():
		if _, err := auth.Revoke(ctx, &authsvcv1.RevokeRequest{Token: session.GetRefreshToken()}); err != nil {
			return err
		}
		answered = time.Now()
	case f := <-refused: // by the other terminal
		refused <- f
	case f := <-ended:
		ended <- f
	}
	call, open := <-refused, <-ended
	fmt.Printf("after %d calls that went well\n", calls.Load())
	fmt.Printf("  orders refused a call:  %s\n", call.say(answered))
	fmt.Printf("  stock ended the stream: %s\n", open.say(answered))
	return nil
}

// fall is how something ended, and when.
type fall struct {
	err error
	at  time.Time
}

// falling runs what goes on until it fails, and gives how it did.
func falling(run func() error) chan fall {
	fell := make(chan fall, 1)
	go func() { err := run(); fell <- fall{err, time.Now()} }()
	return fell
}

// say words it; answered is when Revoke was answered, zero where this process did not call it.
func (f fall) say(answered time.Time) string {
	s := status.Convert(f.err)
	reason := s.Message()
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			reason = info.GetReason()
		}
	}
	said := fmt.Sprintf("%s %s", s.Code(), reason)
	if answered.IsZero() {
		return said + " at " + f.at.Format("15:04:05.000")
	}
	return fmt.Sprintf("%s, %.1f ms after Revoke was answered", said, float64(f.at.Sub(answered).Microseconds())/1000)
}

// entered waits for a line on the standard input, or its end.
func entered() <-chan struct{} {
	done := make(chan struct{})
	go func() {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		close(done)
	}()
	return done
}
