package sqlstore_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
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

// Nobody ran while the database became another server's: the first that opens it says so.
func TestWhoOpensAnotherHistoryFirstKnowsIt(t *testing.T) {
	t.Parallel()
	url := schema(t)
	first := open(t, sqlstore.Options{URL: url, Password: pgtest.Password})
	if first.Renewed() {
		t.Error("the twin: an empty database has another history")
	}
	for _, change := range []string{`UPDATE installation SET lineage = ''`, `UPDATE installation SET lineage = '7/1/16384'`} {
		if err := first.Exec(t.Context(), change); err != nil {
			t.Fatal(err)
		}
		another := strings.Contains(change, "7/1")
		for i := range 2 {
			db := open(t, sqlstore.Options{URL: url, Password: pgtest.Password})
			if renewed := db.Renewed(); renewed != (another && i == 0) || another != (db.Epoch() != first.Epoch()) {
				t.Errorf("after %q, opened for time %d: renewed %v, epoch %x, and it was %x", change, i+1, renewed, db.Epoch(), first.Epoch())
			}
			all, err := db.Audit().List(t.Context(), audit.Filter{Event: revocation.EventHistory}, 0, 10)
			if epoch := first.Epoch(); err != nil || (len(all) == 1) != another || another && (all[0].Subject != fmt.Sprintf("%x", epoch) || !strings.HasSuffix(all[0].Reason, " after 7/1/16384")) {
				t.Errorf("after %q the audit log has %+v, %v", change, all, err)
			}
		}
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
		"a schema that is newer":    {made(`INSERT INTO schema_steps (version, step) VALUES (99, 0); UPDATE schema_version SET version = 99`), pgtest.Password, sqlstore.ErrSchemaNewer.Error()},
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
		"an older schema":       {made(`DROP TABLE schema_steps; UPDATE schema_version SET version = 1`), sqlstore.ErrSchemaOlder},
		"a newer schema":        {made(`INSERT INTO schema_steps (version, step) VALUES (99, 0); UPDATE schema_version SET version = 99`), sqlstore.ErrSchemaNewer},
		"the twin: it is there": {made(""), nil},
	} {
		if err := existing(c.url); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func TestThereIsOneDatabase(t *testing.T) {
	t.Parallel()
	for _, o := range []sqlstore.Options{{}, {Path: sqlstore.Memory, URL: "postgres://127.0.0.1/x"}} {
		if _, err := sqlstore.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "exactly one of Path and URL") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	open(t, sqlstore.Options{Path: sqlstore.Memory}) // the twin
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
		"postgres://authsvc@127.0.0.1/authsvc?pool_max_conns=4":                                           "",
		"postgres://authsvc@127.0.0.1/authsvc?pool_max_conns=3":                                           "pool_max_conns is 3: a server needs at least 4",
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

// TestPostgreSQLOverTLS gives the server a certificate for localhost.
func TestPostgreSQLOverTLS(t *testing.T) {
	t.Parallel()
	schema(t) // skips where there is no PostgreSQL
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}, IsCA: true,
		BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"cert": certificate, "key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})} {
		path, err := server.Put(name+".pem", content)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := server.SQL(t.Context(), "postgres", `ALTER SYSTEM SET ssl_`+name+`_file = '`+path+`'`); err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range []string{`ALTER SYSTEM SET ssl = on`, `SELECT pg_reload_conf()`} {
		if _, err := server.SQL(t.Context(), "postgres", q); err != nil {
			t.Fatal(err)
		}
	}
	verified := func(host string, more ...string) string {
		url := strings.Replace(server.URL("postgres", append(more, "search_path="+made(t))...), "sslmode=disable", "sslmode=verify-full", 1)
		return strings.Replace(url, "127.0.0.1", host, 1)
	}
	try := func(url string) error {
		db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: url, Password: pgtest.Password})
		if err == nil {
			err = db.Close()
		}
		return err
	}
	until(t, "the server speaks TLS", func() bool { return try(verified("localhost", "sslrootcert="+ca)) == nil })
	for url, want := range map[string]string{
		verified("localhost"):                      "database.url: the certificate of localhost",
		verified("127.0.0.1", "sslrootcert="+ca):   "is for other names",
		verified("localhost", "sslrootcert=/none"): "database.url: cannot be used",
	} {
		if err := try(url); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
}

// made gives the name of an empty schema.
func made(t *testing.T) string {
	t.Helper()
	_, name, _ := strings.Cut(schema(t), "search_path=")
	return name
}

func TestD20TextThatPostgreSQLCannotHoldIsAFieldRefused(t *testing.T) {
	t.Parallel()
	f := undriven(t, sqlstore.Options{URL: schema(t)})
	for _, text := range []string{"a\x00b", "\xff\xfe"} {
		_, listing := f.Accounts().List(t.Context(), text, 10)
		for what, err := range map[string]error{"a page": listing,
			"a state": f.Accounts().SetState(t.Context(), ids.Account(text), 1, account.Disabled, journal.Journal{})} {
			if fault.From(err).Kind != fault.Invalid {
				t.Errorf("%s for %q: %v", what, text, err)
			}
		}
	}
	if _, err := f.Accounts().List(t.Context(), "a", 10); err != nil {
		t.Error(err)
	}
}
