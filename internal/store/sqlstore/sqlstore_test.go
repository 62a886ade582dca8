package sqlstore_test

import (
	"cmp"
	"path/filepath"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

func TestStoreInAFile(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Stores {
		return stores(t, filepath.Join(t.TempDir(), "it's 100% a ?db#1.sqlite"))
	})
}

func TestStoreInMemory(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Stores { return stores(t, sqlstore.Memory) })
}

// hasty opens a database that is there for calls that shall not be answered, and so wait for a short while alone. A busy machine may not
// open it within that at once.
func hasty(t *testing.T, o sqlstore.Options, wait time.Duration) (db *sqlstore.DB) {
	t.Helper()
	o.OpTimeout = wait
	until(t, "the database is opened", func() bool {
		var err error
		if db, err = sqlstore.Open(t.Context(), o); err != nil && fault.From(err).Kind != fault.Unavailable {
			t.Fatal(err)
		}
		return err == nil
	})
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func stores(t *testing.T, path string) storetest.Stores {
	t.Helper()
	clock := storetest.NewClock()
	// The suite is about what a store does, not about how fast a machine is that runs a dozen of them with the race detector.
	db := open(t, sqlstore.Options{Path: path, Now: clock.Now, OpTimeout: time.Minute})
	return storetest.Stores{Accounts: db.Accounts(), Clients: db.Clients(), Sessions: db.Sessions(), Keys: db.Keys(),
		Revocations: db.Revocations(), Audit: db.Audit(), Instances: db.Instances(), Clock: clock}
}

// open opens a store whose calls take a busy machine as long as they do, where a test does not say how long.
func open(t *testing.T, o sqlstore.Options) *sqlstore.DB {
	t.Helper()
	o.OpTimeout = cmp.Or(o.OpTimeout, time.Minute)
	db, err := sqlstore.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}
