// Package bench measures what the service promises of its speed and its size, each figure as a ratio to a limit that is
// measured in the same run (bench/limits): both sides are processes of their own, driven in alternation, in five rounds,
// and what a call costs is the CPU time that the operating system charged to the process. The figure is the median of the
// rounds' ratios. `make bench` runs everything and prints the table.
package bench

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/test/soak"
)

// rounds is how often the two sides of a pair take turns.
const rounds = 5

// authsvc and limits are the binaries; TestMain builds them.
var authsvc, limits string

// soaking and required are what the environment says; TestMain reads it before it takes it away, since authsvc refuses to start
// by a variable that it does not know.
var soaking, required bool

// table collects the lines that are printed in the end.
var table struct {
	sync.Mutex
	lines [][5]string
}

func TestMain(m *testing.M) {
	if loop := os.Getenv("AUTHSVC_BENCH_LOOP"); loop != "" {
		if err := run(loop); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	flag.Parse()
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	if f := flag.Lookup("test.bench"); (f == nil || f.Value.String() == "") && !soak.On() {
		return m.Run() // nothing to measure, nothing to build
	}
	soaking, required = soak.On(), os.Getenv("AUTHSVC_TEST_REQUIRE") != ""
	for _, name := range []string{"AUTHSVC_SOAK", "AUTHSVC_TEST_REQUIRE"} {
		_ = os.Unsetenv(name)
	}
	dir, err := os.MkdirTemp("", "authsvc-bench-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	authsvc, limits = filepath.Join(dir, "authsvc"), filepath.Join(dir, "limits")
	for path, pkg := range map[string]string{authsvc: "../cmd/authsvc", limits: "./limits"} {
		if out, err := exec.Command("go", "build", "-o", path, pkg).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
			return 1
		}
	}
	rc := m.Run()
	if len(table.lines) > 0 {
		printTable()
	}
	return rc
}

// report adds a line: what was measured, what beside it, the ratio or the figure, what it must reach. within says whether it does.
func report(b testing.TB, figure, measured, limit, got, reach string, within bool) {
	b.Helper()
	if !within {
		reach += "  MISSED"
	}
	table.Lock()
	defer table.Unlock()
	table.lines = append(table.lines, [5]string{figure, measured, limit, got, reach})
}

func printTable() {
	table.Lock()
	defer table.Unlock()
	lines := slices.Concat([][5]string{{"figure", "measured", "limit beside it", "got", "must reach"}}, table.lines)
	var widths [5]int
	for _, l := range lines {
		for i, cell := range l {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	fmt.Printf("\n%s, %d CPUs, %s\n\n", runtime.Version(), runtime.NumCPU(), time.Now().UTC().Format(time.DateOnly))
	for n, l := range lines {
		for i, cell := range l {
			fmt.Print("| ", cell, strings.Repeat(" ", widths[i]-len([]rune(cell))), " ")
		}
		fmt.Println("|")
		if n == 0 {
			for _, w := range widths {
				fmt.Print("|", strings.Repeat("-", w+2))
			}
			fmt.Println("|")
		}
	}
}

// cost is what a call costs on average.
type cost struct {
	CPU         float64 `json:"cpu_ns"`
	Wall        float64 `json:"wall_ns"`
	Allocations float64 `json:"allocs"`
}

// pair is what an alternation found: the medians of each side and of the rounds' ratios.
type pair struct {
	ours, limit    cost
	cpu, wall      float64 // ours ÷ limit
	lowest, widest float64 // of the rounds' ratios of CPU
}

// alternate lets the two sides take turns, each with one round to warm up before the first that counts.
func alternate(b *testing.B, ours, limit func() cost) pair {
	b.Helper()
	return takeTurns(b, rounds, ours, limit)
}

// takeTurns is alternate for so many rounds.
func takeTurns(b *testing.B, rounds int, ours, limit func() cost) pair {
	b.Helper()
	ours()
	limit()
	var o, l []cost
	for range rounds {
		o, l = append(o, ours()), append(l, limit())
	}
	return compare(b, o, l)
}

func compare(b *testing.B, ours, limit []cost) (p pair) {
	b.Helper()
	var cpu, wall []float64
	for i := range ours {
		cpu, wall = append(cpu, ours[i].CPU/limit[i].CPU), append(wall, ours[i].Wall/limit[i].Wall)
	}
	p.ours, p.limit, p.cpu, p.wall = middle(ours), middle(limit), median(cpu), median(wall)
	p.lowest, p.widest = slices.Min(cpu), slices.Max(cpu)
	b.ReportMetric(p.cpu, "x-limit")
	b.ReportMetric(p.ours.CPU, "cpu-ns/call")
	b.Logf("CPU a call: %s, limit %s, ratio %.3f (%.3f to %.3f)", took(p.ours.CPU), took(p.limit.CPU), p.cpu, p.lowest, p.widest)
	return p
}

func middle(all []cost) cost {
	var cpu, wall, allocs []float64
	for _, c := range all {
		cpu, wall, allocs = append(cpu, c.CPU), append(wall, c.Wall), append(allocs, c.Allocations)
	}
	return cost{median(cpu), median(wall), median(allocs)}
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// took prints nanoseconds as people read them.
func took(ns float64) string {
	switch {
	case ns < 1e3:
		return fmt.Sprintf("%.0f ns", ns)
	case ns < 1e6:
		return fmt.Sprintf("%.1f µs", ns/1e3)
	default:
		return fmt.Sprintf("%.2f ms", ns/1e6)
	}
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func parse[T any](b testing.TB, raw []byte) (v T) {
	b.Helper()
	if err := json.Unmarshal(raw, &v); err != nil {
		b.Fatalf("%v in %s", err, raw)
	}
	return v
}
