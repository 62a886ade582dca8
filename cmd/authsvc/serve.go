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

// serveLine is how the command is written.
const serveLine = "authsvc serve -dev [flags], or authsvc serve -config FILE"

// serve runs the service: -dev from a folder that it fills itself, -config from a file that says everything.
func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("authsvc serve", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	dev := flags.Bool("dev", false, "serve from a folder made on the first start, with a demo account and demo clients")
	file := flags.String("config", "", "serve by this configuration `file`")
	o := app.DevOptions{}
	flags.StringVar(&o.Dir, "dir", "./.authsvc", "with -dev: the `folder`")
	flags.StringVar(&o.HTTP, "http", "127.0.0.1:8080", "with -dev: `address` of REST and OAuth; port 0 takes any free one")
	flags.StringVar(&o.GRPC, "grpc", "127.0.0.1:9090", "with -dev: `address` of gRPC")
	flags.StringVar(&o.Ops, "ops", "127.0.0.1:9091", "with -dev: `address` of health and metrics")
	flags.StringVar(&o.Issuer, "issuer", "", "with -dev: the issuer `URL`; the HTTP URL of the first start if empty")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(stdout, "%s\nserve until a signal ends it\n", serveLine)
			flags.SetOutput(stdout)
			flags.PrintDefaults()
			return err
		}
		return usage("%w\nusage: %s", err, serveLine)
	}
	switch {
	case flags.NArg() > 0:
		return usage("%q is one argument too many\nusage: %s", flags.Arg(0), serveLine)
	case *dev == (*file != ""):
		return usage("serve takes either -dev or -config FILE\nusage: %s", serveLine)
	}
	signalled, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, drain := context.WithCancel(ctx)
	defer drain()
	// A second signal ends the process at once, as it would any other: from before the drain begins, so that none is lost.
	context.AfterFunc(signalled, func() { stop(); drain() })
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
		return usage("%w", misplaced)
	}
	hangups := make(chan os.Signal, 1) // from before the first look, so that none ends the process
	signal.Notify(hangups, syscall.SIGHUP)
	load := func() (config.Config, error) { return config.Load(*file, os.Environ()) }
	cfg, err := load()
	if err != nil {
		return err
	}
	return app.RunConfig(ctx, cfg, app.Reload{Signals: hangups, Load: load}, stderr)
}
