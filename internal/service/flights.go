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

// flights lets concurrent calls that present the same token in this process share one decision of the store.
type flights struct {
	mu     sync.Mutex
	flying map[flight]*decision
}

func (f *flights) do(ctx context.Context, key flight, decide func() (session.Redeemed, error)) (session.Redeemed, error) {
	f.mu.Lock()
	d, joined := f.flying[key]
	if !joined {
		d = &decision{done: make(chan struct{}),
			err: fault.New(fault.Internal, fault.InternalError, "the shared decision was not made")} // stands if decide panics
		if f.flying == nil {
			f.flying = map[flight]*decision{}
		}
		f.flying[key] = d
	}
	f.mu.Unlock()
	if joined {
		select {
		case <-d.done:
			return d.red, d.err
		case <-ctx.Done():
			return session.Redeemed{}, fault.Wrap(ctx.Err(), fault.Unavailable, fault.StoreUnavailable, "the request was given up")
		}
	}
	defer func() {
		f.mu.Lock()
		delete(f.flying, key)
		f.mu.Unlock()
		close(d.done)
	}()
	d.red, d.err = decide()
	return d.red, d.err
}
