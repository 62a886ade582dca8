package limit_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/limit"
)

// server is counters that replicas share, and that can be away, or never answer as they should.
type server struct {
	*limit.Memory
	away, short atomic.Bool
	asked       atomic.Int64
}

var errAway = errors.New("connection refused")

func (s *server) Settle(ctx context.Context, counts []limit.Count, o limit.Outcome) ([]time.Duration, error) {
	s.asked.Add(1)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case s.away.Load():
		return nil, errAway
	case s.short.Load():
		return nil, nil
	}
	return s.Memory.Settle(ctx, counts, o)
}

// fleet is replicas over one server.
type fleet struct {
	*server
	*clock
	replicas []*limit.Throttle
	mu       sync.Mutex
	decided  map[limit.Decision]int
}

func newFleet(t *testing.T, n int) *fleet {
	t.Helper()
	f := &fleet{clock: newClock(), decided: map[limit.Decision]int{}}
	m, err := limit.NewMemory(limit.MemoryOptions{Room: 1000, Now: f.now})
	if err != nil {
		t.Fatal(err)
	}
	f.server = &server{Memory: m}
	for range n {
		th, err := limit.New(limit.Options{Shared: f.server, Replicas: func() int { return n }, Now: f.now, Decided: f.note})
		if err != nil {
			t.Fatal(err)
		}
		f.replicas = append(f.replicas, th)
	}
	return f
}

func (f *fleet) note(d limit.Decision) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.decided[d]++
}

// try makes one attempt at a replica; hashed says that it got as far as the password.
func (f *fleet) try(t *testing.T, replica int, name string, from netip.Addr, o limit.Outcome) (hashed bool, wait time.Duration) {
	t.Helper()
	th := f.replicas[replica]
	err := th.Allow(attempt(name, from))
	if err == nil {
		hashed, err = true, th.Settle(t.Context(), attempt(name, from), o)
	}
	if err == nil {
		return true, 0
	}
	if e := fault.From(err); e.Kind != fault.Limited || e.Reason != fault.RateLimited || e.RetryAfter <= 0 {
		t.Fatalf("refused with %v", err)
	}
	return hashed, fault.From(err).RetryAfter
}

func TestL09ReplicasShareOneCount(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	for i := range 10 {
		if _, w := f.try(t, i%3, "ada", ip(i), limit.Failed); w != 0 {
			t.Fatalf("failure %d waits %v", i+1, w)
		}
	}
	for replica := range 3 {
		hashed, w := f.try(t, replica, "ada", ip(50), limit.Succeeded)
		if !hashed || w != time.Second {
			t.Fatalf("the right password at replica %d: hashed %v, wait %v", replica, hashed, w)
		}
		if hashed, w = f.try(t, replica, "ada", ip(51), limit.Failed); hashed || w != time.Second {
			t.Fatalf("replica %d hashes what it knows to be refused (%v), wait %v", replica, hashed, w)
		}
	}
	f.advance(time.Second)
	if _, w := f.try(t, 2, "ada", ip(52), limit.Succeeded); w != 0 {
		t.Fatalf("the right password after the wait waits %v", w)
	}
	if _, w := f.try(t, 0, "ada", ip(53), limit.Failed); w != 0 {
		t.Fatalf("a failure after the success waits %v", w)
	}
	answered := 0 // the twin: two replicas that share nothing
	for _, f := range []*fleet{newFleet(t, 1), newFleet(t, 1)} {
		for i := range 20 {
			if _, w := f.try(t, 0, "ada", ip(i), limit.Failed); w == 0 {
				answered++
			}
		}
	}
	if answered != 20 {
		t.Errorf("apart they answer %d, not ten each", answered)
	}
}

func TestL10AVictimUnderAttackWaitsAMinuteAtMost(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	for i := range 1000 {
		f.try(t, i%3, "ada", ip(i), limit.Failed)
		f.advance(time.Second)
	}
	for replica := range 3 {
		if _, w := f.try(t, replica, "ada", ip(2000), limit.Failed); w > time.Minute {
			t.Fatalf("replica %d lets the victim wait %v", replica, w)
		}
	}
	f.advance(time.Minute)
	if _, w := f.try(t, 1, "ada", ip(2001), limit.Succeeded); w != 0 {
		t.Fatalf("a minute later the right password waits %v", w)
	}
}

