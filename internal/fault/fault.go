// Package fault owns the one error type that crosses rooms: what went wrong, in words that a caller may see, and a
// stable reason that a program may switch on. Each door has one exhaustive switch from Kind to its own codes. An error
// that is not a *Error is Internal: the caller gets a fixed text, the cause goes to the log once, at the door.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Kind is the class of a fault; the set is closed, and every door maps all of it.
type Kind int

// The kinds, and when each is right.
const (
	// Internal is everything that nobody foresaw.
	Internal Kind = iota
	// Invalid is input that can never succeed as sent.
	Invalid
	// Unauthenticated is a caller, or a credential, that proves nothing.
	Unauthenticated
	// Denied is a known caller who may not do this.
	Denied
	// NotFound is a thing that does not exist, or not for this caller.
	NotFound
	// Exists is a name that is taken.
	Exists
	// Conflict is a lost race on a version; reading again and retrying may succeed.
	Conflict
	// Precondition is a request that the present state forbids.
	Precondition
	// Limited is a request refused by a rate limit or shed under load; RetryAfter says when to come back.
	Limited
	// Unavailable is a dependency that did not answer; retrying may succeed, nothing was decided.
	Unavailable
)

// Error is a fault as a caller may see it.
type Error struct {
	Kind       Kind
	Reason     Reason
	Message    string // one sentence; never a secret, SQL, a host name or a stack
	Meta       map[string]string
	Violations []Violation   // for Invalid: which fields, and why
	RetryAfter time.Duration // for Limited and Unavailable: when to come back; zero if unknown
	Err        error         // the cause, for the log only
}

// Violation names one malformed field and says what it should be.
type Violation struct {
	Field       string
	Description string
}

// Error gives reason, message and cause, for logs and tests; doors send Message alone.
func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Reason, e.Message, e.Err)
	}
	return fmt.Sprintf("%s: %s", e.Reason, e.Message)
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is a fault with the same reason, so that errors.Is works across wrapping.
func (e *Error) Is(target error) bool {
	var t *Error
	return errors.As(target, &t) && t.Reason == e.Reason
}

// New makes a fault.
func New(kind Kind, reason Reason, message string) *Error {
	return &Error{Kind: kind, Reason: reason, Message: message}
}

// Wrap makes a fault with a cause that only the log sees.
func Wrap(err error, kind Kind, reason Reason, message string) *Error {
	return &Error{Kind: kind, Reason: reason, Message: message, Err: err}
}

// Field makes an Invalid fault about one field.
func Field(field, description string) *Error {
	return &Error{Kind: Invalid, Reason: FieldInvalid, Message: field + ": " + description,
		Violations: []Violation{{Field: field, Description: description}}}
}

// From gives the fault in err's chain, or an Internal one around err.
func From(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Kind: Internal, Reason: InternalError, Message: "internal error", Err: err}
}
