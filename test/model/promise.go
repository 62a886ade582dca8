package model

import (
	"errors"
	"fmt"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// hit gives a row that lives and hits a token.
func hit(rows []Row, token int) *Row {
	for i := range rows {
		if r := &rows[i]; r.hits&(1<<token) != 0 && r.ExpiresAt.After(time.Now()) {
			return r
		}
	}
	return nil
}

// check asks every verifier for every token, and holds the answers against the log.
func (w *world) check() error {
	rows, history := w.db.truth()
	for v, s := range w.seats {
		if !s.clock.since.IsZero() {
			continue // nobody is there to be asked
		}
		age := s.Age()
		if age >= 0 {
			date := time.Now().Add(-age)
			if date.Before(s.date) {
				return fmt.Errorf("the date of v%d went back by %v", v, s.date.Sub(date))
			}
			s.date = date
		}
		for i := range w.tokens {
			var err error
			switch verdict := s.Check(&w.tokens[i]); {
			case verdict == nil:
				err = w.accepted(s, i, age, rows)
			case errors.Is(verdict, verify.ErrRevoked):
				err = w.refused(s, i, history)
			case errors.Is(verdict, verify.ErrNotReady), errors.Is(verdict, verify.ErrStale):
				w.seen.Unready++
			default:
				err = fmt.Errorf("it says %w", verdict)
			}
			if err != nil {
				return fmt.Errorf("v%d, token %d, age %v: %w", v, i, age, err)
			}
		}
	}
	return nil
}

func (w *world) accepted(s *seat, token int, age time.Duration, rows []Row) error {
	now := time.Now()
	if w.seen.Accepts++; age > 5*time.Second {
		w.seen.Old++
	}
	switch {
	case !s.whole:
		return errors.New("it was let pass before any snapshot was whole")
	case age < 0 || age > Limit:
		return errors.New("it was let pass beyond the limit")
	case s.until[token].After(now):
		return errors.New("a verdict was taken back")
	}
	for i := range rows {
		r := &rows[i]
		if r.hits&(1<<token) != 0 && r.ExpiresAt.After(now) && r.committed.Before(now.Add(-age)) {
			return fmt.Errorf("it was let pass, but had been revoked %v before", now.Sub(r.committed))
		}
	}
	return nil
}

// refused notes until when a refusal must stand: the first expiry of all that may be its reason.
func (w *world) refused(s *seat, token int, history []Row) error {
	w.seen.Refusals++
	now := time.Now()
	var first time.Time
	for i := range history {
		if r := &history[i]; r.hits&(1<<token) != 0 && (first.IsZero() || r.ExpiresAt.Before(first)) {
			first = r.ExpiresAt
		}
	}
	switch {
	case first.IsZero():
		return errors.New("it was refused, but never revoked")
	case first.After(now): // else an entry that has expired may be the reason
		s.until[token] = first
	}
	return nil
}
