package bench

import (
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"testing"
	"time"
)

// starts is how often the server is started for a median.
const starts = 20

// slots is how many hashes the server runs at once by default.
func slots() int { return max(1, runtime.GOMAXPROCS(0)-1) }

func BenchmarkStart(b *testing.B) {
	in := install(b)
	var took, memory []float64
	for range starts {
		in.stop(b)
		took = append(took, float64(in.start(b)))
		time.Sleep(500 * time.Millisecond) // idle is after the first looks at the database
		memory = append(memory, float64(in.rss()))
	}
	start, rss := time.Duration(median(took)), int64(median(memory))
	report(b, "exec → /readyz, existing database", start.Round(100*time.Microsecond).String(), "–", "", "≤ 60 ms", start <= 60*time.Millisecond)
	report(b, "memory when idle", mebibytes(rss), "–", "", "≤ 35 MiB", rss <= 35<<20)
}

func BenchmarkFirstStart(b *testing.B) {
	var all []float64
	for range starts {
		ops := freePort()
		cmd := exec.Command(authsvc, "serve", "-dev", "-dir", b.TempDir(), "-http", "127.0.0.1:0", "-grpc", "127.0.0.1:0", "-ops", ops)
		cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
		begun := time.Now()
		p := launch(b, cmd)
		all = append(all, float64(ready(b, ops, begun)))
		p.kill()
	}
	start := time.Duration(median(all))
	report(b, "exec → /readyz, first start of serve -dev", start.Round(time.Millisecond).String(), "–",
		fmt.Sprintf("median of %d", starts), "≤ 1 s", start <= time.Second)
}
