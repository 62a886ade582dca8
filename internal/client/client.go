// Package client owns OAuth clients: what kind they are, which audiences and scopes they may ask for, how long their
// tokens and sessions live, and how a confidential one proves itself.
package client

import (
	"context"
	"time"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

// Kind says whether a client can keep a secret (RFC 6749 §2.1).
type Kind string

// The kinds.
const (
	Public       Kind = "public"
	Confidential Kind = "confidential"
)

// Client is one registered client.
type Client struct {
	ID               ids.Client
	Name             string
	Kind             Kind
	Secrets          []Secret // at most two; none for a public client
	Audiences        []string // may be asked for
	DefaultAudiences []string // where a request names none; a subset of Audiences
	Scopes           []string // may be asked for
	DefaultScopes    []string // where a request names none; a subset of Scopes
	AccessTTL        time.Duration
	SessionIdleTTL   time.Duration
	SessionTTL       time.Duration // absolute
	ReuseWindow      time.Duration // 10 s to 60 s
	Version          int64
	NotBefore        time.Time // tokens and sessions begun before it are dead; zero if none
	CreatedAt        time.Time
	UpdatedAt        time.Time
}

// Secret is one valid secret of a confidential client. Secrets are 256 random bits, so SHA-256 is enough.
type Secret struct {
	Hash      [32]byte
	CreatedAt time.Time
	ExpiresAt time.Time // zero: does not expire
}

// Store keeps clients. Each method is one atomic step; each mutating one commits its journal with its change or neither,
// and raises Revision. Unknown is NotFound/CLIENT_NOT_FOUND, a stale version Conflict/VERSION_CONFLICT, a store that does
// not answer Unavailable/STORE_UNAVAILABLE.
type Store interface {
	// Create inserts the client; Version, CreatedAt and UpdatedAt are the store's. A taken id is Exists/CLIENT_EXISTS.
	Create(ctx context.Context, c Client, j journal.Journal) error
	// Get reads one client.
	Get(ctx context.Context, id ids.Client) (Client, error)
	// List gives clients ordered by id, after the given one (exclusive), at most limit.
	List(ctx context.Context, after ids.Client, limit int) ([]Client, error)
	// RotateSecret adds hash as the newest secret of the client at version and lets every older one expire at most overlap from
	// now; only the newest older one is kept. It raises the version.
	RotateSecret(ctx context.Context, id ids.Client, version int64, hash [32]byte, overlap time.Duration, j journal.Journal) error
	// Delete removes the client at version; its tokens and sessions die by the journal's End.
	Delete(ctx context.Context, id ids.Client, version int64, j journal.Journal) error
	// Begin reads the client for a token of its own (client_credentials), with the store's now and the auth_time that a service
	// token begun in this read carries: max(now, the cut-offs of client and installation), in whole seconds.
	Begin(ctx context.Context, id ids.Client) (c Client, now, authTime time.Time, err error)
	// Revision is a number that changes with every change of any client, so that a copy in memory knows when to read again,
	// with the store's now, by which the secrets in that copy expire.
	Revision(ctx context.Context) (revision int64, now time.Time, err error)
}
