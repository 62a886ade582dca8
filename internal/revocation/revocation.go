// Package revocation owns the revocation log as this process sees it: the tail that reads it, the list in memory that
// every verification asks, and the position that says how far both are. The authority is the log in SQL; the list holds
// all of its live entries.
package revocation

import (
	"context"
	"time"

	"github.com/authsvc/authsvc/internal/journal"
)

// Entry is one row of the log. Positions rise in the order of commits.
type Entry struct {
	Position  int64
	Kind      journal.Kind
	ID        string
	NotBefore time.Time // cut-offs only; whole seconds
	ExpiresAt time.Time // zero for a key's entry: until the key is gone
}

// Page is what one tail read saw.
type Page struct {
	Epoch   [16]byte // random id of this history of the database; another one means another history
	Head    int64    // newest position in the log, live or not; zero for an empty log
	Now     time.Time
	Entries []Entry // live ones after the asked position, in order
	More    bool    // there are live ones after the last of Entries
}

// PageSize is the most entries of one page: a log of a million takes seconds to read, and no read may take long.
const PageSize = 50_000

// Store keeps the log.
type Store interface {
	// Tail reads the live entries after position, at most PageSize of them, with the epoch and the head, in one consistent read.
	Tail(ctx context.Context, after int64) (Page, error)
	// Changed reports cheaply whether anything in the database may have changed since the last call with the same watcher; it
	// may say true for nothing, never false for something.
	Changed(ctx context.Context) (bool, error)
	// Append commits a journal that changes nothing else, such as the end of one access token.
	Append(ctx context.Context, j journal.Journal) error
	// Sweep deletes expired entries, never the newest row, at most limit; it gives how many.
	Sweep(ctx context.Context, limit int) (int, error)
}
