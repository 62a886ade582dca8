package sqlstore_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

func TestD14ThreeReplicasMayBeginOnAnEmptyDatabaseTogether(t *testing.T) {
	t.Parallel()
	url := schema(t)
	var epochs [3][16]byte
	var wg sync.WaitGroup
	for i := range epochs {
		wg.Go(func() {
			db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Password: pgtest.Password})
			if err != nil {
				t.Error(err)
				return
			}
			epochs[i] = db.Epoch()
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if epochs[0] != epochs[1] || epochs[0] != epochs[2] || epochs[0] == [16]byte{} {
		t.Fatal("two histories of one database")
	}
}

func TestOpenPostgreSQLSaysWhichSettingIsWrong(t *testing.T) {
	t.Parallel()
	made := func(change string) string {
		url := schema(t)
		db := open(t, sqlstore.Options{URL: url, Password: pgtest.Password})
		if change != "" {
			if err := db.Exec(t.Context(), change); err != nil {
				t.Fatal(err)
			}
		}
		return url
	}
	at := func(from, to string) string { return strings.Replace(server.URL("postgres"), from, to, 1) }
	port := fmt.Sprint(":", server.Port)
	if _, err := server.SQL(t.Context(), "postgres", `CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0`); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		url, password, want string
	}{
		"a wrong password":          {schema(t), "guess", "database.password_file: "},
		"no password":               {schema(t), "", "database.password_file: "},
		"a wrong user":              {at("postgres@", "nobody@"), pgtest.Password, `database.password_file: `},
		"a wrong database":          {server.URL("none"), pgtest.Password, `database.url: there is no database "none"`},
		"a wrong port":              {at(port, ":1"), pgtest.Password, "database.url: cannot reach 127.0.0.1:1"},
		"a schema that is not":      {server.URL("postgres", "search_path=none"), pgtest.Password, "database.url: there is no schema"},
		"another encoding":          {server.URL("latin"), pgtest.Password, "encoding is LATIN1"},
		"a database that is read":   {schema(t, "default_transaction_read_only=on"), pgtest.Password, "is a standby, or read-only"},
		"commits that are not kept": {schema(t, "synchronous_commit=off"), pgtest.Password, "synchronous_commit is off"},
		"no URL":                    {"host=127.0.0.1", pgtest.Password, "database.url: must be a URL"},
		"a password in the URL":     {at("postgres@", "postgres:guess@"), "", "database.password_file"},
		"a schema that is newer":    {made(`UPDATE schema_version SET version = version + 1`), pgtest.Password, sqlstore.ErrSchemaNewer.Error()},
	} {
		db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: c.url, Password: c.password, OpTimeout: 10 * time.Second})
		if err == nil {
			_ = db.Close()
			t.Errorf("%s was opened", name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; it does not say %q", name, err, c.want)
		}
		if strings.Contains(err.Error(), "guess") || strings.Contains(err.Error(), pgtest.Password) {
			t.Errorf("%s: the password is in %v", name, err)
		}
	}
	existing := func(url string) error {
		db, err := sqlstore.OpenExisting(t.Context(), sqlstore.Options{URL: url, Password: pgtest.Password})
		if err == nil {
			err = db.Close()
		}
		return err
	}
	for name, c := range map[string]struct {
		url  string
		want error
	}{
		"an empty schema":       {schema(t), sqlstore.ErrNoDatabase},
		"an older schema":       {made(`UPDATE schema_version SET version = version - 1`), sqlstore.ErrSchemaOlder},
		"a newer schema":        {made(`UPDATE schema_version SET version = version + 1`), sqlstore.ErrSchemaNewer},
		"the twin: it is there": {made(""), nil},
	} {
		if err := existing(c.url); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://authsvc@db.example.com/authsvc?sslmode=verify-full":                                   "",
		"postgresql://authsvc@db.example.com:6432/authsvc?sslmode=verify-full&pool_max_conns=7":           "",
		"postgres://authsvc@127.0.0.1/authsvc":                                                            "",
		"postgres://authsvc@[::1]/authsvc?sslmode=disable":                                                "",
		"postgres://authsvc@localhost/authsvc":                                                            "",
		"postgres:///authsvc?host=/run/postgresql":                                                        "",
		"postgres://a@one.example.com,two.example.com/x?sslmode=verify-full&target_session_attrs=primary": "",
		"postgres://authsvc@db.example.com/authsvc":                                                       "must say sslmode=verify-full",
		"postgres://authsvc@db.example.com/authsvc?sslmode=disable":                                       "must say sslmode=verify-full",
		"postgres://authsvc@db.example.com/authsvc?sslmode=require":                                       "must say sslmode=verify-full",
		"postgres://authsvc@db.example.com/authsvc?sslmode=verify-ca":                                     "must say sslmode=verify-full",
		"postgres://authsvc@127.0.0.1,db.example.com/authsvc?sslmode=prefer":                              "db.example.com is neither",
		"postgres://authsvc@127.0.0.1/authsvc?target_session_attrs=any":                                   "target_session_attrs",
		"postgres://authsvc:geheim@127.0.0.1/authsvc":                                                     "holds a password",
		"postgres://authsvc@127.0.0.1/authsvc?password=geheim":                                            "holds a password",
		"postgres://authsvc@127.0.0.1/authsvc?pool_max_conns=none":                                        "cannot be used",
		"mysql://127.0.0.1/authsvc":                                                                       "must be a URL",
		"host=127.0.0.1 password=geheim":                                                                  "must be a URL",
	} {
		err := sqlstore.CheckURL(url)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "geheim") {
			t.Errorf("the password is in %v", err)
		}
	}
}

func TestClosedPostgreSQLIsUnavailable(t *testing.T) {
	t.Parallel()
	db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: schema(t), Password: pgtest.Password})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
	wantUnavailable(t, db.Revocations().Append(t.Context(), revoke("t")))
	wantUnavailable(t, db.Ping(t.Context()))
}
