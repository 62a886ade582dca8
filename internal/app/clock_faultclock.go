//go:build faultclock

package app

import (
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"
)

// moved is by how much the clock is wrong, in nanoseconds, and lookAt when its file is read again, by process.
var moved, lookAt atomic.Int64

var started = time.Now()

// clock is the machine's clock, moved as if somebody had set it wrong for this process alone: by the duration that stands in the
// file which FAULTCLOCK_FILE names. As where a clock is set, what the monotonic clock measures stays true.
func clock() time.Time {
	const every = 20 * time.Millisecond
	now := time.Now()
	since := int64(now.Sub(started))
	if at := lookAt.Load(); since >= at && lookAt.CompareAndSwap(at, since+int64(every)) {
		if text, err := os.ReadFile(os.Getenv("FAULTCLOCK_FILE")); err == nil {
			if by, err := time.ParseDuration(strings.TrimSpace(string(text))); err == nil {
				moved.Store(int64(by))
			}
		}
	}
	// A Time with a monotonic reading begins with a bit that says so, 33 bits of seconds since 1885 and 30 of nanoseconds. Add
	// would move the monotonic reading, too.
	seconds := moved.Load() / int64(time.Second)
	*(*uint64)(unsafe.Pointer(&now)) += uint64(seconds) << 30 //nolint:gosec // that is the point of this file
	return now
}
