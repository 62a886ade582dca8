package guard

import (
	"math"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// Open says how many streams are open that the feed watches, and how many targets they are found by.
func (f *Feed) Open() (streams, targets int) { return f.open.size() }

func (o *openStreams) size() (streams, targets int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.all), len(o.by)
}

// Index is the index of open streams by itself.
type Index struct{ streams openStreams }

// Add puts a stream into the index.
func (i *Index) Add(subject verify.Subject) (remove func()) {
	s := &openStream{subject: subject, timer: time.AfterFunc(math.MaxInt64, func() {})}
	i.streams.add(s)
	return func() { i.streams.remove(s) }
}

// Watch puts a stream into the index that a source judges, and judges it.
func (i *Index) Watch(subject verify.Subject, source verify.RevocationSource) (ended <-chan struct{}) {
	end := make(chan struct{})
	meter, err := newGuardMeter(nil)
	if err != nil {
		panic(err)
	}
	s := &openStream{
		subject: subject, expires: time.Now().Add(time.Hour), now: time.Now, source: source, every: math.MaxInt64,
		index: &i.streams, meter: meter, cancel: func(error) { close(end) },
	}
	s.timer = time.AfterFunc(math.MaxInt64, s.judge)
	i.streams.add(s)
	s.judge()
	return end
}

// ClockRaised is what the feed does when its clock has gone ahead of the timers.
func (i *Index) ClockRaised() {
	i.streams.ahead = 0
	i.streams.follow(time.Now)
}

// Wake is what the feed does with the entries of a change.
func (i *Index) Wake(list verify.RevocationSource, entries ...verify.Revocation) {
	i.streams.wake(entries, list)
}

// Size says how many streams and targets are there.
func (i *Index) Size() (streams, targets int) { return i.streams.size() }
