package redisstore

import (
	"context"
	"net"
	"time"
)

// Breaker is breaker for tests.
type Breaker struct{ *breaker }

// ErrAway is errAway.
var ErrAway = errAway

// NewBreaker makes one.
func NewBreaker(probe func(context.Context) error, away func(error), back func()) *Breaker {
	return &Breaker{newBreaker(callTimeout, probe, away, back)}
}

// Call is call.
func (b *Breaker) Call(ctx context.Context, make func(context.Context) error) error {
	return b.call(ctx, make)
}

// Run is run.
func (b *Breaker) Run(ctx context.Context) { b.run(ctx) }

// Up is up.
func (b *Breaker) Up() bool { return b.up() }

// Patient lets calls take a busy machine as long as they do.
func Patient(o Options) Options {
	o.within, o.reply = time.Minute, time.Minute
	return o
}

// Unhurried lets calls take as long as go-redis itself waits for an answer, so that one which never comes is missed there.
func Unhurried(o Options) Options {
	o.within = 2 * replyTimeout
	return o
}

// Bounded is what a Store reads its answers through.
func Bounded(c net.Conn) net.Conn { return &bounded{Conn: c} }

// ErrBounds is errBounds.
var ErrBounds = errBounds

// Name is the key in Redis that a count has.
func (s *Store) Name(key string) string { return s.name(key) }
