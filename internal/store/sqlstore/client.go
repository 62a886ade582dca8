package sqlstore

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

const clientColumns = `id, name, kind, secrets, audiences, default_audiences, scopes, default_scopes, access_ttl,
	session_idle_ttl, session_ttl, reuse_window, version, not_before, created_at, updated_at`

type clients struct{ db *DB }

func noClient() error { return fault.New(fault.NotFound, fault.ClientNotFound, "no such client") }

// storedSecret is a secret as its column holds it; times are unix microseconds.
type storedSecret struct {
	Hash    []byte `json:"hash"`
	Created int64  `json:"created"`
	Expires int64  `json:"expires,omitempty"`
}

func encodeSecrets(secrets []client.Secret) (string, error) {
	stored := make([]storedSecret, 0, len(secrets))
	for _, s := range secrets {
		stored = append(stored, storedSecret{s.Hash[:], micros(s.CreatedAt), micros(s.ExpiresAt)})
	}
	b, err := json.Marshal(stored)
	return string(b), err
}

func decodeSecrets(text string) ([]client.Secret, error) {
	var stored []storedSecret
	if err := json.Unmarshal([]byte(text), &stored); err != nil {
		return nil, err
	}
	var secrets []client.Secret
	for _, s := range stored {
		secret := client.Secret{CreatedAt: instantOf(s.Created), ExpiresAt: instantOf(s.Expires)}
		if copy(secret.Hash[:], s.Hash) != len(secret.Hash) {
			return nil, errors.New("a secret's hash is not 32 bytes")
		}
		secrets = append(secrets, secret)
	}
	return secrets, nil
}

func scanClient(s scanner) (client.Client, error) {
	return scanClientAnd(s)
}

