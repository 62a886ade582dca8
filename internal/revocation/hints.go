package revocation

import (
	"context"
	"sync"
	"time"
)

// Hints say that something was appended to the log. One that is lost, late or wrong does no harm: the log is looked at
// every Every in any case.
type Hints interface {
	// Listen calls hint for whatever was appended, by whatever process, and once whenever it begins to hear: what came before
	// was missed. It connects again by itself and blocks until ctx ends. Hint never blocks.
	Listen(ctx context.Context, hint func()) error
}

// hintPause is the least between the beginnings of two looks that hints cause, where they find something. It doubles with each that
// finds nothing, up to idlePause: whoever may say a hint could have the log read for ever, and what is revoked meanwhile is
// still read in time.
const (
	hintPause = 5 * time.Millisecond
	idlePause = 50 * time.Millisecond
)

// How much a source of hints is listened to, and how long not at all after more than that.
const (
	mostHeard  = 10_000
	heardFor   = time.Second
	FloodPause = time.Second // after Heard was true
)

// Flood counts what a source of hints hears. It is for one goroutine; the zero Flood has heard nothing.
type Flood struct {
	began time.Time
	n     int
}

// Heard counts one more, and reports whether there were more than ten thousand within a second: ten times what is ever appended, so that
// somebody else says them. The source then leaves for FloodPause, rather than read on for nothing, or so slowly that the others'
// wait for it.
func (f *Flood) Heard(now time.Time) bool {
	if now.Sub(f.began) >= heardFor {
		f.began, f.n = now, 0
	}
	f.n++
	return f.n > mostHeard
}

// hint remembers that the log is to be looked at. However many come while a look runs, they cause one more.
func (l *Log) hint() {
	l.hints.Add(1)
	select {
	case l.hinted <- struct{}{}:
	default:
	}
}

// Hints counts what the sources of hints said since New.
func (l *Log) Hints() uint64 { return l.hints.Load() }

// listen runs the sources of hints until ctx ends; the returned function waits for their end.
func (l *Log) listen(ctx context.Context) (ended func()) {
	var wg sync.WaitGroup
	for _, h := range l.o.Hints {
		wg.Go(func() {
			if err := h.Listen(ctx, l.hint); err != nil && ctx.Err() == nil {
				l.o.Logger.WarnContext(ctx, "hints of the revocation log do not come any more; it is looked at by the clock alone", "error", err)
			}
		})
	}
	return wg.Wait
}
