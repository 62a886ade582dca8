package sqlstore

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/revocation"
)

// standing is the server that a connection leads to, and its start. It holds as long as the connection does: a primary's
// timeline changes only where a standby is promoted or a backup is recovered, and neither has connections that may write.
type standing struct {
	system   string
	timeline uint32
	lineage  string // whose history its data is: system, timeline and database
	name     string // lineage and start
	backend  int64  // the server's process
	met      time.Time
}

// The key under which a connection keeps its standing.
const standingKey = "authsvc.standing"

func (c *pgConn) server() *standing {
	s, _ := c.conn.PgConn().CustomData()[standingKey].(*standing)
	return s
}

// whose asks a server who it is. The timeline is that of the log which is being written: what pg_control_checkpoint says follows
// a promotion some time later. A standby writes none.
const whose = `SELECT (pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on')::text,
	(SELECT system_identifier FROM pg_control_system())::text,
	CASE WHEN pg_is_in_recovery() THEN '' ELSE substring(pg_walfile_name(pg_current_wal_lsn()) for 8) END,
	(SELECT oid FROM pg_database WHERE datname = current_database())::text,
	pg_postmaster_start_time()::timestamptz(6)::text, pg_backend_pid()::text`

// meet asks each new connection who is there, in the place of the question whether it may write: a standby is passed over for
// the URL's next host, and so is a server whose timeline another has left behind, since it may still take writes that nobody
// will ever see.
func (p *pool) meet(ctx context.Context, conn *pgconn.PgConn) error {
	s, err := introduce(ctx, conn)
	if err != nil {
		return err
	}
	p.mu.Lock()
	newer := s.system == p.system && s.timeline > p.timeline
	older := s.system == p.system && s.timeline < p.timeline
	known, source, tail := p.timeline, p.source, p.tail
	if newer || p.system == "" {
		p.system, p.timeline = s.system, s.timeline
	}
	p.mu.Unlock()
	if older {
		return fmt.Errorf("sqlstore: this server is on timeline %d of its history, and another has gone on to timeline %d: it was replaced, and must not be written to", s.timeline, known)
	}
	if newer { // what is connected to the old one leaves it
		for _, pool := range []*pgxpool.Pool{source, tail} {
			if pool != nil { // Open makes one after the other
				pool.Reset()
			}
		}
	}
	return nil
}

// meetFirst is meet for the connection of the log, which decides whose history is followed.
func (p *pool) meetFirst(ctx context.Context, conn *pgconn.PgConn) error {
	if err := p.meet(ctx, conn); err != nil {
		return err
	}
	s := conn.CustomData()[standingKey].(*standing)
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.system != p.system {
		p.system, p.timeline = s.system, s.timeline
	}
	return nil
}

func introduce(ctx context.Context, conn *pgconn.PgConn) (*standing, error) {
	answers, err := conn.Exec(ctx, whose).ReadAll()
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 || len(answers[0].Rows) != 1 || len(answers[0].Rows[0]) != 6 {
		return nil, errors.New("sqlstore: the server does not say who it is")
	}
	said := make([]string, 6)
	for i, v := range answers[0].Rows[0] {
		said[i] = string(v)
	}
	if said[0] == "true" {
		return nil, pgconn.ErrReadOnlyConnection
	}
	timeline, err := strconv.ParseUint(said[2], 16, 32)
	if err != nil {
		return nil, fmt.Errorf("sqlstore: the server's timeline: %w", err)
	}
	backend, err := strconv.ParseInt(said[5], 10, 64)
	if err != nil {
		return nil, fmt.Errorf("sqlstore: the server's process: %w", err)
	}
	s := &standing{system: said[1], timeline: uint32(timeline), backend: backend, met: time.Now()}
	s.lineage = fmt.Sprintf("%s/%d/%s", s.system, s.timeline, said[3])
	s.name = s.lineage + " since " + said[4]
	conn.CustomData()[standingKey] = s
	return s, nil
}

// gate is where the pool's source is open, as long as left is.
type gate struct {
	server string
	left   chan struct{}
}

// unsettledError is an operation that came to a server whose log has not been read yet: nothing was asked there.
type unsettledError struct{ left chan struct{} }

func (*unsettledError) Error() string {
	return "sqlstore: another server answers, or it has started again: its revocation log is read first"
}

// wait gives the log some time to be read; false once ctx ends.
func (e *unsettledError) wait(ctx context.Context) bool {
	pause := time.NewTimer(longUnsettled)
	defer pause.Stop()
	select {
	case <-e.left:
	case <-pause.C: // the connection may be the one that is behind
	case <-ctx.Done():
		return false
	}
	return ctx.Err() == nil
}

// longUnsettled is how old a connection grows that leads elsewhere than the gate, before another one is made in its place.
const longUnsettled = time.Second

// admit keeps the source from a server whose log was not read since it became the one that answers: it may lack what was
// revoked, and a redemption there would bring it back. It asks the server nothing.
func (p *pool) admit(_ context.Context, conn *pgx.Conn) (bool, error) {
	s, _ := conn.PgConn().CustomData()[standingKey].(*standing)
	g := p.gate.Load()
	switch {
	case g == nil || s != nil && s.name == g.server:
		return true, nil
	case s == nil || time.Since(s.met) > longUnsettled:
		return false, nil
	default:
		return true, &unsettledError{g.left}
	}
}

// settle opens the source at a server.
func (p *pool) settle(server string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.gate.Load()
	if old != nil && old.server == server {
		return
	}
	p.gate.Store(&gate{server, make(chan struct{})})
	if old != nil {
		close(old.left)
	}
}

// inherited makes the installation's row say whose history it is, and gives its epoch: another one where that changed, by
// compare-and-swap, so that all processes that notice it agree. A row that never said it keeps its epoch. If no standby confirms
// this, it does no harm: where it is lost, the history is another again. Who changes it records that; renewed says that it was this call.
func (c *pgConn) inherited() (epoch [16]byte, renewed bool, err error) {
	s := c.server()
	read := func() (lineage string, err error) {
		var raw []byte
		err = c.row(`SELECT epoch, lineage FROM installation`).Scan(&raw, &lineage)
		if err == nil && copy(epoch[:], raw) != len(epoch) {
			err = errors.New("the epoch is malformed")
		}
		return lineage, err
	}
	lineage, err := read()
	if err != nil || lineage == s.lineage {
		return epoch, false, err
	}
	const change = `UPDATE installation SET epoch = ?, lineage = ? WHERE epoch = ? AND lineage = ?`
	var n int64
	if lineage == "" {
		_, err = c.exec(change, epoch[:], s.lineage, epoch[:], lineage)
	} else {
		var next [16]byte
		ids.Random(next[:])
		n, err = c.exec(`WITH renewed AS (`+change+` RETURNING 1)
			INSERT INTO audit (time, event, outcome, reason, actor, subject, client, session, ip, user_agent, request_id)
			SELECT @now, CAST(? AS TEXT), 'ok', CAST(? AS TEXT), '', CAST(? AS TEXT), '', '', '', '', '' FROM renewed`,
			next[:], s.lineage, epoch[:], lineage, revocation.EventHistory, "another server's history: "+s.lineage+" after "+lineage, hex.EncodeToString(epoch[:]))
	}
	delete(c.conn.PgConn().CustomData(), unreplicated)
	if err != nil {
		return epoch, false, err
	}
	if lineage, err = read(); err == nil && lineage != s.lineage {
		err = errors.New("sqlstore: the installation's row says another server's history")
	}
	return epoch, n > 0, err
}
