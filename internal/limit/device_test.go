package limit_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/limit"
)

// on makes an attempt at a replica from a device, and gives how long it is to wait.
func (f *fleet) on(t *testing.T, replica int, device, name string, from netip.Addr, o limit.Outcome) time.Duration {
	t.Helper()
	a := limit.Attempt{Account: name, IP: from, Device: device}
	err := f.replicas[replica].Allow(a)
	if err == nil {
		err = f.replicas[replica].Settle(t.Context(), a, o)
	}
	if err == nil {
		return 0
	}
	if e := fault.From(err); e.Reason != fault.RateLimited || e.RetryAfter <= 0 {
		t.Fatalf("refused with %v", err)
	}
	return fault.From(err).RetryAfter
}

func TestL10R50GuessesElsewhereDoNotMakeAKnownDeviceWait(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	for i := range 1000 { // from everywhere, the victim's own network included
		f.try(t, i%3, "ada", ip(i%50), limit.Failed)
	}
	for replica := range 3 {
		if w := f.on(t, replica, "laptop", "ada", ip(1), limit.Succeeded); w != 0 {
			t.Errorf("the known device waits %v at replica %d", w, replica)
		}
		if _, w := f.try(t, replica, "ada", ip(1), limit.Succeeded); w == 0 {
			t.Errorf("the twin: one that nobody knows does not wait at replica %d", replica)
		}
	}
	if f.decided[limit.Decision{By: limit.ByShared}] < 3 {
		t.Errorf("decided: %v", f.decided)
	}
}

func TestR50AKnownDeviceHasItsOwnFailuresOverAllReplicas(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	for i := range 10 {
		if w := f.on(t, i%3, "laptop", "ada", ip(i), limit.Failed); w != 0 {
			t.Fatalf("failure %d waits %v", i+1, w)
		}
	}
	for replica := range 3 {
		if w := f.on(t, replica, "laptop", "ada", ip(99), limit.Succeeded); w != time.Second {
			t.Errorf("after ten failures it waits %v at replica %d", w, replica)
		}
		if w := f.on(t, replica, "phone", "ada", ip(99), limit.Succeeded); w != 0 {
			t.Errorf("another device waits %v", w)
		}
	}
	if _, w := f.try(t, 0, "ada", ip(3), limit.Succeeded); w != 0 {
		t.Errorf("and who has none waits %v for it", w)
	}
	if n := f.decided[limit.Decision{By: limit.ByShared, Refused: "device"}] + f.decided[limit.Decision{By: limit.ByProcess, Refused: "device"}]; n != 3 {
		t.Errorf("decided: %v", f.decided)
	}
	f.advance(time.Second)
	if w := f.on(t, 0, "laptop", "ada", ip(1), limit.Succeeded); w != 0 {
		t.Errorf("after the wait it waits %v", w)
	}
	if w := f.on(t, 1, "laptop", "ada", ip(1), limit.Failed); w != 0 {
		t.Errorf("a failure after the success waits %v", w)
	}
}

func TestL10ASuccessOnAKnownDeviceGivesTheGuesserNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	for i := range 10 {
		f.try(t, 0, "ada", ip(i), limit.Failed)
	}
	if w := f.on(t, 0, "laptop", "ada", ip(1), limit.Succeeded); w != 0 {
		t.Fatal(w)
	}
	if _, w := f.try(t, 0, "ada", ip(20), limit.Failed); w == 0 {
		t.Error("the account's failures are forgiven")
	}
}

