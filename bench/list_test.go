package bench

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/verify"
)

// trusting is what a process reads that starts feeds and verifies by them.
type trusting struct {
	Source source   `json:"source"`
	Tokens []string `json:"tokens"`
	Calls  int      `json:"calls"`
}

// started is what a start of a feed cost.
type started struct {
	Wall float64 `json:"wall_ns"` // from making it until it is ready
	Live int     `json:"live"`    // revocations that it then holds
	Heap float64 `json:"heap"`    // bytes of the heap in use after a collection, more than before
}

// runTrusting is this binary as a process that starts a feed anew for each "start", and otherwise verifies, on 16 goroutines and
// from its cache, with the last feed running.
func runTrusting() error {
	var in trusting
	if err := json.Unmarshal(must(os.ReadFile(os.Getenv("AUTHSVC_BENCH_IN"))), &in); err != nil {
		return err
	}
	var v *verify.Verifier
	stop := context.CancelFunc(func() {})
	defer func() { stop() }()
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "start" {
			stop()
			var s started
			var err error
			if s, v, stop, err = in.Source.start(); err != nil {
				return err
			}
			if err := out.Encode(s); err != nil {
				return err
			}
			continue
		}
		if err := verifyAll(v, in.Tokens, len(in.Tokens), 1, 1); err != nil {
			return err
		}
		c, err := measured(in.Calls, func() error { return verifyAll(v, in.Tokens, in.Calls, callers, 1) })
		if err != nil {
			return err
		}
		if err := out.Encode(c); err != nil {
			return err
		}
	}
	return nil
}

// start makes a verifier on a feed and waits until it is ready.
func (s source) start() (_ started, v *verify.Verifier, stop context.CancelFunc, _ error) {
	before := heapInUse()
	ctx, stop := context.WithCancel(context.Background())
	begun := time.Now()
	feed, v, err := s.follow(ctx, 16<<20)
	if err != nil {
		return started{}, nil, stop, err
	}
	out := started{Wall: float64(time.Since(begun)), Live: feed.Status().Live}
	out.Heap = float64(heapInUse()) - float64(before)
	return out, v, stop, nil
}

// measured is what one of n calls costs, all of which do makes.
func measured(n int, do func() error) (cost, error) {
	runtime.GC() // what came before is not to be paid for here
	start, cpu, before := time.Now(), usedCPU(), mallocs()
	err := do()
	c := float64(n)
	return cost{CPU: float64(usedCPU()-cpu) / c, Wall: float64(time.Since(start)) / c, Allocations: float64(mallocs()-before) / c}, err
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC() // what the first found to be finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// startFeed has a process of runTrusting start its feed anew.
func (p *process) startFeed(b testing.TB) started {
	b.Helper()
	if _, err := io.WriteString(p.stdin, "start\n"); err != nil {
		b.Fatalf("%v\n%s", err, p.errs)
	}
	return parse[started](b, []byte(p.line(b)))
}

// revoke adds entries to the log of a database, a part of them in each transaction, and gives the ids of the tokens.
func revoke(b testing.TB, db *sql.DB, n int) []string {
	b.Helper()
	tx := must(db.Begin())
	defer tx.Rollback()
	insert := must(tx.Prepare(`INSERT INTO revocations (kind, id, not_before, expires_at) VALUES ('jti', ?, 0, ?)`))
	all := make([]string, n)
	for i := range all {
		all[i] = ids.New[string]()
		if _, err := insert.Exec(all[i], time.Now().Add(17*time.Minute).UnixMicro()); err != nil {
			b.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		b.Fatal(err)
	}
	return all
}

// log opens the installation's database beside the server.
func (in *installation) log(b testing.TB) *sql.DB {
	b.Helper()
	db := must(sql.Open("sqlite", "file:"+in.path("authsvc.db")+"?_pragma=busy_timeout(10000)&_txlock=immediate"))
	db.SetMaxOpenConns(1)
	b.Cleanup(func() { _ = db.Close() })
	return db
}

// BenchmarkList has a verifier on a feed with 10^6 live revocations, and another on a feed with none.
func BenchmarkList(b *testing.B) {
	entries, n := 1_000_000, 4_000_000
	if testing.Short() {
		entries, n = 50_000, 400_000
	}
	begin := func(entries int) (*installation, *process) {
		in := install(b)
		tokens := in.many(b, warmTokens)
		in.stop(b)
		db := in.log(b)
		for left := entries; left > 0; left -= 50_000 {
			revoke(b, db, min(left, 50_000))
		}
		_ = db.Close()
		in.start(b)
		return in, loop(b, "trusting", trusting{Source: in.watchers(b, 1)[0], Tokens: tokens, Calls: n})
	}
	full, many := begin(entries)
	_, none := begin(0)
	var waits, heap []float64
	for range rounds {
		s := many.startFeed(b)
		if s.Live < entries {
			b.Fatalf("a feed has %d revocations of %d", s.Live, entries)
		}
		waits, heap = append(waits, s.Wall), append(heap, s.Heap/float64(s.Live))
	}
	none.startFeed(b)
	name := fmt.Sprintf("%d live revocations", entries)
	ready, each := median(waits), median(heap)
	report(b, "snapshot of "+name+" → ready", took(ready), "–", "", "≤ 3 s", ready <= 3e9)
	report(b, "verifier memory per live revocation, of "+name, fmt.Sprintf("%.1f B", each), "16 B + 8 B", fmt.Sprintf("%.1f ×", each/24), "≤ 64 B", each <= 64)

	// The feed goes on while tokens are verified: other tokens are revoked as fast as in the fan-out.
	ctx, cancel := context.WithCancel(b.Context())
	var revoking sync.WaitGroup
	defer revoking.Wait()
	defer cancel()
	db := full.log(b)
	revoking.Go(func() {
		tick := time.NewTicker(time.Second / revocationRate)
		defer tick.Stop()
		for ctx.Err() == nil {
			<-tick.C
			revoke(b, db, 1)
		}
	})
	p := alternate(b, func() cost { return many.round(b) }, func() cost { return none.round(b) })
	report(b, "warm Verify with "+name+", feed running, 16 goroutines, CPU", took(p.ours.CPU), "with none "+took(p.limit.CPU),
		fmt.Sprintf("%.2f ×, %.2f allocs", p.cpu, p.ours.Allocations), "≤ 1.5 ×, 0 allocs", p.cpu <= 1.5 && p.ours.Allocations < 0.005)
}
