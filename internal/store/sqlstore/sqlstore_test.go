package sqlstore_test

import (
	"path/filepath"
	"testing"
	"time"

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

func stores(t *testing.T, path string) storetest.Stores {
	t.Helper()
	clock := storetest.NewClock()
	// The suite is about what a store does, not about how fast a machine is that runs a dozen of them with the race detector.
	db := open(t, sqlstore.Options{Path: path, Now: clock.Now, OpTimeout: time.Minute})
	return storetest.Stores{Accounts: db.Accounts(), Clients: db.Clients(), Sessions: db.Sessions(), Keys: db.Keys(),
		Revocations: db.Revocations(), Audit: db.Audit(), Instances: db.Instances(), Clock: clock}
}

func open(t *testing.T, o sqlstore.Options) *sqlstore.DB {
	t.Helper()
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
