package service

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
)

// Sessions lets a person see and end their own sessions. Another's does not exist for them.
type Sessions struct {
	store session.Store
	tail  tail
}

// NewSessions makes the use cases.
func NewSessions(store session.Store, t tail) (*Sessions, error) {
	if store == nil || t == nil {
		return nil, missing("session store or tail")
	}
	return &Sessions{store: store, tail: t}, nil
}

// Page sizes of List.
const (
	DefaultPage = 50
	MaxPage     = 200
)

// List gives the caller's live sessions, newest first, and the token of the next page, empty at the end. A size of zero is
// DefaultPage, one beyond MaxPage is MaxPage; a negative one, and a token of another account's list, are FIELD_INVALID.
func (s *Sessions) List(ctx context.Context, caller Caller, size int32, pageToken string) ([]session.Session, string, error) {
	switch {
	case size < 0:
		return nil, "", fault.Field("page_size", "must not be negative")
	case size == 0:
		size = DefaultPage
	case size > MaxPage:
		size = MaxPage
	}
	after, err := parseCursor(caller.Subject, pageToken)
	if err != nil {
		return nil, "", err
	}
	list, err := s.store.List(ctx, caller.Subject, after, int(size)+1)
	if err != nil || len(list) <= int(size) {
		return list, "", err
	}
	list = list[:size]
	last := list[size-1]
	return list, formatCursor(caller.Subject, session.Cursor{CreatedAt: last.CreatedAt, ID: last.ID}), nil
}

// Revoke ends one session of the caller's; another's and an unknown one are SESSION_NOT_FOUND, and one that
// has ended stays so without an error.
func (s *Sessions) Revoke(ctx context.Context, caller Caller, id ids.Session) error {
	if _, err := ids.Bytes(id); err != nil {
		return fault.Field("session_id", "not a session id")
	}
	_, err := s.end(ctx, caller.Subject, journal.Journal{
		Ends:  []journal.End{{Session: id, Reason: journal.EndedByLogout}},
		Audit: []journal.Record{caller.record("session.revoke", "ok", journal.EndedByLogout, string(id))},
	})
	return err
}

// RevokeAll ends the caller's sessions, the current one included unless exceptCurrent, and gives how many were live.
func (s *Sessions) RevokeAll(ctx context.Context, caller Caller, exceptCurrent bool) (int, error) {
	end := journal.End{Account: caller.Subject, Reason: journal.EndedByLogout}
	if exceptCurrent {
		end.Except = caller.Session
	}
	return s.end(ctx, "", journal.Journal{
		Ends:  []journal.End{end},
		Audit: []journal.Record{caller.record("session.revoke_all", "ok", journal.EndedByLogout, string(caller.Subject))},
	})
}

func (s *Sessions) end(ctx context.Context, owner ids.Account, j journal.Journal) (int, error) {
	ctx, cancel := detached(ctx)
	defer cancel()
	n, err := s.store.End(ctx, owner, j)
	if err != nil {
		return 0, err
	}
	return n, s.tail.CatchUp(ctx)
}

// A page token is 8 bytes of microseconds, 16 of the id, and 8 that tie them to the account. It carries no authority, since the
// account is the caller's in any case: the tie makes another account's token an error instead of a page that skips sessions.
const (
	cursorSize = 8 + 16
	tieSize    = 8
)

func formatCursor(account ids.Account, c session.Cursor) string {
	id, err := ids.Bytes(c.ID)
	if err != nil {
		return ""
	}
	raw := append(binary.BigEndian.AppendUint64(nil, uint64(c.CreatedAt.UnixMicro())), id[:]...)
	return base64.RawURLEncoding.EncodeToString(append(raw, tie(account, raw)...))
}

func tie(account ids.Account, cursor []byte) []byte {
	sum := sha256.Sum256(slices.Concat([]byte("authsvc page token\x00"), []byte(account), []byte{0}, cursor))
	return sum[:tieSize]
}

func parseCursor(account ids.Account, s string) (session.Cursor, error) {
	if s == "" {
		return session.Cursor{}, nil
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(raw) != cursorSize+tieSize || !bytes.Equal(tie(account, raw[:cursorSize]), raw[cursorSize:]) || raw[0]&0x80 != 0 {
		return session.Cursor{}, fault.Field("page_token", "is not one that an earlier page of this list gave; leave it out to begin anew")
	}
	at := time.UnixMicro(int64(binary.BigEndian.Uint64(raw[:8])))
	return session.Cursor{CreatedAt: at, ID: ids.From[ids.Session]([16]byte(raw[8:cursorSize]))}, nil
}
