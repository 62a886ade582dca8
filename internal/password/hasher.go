package password

import (
	"context"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
)

// Options of a Hasher.
type Options struct {
	// Config is the cost of a hash and the memory for all of them. Zero: DefaultConfig.
	Config Config
	// Weak lets Config go below its lower bounds, for tests.
	Weak bool
	// Slots is how many hashes run at once. Zero: max(1, min(GOMAXPROCS − 1, memory budget ÷ memory of a hash)), since a hash
	// on every core starves everything else.
	Slots int
	// Queue is how many callers may wait for a slot. Zero: 4 × Slots.
	Queue int
	// QueueWait is how long one may wait. Zero: 500 ms.
	QueueWait time.Duration
}

// Hasher makes and checks argon2id hashes in a bounded pool. Beyond slots and queue a call is shed at once.
type Hasher struct {
	params  Params
	dummy   hash
	slots   chan struct{}
	tickets chan struct{} // one for each caller that runs or waits
	wait    time.Duration
	shed    atomic.Int64
	done    atomic.Int64
}

// New makes a Hasher.
func New(o Options) (*Hasher, error) {
	if o.Config == (Config{}) {
		o.Config = DefaultConfig()
	}
	check := o.Config.Validate
	if o.Weak {
		check = o.Config.bounded
	}
	if err := check(); err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	if o.Slots < 0 || o.Queue < 0 || o.QueueWait < 0 {
		return nil, fmt.Errorf("password: Slots, Queue and QueueWait must not be negative")
	}
	if o.Slots == 0 {
		fit := int64(o.Config.MemoryBudgetMiB) * 1024 / int64(o.Config.MemoryKiB)
		o.Slots = max(1, min(runtime.GOMAXPROCS(0)-1, int(fit)))
	}
	if o.Queue == 0 {
		o.Queue = 4 * o.Slots
	}
	if o.QueueWait == 0 {
		o.QueueWait = 500 * time.Millisecond
	}
	p := o.Config.params()
	return &Hasher{
		params: p, dummy: hash{params: p, salt: make([]byte, saltBytes), key: make([]byte, keyBytes)},
		slots: make(chan struct{}, o.Slots), tickets: make(chan struct{}, o.Slots+o.Queue), wait: o.QueueWait,
	}, nil
}

// Hash gives the PHC string of a password that Policy has let pass. A password that no account can have is Invalid; a full
// pool is Limited/OVERLOADED.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	n, err := normal(password)
	if err != nil {
		return "", err
	}
	var phc string
	err = h.run(ctx, func() { phc = fresh(n, h.params) })
	return phc, err
}

// Verify reports whether the password is the one of the PHC string, in constant time, and whether the string was made with
// other parameters than today's. Of the length rules only the caps hold here. A hash that cannot be read is an error
// (ErrHash), after the same work.
func (h *Hasher) Verify(ctx context.Context, password, phc string) (ok, needsRehash bool, err error) {
	n, err := normal(password)
	if err != nil {
		return false, false, err
	}
	stored, broken := parse(phc)
	if broken != nil {
		stored = h.dummy
	}
	if err := h.run(ctx, func() { ok = stored.matches(n) }); err != nil {
		return false, false, err
	}
	if broken != nil {
		return false, false, broken
	}
	return ok, ok && (stored.params != h.params || len(stored.salt) != saltBytes || len(stored.key) != keyBytes), nil
}

// VerifyDummy does the work of Verify for an account that does not exist, slot and all, with the same errors.
func (h *Hasher) VerifyDummy(ctx context.Context, password string) error {
	n, err := normal(password)
	if err != nil {
		return err
	}
	return h.run(ctx, func() { h.dummy.matches(n) })
}

// Stats is the state of the pool.
type Stats struct {
	Slots, Running, Queued int
	Shed                   int64 // calls refused since the start
	Done                   int64 // hashes computed since the start
}

// Stats gives the state now.
func (h *Hasher) Stats() Stats {
	running, all := len(h.slots), len(h.tickets)
	return Stats{Slots: cap(h.slots), Running: running, Queued: max(0, all-running), Shed: h.shed.Load(), Done: h.done.Load()}
}

// run does the work in a slot. The caller's goroutine does it, and stays until the end even where its client has gone: a
// hash cannot be stopped half-way, so the slot and the caller end together and nothing outlives either.
func (h *Hasher) run(ctx context.Context, work func()) error {
	select {
	case h.tickets <- struct{}{}:
		defer func() { <-h.tickets }()
	default:
		return h.refuse()
	}
	if err := h.slot(ctx); err != nil {
		return err
	}
	defer func() { <-h.slots }()
	work()
	h.done.Add(1)
	return nil
}

func (h *Hasher) slot(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("password: %w", err)
	}
	select {
	case h.slots <- struct{}{}:
		return nil
	default:
	}
	timer := time.NewTimer(h.wait)
	defer timer.Stop()
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-timer.C:
		return h.refuse()
	case <-ctx.Done():
		return fmt.Errorf("password: waiting for a slot: %w", ctx.Err())
	}
}

func (h *Hasher) refuse() error {
	h.shed.Add(1)
	return &fault.Error{Kind: fault.Limited, Reason: fault.Overloaded, RetryAfter: time.Second,
		Message: "too many sign-ins at once; nothing was tried"}
}
