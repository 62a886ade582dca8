package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/authsvc/authsvc/internal/ids"
)

// ErrInUse is in the chain of what BeginRestore answers while a server or a command has the database open.
var ErrInUse = errors.New("sqlstore: the database is in use")

// RestoreOptions are what BeginRestore needs.
type RestoreOptions struct {
	Path   string // of the database that is to be; its folder exists
	Backup string // what Backup wrote
	// Replace lets a database that stands at Path make way; it is kept under another name.
	Replace bool
	Now     func() time.Time // time.Now if nil
}

// Restore is a restore under way: nobody else has the database. The order is BeginRestore, Open, changes by what Open gave, Finish; and
// Close in any case, which undoes what was not finished. It is for one goroutine.
type Restore struct {
	o       RestoreOptions
	copy    Copy
	there   bool // a database stands at the path
	damaged bool // and SQLite cannot read it
	release func() error
	begun   bool // the new file exists
	db      *DB  // the new file, open
}

// BeginRestore inspects the backup, and makes sure that nobody has the database. Its errors are those of Inspect, fs.ErrExist,
// ErrNotOwner and ErrInUse.
func BeginRestore(ctx context.Context, o RestoreOptions) (_ *Restore, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	r := &Restore{o: o, release: func() error { return nil }}
	r.o.Path = followed(o.Path)
	if err := r.place(); err != nil {
		return nil, err
	}
	if r.copy, err = Inspect(ctx, o.Backup); err != nil {
		return nil, err
	}
	if !r.there {
		return r, nil
	}
	if err = begins(r.o.Path); err == nil { // SQLite would remove the -wal of one that does not
		r.release, err = claim(ctx, r.o.Path)
	}
	if r.damaged = errors.Is(err, ErrDamaged); r.damaged {
		r.release, err = claimBytes(r.o.Path)
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// place looks at where the database is to be.
func (r *Restore) place() error {
	path := r.o.Path
	if backup, err := os.Stat(r.o.Backup); err == nil { // Open makes room for its own, and this may be all that is left
		for _, name := range family(r.name()) {
			if info, err := os.Stat(name); err == nil && os.SameFile(info, backup) {
				return fmt.Errorf("%s is what a restore that was killed has left, and this one would remove it: restore the backup that it was made from, or, if there is none any more, give this file another name first", r.o.Backup)
			}
		}
	}
	folder, err := os.Stat(filepath.Dir(path))
	if err != nil {
		return err
	}
	if uid, known := owner(folder); known && uid != os.Geteuid() {
		return fmt.Errorf("%w: the folder %s is owned by uid %d, this is uid %d", ErrNotOwner, filepath.Dir(path), uid, os.Geteuid())
	}
	info, err := os.Stat(path)
	if r.there = err == nil; r.there {
		if uid, known := owner(info); known && uid != os.Geteuid() {
			return fmt.Errorf("%w: %s is owned by uid %d, this is uid %d", ErrNotOwner, path, uid, os.Geteuid())
		}
		if backup, err := os.Stat(r.o.Backup); err == nil && os.SameFile(info, backup) {
			return fmt.Errorf("%s is the database itself", r.o.Backup)
		}
		if !r.o.Replace {
			return fmt.Errorf("%s: %w: -replace puts the backup in its place, and keeps it under another name", path, fs.ErrExist)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, log := range logs() { // SQLite would play it into the new file
		if _, err := os.Lstat(path + log); err == nil {
			return fmt.Errorf("%s%s: %w, without its database: move it away", path, log, fs.ErrExist)
		}
	}
	return nil
}

// followed is the path that all links lead to, if anything is there.
func followed(path string) string {
	if target, err := filepath.EvalSymlinks(path); err == nil {
		return target
	}
	return path
}

// Leftovers gives what a restore that was killed has left beside a database: a copy of its backup, in part or whole, with what SQLite has beside
// one. No server reads it. The next restore removes it; while one is under way it is that one's.
func Leftovers(path string) (all []string) {
	for _, name := range family(unfinished(followed(path))) {
		if _, err := os.Lstat(name); err == nil {
			all = append(all, name)
		}
	}
	return all
}

func unfinished(path string) string { return path + ".restoring" }

// Copy is what the backup holds.
func (r *Restore) Copy() Copy { return r.copy }

// Open makes the new file beside the path: a copy of the backup with this program's schema and a new epoch. Nobody knows of it yet.
// What a restore that was killed left there goes: the caller sees to it that there is one at a time.
func (r *Restore) Open(ctx context.Context) (_ *DB, err error) {
	name := r.name()
	if err := errors.Join(discard(name), reserve(name)); err != nil {
		return nil, err
	}
	r.begun = true
	if err := copyFile(name, r.o.Backup); err != nil {
		return nil, err
	}
	again, err := Inspect(ctx, name) // the backup may have changed since, or been read wrongly
	if err != nil {
		return nil, err
	}
	if again.Epoch != r.copy.Epoch || again.Position != r.copy.Position || again.Bytes != r.copy.Bytes {
		return nil, fmt.Errorf("%s changed while it was read", r.o.Backup)
	}
	if r.db, err = Open(ctx, Options{Path: name, Now: r.o.Now, OpTimeout: time.Minute}); err != nil {
		return nil, err
	}
	var epoch [16]byte
	ids.Random(epoch[:])
	err = change(ctx, r.db, locks{alone: true}, func(t *tx) error {
		if _, err := t.exec(`UPDATE installation SET epoch = ?, lineage = ''`, epoch[:]); err != nil {
			return err
		}
		_, err := t.exec(`DELETE FROM instances`)
		return err
	})
	r.db.epoch = epoch
	return r.db, err
}

func (r *Restore) name() string { return unfinished(r.o.Path) }

// Finish closes the new file, reads it once more, and puts it in its place by one step that either happens or not. It gives the version
// of its schema, and the name that the old database is kept by, or nothing where there was none.
func (r *Restore) Finish(ctx context.Context) (schema int, kept string, err error) {
	err = r.db.Close()
	r.db = nil
	if err != nil {
		return 0, "", err
	}
	if err := syncFile(r.name()); err != nil {
		return 0, "", err
	}
	c, err := Inspect(ctx, r.name())
	if err != nil {
		return 0, "", err
	}
	if r.there {
		kept, err = r.replace()
	} else {
		err = nameNew(r.name(), r.o.Path)
	}
	if err != nil {
		return 0, "", err
	}
	r.begun = false
	return c.Schema, kept, syncFile(filepath.Dir(r.o.Path))
}

// replace gives the old database a second name, and then the new one its own.
func (r *Restore) replace() (kept string, err error) {
	kept = r.o.Path + ".before-restore-" + r.o.Now().UTC().Format("20060102T150405.000000Z")
	if err := os.Link(r.o.Path, kept); err != nil {
		return "", fmt.Errorf("keep the old database (move it away by hand, and restore without -replace): %w", err)
	}
	if r.damaged { // SQLite could not fold its logs in; they must not be played into the new file
		for _, log := range logs() {
			if err := os.Rename(r.o.Path+log, kept+log); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
		}
		if err := os.Remove(r.o.Path + "-shm"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	if err := syncFile(filepath.Dir(kept)); err != nil {
		return "", err
	}
	return kept, os.Rename(r.name(), r.o.Path)
}

// Close lets others have the database, and removes the new file unless Finish has named it.
func (r *Restore) Close() (err error) {
	if r.db != nil {
		err = r.db.Close()
		r.db = nil
	}
	if r.begun {
		err = errors.Join(err, discard(r.name()))
		r.begun = false
	}
	release := r.release
	r.release = func() error { return nil }
	return errors.Join(err, release())
}

// claim takes SQLite's own exclusive lock, which nobody gets while another connection is open: in WAL mode each holds a shared
// one for as long as it lives. To leave WAL mode takes that lock, and folds the -wal into the database.
func claim(ctx context.Context, path string) (_ func() error, err error) {
	source, err := sql.Open("sqlite", fileURI(path, url.Values{"mode": {"rw"}}))
	if err != nil {
		return nil, fmt.Errorf("sqlstore: %w", err)
	}
	source.SetMaxOpenConns(1)
	conn, err := source.Conn(ctx)
	if err != nil {
		return nil, errors.Join(claimed(path, err), source.Close())
	}
	for _, statement := range []string{`PRAGMA busy_timeout = 0`, `PRAGMA locking_mode = EXCLUSIVE`, `PRAGMA journal_mode = DELETE`, `BEGIN EXCLUSIVE`} {
		if _, err = conn.ExecContext(ctx, statement); err != nil {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(claimed(path, err), conn.Close(), source.Close())
	}
	return func() error { return errors.Join(conn.Close(), source.Close()) }, nil
}

func claimed(path string, err error) error {
	if busy(err) {
		return fmt.Errorf("%w: stop the server, and whatever else has %s open", ErrInUse, path)
	}
	return broken(path, err)
}

// copyFile fills a file that is there.
func copyFile(to, from string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return errors.Join(out.Sync(), out.Close())
}
