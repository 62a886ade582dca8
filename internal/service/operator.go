package service

import (
	"context"
	"strconv"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
)

// Operator is the caller behind the command line: whoever may write the database, by the uid of the operating system. The
// audit log names them "operator:<uid>".
func Operator(uid int) Caller { return Caller{Subject: ids.Account("operator:" + strconv.Itoa(uid))} }

// Revocations holds what an operator ends, whoever it belongs to.
type Revocations struct {
	sessions session.Store
	clients  client.Store
	log      revocation.Store
	tail     tail
}

// NewRevocations makes the use cases.
func NewRevocations(sessions session.Store, clients client.Store, log revocation.Store, t tail) (*Revocations, error) {
	if sessions == nil || clients == nil || log == nil || t == nil {
		return nil, missing("a revocation option")
	}
	return &Revocations{sessions: sessions, clients: clients, log: log, tail: t}, nil
}

// Session ends one session. One whose row is not there (never was, or is in a backup's future) gets its entry in the
// revocation log all the same, since its access tokens may live; known says which it was.
func (s *Revocations) Session(ctx context.Context, caller Caller, id ids.Session) (known bool, err error) {
	if _, err := ids.Bytes(id); err != nil {
		return false, fault.Field("sid", "is not a session id: 22 characters of base64url")
	}
	j := revoked(caller, "session", string(id))
	_, _, _, err = s.sessions.Get(ctx, id)
	switch {
	case err == nil:
		j.Ends = []journal.End{{Session: id, Reason: journal.EndedByOperator}}
	case fault.From(err).Kind == fault.NotFound:
		j.Revokes = []journal.Revocation{{Kind: journal.KindSession, ID: string(id)}}
	default:
		return false, err
	}
	_, endErr := s.end(ctx, j)
	return err == nil, endErr
}

// Subject cuts off whatever an account's sessions began until now, and gives how many live sessions that ended. An account
// that is gone is no error: its tokens may live.
func (s *Revocations) Subject(ctx context.Context, caller Caller, id ids.Account) (int, error) {
	if _, err := ids.Bytes(id); err != nil {
		return 0, fault.Field("sub", "is not an account id: 22 characters of base64url, as account show gives it")
	}
	j := revoked(caller, "subject", string(id))
	j.Ends = []journal.End{{Account: id, Reason: journal.EndedByOperator}}
	return s.end(ctx, j)
}

// Client cuts off every session and token of a client begun until now. A client that is gone is no error as long as the
// id is one that this service made.
func (s *Revocations) Client(ctx context.Context, caller Caller, id ids.Client) (int, error) {
	if _, malformed := ids.Bytes(id); malformed != nil {
		if _, err := s.clients.Get(ctx, id); err != nil {
			return 0, err
		}
	}
	j := revoked(caller, "client", string(id))
	j.Ends = []journal.End{{Client: id, Reason: journal.EndedByOperator}}
	return s.end(ctx, j)
}

// Token ends one access token, by its jti.
func (s *Revocations) Token(ctx context.Context, caller Caller, id ids.Token) error {
	if _, err := ids.Bytes(id); err != nil {
		return fault.Field("jti", "is not a token id: 22 characters of base64url")
	}
	j := revoked(caller, "token", string(id))
	j.Revokes = []journal.Revocation{{Kind: journal.KindToken, ID: string(id)}}
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := s.log.Append(ctx, j); err != nil {
		return err
	}
	return s.tail.CatchUp(ctx)
}

// Everything cuts off every session and every token of the installation begun until now.
func (s *Revocations) Everything(ctx context.Context, caller Caller) (int, error) {
	j := revoked(caller, "everything", "")
	j.Ends = []journal.End{{All: true, Reason: journal.EndedByOperator}}
	return s.end(ctx, j)
}

// EventRestore is the audit record that a backup has become the database; its subject is the epoch of the backup.
const EventRestore = "restore"

// Restored records that this database was a backup, and what of it was let live. Unless the sessions are kept, it cuts off every
// session and token, those too that began after the backup was made.
func (s *Revocations) Restored(ctx context.Context, caller Caller, epoch string, keepKeys, keepSessions bool) error {
	kept := "keys and sessions"
	switch {
	case !keepKeys && !keepSessions:
		kept = "nothing"
	case !keepKeys:
		kept = "sessions"
	case !keepSessions:
		kept = "keys"
	}
	j := journal.Journal{Audit: []journal.Record{caller.record(EventRestore, "ok", "kept "+kept, epoch)}}
	if !keepSessions {
		j.Ends = []journal.End{{All: true, Reason: journal.EndedByOperator}}
	}
	_, err := s.end(ctx, j)
	return err
}

func revoked(caller Caller, what, id string) journal.Journal {
	return journal.Journal{Audit: []journal.Record{caller.record("revoke."+what, "ok", journal.EndedByOperator, id)}}
}

func (s *Revocations) end(ctx context.Context, j journal.Journal) (int, error) {
	ctx, cancel := detached(ctx)
	defer cancel()
	n, err := s.sessions.End(ctx, "", j)
	if err != nil {
		return 0, err
	}
	return n, s.tail.CatchUp(ctx)
}
