package service

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/token"
	"github.com/authsvc/authsvc/verify"
)

// Tokens holds the use cases of a token's life: Refresh, Revoke, Introspect and client credentials.
type Tokens struct {
	o       TokensOptions
	flights flights
}

// TokensOptions are what NewTokens needs; all fields are required.
type TokensOptions struct {
	Issuer      string
	Accounts    account.Store
	Clients     *Clients
	Sessions    session.Store
	Log         revocation.Store
	RefreshKeys *session.RefreshKeys
	Minter      minter
	Verifier    *verify.Verifier // of this issuer's tokens, for any audience
	Tail        tail
	Pulse       *Pulse
	Events      Events
	Logger      *slog.Logger
	Now         func() time.Time
}

// NewTokens makes the use cases.
func NewTokens(o TokensOptions) (*Tokens, error) {
	if o.Issuer == "" || o.Accounts == nil || o.Clients == nil || o.Sessions == nil || o.Log == nil || o.RefreshKeys == nil ||
		o.Minter == nil || o.Verifier == nil || o.Tail == nil || o.Pulse == nil || o.Events == nil || o.Logger == nil || o.Now == nil {
		return nil, missing("a token option")
	}
	return &Tokens{o: o}, nil
}

// RefreshRequest presents a refresh token.
type RefreshRequest struct {
	RefreshToken string
	Client       ClientAuth
	ClientID     ids.Client
	Scope        string // may narrow this answer, never the grant
	Caller       Caller
}

// Refresh redeems a refresh token. Presenting the same one again within the client's window gives the same successor,
// byte for byte, with an access token of its own (RFC 9700 §4.14.2, made safe against lost answers).
func (s *Tokens) Refresh(ctx context.Context, r RefreshRequest) (issued Issued, err error) {
	defer func() { s.o.Events.Refresh(outcome(err)) }()
	arrival := s.o.Now()
	c, err := s.o.Clients.Resolve(ctx, r.Client, r.ClientID)
	if err != nil {
		return Issued{}, err
	}
	if !s.o.Pulse.Steady() {
		return Issued{}, fault.New(fault.Unavailable, fault.ReplicaStale, "this replica was stopped a moment ago; try again")
	}
	presented, err := s.o.RefreshKeys.Parse(r.RefreshToken)
	if err != nil {
		return Issued{}, err
	}
	if err := s.narrows(ctx, presented, c, r.Scope); err != nil {
		return Issued{}, err
	}
	r.Caller.Client = c.ID
	redeem := session.Redeem{
		Session: presented.Session, SecretHash: presented.SecretHash, Generation: presented.Generation, Client: c.ID,
		Device: session.HashDevice(r.Caller.IP, r.Caller.UserAgent), UserAgent: Clip(r.Caller.UserAgent, MaxUserAgent),
		Window: c.ReuseWindow, Deadline: s.o.Clients.storeTime(arrival).Add(DecisionTimeout), RequestID: r.Caller.RequestID,
	}
	if r.Caller.IP.IsValid() {
		redeem.IP = r.Caller.IP.String()
	}
	red, err := s.flights.do(ctx, flight{token: ids.HashSecret(r.RefreshToken), client: c.ID, device: redeem.Device}, func() (session.Redeemed, error) {
		wctx, cancel := detached(ctx)
		defer cancel()
		red, err := s.o.Sessions.Redeem(wctx, redeem)
		if err == nil && red.Verdict == session.Reused {
			// Committed already; the list learns of it before anybody is told.
			err = s.o.Tail.CatchUp(wctx)
		}
		return red, err
	})
	if err != nil {
		return Issued{}, err
	}
	if red.Alert {
		s.o.Logger.ErrorContext(ctx, "a refresh token newer than the database: the database lost writes", "session", red.Session.ID)
	}
	if err := refused(red.Verdict); err != nil {
		return Issued{}, err
	}
	scope := red.Session.Scope
	if r.Scope != "" {
		if scope, err = narrow(r.Scope, strings.Fields(scope)); err != nil {
			return Issued{}, err
		}
	}
	return mintFor(ctx, s.o.Minter, red.Session, red.Now, c.AccessTTL, scope, s.o.RefreshKeys.Successor(presented, red.Session.Head))
}

