// Package limit owns the throttle on failed sign-ins: per account name, known or not, and per network. It slows guessing
// down and never locks anybody out for good. An attempt is reserved before the password is hashed, so that parallel guesses
// cannot pass the limit together.
package limit

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
)

// Rule is how many failures a key may have, and what follows.
type Rule struct {
	// Free is how many failures are without consequence.
	Free int
	// Window is how long a failure counts; then Free in any Window is the limit. Zero: failures count until a success, and past
	// Free there is one attempt per 1 s, 2 s, 4 s … up to MaxDelay.
	Window time.Duration
	// MaxDelay is the longest wait where Window is zero. A key that had no failure for Forget is as new.
	MaxDelay time.Duration
}

// Forget is how long after its last failure an account's count is dropped.
const Forget = 24 * time.Hour

// account and network are the rules of the two kinds of key.
func account() Rule { return Rule{Free: 10, MaxDelay: 60 * time.Second} }
func network() Rule { return Rule{Free: 100, Window: 10 * time.Minute} }

// Outcome is how a reserved attempt ended.
type Outcome int

// The outcomes.
const (
	Released  Outcome = iota // nothing was tried, or nobody knows: it does not count
	Failed                   // a wrong password
	Succeeded                // clears the count of a rule without Window; otherwise like Released
)

// Store keeps the counters. Each method is one atomic step. A store that loses its counters, or drops some for want of room,
// forgives; it never refuses for a key that it does not hold.
type Store interface {
	// Reserve takes one attempt for the key and gives 0, or takes none and gives how long to wait. Reserved attempts count
	// as failures until they are settled, or for a minute where nobody settles them.
	Reserve(key string, r Rule, now time.Time) time.Duration
	// Settle ends one reserved attempt.
	Settle(key string, r Rule, now time.Time, o Outcome)
}

// Options of a Throttle.
type Options struct {
	// Store keeps the counters. Nil: a Memory of 100,000 accounts and as many networks.
	Store Store
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// Throttle slows failed sign-ins down.
type Throttle struct {
	store Store
	now   func() time.Time
}

// New makes a Throttle.
func New(o Options) (*Throttle, error) {
	if o.Store == nil {
		var err error
		if o.Store, err = NewMemory(100_000); err != nil {
			return nil, err
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Throttle{store: o.Store, now: o.Now}, nil
}

// Allow reserves one attempt for the account's canonical name, whether it exists or not, and for the network of ip; the zero
// ip has a bucket of its own. Whoever is allowed calls exactly one of Fail, Succeed and Release afterwards. Beyond a limit it
// is Limited/RATE_LIMITED with RetryAfter, the same for every name.
func (t *Throttle) Allow(name string, ip netip.Addr) error {
	now := t.now()
	if wait := t.store.Reserve(networkKey(ip), network(), now); wait > 0 {
		return limited(wait)
	}
	if wait := t.store.Reserve(accountKey(name), account(), now); wait > 0 {
		t.store.Settle(networkKey(ip), network(), now, Released)
		return limited(wait)
	}
	return nil
}

// Fail counts the reserved attempt as a failure of the account and of the network.
func (t *Throttle) Fail(name string, ip netip.Addr) { t.settle(name, ip, Failed) }

// Succeed clears the account's failures. The network's stay: whoever has one good password could clear them at will.
func (t *Throttle) Succeed(name string, ip netip.Addr) { t.settle(name, ip, Succeeded) }

// Release gives the reserved attempt back: it was shed, or its outcome is unknown.
func (t *Throttle) Release(name string, ip netip.Addr) { t.settle(name, ip, Released) }

func (t *Throttle) settle(name string, ip netip.Addr, o Outcome) {
	now := t.now()
	t.store.Settle(accountKey(name), account(), now, o)
	t.store.Settle(networkKey(ip), network(), now, o)
}

func limited(wait time.Duration) error {
	wait = (wait + time.Second - 1).Truncate(time.Second) // Retry-After has whole seconds (RFC 9110 §10.2.3)
	return &fault.Error{Kind: fault.Limited, Reason: fault.RateLimited, RetryAfter: wait,
		Message: fmt.Sprintf("too many failed attempts; try again in %d s", int(wait.Seconds()))}
}

func accountKey(name string) string { return "account:" + name }

// networkKey is the IPv4 /24 or IPv6 /64 of an address; an IPv4 address in IPv6 clothes is the IPv4 address.
func networkKey(ip netip.Addr) string {
	ip = ip.Unmap()
	bits := 64
	if ip.Is4() {
		bits = 24
	}
	p, err := ip.Prefix(bits)
	if err != nil {
		return "network:unknown"
	}
	return "network:" + p.String()
}
