//go:build !linux

package guard

import "time"

// bootTime is the monotonic clock: what else a system has is not asked.
func bootTime(base time.Time) time.Duration { return time.Since(base) }
