package service

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/oauth2"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/token"
)

// hasher checks and makes password hashes in a bounded pool; password.Hasher is one.
type hasher interface {
	Hash(ctx context.Context, password string) (string, error)
	Verify(ctx context.Context, password, phc string) (ok, needsRehash bool, err error)
	VerifyDummy(ctx context.Context, password string) error
}

// throttle slows guessing down; limit.Throttle is one.
type throttle interface {
	Allow(a limit.Attempt) error
	Settle(ctx context.Context, a limit.Attempt, o limit.Outcome) error
}

// SignIn is the Login use case.
type SignIn struct {
	o SignInOptions
}

// SignInOptions are what NewSignIn needs; all fields are required.
type SignInOptions struct {
	Issuer      string
	Accounts    account.Store
	Clients     *Clients
	Sessions    session.Store
	Hasher      hasher
	Throttle    throttle
	RefreshKeys *session.RefreshKeys
	Minter      minter
	MaxSessions int
	Events      Events
	Logger      *slog.Logger
}

// NewSignIn makes the use case.
func NewSignIn(o SignInOptions) (*SignIn, error) {
	if o.Issuer == "" || o.Accounts == nil || o.Clients == nil || o.Sessions == nil || o.Hasher == nil || o.Throttle == nil ||
		o.RefreshKeys == nil || o.Minter == nil || o.MaxSessions < 1 || o.Events == nil || o.Logger == nil {
		return nil, missing("a sign-in option")
	}
	return &SignIn{o: o}, nil
}

// LoginRequest is what a person signs in with.
type LoginRequest struct {
	Username   string
	Password   string
	Client     ClientAuth
	ClientID   ids.Client
	Audience   []string
	Scope      string
	DeviceName string
	// DeviceToken is what an earlier Login gave on this device. One that is not good, for whatever reason, is as none.
	DeviceToken string
	Caller      Caller
}

// Login checks a password and begins a session. A wrong password, an unknown name and a disabled account are one
// answer, INVALID_CREDENTIALS, after the same work.
func (s *SignIn) Login(ctx context.Context, r LoginRequest) (issued Issued, err error) {
	defer func() { s.o.Events.Login(outcome(err)) }()
	if r.Password == "" {
		return Issued{}, fault.Field("password", "is required")
	}
	if len(r.DeviceName) > MaxDeviceName {
		return Issued{}, fault.Field("device_name", "must be at most 64 bytes")
	}
	name, err := account.Canonical(r.Username)
	if err != nil {
		return Issued{}, err
	}
	c, err := s.o.Clients.Resolve(ctx, r.Client, r.ClientID)
	if err != nil {
		return Issued{}, err
	}
	r.Caller.Client = c.ID
	audience, err := c.Audience(r.Audience, s.o.Issuer, "audience")
	if err != nil {
		return Issued{}, err
	}
	scope, err := grantScope(c, r.Scope)
	if err != nil {
		return Issued{}, err
	}
	device := s.o.RefreshKeys.Device(name, r.DeviceToken, s.o.Clients.Now())
	a, err := s.check(ctx, limit.Attempt{Account: name, IP: r.Caller.IP, Device: string(device)}, r)
	if err != nil {
		return Issued{}, err
	}
	issued, err = s.begin(ctx, a, c, audience, scope, r)
	if err == nil {
		issued.DeviceToken = s.o.RefreshKeys.NewDevice(name, device, s.o.Clients.Now())
	}
	return issued, err
}

// check authenticates, under the throttle, whose word comes before anything is written or said.
func (s *SignIn) check(ctx context.Context, try limit.Attempt, r LoginRequest) (account.Account, error) {
	if err := s.o.Throttle.Allow(try); err != nil {
		return account.Account{}, err
	}
	verified := false
	defer giveBack(ctx, s.o.Throttle, try, &verified)
	a, ok, rehash, err := s.authenticate(ctx, try.Account, r.Password)
	verified = true
	if err := s.o.Throttle.Settle(ctx, try, guessed(ok, err)); err != nil {
		return account.Account{}, err
	}
	switch {
	case err != nil:
		return account.Account{}, err
	case !ok:
		return account.Account{}, s.denied(ctx, a.ID, r)
	case rehash:
		s.rehash(ctx, a, r.Password)
	}
	return a, nil
}

// giveBack ends an attempt that a panic ended before it was verified. As one under way it would count for as long as others go on at the same
// keys, and somebody always does at the key of all failures.
func giveBack(ctx context.Context, th throttle, try limit.Attempt, verified *bool) {
	if !*verified {
		_ = th.Settle(ctx, try, limit.Released) // it asks nobody, and nobody is to be refused
	}
}

// guessed is what an attempt was to the throttle.
func guessed(ok bool, err error) limit.Outcome {
	switch {
	case err != nil:
		return limit.Released
	case ok:
		return limit.Succeeded
	}
	return limit.Failed
}

