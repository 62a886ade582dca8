package sqlstore

import (
	"context"
	"maps"
	"slices"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
)

type signingKeys struct{ db *DB }

func (s signingKeys) Load(ctx context.Context) (keys.Set, error) {
	return view(ctx, s.db, func(q queries) (keys.Set, error) {
		var set keys.Set
		var now int64
		all, err := collect(q, func(s scanner) (keys.Key, error) {
			var k keys.Key
			var created, published, activated, retired, gone int64
			err := s.Scan(&now, &set.Version, &k.ID, &k.State, &k.Public, &k.Sealed, &created, &published, &activated, &retired, &gone)
			k.CreatedAt, k.PublishedAt, k.ActivatedAt = instantOf(created), instantOf(published), instantOf(activated)
			k.RetiredAt, k.GoneAt = instantOf(retired), instantOf(gone)
			if len(k.Sealed) == 0 {
				k.Sealed = nil
			}
			return k, err
		}, `SELECT @now, i.key_version, COALESCE(k.id, ''), COALESCE(k.state, ''), k.public, k.sealed, COALESCE(k.created_at, 0),
			COALESCE(k.published_at, 0), COALESCE(k.activated_at, 0), COALESCE(k.retired_at, 0), COALESCE(k.gone_at, 0)
			FROM installation i LEFT JOIN signing_keys k ON k.state <> 'gone' ORDER BY k.created_at, k.id`)
		set.Now = instantOf(now)
		for _, k := range all {
			if k.ID != "" { // an empty set is one row without a key
				set.Keys = append(set.Keys, k)
			}
		}
		return set, err
	})
}

func (s signingKeys) Apply(ctx context.Context, version int64, c keys.Change, j journal.Journal) error {
	return change(ctx, s.db, needs(j), func(t *tx) error {
		n, err := t.exec(`UPDATE installation SET key_version = key_version + 1 WHERE key_version = ?`, version)
		if err := oneRow(n, err, conflict("the set of keys")); err != nil {
			return err
		}
		// Whoever signed steps down first: the schema holds at most one active key.
		for _, up := range []bool{false, true} {
			for _, m := range c.Move {
				if (m.To == keys.Active) == up {
					if err := t.moveKey(m); err != nil {
						return err
					}
				}
			}
		}
		for _, k := range c.Insert {
			if err := t.insertKey(k); err != nil {
				return err
			}
		}
		for _, id := range slices.Sorted(maps.Keys(c.Reseal)) {
			n, err := t.exec(`UPDATE signing_keys SET sealed = ? WHERE id = ? AND state NOT IN ('gone', 'compromised')`, c.Reseal[id], id)
			if err := oneRow(n, err, noKey()); err != nil {
				return err
			}
		}
		_, err = t.commit(j)
		return err
	})
}

func noKey() error { return fault.New(fault.NotFound, fault.KeyNotFound, "no such key") }

func (t *tx) moveKey(m keys.Move) error {
	now := micros(t.now)
	const live = ` WHERE id = ? AND state NOT IN ('gone', 'compromised')`
	var n int64
	var err error
	switch m.To {
	case keys.Active:
		n, err = t.exec(`UPDATE signing_keys SET state = 'active', activated_at = ?`+live, now, m.ID)
	case keys.Retired:
		n, err = t.exec(`UPDATE signing_keys SET state = 'retired', retired_at = ?, gone_at = ?`+live, now, micros(t.now.Add(m.GoneIn)), m.ID)
	case keys.Gone:
		n, err = t.exec(`UPDATE signing_keys SET state = 'gone', gone_at = ?, sealed = ?`+live, now, []byte{}, m.ID)
	case keys.Compromised:
		n, err = t.exec(`UPDATE signing_keys SET state = 'compromised', sealed = ?`+live, []byte{}, m.ID)
	default:
		return fault.Field("state", "a key cannot move there")
	}
	return oneRow(n, err, noKey())
}

func (t *tx) insertKey(k keys.Key) error {
	if err := storable("key", k.ID, string(k.State)); err != nil {
		return err
	}
	var activated int64
	if k.State == keys.Active {
		activated = micros(t.now)
	}
	_, err := t.exec(`INSERT INTO signing_keys (id, state, public, sealed, created_at, published_at, activated_at, retired_at, gone_at)
		VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)`, k.ID, string(k.State), notNil(k.Public), notNil(k.Sealed), micros(t.now), micros(t.now), activated)
	if taken(err) {
		return conflict("the set of keys")
	}
	return err
}

// notNil keeps an empty value from becoming NULL.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}
