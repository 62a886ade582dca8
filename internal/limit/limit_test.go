package limit_test

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/limit"
)

// clock is a time that a test moves.
type clock struct{ at atomic.Int64 }

func (c *clock) now() time.Time          { return time.Unix(0, c.at.Load()) }
func (c *clock) advance(d time.Duration) { c.at.Add(int64(d)) }

func newClock() *clock {
	c := &clock{}
	c.at.Store(1_800_000_000 * int64(time.Second))
	return c
}

func throttle(t *testing.T, room int) (*limit.Throttle, *clock) {
	t.Helper()
	c := newClock()
	th, err := limit.New(limit.Options{Room: room, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	return th, c
}

// ip gives an address whose /24 is the n-th.
func ip(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 7}) }

// attempt is one from a device that nobody knows.
func attempt(name string, from netip.Addr) limit.Attempt {
	return limit.Attempt{Account: name, IP: from}
}

// settle ends an attempt that must not be refused any more.
func settle(t *testing.T, th *limit.Throttle, name string, from netip.Addr, o limit.Outcome) {
	t.Helper()
	if err := th.Settle(t.Context(), attempt(name, from), o); err != nil {
		t.Fatalf("refused after it was tried: %v", err)
	}
}

// wait asks once more and gives back at once what it was allowed.
func wait(t *testing.T, th *limit.Throttle, name string, from netip.Addr) time.Duration {
	t.Helper()
	err := th.Allow(attempt(name, from))
	if err == nil {
		settle(t, th, name, from, limit.Released)
		return 0
	}
	f := fault.From(err)
	if f.Kind != fault.Limited || f.Reason != fault.RateLimited || f.RetryAfter <= 0 {
		t.Fatalf("refused with %v, retry after %v", err, f.RetryAfter)
	}
	return f.RetryAfter
}

func fail(t *testing.T, th *limit.Throttle, name string, from netip.Addr) {
	t.Helper()
	if err := th.Allow(attempt(name, from)); err != nil {
		t.Fatalf("not even tried: %v", err)
	}
	settle(t, th, name, from, limit.Failed)
}

func TestR50AnAccountHasTenFailuresAndThenOneTryAfterADoublingWait(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"alice", "nobody-of-that-name"} {
		th, clock := throttle(t, 100)
		for i := range 10 {
			if w := wait(t, th, name, ip(i)); w != 0 {
				t.Fatalf("after %d failures: wait %v", i, w)
			}
			fail(t, th, name, ip(i))
		}
		for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
			want *= time.Second
			clock.advance(want - time.Millisecond)
			if w := wait(t, th, name, ip(100+i)); w != time.Second {
				t.Fatalf("a millisecond before the end of wait %d: %v", i, w)
			}
			clock.advance(time.Millisecond)
			fail(t, th, name, ip(100+i))
		}
		if w := wait(t, th, "somebody else", ip(1)); w != 0 {
			t.Errorf("another account waits %v", w)
		}
	}
}

func TestTheWaitIsToldInFull(t *testing.T) {
	t.Parallel()
	th, clock := throttle(t, 100)
	for i := range 10 {
		fail(t, th, "alice", ip(i))
	}
	clock.advance(time.Second)
	fail(t, th, "alice", ip(11))
	clock.advance(300 * time.Millisecond)
	if w := wait(t, th, "alice", ip(12)); w != 2*time.Second {
		t.Errorf("1.7 s to go, told %v", w)
	}
}

func TestASuccessClearsTheAccountAndNotTheNetwork(t *testing.T) {
	t.Parallel()
	th, clock := throttle(t, 1000)
	for range 12 {
		clock.advance(time.Minute / 6)
		fail(t, th, "alice", ip(1))
	}
	clock.advance(time.Minute)
	if err := th.Allow(attempt("alice", ip(1))); err != nil {
		t.Fatal(err)
	}
	settle(t, th, "alice", ip(1), limit.Succeeded)
	for range 10 {
		fail(t, th, "alice", ip(1))
	}
	if w := wait(t, th, "alice", ip(2)); w == 0 {
		t.Error("ten failures after a success are free")
	}
	for i := range 78 { // 22 of the network's failures stand already
		fail(t, th, fmt.Sprint("name-", i), ip(1))
	}
	if w := wait(t, th, "mallory", ip(1)); w == 0 {
		t.Error("a success cleared the failures of its network")
	}
	if th.Len() == 0 {
		t.Error("nothing is kept")
	}
}

