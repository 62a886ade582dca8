// Package journal owns what a change commits beside itself: the sessions it ends, the revocations that verifiers must
// learn of, and the audit record that says who did it. Every mutating store method takes a Journal last and commits it
// in its own transaction, all or nothing. It is the one EndSession path: whatever ends a session puts an End in its
// journal, and only the store's commit carries it out.
package journal

import (
	"time"

	"github.com/authsvc/authsvc/internal/ids"
)

// Journal is what commits with a change. The zero Journal commits nothing beside it.
type Journal struct {
	Ends    []End
	Revokes []Revocation
	Audit   []Record
}

// End selects live sessions and ends them, with the entries in the revocation log that kill their access tokens.
//
// Exactly one of Session, Account, Client and All selects. Session appends the session's sid; if that session ended less
// than RevocationTTL ago the entry is appended again; an unknown session is no error. Account with Except appends one sid
// for each session ended. Account without Except, Client and All append one cut-off, keep it for good on the account, on the
// client or on the installation, and end the rows in the same transaction up to 1,000; the rest are dead already by the
// cut-off, and are cleaned up later in batches.
type End struct {
	Session ids.Session
	Account ids.Account
	Client  ids.Client
	All     bool
	Except  ids.Session // with Account: this one session lives
	Reason  string      // one of the End reasons
}

// Why a session ended; kept on its row and in the audit log.
const (
	EndedByLogout     = "logout"
	EndedByRevoke     = "revoked"
	EndedByReuse      = "refresh_reused"
	EndedByPassword   = "password_changed"
	EndedByDisable    = "account_disabled"
	EndedByDelete     = "account_deleted"
	EndedByClient     = "client_deleted"
	EndedByOperator   = "operator"
	EndedBySessionCap = "session_cap"
)

// RevocationTTL is how long an entry other than a key's lives after its commit: longer than the longest access token
// (15 min) plus the widest skew (60 s) plus a minute. It is a constant, since two replicas with different figures would
// revive a token.
const RevocationTTL = 17 * time.Minute

// Kind says what a revocation is about.
type Kind string

// The kinds. sid, jti and kid are absolute: listed is dead. sub, client and all are cut-offs compared with auth_time.
const (
	KindSession Kind = "sid"
	KindToken   Kind = "jti"
	KindKey     Kind = "kid"
	KindSubject Kind = "sub"
	KindClient  Kind = "client"
	KindAll     Kind = "all"
)

// CutOff reports whether the kind is compared with auth_time.
func (k Kind) CutOff() bool { return k == KindSubject || k == KindClient || k == KindAll }

// Revocation is an entry to append to the log. The store gives it its position, its expiry and, for a cut-off, its
// not_before = ceil(now) + 1 s by the store's clock; a cut-off is also kept for good where the next login, refresh and
// client_credentials will see it.
type Revocation struct {
	Kind Kind
	ID   string // empty for KindAll
}

// Record is one audit record. The store gives it its id and its time.
type Record struct {
	Event     string // a word of the audit vocabulary, such as "login"
	Outcome   string // "ok", "denied" or "error"
	Reason    string // the fault's reason, or why a session ended
	Actor     string // account id, client id or "operator:<uid>"
	Subject   string // what it was done to: an account, client, session or key id
	Client    ids.Client
	Session   ids.Session
	IP        string
	UserAgent string
	RequestID string
}
