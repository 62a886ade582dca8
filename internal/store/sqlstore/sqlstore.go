// Package sqlstore keeps everything of authsvc in SQL: accounts, clients, sessions, signing keys, the revocation log
// and the audit log. The engine is SQLite in one file, or PostgreSQL; one text of each statement serves both. The server and
// the command line open a database at the same time.
//
// SQLite: all writes of a process go through one goroutine with group commit: operations that wait together share one
// transaction, each in a savepoint of its own, and nobody is answered before COMMIT (synchronous=FULL). So one
// operation sees the whole effect of the one before it, a failed COMMIT fails all that shared it, and an answer means
// that the change survives a power cut. Reads run beside the writer on connections of their own.
//
// PostgreSQL: an operation is a transaction on a pooled connection, after the locks that make it as good as alone; see
// locks. The redemption of the newest refresh token is one statement, in one round trip.
//
// Times are unix microseconds, of the process's clock (Options.Now) with SQLite, and of the database's with PostgreSQL.
package sqlstore

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
)

// Memory as Options.Path is a private database in memory, for tests; it goes with Close.
const Memory = ":memory:"

// Options are what Open needs.
type Options struct {
	// Path of SQLite's file, or Memory. Open creates the file, not its folder, with mode 0600. Exactly one of Path and URL
	// is required.
	Path string
	// URL of a PostgreSQL database, without a password: see CheckURL.
	URL string
	// Password of the URL's user, if the server wants one.
	Password string
	// Now is SQLite's clock; time.Now if nil. PostgreSQL has its own.
	Now func() time.Time
	// Appended is called after each commit of this DB that appended to the revocation log, if it is there. It must not block.
	Appended func()
	// OpTimeout is the most that one call waits, whatever its context says; 5 s if zero.
	OpTimeout time.Duration

	driven    func() time.Time      // tests: what PostgreSQL takes for the time
	configure func(*pgxpool.Config) // tests: a look at the connections
	heardFor  time.Duration         // tests: instead of hearFor
	newest    int                   // tests: of which version a schema is made, instead of the newest
}

// Errors of Open and OpenExisting, for errors.Is.
var (
	// ErrNoDatabase: OpenExisting found no database at the path.
	ErrNoDatabase = errors.New("sqlstore: there is no database")
	// ErrNotOwner: the database belongs to another user; files made here would lock its owner out.
	ErrNotOwner = errors.New("sqlstore: the database belongs to another user")
	// ErrSchemaNewer: a newer version of the program has changed the schema so that this one may not run on it.
	ErrSchemaNewer = errors.New("sqlstore: the database's schema is newer than this program")
	// ErrSchemaOlder: the schema is older than any that this version of the program runs on.
	ErrSchemaOlder = errors.New("sqlstore: the database's schema is older than this program")
)

// DB is an open database. Its methods are safe for concurrent use.
type DB struct {
	now     func() time.Time
	timeout time.Duration
	words   *dialect
	memory  bool
	news    func() // Options.Appended, or nothing
	epoch   [16]byte
	renewed bool

	pg      *pool // nil for SQLite
	hearFor time.Duration
	// SQLite has what follows.

	w       *writer
	readers *readers // nil in memory: reads go through the writer
	watch   *watcher // nil in memory

	closing sync.Once
	commits atomic.Int64 // of this process; the change marker of a database in memory
	seen    atomic.Int64
}

// Open opens the database to serve from it, and creates it where there is none. The schema of an SQLite file is brought up to
// date but for what Fill then fills in; that of PostgreSQL is left to Migrator, and may be the one before this program's, or
// a newer one that says so (else ErrSchemaOlder, ErrSchemaNewer). Open starts the writer's goroutine, which Close ends;
// nothing else runs in the background. Whoever keeps a PostgreSQL database open has a revocation.Log read it: after a restart
// or a failover of the server nothing is answered before that has settled.
func Open(ctx context.Context, o Options) (*DB, error) { return open(ctx, o, true) }

// OpenExisting opens a database for a command beside a running server. It creates and migrates nothing, and refuses a
// file that belongs to another user (ErrNotOwner), and a database without a schema (ErrNoDatabase) or with one that this program
// does not run on (ErrSchemaNewer, ErrSchemaOlder).
func OpenExisting(ctx context.Context, o Options) (*DB, error) { return open(ctx, o, false) }

