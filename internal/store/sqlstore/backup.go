package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	sqlite3 "modernc.org/sqlite/lib"

	"github.com/authsvc/authsvc/internal/keys"
)

// Errors of Backup, Inspect and BeginRestore, for errors.Is.
var (
	// ErrDamaged: the file is no SQLite database, or not a whole one.
	ErrDamaged = errors.New("sqlstore: the file is not a whole SQLite database")
	// ErrNotOurs: it is a whole database, of another program.
	ErrNotOurs = errors.New("sqlstore: this is not a database of authsvc")
)

// Copy is what stands in a copy of a database.
type Copy struct {
	Bytes    int64
	Schema   int       // the schema's version
	Epoch    [16]byte  // of the history that it was taken from
	Position int64     // of the newest row of the revocation log; 0 for none yet
	LastAt   time.Time // when the newest audit record was made; zero without one
	Sessions int       // that nobody had ended
	// Sealed are the signing keys with a private half; of each only ID, State and Sealed are set.
	Sealed []keys.Key
	// RefreshKeys are the ids of the refresh keys that Sessions were made with.
	RefreshKeys []byte
}

// Backup writes a consistent copy of an SQLite database to a new file, out, with mode 0600. Servers may go on reading and
// writing: it is one read of one moment, in WAL mode, which nobody waits for. What was deleted is not in the copy. It has its name
// only once it is on the disk and has been found whole; until then it is out with ".partial", which a failure removes.
// Its errors are those of OpenExisting (an older schema is none), of Inspect, and fs.ErrExist.
func Backup(ctx context.Context, path, out string) (_ Copy, err error) {
	if err := prepareFile(path, false); err != nil {
		return Copy{}, err
	}
	if err := absent(out); err != nil {
		return Copy{}, err
	}
	partial := out + ".partial"
	if err := reserve(partial); err != nil {
		return Copy{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, discard(partial))
		}
	}()
	if err := vacuumInto(ctx, path, partial); err != nil {
		return Copy{}, fmt.Errorf("write %s: %w", partial, err)
	}
	if err := syncFile(partial); err != nil {
		return Copy{}, err
	}
	c, err := Inspect(ctx, partial)
	if err != nil {
		return Copy{}, err
	}
	return c, nameNew(partial, out)
}

// vacuumInto reads the database on a connection of its own.
func vacuumInto(ctx context.Context, path, out string) (err error) {
	out, err = filepath.Abs(out) // what begins with "file:" would be read as a URI
	if err != nil {
		return err
	}
	q := url.Values{"mode": {"rw"}, "_dqs": {"0"}, "_pragma": {"busy_timeout(5000)", "temp_store(2)"}}
	source, err := sql.Open("sqlite", fileURI(path, q))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	_, err = source.ExecContext(ctx, `VACUUM INTO ?`, out)
	return err
}

