package redisstore

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// What one answer may have. Ours have some hundred bytes; what a Cluster says of its slots and commands has some hundred thousand.
const (
	mostBytes = 4 << 20
	mostParts = 1 << 18
)

// errBounds says that an answer is beyond them.
var errBounds = errors.New("redisstore: Redis answered with more than any answer has")

// errStale says that a connection may have answers to what was asked before.
var errStale = errors.New("redisstore: the connection is from before an answer to something else")

// dial connects as go-redis would, and bounds what it reads. What is connected when strange changes is not used any more.
func dial(secure *tls.Config, within time.Duration, strange *atomic.Int64) func(ctx context.Context, network, address string) (net.Conn, error) {
	plain := &net.Dialer{Timeout: within}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var c net.Conn
		var err error
		if secure == nil {
			c, err = plain.DialContext(ctx, network, address)
		} else {
			c, err = (&tls.Dialer{NetDialer: plain, Config: secure}).DialContext(ctx, network, address)
		}
		if err != nil {
			return nil, err
		}
		b := &bounded{Conn: c, strange: strange, born: strange.Load()}
		if raw, ok := c.(syscall.Conn); ok {
			return &alive{bounded: b, Conn: raw}, nil
		}
		return b, nil
	}
}

// bounded is a connection whose answers have bounds. go-redis makes room for whatever length it reads, before anything has come of it: one line
// would end the process.
type bounded struct {
	net.Conn
	strange *atomic.Int64
	born    int64  // what strange was then
	line    []byte // that has begun
	skip    int    // bytes of a text that are still to come
	due     int    // parts of the answer that are still to come
	size    int    // bytes of the answer so far
	parts   int    // parts that it said to have
	err     error  // what was wrong with an answer; nothing is read any more
}

// alive lets go-redis see whether the other side has closed an idle connection. With TLS it does not look.
type alive struct {
	*bounded
	syscall.Conn
}

// Read fails where an answer is beyond its bounds, before the reader has seen that, and for good.
func (b *bounded) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	n, err := b.Conn.Read(p)
	if b.err = b.scan(p[:n]); b.err != nil {
		return 0, b.err
	}
	return n, err
}

// Write fails on a stale connection, which makes go-redis close it.
func (b *bounded) Write(p []byte) (int, error) {
	if b.strange.Load() != b.born {
		return 0, errStale
	}
	return b.Conn.Write(p)
}

// scan follows RESP2 and RESP3 as far as its lengths.
func (b *bounded) scan(p []byte) error {
	for len(p) > 0 {
		if b.skip == 0 && b.due == 0 && len(b.line) == 0 {
			b.due, b.size, b.parts = 1, 0, 0
		}
		taken := min(b.skip, len(p))
		if b.skip == 0 {
			taken = bytes.IndexByte(p, '\n') + 1
			if taken == 0 {
				taken = len(p)
			}
			b.line = append(b.line, p[:taken]...)
		} else {
			b.skip -= taken
		}
		b.size += taken
		p = p[taken:]
		if bytes.HasSuffix(b.line, []byte("\n")) {
			if err := b.head(b.line[0], string(bytes.TrimSpace(b.line[1:]))); err != nil {
				return err
			}
			b.line = b.line[:0]
		}
		if b.size+b.skip > mostBytes || b.parts > mostParts {
			return errBounds
		}
	}
	return nil
}

// head reads the first line of a part.
func (b *bounded) head(kind byte, length string) error {
	b.due--
	if !bytes.ContainsRune([]byte("$=!*~>%|"), rune(kind)) {
		return nil // the line is all
	}
	n, err := strconv.Atoi(length)
	if err != nil || n > mostBytes {
		return errBounds
	}
	if n < 0 {
		return nil // it is nil
	}
	switch kind {
	case '$', '=', '!':
		b.skip = n + len("\r\n")
		return nil
	case '%':
		n *= 2
	case '|': // attributes, which are no part themselves
		n = 2*n + 1
	}
	b.due += n
	b.parts += n
	return nil
}
