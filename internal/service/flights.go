package service

import (
	"context"
	"sync"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/session"
)

// flight names concurrent presentations that share one decision: the whole token, the client and the device.
type flight struct {
	token  [32]byte
	client ids.Client
	device session.Device
}

type decision struct {
	done chan struct{}
	red  session.Redeemed
	err  error
}

// flights lets concurrent calls that present the same token in this process share one decision of the store. A call
// shares only a decision that begins after the call came: one that was under way already may have been made before a
// revocation that has been answered since. So there is at most one decision under way for a token, and one to come.
type flights struct {
	mu     sync.Mutex
	flying map[flight]*pair
}

type pair struct {
	now  *decision // under way
	next *decision // begins when now is done; nil while nobody waits for it
}

func (f *flights) do(ctx context.Context, key flight, decide func() (session.Redeemed, error)) (session.Redeemed, error) {
	f.mu.Lock()
	p := f.flying[key]
	switch {
	case p == nil:
		p = &pair{now: newDecision()}
		if f.flying == nil {
			f.flying = map[flight]*pair{}
		}
		f.flying[key] = p
		f.mu.Unlock()
		return f.lead(key, p, p.now, decide)
	case p.next == nil:
		before, d := p.now, newDecision()
		p.next = d
		f.mu.Unlock()
		<-before.done // a decision is bounded in time, and others wait for this one: the caller's context does not count
		return f.lead(key, p, d, decide)
	}
	d := p.next
	f.mu.Unlock()
	select {
	case <-d.done:
		return d.red, d.err
	case <-ctx.Done():
		return session.Redeemed{}, fault.Wrap(ctx.Err(), fault.Unavailable, fault.StoreUnavailable, "the request was given up")
	}
}

func newDecision() *decision {
	return &decision{done: make(chan struct{}),
		err: fault.New(fault.Internal, fault.InternalError, "the shared decision was not made")} // stands if decide panics
}

// lead makes the decision d, which is the one under way or the one to come, whose turn it is now.
func (f *flights) lead(key flight, p *pair, d *decision, decide func() (session.Redeemed, error)) (session.Redeemed, error) {
	f.mu.Lock()
	if p.next == d {
		p.now, p.next = d, nil // from here on, who comes waits for another one
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		if p.now == d && p.next == nil {
			delete(f.flying, key)
		}
		f.mu.Unlock()
		close(d.done)
	}()
	d.red, d.err = decide()
	return d.red, d.err
}
