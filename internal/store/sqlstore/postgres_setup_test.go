package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

// server is PostgreSQL for all tests of the package; nil where the machine has none.
var server *pgtest.Server

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		server, err = pgtest.Start(context.Background())
		if errors.Is(err, pgtest.ErrMissing) {
			return m.Run()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() {
			if err := server.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
		return m.Run()
	}())
}

// schema gives the URL of an empty schema. Without a server the test is skipped, except where everything is required.
func schema(t *testing.T, more ...string) string {
	t.Helper()
	if server == nil {
		if os.Getenv("AUTHSVC_TEST_REQUIRE") != "" {
			t.Fatal(pgtest.ErrMissing)
		}
		t.Skip(pgtest.ErrMissing)
	}
	url, err := server.Schema(t.Context(), more...)
	if err != nil {
		t.Fatal(err)
	}
	return url
}

func TestStoreInPostgreSQL(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Stores {
		clock := storetest.NewClock()
		o := sqlstore.Options{URL: schema(t), Password: pgtest.Password, OpTimeout: time.Minute}
		db := open(t, sqlstore.Driven(o, clock.Now))
		return storetest.Stores{Accounts: db.Accounts(), Clients: db.Clients(), Sessions: db.Sessions(), Keys: db.Keys(),
			Revocations: db.Revocations(), Audit: db.Audit(), Clock: clock, Shared: true}
	})
}
