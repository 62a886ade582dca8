package sqlstore_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authsvc/authsvc/internal/store/machine"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

// server is PostgreSQL for all tests of the package, nil where the machine has none; admin is its superuser's way in.
var (
	server  *pgtest.Server
	admin   *pgxpool.Pool
	schemas atomic.Int64
)

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
		c, err := pgxpool.ParseConfig(server.URL("postgres"))
		if err == nil {
			c.ConnConfig.Password = pgtest.Password
			admin, err = pgxpool.NewWithConfig(context.Background(), c)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer admin.Close()
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
	name := fmt.Sprint("s", schemas.Add(1))
	if _, err := admin.Exec(t.Context(), "CREATE SCHEMA "+name); err != nil {
		t.Fatal(err)
	}
	return server.URL("postgres", append([]string{"search_path=" + name}, more...)...)
}

// pulse is the machine's own clock, until the test ends.
func pulse(t *testing.T) *machine.Pulse {
	t.Helper()
	var p machine.Pulse
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return &p
}

func TestStoreInPostgreSQL(t *testing.T) {
	t.Parallel()
	storetest.Run(t, func(t *testing.T) storetest.Stores {
		clock := storetest.NewClock()
		o := sqlstore.Options{URL: schema(t), Password: pgtest.Password, OpTimeout: time.Minute}
		db := open(t, sqlstore.Driven(o, clock.Now))
		return storetest.Stores{Accounts: db.Accounts(), Clients: db.Clients(), Sessions: db.Sessions(), Keys: db.Keys(),
			Revocations: db.Revocations(), Audit: db.Audit(), Instances: db.Instances(), Clock: clock, Shared: true}
	})
}
