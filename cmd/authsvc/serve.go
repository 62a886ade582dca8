package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/authsvc/authsvc/internal/app"
	"github.com/authsvc/authsvc/internal/config"
)

// serve runs the service: -dev from a folder that it fills itself, -config from a file that says everything.
func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("authsvc serve", flag.ContinueOnError)
	flags.SetOutput(stderr)
	dev := flags.Bool("dev", false, "serve from a folder made on the first start, with a demo account and demo clients")
	file := flags.String("config", "", "serve by this configuration `file`")
	o := app.DevOptions{}
	flags.StringVar(&o.Dir, "dir", "./.authsvc", "with -dev: the `folder`")
	flags.StringVar(&o.HTTP, "http", "127.0.0.1:8080", "with -dev: `address` of REST and OAuth; port 0 takes any free one")
	flags.StringVar(&o.GRPC, "grpc", "127.0.0.1:9090", "with -dev: `address` of gRPC")
	flags.StringVar(&o.Ops, "ops", "127.0.0.1:9091", "with -dev: `address` of health and metrics")
	flags.StringVar(&o.Issuer, "issuer", "", "with -dev: the issuer `URL`; the HTTP URL of the first start if empty")
	if err := flags.Parse(args); err != nil {
		return errors.Join(errUsage, err)
	}
	if flags.NArg() > 0 || *dev == (*file != "") {
		return errors.Join(errUsage, errors.New("serve takes either -dev or -config FILE"))
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *dev {
		return app.RunDev(ctx, o, stdout, stderr)
	}
	var misplaced error
	flags.Visit(func(f *flag.Flag) {
		if f.Name != "config" {
			misplaced = fmt.Errorf("-%s goes with -dev; with -config the file says it", f.Name)
		}
	})
	if misplaced != nil {
		return errors.Join(errUsage, misplaced)
	}
	cfg, err := config.Load(*file, os.Environ())
	if err != nil {
		return err
	}
	return app.RunConfig(ctx, cfg, stderr)
}
