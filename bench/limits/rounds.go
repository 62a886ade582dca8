package main

import (
	"bufio"
	"encoding/json"
	"os"
	"runtime"
	"syscall"
	"time"
)

// cost is what one call cost, on average.
type cost struct {
	Nanoseconds float64 `json:"cpu_ns"`  // of the CPU, from the operating system
	Wall        float64 `json:"wall_ns"` // of the clock
	Allocations float64 `json:"allocs"`
}

// rounds calls n times for every line on standard input, and prints what a call of that round cost.
func rounds(n int, call func() error) error {
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		start, cpu, mallocs := time.Now(), used(), allocated()
		for range n {
			if err := call(); err != nil {
				return err
			}
		}
		c := cost{float64(used() - cpu), float64(time.Since(start)), float64(allocated() - mallocs)}
		c.Nanoseconds, c.Wall, c.Allocations = c.Nanoseconds/float64(n), c.Wall/float64(n), c.Allocations/float64(n)
		if err := out.Encode(c); err != nil {
			return err
		}
	}
	return nil
}

func used() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // cannot fail for oneself
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}
