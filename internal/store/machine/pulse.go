package machine

import (
	"context"
	"sync/atomic"
	"time"
)

const beat = 10 * time.Millisecond

// Pulse is a clock that stands still while the machine does: it counts the beats that this process lived to see. A bound on how long a call
// takes holds by it on a machine that stops for seconds, too. It goes while Run does.
type Pulse struct{ beats atomic.Int64 }

// Run counts until ctx ends, and gives no error.
func (p *Pulse) Run(ctx context.Context) error {
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C: // one, however many were missed
			p.beats.Add(1)
		}
	}
}

// Now is how long the machine has lived since Run began, in steps of 10 ms; never more than what has passed.
func (p *Pulse) Now() time.Duration { return time.Duration(p.beats.Load()) * beat }
