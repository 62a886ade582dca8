package revocation_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/verify"
)

// become makes the history another one, at another server, with these rows.
func (h *history) become(epoch byte, server string, rows ...revocation.Entry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.epoch, h.server, h.rows, h.changed = epoch, server, nil, true
	for i, e := range rows {
		e.Position = int64(i + 1)
		h.rows = append(h.rows, e)
	}
}

func said(kind journal.Kind, id string, notBefore, expires int64) revocation.Entry {
	e := revocation.Entry{Kind: kind, ID: id}
	if notBefore != 0 {
		e.NotBefore = time.Unix(notBefore, 0).UTC()
	}
	if kind == journal.KindKey {
		e.CommittedAt = time.Unix(3e9, 456_000).UTC()
	}
	if expires != 0 {
		e.ExpiresAt = time.Unix(expires, 123_000).UTC()
		e.CommittedAt = e.ExpiresAt.Add(-journal.RevocationTTL)
	}
	return e
}

// stored gives what the history has, without positions.
func (h *history) stored() []revocation.Entry {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.Clone(h.rows)
	for i := range all {
		all[i].Position = 0
	}
	return all
}

func TestD07WhatAnotherHistoryLacksIsAppendedAgainAsItWas(t *testing.T) {
	t.Parallel()
	sid := string(ids.New[ids.Session]())
	held := []revocation.Entry{
		said(journal.KindSession, sid, 0, 4e9),
		said(journal.KindToken, "an odd id", 0, 4e9+1),
		said(journal.KindKey, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs", 0, 0),
		said(journal.KindSubject, "ada", 1700, 4e9),
		said(journal.KindSubject, "ada", 1800, 4e9+2), // which covers the one before
		said(journal.KindClient, "app", 1900, 4e9),
		said(journal.KindAll, "", 2000, 4e9),
	}
	for name, tt := range map[string]struct{ has, want []revocation.Entry }{
		"an empty log": {nil, []revocation.Entry{held[0], held[1], held[2], held[4], held[5], held[6]}},
		"one with some of it, with less, and with more": {
			[]revocation.Entry{held[0], said(journal.KindToken, "an odd id", 0, 4e9), said(journal.KindSubject, "ada", 1800, 4e9+9), said(journal.KindClient, "app", 1899, 4e9+9), held[6]},
			[]revocation.Entry{held[1], held[2], held[5]}},
		// A key's entry is for good, whenever it was committed: one that expired would bring the key back.
		"one with a key's entry that expires":       {slices.Concat(held[:2], []revocation.Entry{said(journal.KindKey, held[2].ID, 0, 5e9)}, held[3:]), held[2:3]},
		"one with a key's entry of an earlier time": {slices.Concat(held[:2], []revocation.Entry{{Kind: journal.KindKey, ID: held[2].ID}}, held[3:]), nil},
		"the twin: one that lost nothing":           {held, nil},
	} {
		var log bytes.Buffer
		l, h, list := open(t, func(o *revocation.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		h.become(1, "a", held...)
		ok(t, l.CatchUp(t.Context()))
		if l.Histories() != 0 || log.Len() > 0 {
			t.Errorf("%s: before, %d other histories, and it said %s", name, l.Histories(), &log)
		}
		h.become(2, "b", tt.has...)
		ok(t, l.CatchUp(t.Context()))
		got := h.stored()
		if diff := cmp.Diff(tt.want, got[len(tt.has):], cmp.Transformer("none", func(e []revocation.Entry) []revocation.Entry {
			return append([]revocation.Entry{}, e...)
		})); diff != "" {
			t.Errorf("%s: appended (-want +got)\n%s", name, diff)
		}
		want(t, list, sid, verify.ErrRevoked)
		if n := l.Reappended(); n != uint64(len(tt.want)) {
			t.Errorf("%s: %d are counted", name, n)
		}
		for _, line := range []string{"level=WARN msg=\"the database has another history than before", fmt.Sprintf(`appended again" epoch=02%030d entries=%d`, 0, len(tt.want))} {
			if l.Histories() != 1 || strings.Count(log.String(), line) != 1 {
				t.Errorf("%s: %d other histories; %q is not once in %s", name, l.Histories(), line, &log)
			}
		}
		v := l.View()
		if len(v.Live) != len(got) || v.Live[0].Row != 1 || v.Cursor.Row != int64(len(got)) {
			t.Errorf("%s: %d entries are held of %d, from row %d on, up to %d", name, len(v.Live), len(got), v.Live[0].Row, v.Cursor.Row)
		}
		if diff := cmp.Diff([]string{"a", "b"}, h.settled); diff != "" {
			t.Errorf("%s: settled at (-want +got)\n%s", name, diff)
		}
		before := h.count()
		ok(t, l.CatchUp(t.Context()))
		if h.count() != before+1 || len(h.settled) != 2 || len(h.stored()) != len(got) {
			t.Errorf("%s: it was mended twice", name)
		}
	}
}

func TestD07NothingIsSettledBeforeAllIsAppendedAgain(t *testing.T) {
	t.Parallel()
	l, h, list := open(t, nil)
	var held []revocation.Entry
	for i := range 2*revocation.ReappendSize + 5 {
		held = append(held, said(journal.KindToken, fmt.Sprint("token-", i), 0, 4e9))
	}
	h.become(1, "a", held...)
	ok(t, l.CatchUp(t.Context()))
	h.become(2, "b")
	h.refused = errors.New("the store is away")
	for range 2 {
		before := l.View().Known
		if err := l.CatchUp(t.Context()); !errors.Is(err, h.refused) {
			t.Errorf("what cannot be appended again is %v", err)
		}
		if l.View().Known != before || len(h.settled) != 1 {
			t.Errorf("it is dated %v, and settled at %v", l.View().Known, h.settled)
		}
		want(t, list, "token-7", verify.ErrRevoked) // meanwhile
	}
	h.refused = nil
	ok(t, l.CatchUp(t.Context()))
	if n := uint64(len(held)); l.Reappended() != n || l.Histories() != 1 {
		t.Errorf("%d are counted of %d, in %d histories", l.Reappended(), n, l.Histories())
	}
	if diff := cmp.Diff([]int{revocation.ReappendSize, revocation.ReappendSize, 5}, h.parts); diff != "" {
		t.Errorf("parts (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a", "b"}, h.settled); diff != "" || len(h.stored()) != len(held) || len(l.View().Live) != len(held) {
		t.Errorf("%d are stored, %d held, settled at %v", len(h.stored()), len(l.View().Live), h.settled)
	}
}

// expiring is a book whose clock is ahead: it takes no entry of a token called "expired".
type expiring struct{ *book }

func (e expiring) Reappend(ctx context.Context, after int64, entries []revocation.Entry) (int, error) {
	return e.book.Reappend(ctx, after, slices.DeleteFunc(entries, func(e revocation.Entry) bool { return e.ID == "expired" }))
}

func TestD07MuchIsAppendedAgainInRoundsAndWhatExpiredIsLetGo(t *testing.T) {
	t.Parallel()
	const n = 10*revocation.ReappendSize + 7
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint("token-", i)
	}
	names[5], names[n-1] = "expired", "expired"
	b := &book{}
	b.become(1, nil, names...)
	l := newLog(t, expiring{b})
	read(t, l)
	b.become(2, nil)
	v := read(t, l)
	if len(v.Live) != n-2 || len(b.entries) != n-2 || v.Live[0].Row != 1 || v.Cursor.Row != n-2 {
		t.Errorf("%d are held, %d stored, up to %d", len(v.Live), len(b.entries), v.Cursor.Row)
	}
	if b.reads != 5 { // of the first history, of the second from its end and from its start, and after two rounds
		t.Errorf("%d reads", b.reads)
	}
}

// A server that starts again has the same history.
func TestARestartIsSettledByOneRead(t *testing.T) {
	t.Parallel()
	l, h, _ := open(t, nil)
	h.become(1, "a", said(journal.KindToken, "t", 0, 4e9))
	ok(t, l.CatchUp(t.Context()))
	position, reads := l.Position(), h.count()
	h.mu.Lock()
	h.server = "a, again"
	h.mu.Unlock()
	ok(t, l.CatchUp(t.Context()))
	if diff := cmp.Diff([]string{"a", "a, again"}, h.settled); diff != "" || h.count() != reads+1 || l.Position() != position || h.parts != nil {
		t.Errorf("settled at %v after %d reads, at %s", h.settled, h.count()-reads, l.Position())
	}
}

// Two replicas that hold different parts of what was lost mend it together.
func TestD07ReplicasMendOneHistory(t *testing.T) {
	t.Parallel()
	one, h, _ := open(t, nil)
	two, _, list := open(t, func(o *revocation.Options) { o.Store = h })
	h.become(1, "a", said(journal.KindToken, "x", 0, 4e9), said(journal.KindToken, "y", 0, 4e9))
	ok(t, one.CatchUp(t.Context()))
	h.become(1, "a", said(journal.KindToken, "x", 0, 4e9), said(journal.KindToken, "y", 0, 4e9), said(journal.KindToken, "z", 0, 4e9))
	ok(t, two.CatchUp(t.Context()))
	h.become(1, "a", said(journal.KindToken, "x", 0, 4e9)) // rows deleted by hand, say
	for range 2 {
		ok(t, one.CatchUp(t.Context()))
		ok(t, two.CatchUp(t.Context()))
	}
	if h.epoch != 2 || one.Position() != two.Position() || len(h.stored()) != 3 || len(one.View().Live) != 3 {
		t.Errorf("epoch %d, at %s and %s, %d rows, %d held", h.epoch, one.Position(), two.Position(), len(h.stored()), len(one.View().Live))
	}
	want(t, list, "y", verify.ErrRevoked)
}

// A key's entry stands in the log until the key is gone: only the one that comes while this process runs is news.
func TestARevokedKeyIsSaidOnce(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	l, h, _ := open(t, func(o *revocation.Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	h.commit(journal.KindKey, "of-long-ago")
	ok(t, l.CatchUp(t.Context()))
	h.commit(journal.KindToken, "token")
	ok(t, l.CatchUp(t.Context()))
	if log.Len() > 0 {
		t.Errorf("of what it found at its start, and of a token, it said %s", &log)
	}
	for range 2 { // once more where it is revoked again
		h.commit(journal.KindKey, "stolen")
		ok(t, l.CatchUp(t.Context()))
	}
	if said := log.String(); strings.Count(said, "\n") != 1 || !strings.Contains(said, "level=WARN") || !strings.Contains(said, "keys=[stolen]") {
		t.Errorf("it said %s", said)
	}
}
