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

// Wake is what the feed does with the entries of a change.
func (i *Index) Wake(list verify.RevocationSource, entries ...verify.Revocation) {
	i.streams.wake(entries, list)
}

// Size says how many streams and targets are there.
func (i *Index) Size() (streams, targets int) { return i.streams.size() }
