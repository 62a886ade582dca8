package app

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// Level is how much a finding matters.
type Level string

// The levels: a note is worth knowing, a warning will or may become a problem, a problem has to be mended.
const (
	LevelOK      Level = "ok"
	LevelNote    Level = "note"
	LevelWarning Level = "warning"
	LevelProblem Level = "problem"
)

// Finding is one line of the doctor: what was looked at, what was found, and what is to be done about it, if anything.
type Finding struct {
	Level Level  `json:"level"`
	Check string `json:"check"`
	Found string `json:"found"`
	Do    string `json:"do,omitempty"`
	See   string `json:"see,omitempty"` // the chapter of the runbook about it: of a warning or a problem, where there is one
}

func fine(format string, args ...any) Finding {
	return Finding{Level: LevelOK, Found: fmt.Sprintf(format, args...)}
}

// finding is one that is not fine; found and do are whole sentences without their full stop.
func finding(l Level, found, do string) Finding { return Finding{Level: l, Found: found, Do: do} }

// see gives a finding the chapter of the runbook that an alert has.
func (f Finding) see(alert string) Finding {
	f.See = "docs/runbook.md#" + strings.ToLower(alert)
	return f
}

// check looks at one thing, and changes nothing. A finding without a name gets the check's.
type check struct {
	name  string
	store bool // needs the database
	look  func(context.Context, *examined) []Finding
	alert string // whose chapter of the runbook goes on where a finding does not name another; may be empty
}

// Alerts whose chapters more than one finding is about.
const (
	alertNotReady = "AuthsvcNotReady"
	alertClock    = "AuthsvcClockSkew"
	alertLag      = "AuthsvcRevocationLag"
)

// first are the two before checks, which have what those need.
func first() []check {
	return []check{{"configuration", false, lookAtConfig, "AuthsvcConfigRefused"}, {"database", false, lookAtDatabase, alertNotReady}}
}

// checks are all there are, in the order of the report. The two before them are the configuration and the database.
func checks() []check {
	return []check{
		{"disk", false, lookAtDisk, alertNotReady},
		{"postgresql", true, lookAtServer, ""},
		{"replication", true, lookAtReplication, alertNotReady},
		{"connections", true, lookAtConnections, alertNotReady},
		{"redis", false, lookAtRedis, "AuthsvcRedisAway"},
		{"clock", true, lookAtClock, alertClock},
		{"servers", true, lookAtInstances, "AuthsvcReplicaDown"},
		{"signing keys", true, lookAtKeys, "AuthsvcSigningKeyLate"},
		{"refresh keys", true, lookAtRefreshKeys, ""},
		{"certificates", false, lookAtCertificates, "AuthsvcCertificateExpires"},
		{"feed", false, lookAtFeed, alertLag},
		{"cleaning", true, lookAtBacklog, ""},
	}
}

// examined is the installation that is looked at.
type examined struct {
	cfg config.Config
	db  *sqlstore.DB // nil where it cannot be opened
	now func() time.Time
}

// checkFor bounds one check, and graceFor how much later than that it is waited for: one that heeds its context ends in between.
const (
	checkFor = 8 * time.Second
	graceFor = time.Second
)

// Examine looks at an installation from beside its servers, and changes nothing. Its error is that there is nothing to look at.
func Examine(ctx context.Context, o AdminOptions) ([]Finding, error) {
	cfg, err := LoadConfig(o)
	if err != nil {
		return nil, err
	}
	e := &examined{cfg: cfg, now: time.Now}
	found := e.all(ctx, first(), checkFor)
	all := append(found, e.all(ctx, checks(), checkFor)...)
	if e.db != nil {
		closed := make(chan struct{})
		go func() { _ = e.db.Close(); close(closed) }() // a check that hangs may hold a connection
		select {
		case <-closed:
		case <-time.After(graceFor):
		}
	}
	return all, nil
}