// authenticate reports whether the password opens the account, which is the zero one where the name is unknown.
func (s *SignIn) authenticate(ctx context.Context, name, password string) (a account.Account, ok, rehash bool, err error) {
	a, err = s.o.Accounts.ByUsername(ctx, name)
	switch {
	case err == nil:
		ok, rehash, err = s.o.Hasher.Verify(ctx, password, a.PasswordHash)
	case fault.From(err).Kind == fault.NotFound:
		err = s.o.Hasher.VerifyDummy(ctx, password)
	}
	return a, ok && a.MayAct(), rehash, err
}

// denied records a refused login and gives the one answer for it.
func (s *SignIn) denied(ctx context.Context, id ids.Account, r LoginRequest) error {
	record := r.Caller.record("login", "denied", string(fault.InvalidCredentials), string(id))
	ctx, cancel := detached(ctx)
	defer cancel()
	if _, err := s.o.Sessions.End(ctx, "", journal.Journal{Audit: []journal.Record{record}}); err != nil {
		return err
	}
	return invalidCredentials()
}

// rehash brings a hash up to today's parameters. The login does not depend on it: a failure is logged and tried again
// at the next one.
func (s *SignIn) rehash(ctx context.Context, a account.Account, password string) {
	hash, err := s.o.Hasher.Hash(ctx, password)
	if err == nil {
		err = s.o.Accounts.Rehash(ctx, a.ID, a.PasswordHash, hash, journal.Journal{})
	}
	if err != nil {
		s.o.Logger.WarnContext(ctx, "password not rehashed", "error", err)
	}
}

func (s *SignIn) begin(ctx context.Context, a account.Account, c client.Client, audience []string, scope string, r LoginRequest) (Issued, error) {
	id := ids.New[ids.Session]()
	hash, keyID, refresh, err := s.o.RefreshKeys.New(id)
	if err != nil {
		return Issued{}, err
	}
	r.Caller.Subject, r.Caller.Session = a.ID, id
	row := session.Session{
		ID: id, Account: a.ID, Client: c.ID, SecretHash: hash, KeyID: keyID, IdleTTL: c.SessionIdleTTL,
		Rotation: session.Rotation{Device: session.HashDevice(r.Caller.IP, r.Caller.UserAgent)},
		Scope:    scope, Audiences: audience, AMR: []string{"pwd"},
		DeviceName: Clip(r.DeviceName, MaxDeviceName), UserAgent: Clip(r.Caller.UserAgent, MaxUserAgent),
	}
	if r.Caller.IP.IsValid() {
		row.IP = r.Caller.IP.String()
	}
	j := journal.Journal{Audit: []journal.Record{r.Caller.record("login", "ok", "", string(a.ID))}}
	wctx, cancel := detached(ctx)
	defer cancel()
	row, now, err := s.o.Sessions.Create(wctx, session.Create{Session: row, TTL: c.SessionTTL, AccountVersion: a.Version, MaxPerAccount: s.o.MaxSessions}, j)
	if err != nil {
		if errors.Is(err, invalidCredentials()) {
			return Issued{}, s.denied(ctx, a.ID, r) // lost to a disable, a new password or a deletion: the same words as ever
		}
		return Issued{}, err
	}
	return mintFor(ctx, s.o.Minter, row, now, c.AccessTTL, scope, refresh)
}

// mintFor makes the answer for a session: an access token whose times are those of the deciding transaction.
func mintFor(ctx context.Context, m minter, row session.Session, now time.Time, ttl time.Duration, scope, refresh string) (Issued, error) {
	minted, err := m.Mint(ctx, token.Grant{
		Subject: string(row.Account), Audience: row.Audiences, Client: row.Client, Session: row.ID, Scope: scope,
		AuthTime: row.AuthTime, AMR: row.AMR, IssuedAt: now, TTL: ttl, NotAfter: row.EndsAt,
	})
	if err != nil {
		return Issued{}, err
	}
	return Issued{AccessToken: minted.Token, RefreshToken: refresh, Scope: scope, ExpiresIn: minted.ExpiresAt.Sub(now.Truncate(time.Second)), SessionID: row.ID}, nil
}

// grantScope resolves a requested scope against the client: every word must be one of the client's; none asked for gives
// the defaults.
func grantScope(c client.Client, asked string) (string, error) {
	if asked == "" {
		return joinScope(c.DefaultScopes), nil
	}
	return narrow(asked, c.Scopes)
}

func narrow(asked string, allowed []string) (string, error) {
	words, err := oauth2.ParseScope(asked)
	if err != nil {
		return "", fault.Wrap(err, fault.Invalid, fault.InvalidScope, "the scope is malformed")
	}
	for _, w := range words {
		if !contains(allowed, w) {
			return "", fault.New(fault.Invalid, fault.InvalidScope, "a scope is not one that may be asked for here")
		}
	}
	return joinScope(words), nil
}

func invalidCredentials() *fault.Error {
	return fault.New(fault.Unauthenticated, fault.InvalidCredentials, "username or password is wrong")
}
