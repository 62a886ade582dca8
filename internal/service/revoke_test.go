package service_test

import (
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/service"
)

// TestADeadRefreshTokenIsRevokedWithoutATrace: a token outlives its session in the hands of whoever has it, and must not be
// a pen to fill the disk with.
func TestADeadRefreshTokenIsRevokedWithoutATrace(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	in := c.login(t, "ada")
	count := func() (records int, row int64) {
		all := must(c.db.Audit().List(t.Context(), audit.Filter{Event: "revoke"}, 0, 100))(t)
		if err := c.tail.CatchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
		return len(all), c.tail.Row()
	}
	for _, step := range []struct {
		name    string
		later   time.Duration
		records int
		appends bool // an entry of the log: an access token may live as long as that
	}{
		{"the twin: it ends the session", 0, 1, true},
		{"again at once", time.Second, 1, true},
		{"again after a minute", time.Minute, 1, true},
		{"once no access token of it can live", 20 * time.Minute, 1, false},
		{"and once more", time.Hour, 1, false},
	} {
		c.clock.advance(step.later)
		_, before := count()
		if _, err := c.tokens.Revoke(t.Context(), service.RevokeRequest{Token: in.RefreshToken}); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		records, after := count()
		if records != step.records || (after > before) != step.appends {
			t.Errorf("%s: %d audit records, the log went from %d to %d", step.name, records, before, after)
		}
	}
}
