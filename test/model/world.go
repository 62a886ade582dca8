package model

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// Run plays a schedule in a bubble of its own, with a look at the promise after every step and every message. Then all faults end,
// and within a bounded time each verifier must refuse what is revoked and let the rest pass. It gives what was broken first.
func Run(t *testing.T, subject Subject, plan Plan) (seen Seen, broken error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		w := newWorld(ctx, subject, plan)
		broken = w.play(plan)
		end()
		w.running.Wait()
		seen = w.seen
	})
	return seen, broken
}

type world struct {
	ctx      context.Context //nolint:containedctx // a world lives as long as its context
	subject  Subject
	db       *database
	stores   []*Store
	replicas []Replica
	seats    []*seat
	tokens   [tokens]verify.Subject
	running  sync.WaitGroup
	seen     Seen
}

// seat is a verifier with what the world knows of it.
type seat struct {
	Verifier
	link    *link
	calls   int
	stopped bool
	clock   *Clock
	whole   bool      // the last part of a snapshot has been handed to it
	date    time.Time // the latest that it claimed
	until   [tokens]time.Time
}

func newWorld(ctx context.Context, s Subject, p Plan) *world {
	w := &world{ctx: ctx, subject: s, db: &database{early: s.EarlyPositions, epoch: 1}}
	for i := range w.tokens {
		w.tokens[i] = subject(i, time.Now())
	}
	w.db.tokens = w.tokens
	for range p.Replicas {
		store := &Store{db: w.db}
		w.stores = append(w.stores, store)
		w.replicas = append(w.replicas, s.Replica(store))
	}
	for range p.Verifiers {
		c := &Clock{begun: time.Now()}
		w.seats = append(w.seats, &seat{Verifier: s.Verifier(c), clock: c})
	}
	return w
}

func (w *world) play(p Plan) error {
	for i, o := range p.Ops {
		err := w.do(o)
		synctest.Wait()
		if err == nil {
			err = w.check()
		}
		if err != nil {
			return fmt.Errorf("step %d (%v): %w", i, o, err)
		}
	}
	return w.heal()
}

// From the end of all faults to verifiers that know everything it takes at most some seconds; and what a call without the end of
// its snapshot may take besides, where a fault has fallen on that.
const (
	healing       = 15
	snapshotLimit = 2 * time.Minute
)

func (w *world) heal() error {
	for _, s := range w.stores {
		s.set(func() { s.away = false })
	}
	for _, s := range w.seats {
		s.stopped = false
		s.clock.suspend(false)
		if s.link != nil {
			s.link.set("", 0)
		}
	}
	for round := 0; ; round++ {
		for range healing {
			if err := w.pulse(); err != nil {
				return fmt.Errorf("after all faults: %w", err)
			}
		}
		if err := w.whole(); err == nil || round == 1 {
			return err
		}
		time.Sleep(snapshotLimit)
	}
}

// whole says which verifier does not know everything.
func (w *world) whole() error {
	rows, _ := w.db.truth()
	for v, s := range w.seats {
		for i := range w.tokens {
			err, dead := s.Check(&w.tokens[i]), hit(rows, i) != nil
			if dead && !errors.Is(err, verify.ErrRevoked) || !dead && err != nil && !errors.Is(err, verify.ErrRevoked) {
				return fmt.Errorf("long after all faults v%d says %q of token %d, revoked: %v", v, fmt.Sprint(err), i, dead)
			}
		}
	}
	return nil
}

func (w *world) do(o Op) error {
	s, store := w.seats[o.V], w.stores[o.R]
	switch o.Kind {
	case wait:
		time.Sleep(o.Delay)
	case commit:
		w.db.begin(o.N, 0)
	case late:
		w.db.begin(o.N, lateBy)
	case read:
		w.read(o.R, o.Delay, o.Second)
	case step:
		w.replicas[o.R].Step(false)
	case beat:
		for range o.N {
			w.replicas[o.R].Step(true)
		}
	case tell:
		w.db.begin(o.N, 0)
		w.read(o.R, 0, 0)
		time.Sleep(quick)
		w.replicas[o.R].Step(false)
	case miss:
		w.read(o.R, 0, time.Second)
		time.Sleep(quick)
		w.db.begin(o.N, 0)
		time.Sleep(time.Second)
		w.replicas[o.R].Step(true)
	case pulse:
		return w.pulse()
	case away, back:
		store.set(func() { store.away = o.Kind == away })
	case restore:
		w.db.restore(o.N)
	case connect:
		if w.hangUp(s, errCut); s.clock.since.IsZero() {
			w.call(s, o.R, o.Delay)
			s.link.set(o.Fault, o.N)
		}
	case deliver:
		if !s.stopped {
			return w.deliver(s, o.N)
		}
	case stop, doze, resume:
		s.stopped = o.Kind != resume
		s.clock.suspend(o.Kind == doze)
	case restart:
		w.hangUp(s, errCut)
		s.clock.suspend(false)
		*s = seat{Verifier: w.subject.Verifier(s.clock), calls: s.calls, clock: s.clock}
	case cut:
		var err error
		if !s.stopped {
			err = w.deliver(s, o.N)
		}
		w.hangUp(s, errCut)
		return err
	case drop, twice, swap:
		if s.link != nil {
			s.link.set(o.Kind, 0)
		}
	case clock:
		if s.clock.wrong = o.Delay; s.clock.since.IsZero() {
			s.Sweep()
		}
	}
	return nil
}