func TestL09FailuresFromEverywhereEndAllButKnownDevices(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	for _, th := range f.replicas {
		c := limit.DefaultConfig()
		c.TotalFailures, c.NetworkFailures = 300, 50
		if err := th.Set(c); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 { // an address and a name each
		if _, w := f.try(t, i%3, fmt.Sprint("name-", i), ip(i), limit.Failed); w != 0 {
			t.Fatalf("failure %d waits %v", i+1, w)
		}
	}
	for replica := range 3 {
		_, w := f.try(t, replica, "ada", ip(1000+replica), limit.Succeeded)
		if w == 0 || w > 11*time.Minute {
			t.Errorf("one that nobody knows waits %v at replica %d", w, replica)
		}
		if w := f.on(t, replica, "laptop", "ada", ip(1000), limit.Succeeded); w != 0 {
			t.Errorf("a known device waits %v at replica %d", w, replica)
		}
	}
	if f.decided[limit.Decision{By: limit.ByShared, Refused: "total"}]+f.decided[limit.Decision{By: limit.ByProcess, Refused: "total"}] != 3 {
		t.Errorf("decided: %v", f.decided)
	}
	f.advance(11 * time.Minute)
	if _, w := f.try(t, 0, "ada", ip(1000), limit.Succeeded); w != 0 {
		t.Errorf("once the failures have left the window it waits %v", w)
	}
}

func TestL09WithoutSharedCountersEachReplicaAllowsItsPartOfAllFailures(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	f.away.Store(true)
	for _, th := range f.replicas {
		c := limit.DefaultConfig()
		c.TotalFailures, c.NetworkFailures = 30, 5
		if err := th.Set(c); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 10 {
		if _, w := f.try(t, 0, fmt.Sprint("name-", i), ip(i), limit.Failed); w != 0 {
			t.Fatalf("failure %d waits %v", i+1, w)
		}
	}
	if _, w := f.try(t, 0, "ada", ip(99), limit.Failed); w == 0 {
		t.Error("one replica of three lets eleven failures of thirty pass")
	}
}

func TestR50AThousandTokensOfOneAccountAreWorthAHundredGuesses(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	answered := 0
	for i := range 1000 { // whoever had the password until yesterday, and signed in with it again and again
		if f.on(t, i%3, fmt.Sprint("hoard-", i), "ada", ip(i), limit.Failed) == 0 {
			answered++
		}
	}
	if answered != 100 {
		t.Errorf("%d guesses are answered", answered)
	}
	if f.decided[limit.Decision{By: limit.ByShared, Refused: "devices"}] == 0 {
		t.Errorf("decided: %v", f.decided)
	}
	if _, w := f.try(t, 0, "ada", ip(1), limit.Succeeded); w != 0 {
		t.Errorf("who has none waits %v for it", w)
	}
	if w := f.on(t, 0, "laptop", "bob", ip(1), limit.Succeeded); w != 0 {
		t.Errorf("another account's device waits %v for it", w)
	}
	f.advance(time.Second)
	if w := f.on(t, 1, "laptop", "ada", ip(1), limit.Succeeded); w != 0 {
		t.Errorf("after the wait the account's device waits %v", w)
	}
	for i := range 100 {
		if w := f.on(t, i%3, fmt.Sprint("more-", i), "ada", ip(i), limit.Failed); w != 0 {
			t.Fatalf("failure %d after the success waits %v", i+1, w)
		}
	}
}

func TestL09ALimitThatIsRaisedCountsAtOnceAtEveryReplica(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		raised int
		waits  bool
	}{
		{"raised", 600, false},
		{"the twin: read again as it was", 300, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, 3)
			set := func(total int) {
				for _, th := range f.replicas {
					c := limit.DefaultConfig()
					c.TotalFailures, c.NetworkFailures = total, 50
					if err := th.Set(c); err != nil {
						t.Fatal(err)
					}
				}
			}
			set(300)
			for i := range 300 {
				f.try(t, i%3, fmt.Sprint("name-", i), ip(i), limit.Failed)
			}
			for replica := range 3 {
				if _, w := f.try(t, replica, "ada", ip(1000), limit.Succeeded); w == 0 {
					t.Fatalf("replica %d lets one more pass", replica)
				}
			}
			set(tt.raised)
			for replica := range 3 {
				if _, w := f.try(t, replica, "ada", ip(1000), limit.Succeeded); (w > 0) != tt.waits {
					t.Errorf("at replica %d it waits %v", replica, w)
				}
			}
		})
	}
}

func TestL09AClockThatWentBackKeepsNewcomersOutNoLongerThanTheWindow(t *testing.T) {
	t.Parallel() // D16
	for _, back := range []time.Duration{0, time.Second, time.Minute, time.Hour, 400 * 24 * time.Hour} {
		t.Run(fmt.Sprint("back by ", back), func(t *testing.T) {
			t.Parallel()
			th, clock := throttle(t, 1000)
			c := limit.DefaultConfig()
			c.TotalFailures, c.NetworkFailures = 300, 50
			if err := th.Set(c); err != nil {
				t.Fatal(err)
			}
			for i := range 300 {
				fail(t, th, fmt.Sprint("name-", i), ip(i))
				clock.advance(time.Second)
			}
			clock.advance(-back)
			w := wait(t, th, "ada", ip(1000))
			if w == 0 || w > 11*time.Minute {
				t.Fatalf("wait %v", w)
			}
			clock.advance(w)
			if again := wait(t, th, "ada", ip(1000)); again != 0 {
				t.Errorf("after the wait it was told: %v", again)
			}
			clock.advance(11 * time.Minute)
			for i := range 300 {
				fail(t, th, fmt.Sprint("name-", i), ip(i))
			}
		})
	}
}

func TestL09AllFailuresHaveALimitThatGrowsWithANetworks(t *testing.T) {
	t.Parallel()
	c := limit.DefaultConfig()
	c.NetworkFailures = 1_000_000 // as configurations had it before there was a limit of all
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	c.NetworkFailures = 2
	f := newFleet(t, 1)
	if err := f.replicas[0].Set(c); err != nil {
		t.Fatal(err)
	}
	for i := range 160 {
		if _, w := f.try(t, 0, fmt.Sprint("name-", i), ip(i), limit.Failed); w != 0 {
			t.Fatalf("failure %d waits %v", i+1, w)
		}
	}
	if _, w := f.try(t, 0, "ada", ip(1000), limit.Failed); w == 0 {
		t.Error("more than eighty times as many failures as one network's pass")
	}
}
