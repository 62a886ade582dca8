package sqlstore

import (
	"context"

	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
)

type revocations struct{ db *DB }

func (s revocations) Tail(ctx context.Context, after int64) (revocation.Page, error) {
	s.db.notice(ctx)
	return follow(ctx, s.db, func(q queries) (revocation.Page, error) {
		page, lineage, err := tailed(q, after)
		if c, ok := q.(*pgConn); ok && err == nil {
			if lineage != c.server().lineage {
				if _, _, err = c.inherited(); err == nil {
					page, _, err = tailed(q, after)
				}
			}
			page.Server = c.server().name
		}
		return page, err
	})
}

// tailed reads a page of the log, and whose history the database says it is.
func tailed(q queries, after int64) (page revocation.Page, lineage string, err error) {
	var now int64
	entries, err := collect(q, func(s scanner) (revocation.Entry, error) {
		var e revocation.Entry
		var epoch []byte
		var notBefore, expires, committed int64
		err := s.Scan(&now, &epoch, &lineage, &page.Head, &e.Position, &e.Kind, &e.ID, &notBefore, &expires, &committed)
		copy(page.Epoch[:], epoch)
		if committed == 0 && expires > 0 { // appended by an older program
			committed = expires - journal.RevocationTTL.Microseconds()
		}
		e.NotBefore, e.ExpiresAt, e.CommittedAt = instantOf(notBefore), instantOf(expires), instantOf(committed)
		return e, err
	}, `SELECT @now, i.epoch, i.lineage, COALESCE((SELECT MAX(position) FROM revocations), 0), COALESCE(r.position, 0), COALESCE(r.kind, ''),
			COALESCE(r.id, ''), COALESCE(r.not_before, 0), COALESCE(r.expires_at, 0), COALESCE(r.committed_at, 0)
			FROM installation i LEFT JOIN revocations r ON r.position > ? AND (r.expires_at = 0 OR r.expires_at > @now)
			ORDER BY r.position LIMIT ?`, after, revocation.PageSize+1)
	page.Now = instantOf(now)
	if page.More = len(entries) > revocation.PageSize; page.More {
		entries = entries[:revocation.PageSize]
	}
	for _, e := range entries {
		if e.Position != 0 { // nothing new is one row without an entry
			page.Entries = append(page.Entries, e)
		}
	}
	return page, lineage, err
}

func (s revocations) Changed(ctx context.Context) (bool, error) {
	if s.db.pg != nil {
		return s.db.pg.changed(ctx)
	}
	if s.db.memory { // nobody else can write to it
		now := s.db.commits.Load() + 1
		return s.db.seen.Swap(now) != now, nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.db.timeout)
	defer cancel()
	changed, err := s.db.watch.changed(ctx)
	return changed, translate(err)
}

func (s revocations) Append(ctx context.Context, j journal.Journal) error {
	return change(ctx, s.db, needs(j), func(t *tx) error {
		_, err := t.commit(j)
		return err
	})
}

// Sweep drops the entry of a key once the key is gone and the last token it may have signed is dead.
func (s revocations) Sweep(ctx context.Context, limit int) (int, error) {
	return write(ctx, s.db, locks{}, func(t *tx) (int, error) {
		n, err := t.exec(`WITH due AS (SELECT position FROM revocations
			WHERE expires_at <= ? AND position < (SELECT MAX(position) FROM revocations) AND (expires_at > 0 OR id IN
				(SELECT k.id FROM signing_keys k WHERE k.state = 'gone' AND k.gone_at <= ?))
			ORDER BY expires_at, position LIMIT ? @skip)
			DELETE FROM revocations WHERE position IN (SELECT position FROM due)`, micros(t.now), micros(t.now.Add(-journal.RevocationTTL)), max(limit, 0))
		return int(n), err
	})
}
