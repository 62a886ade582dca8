// Package account owns people: their canonical username, password hash and state, and the rule that says whether one
// may act. It knows nothing of how passwords are hashed and nothing of SQL.
package account

import (
	"context"
	"time"

	"golang.org/x/text/secure/precis"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

// State says whether an account may act.
type State string

// The states.
const (
	Active   State = "active"
	Disabled State = "disabled"
)

// Account is one person.
type Account struct {
	ID           ids.Account
	Username     string // canonical, see Canonical
	PasswordHash string // PHC string of argon2id
	State        State
	Version      int64     // raised by disable, enable, set-password; not by a rehash
	NotBefore    time.Time // sessions begun before it are dead; zero if none
	CreatedAt    time.Time
	UpdatedAt    time.Time
}

// MayAct is the one check that every authentication path runs (R54).
func (a Account) MayAct() bool { return a.State == Active }

// MaxUsername is the longest username, in bytes, before and after canonicalisation.
const MaxUsername = 128

// Canonical gives the form of a username in which it is stored, compared and counted: the UsernameCaseMapped profile
// of RFC 8265 §3.3, 1 to 128 bytes.
func Canonical(username string) (string, error) {
	if username == "" || len(username) > MaxUsername {
		return "", fault.Field("username", "must be 1 to 128 bytes")
	}
	canonical, err := precis.UsernameCaseMapped.String(username)
	if err != nil || canonical == "" || len(canonical) > MaxUsername {
		return "", fault.Field("username", "must be letters, digits and symbols without spaces (RFC 8265 UsernameCaseMapped)")
	}
	return canonical, nil
}

// Store keeps accounts. Each method is one atomic step; each mutating one commits its journal with its change or neither.
// An unknown account is fault NotFound/ACCOUNT_NOT_FOUND; a version that is no longer current is Conflict/VERSION_CONFLICT;
// a store that does not answer in time is Unavailable/STORE_UNAVAILABLE. Every read sees every change acknowledged before it.
type Store interface {
	// Create inserts the account; ID, Username, PasswordHash and State are the caller's, the rest the store's. A taken
	// username is Exists/USERNAME_TAKEN; of concurrent calls with one name exactly one succeeds.
	Create(ctx context.Context, a Account, j journal.Journal) error
	// Get reads one account.
	Get(ctx context.Context, id ids.Account) (Account, error)
	// ByUsername reads the account with the canonical username.
	ByUsername(ctx context.Context, canonical string) (Account, error)
	// List gives accounts ordered by username, after the given one (exclusive), at most limit.
	List(ctx context.Context, after string, limit int) ([]Account, error)
	// SetState changes the state of the account at version, and raises the version.
	SetState(ctx context.Context, id ids.Account, version int64, state State, j journal.Journal) error
	// SetPassword replaces the hash of the account at version, and raises the version.
	SetPassword(ctx context.Context, id ids.Account, version int64, hash string, j journal.Journal) error
	// Rehash replaces the hash if it is still the old one, without raising the version; otherwise it does nothing.
	Rehash(ctx context.Context, id ids.Account, oldHash, newHash string, j journal.Journal) error
	// Delete removes the account at version and its sessions' rows; their tokens die by the journal's End, whose cut-off stays
	// in the revocation log.
	Delete(ctx context.Context, id ids.Account, version int64, j journal.Journal) error
}
