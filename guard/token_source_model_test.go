package guard_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/guard"
)

// TestWhatAlwaysHoldsOfASource lets ten callers ask, wait, leave and refuse at random, while a server answers at random: late, with a
// life of 1 s to 15 min, with nonsense, or not at all. Whatever happens, a caller gets no token that is older than one it had, none
// whose life is over, and one request is out at a time.
func TestWhatAlwaysHoldsOfASource(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		synctest.Test(t, func(t *testing.T) {
			var store guard.RefreshStore
			if seed%2 == 1 {
				store = guard.NewRefreshToken("rt-0")
			}
			var mu sync.Mutex
			random := rand.New(rand.NewPCG(seed, 0))
			upTo := func(n int) int {
				mu.Lock()
				defer mu.Unlock()
				return random.IntN(n)
			}
			ends := map[int]time.Time{} // of the tokens, by their number; under mu
			var out atomic.Int32
			a := &authority{answer: func(n int, _ string) (int, string, error) {
				if out.Add(1) > 1 {
					t.Errorf("seed %d: two requests at a time", seed)
				}
				defer out.Add(-1)
				asked := time.Now()
				time.Sleep(time.Duration(upTo(9000)) * time.Millisecond)
				switch upTo(6) {
				case 0:
					return http.StatusServiceUnavailable, "", nil
				case 1:
					return http.StatusOK, "<html>", nil
				case 2:
					return 0, "", errors.New("connection reset")
				}
				life := 1 + upTo(900)
				mu.Lock()
				ends[n] = asked.Add(time.Duration(life) * time.Second)
				mu.Unlock()
				return http.StatusOK, granted("at-"+strconv.Itoa(n), life, "rt-"+strconv.Itoa(n)), nil
			}}
			s := sourceBy(t, a, store)
			var callers sync.WaitGroup
			var given atomic.Int32
			for range 10 {
				callers.Go(func() {
					had := 0
					for range 100 {
						time.Sleep(time.Duration(upTo(20_000)) * time.Millisecond)
						token, err := s.Token(t.Context())
						if err != nil {
							reasonOf(t, err)
							continue
						}
						given.Add(1)
						n, _ := strconv.Atoi(strings.TrimPrefix(token, "at-"))
						mu.Lock()
						end, known := ends[n]
						mu.Unlock()
						if n < had || !known || !time.Now().Before(end) {
							t.Errorf("seed %d: got %q after at-%d, %s before its end", seed, token, had, time.Until(end))
						}
						if had = n; upTo(10) == 0 {
							s.Refused(token)
						}
					}
				})
			}
			callers.Wait()
			time.Sleep(30 * time.Second) // what runs behind the callers
			synctest.Wait()
			if given.Load() < 500 || a.count() > 400 {
				t.Errorf("seed %d: %d tokens for %d requests", seed, given.Load(), a.count())
			}
			if store != nil {
				kept, _ := store.Load(t.Context())
				mu.Lock()
				defer mu.Unlock()
				newest := 0
				for n := range ends {
					newest = max(newest, n)
				}
				if want := fmt.Sprintf("rt-%d", newest); kept != want {
					t.Errorf("seed %d: the storage holds %q, want %q", seed, kept, want)
				}
			}
		})
	}
}