// quick is more than what a read takes at a store that answers at once.
const quick = 10 * time.Millisecond

// read begins a read.
func (w *world) read(r int, before, after time.Duration) {
	s := w.stores[r]
	s.set(func() { s.before, s.after = before, after })
	w.running.Go(func() { _ = w.replicas[r].Read(w.ctx) })
}

// pulse is a second of a world that does its best.
func (w *world) pulse() error {
	for r, replica := range w.replicas {
		w.read(r, 0, 0)
		time.Sleep(quick)
		replica.Step(true)
	}
	for _, s := range w.seats {
		if s.stopped {
			continue
		}
		s.Sweep()
		if s.link == nil {
			w.call(s, s.calls%len(w.replicas), 0)
		}
		if err := w.deliver(s, 1000); err != nil {
			return err
		}
	}
	time.Sleep(time.Second)
	return w.check()
}

var errCut = errors.New("the connection was lost")

// call begins a stream.
func (w *world) call(s *seat, r int, delay time.Duration) {
	ctx, cancel := context.WithCancel(w.ctx)
	l := &link{cancel: cancel, in: make(chan *authsvcv1.WatchTrustResponse, socket), ended: make(chan error, 1)}
	cursor := s.Begin()
	if s.link = l; cursor != "" {
		w.seen.Resumes++
	}
	s.calls++
	w.running.Go(func() {
		err := pause(ctx, delay)
		if err == nil {
			err = w.replicas[r].Watch(ctx, cursor, func(m *authsvcv1.WatchTrustResponse) error { return l.send(ctx, m) })
		}
		l.ended <- err
	})
}

func (w *world) hangUp(s *seat, err error) {
	if s.link != nil {
		s.link.cancel()
		s.link = nil
		s.End(err)
	}
}

// deliver hands a verifier what waits for it, and looks at the promise after each.
func (w *world) deliver(s *seat, most int) error {
	for range most {
		synctest.Wait()
		if s.link == nil {
			return nil
		}
		select {
		case m := <-s.link.in:
			if m.GetSnapshot().GetCursor() != "" {
				s.whole = true
			}
			if err := s.Take(m); err != nil {
				w.seen.Broken++
				w.hangUp(s, err)
			}
			if err := w.check(); err != nil {
				return err
			}
			continue
		default:
		}
		select {
		case err := <-s.link.ended:
			w.hangUp(s, err)
		default:
		}
		return nil
	}
	return nil
}

// socket is how many messages wait between a replica and a verifier before its sends block.
const socket = 4

// link is one stream on its way.
type link struct {
	cancel context.CancelFunc
	in     chan *authsvcv1.WatchTrustResponse
	ended  chan error

	mu    sync.Mutex
	fault string
	skip  int // messages before the one that it befalls
	held  *authsvcv1.WatchTrustResponse
}

func (l *link) set(fault string, skip int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fault, l.skip = fault, skip
}

func (l *link) send(ctx context.Context, m *authsvcv1.WatchTrustResponse) error {
	l.mu.Lock()
	fault, held := "", l.held
	if l.held = nil; l.skip > 0 {
		l.skip--
	} else {
		fault, l.fault = l.fault, ""
	}
	if fault == swap {
		l.held = m
	}
	l.mu.Unlock()
	all := []*authsvcv1.WatchTrustResponse{m, held}
	switch fault {
	case drop, swap:
		all[0] = nil
	case twice:
		all = append(all, m)
	}
	for _, m := range all {
		if m == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case l.in <- m:
		}
	}
	return nil
}
