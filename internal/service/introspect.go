package service

import (
	"context"
	"strings"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/verify"
)

// Introspection says whether a token is good now (RFC 7662 §2.2). Of anything that is not, only Active is set: false.
type Introspection struct {
	Active    bool
	TokenType string         // "Bearer" for an access token, "refresh_token" for a refresh token
	Claims    *verify.Claims // of an access token; shared, not to be changed
	Username  string         // of a refresh token
	Session   *session.Session
}

// MaxBatch is the most tokens of one BatchIntrospect.
const MaxBatch = 1000

// Introspect answers about one token, from memory for an access token and with one read for a refresh token. A client is
// told about an access token only if the token has one of the client's own audiences, the issuer apart, and about a
// refresh token only if it is its own.
func (s *Tokens) Introspect(ctx context.Context, caller client.Client, tok, minPosition string) (Introspection, error) {
	if err := s.o.Tail.Await(ctx, minPosition); err != nil {
		return Introspection{}, err
	}
	if err := s.o.Tail.Fresh(ctx); err != nil {
		return Introspection{}, err
	}
	in, err := s.introspect(ctx, caller, tok)
	if err == nil {
		s.o.Events.Introspect(activeWord(in.Active), 1)
	}
	return in, err
}

// BatchIntrospect answers about many tokens, in order.
func (s *Tokens) BatchIntrospect(ctx context.Context, caller client.Client, tokens []string) ([]Introspection, error) {
	if len(tokens) > MaxBatch {
		return nil, fault.Field("tokens", "at most 1000")
	}
	if err := s.o.Tail.Fresh(ctx); err != nil {
		return nil, err
	}
	out := make([]Introspection, len(tokens))
	active := 0
	for i, tok := range tokens {
		if err := ctx.Err(); err != nil {
			return nil, fault.Wrap(err, fault.Unavailable, fault.StoreUnavailable, "the request was given up")
		}
		in, err := s.introspect(ctx, caller, tok)
		if err != nil {
			return nil, err
		}
		if out[i] = in; in.Active {
			active++
		}
	}
	s.o.Events.Introspect(activeWord(true), active)
	s.o.Events.Introspect(activeWord(false), len(tokens)-active)
	return out, nil
}

func activeWord(active bool) string {
	if active {
		return "active"
	}
	return "inactive"
}

func (s *Tokens) introspect(ctx context.Context, caller client.Client, tok string) (Introspection, error) {
	if strings.HasPrefix(tok, session.TokenPrefix) {
		return s.introspectRefresh(ctx, caller, tok)
	}
	claims, err := s.o.Verifier.Verify(ctx, tok)
	if err != nil {
		return Introspection{}, undecided(err)
	}
	if !caller.Sees(claims.Audience, s.o.Issuer) {
		return Introspection{}, nil
	}
	return Introspection{Active: true, TokenType: "Bearer", Claims: claims}, nil
}

// introspectRefresh: active is what Refresh would answer now, for the newest token and the one before it.
func (s *Tokens) introspectRefresh(ctx context.Context, caller client.Client, tok string) (Introspection, error) {
	p, err := s.o.RefreshKeys.Parse(tok)
	if err != nil {
		if fault.From(err).Kind == fault.Unavailable {
			return Introspection{}, err
		}
		return Introspection{}, nil
	}
	row, alive, now, err := s.o.Sessions.Get(ctx, p.Session)
	if err != nil {
		if fault.From(err).Kind == fault.NotFound {
			return Introspection{}, nil
		}
		return Introspection{}, err
	}
	current := p.Generation == row.Head || p.Generation == row.Base
	if !alive || !current || row.SecretHash != p.SecretHash || row.Client != caller.ID || row.Expired(now) {
		return Introspection{}, nil
	}
	a, err := s.o.Accounts.Get(ctx, row.Account)
	if err != nil {
		if fault.From(err).Kind == fault.NotFound {
			return Introspection{}, nil
		}
		return Introspection{}, err
	}
	return Introspection{Active: true, TokenType: "refresh_token", Username: a.Username, Session: &row}, nil
}
