package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
)

const (
	sessionColumns = `id, account, client, secret_hash, key_id, base, head, low, redeemed_at, device, elsewhere,
	elsewhere_of, forks, auth_time, created_at, last_used_at, idle_ttl, idle_ends_at, ends_at, ended_at, end_reason, scope,
	audiences, amr, device_name, ip, user_agent`

	// owners gives what decides whether a session's account and client may act; a client that is gone is -1.
	owners = `COALESCE((SELECT a.state FROM accounts a WHERE a.id = sessions.account), ''),
	COALESCE((SELECT a.not_before FROM accounts a WHERE a.id = sessions.account), 0),
	COALESCE((SELECT c.not_before FROM clients c WHERE c.id = sessions.client), -1),
	(SELECT i.not_before FROM installation i)`

	// mayAct is the same as a condition.
	mayAct = `EXISTS (SELECT 1 FROM accounts a WHERE a.id = sessions.account AND a.state = 'active' AND a.not_before <= sessions.auth_time)
	AND EXISTS (SELECT 1 FROM clients c WHERE c.id = sessions.client AND c.not_before <= sessions.auth_time)
	AND (SELECT i.not_before FROM installation i) <= sessions.auth_time`
)

type sessions struct{ db *DB }

func noSession() error { return fault.New(fault.NotFound, fault.SessionNotFound, "no such session") }

// owned is a session with what its account, client and the installation say about it.
type owned struct {
	session.Session
	mayAct    bool
	notBefore time.Time
	read      time.Time // by the store's clock
}

func scanSession(s scanner) (session.Session, error) { return scanSessionAnd(s) }

func scanSessionAnd(s scanner, more ...any) (session.Session, error) {
	var v session.Session
	var secret, device []byte
	var ended sql.NullInt64
	var audiences, amr string
	var redeemed, auth, created, used, idleTTL, idleEnds, ends int64
	err := s.Scan(append([]any{&v.ID, &v.Account, &v.Client, &secret, &v.KeyID, &v.Base, &v.Head, &v.Low, &redeemed, &device,
		&v.Elsewhere, &v.ElsewhereOf, &v.Forks, &auth, &created, &used, &idleTTL, &idleEnds, &ends, &ended, &v.EndReason, &v.Scope,
		&audiences, &amr, &v.DeviceName, &v.IP, &v.UserAgent}, more...)...)
	if err != nil {
		return session.Session{}, err
	}
	v.RedeemedAt, v.AuthTime, v.CreatedAt, v.LastUsedAt = instantOf(redeemed), instantOf(auth), instantOf(created), instantOf(used)
	v.IdleTTL, v.IdleEndsAt, v.EndsAt, v.EndedAt = ttl(idleTTL), instantOf(idleEnds), instantOf(ends), instantOf(ended.Int64)
	if copy(v.SecretHash[:], secret) != len(v.SecretHash) || len(device) != 16 {
		return session.Session{}, fmt.Errorf("sqlstore: session %q: malformed hash", v.ID)
	}
	copy(v.Device.Network[:], device)
	copy(v.Device.UserAgent[:], device[8:])
	if v.Audiences, err = decodeList(audiences); err == nil {
		v.AMR, err = decodeList(amr)
	}
	return v, err
}

func encodeDevice(d session.Device) []byte {
	return append(d.Network[:len(d.Network):len(d.Network)], d.UserAgent[:]...)
}

// load reads a session with its owners; an unknown one is sql.ErrNoRows.
func load(q queries, id ids.Session) (owned, error) {
	var state account.State
	var byAccount, byClient, byAll, now int64
	s, err := scanSessionAnd(q.row(`SELECT `+sessionColumns+`, `+owners+`, @now FROM sessions WHERE id = ?`, string(id)),
		&state, &byAccount, &byClient, &byAll, &now)
	return owned{
		Session:   s,
		mayAct:    account.Account{State: state}.MayAct() && byClient >= 0,
		notBefore: instantOf(max(byAccount, byClient, byAll)),
		read:      instantOf(now),
	}, err
}

func (s sessions) Create(ctx context.Context, c session.Create, j journal.Journal) (session.Session, time.Time, error) {
	n := c.Session
	texts := append([]string{string(n.ID), n.Scope, n.DeviceName, n.IP, n.UserAgent}, n.Audiences...)
	if err := storable("session", append(texts, n.AMR...)...); err != nil {
		return session.Session{}, time.Time{}, err
	}
	created, err := write(ctx, s.db, needs(j, n.Account), func(t *tx) (session.Session, error) { return t.createSession(c, j) })
	return created, created.CreatedAt, err
}

