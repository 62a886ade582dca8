package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"github.com/authsvc/authsvc/internal/app"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// A group is a first word with its commands; a command without a name is the group itself.
type group struct {
	name, about string
	commands    []command
}

// A command is one thing that can be done.
type command struct {
	group, name string
	args        string // what stands behind the flags, in words: "USERNAME", "[KID]", or nothing
	about       string
	setup       func(*flag.FlagSet) action
	storeless   bool // works without a store
	homeless    bool // and without an installation
	asks        bool // reads a password
}

// An action does it, with flags and arguments parsed.
type action func(*call) error

// A call is one run of a command.
type call struct {
	ctx    context.Context // the call is the request
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	args   []string
	output string
	store  app.AdminOptions
	admin  *app.Admin // nil for a storeless command
}

func (g group) pick(args []string, stdout io.Writer) (command, []string, error) {
	if len(g.commands) == 1 && g.commands[0].name == "" {
		return g.commands[0], args, nil
	}
	var names []string
	for _, c := range g.commands {
		if len(args) > 0 && c.name == args[0] {
			return c, args[1:], nil
		}
		names = append(names, c.name)
	}
	switch {
	case len(args) == 0:
		return command{}, nil, usage("%s what? One of %s", g.name, strings.Join(names, ", "))
	case args[0] == "-h" || args[0] == "-help" || args[0] == "--help" || args[0] == "help":
		t := tabwriter.NewWriter(stdout, 0, 0, 3, ' ', 0)
		for _, c := range g.commands {
			fmt.Fprintf(t, "%s\t%s\n", c.line(), c.about)
		}
		return command{}, nil, errors.Join(t.Flush(), flag.ErrHelp)
	default:
		return command{}, nil, usage("there is no command %q in %s; there are %s", args[0], g.name, strings.Join(names, ", "))
	}
}

// line is how the command is written.
func (c command) line() string {
	return strings.Join(strings.Fields("authsvc "+c.group+" "+c.name+" [flags] "+c.args), " ")
}

func (c command) run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	r := &call{ctx: ctx, stdin: stdin, stdout: stdout, stderr: stderr, store: app.AdminOptions{Environ: os.Environ()}}
	flags := flag.NewFlagSet(c.line(), flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	flags.StringVar(&r.store.ConfigFile, "config", "", "the configuration `file` of serve -config")
	flags.StringVar(&r.store.Dir, "dir", "", "the `folder` of serve -dev, such as .authsvc")
	flags.StringVar(&r.output, "o", c.format(), "output `format`: "+c.format()+" or json")
	act := c.setup(flags)
	if r.args, err = interleaved(flags, args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			c.help(stdout, flags)
			return err
		}
		return usage("%w\nusage: %s", err, c.line())
	}
	if err := c.check(r); err != nil {
		return err
	}
	if !c.storeless {
		if r.admin, err = app.OpenAdmin(ctx, r.store); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.admin.Close()) }()
	}
	return act(r)
}

// format is how a command prints unless it is told to print JSON.
func (c command) format() string {
	if c.name == "print" {
		return "yaml"
	}
	return "table"
}

// check looks at what every command has in common.
func (c command) check(r *call) error {
	most := len(strings.Fields(c.args))
	least := most
	if strings.HasPrefix(c.args, "[") {
		least = 0
	}
	switch {
	case len(r.args) < least:
		return usage("%s is missing\nusage: %s", c.args, c.line())
	case len(r.args) > most && c.asks: // which may be a password: it is not repeated
		return usage("one argument too many: a password comes from a prompt or stdin, never from the command line\nusage: %s", c.line())
	case len(r.args) > most:
		return usage("%q is one argument too many\nusage: %s", r.args[most], c.line())
	case r.output != c.format() && r.output != "json":
		return usage("-o must be %s or json", c.format())
	case r.store.ConfigFile != "" && r.store.Dir != "":
		return usage("-dir and -config name two installations: give one\nusage: %s", c.line())
	case !c.homeless && r.store.ConfigFile == "" && r.store.Dir == "":
		return usage("say which installation: -dir .authsvc (the folder of serve -dev), or -config FILE (the file of serve -config)\nusage: %s", c.line())
	}
	return nil
}

