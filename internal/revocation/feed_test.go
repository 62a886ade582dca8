package revocation_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/verify"
)

// book is a store whose log the test writes.
type book struct {
	revocation.Store
	mu      sync.Mutex
	epoch   byte
	entries []revocation.Entry
	failure error
	reads   int
}

func (b *book) Tail(_ context.Context, after int64) (revocation.Page, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reads++
	p := revocation.Page{Epoch: [16]byte{b.epoch}}
	for _, e := range b.entries {
		if p.Head = e.Position; e.Position > after {
			p.Entries = append(p.Entries, e)
		}
	}
	return p, b.failure
}

// Renew implements revocation.Store.
func (b *book) Renew(_ context.Context, old [16]byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.epoch == old[0] {
		b.epoch += 100
	}
	return b.failure
}

// Reappend implements revocation.Store.
func (b *book) Reappend(_ context.Context, _ int64, entries []revocation.Entry) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range entries {
		e.Position = int64(len(b.entries) + 1)
		b.entries = append(b.entries, e)
	}
	return len(entries), b.failure
}

// Settle implements revocation.Store.
func (b *book) Settle(context.Context, string) error { return nil }

func (b *book) Changed(context.Context) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return true, b.failure
}

// become makes the book another one: the ends of tokens with these names, from row 1 on.
func (b *book) become(epoch byte, failure error, tokens ...string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.epoch, b.failure, b.entries = epoch, failure, nil
	for i, jti := range tokens {
		b.entries = append(b.entries, revocation.Entry{Position: int64(i + 1), Kind: journal.KindToken, ID: jti, ExpiresAt: time.Unix(4e9, 0)})
	}
}

func newLog(t *testing.T, s revocation.Store) *revocation.Log {
	t.Helper()
	list, err := verify.NewList(verify.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := revocation.New(revocation.Options{Store: s, Issuer: issuer, List: list})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func read(t *testing.T, l *revocation.Log) revocation.View {
	t.Helper()
	if err := l.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	return l.View()
}

// rows writes entries as "row name", by the names that the test knows.
func rows(entries []revocation.Live, names ...string) []string {
	known := map[verify.Target]string{}
	for _, n := range names {
		known[verify.TargetOf(issuer, verify.KindToken, n)] = n
	}
	out := []string{}
	for _, e := range entries {
		out = append(out, fmt.Sprintf("%d %s", e.Row, known[e.Target]))
	}
	return out
}

func TestAViewHoldsTheLogInItsOrder(t *testing.T) {
	t.Parallel()
	db, err := sqlstore.Open(t.Context(), sqlstore.Options{Path: sqlstore.Memory})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	l := newLog(t, db.Revocations())
	if v := l.View(); !v.Known.IsZero() || len(v.Live) != 0 {
		t.Errorf("before the first read: %v", v)
	}
	append3 := func(names ...string) {
		for _, n := range names {
			if err := db.Revocations().Append(t.Context(), journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: n}}}); err != nil {
				t.Fatal(err)
			}
		}
	}
	append3("a", "b", "c")
	asked := time.Now()
	first := read(t, l)
	if first.Known.Before(asked) || time.Now().Before(first.Known) {
		t.Errorf("a read that began between %v and now is dated %v", asked, first.Known)
	}
	append3("d", "e")
	second := read(t, l)
	if diff := cmp.Diff([]string{"1 a", "2 b", "3 c"}, rows(first.Live, "a", "b", "c")); diff != "" {
		t.Errorf("the first view (-want +got)\n%s", diff)
	}
	if l.Entries() != 5 {
		t.Errorf("%d entries are counted as read", l.Entries())
	}
	if e := first.Live[0]; e.ExpireTime < asked.Add(journal.RevocationTTL).Unix() || e.NotBefore != 0 {
		t.Errorf("an entry is %+v", e)
	}
	for _, tt := range []struct {
		name    string
		cursor  revocation.Cursor
		want    []string
		resumed bool
	}{
		{"a caller without a cursor gets all", revocation.Cursor{}, []string{"1 a", "2 b", "3 c", "4 d", "5 e"}, false},
		{"one at the start of this history", revocation.Cursor{Epoch: first.Cursor.Epoch}, []string{"1 a", "2 b", "3 c", "4 d", "5 e"}, true},
		{"one at the first view", first.Cursor, []string{"4 d", "5 e"}, true},
		{"one at the head", second.Cursor, []string{}, true},
		{"one ahead of the head gets all", revocation.Cursor{Epoch: first.Cursor.Epoch, Row: 6}, []string{"1 a", "2 b", "3 c", "4 d", "5 e"}, false},
		{"one of another history gets all", revocation.Cursor{Epoch: [16]byte{1}, Row: 3}, []string{"1 a", "2 b", "3 c", "4 d", "5 e"}, false},
	} {
		entries, resumed := second.After(tt.cursor)
		if diff := cmp.Diff(tt.want, rows(entries, "a", "b", "c", "d", "e")); diff != "" || resumed != tt.resumed {
			t.Errorf("%s: resumed %v (-want +got)\n%s", tt.name, resumed, diff)
		}
	}
}

