//go:build unix

package sqlstore

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
)

// Where SQLite locks a file: one byte that says pending, one reserved, and 510 for those who read.
const (
	lockedFrom  = 0x40000000
	lockedBytes = 512
)

// claimBytes takes the same bytes as SQLite, of a file that it cannot read: a connection that still has it open holds some.
func claimBytes(path string) (func() error, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	err = syscall.FcntlFlock(f.Fd(), syscall.F_SETLK, &syscall.Flock_t{Type: syscall.F_WRLCK, Whence: io.SeekStart, Start: lockedFrom, Len: lockedBytes})
	switch {
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EACCES):
		return nil, errors.Join(fmt.Errorf("%w: stop the server, and whatever else has %s open", ErrInUse, path), f.Close())
	case err != nil:
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}
