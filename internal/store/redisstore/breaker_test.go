package redisstore_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/store/redisstore"
)

// circuit is a breaker over a Redis that a test turns off and on.
type circuit struct {
	*redisstore.Breaker
	off         atomic.Bool
	mu          sync.Mutex
	probes      []time.Time // guarded by mu
	gone, again atomic.Int64
}

func newCircuit(t *testing.T) *circuit {
	t.Helper()
	c := &circuit{}
	var probing atomic.Int64
	c.Breaker = redisstore.NewBreaker(func(ctx context.Context) error {
		if probing.Add(1) > 1 {
			t.Error("two probes at once")
		}
		defer probing.Add(-1)
		c.mu.Lock()
		c.probes = append(c.probes, time.Now())
		c.mu.Unlock()
		return c.ask(ctx)
	}, func(error) { c.gone.Add(1) }, func() { c.again.Add(1) })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { c.Run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	synctest.Wait()
	return c
}

// probed gives when there were probes since it was last asked.
func (c *circuit) probed() (at []time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, c.probes = c.probes, nil
	return at
}

// ask answers at once, or, where Redis is off, never.
func (c *circuit) ask(ctx context.Context) error {
	if !c.off.Load() {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

func (c *circuit) call(ctx context.Context) (took time.Duration, err error) {
	began := time.Now()
	err = c.Call(ctx, c.ask)
	return time.Since(began), err
}

func TestD01ACallTakesFiftyMillisecondsAtMostAndAfterThatNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t)
		if took, err := c.call(t.Context()); took != 0 || err != nil {
			t.Fatalf("while Redis is there a call takes %v and ends with %v", took, err)
		}
		c.off.Store(true)
		if took, err := c.call(t.Context()); took != 50*time.Millisecond || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a call of a silent Redis takes %v and ends with %v", took, err)
		}
		for range 1000 {
			if took, err := c.call(t.Context()); took != 0 || !errors.Is(err, redisstore.ErrAway) {
				t.Fatalf("the next one takes %v and ends with %v", took, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		c.off.Store(false)
		time.Sleep(3 * time.Second)
		if took, err := c.call(t.Context()); took != 0 || err != nil {
			t.Fatalf("once Redis is back a call takes %v and ends with %v", took, err)
		}
	})
}

func TestProbesComeOneAtATimeAndEverMoreSlowly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t)
		c.probed()
		c.off.Store(true)
		if _, err := c.call(t.Context()); err == nil {
			t.Fatal("a call of a silent Redis is answered")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		probes := c.probed()
		if n := len(probes); n < 25 || n > 40 {
			t.Errorf("%d probes in a minute, each of which waits for a second", n)
		}
		for i := 1; i < len(probes); i++ {
			pause := probes[i].Sub(probes[i-1]) - time.Second
			if pause < 75*time.Millisecond || pause > 1250*time.Millisecond {
				t.Errorf("pause %d is %v", i, pause)
			}
		}
		if c.gone.Load() != 1 || c.again.Load() != 0 {
			t.Errorf("it was told %d times that Redis went away, and %d times that it is back", c.gone.Load(), c.again.Load())
		}
		c.off.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if c.gone.Load() != 1 || c.again.Load() != 1 {
			t.Errorf("after its return it was told %d times that Redis went away, and %d times that it is back", c.gone.Load(), c.again.Load())
		}
	})
}

func TestARedisThatComesAndGoesIsSpokenOfOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t)
		for range 600 { // a minute in which probes go well and calls do not
			_ = c.Call(t.Context(), func(context.Context) error { return errors.New("OOM") })
			time.Sleep(100 * time.Millisecond)
		}
		if c.gone.Load() != 1 || c.again.Load() != 0 {
			t.Errorf("it was told %d times that Redis went away, and %d times that it is back", c.gone.Load(), c.again.Load())
		}
	})
}

func TestACallerWhoLeavesDoesNotTakeRedisForAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t)
		c.off.Store(true)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if took, err := c.call(ctx); took != 20*time.Millisecond || err == nil || !c.Up() {
			t.Fatalf("who waits 20 ms waited %v and got %v; up: %v", took, err, c.Up())
		}
		if _, err := c.call(t.Context()); err == nil || c.Up() {
			t.Fatalf("who stays got %v; up: %v", err, c.Up())
		}
	})
}

func TestAFailureOfACallFromBeforeDoesNotCountAfterIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t)
		late := make(chan struct{})
		done := make(chan struct{})
		go func() {
			_ = c.Call(t.Context(), func(context.Context) error { <-late; return errors.New("late") })
			close(done)
		}()
		synctest.Wait()
		_ = c.Call(t.Context(), func(context.Context) error { return errors.New("broken") })
		time.Sleep(time.Second)
		close(late)
		<-done
		if !c.Up() {
			t.Error("a failure of a call that began before the last probe takes Redis for away")
		}
	})
}

// TestD01ARedisThatNobodyCallsIsMissedAllTheSame takes Redis away where there are no calls; the twin has calls, which are answered, and no probes.
func TestD01ARedisThatNobodyCallsIsMissedAllTheSame(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCircuit(t)
		time.Sleep(10 * time.Second)
		c.probed()
		for range 60 {
			if _, err := c.call(t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if probes := c.probed(); len(probes) != 0 || !c.Up() {
			t.Errorf("%d probes beside calls that are answered; up: %v", len(probes), c.Up())
		}
		c.off.Store(true)
		time.Sleep(35 * time.Second)
		synctest.Wait()
		if c.Up() || c.gone.Load() != 1 {
			t.Errorf("after 35 s without Redis it counts as up: %v; it was told %d times that it went away", c.Up(), c.gone.Load())
		}
		c.off.Store(false)
		time.Sleep(35 * time.Second)
		synctest.Wait()
		if !c.Up() || c.again.Load() != 1 {
			t.Errorf("once it is there again it counts as up: %v; it was told %d times", c.Up(), c.again.Load())
		}
	})
}