// Inspect reads a copy from its beginning to its end, without changing anything in it or beside it, and says what it holds. A file
// that is no whole database is ErrDamaged, one of another program ErrNotOurs, one of a newer version ErrSchemaNewer.
func Inspect(ctx context.Context, path string) (c Copy, err error) {
	if c.Bytes, err = plausible(path); err != nil {
		return c, err
	}
	// Immutable: SQLite makes no -wal and -shm beside it, and takes no lock.
	source, err := sql.Open("sqlite", fileURI(path, url.Values{"mode": {"ro"}, "immutable": {"1"}, "_dqs": {"0"}, "_pragma": {"temp_store(2)"}}))
	if err != nil {
		return c, fmt.Errorf("sqlstore: %w", err)
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	conn, err := source.Conn(ctx)
	if err != nil {
		return c, broken(path, err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	known, err := words(Options{Path: path})
	if err != nil {
		return c, err
	}
	t := &lite{conn: conn, words: known, stmts: map[string]*prepared{}}
	defer t.forget()
	found, err := collect(t, scanText, `PRAGMA integrity_check(1)`)
	switch {
	case err != nil:
		return c, broken(path, err)
	case len(found) != 1 || found[0] != "ok":
		return c, fmt.Errorf("%w (%s): %q", ErrDamaged, path, found)
	}
	if err := c.read(t, path); err != nil {
		return c, broken(path, err)
	}
	return c, nil
}

// read reads what every version of the schema has.
func (c *Copy) read(t *lite, path string) (err error) {
	e, err := t.words.extent(t.once)
	switch c.Schema = e.version; {
	case errors.Is(err, ErrNotOurs):
		return fmt.Errorf("%w (%s)", err, path)
	case err != nil:
		return err
	case c.Schema < 1:
		return fmt.Errorf("%w (%s)", ErrNotOurs, path)
	case e.oldest > t.words.newest():
		return fmt.Errorf("%w: it has version %d, on which programs of version %d or later run, and this one is of version %d (%s)", ErrSchemaNewer, c.Schema, e.oldest, t.words.newest(), path)
	}
	var epoch []byte
	var last int64
	if err := t.row(`SELECT epoch, (SELECT COALESCE(MAX(position), 0) FROM revocations), (SELECT COALESCE(MAX(time), 0) FROM audit),
		(SELECT COUNT(*) FROM sessions WHERE ended_at IS NULL) FROM installation`).Scan(&epoch, &c.Position, &last, &c.Sessions); err != nil {
		return err
	}
	copy(c.Epoch[:], epoch)
	c.LastAt = instantOf(last)
	if c.Sealed, err = collect(t, func(s scanner) (k keys.Key, err error) {
		err = s.Scan(&k.ID, &k.State, &k.Sealed)
		return k, err
	}, `SELECT id, state, sealed FROM signing_keys WHERE length(sealed) > 0 ORDER BY id`); err != nil {
		return err
	}
	ids, err := collect(t, scanInt, `SELECT DISTINCT key_id FROM sessions WHERE ended_at IS NULL ORDER BY key_id`)
	for _, id := range ids {
		c.RefreshKeys = append(c.RefreshKeys, byte(id))
	}
	return err
}

// logs are what SQLite puts behind the name of a file for the logs that it plays into whatever has that name.
func logs() []string { return []string{"-wal", "-journal"} }

// plausible looks at a file without SQLite, for what it would say less clearly, and gives its size.
func plausible(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%w (%s): it is not a file", ErrDamaged, path)
	}
	real, err := filepath.EvalSymlinks(path) // by its own name SQLite finds what goes with a file
	if err != nil {
		return 0, err
	}
	for _, log := range logs() {
		if beside, err := os.Stat(real + log); err == nil && beside.Size() > 0 {
			return 0, fmt.Errorf("%w: %s%s lies beside it, so it is in use, or was copied by other means than authsvc backup", ErrDamaged, real, log)
		}
	}
	return info.Size(), begins(path)
}

// begins says whether a file begins as SQLite's do, without SQLite.
func begins(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, len(sqliteMagic))
	if _, err := f.Read(head); err != nil || string(head) != sqliteMagic {
		return fmt.Errorf("%w (%s): it does not begin as one", ErrDamaged, path)
	}
	return nil
}

// sqliteMagic is how every SQLite file begins.
const sqliteMagic = "SQLite format 3\x00"

// broken tells a file that SQLite cannot make sense of from one that it cannot read.
func broken(path string, err error) error {
	switch code(err) & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w (%s): %w", ErrDamaged, path, err)
	case sqlite3.SQLITE_ERROR: // a table or a column is missing
		return fmt.Errorf("%w (%s): %w", ErrNotOurs, path, err)
	}
	if errors.Is(err, sql.ErrNoRows) { // of the installation
		return fmt.Errorf("%w (%s): it says of no installation whose it is", ErrDamaged, path)
	}
	return err
}

// forget ends the statements of a connection that is given back.
func (t *lite) forget() {
	for _, s := range t.stmts {
		_ = s.Close()
	}
}

// absent refuses a name that is taken.
func absent(path string) error {
	_, err := os.Lstat(path)
	switch {
	case err == nil:
		return fmt.Errorf("%s: %w: give a name that is not taken", path, fs.ErrExist)
	case errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return err
}

// reserve makes an empty file of mode 0600 that was not there, with no log of an older one beside it.
func reserve(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: another one is being made, or was interrupted: then remove it", err)
	}
	if err != nil {
		return err
	}
	err = errors.Join(f.Chmod(0o600), f.Close())
	for _, log := range logs() {
		if e := os.Remove(path + log); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// family is a database and what SQLite may have beside it.
func family(path string) []string {
	return []string{path, path + "-journal", path + "-wal", path + "-shm"}
}

// discard removes what a failure has left of a database.
func discard(path string) (err error) {
	for _, name := range family(path) {
		if e := os.Remove(name); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// syncFile waits until a file, or a folder's list of names, is on the disk.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// nameNew gives a file its name, which nobody else may have taken, and waits until that is on the disk.
func nameNew(from, to string) error {
	err := os.Link(from, to)
	switch {
	case err == nil:
		err = os.Remove(from)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ENOTSUP), errors.Is(err, syscall.ENOSYS): // a file system without links
		if err = absent(to); err == nil {
			err = os.Rename(from, to)
		}
	}
	if err != nil {
		return err
	}
	return syncFile(filepath.Dir(to))
}