func (t *tx) createSession(c session.Create, j journal.Journal) (session.Session, error) {
	var byAccount, byClient, byAll int64
	err := t.row(`SELECT a.not_before, c.not_before, i.not_before FROM accounts a, clients c, installation i
		WHERE a.id = ? AND a.state = 'active' AND a.version = ? AND c.id = ?`,
		string(c.Session.Account), c.AccountVersion, string(c.Session.Client)).Scan(&byAccount, &byClient, &byAll)
	if errors.Is(err, sql.ErrNoRows) {
		return session.Session{}, fault.New(fault.Unauthenticated, fault.InvalidCredentials, "invalid credentials")
	}
	if err != nil {
		return session.Session{}, err
	}
	s := c.Session
	s.Rotation = session.Rotation{Head: 1, RedeemedAt: t.now, Device: c.Session.Device}
	s.AuthTime = latest(t.now.Truncate(time.Second), instantOf(max(byAccount, byClient, byAll)))
	s.CreatedAt, s.LastUsedAt, s.EndedAt, s.EndReason = t.now, t.now, time.Time{}, ""
	s.IdleTTL = s.IdleTTL.Truncate(time.Microsecond)
	s.EndsAt = t.now.Add(c.TTL).Truncate(time.Microsecond)
	s.IdleEndsAt = s.IdleEnd(t.now)
	if _, err := t.exec(`INSERT INTO sessions (`+sessionColumns+`, sweep_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, '', ?, ?, ?, ?, ?, ?, ?)`,
		string(s.ID), string(s.Account), string(s.Client), s.SecretHash[:], int64(s.KeyID), int64(s.Base), int64(s.Head), int64(s.Low),
		micros(s.RedeemedAt), encodeDevice(s.Device), s.Elsewhere, int64(s.ElsewhereOf), s.Forks, micros(s.AuthTime),
		micros(s.CreatedAt), micros(s.LastUsedAt), s.IdleTTL.Microseconds(), micros(s.IdleEndsAt), micros(s.EndsAt), s.Scope,
		encodeList(s.Audiences), encodeList(s.AMR), s.DeviceName, s.IP, s.UserAgent, micros(s.IdleEndsAt)); err != nil {
		if taken(err) {
			err = conflict("the session's id is taken; it")
		}
		return session.Session{}, err
	}
	if err := t.evict(s, c.MaxPerAccount); err != nil {
		return session.Session{}, err
	}
	_, err = t.commit(j)
	return s, err
}

// evict ends the oldest live sessions of the newcomer's account beyond the cap. Expired ones and those that a cut-off
// killed do not count.
func (t *tx) evict(newcomer session.Session, most int) error {
	if most <= 0 {
		return nil
	}
	oldest, err := collect(t, scanText, `SELECT id FROM sessions WHERE account = ? AND ended_at IS NULL AND id <> ?
		AND idle_ends_at > ? AND ends_at > ? AND `+mayAct+` ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?`,
		string(newcomer.Account), string(newcomer.ID), micros(t.now), micros(t.now), endBatch, most-1)
	if err != nil || len(oldest) == 0 {
		return err
	}
	var j journal.Journal
	for _, id := range oldest {
		j.Ends = append(j.Ends, journal.End{Session: ids.Session(id), Reason: journal.EndedBySessionCap})
	}
	_, err = t.commit(j)
	return err
}

func (s sessions) Get(ctx context.Context, id ids.Session) (session.Session, bool, time.Time, error) {
	type found struct {
		session.Session
		alive bool
		now   time.Time
	}
	if !legible(string(id)) {
		return session.Session{}, false, time.Time{}, noSession()
	}
	f, err := view(ctx, s.db, func(q queries) (found, error) {
		o, err := load(q, id)
		if errors.Is(err, sql.ErrNoRows) {
			return found{}, noSession()
		}
		alive := o.EndedAt.IsZero() && o.mayAct && !o.AuthTime.Before(o.notBefore) && o.read.Before(o.IdleEndsAt) && o.read.Before(o.EndsAt)
		return found{o.Session, alive, o.read}, err
	})
	return f.Session, f.alive, f.now, err
}

