package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"strings"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/authsvc/authsvc/internal/fault"
)

// unavailable says that nothing was decided, as far as the caller may know.
func unavailable(err error) error {
	return fault.Wrap(err, fault.Unavailable, fault.StoreUnavailable, "the database did not answer in time")
}

// translate gives the fault for what the engine said. Faults pass; what nobody foresaw stays as it is, and is Internal.
func translate(err error) error {
	var f *fault.Error
	switch {
	case err == nil || errors.As(err, &f):
		return err
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, sql.ErrConnDone),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), unreachable(err):
		return unavailable(err)
	case illegible(err): // SQLite looks for it, and finds nothing
		return fault.Field("text", "must be UTF-8 without NUL")
	}
	switch code(err) & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM,
		sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PROTOCOL:
		return unavailable(err)
	}
	return err
}

// code gives the engine's extended result code, or zero.
func code(err error) int {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return 0
	}
	return e.Code()
}

// busy reports whether another connection holds the lock.
func busy(err error) bool {
	c := code(err) & 0xff
	return c == sqlite3.SQLITE_BUSY || c == sqlite3.SQLITE_LOCKED
}

// taken reports whether a unique name or id is in use.
func taken(err error) bool {
	c := code(err)
	return duplicate(err) || c == sqlite3.SQLITE_CONSTRAINT_UNIQUE || c == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// noTransaction reports that a ROLLBACK found nothing to roll back: the engine had done it already.
func noTransaction(err error) bool {
	return code(err)&0xff == sqlite3.SQLITE_ERROR && strings.Contains(err.Error(), "no transaction is active")
}

// oneRow tells a condition that did not hold from one that did.
func oneRow(n int64, err error, otherwise error) error {
	if err != nil {
		return err
	}
	if n == 0 {
		return otherwise
	}
	return nil
}

func conflict(what string) error {
	return fault.New(fault.Conflict, fault.VersionConflict, what+" changed in the meantime")
}
