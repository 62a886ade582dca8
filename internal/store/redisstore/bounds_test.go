package redisstore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/store/redisstore"
)

func TestD01WhateverRedisAnswersTheServiceGoesOn(t *testing.T) {
	t.Parallel()
	for name, lie := range map[string]string{
		"nonsense":                          "\x00\xff GET / HTTP/1.1\r\n\r\n",
		"a text of 8 EB":                    "$9223372036854775800\r\n",
		"a text of 500 MB that never comes": "$500000000\r\n",
		"a text of a negative length":       "$-5\r\n",
		"a list of 100 million":             "*100000000\r\n",
		"a list beyond counting":            "*9223372036854775807\r\n",
		"a map beyond counting":             "%4611686018427387904\r\n",
		"lists in lists":                    strings.Repeat("*1\r\n", 1_000_000),
		"a line without an end":             "+" + strings.Repeat("x", 5<<20),
		"pushes":                            strings.Repeat(">2\r\n$7\r\nmessage\r\n$1\r\nx\r\n", 10_000),
		"half of an answer":                 "*3\r\n$1\r\n",
		"a number":                          ":0\r\n",
		"nothing":                           "$-1\r\n",
		"the end of the connection":         "",
		"READONLY":                          "-READONLY You can't write against a read only replica.\r\n",
		"OOM":                               "-OOM command not allowed when used memory > 'maxmemory'.\r\n",
		"LOADING":                           "-LOADING Redis is loading the dataset in memory\r\n",
		"MASTERDOWN":                        "-MASTERDOWN Link with MASTER is down\r\n",
		"BUSY":                              "-BUSY Redis is busy running a script.\r\n",
		"MOVED":                             "-MOVED 1 127.0.0.1:1\r\n",
		"NOSCRIPT, again and again":         "-NOSCRIPT No matching script.\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var lying atomic.Bool
			var lies atomic.Int64
			s := up(t, redisstore.Unhurried(options(resp(t, func(args []string) string {
				switch command := strings.ToUpper(args[0]); {
				case lying.Load():
					lies.Add(1)
					return lie
				case command == "EVALSHA": // sha, 1, key, call, …
					return fmt.Sprintf("*3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:0\r\n", len(args[4]), args[4], len(args[3]), args[3])
				}
				return "-ERR unknown command\r\n"
			}))))
			insist(t, s, network("a"))
			lying.Store(true)
			run(t, func(ctx context.Context) error { return s.Listen(ctx, func() {}) })
			if _, err := s.Settle(t.Context(), []limit.Count{network("a")}, limit.Failed); err == nil {
				t.Error("it was taken for an answer")
			}
			await(t, "probes and the listener have heard it, too", func() bool { return lies.Load() > 6 })
			if s.Up() {
				t.Error("Redis is asked on")
			}
			lying.Store(false)
			await(t, "Redis is asked again", s.Up)
			insist(t, s, network("a"))
		})
	}
}

// pieces gives a text in pieces.
type pieces struct {
	net.Conn
	from *bytes.Reader
	size int
}

func (p pieces) Read(into []byte) (int, error) { return p.from.Read(into[:min(p.size, len(into))]) }

func TestAnswersHaveBoundsOneByOne(t *testing.T) {
	t.Parallel()
	honest := strings.Repeat("*4\r\n$4\r\n\r\n*9\r\n:1\r\n%1\r\n+a\r\n_\r\n|1\r\n+b\r\n#t\r\n$-1\r\n>2\r\n+x\r\n*-1\r\n-ERR\r\n", 70_000)
	for _, size := range []int{1, 7, 4096} {
		for end, want := range map[string]error{
			"":                                nil,
			"$4000000\r\n":                    nil,
			"$4194303\r\n":                    redisstore.ErrBounds,
			"*262144\r\n":                     nil,
			"*262145\r\n":                     redisstore.ErrBounds,
			"*2\r\n*200000\r\n%40000\r\n":     redisstore.ErrBounds,
			"%200000\r\n":                     redisstore.ErrBounds,
			"$?\r\n":                          redisstore.ErrBounds,
			"\r\n":                            nil,
			strings.Repeat("*1\r\n", 262_145): redisstore.ErrBounds,
		} {
			c := redisstore.Bounded(pieces{from: bytes.NewReader([]byte(honest + end)), size: size})
			read, err := io.Copy(io.Discard, struct{ io.Reader }{c})
			if !errors.Is(err, want) || err == nil && read != int64(len(honest+end)) || read < int64(len(honest)) && size == 1 {
				t.Errorf("%.20q in pieces of %d: %d bytes of %d, %v", end, size, read, len(honest+end), err)
			}
		}
	}
}
