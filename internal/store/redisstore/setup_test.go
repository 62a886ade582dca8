package redisstore_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/store/redisstore"
	"github.com/authsvc/authsvc/internal/store/redistest"
)

const issuer = "https://auth.example.com"

// server starts Redis. Without one on the machine the test is skipped, except where everything is required.
func server(t *testing.T, settings ...string) *redistest.Server {
	t.Helper()
	s, err := redistest.Start(t.Context(), settings...)
	return kept(t, s, err)
}

// kept is what was started, until the test ends.
func kept[S io.Closer](t *testing.T, s S, err error) S {
	t.Helper()
	if errors.Is(err, redistest.ErrMissing) && os.Getenv("AUTHSVC_TEST_REQUIRE") == "" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func cli(t *testing.T, s *redistest.Server, args ...string) string {
	t.Helper()
	out, err := s.CLI(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// calls counts by outcome.
type calls struct{ answered, failed, away atomic.Int64 }

func (c *calls) called(outcome string) {
	map[string]*atomic.Int64{redisstore.Answered: &c.answered, redisstore.Failed: &c.failed, redisstore.Away: &c.away}[outcome].Add(1)
}

// options are for a single server at an address.
func options(addresses ...string) redisstore.Options {
	return redisstore.Options{Addresses: addresses, Mode: redisstore.Single, Issuer: issuer, Logger: slog.New(slog.DiscardHandler)}
}

func made(t *testing.T, o redisstore.Options) *redisstore.Store {
	t.Helper()
	s, err := redisstore.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// open runs a Store until the test ends.
func open(t *testing.T, o redisstore.Options) *redisstore.Store {
	t.Helper()
	s := made(t, o)
	run(t, s.Run)
	return s
}

// run runs a loop until the test ends.
func run(t *testing.T, loop func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := loop(ctx); err != nil {
			t.Errorf("a loop ended: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// await waits until something is so, a minute at most.
func await(t *testing.T, what string, so func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-ctx.Done():
			t.Fatalf("it does not come about that %s", what)
		case <-tick.C:
		}
	}
}

// up opens a Store and waits for Redis.
func up(t *testing.T, o redisstore.Options) *redisstore.Store {
	t.Helper()
	s := open(t, o)
	await(t, "Redis is up", s.Up)
	return s
}

// proxy stands between a Store and Redis. It may delay what it passes on, and counts what clients send at a time.
type proxy struct {
	address string
	delay   atomic.Int64
	sent    atomic.Int64
	taken   atomic.Int64 // connections
}

func between(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{address: l.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			p.taken.Add(1)
			wg.Go(func() { p.pass(ctx, from, target) })
		}
	})
	return p
}

func (p *proxy) pass(ctx context.Context, from net.Conn, target string) {
	defer from.Close()
	to, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer to.Close()
	stop := context.AfterFunc(ctx, func() { _ = from.Close(); _ = to.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { p.relay(ctx, to, from, true) })
	wg.Go(func() { p.relay(ctx, from, to, false) })
	wg.Wait()
}

func (p *proxy) relay(ctx context.Context, to, from net.Conn, count bool) {
	defer to.Close()
	chunk := make([]byte, 64<<10)
	for {
		n, err := from.Read(chunk)
		if err != nil {
			return
		}
		if count {
			p.sent.Add(1)
			late := time.NewTimer(time.Duration(p.delay.Load()))
			select {
			case <-ctx.Done():
				return
			case <-late.C:
			}
		}
		if _, err := to.Write(chunk[:n]); err != nil {
			return
		}
	}
}

// rights is the line of docs/redis.md, which must be all that is needed.
func rights(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile("../../../docs/redis.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "user authsvc ") {
			return strings.TrimSpace(line)
		}
	}
	t.Fatal("docs/redis.md does not say which rights are needed")
	return ""
}
