package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// given is what a loop of ours reads: the key set, the tokens, and how often a round verifies one.
type given struct {
	JWKS   json.RawMessage `json:"jwks"`
	Tokens []string        `json:"tokens"`
	Calls  int             `json:"calls"`
}

// run is this binary as a process of its own, by what AUTHSVC_BENCH_LOOP says.
func run(name string) error {
	switch name {
	case "verifiers":
		return runCrew(joinFeed)
	case "listeners":
		return runCrew(joinBare)
	case "holders":
		return runHolders()
	case "trusting":
		return runTrusting()
	case "guarded", "unguarded":
		return runHandler(name == "guarded")
	case "guarded service", "service":
		return runService(name == "guarded service")
	default:
		return runLoop(name)
	}
}

// runLoop is this binary as one side of a pair. For every line on its standard input it verifies so many tokens, and prints
// what one cost: "unseen" with no cache; "seen" with all tokens in the cache, on 16 goroutines, each of which goes round
// them; "scattered" the same in an order that no processor foresees.
func runLoop(name string) error {
	var in given
	if err := json.Unmarshal(must(os.ReadFile(os.Getenv("AUTHSVC_BENCH_IN"))), &in); err != nil {
		return err
	}
	keys, err := verify.NewStatic(in.JWKS)
	if err != nil {
		return err
	}
	o := verify.Options{Issuer: issuer, Audiences: []string{audience}, Keys: keys, CacheBytes: -1}
	goroutines, step := 1, 1
	if name != "unseen" {
		o.CacheBytes, goroutines = 512<<20, callers
	}
	if name == "scattered" {
		step = 61_803 // 0.618… of 100,000
	}
	v, err := verify.New(o)
	if err != nil {
		return err
	}
	if o.CacheBytes > 0 {
		if err := verifyAll(v, in.Tokens, len(in.Tokens), 1, 1); err != nil {
			return err
		}
	}
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		runtime.GC() // what came before is not to be paid for here
		start, cpu, before := time.Now(), usedCPU(), mallocs()
		if err := verifyAll(v, in.Tokens, in.Calls, goroutines, step); err != nil {
			return err
		}
		n := float64(in.Calls)
		if err := out.Encode(cost{CPU: float64(usedCPU()-cpu) / n, Wall: float64(time.Since(start)) / n, Allocations: float64(mallocs()-before) / n}); err != nil {
			return err
		}
	}
	return nil
}

// verifyAll goes round the tokens by a step, each goroutine from a place of its own.
func verifyAll(v *verify.Verifier, tokens []string, calls, goroutines, step int) error {
	errs := make([]error, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			ctx, at := context.Background(), g*len(tokens)/goroutines
			for range calls / goroutines {
				at = (at + step) % len(tokens)
				if _, err := v.Verify(ctx, tokens[at]); err != nil {
					errs[g] = fmt.Errorf("token %d: %w", at, err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func usedCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}
