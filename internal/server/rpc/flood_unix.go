//go:build unix

package rpc

import (
	"errors"
	"io"
	"net"
	"syscall"

	"google.golang.org/grpc/mem"
)

// readyMeter is a meter over TCP alone, without TLS. grpc-go takes the 32 KiB that it reads into only while there is something to
// read, from a connection that has this method; otherwise each idle one holds them, which is half of what a watcher of the feed costs.
type readyMeter struct {
	*meter
	raw  syscall.RawConn
	read func(fd uintptr) bool

	// Of the call of ReadOnReady under way, kept here so that it allocates nothing.
	size  int
	pool  mem.BufferPool
	buf   *[]byte
	n     int
	fault error
}

// onReady gives a meter that method where it can have it.
func onReady(m *meter) net.Conn {
	tcp, ok := m.Conn.(*net.TCPConn)
	if !ok {
		return m
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return m
	}
	r := &readyMeter{meter: m, raw: raw}
	r.read = r.take
	return r
}

// take reads once, and reports false where nothing has come yet.
func (r *readyMeter) take(fd uintptr) bool {
	r.buf = r.pool.Get(r.size)
	for {
		if r.n, r.fault = syscall.Read(int(fd), *r.buf); !errors.Is(r.fault, syscall.EINTR) {
			break
		}
	}
	if r.fault != nil {
		r.n = 0
		r.drop()
	}
	return !errors.Is(r.fault, syscall.EAGAIN)
}

func (r *readyMeter) drop() {
	if r.buf != nil {
		r.pool.Put(r.buf)
		r.buf = nil
	}
}

// ReadOnReady waits until something has come and reads it into a buffer from the pool, which is the caller's to give back. It is
// what grpc-go asks a net.Conn for.
func (r *readyMeter) ReadOnReady(size int, pool mem.BufferPool) (*[]byte, int, error) {
	r.size, r.pool = size, pool
	err := r.raw.Read(r.read)
	if err == nil {
		err = r.fault
	}
	switch {
	case err != nil:
	case r.n == 0:
		err = io.EOF
	case !r.follow((*r.buf)[:r.n]):
		_ = r.Close()
		err = errFlood
	}
	if err != nil {
		r.drop()
		return nil, 0, err
	}
	buf := r.buf
	r.buf = nil
	return buf, r.n, nil
}
