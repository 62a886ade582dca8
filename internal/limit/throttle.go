package limit

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
)

// Decision is what was decided about an attempt, and by whom.
type Decision struct {
	// By is ByShared or ByProcess.
	By string
	// Refused is the kind of key that refused it, one of Kinds; empty where the attempt was let pass.
	Refused string
}

// Who decides.
const (
	ByShared  = "shared"  // the counters that all replicas share
	ByProcess = "process" // the counters of this process
)

// Attempt is what a sign-in counts for.
type Attempt struct {
	// Account is the canonical name, whether there is such an account or not.
	Account string
	// IP is the caller's address; the zero one has a network of its own.
	IP netip.Addr
	// Device names what has proved that this account signed in there before. Such an attempt counts for the device, and for all known
	// devices of the account together: whoever once had the password may have made himself a thousand. Nobody's guesses elsewhere make it wait,
	// and its own make nobody wait whose device is not known. Empty: a device that nobody knows.
	Device string
}

// Kinds are the kinds of key that may refuse an attempt.
func Kinds() []string { return []string{"account", "network", "site", "total", "device", "devices"} }

// Options of a Throttle.
type Options struct {
	// Config is how much is allowed; the zero Config stands for DefaultConfig.
	Config Config
	// Room is for how many keys of each kind this process has memory. Zero: 100,000.
	Room int
	// Shared are the counters that all replicas share. Nil: each has its own.
	Shared Shared
	// Replicas gives how many replicas there are now. While Shared fails, or where there is none, each allows its part of what all may.
	// Nil: one.
	Replicas func() int
	// Decided is told of every decision, if it is there.
	Decided func(Decision)
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Throttle slows failed sign-ins down.
type Throttle struct {
	o      Options
	config atomic.Pointer[Config]
	memory *Memory
	alone  atomic.Bool // Shared has failed, and not answered since
}

// New makes a Throttle.
func New(o Options) (*Throttle, error) {
	if o.Room == 0 {
		o.Room = 100_000
	}
	if o.Replicas == nil {
		o.Replicas = func() int { return 1 }
	}
	if o.Decided == nil {
		o.Decided = func(Decision) {}
	}
	if o.Config == (Config{}) {
		o.Config = DefaultConfig()
	}
	m, err := NewMemory(MemoryOptions{Room: o.Room, Now: o.Now})
	if err != nil {
		return nil, err
	}
	t := &Throttle{o: o, memory: m}
	return t, t.Set(o.Config)
}

// Set changes how much is allowed from now on; what was counted stays, but for networks, and in all, where the window changes. What Validate refuses
// changes nothing.
func (t *Throttle) Set(c Config) error {
	if err := c.Validate(); err != nil {
		return fmt.Errorf("limit: %w", err)
	}
	t.config.Store(&c)
	return nil
}

// Allow reserves one attempt for what it counts for. It asks this process alone. Whoever is allowed calls Settle once
// afterwards, with the same Attempt. Beyond a limit it is Limited/RATE_LIMITED with RetryAfter, the same for every name.
func (t *Throttle) Allow(a Attempt) error {
	counts, kinds := t.counts(a)
	if t.o.Shared == nil || t.alone.Load() {
		counts = divided(counts, t.o.Replicas())
	}
	waits := t.memory.reserve(counts)
	if i := worst(waits); i >= 0 {
		return t.refuse(ByProcess, kinds[i], waits[i])
	}
	return nil
}

// Settle ends an attempt that Allow let begin. What it gives is the answer where it is not nil, whatever the password was:
// Limited/RATE_LIMITED by the counters that all replicas share; then the attempt counts for nothing. While those do not answer,
// the counters of this process decide, with this replica's part of the limits. A success clears the failures of the account, or the
// device, and not the network's: whoever has one good password could clear them at will. Released asks nobody. That ctx ends changes nothing: a
// guess whose caller has gone has been made all the same.
func (t *Throttle) Settle(ctx context.Context, a Attempt, o Outcome) error {
	counts, kinds := t.counts(a)
	if o == Released {
		t.memory.conclude(counts, o)
		return nil
	}
	if t.o.Shared == nil {
		t.memory.conclude(counts, o) // Allow was the verdict
		t.o.Decided(Decision{By: ByProcess})
		return nil
	}
	waits, err := t.o.Shared.Settle(context.WithoutCancel(ctx), counts, o)
	if err == nil && len(waits) != len(counts) {
		waits, err = nil, fmt.Errorf("limit: %d waits for %d counts", len(waits), len(counts))
	}
	t.alone.Store(err != nil)
	for i := range waits {
		waits[i] = min(waits[i], counts[i].Rule.longest()) // no wait is believed that the rule cannot ask for
	}
	by := ByShared
	if err != nil {
		by, waits = ByProcess, t.memory.judge(divided(counts, t.o.Replicas()), o)
	} else if worst(waits) < 0 {
		t.memory.conclude(counts, o)
	} else {
		t.memory.block(counts, waits)
	}
	if i := worst(waits); i >= 0 {
		return t.refuse(by, kinds[i], waits[i])
	}
	t.o.Decided(Decision{By: by})
	return nil
}

// Len gives how many keys this process holds.
func (t *Throttle) Len() int { return t.memory.Len() }

func (t *Throttle) refuse(by, kind string, wait time.Duration) error {
	t.o.Decided(Decision{By: by, Refused: kind})
	wait = (wait + time.Second - 1).Truncate(time.Second) // Retry-After has whole seconds (RFC 9110 §10.2.3)
	return &fault.Error{Kind: fault.Limited, Reason: fault.RateLimited, RetryAfter: wait,
		Message: fmt.Sprintf("too many failed attempts; try again in %d s", int(wait.Seconds()))}
}

// worst gives the longest wait's place, or -1 where there is none.
func worst(waits []time.Duration) int {
	at := -1
	for i, w := range waits {
		if w > 0 && (at < 0 || w > waits[at]) {
			at = i
		}
	}
	return at
}

func divided(counts []Count, n int) []Count {
	for i := range counts {
		counts[i].Rule = counts[i].Rule.divided(n)
	}
	return counts
}

// counts gives what an attempt counts for, and the kind of each: a known device, and all of its account; or the name, the IPv4 /24 or IPv6 /64, the IPv6 /48, and all failures together;
// an IPv4 address in IPv6 clothes is the IPv4 address. The window stands in the key: failures counted by one cannot be read by another.
func (t *Throttle) counts(a Attempt) (counts []Count, kinds []string) {
	c := t.config.Load()
	add := func(kind, key string, r Rule) {
		counts, kinds = append(counts, Count{Key: key, Rule: r}), append(kinds, kind)
	}
	if a.Device != "" {
		add("device", "device:"+a.Device, c.account())
		add("devices", "devices:"+a.Account, c.devices())
		return counts, kinds
	}
	window := strconv.FormatInt(int64(c.NetworkWindow/time.Millisecond), 10)
	network := "network:" + window + ":"
	add("account", "account:"+a.Account, c.account())
	switch ip := a.IP.Unmap(); {
	case ip.Is4():
		add("network", network+prefix(ip, 24), c.network())
	case ip.Is6():
		add("network", network+prefix(ip, 64), c.network())
		add("site", network+prefix(ip, 48), c.site())
	default:
		add("network", network+"unknown", c.network())
	}
	add("total", "total:"+window, c.total())
	return counts, kinds
}

// prefix writes a network without the zone that an address may have.
func prefix(ip netip.Addr, bits int) string {
	return netip.PrefixFrom(ip.WithZone(""), bits).Masked().String()
}
