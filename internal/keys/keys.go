// Package keys owns the signing keys: their states and times, the rule that says which one signs now, the sealing of
// the private halves under a key-encryption key, and the JWK Set that the world sees. Every replica derives the signer
// from the rows and the store's clock, so there is no leader.
package keys

import (
	"context"
	"time"

	"github.com/authsvc/authsvc/internal/journal"
)

// State is where a key is in its life.
type State string

// The states, in order; Compromised is outside the order and final.
const (
	Pending     State = "pending"     // published, does not sign yet
	Active      State = "active"      // published and signing; exactly one
	Retired     State = "retired"     // published until its last token has expired
	Gone        State = "gone"        // no longer published; its private half is deleted
	Compromised State = "compromised" // revoked by an operator; never again
)

// Key is one signing key as stored.
type Key struct {
	ID          string // RFC 7638 thumbprint
	State       State
	Public      []byte // the public JWK, JSON
	Sealed      []byte // the private half, sealed; empty once gone or compromised
	CreatedAt   time.Time
	PublishedAt time.Time
	ActivatedAt time.Time // zero until active
	RetiredAt   time.Time // zero until retired
	GoneAt      time.Time // when a retired key stops being published
}

// Set is all keys that are not gone, with the set's version and the store's now.
type Set struct {
	Version int64
	Now     time.Time
	Keys    []Key
}

// Store keeps keys. Every change is a compare-and-swap on the set's version (Conflict/VERSION_CONFLICT when lost), raises
// it, and commits its journal or nothing.
type Store interface {
	// Load reads the set: every key but those gone.
	Load(ctx context.Context) (Set, error)
	// Apply commits a change that Plan made: inserts, state changes and re-seals, all or nothing. The times written are the
	// store's now where a field of the change says so.
	Apply(ctx context.Context, version int64, c Change, j journal.Journal) error
}

// Change is what one step does to the set. Each Insert gets CreatedAt and PublishedAt = the store's now, and ActivatedAt too
// where it is Active. Each Move gets the time column of its new state = the store's now. Moves come first, in their order,
// then inserts: between two rows there may be no active key, after the change there is exactly one.
type Change struct {
	Insert []Key
	Move   []Move
	Reseal map[string][]byte // kid -> new sealed private half
}

// Move changes the state of one key; a move to Gone or Compromised deletes the private half.
type Move struct {
	ID     string
	To     State
	GoneIn time.Duration // with Retired: GoneAt = now + this
}