func TestANetworkHasAHundredFailuresInTenMinutes(t *testing.T) {
	t.Parallel() // L09
	cases := []struct {
		name        string
		from        func(i int) netip.Addr
		same, other netip.Addr
	}{
		{"an IPv4 /24", func(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }, netip.MustParseAddr("192.0.2.255"), netip.MustParseAddr("192.0.3.1")},
		{"the same in IPv6 clothes", func(i int) netip.Addr { return netip.AddrFrom16(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}).As16()) },
			netip.MustParseAddr("192.0.2.255"), netip.MustParseAddr("::ffff:192.0.3.1")},
		{"an IPv6 /64", func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x:1%%eth%d", i, i)) },
			netip.MustParseAddr("2001:db8::ffff"), netip.MustParseAddr("2001:db8:0:1::1")},
		{"L11 an address that nobody could read", func(int) netip.Addr { return netip.Addr{} }, netip.Addr{}, netip.MustParseAddr("192.0.3.1")},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			th, clock := throttle(t, 1000)
			for i := range 100 {
				if w := wait(t, th, "x", c.same); w != 0 {
					t.Fatalf("after %d failures: wait %v", i, w)
				}
				fail(t, th, fmt.Sprint("name-", i), c.from(i))
				clock.advance(time.Second)
			}
			w := wait(t, th, "x", c.same)
			if w < 8*time.Minute || w > 10*time.Minute {
				t.Errorf("wait %v", w)
			}
			if wait(t, th, "x", c.other) != 0 {
				t.Error("another network waits too")
			}
			clock.advance(w)
			if again := wait(t, th, "x", c.same); again != 0 {
				t.Errorf("after the wait it was told: %v", again)
			}
		})
	}
}

func TestParallelGuessesCannotPassTheLimitTogether(t *testing.T) {
	t.Parallel()
	th, clock := throttle(t, 1000)
	var allowed atomic.Int64
	var wg sync.WaitGroup
	gate := make(chan struct{})
	for i := range 200 {
		wg.Go(func() {
			<-gate
			if th.Allow(attempt("alice", ip(i))) == nil {
				allowed.Add(1)
			}
		})
	}
	close(gate)
	wg.Wait()
	if n := allowed.Load(); n != 10 {
		t.Errorf("%d guesses at once", n)
	}
	for range 10 {
		settle(t, th, "alice", ip(1), limit.Failed)
	}
	clock.advance(time.Minute)
	if err := th.Allow(attempt("alice", ip(300))); err != nil {
		t.Fatal(err)
	}
	if w := wait(t, th, "alice", ip(301)); w != time.Second {
		t.Errorf("a second try beside the one after the wait: %v", w)
	}
	settle(t, th, "alice", ip(300), limit.Released)
	if w := wait(t, th, "alice", ip(301)); w != 0 {
		t.Errorf("a released attempt counts: %v", w)
	}
}

func TestAttemptsThatNobodySettlesAreGivenUpAfterAMinute(t *testing.T) {
	t.Parallel()
	th, clock := throttle(t, 1000)
	for i := range 10 {
		if err := th.Allow(attempt("alice", ip(i))); err != nil {
			t.Fatal(err)
		}
	}
	if wait(t, th, "alice", ip(20)) == 0 {
		t.Error("an eleventh attempt under way")
	}
	clock.advance(time.Minute + 1)
	if w := wait(t, th, "alice", ip(20)); w != 0 {
		t.Errorf("after a minute: %v", w)
	}
}

func TestAnAccountLeftInPeaceForADayIsAsNew(t *testing.T) {
	t.Parallel()
	th, clock := throttle(t, 1000)
	for i := range 10 {
		fail(t, th, "alice", ip(i))
	}
	clock.advance(limit.Forget + time.Second)
	fail(t, th, "alice", ip(1))
	if w := wait(t, th, "alice", ip(1)); w != 0 {
		t.Errorf("wait %v", w)
	}
}

func TestMemoryIsBoundedAndKeepsWhatWasUsedLast(t *testing.T) {
	t.Parallel()
	th, _ := throttle(t, 50)
	for i := range 10 {
		fail(t, th, "victim", ip(i))
	}
	for i := range 500 {
		fail(t, th, fmt.Sprint("name-", i), ip(i))
		if wait(t, th, "victim", ip(1000)) == 0 {
			t.Fatalf("the victim's count was pushed out after %d names although it is in use", i)
		}
		if n := th.Len(); n > 100 {
			t.Fatalf("%d keys", n)
		}
	}
	fresh, _ := throttle(t, 50)
	for i := range 500 {
		if err := fresh.Allow(attempt(fmt.Sprint("name-", i), ip(i))); err != nil {
			t.Fatal(err)
		}
		settle(t, fresh, fmt.Sprint("name-", i), ip(i), limit.Succeeded)
	}
	if n := fresh.Len(); n != 0 {
		t.Errorf("%d keys are kept of sign-ins that all went well", n)
	}
	if _, err := limit.NewMemory(limit.MemoryOptions{}); err == nil {
		t.Error("a Memory without room is accepted")
	}
}

func TestAClockThatGoesBackDoesNotForgetFailures(t *testing.T) {
	t.Parallel() // D16
	th, clock := throttle(t, 1000)
	for i := range 100 {
		fail(t, th, fmt.Sprint("name-", i), ip(1))
	}
	clock.advance(-time.Hour)
	if wait(t, th, "x", ip(1)) == 0 {
		t.Error("an hour back, and the network is as new")
	}
}