func TestACursorIsReadAsItWasWritten(t *testing.T) {
	t.Parallel()
	good := revocation.Cursor{Epoch: [16]byte{1, 2, 15: 255}, Row: 77}
	if c, err := revocation.ParseCursor("cursor", good.String()); err != nil || c != good {
		t.Errorf("%v came back as %v, error %v", good, c, err)
	}
	for _, tt := range []struct{ name, text string }{
		{"nothing", ""}, {"a word", "cursor"}, {"a character more", good.String() + "A"}, {"a character less", good.String()[1:]},
		{"another alphabet", strings.Repeat("+", 32)}, {"padding", good.String() + "="}, {"a line break", good.String()[:31] + "\n"},
		{"a negative row", revocation.Cursor{Epoch: good.Epoch, Row: math.MinInt64}.String()},
		{"bytes for two", base64.RawURLEncoding.EncodeToString(make([]byte, 48))},
	} {
		_, err := revocation.ParseCursor("cursor", tt.text)
		f := fault.From(err)
		if f.Kind != fault.Invalid || len(f.Violations) != 1 || f.Violations[0].Field != "cursor" {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestAnotherHistoryTakesNothingAway(t *testing.T) {
	t.Parallel()
	b := &book{}
	b.become(1, nil, "a", "b", "c")
	l := newLog(t, b)
	first := read(t, l)
	for _, tt := range []struct {
		name   string
		epoch  byte
		tokens []string
		want   []string
	}{
		{"a restored copy under another epoch, with rows used anew", 2, []string{"a", "x", "y"}, []string{"1 a", "2 x", "3 y", "4 b", "5 c"}},
		{"an emptied log", 3, nil, []string{"1 a", "2 x", "3 y", "4 b", "5 c"}},
		{"another one that is not empty", 4, []string{"z"}, []string{"1 z", "2 a", "3 x", "4 y", "5 b", "6 c"}},
	} {
		b.become(tt.epoch, nil, tt.tokens...)
		v := read(t, l)
		entries, resumed := v.After(first.Cursor)
		if diff := cmp.Diff(tt.want, rows(entries, "a", "b", "c", "x", "y", "z")); diff != "" || resumed {
			t.Errorf("%s: resumed %v (-want +got)\n%s", tt.name, resumed, diff)
		}
		if _, resumed := v.After(v.Cursor); !resumed {
			t.Errorf("%s: its own cursor is not resumed", tt.name)
		}
		first = v
	}
}

// TestALogThatGoesBackUnderOneEpochIsAnotherHistory: its rows come again with other entries.
func TestALogThatGoesBackUnderOneEpochIsAnotherHistory(t *testing.T) {
	t.Parallel()
	b := &book{}
	b.become(1, nil, "a", "b", "c")
	l := newLog(t, b)
	before := read(t, l)
	b.become(1, nil, "a")
	back := read(t, l)
	other := newLog(t, b) // another replica, which never saw what is lost
	if diff := cmp.Diff([]string{"1 a", "2 b", "3 c"}, rows(back.Live, "a", "b", "c")); diff != "" {
		t.Errorf("what was lost came back as (-want +got)\n%s", diff)
	}
	if before.Cursor.Epoch == back.Cursor.Epoch || read(t, other).Cursor != back.Cursor {
		t.Errorf("the histories are %x and %x, another replica's %x", before.Cursor, back.Cursor, other.View().Cursor)
	}
	if entries, resumed := back.After(before.Cursor); len(entries) != 3 || resumed {
		t.Errorf("a cursor of the lost history, at a row that is there again, gets %d entries, resumed %v", len(entries), resumed)
	}
	if entries, resumed := back.After(revocation.Cursor{Epoch: back.Cursor.Epoch, Row: 1}); !resumed || len(entries) != 2 {
		t.Errorf("after the new history's first row: %d entries, resumed %v", len(entries), resumed)
	}
}

func TestACursorAheadIsLookedForOnce(t *testing.T) {
	t.Parallel()
	b := &book{}
	b.become(1, nil, "a")
	l := newLog(t, b)
	at := read(t, l).Cursor
	ahead := revocation.Cursor{Epoch: at.Epoch, Row: 2}
	away := errors.New("the store is away")
	for _, tt := range []struct {
		name   string
		cursor revocation.Cursor
		store  error
		reads  int
		fails  bool
	}{
		{"the head costs nothing", at, away, 0, false},
		{"another history costs nothing", revocation.Cursor{Epoch: [16]byte{9}, Row: 99}, away, 0, false},
		{"ahead, and the store is away", ahead, away, 1, true},
		{"the twin: ahead, and the store has it", ahead, nil, 1, false},
		{"it is known from then on", ahead, away, 0, false},
		{"ahead of the store too", revocation.Cursor{Epoch: at.Epoch, Row: 99}, nil, 1, false},
	} {
		b.become(1, tt.store, "a", "b")
		b.reads = 0
		err := l.Reach(t.Context(), tt.cursor)
		if tt.fails != (err != nil) || err != nil && fault.From(err).Kind != fault.Unavailable || b.reads != tt.reads {
			t.Errorf("%s: %d reads, error %v", tt.name, b.reads, err)
		}
	}
	if got := l.View().Cursor; got != ahead {
		t.Errorf("the log is at %v", got)
	}
}

func TestWhatHasExpiredLeavesTheLiveOnes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &book{}
		b.become(1, nil, "short", "long", "for good")
		b.entries[0].ExpiresAt, b.entries[1].ExpiresAt, b.entries[2].ExpiresAt = time.Now().Add(30*time.Second), time.Now().Add(90*time.Second), time.Time{}
		l := newLog(t, b)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- l.Run(ctx) }()
		for _, want := range [][]string{{"1 short", "2 long", "3 for good"}, {"2 long", "3 for good"}, {"3 for good"}, {"3 for good"}} {
			time.Sleep(time.Minute - 10*time.Second) // of the bubble's own clock
			synctest.Wait()
			if diff := cmp.Diff(want, rows(l.View().Live, "short", "long", "for good")); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			time.Sleep(10 * time.Second)
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestNothingIsDatedByAReadThatFailed(t *testing.T) {
	t.Parallel()
	b := &book{}
	b.become(1, nil, "a")
	l := newLog(t, b)
	before := read(t, l)
	b.become(1, errors.New("the store is away"), "a", "b")
	if err := l.CatchUp(t.Context()); err == nil {
		t.Fatal("a store that is away was read")
	}
	if got := l.View(); got.Known != before.Known || got.Cursor != before.Cursor {
		t.Errorf("known as of %v at %v, before as of %v at %v", got.Known, got.Cursor, before.Known, before.Cursor)
	}
	b.become(1, nil, "a", "b")
	if got := read(t, l); !got.Known.After(before.Known) || got.Cursor.Row != 2 {
		t.Errorf("the twin, with the store back: known as of %v at %v", got.Known, got.Cursor)
	}
}

// TestAViewHasAllThatWasCommittedBeforeItsDate reads a log that is written all the while.
func TestAViewHasAllThatWasCommittedBeforeItsDate(t *testing.T) {
	t.Parallel()
	b := &book{epoch: 1}
	l := newLog(t, b)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var committed [30_000]time.Time // by row, guarded by b.mu
	all.Go(func() {
		defer stop()
		for i := range committed {
			b.mu.Lock()
			if b.reads >= 5000 { // on one processor each read meets one row
				b.mu.Unlock()
				return
			}
			b.entries = append(b.entries[:0], revocation.Entry{Position: int64(i + 1), Kind: journal.KindToken, ID: "a"}) // the newest alone: Tail stays quick
			committed[i] = time.Now()
			b.mu.Unlock()
			runtime.Gosched()
		}
	})
	all.Go(func() {
		for ctx.Err() == nil {
			_ = l.CatchUp(t.Context())
		}
	})
	for ctx.Err() == nil {
		v := l.View()
		b.mu.Lock()
		if row := v.Cursor.Row; row < int64(len(committed)) && !committed[row].IsZero() && committed[row].Before(v.Known) {
			t.Errorf("row %d was committed %v before the date of a view that ends at row %d", row+1, v.Known.Sub(committed[row]), row)
			stop()
		}
		b.mu.Unlock()
		runtime.Gosched() // or else, on one processor, each row would wait until the scheduler takes this loop's away
	}
	all.Wait()
}