// scanClientAnd reads a client and whatever the query gives behind its columns.
func scanClientAnd(s scanner, more ...any) (client.Client, error) {
	var c client.Client
	var secrets string
	var lists [4]string
	var access, idle, absolute, window, notBefore, created, updated int64
	err := s.Scan(append([]any{&c.ID, &c.Name, &c.Kind, &secrets, &lists[0], &lists[1], &lists[2], &lists[3], &access,
		&idle, &absolute, &window, &c.Version, &notBefore, &created, &updated}, more...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return client.Client{}, noClient()
	}
	if err != nil {
		return client.Client{}, err
	}
	c.AccessTTL, c.SessionIdleTTL, c.SessionTTL, c.ReuseWindow = ttl(access), ttl(idle), ttl(absolute), ttl(window)
	c.NotBefore, c.CreatedAt, c.UpdatedAt = instantOf(notBefore), instantOf(created), instantOf(updated)
	for i, list := range []*[]string{&c.Audiences, &c.DefaultAudiences, &c.Scopes, &c.DefaultScopes} {
		if *list, err = decodeList(lists[i]); err != nil {
			return client.Client{}, fmt.Errorf("sqlstore: client %q: %w", c.ID, err)
		}
	}
	if c.Secrets, err = decodeSecrets(secrets); err != nil {
		return client.Client{}, fmt.Errorf("sqlstore: client %q: %w", c.ID, err)
	}
	return c, nil
}

func (s clients) Create(ctx context.Context, c client.Client, j journal.Journal) error {
	texts := append([]string{string(c.ID), c.Name, string(c.Kind)}, c.Audiences...)
	texts = append(append(append(texts, c.DefaultAudiences...), c.Scopes...), c.DefaultScopes...)
	if err := storable("client", texts...); err != nil {
		return err
	}
	return change(ctx, s.db, everything(j), func(t *tx) error {
		// Copied, since the caller may have gone, and its slice with it.
		kept := append([]client.Secret(nil), c.Secrets...)
		for i := range kept {
			if kept[i].CreatedAt.IsZero() {
				kept[i].CreatedAt = t.now
			}
		}
		secrets, err := encodeSecrets(kept)
		if err != nil {
			return err
		}
		// An id that comes back must not bring back what the cut-off of its deletion killed.
		var notBefore int64
		if err := t.row(`SELECT COALESCE(MAX(v), 0) FROM (
			SELECT MAX(not_before) AS v FROM revocations WHERE kind = ? AND id = ?
			UNION ALL SELECT not_before FROM pending_ends WHERE kind = ? AND id = ?) AS cut`,
			string(journal.KindClient), string(c.ID), string(journal.KindClient), string(c.ID)).Scan(&notBefore); err != nil {
			return err
		}
		_, err = t.exec(`INSERT INTO clients (`+clientColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)`,
			string(c.ID), c.Name, string(c.Kind), secrets, encodeList(c.Audiences), encodeList(c.DefaultAudiences),
			encodeList(c.Scopes), encodeList(c.DefaultScopes), c.AccessTTL.Microseconds(), c.SessionIdleTTL.Microseconds(),
			c.SessionTTL.Microseconds(), c.ReuseWindow.Microseconds(), notBefore, micros(t.now), micros(t.now))
		if taken(err) {
			return fault.New(fault.Exists, fault.ClientExists, "the client id is taken")
		}
		return t.clientChanged(err, j)
	})
}

// clientChanged ends a change of a client: the revision and the journal.
func (t *tx) clientChanged(err error, j journal.Journal) error {
	if err != nil {
		return err
	}
	if err := t.reviseClients(); err != nil {
		return err
	}
	_, err = t.commit(j)
	return err
}

func (s clients) Get(ctx context.Context, id ids.Client) (client.Client, error) {
	if !legible(string(id)) {
		return client.Client{}, noClient()
	}
	return view(ctx, s.db, func(q queries) (client.Client, error) {
		return scanClient(q.row(`SELECT `+clientColumns+` FROM clients WHERE id = ?`, string(id)))
	})
}

func (s clients) List(ctx context.Context, after ids.Client, limit int) ([]client.Client, error) {
	return view(ctx, s.db, func(q queries) ([]client.Client, error) {
		return collect(q, scanClient, `SELECT `+clientColumns+` FROM clients WHERE id > ? ORDER BY id LIMIT ?`,
			string(after), max(limit, 0))
	})
}

func (s clients) RotateSecret(ctx context.Context, id ids.Client, version int64, hash [32]byte, overlap time.Duration, j journal.Journal) error {
	return change(ctx, s.db, everything(j), func(t *tx) error {
		c, err := t.clientAt(id, version)
		if err != nil {
			return err
		}
		if c.Kind != client.Confidential {
			return fault.Field("client_id", "is a public client, which has no secret")
		}
		secrets := []client.Secret{{Hash: hash, CreatedAt: t.now}}
		if until := t.now.Add(overlap); len(c.Secrets) > 0 && overlap > 0 {
			older := c.Secrets[0] // the newest comes first
			if older.ExpiresAt.IsZero() || older.ExpiresAt.After(until) {
				older.ExpiresAt = until
			}
			secrets = append(secrets, older)
		}
		stored, err := encodeSecrets(secrets)
		if err != nil {
			return err
		}
		_, err = t.exec(`UPDATE clients SET secrets = ?, version = version + 1, updated_at = ? WHERE id = ?`,
			stored, micros(t.now), string(id))
		return t.clientChanged(err, j)
	})
}

// clientAt reads the client and refuses unless it is at version.
func (t *tx) clientAt(id ids.Client, version int64) (client.Client, error) {
	c, err := scanClient(t.row(`SELECT `+clientColumns+` FROM clients WHERE id = ?`, string(id)))
	if err == nil && c.Version != version {
		err = conflict("the client")
	}
	return c, err
}

func (s clients) Delete(ctx context.Context, id ids.Client, version int64, j journal.Journal) error {
	return change(ctx, s.db, everything(j), func(t *tx) error {
		if _, err := t.clientAt(id, version); err != nil {
			return err
		}
		if _, err := t.commit(j); err != nil { // while the row is there: the cut-off counts what was issued under it
			return err
		}
		_, err := t.exec(`DELETE FROM clients WHERE id = ?`, string(id))
		return t.clientChanged(err, journal.Journal{})
	})
}

func (s clients) Begin(ctx context.Context, id ids.Client) (client.Client, time.Time, time.Time, error) {
	type begun struct {
		c             client.Client
		now, authTime time.Time
	}
	if !legible(string(id)) {
		return client.Client{}, time.Time{}, time.Time{}, noClient()
	}
	b, err := settled(ctx, s.db, func(q queries) (begun, error) {
		var all, at int64
		c, err := scanClientAnd(q.row(`SELECT `+clientColumns+`, (SELECT i.not_before FROM installation i), @now FROM clients WHERE id = ?`,
			string(id)), &all, &at)
		now := instantOf(at)
		return begun{c, now, latest(now.Truncate(time.Second), c.NotBefore, instantOf(all))}, err
	})
	return b.c, b.now, b.authTime, err
}

func latest(first time.Time, others ...time.Time) time.Time {
	for _, t := range others {
		if t.After(first) {
			first = t
		}
	}
	return first
}

func (s clients) Revision(ctx context.Context) (revision int64, now time.Time, err error) {
	type read struct{ revision, now int64 }
	r, err := view(ctx, s.db, func(q queries) (r read, err error) {
		err = q.row(`SELECT client_revision, @now FROM installation`).Scan(&r.revision, &r.now)
		return r, err
	})
	return r.revision, instantOf(r.now), err
}
