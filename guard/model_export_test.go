package guard

import (
	"context"
	"errors"
	"math"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// Driven is a feed whose streams the test brings, message by message. Each stream is the real one; the fields break it.
type Driven struct {
	*Feed
	stream *stream

	DateBack bool // a heartbeat sets the date, wherever it was
	Early    bool // a heartbeat dates a snapshot that is not whole
	Swap     bool // a snapshot takes the place of what was there
	OwnClock bool // entries expire by the verifier's wall clock alone
	Endless  bool // knowledge is never too old
	Warm     bool // what has no snapshot is as good as an empty one
}

// Begin sends a call.
func (d *Driven) Begin() string {
	d.stream = &stream{feed: d.Feed, sent: d.now(), cursor: d.cursor}
	return d.stream.cursor
}

// Sent is the time since the call was sent.
func (d *Driven) Sent() time.Duration { return d.now() - d.stream.sent }

// Stands is the newest cursor that the stream has applied.
func (d *Driven) Stands() string { return d.stream.cursor }

// Part is the part of a change that the stream waits for.
func (d *Driven) Part() uint32 { return d.stream.part }

// Merge puts entries into the list, beside the stream.
func (d *Driven) Merge(entries []*authsvcv1.Revocation) error {
	revocations, err := appendRevocations(nil, entries)
	d.list.Apply(revocations...)
	return err
}

// SentNow moves the beginning of the call to this moment.
func (d *Driven) SentNow() { d.stream.sent = d.now() }

// Take hands a message to the stream.
func (d *Driven) Take(m *authsvcv1.WatchTrustResponse) error {
	if h := m.GetHeartbeat(); h != nil && d.DateBack && d.stream.whole {
		d.date.Store(neverDated)
	} else if h != nil && d.Early && !d.stream.whole {
		d.list.SetReady(true)
		d.date.Store(max(d.date.Load(), int64(d.stream.sent+h.GetElapsed().AsDuration()-h.GetLag().AsDuration())))
	}
	if d.Swap && m.GetSnapshot().GetCursor() != "" {
		d.list.Sweep(time.Unix(math.MaxUint32-1, 0))
	}
	if !d.stream.whole && d.Sent() >= snapshotLimit { // what follow does by a timer
		return errors.New("the snapshot took too long")
	}
	return d.stream.take(m)
}

// End is told why a stream ended.
func (d *Driven) End(err error) {
	if !errors.Is(err, errRenew) {
		d.broke(context.Background(), err)
	}
}

// Check is the feed's, unless it is broken.
func (d *Driven) Check(s *verify.Subject) error {
	err := d.Feed.Check(s)
	if d.Warm && errors.Is(err, verify.ErrNotReady) || d.Endless && errors.Is(err, verify.ErrStale) {
		return nil
	}
	return err
}

// Age is the age of the knowledge; negative where there is none.
func (d *Driven) Age() time.Duration {
	if d.date.Load() == neverDated {
		return -1
	}
	return d.Status().Age
}

// Sweep forgets what has expired.
func (d *Driven) Sweep() {
	if d.OwnClock {
		_, wall := d.clock.read()
		d.list.Sweep(time.Unix(0, wall))
		return
	}
	d.forget()
}
