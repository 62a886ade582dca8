package sqlstore_test

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// TestD10AUsedUpPoolIsADeadlineAndNotReady takes every connection that reads: calls end with their deadline, readiness
// (which asks Ping) goes off, what writes goes on, and all is well once a connection is free.
func TestD10AUsedUpPoolIsADeadlineAndNotReady(t *testing.T) {
	t.Parallel()
	db := hasty(t, sqlstore.Options{Path: filepath.Join(t.TempDir(), "db")}, 300*time.Millisecond)
	release, err := db.HoldReaders(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, db.Ping(t.Context()))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			_, err := db.Revocations().Tail(t.Context(), 0)
			wantUnavailable(t, err)
		})
	}
	wg.Wait() // nobody hangs
	until(t, "something is written, which has a connection of its own", func() bool { return db.Revocations().Append(t.Context(), revoke("t")) == nil })
	release()
	until(t, "with free connections it is ready", func() bool { return db.Ping(t.Context()) == nil })
}
