package app

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// What a disk should have left for SQLite, in bytes: below the first nothing can be relied on, the second is a day's warning.
const (
	littleDisk = 100 << 20
	someDisk   = 1 << 30
)

func lookAtDisk(_ context.Context, e *examined) []Finding {
	if e.cfg.Database.Path == "" {
		return nil
	}
	folder := filepath.Dir(e.cfg.Database.Path)
	var fs unix.Statfs_t
	if err := unix.Statfs(folder, &fs); err != nil {
		return []Finding{finding(LevelProblem, fmt.Sprintf("database.path: the disk of %s cannot be looked at: %v", folder, err), "mend this setting")}
	}
	found := judgeDisk(folder, fs.Bavail*uint64(fs.Bsize))
	if all := sqlstore.Leftovers(e.cfg.Database.Path); len(all) > 0 {
		found = append(found, finding(LevelWarning, "database.path: there is "+strings.Join(all, ", ")+": a restore is under way, or was killed; then the database is as it was before",
			"if none is under way, restore again, which removes this, or remove it"))
	}
	return found
}

func judgeDisk(folder string, free uint64) []Finding {
	said := fmt.Sprintf("database.path: %d MiB are free in %s", free>>20, folder)
	const do = "make room, or move the database to a larger disk: when it is full nobody can sign in, refresh or be revoked"
	switch {
	case free < littleDisk:
		return []Finding{finding(LevelProblem, said, do)}
	case free < someDisk:
		return []Finding{finding(LevelWarning, said, do)}
	}
	return []Finding{fine("%s", said)}
}

// server asks a PostgreSQL about itself; of SQLite there is nothing to say.
func (e *examined) server(ctx context.Context, judge func(sqlstore.Server) []Finding) []Finding {
	s, known, err := e.db.Server(ctx)
	switch {
	case err != nil:
		return unanswered(err)
	case !known:
		return nil
	}
	return judge(s)
}

func lookAtServer(ctx context.Context, e *examined) []Finding { return e.server(ctx, judgeServer) }

func judgeServer(s sqlstore.Server) (found []Finding) {
	if !s.Fsync {
		found = append(found, finding(LevelProblem, "fsync is off: a crash of its machine may destroy the database, and brings back what was revoked", "set fsync = on in postgresql.conf"))
	}
	if !s.FullPageWrites {
		found = append(found, finding(LevelProblem, "full_page_writes is off: a crash of its machine may destroy the database", "set full_page_writes = on in postgresql.conf"))
	}
	switch {
	case s.ArchiveFailing:
		found = append(found, finding(LevelProblem, "the newest attempt to archive WAL failed: it is kept until that succeeds, and fills the disk", "see archive_command, and the server's log"))
	case !s.Archiving:
		found = append(found, finding(LevelNote, "archive_mode is off: the database can be restored to a backup, not to a moment", "docs/backup.md says how to archive"))
	}
	return append([]Finding{fine("it is PostgreSQL %s", s.Version)}, found...)
}

func lookAtReplication(ctx context.Context, e *examined) []Finding {
	return e.server(ctx, judgeReplication)
}

// longSilent is how long a standby that lacks something may say nothing: it answers within milliseconds, and each server writes every 5 s.
const longSilent = 3 * time.Second

// doWithout has commits wait for no standby; where the setting stands in postgresql.conf, a RESET would not.
const doWithout = `ALTER SYSTEM SET synchronous_standby_names = '', and SELECT pg_reload_conf()`

func judgeReplication(s sqlstore.Server) []Finding {
	var streaming, confirming, mute []string
	var quiet time.Duration
	for _, b := range s.Standbys {
		if b.State != "streaming" && s.MayMonitor {
			continue
		}
		streaming = append(streaming, b.Name)
		if b.Confirms() {
			confirming = append(confirming, b.Name)
			if b.Silent > longSilent {
				mute, quiet = append(mute, b.Name), max(quiet, b.Silent)
			}
		}
	}
	set := s.StandbyNames != ""
	switch {
	case set && len(streaming) == 0:
		return []Finding{finding(LevelProblem, fmt.Sprintf("synchronous_standby_names is %q, and no standby is connected: every commit waits for one, and fails here after 5 s", s.StandbyNames),
			"start the standby; or, if there is to be none for now, "+doWithout)}
	case !s.MayMonitor && len(streaming) > 0:
		return []Finding{finding(LevelNote, fmt.Sprintf("database.url: user %s may not see whether the %d connected standbys confirm commits", s.User, len(streaming)),
			fmt.Sprintf("GRANT pg_monitor TO %s, and ask again", s.User))}
	case set && len(confirming) == 0:
		return []Finding{finding(LevelProblem, fmt.Sprintf("synchronous_standby_names is %q, and of the connected standbys (%s) none confirms commits: every commit waits, and fails here after 5 s", s.StandbyNames, strings.Join(streaming, ", ")),
			"give the standby, in its primary_conninfo, an application_name that synchronous_standby_names names")}
	case set && len(mute) == len(confirming):
		return []Finding{finding(LevelProblem, fmt.Sprintf("synchronous_standby_names is %q, and what is to confirm commits is connected and has not done so for %v (%s): every commit waits, and fails here after 5 s",
			s.StandbyNames, quiet.Round(time.Second), strings.Join(mute, ", ")),
			"see whether the standby's machine hangs, its disk is full, or the network to it is cut, and start it anew; or, if there is to be none for now, "+doWithout)}
	case set && len(mute) > 0:
		return []Finding{finding(LevelWarning, fmt.Sprintf("of the standbys that confirm commits (%s) some have not done so for %v: %s", strings.Join(confirming, ", "), quiet.Round(time.Second), strings.Join(mute, ", ")),
			"see whether their machine hangs, their disk is full, or the network to them is cut: without the others commits would wait")}
	case set:
		return []Finding{fine("commits wait for %s (synchronous_standby_names is %q): a failover loses nothing that was answered", strings.Join(confirming, ", "), s.StandbyNames)}
	case len(streaming) > 0:
		return []Finding{finding(LevelWarning, fmt.Sprintf("the connected standbys (%s) do not confirm commits: a failover loses the newest ones, among them sign-ins, password changes and revocations; "+
			"revocations of the last 17 minutes are put back by the servers that still run", strings.Join(streaming, ", ")),
			"set synchronous_standby_names = 'ANY 1 (*)', with two standbys or more, so that commits go on while one is away")}
	}
	return []Finding{finding(LevelNote, "no standby is connected: if the server's disk is lost, what is not in a backup is", "docs/backup.md says how to keep a backup, and an archive beside it")}
}

