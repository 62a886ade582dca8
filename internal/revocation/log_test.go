package revocation_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/verify"
)

func TestNothingIsBelievedBeforeTheFirstRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, h, list := open(t, nil)
		h.commit(journal.KindToken, "dead")
		want(t, list, "dead", verify.ErrNotReady)
		if l.Lag() < time.Hour {
			t.Errorf("before the first read the lag is %v", l.Lag())
		}
		h.breaks(errors.New("the store is away"))
		wantStale(t, "without a store", l.Fresh(t.Context()))
		want(t, list, "dead", verify.ErrNotReady)
		h.breaks(nil)
		ok(t, l.Fresh(t.Context()))
		want(t, list, "dead", verify.ErrRevoked)
		want(t, list, "alive", nil)
		if l.Row() != 1 || l.Lag() != 0 {
			t.Errorf("row %d, lag %v", l.Row(), l.Lag())
		}
	})
}

func TestTheTailBringsWhatOthersCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		revoked := 0
		l, h, list := open(t, func(o *revocation.Options) { o.KeyRevoked = func() { revoked++ } })
		follow(t, l)
		<-time.After(time.Second)
		synctest.Wait()
		if n := h.count(); n != 1 {
			t.Errorf("%d reads of a log that did not change, want the first alone", n)
		}
		if lag := l.Lag(); lag > 20*time.Millisecond {
			t.Errorf("unchanged counts as read, and yet the lag is %v", lag)
		}
		for _, row := range []struct {
			kind journal.Kind
			id   string
		}{{journal.KindToken, "token"}, {journal.KindSession, "session"}, {journal.KindKey, "key"}} {
			want(t, list, row.id, nil)
			h.commit(row.kind, row.id)
			<-time.After(21 * time.Millisecond)
			synctest.Wait()
			want(t, list, row.id, verify.ErrRevoked)
		}
		if revoked != 1 || !l.KeyRevoked("key") || l.KeyRevoked("token") || l.KeyRevoked("another") {
			t.Errorf("the key ring was told %d times; key %v, token %v", revoked, l.KeyRevoked("key"), l.KeyRevoked("token"))
		}
		<-time.After(18 * time.Minute) // entries leave by themselves
		synctest.Wait()
		if list.Len() != 0 {
			t.Errorf("%d entries are left of three that have expired", list.Len())
		}
	})
}

func TestAStoreThatIsAwayMakesTheLagGrowAndNothingIsLost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, h, list := open(t, nil)
		follow(t, l)
		<-time.After(time.Second)
		synctest.Wait()
		h.commit(journal.KindToken, "dead")
		h.breaks(errors.New("the store is away"))
		<-time.After(900 * time.Millisecond)
		ok(t, l.Fresh(t.Context())) // what was known a moment ago still counts
		<-time.After(time.Minute)
		if lag := l.Lag(); lag < time.Minute || lag > 62*time.Second {
			t.Errorf("after a minute the lag is %v", lag)
		}
		wantStale(t, "R61 R10 beyond a second", l.Fresh(t.Context()))
		h.breaks(nil)
		ok(t, l.Fresh(t.Context())) // one read, begun after the call, is enough
		want(t, list, "dead", verify.ErrRevoked)
		<-time.After(25 * time.Millisecond)
		synctest.Wait()
		if lag := l.Lag(); lag > 20*time.Millisecond {
			t.Errorf("once the store is back the lag is %v", lag)
		}
	})
}

// flaky fails the read that follows a change, once.
type flaky struct {
	*history
	failures int
}

func (f *flaky) Tail(ctx context.Context, after int64) (revocation.Page, error) {
	f.mu.Lock()
	fails := f.failures > 0 && len(f.rows) > 0
	if fails {
		f.failures--
	}
	f.mu.Unlock()
	if fails {
		return revocation.Page{}, errors.New("the read failed")
	}
	return f.history.Tail(ctx, after)
}

func TestAChangeWhoseReadFailedIsReadAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := &history{epoch: 1}
		l, _, list := open(t, func(o *revocation.Options) { o.Store = &flaky{history: h, failures: 2} })
		follow(t, l)
		<-time.After(time.Second)
		synctest.Wait()
		h.commit(journal.KindToken, "dead") // the store says "changed" for it once
		<-time.After(100 * time.Millisecond)
		synctest.Wait()
		want(t, list, "dead", verify.ErrRevoked)
	})
}

// begun waits until so many reads have begun.
func (h *history) begun(t *testing.T, reads int) {
	t.Helper()
	for h.count() < reads {
		if t.Context().Err() != nil {
			t.Fatal("no read begins")
		}
		runtime.Gosched()
	}
}

// TestCatchUpSeesWhatWasCommittedBeforeIt holds up a read that has missed a row: whoever asks after the row was committed
// must not be content with that read.
func TestCatchUpSeesWhatWasCommittedBeforeIt(t *testing.T) {
	t.Parallel()
	l, h, list := open(t, nil)
	letGo := h.holdUp()
	early := make(chan error, 1)
	go func() { early <- l.CatchUp(t.Context()) }()
	h.begun(t, 1)
	h.commit(journal.KindToken, "dead")
	late := make(chan error, 100)
	for range cap(late) {
		go func() {
			err := l.CatchUp(t.Context())
			want(t, list, "dead", verify.ErrRevoked)
			late <- err
		}()
	}
	letGo()
	ok(t, <-early)
	for range cap(late) {
		ok(t, <-late)
	}
}

