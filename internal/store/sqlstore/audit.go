package sqlstore

import (
	"context"
	"math"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/audit"
)

type auditLog struct{ db *DB }

func (s auditLog) List(ctx context.Context, f audit.Filter, before int64, limit int) ([]audit.Record, error) {
	if before <= 0 {
		before = math.MaxInt64
	}
	query := `SELECT id, time, event, outcome, reason, actor, subject, client, session, ip, user_agent, request_id
		FROM audit WHERE id < ?`
	args := []any{before}
	if f.Event != "" {
		query, args = query+` AND event = ?`, append(args, f.Event)
	}
	if len(f.Subjects) > 0 {
		query += ` AND subject IN (?` + strings.Repeat(`, ?`, len(f.Subjects)-1) + `)`
		for _, s := range f.Subjects {
			args = append(args, s)
		}
	}
	if !f.Since.IsZero() {
		query, args = query+` AND time >= ?`, append(args, micros(f.Since))
	}
	query, args = query+` ORDER BY id DESC LIMIT ?`, append(args, max(limit, 0))
	return view(ctx, s.db, func(q queries) ([]audit.Record, error) {
		return collect(q, func(s scanner) (audit.Record, error) {
			var r audit.Record
			var at int64
			err := s.Scan(&r.ID, &at, &r.Event, &r.Outcome, &r.Reason, &r.Actor, &r.Subject, &r.Client, &r.Session, &r.IP, &r.UserAgent, &r.RequestID)
			r.Time = instantOf(at)
			return r, err
		}, query, args...)
	})
}

func (s auditLog) Prune(ctx context.Context, keep time.Duration, limit int) (int, error) {
	return write(ctx, s.db, locks{}, func(t *tx) (int, error) {
		n, err := t.exec(`WITH due AS (SELECT id FROM audit WHERE time < ? ORDER BY time, id LIMIT ? @skip)
			DELETE FROM audit WHERE id IN (SELECT id FROM due)`,
			micros(t.now.Add(-keep)), max(limit, 0))
		return int(n), err
	})
}
