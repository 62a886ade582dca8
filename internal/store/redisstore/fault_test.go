package redisstore_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/store/machine"
	"github.com/authsvc/authsvc/internal/store/redisstore"
	"github.com/authsvc/authsvc/internal/store/redistest"
)

// swift is less than go-redis would wait by itself (1 s), and more than a busy machine makes of 50 ms, by its own pulse.
const swift = 800 * time.Millisecond

func TestD01ASickRedisHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name       string
		harm, mend func(t *testing.T, in sick) error
	}{
		{"killed", func(_ *testing.T, in sick) error { return in.r.Kill() }, func(t *testing.T, in sick) error { return in.r.Run(t.Context()) }},
		{"black-holed", func(_ *testing.T, in sick) error { return in.r.Pause() }, func(_ *testing.T, in sick) error { return in.r.Resume() }},
		{"2 s slow", func(_ *testing.T, in sick) error { in.p.delay.Store(int64(2 * time.Second)); return nil },
			func(_ *testing.T, in sick) error { in.p.delay.Store(0); return nil }},
		{"full", func(t *testing.T, in sick) error { cli(t, in.r, "CONFIG", "SET", "maxmemory", "1"); return nil },
			func(t *testing.T, in sick) error { cli(t, in.r, "CONFIG", "SET", "maxmemory", "0"); return nil }},
		{"made a replica", func(t *testing.T, in sick) error { cli(t, in.r, "REPLICAOF", "127.0.0.1", "1"); return nil },
			func(t *testing.T, in sick) error { cli(t, in.r, "REPLICAOF", "NO", "ONE"); return nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := sick{r: server(t)}
			in.p = between(t, in.r.Address())
			var n calls
			o := options(in.p.address)
			o.Called = n.called
			s := up(t, o)
			insist(t, s, network("a"))
			var clock machine.Pulse
			run(t, clock.Run)
			if err := c.harm(t, in); err != nil {
				t.Fatal(err)
			}
			await(t, "Redis counts as away", func() bool {
				began := clock.Now()
				_, err := s.Settle(t.Context(), []limit.Count{network("a")}, limit.Failed)
				if took := clock.Now() - began; took > swift {
					t.Errorf("a call took %v", took)
				}
				return errors.Is(err, redisstore.ErrAway)
			})
			if failed := n.failed.Load(); failed == 0 {
				t.Error("Redis went away without a call that failed")
			}
			before, failed := n.away.Load(), n.failed.Load()
			var wg sync.WaitGroup
			for range 200 {
				wg.Go(func() {
					_, err := s.Settle(t.Context(), []limit.Count{network("a")}, limit.Failed)
					if err == nil {
						t.Error("a sick Redis has answered")
					}
				})
			}
			wg.Wait()
			if n.away.Load() != before+200 || n.failed.Load() != failed {
				t.Errorf("of 200 calls after the first that failed %d did not ask", n.away.Load()-before)
			}
			if err := c.mend(t, in); err != nil {
				t.Fatal(err)
			}
			await(t, "Redis is asked again", s.Up)
			insist(t, s, network("a"))
		})
	}
}

type sick struct {
	r *redistest.Server
	p *proxy
}

// journal is a log that tests read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(line []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(line)
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), text)
}

func TestD01RedisThatIsDownAtTheStartIsUsedOnceItComes(t *testing.T) {
	t.Parallel()
	r := server(t)
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	var said journal
	o := options(r.Address())
	o.Logger = slog.New(slog.NewTextHandler(&said, nil))
	s := made(t, o)
	if err := s.Start(t.Context()); err != nil {
		t.Fatalf("a start without Redis is refused: %v", err)
	}
	run(t, s.Run)
	if _, err := s.Settle(t.Context(), []limit.Count{network("a")}, limit.Failed); err == nil || s.Up() {
		t.Fatal("who is not there has answered")
	}
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "Redis is up", s.Up)
	insist(t, s, network("a"))
	await(t, "its return is told", func() bool { return said.count("Redis is back") == 1 })
	if n := said.count("level=WARN"); n != 1 || said.count("redis.addresses") != 1 {
		t.Errorf("it was warned %d times:\n%s", n, said.text.String())
	}
}
