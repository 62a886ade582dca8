package revocation_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/verify"
)

// bell is a source of hints that a test rings.
type bell struct {
	heard atomic.Pointer[func()]
	fails error
}

func (b *bell) Listen(ctx context.Context, hint func()) error {
	if b.fails != nil {
		return b.fails
	}
	b.heard.Store(&hint)
	<-ctx.Done()
	return nil
}

func (b *bell) ring() { (*b.heard.Load())() }

// asked counts the looks that ask first.
type asked struct {
	*history
	times atomic.Int64
}

func (a *asked) Changed(ctx context.Context) (bool, error) {
	a.times.Add(1)
	return a.history.Changed(ctx)
}

// hearing runs a log that has been read once and hears a bell.
func hearing(t *testing.T, every time.Duration) (*revocation.Log, *bell, *asked, *verify.List) {
	t.Helper()
	b, store := &bell{}, &asked{}
	l, h, list := open(t, func(o *revocation.Options) {
		store.history = o.Store.(*history)
		o.Store, o.Every, o.Hints = store, every, []revocation.Hints{b}
	})
	ok(t, l.CatchUp(t.Context()))
	follow(t, l)
	synctest.Wait()
	if h.count() != 1 {
		t.Fatalf("%d reads before the first hint", h.count())
	}
	return l, b, store, list
}

func TestAHintMakesTheLogLookAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, b, h, list := hearing(t, time.Hour)
		for n, id := range []string{"one", "two", "three"} {
			h.commit(journal.KindToken, id)
			synctest.Wait()
			want(t, list, id, nil) // the twin: nobody said so
			began := time.Now()
			b.ring()
			synctest.Wait()
			want(t, list, id, verify.ErrRevoked)
			if took := time.Since(began); took != 0 || l.Hints() != uint64(n+1) || l.Lag() != 0 {
				t.Errorf("after hint %d of %d it took %v, and the lag is %v", n+1, l.Hints(), took, l.Lag())
			}
			<-time.After(10 * time.Millisecond)
		}
		if n := h.times.Load(); n != 0 {
			t.Errorf("it asked %d times whether there is what a hint had said", n)
		}
	})
}

func TestHintsThatComeWhileALookRunsCauseOneMore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, b, h, list := hearing(t, time.Hour)
		letGo := h.holdUp()
		b.ring()
		synctest.Wait()
		h.commit(journal.KindToken, "late") // the read that runs has missed it
		for range 1000 {
			b.ring()
		}
		letGo()
		<-time.After(time.Second)
		synctest.Wait()
		want(t, list, "late", verify.ErrRevoked)
		if n := h.count(); n != 3 {
			t.Errorf("%d reads, want one before the hints, one for the first, and one for the others", n)
		}
	})
}

func TestAFloodOfHintsCannotMakeItSpin(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, b, h, list := hearing(t, 20*time.Millisecond)
		flood := func() {
			for range 10_000 {
				b.ring()
				<-time.After(100 * time.Microsecond)
			}
			synctest.Wait()
		}
		flood()
		if n := h.count() - 1; n < 20 || n > 24 {
			t.Errorf("a second of hints that bring nothing caused %d reads, want one in 50 ms and a few more", n)
		}
		if n := h.times.Load(); n < 48 {
			t.Errorf("meanwhile the clock made it look %d times, want 50", n)
		}
		h.mu.Lock()
		h.changed = false
		h.mu.Unlock()
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for {
				b.ring()
				select {
				case <-time.After(100 * time.Microsecond):
				case <-stop:
					return
				}
			}
		}()
		for _, id := range []string{"one", "two", "three"} {
			h.commit(journal.KindToken, id)
			<-time.After(51 * time.Millisecond)
			synctest.Wait()
			want(t, list, id, verify.ErrRevoked)
		}
	})
}

func TestHintsThatBringSomethingAreFollowedEveryFiveMilliseconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, b, h, _ := hearing(t, time.Hour)
		for n := range 1000 {
			h.commit(journal.KindToken, fmt.Sprint(n))
			b.ring()
			<-time.After(time.Millisecond)
		}
		synctest.Wait()
		if n := h.count() - 1; n < 195 || n > 202 {
			t.Errorf("a second of hints that each brought something caused %d reads, want one in 5 ms", n)
		}
	})
}

func TestASourceLeavesAFlood(t *testing.T) {
	t.Parallel()
	began := time.Now()
	var f revocation.Flood
	for n := range 30_000 { // ten thousand a second, for three
		if f.Heard(began.Add(time.Duration(n) * 100 * time.Microsecond)) {
			t.Fatalf("the %dth of as many as there may be is too many", n)
		}
	}
	f = revocation.Flood{}
	for n := range 10_001 {
		if tooMany := f.Heard(began.Add(time.Duration(n) * 90 * time.Microsecond)); tooMany != (n == 10_000) {
			t.Fatalf("of more than there may be, the %dth is too many: %v", n, tooMany)
		}
	}
}

func TestALostHintAndOneWhoseReadFailedAreMadeGoodByTheClock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, b, h, list := hearing(t, 20*time.Millisecond)
		h.commit(journal.KindToken, "unheard")
		<-time.After(21 * time.Millisecond)
		synctest.Wait()
		want(t, list, "unheard", verify.ErrRevoked)
		h.commit(journal.KindToken, "unread")
		h.mu.Lock()
		h.changed, h.away = false, errors.New("the store is away") // nothing but the hint tells of it
		h.mu.Unlock()
		b.ring()
		synctest.Wait()
		h.breaks(nil)
		<-time.After(21 * time.Millisecond)
		synctest.Wait()
		want(t, list, "unread", verify.ErrRevoked)
	})
}

func TestASourceOfHintsThatGivesUpIsSaid(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		l, h, list := open(t, func(o *revocation.Options) {
			o.Logger = slog.New(slog.NewTextHandler(&said, nil))
			o.Hints = []revocation.Hints{&bell{fails: errors.New("no such channel")}}
		})
		follow(t, l)
		h.commit(journal.KindToken, "dead")
		<-time.After(21 * time.Millisecond)
		synctest.Wait()
		want(t, list, "dead", verify.ErrRevoked)
		if !strings.Contains(said.String(), "no such channel") {
			t.Errorf("it said %q", said.String())
		}
	})
}