func lookAtConnections(ctx context.Context, e *examined) []Finding {
	running := 1
	if all, now, err := e.db.Instances().List(ctx); err == nil {
		running = max(1, len(living(all, now)))
	}
	return e.server(ctx, func(s sqlstore.Server) []Finding { return judgeConnections(s, running) })
}

func judgeConnections(s sqlstore.Server, running int) []Finding {
	need := running * s.PerServer
	said := fmt.Sprintf("%d servers with this configuration make at most %d connections; the database takes %d, and has %d", running, need, s.Room, s.Connected)
	const do = "lower pool_max_conns in database.url, or raise max_connections of the database"
	switch {
	case need > s.Room:
		return []Finding{finding(LevelProblem, said, do)}
	case need+s.PerServer > s.Room:
		return []Finding{finding(LevelWarning, said+": there is no room for one server more, as during a rolling upgrade", do)}
	}
	return []Finding{fine("%s", said)}
}

// Skews of a clock from the database's.
const (
	someSkew = time.Second
	muchSkew = 30 * time.Second
)

func lookAtClock(ctx context.Context, e *examined) []Finding {
	if e.cfg.Database.URL == "" {
		return nil // the database has this machine's clock
	}
	before := time.Now()
	at, err := e.db.Clock(ctx)
	if err != nil {
		return unanswered(err)
	}
	took := time.Since(before)
	return judgeSkew("this machine's clock", e.now().Add(-took/2).Sub(at), took/2)
}

// judgeSkew judges how far a clock is ahead of the database's, known to within give or take.
func judgeSkew(whose string, ahead, within time.Duration) []Finding {
	off := max(ahead.Abs()-within, 0)
	said := fmt.Sprintf("%s is %v ahead of the database's", whose, ahead.Round(time.Millisecond))
	if ahead < 0 {
		said = fmt.Sprintf("%s is %v behind the database's", whose, (-ahead).Round(time.Millisecond))
	}
	const do = "synchronise both machines' clocks (NTP): verifiers refuse tokens that seem to come from the future, or to have expired"
	switch {
	case off > muchSkew:
		return []Finding{finding(LevelProblem, said, do)}
	case off > someSkew:
		return []Finding{finding(LevelWarning, said, do)}
	}
	return []Finding{fine("%s", said)}
}

// Backlogs.
const slowEnds = 10 * time.Minute

func lookAtBacklog(ctx context.Context, e *examined) []Finding {
	b, err := e.db.Backlog(ctx, keepSessions, keepAudit)
	if err != nil {
		return unanswered(err)
	}
	now, err := e.db.Clock(ctx)
	if err != nil {
		return unanswered(err)
	}
	return judgeBacklog(b, now)
}

func judgeBacklog(b sqlstore.Backlog, now time.Time) (found []Finding) {
	const do = "see that a server runs, and whether its log says that cleaning failed"
	if b.Ends > 0 && now.Sub(b.OldestEnd) > slowEnds {
		found = append(found, finding(LevelWarning, fmt.Sprintf("%d cut-offs are still being carried out, the oldest since %s: their sessions are dead, but not marked as ended", b.Ends, b.OldestEnd.UTC().Format(time.RFC3339)), do))
	} else if b.Ends > 0 {
		found = append(found, finding(LevelNote, fmt.Sprintf("%d cut-offs are being carried out: their sessions are dead, and are being marked as ended", b.Ends), ""))
	}
	for _, left := range []struct {
		n    int
		what string
	}{{b.Revocations, "entries of the revocation log"}, {b.Sessions, "sessions"}, {b.Audit, "audit records"}} {
		if left.n > 0 {
			found = append(found, finding(LevelWarning, fmt.Sprintf("%d %s should have been deleted long ago: the table grows", left.n, left.what), do))
		}
	}
	if len(found) == 0 {
		found = append(found, fine("nothing is left over"))
	}
	return found
}
