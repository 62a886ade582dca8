// Package limit owns the throttle on failed sign-ins: per account name, known or not, per network, and in all; a device that
// an account is known on counts for itself and such devices of that account. It slows guessing
// down and never locks anybody out for good. An attempt is reserved in this process before the password is hashed, so that
// parallel guesses cannot pass the limit together and what is refused costs nothing. Where replicas share their counters,
// they are asked once more when the password has been checked and before anything is said: whoever they refuse does not
// learn whether the password was right.
package limit

import (
	"context"
	"time"
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

// Forget is how long after its last failure the count of a rule without Window is dropped.
const Forget = 24 * time.Hour

// Delay is how long a key waits after its n-th failure where the Rule has no Window; zero while n is below Free.
func (r Rule) Delay(n int) time.Duration {
	beyond := n - r.Free
	if beyond < 0 {
		return 0
	}
	if beyond >= 16 {
		return r.MaxDelay
	}
	return min(r.MaxDelay, time.Second<<beyond)
}

// longest is the longest wait that the Rule can ask for, by any Shared.
func (r Rule) longest() time.Duration {
	if r.Window > 0 {
		return r.Window + r.Window/parts
	}
	return r.MaxDelay
}

// parts is into how many slices a Window is cut: a failure counts for at least Window and less than Window × 11/10.
const parts = 10

// divided is the Rule for one of n replicas that do not know of each other.
func (r Rule) divided(n int) Rule {
	r.Free = max(1, r.Free/max(1, n))
	return r
}

// Outcome is how an attempt ended.
type Outcome int

// The outcomes.
const (
	Released  Outcome = iota // nothing was tried, or nobody knows: it does not count
	Failed                   // a wrong password
	Succeeded                // clears the count of a rule without Window; otherwise like Released
)

// Count is one key that an attempt counts for.
type Count struct {
	// Key tells the counters apart: up to some 300 bytes, of which a caller chose a part. Counts of different rules never have the
	// same one.
	Key  string
	Rule Rule
}

// Shared counts finished attempts for all replicas.
type Shared interface {
	// Settle gives for each count how long its key must wait, in the order of counts; 0 lets the attempt pass. It is one round trip and
	// one atomic step: where all let it pass, all have counted the outcome; where one does not, none has counted, and the attempt is to be refused
	// whatever its outcome. Otherwise the keys that let it pass would tell who is refused whether the password was right. Implementations have a clock that all replicas share, and a deadline of their own of some 50 ms. An error means that nobody
	// knows, and that some of it may have been counted. Counters that are lost, or dropped for want of room, forgive.
	Settle(ctx context.Context, counts []Count, o Outcome) (waits []time.Duration, err error)
}
