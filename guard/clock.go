package guard

import (
	"sync/atomic"
	"time"
)

// jump is a change of wall minus monotonic time that is not the noise between two readings.
const jump = int64(time.Millisecond)

// clock counts the time that has passed, the time in which the machine was suspended included, and knows the latest time of day
// that anybody has told. Its hot path takes no lock, allocates nothing and asks the system for no more than time.Now does.
type clock struct {
	read   func() (mono time.Duration, wall int64) // of one moment: since any beginning, and Unix nanoseconds
	boot   func() time.Duration                    // as mono, but going on while the machine is suspended
	origin time.Duration                           // what boot said when mono was zero

	slept atomic.Int64 // nanoseconds by which boot is ahead of mono
	apart atomic.Int64 // wall minus mono at the time at which slept was measured
	high  atomic.Int64 // the highest seen of a time of day minus the time passed by then, in nanoseconds
}

// systemClock is the clock of this machine.
func systemClock() *clock {
	base := time.Now()
	return newClock(func() (time.Duration, int64) {
		now := time.Now()
		return now.Sub(base), now.UnixNano()
	}, func() time.Duration { return bootTime(base) })
}

func newClock(read func() (time.Duration, int64), boot func() time.Duration) *clock {
	c := &clock{read: read, boot: boot}
	mono, wall := read()
	c.origin = boot() - mono
	c.apart.Store(wall - int64(mono))
	c.high.Store(wall - int64(mono))
	return c
}

// passed is the larger of boot time and monotonic time.
func (c *clock) passed() time.Duration { return c.at(c.read()) }

// at is passed for readings that were just taken. A suspended machine's wall clock and its boot time go on together, so boot time,
// which costs a system call, is asked for only where wall and monotonic time have moved apart.
func (c *clock) at(mono time.Duration, wall int64) time.Duration {
	if moved := wall - int64(mono) - c.apart.Load(); moved > jump || moved < -jump {
		c.measure()
	}
	return mono + time.Duration(c.slept.Load())
}

// measure compares boot time with monotonic time. It is called now and then besides, for a wall clock that was set back by just as
// long as the machine slept.
func (c *clock) measure() {
	mono, wall := c.read() // first: what is lost in between makes knowledge look older, not younger
	raise(&c.slept, int64(c.boot()-c.origin-mono))
	c.apart.Store(wall - int64(mono))
}

// latest is the latest of the wall clock and of each time of day that was told before, plus the time that has passed since.
func (c *clock) latest() time.Time {
	mono, wall := c.read()
	passed := int64(c.at(mono, wall))
	raise(&c.high, wall-passed)
	return time.Unix(0, c.high.Load()+passed)
}

// told takes in another's time of day, in Unix nanoseconds.
func (c *clock) told(wall int64) { raise(&c.high, wall-int64(c.passed())) }

// raise makes v at least n.
func raise(v *atomic.Int64, n int64) {
	for old := v.Load(); n > old; old = v.Load() {
		if v.CompareAndSwap(old, n) {
			return
		}
	}
}
