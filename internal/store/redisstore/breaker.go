package redisstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// How long things take while all is well, and while it is not.
const (
	callTimeout  = 50 * time.Millisecond  // of a call, everything included
	probeTimeout = time.Second            // of a probe, which nobody waits for
	leastPause   = 100 * time.Millisecond // between a failure and the first probe
	mostPause    = time.Second            // between two probes
	steady       = 5 * time.Second        // up for so long, it counts as back
	idle         = 15 * time.Second       // without a call for so long, it is asked by a probe
)

// errAway says that a call was not made.
var errAway = errors.New("redisstore: Redis is away")

// breaker lets calls through while Redis answers them. One failure is enough to take it for away: then calls fail at once, and run asks by itself,
// once at a time and ever more slowly, until it has an answer. No caller waits for a probe.
type breaker struct {
	within time.Duration               // of a call
	probe  func(context.Context) error // asks for all that a call needs
	away   func(error)                 // tells that it went away
	back   func()                      // tells that it is back

	turns atomic.Int64 // how often it went up or away: it is up where that is odd
	made  atomic.Int64 // calls that were let through
	told  atomic.Bool  // the last that was told is that it is away
	trip  chan struct{}

	mu  sync.Mutex
	err error // of the call that took it for away
}

func newBreaker(within time.Duration, probe func(context.Context) error, away func(error), back func()) *breaker {
	return &breaker{within: within, probe: probe, away: away, back: back, trip: make(chan struct{}, 1)}
}

func (b *breaker) up() bool { return b.turns.Load()%2 == 1 }

// call makes a call. A caller who leaves early has learnt nothing about Redis.
func (b *breaker) call(ctx context.Context, make func(context.Context) error) error {
	turn := b.turns.Load()
	if turn%2 == 0 {
		return errAway
	}
	b.made.Add(1)
	own, cancel := context.WithTimeout(ctx, b.within)
	defer cancel()
	err := make(own)
	if err != nil && ctx.Err() == nil {
		b.fail(turn, err)
	}
	return err
}

// fail takes Redis for away, unless that was done since the call began, or before.
func (b *breaker) fail(turn int64, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if turn%2 == 0 || !b.turns.CompareAndSwap(turn, turn+1) {
		return
	}
	b.err = err
	select {
	case b.trip <- struct{}{}:
	default:
	}
}

// run probes while Redis is away, until ctx ends.
func (b *breaker) run(ctx context.Context) {
	pause := leastPause
	for ctx.Err() == nil {
		err := b.look(ctx)
		if err == nil {
			b.turns.Add(1)
			if b.hold(ctx) {
				pause = leastPause
			}
			if ctx.Err() != nil {
				return
			}
			b.mu.Lock()
			err = b.err
			b.mu.Unlock()
		}
		if ctx.Err() == nil && !b.told.Swap(true) {
			b.away(err)
		}
		rest(ctx, pause)
		pause = min(2*pause, mostPause)
	}
}

// look probes once.
func (b *breaker) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	return b.probe(ctx)
}

// hold waits until Redis goes away, and reports whether it was there for long.
func (b *breaker) hold(ctx context.Context) (long bool) {
	timer := time.NewTimer(steady)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-b.trip:
		return false
	case <-timer.C:
	}
	if b.told.Swap(false) {
		b.back()
	}
	b.guard(ctx)
	return true
}

// guard waits until Redis goes away. Where nobody calls it, nobody would notice, so it is probed: operators are to know before the next
// sign-in does.
func (b *breaker) guard(ctx context.Context) {
	tick := time.NewTicker(idle)
	defer tick.Stop()
	for seen := b.made.Load(); ; {
		select {
		case <-ctx.Done():
			return
		case <-b.trip:
			return
		case <-tick.C:
		}
		before := seen
		if seen = b.made.Load(); seen != before {
			continue
		}
		turn := b.turns.Load()
		if err := b.look(ctx); err != nil && ctx.Err() == nil {
			b.fail(turn, err)
		}
	}
}

// rest waits for a pause, more or less, so that replicas do not ask in step; or until ctx ends.
func rest(ctx context.Context, pause time.Duration) {
	timer := time.NewTimer(pause*3/4 + rand.N(pause/2))
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
