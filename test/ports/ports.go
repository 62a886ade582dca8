// Package ports holds ports of 127.0.0.1 for the servers that a test starts, and for those that it stops and starts again.
package ports

import (
	"syscall"
	"testing"
)

// Hold gives a port on which a server that is told to can listen, as often as it likes, and which nobody else gets until the test
// ends: neither who asks for any port, nor who connects to somewhere. Its own socket has the port and does not listen, which Linux
// allows beside a server where both have set SO_REUSEADDR, as Go, nginx, PostgreSQL and Redis do; who connects while no server
// listens is refused.
func Hold(t testing.TB) int {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	syscall.CloseOnExec(fd)
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	at, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return at.(*syscall.SockaddrInet4).Port //nolint:forcetypeassert // it was bound to one
}
