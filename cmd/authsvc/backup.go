package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/term"

	"github.com/authsvc/authsvc/internal/app"
)

func backupCommands() []command {
	return []command{{group: "backup", args: "FILE", about: "copy the SQLite database to a new file, whether a server runs or not", setup: none(makeBackup), storeless: true}}
}

func restoreCommands() []command {
	return []command{{group: "restore", args: "BACKUP", about: "make a backup the SQLite database, while no server runs", setup: restore, storeless: true}}
}

// interruptible ends with the first signal; what was begun is undone before the process ends. A second one ends that at once.
func (r *call) interruptible() (context.Context, func()) {
	ctx, stop := signal.NotifyContext(r.ctx, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

func makeBackup(r *call) error {
	ctx, stop := r.interruptible()
	defer stop()
	b, err := app.MakeBackup(ctx, r.store, r.args[0])
	if err != nil {
		return err
	}
	return r.facts(b, append(backupFacts(b), [2]string{"note", "without those files it is of no use: keep them too, in another place than it"}))
}

func backupFacts(b app.Backup) [][2]string {
	facts := [][2]string{{"backup", b.File}, {"bytes", strconv.FormatInt(b.Bytes, 10)}, {"schema version", strconv.Itoa(b.Schema)},
		{"position", strconv.FormatInt(b.Position, 10)}, {"last record", when(b.LastAt)}, {"live sessions", strconv.Itoa(b.Sessions)}}
	for _, k := range b.NotInIt {
		facts = append(facts, [2]string{"not in it", k.File + " (" + k.Setting + ")"})
	}
	return facts
}

func restore(f *flag.FlagSet) action {
	var o app.RestoreOptions
	f.BoolVar(&o.Replace, "replace", false, "a database that is there makes way; it is kept under another name")
	f.BoolVar(&o.KeepKeys, "keep-keys", false, "let the backup's signing keys sign on: also those that were revoked since")
	f.BoolVar(&o.KeepSessions, "keep-sessions", false, "let the backup's sessions live: also those that were ended since")
	yes := f.Bool("yes", false, "do not ask")
	return func(r *call) (err error) {
		ctx, stop := r.interruptible()
		defer stop()
		o.AdminOptions, o.File = r.store, r.args[0]
		terminal, isTerminal := r.stdin.(*os.File)
		if isTerminal = isTerminal && term.IsTerminal(int(terminal.Fd())); !isTerminal && !*yes {
			return usage("restore asks before it changes anything, and stdin is no terminal: give -yes")
		}
		plan, err := app.PrepareRestore(ctx, o)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, plan.Close()) }()
		for _, line := range intentions(plan, o) {
			fmt.Fprintln(r.stderr, clean(line))
		}
		if !*yes {
			if err := confirm(ctx, terminal, r.stderr); err != nil {
				return err
			}
		}
		done, err := plan.CarryOut(ctx)
		if err != nil {
			return err
		}
		return r.facts(done, [][2]string{{"restored", done.Database}, {"kept as", done.Kept}, {"schema version", strconv.Itoa(done.Schema)},
			{"ended sessions", strconv.Itoa(done.Ended)}, {"signer", done.Signer}, {"next", "start the server"}})
	}
}

// intentions says what a restore will do, and what the choices mean.
func intentions(p *app.Restore, o app.RestoreOptions) []string {
	b := p.Backup()
	lines := []string{
		fmt.Sprintf("%s, schema version %d, position %d, last record of %s, becomes %s.", b.File, b.Schema, b.Position, when(b.LastAt), p.Database()),
		"Accounts, passwords and clients are again as they were then: what was disabled, changed or deleted since has to be again.",
	}
	if o.KeepKeys {
		lines = append(lines, "-keep-keys: its signing keys sign on. One that was revoked since is good again; access tokens that keys made since have signed are refused.")
	} else {
		lines = append(lines, "Every signing key of it is revoked, and there are two new ones: no access token issued until now is good. (-keep-keys lets them sign on.)")
	}
	if o.KeepSessions {
		lines = append(lines, fmt.Sprintf("-keep-sessions: its %d sessions live on, also those that were ended since. Those that began since are lost.", b.Sessions))
	} else {
		lines = append(lines, "Every session is ended, and whatever began until now is cut off, for good: everybody signs in again. (-keep-sessions lets them live.)")
	}
	return lines
}

// confirm asks at the terminal; an interrupt is a no.
func confirm(ctx context.Context, terminal io.Reader, stderr io.Writer) error {
	fmt.Fprint(stderr, "Type yes to restore: ")
	answered := make(chan string, 1)
	go func() { // ends with the line, or with the process
		line, _ := bufio.NewReader(terminal).ReadString('\n')
		answered <- strings.TrimSpace(line)
	}()
	select {
	case answer := <-answered:
		if answer == "yes" {
			return nil
		}
	case <-ctx.Done():
		fmt.Fprintln(stderr)
	}
	return errors.New("nothing was changed")
}