func TestL09ParallelGuessesOverReplicasLearnNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	var passed, right atomic.Int64
	var begun, settled sync.WaitGroup
	begun.Add(30)
	for i := range 30 {
		settled.Go(func() {
			th := f.replicas[i%3]
			if err := th.Allow(attempt("ada", ip(i))); err != nil {
				t.Error(err)
			}
			begun.Done()
			begun.Wait()
			o := limit.Failed
			if i == 29 {
				o = limit.Succeeded
			}
			if th.Settle(context.Background(), attempt("ada", ip(i)), o) == nil {
				passed.Add(1)
				if o == limit.Succeeded {
					right.Add(1)
				}
			}
		})
	}
	settled.Wait()
	if n := passed.Load(); right.Load() == 0 && n != 10 || right.Load() == 1 && n > 21 {
		t.Errorf("%d guesses of 30 at once were answered, %d of them right", n, right.Load())
	}
}

func TestR61WhereTheSharedCountersFailEachReplicaAllowsItsPart(t *testing.T) {
	t.Parallel() // D01
	for name, fail := range map[string]func(*server, bool){
		"they are away": func(s *server, on bool) { s.away.Store(on) },
		"they answer with something else entirely": func(s *server, on bool) { s.short.Store(on) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 3)
			fail(f.server, true)
			for replica := range 3 {
				for i := range 3 {
					if _, w := f.try(t, replica, "ada", ip(i), limit.Failed); w != 0 {
						t.Fatalf("failure %d at replica %d waits %v", i+1, replica, w)
					}
				}
				if hashed, w := f.try(t, replica, "ada", ip(9), limit.Succeeded); hashed || w == 0 {
					t.Fatalf("a fourth at replica %d: hashed %v, wait %v", replica, hashed, w)
				}
			}
			if n := f.decided[limit.Decision{By: limit.ByProcess}]; n != 9 {
				t.Errorf("%d attempts are said to have been let pass by the process, not 9", n)
			}
			if n := f.decided[limit.Decision{By: limit.ByProcess, Refused: "account"}]; n != 3 {
				t.Errorf("%d attempts are said to have been refused by the process, not 3", n)
			}
			fail(f.server, false)
			for i := range 10 { // D02: they are empty, and that forgives
				if _, w := f.try(t, i%3, "bob", ip(i), limit.Failed); w != 0 {
					t.Fatalf("failure %d after they came back waits %v", i+1, w)
				}
			}
			if _, w := f.try(t, 0, "bob", ip(9), limit.Failed); w == 0 {
				t.Error("an eleventh passes")
			}
			if f.decided[limit.Decision{By: limit.ByShared}] != 10 || f.decided[limit.Decision{By: limit.ByShared, Refused: "account"}] != 1 {
				t.Errorf("told: %v", f.decided)
			}
		})
	}
}

func TestR61AnAttemptUnderWayWhenTheSharedCountersFailIsJudgedByItsPart(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	th := f.replicas[0]
	for i := range 10 { // by all the limits, since nothing has failed yet
		if err := th.Allow(attempt("ada", ip(i))); err != nil {
			t.Fatal(err)
		}
	}
	f.away.Store(true)
	passed := 0
	for i := range 10 {
		if th.Settle(t.Context(), attempt("ada", ip(i)), limit.Failed) == nil {
			passed++
		}
	}
	if passed != 3 {
		t.Errorf("%d of 10 guesses are answered, not a third", passed)
	}
}

func TestReplicasThatShareNothingAllowTheirPart(t *testing.T) {
	t.Parallel()
	live := 1
	th, err := limit.New(limit.Options{Replicas: func() int { return live }, Now: newClock().now})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		fail(t, th, "ada", ip(i)) // the twin: one that is alone allows all
	}
	live = 3
	if wait(t, th, "ada", ip(5)) == 0 {
		t.Error("four failures are free at one of three replicas")
	}
}

func TestMoreReplicasThanFailuresAllowOneEach(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 40)
	f.away.Store(true)
	if _, w := f.try(t, 0, "ada", ip(1), limit.Failed); w != 0 {
		t.Fatalf("the first failure waits %v", w)
	}
	if _, w := f.try(t, 0, "ada", ip(2), limit.Failed); w != time.Second {
		t.Fatalf("the second waits %v", w)
	}
	f.advance(time.Second)
	if _, w := f.try(t, 0, "ada", ip(2), limit.Succeeded); w != 0 {
		t.Fatalf("the right password after the wait waits %v", w)
	}
}

func TestL14AGuessWhoseCallerHasGoneCountsAllTheSame(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for i := range 10 {
		if err := f.replicas[0].Allow(attempt("ada", ip(i))); err != nil {
			t.Fatal(err)
		}
		if err := f.replicas[0].Settle(gone, attempt("ada", ip(i)), limit.Failed); err != nil {
			t.Fatal(err)
		}
	}
	if _, w := f.try(t, 1, "ada", ip(20), limit.Failed); w == 0 {
		t.Error("the other replica knows of none of them")
	}
}