func TestACallerThatGivesUpStopsNoRead(t *testing.T) {
	t.Parallel()
	l, h, list := open(t, nil)
	h.commit(journal.KindToken, "dead")
	letGo := h.holdUp()
	ctx, cancel := context.WithCancel(t.Context())
	hasty := make(chan error, 1)
	go func() { hasty <- l.CatchUp(ctx) }()
	h.begun(t, 1)
	cancel()
	wantStale(t, "a caller that gives up", <-hasty)
	letGo()
	ok(t, l.CatchUp(t.Context()))
	want(t, list, "dead", verify.ErrRevoked)
}

func TestAwaitAnswersFromNoEarlierThanThePosition(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, h, list := open(t, nil)
		other, theirs, _ := open(t, nil) // another replica, whose store has the same rows
		ok(t, l.CatchUp(t.Context()))
		h.commit(journal.KindToken, "dead")
		theirs.commit(journal.KindToken, "dead")
		ok(t, other.CatchUp(t.Context()))
		position := other.Position()
		want(t, list, "dead", nil)
		h.breaks(errors.New("the store is away"))
		wantStale(t, "a position that cannot be reached", l.Await(t.Context(), position))
		h.breaks(nil)
		ok(t, l.Await(t.Context(), position))
		want(t, list, "dead", verify.ErrRevoked)
		if l.Position() != position {
			t.Errorf("two replicas that hold the same rows are at %s and %s", l.Position(), position)
		}
		before := h.count()
		for _, held := range []string{position, ""} {
			ok(t, l.Await(t.Context(), held))
		}
		if n := h.count(); n != before {
			t.Errorf("%d reads for what is held already", n-before)
		}
		theirs.mu.Lock()
		theirs.epoch = 2
		theirs.mu.Unlock()
		ok(t, other.CatchUp(t.Context()))
		ok(t, l.Await(t.Context(), other.Position())) // of another epoch
		if n := h.count(); n != before+1 {
			t.Errorf("%d reads for a position of another epoch, want one", n-before)
		}
		raw, err := base64.RawURLEncoding.DecodeString(position)
		ok(t, err)
		for name, bad := range map[string]string{"a word": "x", "padded": position + "=", "cut short": position[:len(position)-4], "twice": position + position,
			"another alphabet": "+" + position[1:], "a negative row": base64.RawURLEncoding.EncodeToString(append(raw[:16:16], 0x80, 0, 0, 0, 0, 0, 0, 1)), "a line break": position + "\n"} {
			f := fault.From(l.Await(t.Context(), bad))
			if f.Reason != fault.FieldInvalid || len(f.Violations) != 1 || f.Violations[0].Field != "min_position" {
				t.Errorf("%s: %v", name, f)
			}
		}
	})
}

// TestAnotherHistoryIsMerged gives the log a database whose rows are others: what was dead stays dead, and the new rows are
// read from their start.
func TestAnotherHistoryIsMerged(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*history){
		"D07 another epoch":             func(h *history) { h.epoch = 2 },
		"D07 a head below the position": func(*history) {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l, h, list := open(t, nil)
				for _, id := range []string{"one", "two", "three"} {
					h.commit(journal.KindToken, id)
				}
				ok(t, l.CatchUp(t.Context()))
				before := l.Position()
				h.mu.Lock()
				h.rows = nil
				change(h)
				h.mu.Unlock()
				h.commit(journal.KindToken, "new")
				ok(t, l.CatchUp(t.Context()))
				for _, id := range []string{"one", "two", "three", "new"} {
					want(t, list, id, verify.ErrRevoked)
				}
				want(t, list, "alive", nil) // the twin
				if l.Row() != 4 || l.Position() == before {
					t.Errorf("the position is %s, row %d", l.Position(), l.Row())
				}
			})
		})
	}
}

func TestALogNeedsItsOptions(t *testing.T) {
	t.Parallel()
	list, err := verify.NewList(verify.ListOptions{})
	ok(t, err)
	for name, o := range map[string]revocation.Options{
		"no store":  {Issuer: issuer, List: list},
		"no issuer": {Store: &history{}, List: list},
		"no list":   {Store: &history{}, Issuer: issuer},
	} {
		if _, err := revocation.New(o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

// paged gives a history one entry at a time.
type paged struct {
	*history
	reads atomic.Int32
	fail  atomic.Int32 // the read that fails
}

func (p *paged) Tail(ctx context.Context, after int64) (revocation.Page, error) {
	if p.reads.Add(1) == p.fail.Load() {
		return revocation.Page{}, errors.New("away")
	}
	page, err := p.history.Tail(ctx, after)
	if page.More = len(page.Entries) > 1; page.More {
		page.Entries = page.Entries[:1]
	}
	return page, err
}

func TestALogOfManyPagesIsBelievedOnceAllAreRead(t *testing.T) {
	t.Parallel()
	var store *paged
	l, h, list := open(t, func(o *revocation.Options) {
		store = &paged{history: o.Store.(*history)}
		o.Store = store
	})
	for i := range 5 {
		h.commit(journal.KindToken, fmt.Sprint("token-", i))
	}
	store.fail.Store(4)
	if err := l.CatchUp(t.Context()); err == nil {
		t.Fatal("a page that failed is no error")
	}
	want(t, list, "token-0", verify.ErrNotReady)
	if l.Lag() < time.Hour || !l.View().Known.IsZero() {
		t.Error("what was read in part is dated")
	}
	ok(t, l.CatchUp(t.Context()))
	for i := range 5 {
		want(t, list, fmt.Sprint("token-", i), verify.ErrRevoked)
	}
	if v := l.View(); len(v.Live) != 5 || v.Cursor.Row != 5 {
		t.Errorf("the view holds %d entries up to %d", len(v.Live), v.Cursor.Row)
	}
	// What had been read before the failure was not read again.
	if got := store.reads.Load(); got != 6 {
		t.Errorf("%d reads", got)
	}
}
