package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	shopv1 "github.com/authsvc/authsvc/examples/two-services/gen/shop/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// guarded is a gRPC server whose methods are for whom the proto says. This is all that a service needs.
func guarded(ctx context.Context, d demo) (*grpc.Server, error) {
	feed, err := guard.NewFeed(guard.FeedOptions{
		Target: d.GRPC, Issuer: d.Issuer, ClientID: d.ServiceClientID, ClientSecret: d.ServiceClientSecret,
	})
	if err != nil {
		return nil, err
	}
	go func() { _ = feed.Run(ctx) }() // it ends with ctx, and outlives everything else
	v, err := verify.New(verify.Options{
		Issuer: d.Issuer, Audiences: []string{d.Audience}, Keys: feed, Revocations: feed, Now: feed.Now,
	})
	if err != nil {
		return nil, err
	}
	rules, err := guard.RulesOf(shopv1.File_shop_v1_shop_proto)
	if err != nil {
		return nil, err
	}
	g, err := guard.New(guard.Options{Verifier: v, Feed: feed, Rules: rules})
	if err != nil {
		return nil, err
	}
	return grpc.NewServer(g.ServerOptions()...), feed.Ready(ctx)
}

// serve prints the address, and serves until ctx ends.
func serve(ctx context.Context, s *grpc.Server) error {
	l, err := net.Listen("tcp", loopback)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, s.Stop)()
	fmt.Fprintln(os.Stdout, l.Addr())
	return s.Serve(l)
}

// stock is the service that other services ask, and that people watch.
type stock struct {
	shopv1.UnimplementedStockServiceServer
}

func serveStock(ctx context.Context, d demo) error {
	s, err := guarded(ctx, d)
	if err != nil {
		return err
	}
	shopv1.RegisterStockServiceServer(s, stock{})
	return serve(ctx, s)
}

// GetStock is for services.
func (stock) GetStock(context.Context, *shopv1.GetStockRequest) (*shopv1.GetStockResponse, error) {
	return &shopv1.GetStockResponse{InStock: left(time.Now())}, nil
}

// WatchStock knows nothing of sessions: its stream is ended for it.
func (stock) WatchStock(_ *shopv1.WatchStockRequest, stream grpc.ServerStreamingServer[shopv1.WatchStockResponse]) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		if err := stream.Send(&shopv1.WatchStockResponse{InStock: left(time.Now())}); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return context.Cause(stream.Context())
		case <-tick.C:
		}
	}
}

// left is how many there are: one is sold each second, and each minute a new load comes.
func left(now time.Time) int64 { return 60 - int64(now.Second()) }

// orders is the service that people call. It calls stock by a token of its own.
type orders struct {
	shopv1.UnimplementedOrderServiceServer
	stock shopv1.StockServiceClient
}

func serveOrders(ctx context.Context, d demo, stockAddress string) error {
	s, err := guarded(ctx, d)
	if err != nil {
		return err
	}
	tokens, err := guard.NewTokenSource(guard.TokenSourceOptions{
		URL: d.HTTP, ClientID: d.ServiceClientID, ClientSecret: d.ServiceClientSecret, Scope: "demo.read",
		PlaintextCalls: true, // of this machine only; between machines there is TLS
	})
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(stockAddress, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithPerRPCCredentials(tokens))
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // nothing is left to be said on it
	shopv1.RegisterOrderServiceServer(s, orders{stock: shopv1.NewStockServiceClient(conn)})
	return serve(ctx, s)
}

// GetOrder knows whose token it is.
func (o orders) GetOrder(ctx context.Context, _ *shopv1.GetOrderRequest) (*shopv1.GetOrderResponse, error) {
	claims, _ := guard.ClaimsFromContext(ctx)
	const item = "teapot"
	s, err := o.stock.GetStock(ctx, &shopv1.GetStockRequest{Item: item})
	if err != nil {
		return nil, err
	}
	return &shopv1.GetOrderResponse{Owner: claims.Subject, Item: item, InStock: s.GetInStock()}, nil
}