func (s sessions) List(ctx context.Context, id ids.Account, after session.Cursor, limit int) ([]session.Session, error) {
	at, last := int64(math.MaxInt64), ""
	if after != (session.Cursor{}) {
		at, last = micros(after.CreatedAt), string(after.ID)
	}
	const (
		of    = `SELECT ` + sessionColumns + ` FROM sessions WHERE `
		alive = `ended_at IS NULL AND (created_at, id) < (?, ?) AND idle_ends_at > @now AND ends_at > @now AND ` + mayAct +
			` ORDER BY created_at DESC, id DESC LIMIT ?`
	)
	return view(ctx, s.db, func(q queries) ([]session.Session, error) {
		if id == "" {
			return collect(q, scanSession, of+alive, at, last, max(limit, 0))
		}
		return collect(q, scanSession, of+`account = ? AND `+alive, string(id), at, last, max(limit, 0))
	})
}

func (s sessions) End(ctx context.Context, owner ids.Account, j journal.Journal) (int, error) {
	return write(ctx, s.db, needs(j), func(t *tx) (int, error) {
		for _, e := range j.Ends {
			if owner == "" || e.Session == "" {
				continue
			}
			var of string
			err := t.row(`SELECT account FROM sessions WHERE id = ?`, string(e.Session)).Scan(&of)
			if errors.Is(err, sql.ErrNoRows) || err == nil && of != string(owner) {
				return 0, noSession()
			}
			if err != nil {
				return 0, err
			}
		}
		return t.commit(j)
	})
}

// Sweep takes only rows that nobody else has, so that the replicas sweep beside each other; the rows of sessions that live on
// come last, and are held for no longer than the commit.
func (s sessions) Sweep(ctx context.Context, keep time.Duration, limit int) (int, error) {
	return write(ctx, s.db, locks{}, func(t *tx) (int, error) {
		n, err := t.finishEnds(limit)
		if err != nil || n >= limit {
			return n, err
		}
		m, err := t.sweepSessions(t.now.Add(-keep), limit-n)
		return n + m, err
	})
}

// finishEnds goes on with the ends that a cut-off began.
func (t *tx) finishEnds(limit int) (int, error) {
	type pending struct {
		kind, id, reason string
		notBefore        int64
	}
	begun, err := collect(t, func(s scanner) (p pending, err error) {
		err = s.Scan(&p.kind, &p.id, &p.notBefore, &p.reason)
		return p, err
	}, `SELECT kind, id, not_before, reason FROM pending_ends ORDER BY kind, id LIMIT ? @skip`, max(limit, 0))
	if err != nil {
		return 0, err
	}
	touched := 0
	for _, p := range begun {
		room := limit - touched
		if room <= 0 {
			break
		}
		var n int
		if p.kind == purge {
			n, err = t.purge(p.id, room)
		} else {
			n, _, err = t.endDead(journal.Kind(p.kind), p.id, p.notBefore, p.reason, room)
		}
		if err == nil && n < room {
			_, err = t.exec(`DELETE FROM pending_ends WHERE kind = ? AND id = ? AND not_before = ?`, p.kind, p.id, p.notBefore)
		}
		if err != nil {
			return 0, err
		}
		touched += n
	}
	return touched, nil
}

// sweepSessions deletes rows whose end is before the given time. sweep_at is the end as it was known last; the row of a
// session that was used since is only marked anew, so that a redemption need not touch the index.
func (t *tx) sweepSessions(before time.Time, limit int) (int, error) {
	const (
		due = `WITH due AS (SELECT id, idle_ends_at, ends_at, COALESCE(ended_at, ends_at) AS ended_at FROM sessions WHERE sweep_at < ?
			ORDER BY sweep_at LIMIT ? @skip) `
		over = `(SELECT id FROM due WHERE idle_ends_at < ? OR ends_at < ? OR ended_at < ?)`
		end  = `CASE WHEN idle_ends_at <= ends_at AND idle_ends_at <= COALESCE(ended_at, ends_at) THEN idle_ends_at
			WHEN ended_at < ends_at THEN ended_at ELSE ends_at END`
	)
	at := micros(before)
	deleted, err := t.exec(due+`DELETE FROM sessions WHERE id IN `+over, at, limit, at, at, at)
	if err != nil || int(deleted) == limit {
		return int(deleted), err
	}
	marked, err := t.exec(due+`UPDATE sessions SET sweep_at = `+end+` WHERE id IN (SELECT id FROM due) AND id NOT IN `+over,
		at, limit-int(deleted), at, at, at)
	return int(deleted + marked), err
}