// all runs checks beside each other. One that hangs is a finding, and holds up no other.
func (e *examined) all(ctx context.Context, list []check, limit time.Duration) (found []Finding) {
	answers := make([][]Finding, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { answers[i] = e.run(ctx, c, limit) })
	}
	wg.Wait()
	for i, c := range list {
		for _, f := range answers[i] {
			if f.Check == "" {
				f.Check = c.name
			}
			if f.See == "" && c.alert != "" && (f.Level == LevelWarning || f.Level == LevelProblem) {
				f = f.see(c.alert)
			}
			f.Found, f.Do = strings.ReplaceAll(f.Found, "\n", "; "), strings.ReplaceAll(f.Do, "\n", "; ")
			found = append(found, f)
		}
	}
	return found
}

func (e *examined) run(ctx context.Context, c check, limit time.Duration) []Finding {
	if c.store && e.db == nil {
		return nil // the database's own finding says why
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer := make(chan []Finding, 1)
	go func() { answer <- c.look(ctx, e) }()
	late := time.NewTimer(limit + graceFor)
	defer late.Stop()
	select {
	case found := <-answer:
		return found
	case <-late.C:
		return []Finding{finding(LevelProblem, fmt.Sprintf("this was not known after %v", limit), "look at what it would have asked: a disk or a server that does not answer")}
	}
}

// unanswered is the finding that a question to the store failed.
func unanswered(err error) []Finding {
	return []Finding{finding(LevelProblem, "the database did not answer: "+Explain(err), "see what keeps it from answering, in its own log")}
}

func lookAtConfig(_ context.Context, e *examined) []Finding {
	if err := CheckConfig(e.cfg); err != nil {
		return []Finding{finding(LevelProblem, err.Error(), "mend these settings: no server starts with them")}
	}
	found := []Finding{fine("the configuration is sound")}
	for _, c := range e.cfg.Cautions() {
		found = append(found, finding(LevelNote, c, ""))
	}
	return found
}

// lookAtDatabase opens it for all that follow.
func lookAtDatabase(ctx context.Context, e *examined) []Finding {
	o, err := databaseOptions(e.cfg.Database)
	if err != nil {
		return []Finding{finding(LevelProblem, err.Error(), "mend this setting")}
	}
	db, err := sqlstore.OpenExisting(ctx, o)
	if err != nil {
		return []Finding{finding(LevelProblem, ofDatabase(o, err).Error(), unopened(o, err))}
	}
	begun := time.Now()
	if err := db.Ping(ctx); err != nil {
		_ = db.Close()
		return unanswered(err)
	}
	took := time.Since(begun)
	e.db = db
	schema, err := db.Schema(ctx)
	if err != nil {
		return unanswered(err)
	}
	return judgeDatabase(took, schema)
}

// unopened is what to do about a database that cannot be opened.
func unopened(o sqlstore.Options, err error) string {
	switch {
	case errors.Is(err, sqlstore.ErrNoDatabase):
		return "start a server, which makes it; or, if there was one, mend this setting, or restore a backup"
	case errors.Is(err, sqlstore.ErrNotOurs):
		return "mend this setting: a server refuses to start on it"
	case errors.Is(err, sqlstore.ErrSchemaOlder):
		return "run authsvc migrate up"
	case errors.Is(err, sqlstore.ErrSchemaNewer):
		return "use the release that the servers run: this program is older"
	case errors.Is(err, sqlstore.ErrNotOwner):
		return "run this as the service's user"
	case o.Path != "":
		return "mend this setting, or the disk; if the file is damaged, authsvc restore puts a backup in its place"
	}
	return "start the database, or mend the setting that is named"
}

func judgeDatabase(took time.Duration, schema sqlstore.Schema) (found []Finding) {
	if took > slowAnswer {
		found = append(found, finding(LevelWarning, fmt.Sprintf("an answer of the database takes %v", took.Round(time.Millisecond)), "bring it nearer, or find what it is busy with: each refresh waits for one answer"))
	}
	if n := schema.Pending(); n > 0 {
		found = append(found, finding(LevelWarning, fmt.Sprintf("%d steps of its schema are still to be done: it has version %d, this release brings %d", n, schema.Database, schema.Program),
			"run authsvc migrate up, while the servers run"))
	}
	if len(found) == 0 {
		found = append(found, fine("it answers within %v, and its schema has all that this release brings", took.Round(10*time.Microsecond)))
	}
	return found
}

// slowAnswer is what a database on the same network never needs to read one row.
const slowAnswer = 50 * time.Millisecond
