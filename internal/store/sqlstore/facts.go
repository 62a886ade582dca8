package sqlstore

import (
	"context"
	"strings"
	"time"
)

// Server is what a PostgreSQL server says of itself.
type Server struct {
	Version          string
	Fsync            bool
	FullPageWrites   bool
	Commit           string // synchronous_commit of our connections
	StandbyNames     string // synchronous_standby_names
	MayMonitor       bool   // our user sees what standbys do
	User             string
	Standbys         []Standby
	Room             int // connections that it lets in, but for those that it keeps for superusers
	Connected        int // those there are
	PerServer        int // those that one of our servers makes at most
	Archiving        bool
	ArchiveFailing   bool // the newest attempt to archive WAL failed
	ArchivedSegments int64
}

// Standby is one that is connected. Only its name is known to users without pg_monitor.
type Standby struct {
	Name  string        // application_name
	State string        // such as "streaming"
	Sync  string        // "sync", "quorum", "potential" or "async"
	Lag   time.Duration // until it has replayed
	// Silent is how long ago it last said anything, if there is something that it has not flushed yet; else 0.
	Silent time.Duration
}

// Confirms reports whether commits wait for this one, or for it among others.
func (s Standby) Confirms() bool {
	return s.State == "streaming" && (s.Sync == "sync" || s.Sync == "quorum")
}

// Server asks PostgreSQL about itself; known is false for SQLite.
func (db *DB) Server(ctx context.Context) (s Server, known bool, err error) {
	if db.pg == nil {
		return s, false, nil
	}
	s.PerServer = int(db.pg.source.Config().MaxConns) + besides
	s, err = view(ctx, db, func(q queries) (Server, error) {
		s := s
		err := q.row(`SELECT current_setting('server_version'), current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
			current_setting('synchronous_commit'), current_setting('synchronous_standby_names'), current_user::text,
			pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
			current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint,
			(SELECT sum(numbackends)::bigint FROM pg_stat_database),
			current_setting('archive_mode') <> 'off',
			(SELECT last_failed_time IS NOT NULL AND (last_archived_time IS NULL OR last_failed_time > last_archived_time) FROM pg_stat_archiver),
			(SELECT archived_count FROM pg_stat_archiver)`).Scan(&s.Version, &s.Fsync, &s.FullPageWrites, &s.Commit, &s.StandbyNames, &s.User,
			&s.MayMonitor, &s.Room, &s.Connected, &s.Archiving, &s.ArchiveFailing, &s.ArchivedSegments)
		s.Version, _, _ = strings.Cut(s.Version, " ")
		return s, err
	})
	if err != nil {
		return s, true, err
	}
	s.Standbys, err = view(ctx, db, func(q queries) ([]Standby, error) {
		return collect(q, func(s scanner) (b Standby, err error) {
			var lag, silent int64
			err = s.Scan(&b.Name, &b.State, &b.Sync, &lag, &silent)
			b.Lag, b.Silent = time.Duration(lag)*time.Microsecond, time.Duration(silent)*time.Microsecond
			return b, err
		}, `SELECT COALESCE(application_name, ''), COALESCE(state, ''), COALESCE(sync_state, ''),
			COALESCE((extract(epoch FROM replay_lag) * 1000000)::bigint, 0),
			COALESCE(CASE WHEN flush_lsn < pg_current_wal_flush_lsn() THEN (extract(epoch FROM clock_timestamp() - reply_time) * 1000000)::bigint END, 0)
			FROM pg_stat_replication WHERE COALESCE(state, '') <> 'backup' ORDER BY 1, 2, 3`)
	})
	return s, true, err
}

// besides is how many connections a server has outside its pool: one follows the revocation log, one listens.
const besides = 2

// Clock gives the store's time.
func (db *DB) Clock(ctx context.Context) (time.Time, error) {
	return view(ctx, db, func(q queries) (time.Time, error) {
		at, err := scanInt(q.row(`SELECT @now FROM installation`))
		return instantOf(at), err
	})
}

// manyRows bounds what is counted or looked through by those who ask how the store is.
const manyRows = 10_000

// UsedRefreshKeys gives the ids of the refresh keys that the newest and the oldest ten thousand live sessions were made with.
func (db *DB) UsedRefreshKeys(ctx context.Context) ([]byte, error) {
	found, err := view(ctx, db, func(q queries) ([]int64, error) {
		return collect(q, scanInt, `SELECT DISTINCT key_id FROM (
			SELECT key_id FROM (SELECT key_id FROM sessions WHERE ended_at IS NULL ORDER BY created_at DESC, id DESC LIMIT ?) AS newest
			UNION ALL SELECT key_id FROM (SELECT key_id FROM sessions WHERE ended_at IS NULL ORDER BY created_at, id LIMIT ?) AS oldest
			) AS sampled ORDER BY key_id`, manyRows, manyRows)
	})
	used := make([]byte, 0, len(found))
	for _, id := range found {
		used = append(used, byte(id))
	}
	return used, err
}

// Backlog is what sweeps should have done already. Each count ends at ten thousand.
type Backlog struct {
	Ends        int       // cut-offs whose sessions are not all marked yet; they are dead all the same
	OldestEnd   time.Time // the cut-off of the oldest of them
	Revocations int       // entries of the log that expired more than a quarter of an hour ago
	Sessions    int       // rows that were to go more than an hour ago, if they were not used since
	Audit       int       // records that were to go more than an hour ago
}

// Backlog counts what sweeps have left, where sessions and audit records are kept that long after their end.
func (db *DB) Backlog(ctx context.Context, keepSessions, keepAudit time.Duration) (Backlog, error) {
	const slow, slower = 15 * time.Minute, time.Hour
	return view(ctx, db, func(q queries) (b Backlog, err error) {
		var oldest int64
		err = q.row(`SELECT (SELECT COUNT(*) FROM (SELECT id FROM pending_ends LIMIT ?) AS a), (SELECT COALESCE(MIN(not_before), 0) FROM pending_ends),
			(SELECT COUNT(*) FROM (SELECT position FROM revocations WHERE expires_at > 0 AND expires_at < @now - ?
				AND position < (SELECT MAX(position) FROM revocations) LIMIT ?) AS b),
			(SELECT COUNT(*) FROM (SELECT id FROM sessions WHERE sweep_at < @now - ? LIMIT ?) AS c),
			(SELECT COUNT(*) FROM (SELECT id FROM audit WHERE time < @now - ? LIMIT ?) AS d)`,
			manyRows, slow.Microseconds(), manyRows, (keepSessions+slower).Microseconds(), manyRows, (keepAudit+slower).Microseconds(), manyRows).
			Scan(&b.Ends, &oldest, &b.Revocations, &b.Sessions, &b.Audit)
		b.OldestEnd = instantOf(oldest)
		return b, err
	})
}
