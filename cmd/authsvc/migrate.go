package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/term"

	"github.com/authsvc/authsvc/internal/app"
)

func migrateCommands() []command {
	return []command{
		{group: "migrate", name: "status", about: "say how far the database's schema is, and what each step holds up", setup: none(migrateStatus), storeless: true},
		{group: "migrate", name: "up", about: "do what is still to be done, while servers run; what was stopped goes on where it was", setup: none(migrateUp), storeless: true},
	}
}

func migrateStatus(r *call) error {
	s, err := app.MigrateStatus(r.ctx, r.store)
	if err != nil {
		return err
	}
	var rows [][]string
	for _, step := range s.Steps {
		state := string(step.State)
		if step.State != "done" && step.Percent > 0 {
			state += " " + strconv.Itoa(step.Percent) + "%"
		}
		blocks := step.Blocks
		if step.State == "done" {
			blocks = ""
		}
		rows = append(rows, []string{step.Name, string(step.Kind), state, blocks, step.Note})
	}
	if r.output != "json" {
		if _, err := fmt.Fprintf(r.stdout, "%s\n\n", versions(s)); err != nil {
			return err
		}
	}
	return r.list(s, false, "STEP KIND STATE BLOCKS NOW", rows)
}

// versions says in words what may run on what.
func versions(s app.Schema) string {
	switch {
	case s.Database == 0:
		return fmt.Sprintf("the database is empty; this program is of version %d", s.Program)
	case s.OldestProgram > s.Program:
		return fmt.Sprintf("the database has version %d, on which programs of version %d or later run; this one is of version %d: use the newer one", s.Database, s.OldestProgram, s.Program)
	default:
		return fmt.Sprintf("the database has version %d, on which programs of version %d or later run; this one is of version %d", s.Database, s.OldestProgram, s.Program)
	}
}

func migrateUp(r *call) error {
	ctx, stop := r.interruptible()
	defer stop()
	p := &progress{w: r.stdout}
	if f, ok := r.stdout.(*os.File); ok {
		p.terminal = term.IsTerminal(int(f.Fd()))
	}
	tell := p.tell
	if r.output == "json" {
		tell = func(app.SchemaStep) {}
	}
	s, err := app.MigrateUp(ctx, r.store, tell)
	p.end()
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("stopped; the next authsvc migrate up goes on from here")
	}
	if err != nil {
		return err
	}
	return r.say(s, "%s", versions(s))
}

// progress prints the steps as they go on: a bar in one line of a terminal, otherwise a line whenever something is new.
type progress struct {
	w        io.Writer
	terminal bool
	line     string // that was printed last
	name     string
	tenth    int
	open     bool // the cursor stands in a line that may be written over
}

func (p *progress) tell(s app.SchemaStep) {
	name := s.Name
	if name == "" {
		name = "migrate"
	}
	line := name + ": " + string(s.State)
	if s.Note != "" {
		line = name + ": " + s.Note
	}
	working := s.State != "done" && s.Percent > 0
	if working && p.terminal {
		line = fmt.Sprintf("%s [%-40s] %d%%", name, strings.Repeat("=", s.Percent*40/100), s.Percent)
	} else if working {
		if name == p.name && s.Percent/10 == p.tenth {
			return
		}
		line = fmt.Sprintf("%s: %d%%", name, s.Percent)
	}
	if line == p.line {
		return
	}
	p.line, p.name, p.tenth = line, name, s.Percent/10
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", clean(line))
		if p.open = s.State != "done"; !p.open {
			fmt.Fprintln(p.w)
		}
		return
	}
	fmt.Fprintln(p.w, clean(line))
}

// end leaves the line that may be written over.
func (p *progress) end() {
	if p.open {
		fmt.Fprintln(p.w)
	}
}
