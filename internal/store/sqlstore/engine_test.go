package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

func revoke(id string) journal.Journal {
	return journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: id}}}
}

func present(s session.Session, g uint32) session.Redeem {
	return session.Redeem{Session: s.ID, SecretHash: s.SecretHash, Generation: g, Client: s.Client, Window: 30 * time.Second}
}

func wantUnavailable(t *testing.T, err error) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.Unavailable || f.Reason != fault.StoreUnavailable {
		t.Fatalf("got %v, want STORE_UNAVAILABLE", err)
	}
}

// raw is another process, as far as the database can tell.
func raw(t *testing.T, path string) *sql.Conn {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		_ = db.Close()
	})
	return conn
}

func exec(t *testing.T, conn *sql.Conn, query string) {
	t.Helper()
	if _, err := conn.ExecContext(context.Background(), query); err != nil {
		t.Fatal(err)
	}
}

func TestFileIsCreatedForItsOwnerOnly(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	f := newFixture(t, path)
	f.login(t, t)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if mode := info.Mode().Perm(); mode != 0o600 {
			t.Errorf("mode of db%s is %o", suffix, mode)
		}
	}
}

func TestOpenExistingSaysWhyItRefuses(t *testing.T) {
	t.Parallel()
	existing := func(path string) error {
		db, err := sqlstore.OpenExisting(t.Context(), sqlstore.Options{Path: path})
		if err == nil {
			err = db.Close()
		}
		return err
	}
	made := func() string {
		path := filepath.Join(t.TempDir(), "db")
		db, err := sqlstore.Open(t.Context(), sqlstore.Options{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		return path
	}
	versioned := func(statements string) string {
		path := made()
		exec(t, raw(t, path), statements)
		return path
	}
	const newer, older = `INSERT INTO schema_steps (version, step) VALUES (99, 0); UPDATE schema_version SET version = 99`,
		`DROP TABLE schema_steps; UPDATE schema_version SET version = 1`
	foreign := "/etc/passwd" // root's, and the test is not root; or else given away
	if os.Geteuid() == 0 {
		foreign = made()
		if err := os.Chown(foreign, 4711, -1); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		path string
		want error
	}{
		"no file":                           {filepath.Join(t.TempDir(), "none"), sqlstore.ErrNoDatabase},
		"memory":                            {sqlstore.Memory, sqlstore.ErrNoDatabase},
		"a newer schema":                    {versioned(newer), sqlstore.ErrSchemaNewer},
		"a newer schema that only has more": {versioned(`INSERT INTO schema_steps (version, step) VALUES (99, 0)`), nil},
		"an older schema":                   {versioned(older), sqlstore.ErrSchemaOlder},
		"another user's":                    {foreign, sqlstore.ErrNotOwner},
		"the twin: it is ours":              {made(), nil},
	} {
		if err := existing(c.path); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if _, err := sqlstore.Open(t.Context(), sqlstore.Options{Path: versioned(newer)}); !errors.Is(err, sqlstore.ErrSchemaNewer) {
		t.Errorf("D17: Open of a newer schema: %v", err)
	}
	if _, err := os.Stat(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error("OpenExisting created a file")
	}
}

func TestAcknowledgedChangesSurviveWithoutAnyFarewell(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	f := newFixture(t, path)
	s := f.login(t, t)
	for i := range 20 {
		if err := f.Revocations().Append(t.Context(), revoke(fmt.Sprint("t", i))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Sessions().Redeem(t.Context(), present(s, 1)); err != nil {
		t.Fatal(err)
	}
	// What a killed process leaves: the file and its log, without a checkpoint.
	copied := filepath.Join(dir, "copy")
	for _, suffix := range []string{"", "-wal"} {
		b, err := os.ReadFile(path + suffix)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(copied+suffix, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, left := range []string{copied, path} {
		if left == path {
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		again := open(t, sqlstore.Options{Path: left, Now: f.clock.Now})
		if again.Epoch() != f.Epoch() {
			t.Error("another epoch")
		}
		page, err := again.Revocations().Tail(t.Context(), 0)
		if err != nil || len(page.Entries) != 20 {
			t.Fatal(len(page.Entries), err)
		}
		out, err := again.Sessions().Redeem(t.Context(), present(s, 1))
		if err != nil || out.Verdict != session.Issue || out.Session.Head != 2 {
			t.Fatal(out, err)
		}
		if check, err := again.Number(t.Context(), `SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'`); check != 0 || err != nil {
			t.Fatal(check, err)
		}
	}
}

func TestTwoProcessesShareAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	server := newFixture(t, path)
	command, err := sqlstore.OpenExisting(t.Context(), sqlstore.Options{Path: path, Now: server.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	defer command.Close()
	changed := func() bool {
		t.Helper()
		v, err := server.Revocations().Changed(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	changed()
	if changed() {
		t.Error("a change from nowhere")
	}
	if err := command.Revocations().Append(t.Context(), revoke("t")); err != nil {
		t.Fatal(err)
	}
	if !changed() {
		t.Error("the other process's commit went unseen")
	}
	s := server.login(t, t)
	var rotated [40]bool
	var wg sync.WaitGroup
	for i := range rotated {
		db := server.DB
		if i%2 == 1 {
			db = command
		}
		wg.Go(func() {
			out, err := db.Sessions().Redeem(t.Context(), present(s, 1))
			if err != nil || out.Verdict != session.Issue || out.Session.Head != 2 {
				t.Error(out.Verdict, out.Session.Head, err)
			}
			rotated[i] = out.Rotated
		})
	}
	wg.Wait()
	n := 0
	for _, r := range rotated {
		if r {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d rotations", n)
	}
}

func TestTwoProcessesMayCreateTheFileTogether(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	var epochs [8][16]byte
	var wg sync.WaitGroup
	for i := range epochs {
		wg.Go(func() {
			db, err := sqlstore.Open(t.Context(), sqlstore.Options{Path: path})
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
	for _, e := range epochs {
		if e != epochs[0] {
			t.Fatal("two histories of one file")
		}
	}
}

func TestD09ALockedDatabaseIsWaitedForAndThenUnavailable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	db := open(t, sqlstore.Options{Path: path})
	short := hasty(t, sqlstore.Options{Path: path}, 300*time.Millisecond)
	other := raw(t, path)
	exec(t, other, `BEGIN IMMEDIATE`)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { wantUnavailable(t, short.Revocations().Append(t.Context(), revoke("t"))) })
	}
	wg.Wait() // nobody hangs
	until(t, "reads go on", func() bool { return short.Ping(t.Context()) == nil })
	done := make(chan error, 1)
	go func() { done <- db.Revocations().Append(context.Background(), revoke("late")) }()
	exec(t, other, `COMMIT`)
	if err := <-done; err != nil {
		t.Errorf("the lock was released in time: %v", err)
	}
	page, err := db.Revocations().Tail(t.Context(), 0)
	if err != nil || len(page.Entries) != 1 {
		t.Errorf("a call that failed has written: %v %v", page.Entries, err)
	}
}

func TestD11AFullDiskFailsWritesAloneAndRecovers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, filepath.Join(t.TempDir(), "db"))
	s := f.login(t, t)
	pages, err := f.Number(t.Context(), `PRAGMA page_count`)
	if err != nil {
		t.Fatal(err)
	}
	limit := func(n int64) {
		t.Helper()
		if _, err := f.Number(t.Context(), fmt.Sprint(`PRAGMA max_page_count = `, n)); err != nil {
			t.Fatal(err)
		}
	}
	limit(pages)
	written := 0
	record := journal.Journal{Audit: []journal.Record{{Event: "e", Outcome: "ok", UserAgent: strings.Repeat("x", 3000)}}}
	for err = nil; err == nil; written++ {
		if written > 100 {
			t.Fatal("the disk does not fill")
		}
		err = f.Revocations().Append(t.Context(), record)
	}
	wantUnavailable(t, err)
	if _, _, _, err := f.Sessions().Get(t.Context(), s.ID); err != nil {
		t.Errorf("reads go on: %v", err)
	}
	var wg sync.WaitGroup
	for range 20 { // a group in which every member fails
		wg.Go(func() { wantUnavailable(t, f.Revocations().Append(t.Context(), record)) })
	}
	wg.Wait()
	limit(pages + 1000)
	if err := f.Revocations().Append(t.Context(), record); err != nil {
		t.Errorf("it does not recover: %v", err)
	}
	records, err := f.Audit().List(t.Context(), audit.Filter{}, 0, 1000)
	if err != nil || len(records) != written {
		t.Errorf("%d records of %d acknowledged: %v", len(records), written, err)
	}
}

// queued starts the calls while the writer is held, so that they share one transaction, and gives their errors.
func queued(t *testing.T, db *sqlstore.DB, calls ...func(context.Context) error) []error {
	t.Helper()
	begun, release := make(chan struct{}), make(chan struct{})
	held := make(chan error, 1)
	go func() { held <- db.Hold(context.Background(), begun, release) }()
	<-begun
	errs := make([]error, len(calls))
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() { errs[i] = call(context.Background()) })
		for db.Queued() <= i {
			runtime.Gosched()
		}
	}
	close(release)
	wg.Wait()
	if err := <-held; err != nil {
		t.Error(err)
	}
	return errs
}

func TestAFailedCommitFailsEveryMember(t *testing.T) {
	t.Parallel()
	for _, path := range []string{filepath.Join(t.TempDir(), "db"), sqlstore.Memory} {
		db := open(t, sqlstore.Options{Path: path})
		for _, q := range []string{`CREATE TABLE parent (id INTEGER PRIMARY KEY)`,
			`CREATE TABLE child (parent INTEGER REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)`} {
			if err := db.Exec(t.Context(), q); err != nil {
				t.Fatal(err)
			}
		}
		good := func(ctx context.Context) error { return db.Revocations().Append(ctx, revoke("good")) }
		missing := func(ctx context.Context) error { return db.Accounts().Delete(ctx, "nobody", 1, journal.Journal{}) }
		orphan := func(ctx context.Context) error { return db.Exec(ctx, `INSERT INTO child VALUES (1)`) }
		for _, err := range queued(t, db, good, missing, orphan, good) {
			wantUnavailable(t, err)
		}
		page, err := db.Revocations().Tail(t.Context(), 0)
		if err != nil || len(page.Entries) != 0 {
			t.Fatal(page, err)
		}
		errs := queued(t, db, good, missing, db.Panic, good) // the twin
		if errs[0] != nil || fault.From(errs[1]).Kind != fault.NotFound || errs[2] == nil || errs[3] != nil {
			t.Error(errs)
		}
		if page, err = db.Revocations().Tail(t.Context(), 0); err != nil || len(page.Entries) != 2 {
			t.Fatal(page, err)
		}
		if err := db.Panic(t.Context()); err == nil || fault.From(err).Kind != fault.Internal {
			t.Error(err)
		}
	}
}

func TestACallThatWasGivenUpBeforeItBeganWritesNothing(t *testing.T) {
	t.Parallel()
	db := open(t, sqlstore.Options{Path: sqlstore.Memory})
	begun, release, held := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() { held <- db.Hold(context.Background(), begun, release) }()
	<-begun
	ctx, cancel := context.WithCancel(t.Context())
	waiting := make(chan error, 1)
	go func() { waiting <- db.Revocations().Append(ctx, revoke("given up")) }()
	for db.Queued() == 0 {
		runtime.Gosched()
	}
	cancel()
	wantUnavailable(t, <-waiting)
	close(release)
	if err := <-held; err != nil {
		t.Fatal(err)
	}
	wantUnavailable(t, db.Revocations().Append(ctx, revoke("never asked")))
	page, err := db.Revocations().Tail(t.Context(), 0)
	if err != nil || len(page.Entries) != 0 {
		t.Fatal(page, err)
	}
	// Begun, it completes without its caller.
	ctx, cancel = context.WithCancel(t.Context())
	begun, release = make(chan struct{}), make(chan struct{})
	go func() { held <- db.Hold(ctx, begun, release) }()
	<-begun
	cancel()
	wantUnavailable(t, <-held)
	close(release)
	if err := db.Revocations().Append(t.Context(), revoke("next")); err != nil {
		t.Fatal(err)
	}
}

func TestCloseFinishesWhatWasAccepted(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	db, err := sqlstore.Open(t.Context(), sqlstore.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	begun, release := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := db.Hold(context.Background(), begun, release); err != nil {
			t.Error(err)
		}
	})
	<-begun
	for i := range 10 {
		wg.Go(func() {
			if err := db.Revocations().Append(context.Background(), revoke("t")); err != nil {
				t.Error(err)
			}
		})
		for db.Queued() <= i {
			runtime.Gosched()
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- db.Close() }()
	close(release)
	wg.Wait()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	wantUnavailable(t, db.Revocations().Append(t.Context(), revoke("t")))
	wantUnavailable(t, db.Ping(t.Context()))
	page, err := open(t, sqlstore.Options{Path: path}).Revocations().Tail(t.Context(), 0)
	if err != nil || len(page.Entries) != 10 {
		t.Error(len(page.Entries), err)
	}
}

func TestALogLongerThanAPageIsReadInPages(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	db := open(t, sqlstore.Options{Path: path, OpTimeout: time.Minute})
	const beyond = 10
	exec(t, raw(t, path), fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO revocations (kind, id, not_before, expires_at) SELECT 'jti', 'token-' || i, 0, %d FROM n`,
		revocation.PageSize+beyond, time.Now().Add(time.Hour).UnixMicro()))
	page, err := db.Revocations().Tail(t.Context(), 0)
	if err != nil || len(page.Entries) != revocation.PageSize || !page.More || page.Head != revocation.PageSize+beyond {
		t.Fatalf("the first page has %d entries up to %d, more: %v; %v", len(page.Entries), page.Head, page.More, err)
	}
	page, err = db.Revocations().Tail(t.Context(), page.Entries[len(page.Entries)-1].Position)
	if err != nil || len(page.Entries) != beyond || page.More || page.Entries[0].ID != fmt.Sprint("token-", revocation.PageSize+1) {
		t.Fatalf("the second page has %d entries, more: %v; %v", len(page.Entries), page.More, err)
	}
}
