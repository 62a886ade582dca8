// Package instance owns who else serves: each running server says every few seconds, in the one store, that it is there
// and how far it has read the revocation log. What is decided for a person or a token never depends on it: it tells
// operators what runs, and divides what one server may let through while servers cannot count together.
package instance

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/authsvc/authsvc/internal/ids"
)

// Times of the register.
const (
	// Every is between two beats, give or take a tenth.
	Every = 5 * time.Second
	// Living is how long a server counts as one that runs after its last beat.
	Living = 15 * time.Second
	// Kept is how long one that fell silent is listed; then a sweep may drop it.
	Kept = time.Hour

	beatFor  = 2 * time.Second // the most that one beat waits for the store
	leaveFor = time.Second     // and that an end does
)

// Instance is one start of one server.
type Instance struct {
	ID        string    // random, one for each start
	Host      string    // the machine's name
	Version   string    // of the program
	StartedAt time.Time // the store's time of the first beat
	SeenAt    time.Time // the store's time of the last one
	Clock     time.Time // what the server's own clock said then
	State
}

// State is how far a server has read the revocation log: up to which row of which history, and how long ago its last
// completed read began.
type State struct {
	Epoch    [16]byte
	Position int64
	Lag      time.Duration
}

// Live reports whether the server was seen within Living, at the store's time now.
func (i Instance) Live(now time.Time) bool { return now.Sub(i.SeenAt) < Living }

// Store keeps one row for each server.
type Store interface {
	// Beat says that a server runs, at the store's time; StartedAt and SeenAt of its argument are not looked at. It gives how
	// many are live, this one included.
	Beat(ctx context.Context, i Instance) (live int, err error)
	// List gives those seen within Kept, the oldest start first, and the store's time.
	List(ctx context.Context) ([]Instance, time.Time, error)
	// Leave forgets a server; one that is not there is no error.
	Leave(ctx context.Context, id string) error
	// Sweep forgets servers not seen within Kept, at most limit; it gives how many.
	Sweep(ctx context.Context, limit int) (int, error)
}

// Options are what New needs.
type Options struct {
	Store   Store        // required
	Host    string       // may be empty
	Version string       // may be empty
	State   func() State // required: of the revocation log in this process
	Now     func() time.Time
	Logger  *slog.Logger
}

// Register keeps this server's row, and knows how many others there are.
type Register struct {
	o    Options
	id   string
	live atomic.Int64
}

// New makes a Register with an id of its own; nothing is said before Run.
func New(o Options) (*Register, error) {
	if o.Store == nil || o.State == nil {
		return nil, errors.New("instance: Store and State are required")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Register{o: o, id: ids.New[string]()}
	r.live.Store(1)
	return r, nil
}

// ID names this start of this server.
func (r *Register) ID() string { return r.id }

// Live is how many servers were live at the last beat that the store answered; at least 1.
func (r *Register) Live() int { return int(r.live.Load()) }

// Run beats until ctx ends, and then leaves. While the store is away Live stays as it was.
func (r *Register) Run(ctx context.Context) error {
	failing := false
	for ctx.Err() == nil {
		err := r.beat(ctx)
		switch {
		case err != nil && ctx.Err() == nil && !failing:
			r.o.Logger.WarnContext(ctx, "this server cannot say to the others that it runs", "error", err)
			failing = true
		case err == nil && failing:
			r.o.Logger.InfoContext(ctx, "the others are told again that this server runs")
			failing = false
		}
		next := time.NewTimer(Every - Every/10 + rand.N(Every/5))
		select {
		case <-next.C:
		case <-ctx.Done():
			next.Stop()
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveFor)
	defer cancel()
	if err := r.o.Store.Leave(ctx, r.id); err != nil {
		r.o.Logger.WarnContext(ctx, "the others count this server for some seconds more", "error", err)
	}
	return nil
}

func (r *Register) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beatFor)
	defer cancel()
	live, err := r.o.Store.Beat(ctx, Instance{ID: r.id, Host: r.o.Host, Version: r.o.Version, Clock: r.o.Now(), State: r.o.State()})
	if err == nil {
		r.live.Store(int64(max(1, live)))
	}
	return err
}
