package service

import (
	"context"
	"sync/atomic"
	"time"
)

// Pulse notices that this process was stopped: SIGSTOP, a paused machine, a starved scheduler. A replica that was away
// cannot know how old the requests in its sockets are, so it decides no refresh until it has run for a while again.
type Pulse struct {
	boot  func() time.Duration // time since boot, counting sleep
	last  atomic.Int64         // the last beat
	since atomic.Int64         // the end of the last gap, as boot time; zero: none
}

// How long a gap remains is less than the 5 s within which everything is answered again after a fault: that counts from when the process was let go
// on, and this from when it noticed.
const (
	beatEvery  = 100 * time.Millisecond
	gapAllowed = 2 * time.Second
	gapRemains = 4500 * time.Millisecond
)

// NewPulse takes the clock that counts sleep (CLOCK_BOOTTIME).
func NewPulse(boot func() time.Duration) *Pulse {
	p := &Pulse{boot: boot}
	p.last.Store(int64(boot()))
	return p
}

// Run beats until ctx ends.
func (p *Pulse) Run(ctx context.Context) error {
	p.last.Store(int64(p.boot()))
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.beat()
		}
	}
}

func (p *Pulse) beat() {
	now := int64(p.boot())
	if now-p.last.Swap(now) > int64(gapAllowed) {
		p.since.Store(now)
	}
}

// Steady reports that the process has missed no more than 2 s of its own time within the last 4.5 s.
func (p *Pulse) Steady() bool {
	now := int64(p.boot())
	if now-p.last.Load() > int64(gapAllowed) {
		return false
	}
	since := p.since.Load()
	return since == 0 || now-since > int64(gapRemains)
}
