// Package token owns the access token: its claims (RFC 9068 §2.2), its lifetime, and how one is minted. The times in it
// come from the transaction that authorised it, never from the moment of signing, so a signer that was stopped in between
// emits an expired token and not a fresh one.
package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/keys"
)

// MaxTTL is the longest that an access token may live; the revocation log and the retirement of keys count on it.
const MaxTTL = 15 * time.Minute

// Options of a Minter.
type Options struct {
	Keys   *keys.Ring // required
	Issuer string     // required: the iss of every token, byte for byte
}

// Minter mints access tokens.
type Minter struct {
	keys   *keys.Ring
	issuer string
}

// New makes a Minter.
func New(o Options) (*Minter, error) {
	if o.Keys == nil || o.Issuer == "" {
		return nil, errors.New("token: Options.Keys and Options.Issuer are required")
	}
	return &Minter{keys: o.Keys, issuer: o.Issuer}, nil
}

// Grant is what a transaction has authorised.
type Grant struct {
	Subject  string // an account's id; for a service its client id
	Audience []string
	Client   ids.Client
	Session  ids.Session // empty for a service's token
	Scope    string      // space-separated; may be empty
	AuthTime time.Time   // the session's; cut-offs are compared with it
	AMR      []string    // RFC 8176; omitted if empty
	IssuedAt time.Time   // the transaction's now
	TTL      time.Duration
	NotAfter time.Time // the session's end, which exp never passes; zero: none
}

// Minted is an access token and what its caller must know of it.
type Minted struct {
	Token     string
	ID        ids.Token // jti
	IssuedAt  time.Time // whole seconds, UTC
	ExpiresAt time.Time // whole seconds, UTC
}

// claims is the payload (RFC 9068 §2.2); the order of the members is the order on the wire.
type claims struct {
	Issuer    string      `json:"iss"`
	Subject   string      `json:"sub"`
	Audience  []string    `json:"aud"`
	ExpiresAt int64       `json:"exp"`
	IssuedAt  int64       `json:"iat"`
	NotBefore int64       `json:"nbf"`
	ID        ids.Token   `json:"jti"`
	Client    ids.Client  `json:"client_id"`
	Session   ids.Session `json:"sid,omitempty"`
	Scope     string      `json:"scope"`
	AuthTime  int64       `json:"auth_time"`
	AMR       []string    `json:"amr,omitempty"`
}

// Mint signs an access token. iat and nbf are IssuedAt, exp is the earlier of IssuedAt + TTL and NotAfter, all in whole
// seconds, rounded down. A grant whose NotAfter is reached is Unauthenticated/REFRESH_EXPIRED; a ring that may not sign is
// Unavailable/SIGNING_UNAVAILABLE; an incomplete grant or a TTL beyond MaxTTL is our own mistake and Internal.
func (m *Minter) Mint(ctx context.Context, g Grant) (Minted, error) {
	if err := g.check(); err != nil {
		return Minted{}, err
	}
	issued := g.IssuedAt.Unix()
	expires := g.IssuedAt.Add(g.TTL).Unix()
	if !g.NotAfter.IsZero() {
		expires = min(expires, g.NotAfter.Unix())
	}
	if expires <= issued {
		return Minted{}, fault.New(fault.Unauthenticated, fault.RefreshExpired, "the session has ended; sign in again")
	}
	id := ids.New[ids.Token]()
	payload, err := json.Marshal(claims{
		Issuer: m.issuer, Subject: g.Subject, Audience: g.Audience,
		ExpiresAt: expires, IssuedAt: issued, NotBefore: issued,
		ID: id, Client: g.Client, Session: g.Session, Scope: g.Scope,
		AuthTime: g.AuthTime.Unix(), AMR: g.AMR,
	})
	if err != nil {
		return Minted{}, fmt.Errorf("token: encode claims: %w", err)
	}
	text, err := m.keys.Sign(ctx, payload)
	if err != nil {
		return Minted{}, err
	}
	return Minted{Token: text, ID: id, IssuedAt: time.Unix(issued, 0).UTC(), ExpiresAt: time.Unix(expires, 0).UTC()}, nil
}

func (g Grant) check() error {
	switch {
	case g.Subject == "" || g.Client == "" || len(g.Audience) == 0:
		return errors.New("token: a grant needs a subject, a client and an audience")
	case g.IssuedAt.IsZero() || g.AuthTime.IsZero():
		return errors.New("token: a grant needs the times of its transaction")
	case g.TTL < time.Second || g.TTL > MaxTTL:
		return fmt.Errorf("token: a lifetime of %v is not between 1s and %v", g.TTL, MaxTTL)
	}
	return nil
}