// narrows refuses a scope outside the grant before anything is redeemed.
func (s *Tokens) narrows(ctx context.Context, p session.Presented, c client.Client, scope string) error {
	if scope == "" {
		return nil
	}
	row, alive, now, err := s.o.Sessions.Get(ctx, p.Session)
	if err != nil {
		if fault.From(err).Kind == fault.NotFound {
			return nil // the redemption says why
		}
		return err
	}
	redeemable := p.Generation == row.Head || p.Generation == row.Base
	if !alive || !redeemable || row.Expired(now) || row.SecretHash != p.SecretHash || row.Client != c.ID {
		return nil // likewise: an old token must be found to be one, whatever scope it comes with
	}
	_, err = narrow(scope, strings.Fields(row.Scope))
	return err
}

func refused(v session.Verdict) error {
	switch v {
	case session.Issue:
		return nil
	case session.Superseded:
		return fault.New(fault.Unauthenticated, fault.RefreshSuperseded, "a newer refresh token was issued; read it from storage and try once more")
	case session.Expired:
		return fault.New(fault.Unauthenticated, fault.RefreshExpired, "the session has expired; sign in again")
	case session.Reused:
		return fault.New(fault.Unauthenticated, fault.RefreshReused, "an old refresh token was used; the session has been ended")
	case session.Invalid, session.ForeignClient:
	}
	return fault.New(fault.Unauthenticated, fault.RefreshInvalid, "the refresh token is not valid")
}

// RevokeRequest presents a token to end.
type RevokeRequest struct {
	Token  string
	Client ClientAuth
	Caller Caller
}

// Revoke ends what the token stands for: an access token dies by its jti, a refresh token ends its session (RFC 7009).
// A token that is unknown, dead or another client's is no error and changes nothing. It answers once this process's list
// holds the revocation, with a position that other replicas can be asked to have reached.
func (s *Tokens) Revoke(ctx context.Context, r RevokeRequest) (position string, err error) {
	kind := "none"
	defer func() {
		if err == nil {
			s.o.Events.Revoke(kind)
		}
	}()
	if r.Token == "" {
		return "", fault.Field("token", "is required")
	}
	var authenticated ids.Client
	if r.Client.Presented {
		c, err := s.o.Clients.Authenticate(ctx, r.Client)
		if err != nil {
			return "", err
		}
		authenticated = c.ID
	}
	j, owner, k, err := s.ending(ctx, r)
	if err != nil {
		return "", err
	}
	if k != "" {
		ours, err := s.mayEnd(ctx, authenticated, owner)
		if err != nil {
			return "", err
		}
		if ours {
			kind = k
			wctx, cancel := detached(ctx)
			defer cancel()
			if err := s.o.Log.Append(wctx, j); err != nil {
				return "", err
			}
		}
	}
	wctx, cancel := detached(ctx)
	defer cancel()
	if err := s.o.Tail.CatchUp(wctx); err != nil {
		return "", err
	}
	return s.o.Tail.Position(), nil
}

// ending says what the token's end commits; kind is empty for a token that is not alive or not ours.
func (s *Tokens) ending(ctx context.Context, r RevokeRequest) (j journal.Journal, owner ids.Client, kind string, err error) {
	if strings.HasPrefix(r.Token, session.TokenPrefix) {
		p, err := s.o.RefreshKeys.Parse(r.Token)
		if err != nil {
			if fault.From(err).Kind == fault.Unavailable {
				return j, "", "", err
			}
			return j, "", "", nil
		}
		row, _, now, err := s.o.Sessions.Get(ctx, p.Session)
		if err != nil {
			if fault.From(err).Kind == fault.NotFound {
				return j, "", "", nil
			}
			return j, "", "", err
		}
		ended := !row.EndedAt.IsZero()
		if row.SecretHash != p.SecretHash || ended && now.Sub(row.EndedAt) >= journal.RevocationTTL {
			return j, "", "", nil
		}
		r.Caller.Subject, r.Caller.Client, r.Caller.Session = row.Account, row.Client, row.ID
		j.Ends = []journal.End{{Session: row.ID, Reason: journal.EndedByRevoke}}
		if !ended { // of one that has, the log is told again, but nothing happened that an audit would look for
			j.Audit = []journal.Record{r.Caller.record("revoke", "ok", "refresh_token", string(row.ID))}
		}
		return j, row.Client, "refresh_token", nil
	}
	claims, err := s.o.Verifier.Verify(ctx, r.Token)
	if err != nil {
		return j, "", "", undecided(err)
	}
	r.Caller.Client, r.Caller.Session = ids.Client(claims.ClientID), ids.Session(claims.SessionID)
	if claims.SessionID != "" {
		r.Caller.Subject = ids.Account(claims.Subject)
	}
	j.Revokes = []journal.Revocation{{Kind: journal.KindToken, ID: claims.ID}}
	j.Audit = []journal.Record{r.Caller.record("revoke", "ok", "access_token", claims.ID)}
	return j, ids.Client(claims.ClientID), "access_token", nil
}

