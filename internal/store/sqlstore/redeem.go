package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"math"

	"github.com/authsvc/authsvc/internal/session"
)

// redeemHead is rule 1 of session.Decide, and session.Check before it, as one conditional statement; a property test
// holds the two together. The last generation of all is left to Decide.
const redeemHead = `UPDATE sessions SET
	base = head, head = head + 1,
	low = CASE WHEN @now - redeemed_at > ? THEN head ELSE low END,
	elsewhere = CASE WHEN elsewhere >= 3 OR elsewhere_of = base THEN elsewhere ELSE 0 END,
	redeemed_at = @now, device = ?, forks = 0, last_used_at = @now,
	idle_ends_at = CASE WHEN @now + idle_ttl < ends_at THEN @now + idle_ttl ELSE ends_at END,
	ip = ?, user_agent = ?
	WHERE id = ? AND head = ? AND head < 4294967295 AND secret_hash = ? AND client = ? AND ended_at IS NULL
	AND idle_ends_at > @now AND ends_at > @now AND @now <= ? AND ` + mayAct + `
	RETURNING ` + sessionColumns

func (s sessions) Redeem(ctx context.Context, r session.Redeem) (session.Redeemed, error) {
	if err := storable("user_agent", r.IP, r.UserAgent); err != nil {
		return session.Redeemed{}, err
	}
	if s.db.pg == nil {
		return write(ctx, s.db, locks{}, func(t *tx) (session.Redeemed, error) {
			out, err := rotate(t, r)
			if errors.Is(err, sql.ErrNoRows) {
				return t.decide(r)
			}
			return out, err
		})
	}
	out, err := alone(ctx, s.db.pg, func(q queries) (session.Redeemed, error) { return rotate(q, r) })
	if errors.Is(err, sql.ErrNoRows) {
		return write(ctx, s.db, locks{row: r.Session}, func(t *tx) (session.Redeemed, error) { return t.decide(r) })
	}
	return out, err
}

// rotate redeems the newest token, or gives sql.ErrNoRows: it is not the newest, or something else is against it.
func rotate(q queries, r session.Redeem) (session.Redeemed, error) {
	deadline := int64(math.MaxInt64)
	if !r.Deadline.IsZero() {
		deadline = micros(r.Deadline)
	}
	s, err := scanSession(q.row(redeemHead, r.Window.Microseconds(), encodeDevice(r.Device), r.IP, r.UserAgent,
		string(r.Session), int64(r.Generation), r.SecretHash[:], string(r.Client), deadline))
	return session.Redeemed{Verdict: session.Issue, Session: s, Now: s.RedeemedAt, Rotated: true}, err
}

// decide is the way of everything but an honest, timely redemption of the newest token. Nobody else writes between its
// read and its write: it has SQLite's write lock, or PostgreSQL's on the row.
func (t *tx) decide(r session.Redeem) (session.Redeemed, error) {
	if !r.Deadline.IsZero() && t.now.After(r.Deadline) {
		return session.Redeemed{}, unavailable(context.DeadlineExceeded)
	}
	o, err := load(t, r.Session)
	if errors.Is(err, sql.ErrNoRows) {
		return session.Redeemed{Verdict: session.Invalid, Now: t.now}, nil
	}
	if err != nil {
		return session.Redeemed{}, err
	}
	s := o.Session
	v := session.Check(s, r, o.mayAct, o.notBefore, t.now)
	if v == session.ForeignClient {
		_, err = t.commit(session.ForeignClientJournal(s, r))
	}
	if err != nil {
		return session.Redeemed{}, err
	}
	if v != session.Issue {
		return session.Redeemed{Verdict: v, Session: s, Now: t.now}, nil
	}
	d := session.Decide(s.Rotation, r.Generation, r.Device, t.now, r.Window)
	if d.End {
		if _, err := t.commit(session.TheftJournal(s, r)); err != nil {
			return session.Redeemed{}, err
		}
		if o, err = load(t, r.Session); err != nil {
			return session.Redeemed{}, err
		}
		return session.Redeemed{Verdict: d.Verdict, Session: o.Session, Now: t.now, Alert: d.Alert}, nil
	}
	s.Rotation = d.Next
	if d.Rotated {
		s.LastUsedAt, s.IdleEndsAt, s.IP, s.UserAgent = t.now, s.IdleEnd(t.now), r.IP, r.UserAgent
	}
	if d.Changed {
		if _, err := t.exec(`UPDATE sessions SET base = ?, head = ?, low = ?, redeemed_at = ?, device = ?, elsewhere = ?,
			elsewhere_of = ?, forks = ?, last_used_at = ?, idle_ends_at = ?, ip = ?, user_agent = ? WHERE id = ?`,
			int64(s.Base), int64(s.Head), int64(s.Low), micros(s.RedeemedAt), encodeDevice(s.Device), s.Elsewhere,
			int64(s.ElsewhereOf), s.Forks, micros(s.LastUsedAt), micros(s.IdleEndsAt), s.IP, s.UserAgent, string(s.ID)); err != nil {
			return session.Redeemed{}, err
		}
	}
	return session.Redeemed{Verdict: d.Verdict, Session: s, Now: t.now, Rotated: d.Rotated, Alert: d.Alert}, nil
}
