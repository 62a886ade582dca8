package bench

import (
	"bufio"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/keys"
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
// from its cache, with the last feed running: as many of the tokens as the line says.
func runTrusting() error {
	var in trusting
	if err := json.Unmarshal(must(os.ReadFile(os.Getenv("AUTHSVC_BENCH_IN"))), &in); err != nil {
		return err
	}
	var last struct {
		feed *guard.Feed
		v    *verify.Verifier // on the feed; nil before the first token is verified
		stop context.CancelFunc
	}
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		if lines.Text() == "start" {
			if last.stop != nil {
				last.stop()
			}
			last.feed, last.v = nil, nil // so that they are not counted
			var s started
			var err error
			if s, last.feed, last.stop, err = in.Source.start(); err != nil {
				return err
			}
			if err := out.Encode(s); err != nil {
				return err
			}
			continue
		}
		if last.v == nil {
			var err error
			if last.v, err = verify.New(verify.Options{Issuer: issuer, Audiences: []string{audience}, Keys: last.feed, Revocations: last.feed,
				Now: last.feed.Now, CacheBytes: 128 << 20}); err != nil {
				return err
			}
			if err := verifyAll(last.v, in.Tokens, len(in.Tokens), 1, 1); err != nil {
				return err
			}
		}
		some := in.Tokens[:must(strconv.Atoi(lines.Text()))]
		c, err := measured(in.Calls, func() error { return verifyAll(last.v, some, in.Calls, callers, 1) })
		if err != nil {
			return err
		}
		if err := out.Encode(c); err != nil {
			return err
		}
	}
	return nil
}

// start makes a feed and waits until it is ready.
func (s source) start() (_ started, _ *guard.Feed, stop context.CancelFunc, _ error) {
	before := heapInUse()
	ctx, stop := context.WithCancel(context.Background())
	begun := time.Now()
	feed, _, err := s.follow(ctx, -1)
	if err != nil {
		return started{}, nil, stop, err
	}
	out := started{Wall: float64(time.Since(begun)), Live: feed.Status().Live}
	out.Heap = float64(heapInUse()) - float64(before)
	return out, feed, stop, nil
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

// minter signs by the installation's own key, since many tokens would take the server minutes.
func (in *installation) minter(b testing.TB) *minter {
	b.Helper()
	var file struct {
		Keys []struct {
			ID  string `json:"id"`
			Key string `json:"key"`
		} `json:"keys"`
	}
	if err := json.Unmarshal(must(os.ReadFile(in.path("kek.json"))), &file); err != nil {
		b.Fatal(err)
	}
	sealer := must(keys.NewSealer([]keys.KEK{{ID: file.Keys[0].ID, Key: must(base64.RawURLEncoding.DecodeString(file.Keys[0].Key))}}))
	m := &minter{client: ids.New[string]()}
	var sealed []byte
	if err := in.log(b).QueryRow(`SELECT id, sealed FROM signing_keys WHERE state = 'active'`).Scan(&m.kid, &sealed); err != nil {
		b.Fatal(err)
	}
	m.key = must(x509.ParsePKCS8PrivateKey(must(sealer.Open(m.kid, sealed)))).(*rsa.PrivateKey)
	return m
}

// BenchmarkList has a verifier on a feed with 10^6 live revocations, and another on a feed with none.
func BenchmarkList(b *testing.B) {
	entries, tokens, n := 1_000_000, 20_000, 2_000_000
	if testing.Short() {
		entries, tokens, n = 50_000, 2000, 400_000
	}
	begin := func(entries int) (*installation, *process) {
		in := install(b)
		in.stop(b)
		db := in.log(b)
		for left := entries; left > 0; left -= 50_000 {
			revoke(b, db, min(left, 50_000))
		}
		_ = db.Close()
		in.start(b)
		return in, loop(b, "trusting", trusting{Source: in.watchers(b, 1)[0], Tokens: in.minter(b).tokens(tokens), Calls: n})
	}
	full, many := begin(entries)
	_, none := begin(0)
	var waits, heap []float64
	for range rounds {
		s := ask[started](b, many, "start")
		if s.Live < entries {
			b.Fatalf("a feed has %d revocations of %d", s.Live, entries)
		}
		waits, heap = append(waits, s.Wall), append(heap, s.Heap/float64(s.Live))
	}
	ask[started](b, none, "start")
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
	// A few tokens and what is asked about them stay in the processor's caches; many come from memory.
	for _, some := range []int{warmTokens, tokens} {
		line := strconv.Itoa(some)
		p := alternate(b, func() cost { return ask[cost](b, many, line) }, func() cost { return ask[cost](b, none, line) })
		report(b, fmt.Sprintf("warm Verify of %d tokens with %s, feed running, 16 goroutines, CPU", some, name), took(p.ours.CPU),
			"with none "+took(p.limit.CPU), fmt.Sprintf("%.2f ×, %.2f allocs", p.cpu, p.ours.Allocations), "≤ 1.5 ×, 0 allocs",
			p.cpu <= 1.5 && p.ours.Allocations < 0.005)
	}
}
