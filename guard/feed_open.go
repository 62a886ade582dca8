package guard

import (
	"context"
	"sync"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// clockEvery is how often the feed looks whether its clock has gone ahead of the timers of the open streams.
const clockEvery = time.Second

// openStreams are the streams that a feed has let in and whose handlers run, by all that a revocation may hit of their tokens, so
// that an entry finds those that it may end and does not look at the others. The zero value is empty. All guards on one feed share
// it.
type openStreams struct {
	mu    sync.Mutex
	all   map[*openStream]struct{}
	by    map[verify.Target]map[*openStream]struct{}
	began time.Time     // any moment, to count from as the timers do; its time of day, which may be wrong, is not used
	ahead time.Duration // by how much the feed's time of day was ahead of that count when the timers were last set
}

// targets are the keys of the index that a token is found by.
func targets(s *verify.Subject) []verify.Target {
	all := []verify.Target{s.Token, s.Account, s.Client, s.Key, s.All}
	if s.HasSession {
		all = append(all, s.Session)
	}
	return all
}

func (o *openStreams) add(s *openStream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.all) == 0 {
		o.all, o.by = map[*openStream]struct{}{}, map[verify.Target]map[*openStream]struct{}{}
	}
	o.all[s] = struct{}{}
	for _, t := range targets(&s.subject) {
		if o.by[t] == nil {
			o.by[t] = map[*openStream]struct{}{}
		}
		o.by[t][s] = struct{}{}
	}
}

func (o *openStreams) remove(s *openStream) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.all, s)
	for _, t := range targets(&s.subject) {
		if delete(o.by[t], s); len(o.by[t]) == 0 {
			delete(o.by, t)
		}
	}
}

// wake has all streams judged that these entries end. They are in the list by now, which says whether a cut-off hits: a stream
// that is added later finds them there by itself. Where there are more entries than streams, each stream asks the list.
func (o *openStreams) wake(entries []verify.Revocation, list verify.RevocationSource) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.all) == 0 {
		return
	}
	if len(entries) > len(o.all) {
		wakeRevoked(o.all, list)
		return
	}
	for i := range entries {
		wakeRevoked(o.by[entries[i].Target], list)
	}
}

func wakeRevoked(streams map[*openStream]struct{}, list verify.RevocationSource) {
	for s := range streams {
		if list.Check(&s.subject) != nil {
			s.wake()
		}
	}
}

// follow sets the timers again where the clock has gone ahead of them: it was set, or the machine was suspended, in which timers
// stand still. Otherwise it costs nothing.
func (o *openStreams) follow(now func() time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.all) == 0 {
		return
	}
	if o.began.IsZero() {
		o.began = time.Now()
	}
	ahead := time.Duration(now().UnixNano()) - time.Since(o.began)
	if ahead-o.ahead <= time.Duration(jump) {
		return
	}
	o.ahead = ahead
	for s := range o.all {
		s.rearm()
	}
}

// followClock keeps the open streams' timers with the feed's clock, also while no heartbeat comes.
func (f *Feed) followClock(ctx context.Context) {
	tick := time.NewTicker(clockEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.open.follow(f.Now)
		}
	}
}