func TestL13WhatIsReleasedAsksNobodyAndCountsForNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	for i := range 100 {
		if _, w := f.try(t, i%2, "ada", ip(1), limit.Released); w != 0 {
			t.Fatalf("attempt %d waits %v", i, w)
		}
	}
	if n := f.asked.Load(); n != 0 {
		t.Errorf("%d questions", n)
	}
	if n := f.replicas[0].Len(); n != 0 {
		t.Errorf("%d keys are kept", n)
	}
	if _, w := f.try(t, 0, "ada", ip(1), limit.Failed); w != 0 || f.asked.Load() != 1 {
		t.Errorf("the twin waits %v, after %d questions", w, f.asked.Load())
	}
}

func TestL09NetworksOfIPv6AreCountedByTheirSiteToo(t *testing.T) {
	t.Parallel()
	th, _ := throttle(t, 10_000)
	at := func(network, host int) netip.Addr {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%x::%x", network, host+1))
	}
	for i := range 400 {
		fail(t, th, fmt.Sprint("name-", i), at(i, i))
	}
	if wait(t, th, "x", at(1000, 1)) == 0 {
		t.Error("a /64 that nobody had used is free, after 400 failures of its /48")
	}
	if w := wait(t, th, "x", netip.MustParseAddr("2001:db8:2::1")); w != 0 {
		t.Errorf("the next /48 waits %v", w)
	}
}

func TestLimitsChangeWhileItRuns(t *testing.T) {
	t.Parallel()
	th, _ := throttle(t, 1000)
	for i := range 5 {
		fail(t, th, "ada", ip(i))
	}
	c := limit.DefaultConfig()
	c.AccountFailures = 5
	if err := th.Set(c); err != nil {
		t.Fatal(err)
	}
	if wait(t, th, "ada", ip(9)) == 0 {
		t.Error("five failures are free, where five are the limit")
	}
	c.AccountFailures = 0
	if err := th.Set(c); err == nil {
		t.Error("no failures at all are accepted")
	}
	if wait(t, th, "ada", ip(9)) == 0 {
		t.Error("what was refused has changed the limits")
	}
	if err := th.Set(limit.DefaultConfig()); err != nil {
		t.Fatal(err)
	}
	if w := wait(t, th, "ada", ip(9)); w != 0 {
		t.Errorf("by the old limits it waits %v", w)
	}
}

func TestAReplicaBelievesNoWaitThatItsRuleCannotAskFor(t *testing.T) {
	t.Parallel()
	clock := newClock()
	th, err := limit.New(limit.Options{Shared: endless{}, Now: clock.now})
	if err != nil {
		t.Fatal(err)
	}
	if err := th.Allow(attempt("ada", ip(1))); err != nil {
		t.Fatal(err)
	}
	if err := th.Settle(t.Context(), attempt("ada", ip(1)), limit.Succeeded); err == nil || fault.From(err).RetryAfter != time.Minute {
		t.Fatalf("the answer is %v", err)
	}
	clock.advance(-time.Hour) // nor one that a clock that went back makes longer
	if w := wait(t, th, "ada", ip(2)); w != time.Minute {
		t.Errorf("wait %v", w)
	}
	clock.advance(time.Hour + time.Minute)
	if w := wait(t, th, "ada", ip(2)); w != 0 {
		t.Errorf("a minute later it waits %v", w)
	}
}

// endless asks for a year.
type endless struct{}

func (endless) Settle(_ context.Context, counts []limit.Count, _ limit.Outcome) ([]time.Duration, error) {
	waits := make([]time.Duration, len(counts))
	waits[0] = 365 * 24 * time.Hour
	return waits, nil
}

func TestConfigRefuses(t *testing.T) {
	t.Parallel()
	if err := limit.DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*limit.Config){
		"account_failures: is 0":                             func(c *limit.Config) { c.AccountFailures = 0 },
		"account_failures: is 101":                           func(c *limit.Config) { c.AccountFailures = 101 },
		"max_delay: is 1h0m0s":                               func(c *limit.Config) { c.MaxDelay = time.Hour },
		"network_failures: is -1":                            func(c *limit.Config) { c.NetworkFailures = -1 },
		"network_window: is 24h0m0s":                         func(c *limit.Config) { c.NetworkWindow = 24 * time.Hour },
		"total_failures: is -1":                              func(c *limit.Config) { c.TotalFailures = -1 },
		"total_failures: is 100000001":                       func(c *limit.Config) { c.TotalFailures = 100_000_001 },
		"total_failures: is 8000; it must be more than 8000": func(c *limit.Config) { c.NetworkFailures, c.TotalFailures = 2000, 8000 },
	} {
		c := limit.DefaultConfig()
		change(&c)
		if err := c.Validate(); err == nil || len(err.Error()) < len(name) || err.Error()[:len(name)] != name {
			t.Errorf("Validate: %v, want %q", err, name)
		}
	}
}
