package service

import (
	"context"
	"errors"
	"strings"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/revocation"
)

// policy says whether a new password may be set; password.Policy is one.
type policy interface {
	Check(password, username string) error
}

// Accounts holds what is done to accounts: by a person to their own, and by the operator.
type Accounts struct {
	store    account.Store
	log      revocation.Store
	hasher   hasher
	policy   policy
	throttle throttle
	tail     tail
}

// NewAccounts makes the use cases.
func NewAccounts(store account.Store, log revocation.Store, h hasher, p policy, th throttle, t tail) (*Accounts, error) {
	if store == nil || log == nil || h == nil || p == nil || th == nil || t == nil {
		return nil, missing("an account option")
	}
	return &Accounts{store: store, log: log, hasher: h, policy: p, throttle: th, tail: t}, nil
}

// Create makes an active account with a password.
func (s *Accounts) Create(ctx context.Context, caller Caller, username, password string) (account.Account, error) {
	name, err := account.Canonical(username)
	if err != nil {
		return account.Account{}, err
	}
	hash, err := s.newHash(ctx, password, name)
	if err != nil {
		return account.Account{}, err
	}
	a := account.Account{ID: ids.New[ids.Account](), Username: name, PasswordHash: hash, State: account.Active}
	j := journal.Journal{Audit: []journal.Record{caller.record("account.create", "ok", "", string(a.ID))}}
	if err := s.store.Create(ctx, a, j); err != nil {
		return account.Account{}, err
	}
	return s.store.Get(ctx, a.ID)
}

func (s *Accounts) newHash(ctx context.Context, password, name string) (string, error) {
	if err := s.policy.Check(password, name); err != nil {
		return "", err
	}
	return s.hasher.Hash(ctx, password)
}

// Find gives the account with this id, or else with this username, in any spelling. Where the id of one is the name of
// another, the id counts: it cannot be chosen. Neither is NotFound/ACCOUNT_NOT_FOUND.
func (s *Accounts) Find(ctx context.Context, who string) (account.Account, error) {
	if _, err := ids.Bytes(ids.Account(who)); err == nil {
		a, err := s.store.Get(ctx, ids.Account(who))
		if err == nil || fault.From(err).Kind != fault.NotFound {
			return a, err
		}
	}
	name, err := account.Canonical(who)
	if err != nil {
		return account.Account{}, err
	}
	return s.store.ByUsername(ctx, name)
}

// List gives accounts by name.
func (s *Accounts) List(ctx context.Context, after string, limit int) ([]account.Account, error) {
	return s.store.List(ctx, after, limit)
}

// ChangePassword replaces the caller's password and ends their other sessions. Guessing the old one is throttled like a login.
func (s *Accounts) ChangePassword(ctx context.Context, caller Caller, oldPassword, newPassword string) error {
	if oldPassword == "" {
		return fault.Field("old_password", "is required")
	}
	a, err := s.store.Get(ctx, caller.Subject)
	if err != nil {
		return err
	}
	if !a.MayAct() {
		return fault.New(fault.Unauthenticated, fault.TokenRevoked, "the account may not act")
	}
	if err := s.policy.Check(newPassword, a.Username); err != nil {
		return ofField(err, "new_password")
	}
	// Whoever is signed in here counts for himself: guesses elsewhere do not keep him from changing the password.
	try := limit.Attempt{Account: a.Username, IP: caller.IP, Device: string(caller.Session)}
	if err := s.throttle.Allow(try); err != nil {
		return err
	}
	if err := s.old(ctx, a, oldPassword, try, caller); err != nil {
		return err
	}
	hash, err := s.hasher.Hash(ctx, newPassword)
	if err != nil {
		return err
	}
	return s.commit(ctx, func(ctx context.Context) error {
		return s.store.SetPassword(ctx, a.ID, a.Version, hash, journal.Journal{
			Ends:  []journal.End{{Account: a.ID, Except: caller.Session, Reason: journal.EndedByPassword}},
			Audit: []journal.Record{caller.record("password.change", "ok", "", string(a.ID))},
		})
	})
}

// old checks the present password; a wrong one is counted and recorded like a failed login.
func (s *Accounts) old(ctx context.Context, a account.Account, password string, try limit.Attempt, caller Caller) error {
	verified := false
	defer giveBack(ctx, s.throttle, try, &verified)
	ok, _, err := s.hasher.Verify(ctx, password, a.PasswordHash)
	verified = true
	if err := s.throttle.Settle(ctx, try, guessed(ok, err)); err != nil {
		return err
	}
	switch {
	case err != nil:
		return ofField(err, "old_password")
	case !ok:
		ctx, cancel := detached(ctx)
		defer cancel()
		record := caller.record("password.change", "denied", string(fault.InvalidCredentials), string(a.ID))
		if err := s.log.Append(ctx, journal.Journal{Audit: []journal.Record{record}}); err != nil {
			return err
		}
		return invalidCredentials()
	}
	return nil
}

// ofField gives a password's violation the name that its field has in the request, which tells the two apart.
func ofField(err error, name string) error {
	var f *fault.Error
	if !errors.As(err, &f) || len(f.Violations) != 1 {
		return err
	}
	renamed := *f
	renamed.Message = strings.Replace(f.Message, f.Violations[0].Field+": ", name+": ", 1)
	renamed.Violations = []fault.Violation{{Field: name, Description: f.Violations[0].Description}}
	return &renamed
}

// SetPassword replaces a password by the operator's word and ends every session.
func (s *Accounts) SetPassword(ctx context.Context, caller Caller, who, password string) error {
	a, err := s.Find(ctx, who)
	if err != nil {
		return err
	}
	hash, err := s.newHash(ctx, password, a.Username)
	if err != nil {
		return err
	}
	return s.commit(ctx, func(ctx context.Context) error {
		return s.store.SetPassword(ctx, a.ID, a.Version, hash, endAll(caller, a.ID, "password.set", journal.EndedByPassword))
	})
}

// SetState enables or disables an account; disabling ends every session.
func (s *Accounts) SetState(ctx context.Context, caller Caller, who string, state account.State) error {
	a, err := s.Find(ctx, who)
	if err != nil {
		return err
	}
	j := journal.Journal{Audit: []journal.Record{caller.record("account.enable", "ok", "", string(a.ID))}}
	if state == account.Disabled {
		j = endAll(caller, a.ID, "account.disable", journal.EndedByDisable)
	}
	return s.commit(ctx, func(ctx context.Context) error { return s.store.SetState(ctx, a.ID, a.Version, state, j) })
}

// Delete removes an account and ends every session.
func (s *Accounts) Delete(ctx context.Context, caller Caller, who string) error {
	a, err := s.Find(ctx, who)
	if err != nil {
		return err
	}
	return s.commit(ctx, func(ctx context.Context) error {
		return s.store.Delete(ctx, a.ID, a.Version, endAll(caller, a.ID, "account.delete", journal.EndedByDelete))
	})
}

func endAll(caller Caller, id ids.Account, event, reason string) journal.Journal {
	return journal.Journal{
		Ends:  []journal.End{{Account: id, Reason: reason}},
		Audit: []journal.Record{caller.record(event, "ok", reason, string(id))},
	}
}

// commit runs a change to its end, and answers only when this process's list holds what it revoked.
func (s *Accounts) commit(ctx context.Context, change func(context.Context) error) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := change(ctx); err != nil {
		return err
	}
	return s.tail.CatchUp(ctx)
}
