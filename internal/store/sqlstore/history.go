package sqlstore

import (
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
)

func (s revocations) Renew(ctx context.Context, old [16]byte) error {
	return mend(ctx, s.db, locks{}, func(t *tx) error {
		var next [16]byte
		ids.Random(next[:])
		n, err := t.exec(`UPDATE installation SET epoch = ? WHERE epoch = ?`, next[:], old[:])
		if err != nil || n == 0 {
			return err
		}
		return t.record(journal.Record{Event: revocation.EventHistory, Outcome: "ok", Reason: "rows of the revocation log are gone", Subject: hex.EncodeToString(old[:])})
	})
}

func (s revocations) Settle(_ context.Context, server string) error {
	if s.db.pg != nil {
		s.db.pg.settle(server)
	}
	return nil
}

// Reappend has the installation alone: several processes do it at the same time, for the same rows.
func (s revocations) Reappend(ctx context.Context, after int64, entries []revocation.Entry) (appended int, err error) {
	if len(entries) > revocation.ReappendSize {
		return 0, fmt.Errorf("sqlstore: %d entries are more than %d", len(entries), revocation.ReappendSize)
	}
	err = mend(ctx, s.db, locks{alone: true}, func(t *tx) (err error) {
		if err = t.redo(entries); err != nil {
			return err
		}
		if appended, err = t.listAgain(after, entries); err != nil || appended == 0 {
			return err
		}
		var epoch []byte
		if err := t.row(`SELECT epoch FROM installation`).Scan(&epoch); err != nil {
			return err
		}
		return t.record(journal.Record{Event: revocation.EventReappended, Outcome: "ok", Reason: fmt.Sprintf("%d entries", appended), Subject: hex.EncodeToString(epoch)})
	})
	if err != nil {
		return 0, err
	}
	return appended, nil
}

// groupSize is how many entries one statement is about.
const groupSize = 100

// redo does again what entries stand for.
func (t *tx) redo(entries []revocation.Entry) error {
	var sids, kids []any
	for _, e := range entries {
		var err error
		switch {
		case e.Kind == journal.KindSession:
			sids = append(sids, e.ID)
		case e.Kind == journal.KindKey:
			kids = append(kids, e.ID)
		case e.Kind.CutOff():
			err = t.cutAt(e.Kind, e.ID, micros(e.NotBefore), journal.EndedByRevoke)
		}
		if err != nil {
			return err
		}
	}
	for part := range slices.Chunk(sids, groupSize) {
		args := append([]any{micros(t.now), journal.EndedByRevoke, micros(t.now)}, group(part)...)
		if _, err := t.exec(`UPDATE sessions SET ended_at = ?, end_reason = ?, sweep_at = ? WHERE ended_at IS NULL AND id IN (`+
			places("?", groupSize)+`)`, args...); err != nil {
			return err
		}
	}
	return t.compromise(kids)
}

// cutAt keeps a cut-off that was made before, where there is none as late, and ends what it killed.
func (t *tx) cutAt(kind journal.Kind, id string, notBefore int64, reason string) error {
	if err := t.keepCutOff(kind, id, notBefore); err != nil {
		return err
	}
	_, err := t.endCutOff(kind, id, notBefore, reason)
	return err
}

// compromise marks keys that were revoked. Where none is left that signs, the one that has been published longest takes its
// place; where there is none either, the key ring makes one.
func (t *tx) compromise(kids []any) error {
	var marked int64
	for _, kid := range kids {
		n, err := t.exec(`UPDATE signing_keys SET state = 'compromised', sealed = ? WHERE id = ? AND state NOT IN ('gone', 'compromised')`, []byte{}, kid)
		if err != nil {
			return err
		}
		marked += n
	}
	if marked == 0 {
		return nil
	}
	if _, err := t.exec(`UPDATE installation SET key_version = key_version + 1`); err != nil {
		return err
	}
	_, err := t.exec(`UPDATE signing_keys SET state = 'active', activated_at = ? WHERE NOT EXISTS (SELECT 1 FROM signing_keys WHERE state = 'active')
		AND id = (SELECT id FROM signing_keys WHERE state = 'pending' ORDER BY published_at, id LIMIT 1)`, micros(t.now))
	return err
}

// listAgain appends those entries that have not expired and that the log does not have after a position, and gives how many.
func (t *tx) listAgain(after int64, entries []revocation.Entry) (appended int, err error) {
	if c, ok := t.connection.(interface{ lockLog() error }); ok {
		if err := c.lockLog(); err != nil {
			return 0, err
		}
	}
	type subject struct {
		kind journal.Kind
		id   string
	}
	had := map[subject][]revocation.Entry{}
	there, err := collect(t, func(s scanner) (e revocation.Entry, err error) {
		var notBefore, expires int64
		err = s.Scan(&e.Kind, &e.ID, &notBefore, &expires)
		e.NotBefore, e.ExpiresAt = instantOf(notBefore), instantOf(expires)
		return e, err
	}, `SELECT kind, id, not_before, expires_at FROM revocations WHERE position > ?`, after)
	if err != nil {
		return 0, err
	}
	for _, e := range there {
		of := subject{e.Kind, e.ID}
		had[of] = append(had[of], e)
	}
	var rows [][]any
	for _, e := range entries {
		covers := func(h revocation.Entry) bool {
			return !h.NotBefore.Before(e.NotBefore) && (h.ExpiresAt.IsZero() || !e.ExpiresAt.IsZero() && !h.ExpiresAt.Before(e.ExpiresAt))
		}
		if (e.ExpiresAt.IsZero() || e.ExpiresAt.After(t.now)) && !slices.ContainsFunc(had[subject{e.Kind, e.ID}], covers) {
			rows = append(rows, []any{string(e.Kind), e.ID, micros(e.NotBefore), micros(e.ExpiresAt), micros(e.CommittedAt)})
		}
	}
	appended = len(rows)
	for len(rows) > 0 {
		n := 1
		if len(rows) >= groupSize {
			n = groupSize
		}
		if _, err := t.exec(`WITH lost (kind, id, not_before, expires_at, committed_at) AS (VALUES `+
			places("(CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT))", n)+`) INSERT INTO revocations
			(kind, id, not_before, expires_at, committed_at) SELECT kind, id, not_before, expires_at, committed_at FROM lost`, slices.Concat(rows[:n]...)...); err != nil {
			return 0, err
		}
		rows = rows[n:]
	}
	return appended, nil
}

// group fills a group up with its last one.
func group(some []any) []any {
	all := slices.Clone(some)
	for len(all) < groupSize {
		all = append(all, some[len(some)-1])
	}
	return all
}

func places(one string, n int) string { return strings.TrimSuffix(strings.Repeat(one+", ", n), ", ") }
