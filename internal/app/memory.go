package app

import (
	"os"
	"runtime/debug"
	"strconv"
	"strings"
)

// collectorPercent lets the heap grow to three times what lives in it before the collector runs, not twice: a password hash
// takes 19 MiB of which nothing is left, and would otherwise make the collector run for every login. It costs memory only under
// load, and within the soft limit.
const collectorPercent = 200

// limitMemory sets how eagerly Go's collector works, unless GOGC says it, and Go's soft memory limit, unless GOMEMLIMIT does: nine
// tenths of what the control group gives, so that the collector works harder before the kernel kills. Without a group limit
// there is nothing to say.
func limitMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectorPercent)
	}
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
