package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/authsvc/authsvc/internal/config"
)

// holder is what a server, or a restore, writes into the file that it locks beside SQLite's: who it is, for others' messages.
type holder struct {
	PID  int      `json:"pid"`
	HTTP []string `json:"http"` // http.address as configured, and as it came out; a restore has none
}

// beside is the file that the one server of a SQLite file has locked, beside it and under the name that all links lead to.
func beside(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return path + ".lock"
}

// alone makes this the one server of a SQLite file until the process ends, however it does, or the file is closed: two would each
// have a picture of their own of what is revoked. Commands beside a server are not concerned. It is nothing for PostgreSQL.
func alone(c config.Database, http ...string) (io.Closer, error) {
	if c.Path == "" {
		return io.NopCloser(nil), nil
	}
	f, err := os.OpenFile(beside(c.Path), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("database.path: %w", err)
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	switch {
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		err = taken(c.Path, heldBy(f))
	case err != nil:
		err = fmt.Errorf("database.path: %s cannot be locked: %w", f.Name(), err)
	default:
		var text []byte
		if text, err = json.Marshal(holder{PID: os.Getpid(), HTTP: http}); err == nil {
			_, err = f.WriteAt(append(text, '\n'), 0)
			err = errors.Join(err, f.Truncate(int64(len(text))+1))
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func taken(path string, by holder) error {
	if by.PID != 0 && len(by.HTTP) == 0 { // it has no address, since it serves nobody
		return fmt.Errorf("database.path: process %d restores a backup to %s: wait until it has ended", by.PID, path)
	}
	return fmt.Errorf("database.path: another server, process %d, serves %s: SQLite is for one server; replicas share a PostgreSQL, by database.url", by.PID, path)
}

func heldBy(f *os.File) (h holder) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
	if err == nil {
		_ = json.Unmarshal(text, &h) // its process is then 0, in a message alone
	}
	return h
}

// checkAlone says whether another server has a SQLite file, without getting into its way. The server that runs by this very
// configuration, known by its address, is none other.
func checkAlone(cfg config.Config) error {
	if cfg.Database.Path == "" {
		return nil
	}
	f, err := os.Open(beside(cfg.Database.Path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("database.path: %w", err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return fmt.Errorf("database.path: %s: %w", f.Name(), err)
	}
	by := heldBy(f)
	if lock.Type == unix.F_UNLCK || !strings.HasSuffix(cfg.HTTP.Address, ":0") && slices.Contains(by.HTTP, cfg.HTTP.Address) {
		return nil
	}
	return taken(cfg.Database.Path, by)
}
