package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

const accountColumns = `id, username, password_hash, state, version, not_before, created_at, updated_at`

// purge is the pending end of the rows of an account that is gone.
const purge = "purge"

type accounts struct{ db *DB }

func scanAccount(s scanner) (account.Account, error) {
	var a account.Account
	var notBefore, created, updated int64
	err := s.Scan(&a.ID, &a.Username, &a.PasswordHash, &a.State, &a.Version, &notBefore, &created, &updated)
	a.NotBefore, a.CreatedAt, a.UpdatedAt = instantOf(notBefore), instantOf(created), instantOf(updated)
	if errors.Is(err, sql.ErrNoRows) {
		return account.Account{}, noAccount()
	}
	return a, err
}

func noAccount() error { return fault.New(fault.NotFound, fault.AccountNotFound, "no such account") }

func (s accounts) Create(ctx context.Context, a account.Account, j journal.Journal) error {
	if err := storable("account", string(a.ID), a.Username, a.PasswordHash, string(a.State)); err != nil {
		return err
	}
	return change(ctx, s.db, needs(j, a.ID), func(t *tx) error {
		_, err := t.exec(`INSERT INTO accounts (id, username, password_hash, state, version, created_at, updated_at)
			VALUES (?, ?, ?, ?, 1, ?, ?)`,
			string(a.ID), a.Username, a.PasswordHash, string(a.State), micros(t.now), micros(t.now))
		if taken(err) {
			return fault.New(fault.Exists, fault.UsernameTaken, "the username is taken")
		}
		if err != nil {
			return err
		}
		_, err = t.commit(j)
		return err
	})
}

func (s accounts) Get(ctx context.Context, id ids.Account) (account.Account, error) {
	return s.one(ctx, `SELECT `+accountColumns+` FROM accounts WHERE id = ?`, string(id))
}

func (s accounts) ByUsername(ctx context.Context, canonical string) (account.Account, error) {
	return s.one(ctx, `SELECT `+accountColumns+` FROM accounts WHERE username = ?`, canonical)
}

func (s accounts) one(ctx context.Context, query, key string) (account.Account, error) {
	if !legible(key) {
		return account.Account{}, noAccount()
	}
	return view(ctx, s.db, func(q queries) (account.Account, error) { return scanAccount(q.row(query, key)) })
}

func (s accounts) List(ctx context.Context, after string, limit int) ([]account.Account, error) {
	return view(ctx, s.db, func(q queries) ([]account.Account, error) {
		return collect(q, scanAccount, `SELECT `+accountColumns+` FROM accounts WHERE username > ? ORDER BY username LIMIT ?`,
			after, max(limit, 0))
	})
}

func (s accounts) SetState(ctx context.Context, id ids.Account, version int64, state account.State, j journal.Journal) error {
	return s.update(ctx, `UPDATE accounts SET state = ?, version = version + 1, updated_at = ? WHERE id = ?`, string(state), id, version, j)
}

func (s accounts) SetPassword(ctx context.Context, id ids.Account, version int64, hash string, j journal.Journal) error {
	return s.update(ctx, `UPDATE accounts SET password_hash = ?, version = version + 1, updated_at = ? WHERE id = ?`, hash, id, version, j)
}

// update changes one column at a version, and raises the version.
func (s accounts) update(ctx context.Context, query, value string, id ids.Account, version int64, j journal.Journal) error {
	if err := storable("account", value); err != nil {
		return err
	}
	return change(ctx, s.db, needs(j, id), func(t *tx) error {
		if err := t.accountAt(id, version); err != nil {
			return err
		}
		if _, err := t.exec(query, value, micros(t.now), string(id)); err != nil {
			return err
		}
		_, err := t.commit(j)
		return err
	})
}

// accountAt refuses unless the account exists and is at version.
func (t *tx) accountAt(id ids.Account, version int64) error {
	var at int64
	err := t.row(`SELECT version FROM accounts WHERE id = ?`, string(id)).Scan(&at)
	if errors.Is(err, sql.ErrNoRows) {
		return noAccount()
	}
	if err == nil && at != version {
		return conflict("the account")
	}
	return err
}

func (s accounts) Rehash(ctx context.Context, id ids.Account, oldHash, newHash string, j journal.Journal) error {
	if err := storable("password_hash", newHash); err != nil {
		return err
	}
	return change(ctx, s.db, needs(j, id), func(t *tx) error {
		n, err := t.exec(`UPDATE accounts SET password_hash = ?, updated_at = ? WHERE id = ? AND password_hash = ?`,
			newHash, micros(t.now), string(id), oldHash)
		if err != nil || n == 0 {
			return err
		}
		_, err = t.commit(j)
		return err
	})
}

func (s accounts) Delete(ctx context.Context, id ids.Account, version int64, j journal.Journal) error {
	return change(ctx, s.db, needs(j, id), func(t *tx) error {
		if err := t.accountAt(id, version); err != nil {
			return err
		}
		if _, err := t.commit(j); err != nil {
			return err
		}
		if _, err := t.exec(`DELETE FROM accounts WHERE id = ?`, string(id)); err != nil {
			return err
		}
		n, err := t.purge(string(id), endBatch)
		if err != nil || n < endBatch {
			return err
		}
		_, err = t.exec(`INSERT INTO pending_ends (kind, id, not_before, reason) VALUES (?, ?, 0, '')`, purge, string(id))
		return err
	})
}

// purge deletes at most limit rows of an account that is gone; nothing can use them, since every use joins the account.
func (t *tx) purge(id string, limit int) (int, error) {
	n, err := t.exec(`DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE account = ? LIMIT ?)`, id, limit)
	return int(n), err
}
