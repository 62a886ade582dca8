package sqlstore_test

import (
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// TestALogWhoseBackendIsStoppedIsReadByAnother stops, of a server of its own, the one process that answers the revocation log. The
// server takes connections, and answers every other one.
func TestALogWhoseBackendIsStoppedIsReadByAnother(t *testing.T) {
	t.Parallel()
	schema(t) // skips where there is no PostgreSQL
	mine, err := pgtest.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mine.Close(); err != nil {
			t.Error(err)
		}
	})
	here := undriven(t, sqlstore.Options{URL: mine.URL("postgres")})
	there := following(t, sqlstore.Options{URL: mine.URL("postgres", "application_name=followed")}, 20*time.Millisecond, false)
	var backend int
	until(t, "the log is read", func() bool {
		said := ask(t, mine, `SELECT pid FROM pg_stat_activity WHERE application_name = 'followed' AND query LIKE '%pg_current_snapshot%'`)
		backend, err = strconv.Atoi(said)
		return err == nil
	})
	if err := syscall.Kill(backend, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(backend, syscall.SIGCONT) }) // or the server would wait for it
	if err := here.Revocations().Append(t.Context(), revoke("meanwhile")); err != nil {
		t.Fatal(err)
	}
	// Until it is read by another, the lag says that it is not, beyond which nothing is answered without a read that begins after the
	// question. Such a read brings it, or fails.
	unknown := 0
	until(t, "it is read by another", func() bool {
		if lag := there.log.Lag(); lag > revocation.MaxLag {
			unknown++
			if err := there.log.CatchUp(t.Context()); err != nil {
				if fault.From(err).Kind != fault.Unavailable {
					t.Error(err)
				}
			} else if !there.refuses("meanwhile") {
				t.Error("it was read, and lacks what was committed before")
			}
		}
		return there.refuses("meanwhile")
	})
	if unknown == 0 {
		t.Error("a log that was not read had no lag")
	}
	until(t, "the lag is gone", func() bool { return there.log.Lag() < revocation.MaxLag })
}
