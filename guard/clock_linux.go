package guard

import (
	"time"

	"golang.org/x/sys/unix"
)

// bootTime is CLOCK_BOOTTIME, which goes on while the machine is suspended; the monotonic clock stands still then.
func bootTime(base time.Time) time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Since(base)
	}
	return time.Duration(now.Nano())
}
