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
	// CommittedAt is when it was appended first, by the store's clock: journal.RevocationTTL before ExpiresAt, if that is set. It is zero
	// for a key's entry from before the store wrote that down.
	CommittedAt time.Time
}

// Page is what one tail read saw.
type Page struct {
	Epoch   [16]byte // random id of this history of the database; another one means another history
	Head    int64    // newest position in the log, live or not; zero for an empty log
	Now     time.Time
	Entries []Entry // live ones after the asked position, in order
	More    bool    // there are live ones after the last of Entries
	// Server names the server that answered, and its start: an opaque word. Until Settle is told it, what is read and written
	// elsewhere in the store is Unavailable at that server. It is empty where nothing but one file can answer.
	Server string
}

// PageSize is the most entries of one page: a log of a million takes seconds to read, and no read may take long.
const PageSize = 50_000

// ReappendSize is the most entries of one Reappend: it is one transaction, which nobody may have to wait for long.
const ReappendSize = 1000

// What the audit log says of the history of the database. The subject of EventHistory is the epoch that it had before, that of EventReappended
// the one that it has; nobody is their actor.
const (
	EventHistory    = "history.changed"    // there is another epoch: another server's data, or rows of the log are gone
	EventReappended = "history.reappended" // its reason says how many entries a process appended again
)

// Store keeps the log.
type Store interface {
	// Tail reads the live entries after position, at most PageSize of them, with the epoch and the head, in one consistent read.
	Tail(ctx context.Context, after int64) (Page, error)
	// Changed reports cheaply whether anything in the database may have changed since the last call with the same watcher; it
	// may say true for nothing, never false for something.
	Changed(ctx context.Context) (bool, error)
	// Append commits a journal that changes nothing else, such as the end of one access token.
	Append(ctx context.Context, j journal.Journal) error
	// Renew gives the history another epoch, random, if its epoch is still old, and records that; if another process came first, that is no
	// error.
	Renew(ctx context.Context, old [16]byte) error
	// Reappend commits anew what an earlier history of the database had and this one lacks: at most ReappendSize entries, all or
	// nothing, each with the expiry that it had. It also does again what they stand for: sessions end, cut-offs are kept where
	// they were lower, keys are compromised. An entry whose like stands in the log after a position, as late in its expiry and
	// its cut-off, is not appended again, nor one that has expired; so several processes may do it at the same time.
	// It gives how many it appended, and records that.
	Reappend(ctx context.Context, after int64, entries []Entry) (appended int, err error)
	// Settle opens the store at a Page's Server: the caller has read that server's log to its end, and it lacks nothing.
	Settle(ctx context.Context, server string) error
	// Sweep deletes expired entries, never the newest row, at most limit; it gives how many.
	Sweep(ctx context.Context, limit int) (int, error)
}
