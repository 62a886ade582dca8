// Command replicas runs authsvc as people run it, on one machine and on loopback alone: three replicas on a PostgreSQL with a
// synchronous standby, with Redis, behind nginx. Everything it makes is in one folder, and a second start finds it there. The configurations of
// the replicas, of nginx and of Redis are those of deploy/compose, with other addresses and folders.
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
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "replicas:", err)
		stop()
		os.Exit(1)
	}
}

// run brings everything up, says what to try, and takes everything down once ctx ends.
func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("replicas", flag.ContinueOnError)
	dir := flags.String("dir", ".replicas", "the `folder` that holds everything")
	port := flags.Int("port", 18000, "the first of 51 `ports`, of which 15 are used")
	shipped := flags.String("deploy", "deploy", "the `folder` of the configurations that we ship")
	authsvc := flags.String("authsvc", "bin/authsvc", "the `program`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is one argument too many", flags.Arg(0))
	}
	l, err := newLayout(*dir, *shipped, *authsvc, *port)
	if err != nil {
		return err
	}
	unlock, err := l.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.portsFree(); err != nil {
		return err
	}
	c := &cluster{layout: l, out: out, group: newGroup(out)}
	defer func() { err = errors.Join(err, c.group.stop()) }()
	if err := c.start(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // was told to end while it began
		}
		return err
	}
	c.say()
	<-ctx.Done()
	fmt.Fprintln(out, "\nstopping; everything is kept in", l.dir)
	return nil
}

// cluster is what runs.
type cluster struct {
	*layout
	out   io.Writer
	group *group
	db    *postgres
	demo  demo
}

// start brings up one part after the other, each once the one before answers.
func (c *cluster) start(ctx context.Context) error {
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"secrets", c.makeSecrets},
		{"PostgreSQL and its standby", c.startPostgres},
		{"Redis", c.startRedis},
		{"three replicas", c.startReplicas},
		{"the demo account and its clients", c.makeDemo},
		{"nginx", c.startNginx},
	} {
		fmt.Fprintf(c.out, "%s …\n", step.what)
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// say tells what to try. The commands read the secrets from demo.json, so that none stands on the screen.
func (c *cluster) say() {
	fmt.Fprintf(c.out, `
three replicas are ready
  REST  %[1]s    gRPC  %[2]s    both by nginx; the authority of all certificates is %[3]s
  replicas: https://127.0.0.1:%[4]d, :%[5]d and :%[6]d; PostgreSQL: 127.0.0.1:%[7]d, its standby :%[8]d; Redis: :%[15]d
  the demo account and its clients: %[9]s (mode 0600); logs: %[10]s

Sign in, at whichever replica nginx chooses:
  D=%[9]s; export CURL_CA_BUNDLE=%[3]s
  jq '{username, password, client_id: .public_client_id}' $D | curl -s %[1]s/v1/auth/login -H 'Content-Type: application/json' -d @-
  jq '{username, password, client_id: .public_client_id}' $D | grpcurl -cacert %[3]s -d @ %[2]s authsvc.v1.AuthService/Login
Follow the trust feed as a service does:
  grpcurl -cacert %[3]s -H "Authorization: Basic $(jq -rj '.service_client_id + ":" + .service_client_secret' $D | base64 -w0)" %[2]s authsvc.v1.TrustService/WatchTrust
Look at it:
  %[11]s doctor -config %[12]s
  %[11]s instances -config %[12]s
  for n in 1 2 3; do %[11]s watchers -config %[16]s; done    # each server knows its own followers
Kill one and go on; it is started again after %[13]s:
  kill -9 $(cat %[14]s)
Ctrl-C stops everything and keeps it; the next start goes on with it.
`, c.demo.HTTP, c.demo.GRPC, c.demo.CAFile, c.port(10), c.port(20), c.port(30), c.port(primaryPort), c.port(standbyPort),
		c.path("demo.json"), c.path("log"), c.authsvc, c.config(1), restartAfter, c.path("pid", "replica-2"), c.port(redisPort),
		c.path("replica-$n", "authsvc.yaml"))
}
