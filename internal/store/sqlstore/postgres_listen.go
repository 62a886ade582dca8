package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"github.com/authsvc/authsvc/internal/revocation"
)

// channel is where the appends of this schema are told of. Its name is short enough for PostgreSQL, whatever the schema's.
func (p *pool) channel() string {
	h := fnv.New64a()
	_, _ = h.Write([]byte(p.schema))
	return fmt.Sprintf("authsvc_%016x", h.Sum64())
}

// How long a listener waits for a hint before it asks whether its connection lives, and then for the answer, and for the end
// of a connection that it gives up.
const (
	hearFor   = 5 * time.Second
	answerFor = 3 * time.Second
	farewell  = time.Second
)

// How long a listener waits before it connects again: the first time, and at most.
const (
	firstReconnect = 50 * time.Millisecond
	longReconnect  = time.Second
)

// listener hears NOTIFY on a connection of its own: one of a pool would be taken from calls, and Close would wait for it.
type listener struct {
	p       *pool
	hearFor time.Duration
}

// Listen implements revocation.Hints.
func (l *listener) Listen(ctx context.Context, hint func()) error {
	wait := firstReconnect
	for ctx.Err() == nil {
		heard, flooded := l.hear(ctx, hint)
		if heard {
			wait = firstReconnect
		}
		pause := time.NewTimer(wait/2 + rand.N(wait))
		if flooded {
			pause.Reset(revocation.FloodPause)
		}
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
		wait = min(2*wait, longReconnect)
	}
	return nil
}

// config is how a listener connects: as everything else does, and so to the server that takes writes.
func (l *listener) config() *pgx.ConnConfig {
	c := l.p.source.Config().ConnConfig
	c.RuntimeParams["application_name"] += "-listen"
	// A wait that ends costs neither the connection nor a cancel request.
	c.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: conn.Conn()}
	}
	return c
}

// hear listens on one connection until that is lost; heard says that it listened at all. Anybody who may connect to the database may
// notify on any channel of it: from a flood it goes away, and does not make the server keep what it has not read.
func (l *listener) hear(ctx context.Context, hint func()) (heard, flooded bool) {
	conn, err := pgx.ConnectConfig(ctx, l.config())
	if err != nil {
		return false, false
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer cancel()
		_ = conn.Close(ctx)
	}()
	if err := within(ctx, answerFor, func(ctx context.Context) error {
		_, err := conn.Exec(ctx, `LISTEN `+pgx.Identifier{l.p.channel()}.Sanitize())
		return err
	}); err != nil {
		return false, false
	}
	hint() // what was appended before was missed
	var flood revocation.Flood
	for ctx.Err() == nil {
		err := within(ctx, l.hearFor, func(ctx context.Context) error {
			_, err := conn.WaitForNotification(ctx)
			return err
		})
		switch {
		case err == nil && flood.Heard(time.Now()):
			return true, true
		case err == nil:
			hint()
		case conn.IsClosed() || within(ctx, answerFor, writable(conn)) != nil:
			return true, false
		}
	}
	return true, false
}

// writable asks a server that was silent whether it is there, and still the one that takes writes.
func writable(conn *pgx.Conn) func(context.Context) error {
	return func(ctx context.Context) error {
		var readOnly string
		err := conn.QueryRow(ctx, `SHOW transaction_read_only`).Scan(&readOnly)
		if err == nil && readOnly == "on" {
			err = errors.New("sqlstore: the server takes no writes any more")
		}
		return err
	}
}

// within runs f for at most so long.
func within(ctx context.Context, long time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	return f(ctx)
}
