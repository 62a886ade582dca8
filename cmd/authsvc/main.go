// Authsvc signs people and services in, and issues tokens that others verify on their own. This command serves, and
// operates an installation beside its running server; what it does is said in internal/app and below.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/authsvc/authsvc/internal/app"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// Exit codes.
const (
	exitOK = iota
	exitFailed
	exitUsage
)

// errUsage is in the chain of an error that is about the command line itself: exit code 2.
var errUsage = errors.New("wrong usage")

func usage(format string, args ...any) error {
	return errors.Join(errUsage, fmt.Errorf(format, args...))
}

// groups are the words that may come first, in the order of the help.
func groups() []group {
	return []group{
		{"account", "people: create, list, show, disable, enable, set-password, delete", accountCommands()},
		{"client", "OAuth clients: create, list, show, rotate-secret, delete", clientCommands()},
		{"session", "sessions: list, revoke", sessionCommands()},
		{"revoke", "cut off an account, a client, a session, a token, or everything", revokeCommands()},
		{"keys", "signing keys: list, rotate, revoke, rewrap", keyCommands()},
		{"watchers", "who follows the trust feed of the running server", watcherCommands()},
		{"instances", "the servers that run, and how far each has read the revocation log", instanceCommands()},
		{"audit", "the audit log: list", auditCommands()},
		{"backup", "copy the SQLite database to a file", backupCommands()},
		{"restore", "make such a file the database", restoreCommands()},
		{"doctor", "say what is wrong with an installation, and what to do", doctorCommands()},
		{"migrate", "the database's schema: status, up", migrateCommands()},
		{"config", "the configuration: print, check", configCommands()},
		{"health", "ask the running server whether it is ready", healthCommands()},
	}
}

// run is the whole command, without the process around it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	err := dispatch(ctx, args, stdin, stdout, stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return exitOK
	case errors.Is(err, errUsage):
		fmt.Fprintf(stderr, "authsvc: %s\n", clean(strings.TrimPrefix(err.Error(), errUsage.Error()+"\n")))
		return exitUsage
	default:
		fmt.Fprintf(stderr, "authsvc: %s\n", clean(explain(err)))
		return exitFailed
	}
}

func dispatch(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	first := ""
	if len(args) > 0 {
		first = args[0]
	}
	switch first {
	case "-h", "-help", "--help", "help":
		if len(args) == 1 || first != "help" || args[1] == "help" || strings.HasPrefix(args[1], "-") {
			return help(stdout)
		}
		return dispatch(ctx, append(args[1:len(args):len(args)], "-h"), stdin, stdout, stderr)
	case "version", "-version", "--version":
		_, err := fmt.Fprintln(stdout, "authsvc", app.Version())
		return err
	case "serve":
		return serve(ctx, args[1:], stdout, stderr)
	}
	for _, g := range groups() {
		if g.name != first {
			continue
		}
		c, rest, err := g.pick(args[1:], stdout)
		if err != nil {
			return err
		}
		return c.run(ctx, rest, stdin, stdout, stderr)
	}
	if first == "" {
		return usage("say what to do; authsvc help lists it")
	}
	return usage("there is no command %q; authsvc help lists them", first)
}

func help(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprint(t, "authsvc signs people and services in.\n\n  authsvc serve -dev\tserve from a folder, to try it\n  authsvc serve -config FILE\tserve\n  authsvc version\tsay which release this is\n")
	for _, g := range groups() {
		fmt.Fprintf(t, "  authsvc %s\t%s\n", g.name, g.about)
	}
	fmt.Fprint(t, "\nThese work on the store of an installation while its server runs or not: -dir .authsvc names that of serve -dev,\n-config FILE that of serve -config. A running server acts on what they change within a second.\nOnly watchers and health need one that runs: they ask it; restore needs that none does.\nauthsvc COMMAND -h says more.\n")
	return t.Flush()
}
