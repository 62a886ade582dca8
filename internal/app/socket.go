package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errTaken says that another server has the socket.
var errTaken = errors.New("another authsvc serves there")

// socket is the admin listener: a Unix socket for this process's own user and for root. Web pages cannot reach one, so that
// there is no name or origin to check. While it is open it holds a lock beside itself, which ends with the process: a socket
// that a dead server left is replaced, and of two servers that start at once one has it.
type socket struct {
	*net.UnixListener
	path    string
	made    fs.FileInfo // of the file at path, while it is ours
	lock    *os.File
	refused func(uid int) // told of a peer that was not let in, once of each; may be nil
	told    map[int]bool  // of Accept, which is called by one at a time
	close   sync.Once
}

// listenSocket opens the socket at path, whose folder it makes where that is missing: a volume that a container is given is its own only
// below the top.
func listenSocket(path string) (s *socket, err error) {
	dir := filepath.Dir(path)
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if err := ownFolder(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%s: %w", path, errTaken)
	} else if err != nil {
		return nil, fmt.Errorf("%s.lock: %w", path, err)
	}
	if err := replaceable(path); err != nil {
		return nil, err
	}
	l, made, err := bind(dir, path)
	if err != nil {
		return nil, err
	}
	return &socket{UnixListener: l, path: path, made: made, lock: lock, told: map[int]bool{}}, nil
}

// ownFolder refuses a folder in which somebody else could put another socket in the place of ours.
func ownFolder(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case ownerOf(info) != os.Geteuid():
		return fmt.Errorf("the folder %s is not this user's own: give the socket one that is", dir)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("others may write to the folder %s (mode %04o): name a file in a folder of the service's own, with mode 0700", dir, info.Mode().Perm())
	}
	return nil
}

// ownerOf gives the user whose file it is, -1 where that is not known.
func ownerOf(info fs.FileInfo) int {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid)
	}
	return -1
}

// replaceable refuses a path where something other than a socket stands, or one that somebody still listens on.
func replaceable(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is there and is not a socket", path)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c, err := dialSocket(ctx, path)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s: %w", path, errTaken)
	}
	return nil
}

// bind makes the socket with mode 0600 where nobody else may look, and only then moves it to its path, over what a dead server
// left there: between a bind and a chmod it would stand with whatever rights the umask leaves.
func bind(dir, path string) (_ *net.UnixListener, made fs.FileInfo, err error) {
	hidden, err := os.MkdirTemp(dir, ".admin-") // of mode 0700
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(hidden)) }()
	name := filepath.Join(hidden, "s")
	short, release, err := shortened(name)
	if err != nil {
		return nil, nil, err
	}
	defer release()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: short, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	l.SetUnlinkOnClose(false)
	if err = os.Chmod(name, 0o600); err == nil {
		made, err = os.Lstat(name)
	}
	if err == nil {
		err = os.Rename(name, path)
	}
	if err != nil {
		return nil, nil, errors.Join(err, l.Close())
	}
	return l, made, nil
}

// maxSocketPath is how long the address of a socket may be, in bytes (sun_path, without its zero).
const maxSocketPath = 107

// shortened gives a name for a socket that its address has room for. A folder may lie deeper than that: then it is named by what
// it is opened as here, until release.
func shortened(path string) (short string, release func(), err error) {
	if strings.HasPrefix(path, "@") { // by itself no file, but a socket without one, which anybody may make (unix(7))
		path = "./" + path
	}
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}

// dialSocket connects to the socket at path.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	short, release, err := shortened(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}

// Accept gives the next connection of somebody who may have one. The mode of the socket keeps strangers away already; this holds
// where somebody widened it.
func (s *socket) Accept() (net.Conn, error) {
	for {
		c, err := s.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peerUID(c)
		if err == nil && admits(uid, os.Geteuid()) {
			return c, nil
		}
		_ = c.Close()
		if err == nil && s.refused != nil && !s.told[uid] {
			s.told[uid] = true
			s.refused(uid)
		}
	}
}

// admits says who may ask a server that runs as own.
func admits(uid, own int) bool { return uid == own || uid == 0 }

// vouched says whose word a command that runs as own takes for the server's: that of its own user and of root, and where root asks
// also that of the user whose folder the database is in.
func vouched(uid, own, database int) bool { return admits(uid, own) || own == 0 && uid == database }

// peerUID gives the user of the process at the other end, of a listener that of who made it (unix(7), SO_PEERCRED).
func peerUID(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil || err != nil {
		return 0, errors.Join(e, err)
	}
	return int(cred.Uid), nil
}

// Close removes the socket and ends the listener, once. What stands at the path and is not ours, as after somebody removed the
// socket and its lock and started another server, stays.
func (s *socket) Close() (err error) {
	s.close.Do(func() {
		if there, e := os.Lstat(s.path); e == nil && os.SameFile(there, s.made) {
			err = os.Remove(s.path)
		}
		err = errors.Join(err, s.UnixListener.Close(), s.lock.Close())
	})
	return err
}
