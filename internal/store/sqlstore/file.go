package sqlstore

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// prepareFile makes sure of the database file: created with mode 0600 where that is allowed, otherwise there and ours.
// SQLite gives its -wal and -shm files the mode of the database.
func prepareFile(path string, create bool) error {
	if path == Memory {
		if !create {
			return fmt.Errorf("%w in memory", ErrNoDatabase)
		}
		return nil
	}
	if !create {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
			return fmt.Errorf("%w at %s: start the server once", ErrNoDatabase, path)
		}
		if err != nil {
			return fmt.Errorf("sqlstore: %w", err)
		}
		if uid, known := owner(info); known && uid != os.Geteuid() {
			return fmt.Errorf("%w: %s is owned by uid %d, this is uid %d", ErrNotOwner, path, uid, os.Geteuid())
		}
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("sqlstore: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = f.Chmod(0o600)
	}
	if err != nil {
		return fmt.Errorf("sqlstore: %w", err)
	}
	return nil
}

// dsn names the database for the driver. Whatever stands in path is a path: it cannot add a parameter.
func dsn(path string, busy time.Duration, writing bool) string {
	q := url.Values{}
	q.Add("_pragma", "busy_timeout("+strconv.FormatInt(busy.Milliseconds(), 10)+")")
	q.Add("_pragma", "foreign_keys(1)")
	q.Add("_pragma", "temp_store(2)")
	q.Set("_dqs", "0")
	if writing {
		if path != Memory {
			q.Add("_pragma", "journal_mode(wal)")
		}
		q.Add("_pragma", "synchronous(full)")
		q.Add("_pragma", "cache_size(-8192)") // KiB: the upper levels of the indexes of a million sessions
		q.Add("_pragma", "journal_size_limit(67108864)")
	} else {
		q.Add("_pragma", "query_only(1)")
	}
	if path == Memory {
		return "file::memory:?" + q.Encode()
	}
	return fileURI(path, q)
}

// fileURI names a file for the driver, whatever characters its path has.
func fileURI(path string, q url.Values) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return "file:" + (&url.URL{Path: path}).EscapedPath() + "?" + q.Encode()
}
