// Package service is the core: each use case once, in a file of its own. It knows no transport and no SQL; every door
// calls it, and no rule lives in a door. Its structs are small, each with the few stores and rules that it needs:
// SignIn (Login), Tokens (Refresh, Revoke, Introspect, client credentials), Sessions, Accounts, Clients.
//
// Where two writes cannot be one transaction, revoke comes first and issue last, so that a crash leaves the safe state. A
// dependency that fails is Unavailable: never "allow", and never "log the user out".
package service

import (
	"context"
	"net/netip"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/token"
)

// Caller is who is calling, as the door found out. It travels as a value; ctx is for cancellation and tracing only.
type Caller struct {
	Subject   ids.Account // of the user token; empty without one
	Client    ids.Client  // of the token, or as authenticated
	Session   ids.Session // of the user token
	Scopes    []string
	IP        netip.Addr
	UserAgent string
	RequestID string
}

func (c Caller) record(event, outcome, reason, subject string) journal.Record {
	actor := string(c.Subject)
	if actor == "" {
		actor = string(c.Client)
	}
	ip := ""
	if c.IP.IsValid() {
		ip = c.IP.String()
	}
	return journal.Record{Event: event, Outcome: outcome, Reason: reason, Actor: actor, Subject: subject, Client: c.Client,
		Session: c.Session, IP: ip, UserAgent: Clip(c.UserAgent, MaxUserAgent), RequestID: c.RequestID}
}

// Issued is a successful answer of Login, Refresh and client credentials.
type Issued struct {
	AccessToken  string
	RefreshToken string // empty for a service's token
	Scope        string
	ExpiresIn    time.Duration
	SessionID    ids.Session // empty for a service's token
	DeviceToken  string      // of a login alone: what tells the next one that the account is known there
}

// Longest texts that are kept from a request, in bytes.
const (
	MaxUserAgent  = 256
	MaxDeviceName = 64
)

// Clip cuts s to at most n bytes of valid UTF-8.
func Clip(s string, n int) string {
	if len(s) > n {
		s = s[:n]
	}
	out := make([]rune, 0, len(s))
	for _, r := range s {
		if r == '\uFFFD' || r < ' ' || r == 0x7f {
			continue
		}
		out = append(out, r)
	}
	return string(out)
}

// minter signs access tokens; token.Minter is one.
type minter interface {
	Mint(ctx context.Context, g token.Grant) (token.Minted, error)
}

// tail is the revocation log of this process; revocation.Log is one.
type tail interface {
	CatchUp(ctx context.Context) error
	Fresh(ctx context.Context) error
	Await(ctx context.Context, position string) error
	Position() string
}

// detached gives a context for work that must not stop half-way because the caller went away.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), DecisionTimeout)
}

// DecisionTimeout bounds every write: a decision that the store has not made by then is not made.
const DecisionTimeout = 5 * time.Second

func missing(what string) error {
	return fault.New(fault.Internal, fault.InternalError, "service: "+what+" is required")
}
