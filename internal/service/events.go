package service

import (
	"slices"
	"strings"

	"github.com/authsvc/authsvc/internal/fault"
)

// Events counts what the core did, by outcome; the outcome is "ok" or the reason of the fault in lower case, so its
// cardinality is that of the closed list of reasons.
type Events interface {
	Login(outcome string)
	Refresh(outcome string)
	Revoke(kind string)
	Introspect(outcome string, n int)
}

func outcome(err error) string {
	if err == nil {
		return "ok"
	}
	return strings.ToLower(string(fault.From(err).Reason))
}

func contains(all []string, one string) bool { return slices.Contains(all, one) }

func joinScope(words []string) string { return strings.Join(words, " ") }
