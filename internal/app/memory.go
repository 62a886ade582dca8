package app

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// limitMemory sets Go's soft memory limit to nine tenths of what the control group gives, so that the collector works
// harder before the kernel kills. GOMEMLIMIT, where it is set, has been obeyed already; without a group limit there is
// nothing to say.
func limitMemory() {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	content, err := os.ReadFile("/sys/fs/cgroup/memory.max") // cgroup v2; "max" where there is none
	if err != nil {
		return
	}
	if limit, err := strconv.ParseInt(strings.TrimSpace(string(content)), 10, 64); err == nil && limit > 0 {
		debug.SetMemoryLimit(limit / 10 * 9)
	}
}
