package bench

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// callers is how many calls are under way at once, unless a figure says otherwise.
const callers = 16

// drive makes n calls of a server from so many callers, and gives the CPU time of the server and the wall time, per call.
func drive(b *testing.B, p *process, callers, n int, call func(ctx context.Context, caller int) error) cost {
	b.Helper()
	return driveAll(b, []*process{p}, callers, n, call)
}

// driveAll is drive for servers that share the calls: their CPU is added up.
func driveAll(b *testing.B, all []*process, callers, n int, call func(ctx context.Context, caller int) error) cost {
	b.Helper()
	charged := func() (sum time.Duration) {
		for _, p := range all {
			sum += p.cpu()
		}
		return sum
	}
	var next atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	start, cpu := time.Now(), charged()
	for c := range callers {
		wg.Go(func() {
			for next.Add(1) <= int64(n) && failed.Load() == nil {
				if err := call(context.Background(), c); err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	wg.Wait()
	used, wall := charged()-cpu, time.Since(start)
	if err := failed.Load(); err != nil {
		b.Fatalf("%v\n%s", *err, all[0].errs)
	}
	return cost{CPU: float64(used) / float64(n), Wall: float64(wall) / float64(n)}
}

// pace makes calls at a rate for a while, whether or not those before have been answered, and gives how long each took
// from the moment that it was due.
func pace(rate int, during time.Duration, call func(context.Context) error) (latencies []time.Duration, failures []error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	start, step := time.Now(), time.Second/time.Duration(rate)
	for i := 0; ; i++ {
		due := start.Add(time.Duration(i) * step)
		if due.Sub(start) > during {
			break
		}
		time.Sleep(time.Until(due))
		wg.Go(func() {
			err := call(context.Background())
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures = append(failures, err)
				return
			}
			latencies = append(latencies, took)
		})
	}
	wg.Wait()
	return latencies, failures
}

func percentile(l []time.Duration, p float64) time.Duration {
	if len(l) == 0 {
		panic("no latencies")
	}
	l = slices.Sorted(slices.Values(l))
	return l[int(float64(len(l)-1)*p)]
}