// mayEnd: a token of a confidential client is ended by that client, authenticated; a public client's by whoever holds it
// and does not claim to be somebody else.
func (s *Tokens) mayEnd(ctx context.Context, authenticated, owner ids.Client) (bool, error) {
	if authenticated != "" {
		return authenticated == owner, nil
	}
	c, err := s.o.Clients.Get(ctx, owner)
	if err != nil {
		if fault.From(err).Reason == fault.ClientInvalid {
			return false, nil // a deleted client's tokens are dead
		}
		return false, err
	}
	if c.Kind != client.Public {
		return false, clientInvalid()
	}
	return true, nil
}

// undecided is nil for the verifier's verdicts that a token is not good; everything else says nothing about the token.
func undecided(err error) error {
	for _, verdict := range []error{verify.ErrMalformed, verify.ErrSignature, verify.ErrKeyUnknown, verify.ErrIssuer, verify.ErrAudience,
		verify.ErrExpired, verify.ErrNotYetValid, verify.ErrRevoked} {
		if errors.Is(err, verdict) {
			return nil
		}
	}
	return fault.Wrap(err, fault.Unavailable, fault.ReplicaStale, "this replica cannot judge tokens now")
}

// ClientCredentialsRequest asks for a service's own token (RFC 6749 §4.4).
type ClientCredentialsRequest struct {
	ClientID  string
	Secret    string
	Resources []string // RFC 8707; none: the client's default audiences
	Scope     string
	Caller    Caller
}

// ClientCredentials issues a token whose subject is the client itself: no refresh token, no sid.
func (s *Tokens) ClientCredentials(ctx context.Context, r ClientCredentialsRequest) (Issued, error) {
	c, err := s.o.Clients.Authenticate(ctx, ClientAuth{Presented: true, ID: ids.Client(r.ClientID), Secret: r.Secret})
	if err != nil {
		return Issued{}, err
	}
	// What authorises is the row that this read gives, with the store's own time; memory only kept strangers away from it.
	c, now, authTime, err := s.o.Clients.store.Begin(ctx, c.ID)
	if err != nil {
		if fault.From(err).Kind == fault.NotFound {
			return Issued{}, clientInvalid()
		}
		return Issued{}, err
	}
	if !c.Authentic(r.Secret, now) {
		return Issued{}, clientInvalid()
	}
	audience, err := c.Audience(r.Resources, s.o.Issuer, "resource")
	if err != nil {
		return Issued{}, err
	}
	if len(r.Resources) == 0 {
		audience = slices.DeleteFunc(audience, func(a string) bool { return a == s.o.Issuer })
	}
	scope, err := grantScope(c, r.Scope)
	if err != nil {
		return Issued{}, err
	}
	minted, err := s.o.Minter.Mint(ctx, token.Grant{Subject: string(c.ID), Audience: audience, Client: c.ID, Scope: scope,
		AuthTime: authTime, IssuedAt: now, TTL: c.AccessTTL})
	if err != nil {
		return Issued{}, err
	}
	return Issued{AccessToken: minted.Token, Scope: scope, ExpiresIn: minted.ExpiresAt.Sub(now.Truncate(time.Second))}, nil
}
