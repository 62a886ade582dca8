package sqlstore

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// Kind is what kind of step of a migration something is.
type Kind string

// The kinds. An expansion leaves everything in place that the programs before it use; a contraction takes something away,
// and so names a later oldest program. Both are one short transaction. An index is built, and rows are filled in, while the
// service works; no program relies on either being done.
const (
	Expand   Kind = "expand"
	Contract Kind = "contract"
	Index    Kind = "index"
	Backfill Kind = "backfill"
)

// State is what became of a step.
type State string

// The states. A step is running where another process is at it, as far as the engine tells.
const (
	Done    State = "done"
	Pending State = "pending"
	Running State = "running"
)

// Step is one step of a migration.
type Step struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	Kind    Kind   `json:"kind"`
	State   State  `json:"state"`
	// Percent is how far a backfill is, of the rows that there were when it began; 100 for what is done.
	Percent int `json:"percent"`
	// Blocks says who has to wait for it, and how long.
	Blocks string `json:"blocks"`
	// Note is what it is doing or waiting for, where that is known.
	Note string `json:"note,omitempty"`
}

// Schema is how far the schema of a database is.
type Schema struct {
	// Database is the version that the database has, 0 for none; Program the one that this program is made for.
	Database int `json:"database"`
	Program  int `json:"program"`
	// OldestProgram is the version of the oldest program that may run on the database.
	OldestProgram int `json:"oldest_program"`
	// Steps are in the order in which they are done. Of what a newer program did there is only that it did.
	Steps []Step `json:"steps"`
}

// Pending is how many steps of this program are still to be done.
func (s Schema) Pending() (n int) {
	for _, step := range s.Steps {
		if step.State != Done && step.Version <= s.Program {
			n++
		}
	}
	return n
}

func (s Schema) named(name string) (found Step) {
	for _, step := range s.Steps {
		if step.Name == name {
			found = step
		}
	}
	return found
}

// step is a Step with what it takes to do it.
type step struct {
	Step
	place         int // among the steps of its version
	text          string
	index         string // the name of an Index
	table, column string // what a Backfill goes through: a column of rising numbers, unique
}

// version is one migration. Its first step is the change, a transaction.
type version struct {
	number int
	name   string
	oldest int // the oldest program that may run on the schema once the change is made
	steps  []step
}

// parseMigrations reads the files of a folder, NNNN_name.sql, numbered from 1 without a gap. What stands first is the change, any
// statements, in one transaction. A line
//
//	-- oldest: N
//
// says that programs made for version N run on what the change leaves; without it only this version's do. Sections may follow,
// each a single statement without an end mark:
//
//	-- index: NAME
//	CREATE INDEX NAME ON …
//
//	-- backfill: TABLE by COLUMN
//	UPDATE TABLE SET … WHERE COLUMN > ? AND COLUMN <= ? AND …
func parseMigrations(files fs.FS, words *dialect) ([]version, error) {
	names, err := fs.Glob(files, "migrations/*.sql") // sorted
	if err != nil {
		return nil, err
	}
	var all []version
	for i, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		v := version{number: i + 1, oldest: i + 1, name: strings.TrimSuffix(path.Base(name), ".sql")}
		if !strings.HasPrefix(v.name, fmt.Sprintf("%04d_", v.number)) {
			return nil, fmt.Errorf("sqlstore: migration %s should be number %d", v.name, v.number)
		}
		v.steps = []step{{Step: Step{Version: v.number, Name: v.name}}}
		for line := range strings.Lines(string(text)) {
			if err := v.read(line); err != nil {
				return nil, fmt.Errorf("sqlstore: migration %s: %w", v.name, err)
			}
		}
		v.steps[0].Kind = Expand
		if v.oldest == v.number {
			v.steps[0].Kind = Contract
		}
		for j := range v.steps {
			v.steps[j].Blocks = words.blocks(v.steps[j].Kind)
		}
		all = append(all, v)
	}
	return all, nil
}

// read takes one line of the file.
func (v *version) read(line string) (err error) {
	const oldest, index, backfill = "-- oldest: ", "-- index: ", "-- backfill: "
	s := step{Step: Step{Version: v.number}, place: len(v.steps)}
	head, rest, _ := strings.Cut(strings.TrimSpace(line), ": ")
	switch head + ": " {
	case oldest:
		v.oldest, err = strconv.Atoi(rest)
		return err
	case index:
		s.Kind, s.index, s.Name = Index, rest, v.name+", index "+rest
	case backfill:
		var ok bool
		if s.table, s.column, ok = strings.Cut(rest, " by "); !ok {
			return fmt.Errorf("%q names no table and column", strings.TrimSpace(line))
		}
		s.Kind, s.Name = Backfill, v.name+", rows of "+s.table
	default:
		v.steps[len(v.steps)-1].text += line
		return nil
	}
	v.steps = append(v.steps, s)
	return nil
}

// blocks says who has to wait for a step.
func (d *dialect) blocks(k Kind) string {
	switch {
	case k == Backfill && d.numbered:
		return "nobody"
	case k == Backfill:
		return "writers, for milliseconds"
	case k == Index && d.numbered:
		return "nobody"
	case k == Index:
		return "writers, while it is built"
	case d.numbered:
		return "users of its tables, for at most " + lockFor.String()
	default:
		return "writers, for milliseconds"
	}
}

// report reads what became of every step.
func (d *dialect) report(q queries) (Schema, error) {
	e, err := d.extent(func(query string) scanner { return q.row(query) })
	if err != nil {
		return Schema{}, err
	}
	type row struct{ version, step, reached, first, last, done int64 }
	rows := map[[2]int]row{}
	if e.version >= tracked {
		all, err := collect(q, func(s scanner) (r row, err error) {
			return r, s.Scan(&r.version, &r.step, &r.reached, &r.first, &r.last, &r.done)
		}, `SELECT version, step, reached, first_row, last_row, done_at FROM schema_steps`)
		if err != nil {
			return Schema{}, err
		}
		for _, r := range all {
			rows[[2]int{int(r.version), int(r.step)}] = r
		}
	}
	s := Schema{Database: max(e.version, 0), Program: d.newest(), OldestProgram: e.oldest, Steps: []Step{}}
	for _, v := range d.history {
		for i, known := range v.steps {
			one, r := known.Step, rows[[2]int{v.number, i}]
			one.State = Pending
			switch {
			case r.done > 0 || v.number <= e.version && v.number < tracked:
				one.State, one.Percent = Done, 100
			case r.last > 0:
				one.Percent = int(min(max(r.reached-r.first+1, 0)*100/(r.last-r.first+1), 99))
			}
			s.Steps = append(s.Steps, one)
		}
	}
	for n := d.newest() + 1; n <= e.version; n++ {
		s.Steps = append(s.Steps, Step{Version: n, Name: fmt.Sprintf("%04d, of a newer program", n), Kind: Expand, State: Done, Percent: 100})
	}
	return s, nil
}

// Schema says how far the schema is.
func (db *DB) Schema(ctx context.Context) (Schema, error) { return view(ctx, db, db.words.report) }

// SchemaVersion is the version of the schema by which statements are written now: that of the database, as it was when it was
// last looked at.
func (db *DB) SchemaVersion() int { return int(db.words.version.Load()) }
