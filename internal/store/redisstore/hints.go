package redisstore

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/authsvc/authsvc/internal/revocation"
)

// How hints travel.
const (
	publishPause = 10 * time.Millisecond // the least between two that are published
	quietFor     = 3 * time.Second       // a subscription that says nothing for so long is asked whether it lives
)

func (s *Store) channel() string { return s.prefix + "hints" }

// Announce says to all replicas that something was appended to the revocation log. It never blocks; what is announced in a quick
// row is one hint. While Redis is away there are none.
func (s *Store) Announce() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// publish sends what is announced, until ctx ends.
func (s *Store) publish(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.news:
		}
		// An error that Redis itself answers says nothing about the counters; the log is looked at by the clock in any case.
		err := s.call(ctx, func(ctx context.Context) error {
			err := s.client.Publish(ctx, s.channel(), "").Err()
			if refused(err) {
				return nil
			}
			return err
		})
		if err == nil {
			rest(ctx, publishPause)
		}
	}
}

// refused reports whether an error is the server's answer.
func refused(err error) bool {
	var answer redis.Error
	return errors.As(err, &answer) && !errors.Is(err, redis.Nil)
}

// Listen calls hint for whatever any replica announces, and whenever it begins to hear, since what came before was missed. It
// connects again by itself and blocks until ctx ends.
func (s *Store) Listen(ctx context.Context, hint func()) error {
	pause := leastPause
	for ctx.Err() == nil {
		heard, flooded := s.hear(ctx, hint)
		if heard {
			pause = leastPause
		}
		if flooded {
			rest(ctx, revocation.FloodPause)
		}
		rest(ctx, pause)
		pause = min(2*pause, mostPause)
	}
	return nil
}

// hear listens until the subscription ends, and reports whether there was one, and whether it ended since others say more than anybody who
// has something to say. go-redis panics over a message of another form than it knows.
func (s *Store) hear(ctx context.Context, hint func()) (heard, flooded bool) {
	defer func() {
		if p := recover(); p != nil {
			s.o.Logger.Warn("Redis sent something else than a message; the channel is listened to anew", "panic", p)
		}
	}()
	sub := s.client.Subscribe(ctx, s.channel())
	defer sub.Close() //nolint:errcheck // it is broken or not needed any more
	stop := context.AfterFunc(ctx, func() { _ = sub.Close() })
	defer stop()
	asked := false
	var flood revocation.Flood
	for {
		said, err := sub.ReceiveTimeout(ctx, quietFor)
		var slow net.Error
		switch {
		case err == nil:
			asked = false
		case errors.As(err, &slow) && slow.Timeout() && heard && !asked && ctx.Err() == nil:
			if asked = true; sub.Ping(ctx) != nil {
				return heard, false
			}
			continue
		default:
			return heard, false
		}
		switch said.(type) {
		case *redis.Subscription:
			heard = true
			hint()
		case *redis.Message:
			if flood.Heard(time.Now()) {
				return heard, true
			}
			hint()
		}
	}
}