// interleaved parses flags that stand before, between and behind the arguments; after -- there are only arguments. An
// argument that looks like one of our ids is one even if it begins with a dash, as one in 64 does.
func interleaved(flags *flag.FlagSet, args []string) (rest []string, err error) {
	for {
		end := len(args)
		if i := slices.Index(args, "--"); i >= 0 {
			end = i
		}
		id := slices.IndexFunc(args[:end], dashedID)
		if id > 0 && takesValue(flags, args[id-1]) {
			id = -1
		}
		now := args
		if id >= 0 {
			now = args[:id]
		}
		if err := flags.Parse(now); err != nil {
			return nil, err
		}
		switch at := len(now) - flags.NArg(); {
		case flags.NArg() > 0 && at > 0 && now[at-1] == "--":
			return append(rest, flags.Args()...), nil
		case flags.NArg() > 0:
			rest, args = append(rest, flags.Arg(0)), args[at+1:]
		case id >= 0:
			rest, args = append(rest, args[id]), args[id+1:]
		default:
			return rest, nil
		}
	}
}

// dashedID reports the text of 16 or 32 bytes in base64url that begins with a dash.
func dashedID(arg string) bool {
	return (len(arg) == 22 || len(arg) == 43) && arg[0] == '-' && !strings.ContainsFunc(arg, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// takesValue reports whether arg is a flag whose value is the next argument.
func takesValue(flags *flag.FlagSet, arg string) bool {
	f := flags.Lookup(strings.TrimLeft(arg, "-"))
	if f == nil || arg[0] != '-' {
		return false
	}
	b, ok := f.Value.(interface{ IsBoolFlag() bool })
	return !ok || !b.IsBoolFlag()
}

func (c command) help(w io.Writer, flags *flag.FlagSet) {
	fmt.Fprintf(w, "%s\n%s\n", c.line(), c.about)
	flags.SetOutput(w)
	flags.PrintDefaults()
}

// none is the setup of a command without flags of its own.
func none(act action) func(*flag.FlagSet) action {
	return func(*flag.FlagSet) action { return act }
}

func explain(err error) string { return app.Explain(err) }

// print writes value as JSON, or what table writes.
func (r *call) print(value any, table func(w io.Writer) error) error {
	if r.output == "json" {
		e := json.NewEncoder(r.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(value)
	}
	t := tabwriter.NewWriter(r.stdout, 0, 0, 3, ' ', 0)
	return errors.Join(table(t), t.Flush())
}

// say answers with one sentence, or with value as JSON.
func (r *call) say(value any, format string, args ...any) error {
	return r.print(value, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, clean(fmt.Sprintf(format, args...)))
		return err
	})
}

// list prints rows under a head, and says on stderr where there are more, or none.
func (r *call) list(value any, more bool, head string, rows [][]string) error {
	if more {
		fmt.Fprintln(r.stderr, "authsvc: there are more; -limit 0 lists all")
	}
	if len(rows) == 0 {
		fmt.Fprintln(r.stderr, "authsvc: there is nothing to list")
	}
	return r.print(value, func(w io.Writer) error {
		fmt.Fprintln(w, strings.ReplaceAll(head, " ", "\t"))
		for _, row := range rows {
			fmt.Fprintln(w, strings.Join(cells(row), "\t"))
		}
		return nil // what w could not write, its Flush says
	})
}

// facts prints one thing, a line for each of its properties.
func (r *call) facts(value any, facts [][2]string) error {
	return r.print(value, func(w io.Writer) error {
		for _, f := range facts {
			if f[1] != "" {
				fmt.Fprintln(w, strings.Join(cells(f[:]), "\t"))
			}
		}
		return nil // what w could not write, its Flush says
	})
}

func cells(row []string) []string {
	out := make([]string, len(row))
	for i, cell := range row {
		if out[i] = strings.ReplaceAll(clean(cell), "\n", "?"); out[i] == "" {
			out[i] = "-"
		}
	}
	return out
}

// clean keeps what others wrote from steering the operator's terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// when prints an instant in UTC; zero is nothing.
func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
