package revocation

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"sort"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/verify"
)

// Live is one live entry of the log, as verifiers get it.
type Live struct {
	Row        int64 // its place in the log; 0 for one that only an earlier history of the log had
	Target     verify.Target
	NotBefore  int64 // a cut-off in Unix seconds; 0 for all tokens
	ExpireTime int64 // in Unix seconds, rounded up; 0 for never
	CommitTime int64 // in Unix microseconds, by the store's clock; 0 for a key's where the store does not know

	name name // what it was before it became a target
}

// Cursor is a place in one history of the log. The zero Cursor is before every history.
type Cursor struct {
	Epoch [16]byte
	Row   int64
}

// String is the opaque text of a cursor: base64url of 24 bytes.
func (c Cursor) String() string {
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint64(c.Epoch[:], uint64(c.Row)))
}

// ParseCursor reads what String wrote. Any other text is Invalid, as the value of the field that is named.
func ParseCursor(field, text string) (Cursor, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text) // which skips line breaks
	if err != nil || len(raw) != 24 || len(text) != base64.RawURLEncoding.EncodedLen(24) || raw[16] >= 0x80 {
		return Cursor{}, fault.Field(field, "not a position that this service gave")
	}
	return Cursor{Epoch: [16]byte(raw), Row: int64(binary.BigEndian.Uint64(raw[16:]))}, nil
}

// View is the log at one moment. It never changes, and views share their entries, so that taking one costs nothing.
type View struct {
	Cursor Cursor
	// Known is when the last completed read of the log began, with the monotonic clock: what was committed before is in the
	// view. It is zero before the first read.
	Known time.Time
	// Live are the entries in the order of the log, some of them expired. They are not to be changed.
	Live []Live
}

// After gives what follows a cursor; resumed is false where that is everything, because the cursor is of another history or
// ahead of this view.
func (v View) After(c Cursor) (entries []Live, resumed bool) {
	if c.Epoch != v.Cursor.Epoch || c.Row > v.Cursor.Row {
		return v.Live, false
	}
	return v.Live[sort.Search(len(v.Live), func(i int) bool { return v.Live[i].Row > c.Row }):], true
}

// View gives the log as this process knows it now.
func (l *Log) View() View {
	var known time.Time
	if at := l.freshAt.Load(); at >= 0 { // before the cursor: whatever the read of that time saw, the view has
		known = l.start.Add(time.Duration(at))
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	return View{Cursor: Cursor{l.epoch, l.position}, Known: known, Live: l.live[:len(l.live):len(l.live)]}
}

// Reach reads the log once where a cursor is ahead of what this process knows, so that After then tells a cursor that another
// replica gave from one of a history that was lost.
func (l *Log) Reach(ctx context.Context, c Cursor) error {
	if at := l.at(); c.Epoch != at.Epoch || c.Row <= at.Row {
		return nil
	}
	return l.stale(l.CatchUp(ctx))
}

// take makes a page that was read after our position part of what is live. In another history the page is its beginning, and
// what we held stays, before all its rows; heal sees to what that history has, too. The caller holds l.mu.
func (l *Log) take(p Page, page []Live, another bool) {
	if another {
		held := make([]Live, len(l.live), len(l.live)+len(page))
		copy(held, l.live)
		for i := range held {
			held[i].Row = 0
		}
		l.live = held
	}
	l.live, l.epoch, l.position = append(l.live, page...), p.Epoch, p.Head
}

// sweep forgets the entries that expired before now. It copies what stays, since views hold the rest.
func (l *Log) sweep(now time.Time) {
	l.read.Lock()
	defer l.read.Unlock()
	stays := func(e Live) bool { return e.ExpireTime == 0 || e.ExpireTime > now.Unix() }
	live, n := l.View().Live, 0
	for _, e := range live {
		if stays(e) {
			n++
		}
	}
	if n == len(live) {
		return
	}
	left := make([]Live, 0, n+n/8)
	for _, e := range live {
		if stays(e) {
			left = append(left, e)
		}
	}
	l.mu.Lock()
	l.live = left
	l.forgetNames()
	l.mu.Unlock()
}

// unixCeil gives Unix seconds, rounded up; the zero time gives 0.
func unixCeil(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Add(time.Second - time.Nanosecond).Unix()
}
