package verify

import (
	"crypto/sha256"
	"encoding/binary"
	"sync/atomic"
	"time"
)

// Kind is what a revocation names.
type Kind string

// The kinds. Those of a session, a token and a key are absolute: listed is dead. Those of an account, a client and of all are
// cut-offs: a token is dead if its auth_time is before the cut-off.
const (
	KindSession Kind = "sid"
	KindToken   Kind = "jti"
	KindKey     Kind = "kid"
	KindAccount Kind = "sub"
	KindClient  Kind = "client"
	KindAll     Kind = "all" // every token of the issuer; its id is ""
)

// Target names what is revoked without telling it: 16 bytes of a SHA-256, so that whoever sees the list learns only of
// the tokens that they hold.
type Target [16]byte

// TargetOf computes a target: the first 16 bytes of the SHA-256 of issuer, kind and id, each led by its length as a
// big-endian uint32.
func TargetOf(issuer string, kind Kind, id string) Target {
	var room [512]byte
	b := appendFramed(room[:0], issuer)
	b = appendFramed(b, string(kind))
	b = appendFramed(b, id)
	sum := sha256.Sum256(b)
	return Target(sum[:16])
}

func appendFramed(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// Subject is all that a revocation may hit of one token, computed once per token.
type Subject struct {
	Session    Target // only where HasSession
	Token      Target
	Key        Target
	Account    Target
	Client     Target
	All        Target
	HasSession bool
	AuthTime   int64 // Unix seconds

	// That of a token in a Verifier's cache never changes, and keeps the version of the List that it last passed: most calls find
	// it unchanged, and look nothing up.
	keeps  bool
	passed uintptr
}

// passedAt says whether nothing has been revoked since the subject passed; it was zero before it did.
func (s *Subject) passedAt(version uintptr) bool {
	return s.keeps && atomic.LoadUintptr(&s.passed) == version && version != 0
}

func (s *Subject) pass(version uintptr) {
	if s.keeps {
		atomic.StoreUintptr(&s.passed, version)
	}
}

// RevocationSource knows what has been revoked. Check is called on every Verify, by many goroutines; it answers nil,
// ErrRevoked, ErrStale where nothing that it knows hits the token but that is too old, or ErrNotReady while it cannot know at all,
// and does not keep s.
type RevocationSource interface {
	Check(s *Subject) error
}

// Subject is what a revocation may hit of a token with these claims, to ask a RevocationSource about it again after Verify. A
// foreign token without auth_time is taken to have begun when it was issued.
func (v *Verifier) Subject(c *Claims) Subject {
	s := Subject{
		Token:    TargetOf(v.issuer, KindToken, c.ID),
		Key:      TargetOf(v.issuer, KindKey, c.KeyID),
		Account:  TargetOf(v.issuer, KindAccount, c.Subject),
		Client:   TargetOf(v.issuer, KindClient, c.ClientID),
		All:      TargetOf(v.issuer, KindAll, ""),
		AuthTime: c.AuthTime.Unix(),
	}
	if c.AuthTime.IsZero() {
		s.AuthTime = c.IssuedAt.Unix()
	}
	if c.SessionID != "" {
		s.Session, s.HasSession = TargetOf(v.issuer, KindSession, c.SessionID), true
	}
	return s
}

// Revocation is one entry of a List.
type Revocation struct {
	Target Target
	// NotBefore is the cut-off in Unix seconds: tokens with an earlier auth_time are dead. 0 means all of them.
	NotBefore int64
	// ExpiresAt is when no token can be left that this hits; zero means never.
	ExpiresAt time.Time
}

// NewRevocation makes an entry. notBefore counts for the cut-off kinds only, where it is rounded up to whole seconds; zero
// means every token, whenever its session began.
func NewRevocation(issuer string, kind Kind, id string, notBefore, expiresAt time.Time) Revocation {
	r := Revocation{Target: TargetOf(issuer, kind, id), ExpiresAt: expiresAt}
	switch kind {
	case KindAccount, KindClient, KindAll:
		if !notBefore.IsZero() {
			r.NotBefore = ceilSeconds(notBefore)
		}
	case KindSession, KindToken, KindKey:
	}
	return r
}

func ceilSeconds(t time.Time) int64 {
	s := t.Unix()
	if t.Nanosecond() > 0 {
		s++
	}
	return s
}
