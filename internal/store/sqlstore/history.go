package sqlstore

import (
	"context"
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
		_, err := t.exec(`UPDATE installation SET epoch = ? WHERE epoch = ?`, next[:], old[:])
		return err
	})
}

func (s revocations) Settle(_ context.Context, server string) error {
	if s.db.pg != nil {
		s.db.pg.settle(server)
	}
	return nil
}

// Reappend has the installation alone: several processes do it at the same time, for the same rows.
func (s revocations) Reappend(ctx context.Context, after int64, entries []revocation.Entry) error {
	if len(entries) > revocation.ReappendSize {
		return fmt.Errorf("sqlstore: %d entries are more than %d", len(entries), revocation.ReappendSize)
	}
	return mend(ctx, s.db, locks{alone: true}, func(t *tx) error {
		if err := t.redo(entries); err != nil {
			return err
		}
		for part := range slices.Chunk(entries, groupSize) {
			if err := t.listAgain(after, part); err != nil {
				return err
			}
		}
		return nil
	})
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

// listAgain appends those of at most groupSize entries that have not expired and that the log does not have after a position.
func (t *tx) listAgain(after int64, entries []revocation.Entry) error {
	if c, ok := t.connection.(interface{ lockLog() error }); ok {
		if err := c.lockLog(); err != nil {
			return err
		}
	}
	var args []any
	for i := range groupSize {
		e := entries[min(i, len(entries)-1)]
		if i < len(entries) {
			args = append(args, i, string(e.Kind), e.ID, micros(e.NotBefore), micros(e.ExpiresAt))
		} else {
			args = append(args, i, "", "", 0, 1) // has expired
		}
	}
	args = append(args, after, micros(t.now))
	_, err := t.exec(`INSERT INTO revocations (kind, id, not_before, expires_at)
		SELECT lost.kind, lost.id, lost.not_before, lost.expires_at FROM (SELECT CAST(? AS BIGINT) AS place, CAST(? AS TEXT) AS kind, CAST(? AS TEXT) AS id,
			CAST(? AS BIGINT) AS not_before, CAST(? AS BIGINT) AS expires_at`+
		strings.Repeat(` UNION ALL SELECT CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BIGINT), CAST(? AS BIGINT)`, groupSize-1)+`) AS lost
		LEFT JOIN revocations had ON had.position > ? AND had.kind = lost.kind AND had.id = lost.id AND had.not_before >= lost.not_before
			AND (had.expires_at = 0 OR lost.expires_at <> 0 AND had.expires_at >= lost.expires_at)
		WHERE had.position IS NULL AND (lost.expires_at = 0 OR lost.expires_at > ?) ORDER BY lost.place`, args...)
	return err
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