func open(ctx context.Context, o Options, create bool) (*DB, error) {
	if (o.Path == "") == (o.URL == "") {
		return nil, errors.New("sqlstore: exactly one of Path and URL is required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.OpTimeout <= 0 {
		o.OpTimeout = 5 * time.Second
	}
	db := &DB{now: o.Now, timeout: o.OpTimeout, memory: o.Path == Memory, hearFor: cmp.Or(o.heardFor, hearFor), news: o.Appended}
	if db.news == nil {
		db.news = func() {}
	}
	var err error
	if db.words, err = words(o); err != nil {
		return nil, err
	}
	if o.URL != "" {
		if err := db.openPool(ctx, o, create); err != nil {
			db.pg.close()
			return nil, err
		}
		return db, nil
	}
	if err := db.openFile(ctx, o, create); err != nil {
		return nil, err
	}
	return db, nil
}

func (db *DB) openFile(ctx context.Context, o Options, create bool) error {
	if err := prepareFile(o.Path, create); err != nil {
		return err
	}
	source, err := sql.Open("sqlite", dsn(o.Path, o.OpTimeout, true))
	if err != nil {
		return fmt.Errorf("sqlstore: %w", err)
	}
	source.SetMaxOpenConns(1)
	db.w = newWriter(db, source)
	if err := db.start(ctx, create); err != nil {
		_ = source.Close()
		return fmt.Errorf("%w (%s)", err, o.Path)
	}
	if !db.memory {
		if db.readers, err = openReaders(dsn(o.Path, o.OpTimeout, false), db.words); err == nil {
			db.watch, err = openWatcher(dsn(o.Path, o.OpTimeout, false))
		}
		if err != nil {
			_ = db.readers.close()
			_ = source.Close()
			return err
		}
	}
	go db.w.run()
	return nil
}

// start connects SQLite's writer and settles the schema.
func (db *DB) start(ctx context.Context, migrating bool) error {
	t, err := db.w.connect(ctx)
	if err != nil {
		return fmt.Errorf("sqlstore: open: %w", err)
	}
	t.now = micros(db.instant())
	if err := db.settle(ctx, t, migrating); err != nil {
		return err
	}
	// From here on a locked database is met with our own bounded, jittered retry; see writer.begin.
	_, err = t.exec(`PRAGMA busy_timeout = 20`)
	return err
}

// settle brings the schema up to date or checks it, and reads the epoch.
func (db *DB) settle(ctx context.Context, m migrator, migrating bool) error {
	if err := db.words.migrate(ctx, m, migrating); err != nil {
		return err
	}
	var epoch []byte
	if err := m.once(`SELECT epoch FROM installation`).Scan(&epoch); err != nil {
		return fmt.Errorf("sqlstore: read the installation's row: %w", err)
	}
	if copy(db.epoch[:], epoch) != len(db.epoch) {
		return errors.New("sqlstore: the installation's epoch is malformed")
	}
	return nil
}

// Close lets the operations that have been accepted finish, stops the writer and closes the file.
func (db *DB) Close() error {
	var err error
	db.closing.Do(func() {
		if db.pg != nil {
			db.pg.close()
			return
		}
		close(db.w.quit)
		<-db.w.stopped
		err = errors.Join(db.readers.close(), db.watch.close(), db.w.close())
	})
	return err
}

// Ping reports whether the database answers.
func (db *DB) Ping(ctx context.Context) error {
	_, err := view(ctx, db, func(q queries) (int, error) {
		var one int
		return one, q.row(`SELECT only_row FROM installation`).Scan(&one)
	})
	return err
}

// Connections are those that operations share; the one of the revocation log is not among them.
type Connections struct {
	Used, Idle, Most int
	Waits            int64 // operations that found none idle, since the start
}

// Connections gives their number now; false with SQLite, which has one writer.
func (db *DB) Connections() (Connections, bool) {
	if db.pg == nil {
		return Connections{}, false
	}
	s := db.pg.source.Stat()
	return Connections{Used: int(s.AcquiredConns()), Idle: int(s.IdleConns()), Most: int(s.MaxConns()), Waits: s.EmptyAcquireCount()}, true
}

// TailEvery is how often Revocations().Changed is to be asked: SQLite answers from its own memory, PostgreSQL by a round trip.
func (db *DB) TailEvery() time.Duration {
	if db.pg != nil {
		return 250 * time.Millisecond
	}
	return 20 * time.Millisecond
}

// Epoch is the random id of the database's history, as it was when the database was opened.
func (db *DB) Epoch() [16]byte { return db.epoch }

// Renewed reports that Open found another history of the database than the one that servers had worked on, as a failover or a restore
// leaves it, before anybody else did.
func (db *DB) Renewed() bool { return db.renewed }

// Accounts gives the store of accounts.
func (db *DB) Accounts() account.Store { return accounts{db} }

// Clients gives the store of clients.
func (db *DB) Clients() client.Store { return clients{db} }

// Sessions gives the store of sessions.
func (db *DB) Sessions() session.Store { return sessions{db} }

// Keys gives the store of signing keys.
func (db *DB) Keys() keys.Store { return signingKeys{db} }

// Revocations gives the revocation log.
func (db *DB) Revocations() revocation.Store { return revocations{db} }

// Hints tells of what any process appends to the revocation log, as soon as it is committed; nil for SQLite, where a look
// at the log costs no more than a hint would.
func (db *DB) Hints() revocation.Hints {
	if db.pg == nil {
		return nil
	}
	return &listener{p: db.pg, hearFor: db.hearFor}
}

// Instances gives the store of the servers that run.
func (db *DB) Instances() instance.Store { return instances{db} }

// Audit gives the audit log.
func (db *DB) Audit() audit.Store { return auditLog{db} }
