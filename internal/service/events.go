package service

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/authsvc/authsvc/internal/fault"
)

// Events counts what the core did, by outcome; the outcome is "ok", "cancelled" where the caller went away, or the reason
// of the fault in lower case, so its cardinality is that of the closed list of reasons.
type Events interface {
	Login(outcome string)
	Refresh(outcome string)
	Revoke(kind string)
	Introspect(outcome string, n int)
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, context.Canceled): // what the core itself does is bounded by deadlines, never cancelled
		return "cancelled"
	}
	return strings.ToLower(string(fault.From(err).Reason))
}

func contains(all []string, one string) bool { return slices.Contains(all, one) }

func joinScope(words []string) string { return strings.Join(words, " ") }
