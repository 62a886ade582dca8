// Two-services starts authsvc, two small gRPC services and a client with an open stream, each as a process of its own, and
// then revokes the client's session: the next call is refused and the stream ends, within milliseconds and with no call to authsvc
// for any request. It prints how many.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "two-services:", err)
		os.Exit(1)
	}
}

// run is the whole show, or, with the name of a service, that service as a process of its own.
func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return show(ctx)
	}
	if len(args) < 2 {
		return errors.New("it takes no arguments")
	}
	d, err := readDemo(args[1])
	switch {
	case err != nil:
		return err
	case args[0] == "stock" && len(args) == 2:
		return serveStock(ctx, d)
	case args[0] == "orders" && len(args) == 3:
		return serveOrders(ctx, d, args[2])
	}
	return errors.New("it takes no arguments")
}

// show starts everything, plays the client, and stops everything.
func show(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "two-services-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var started processes
	defer func() { err = errors.Join(err, started.stop()) }()

	fmt.Println("starting authsvc (the first time it is built, which takes a minute)")
	authsvc := filepath.Join(dir, "authsvc")
	if err := build(ctx, authsvc); err != nil {
		return err
	}
	home := filepath.Join(dir, "home")
	if _, err := started.start(authsvc, "serve", "-dev", "-dir", home, "-http", loopback, "-grpc", loopback, "-ops", loopback); err != nil {
		return err
	}
	d, err := readDemo(home)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	stock, err := started.start(self, "stock", home)
	if err != nil {
		return err
	}
	orders, err := started.start(self, "orders", home, stock)
	if err != nil {
		return err
	}
	fmt.Printf("authsvc at %s, stock at %s, orders at %s\n", d.GRPC, stock, orders)
	return play(ctx, d, addresses{authsvc: d.GRPC, orders: orders, stock: stock, operate: func(args string) string {
		return fmt.Sprintf("%s %s -dir %s", authsvc, args, home)
	}})
}
