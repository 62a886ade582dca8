// Package session owns the session: one row for one login, whose three faces are a refresh token, access tokens with
// its sid, and later a cookie. It holds the rules of refresh (Decide), the refresh token's own codec, and the contract
// of the store that keeps the rows. It knows no SQL and no transport.
package session

import (
	"context"
	"time"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

// Session is one row. Times are the store's clock.
type Session struct {
	ID         ids.Session
	Account    ids.Account
	Client     ids.Client
	SecretHash [32]byte // SHA-256 of the 16-byte session secret inside the refresh token
	KeyID      byte     // the refresh key that it was born with

	Rotation // the refresh state

	AuthTime   time.Time // when the session began, never before the cut-offs that stood then; whole seconds
	CreatedAt  time.Time
	LastUsedAt time.Time
	IdleTTL    time.Duration
	IdleEndsAt time.Time // moves with every redemption
	EndsAt     time.Time // absolute; never moves

	EndedAt   time.Time // zero while live
	EndReason string

	Scope      string // the grant: space-separated, as granted at login
	Audiences  []string
	AMR        []string
	DeviceName string
	IP         string
	UserAgent  string
}

// Rotation is the part of the row that Decide reads and changes.
type Rotation struct {
	Base        uint32    // the generation last redeemed
	Head        uint32    // the newest generation issued
	Low         uint32    // generations below it are theft even in the window
	RedeemedAt  time.Time // of the last redemption or fork
	Device      Device    // of the last redemption
	Elsewhere   int       // replays of Base from another device, once per generation
	ElsewhereOf uint32    // the generation that Elsewhere last counted
	Forks       int       // late retries since the last redemption
}

// Device is what a request shows of its sender: two truncated SHA-256 hashes, of the network (IPv4 /24 or IPv6 /64) and of
// the user agent.
type Device struct {
	Network   [8]byte
	UserAgent [8]byte
}

// Redeem presents one refresh token to the store. The MAC of the token has been checked before.
type Redeem struct {
	Session    ids.Session
	SecretHash [32]byte
	Generation uint32
	Client     ids.Client
	Device     Device
	IP         string
	UserAgent  string
	Window     time.Duration // reuse window of the client
	Deadline   time.Time     // the store's clock: a decision after it writes nothing and is Unavailable; zero: none
	RequestID  string
}

// Redeemed is what the store decided about a refresh token. For every Verdict but Issue nothing may be issued.
type Redeemed struct {
	Verdict Verdict
	Session Session   // after the decision
	Now     time.Time // the store's clock in the deciding transaction: iat of what is minted
	Rotated bool      // whether this call moved Head, as against answering the same one again
	Alert   bool      // rule 2: the store lost writes
}

// Verdict is the outcome of a presented refresh token.
type Verdict int

// The verdicts.
const (
	// Invalid is REFRESH_INVALID: unknown, ended, wrong secret, another client's, account or client may not act.
	Invalid Verdict = iota
	// Issue answers generation Head.
	Issue
	// Superseded is REFRESH_SUPERSEDED: a late duplicate, nothing issued, nothing ended.
	Superseded
	// Expired is REFRESH_EXPIRED: idle or absolute end reached.
	Expired
	// Reused is REFRESH_REUSED: theft; the session was ended and that is committed.
	Reused
	// ForeignClient is REFRESH_INVALID with an alert: another client's token; nothing changed.
	ForeignClient
)

// Create is what a login inserts.
type Create struct {
	Session        Session // ID, Account, Client, SecretHash, KeyID, Device, IdleTTL, Scope, Audiences, AMR, DeviceName, IP, UserAgent
	TTL            time.Duration
	AccountVersion int64 // the login's reading of the account; the insert is conditional on it
	MaxPerAccount  int   // the oldest live sessions beyond it are ended
}

// Store keeps sessions. Each method is one atomic step; each mutating one commits its journal with its change or neither.
type Store interface {
	// Create inserts the session if, in the same transaction, the account is active and at AccountVersion and the client
	// exists; otherwise fault Unauthenticated/INVALID_CREDENTIALS and nothing is written. Base=0, Head=1, Low=0, RedeemedAt=now,
	// AuthTime = max(now, the cut-offs of account, client and installation), ends derived from now. Beyond MaxPerAccount the
	// oldest are ended (session_cap). It gives the row and the store's now.
	Create(ctx context.Context, c Create, j journal.Journal) (Session, time.Time, error)
	// Redeem decides about a refresh token and carries the decision out: one conditional statement where the token is the
	// head, otherwise load, Decide, and swap or end. A theft's end and its audit record are committed before it answers. An
	// error means that nothing was decided.
	Redeem(ctx context.Context, r Redeem) (Redeemed, error)
	// Get reads one row, live or ended, and the store's now. Alive reports whether it, its account and its client may act and no
	// cut-off is above its AuthTime. Unknown is NotFound/SESSION_NOT_FOUND.
	Get(ctx context.Context, id ids.Session) (s Session, alive bool, now time.Time, err error)
	// List gives the live sessions of an account (of all accounts if empty), newest first by (CreatedAt, ID), after the cursor
	// (exclusive; the zero Cursor starts), at most limit.
	List(ctx context.Context, account ids.Account, after Cursor, limit int) ([]Session, error)
	// End carries out the journal's Ends and gives how many rows it ended. With owner set, a Session end hits only a row of
	// that account: otherwise NotFound/SESSION_NOT_FOUND and nothing is written.
	End(ctx context.Context, owner ids.Account, j journal.Journal) (int, error)
	// Sweep deletes rows that ended or expired more than keep ago, and finishes ends that a cut-off began, at most limit rows;
	// it gives how many it touched.
	Sweep(ctx context.Context, keep time.Duration, limit int) (int, error)
}

// Cursor is a place in List.
type Cursor struct {
	CreatedAt time.Time
	ID        ids.Session
}
