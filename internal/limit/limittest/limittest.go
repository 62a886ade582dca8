// Package limittest is the one suite that every limit.Shared passes. It runs by the implementation's own clock, which may be a server's:
// its rules are short, and it waits for conditions.
package limittest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/limit"
)

// Open gives the counters as two replicas have them: what is counted through one, the other must know.
type Open func(t *testing.T) [2]limit.Shared

// Run runs the suite, each part on keys of its own.
func Run(t *testing.T, open Open) {
	t.Helper()
	for _, part := range []struct {
		name string
		run  func(t *testing.T, s suite)
	}{
		{"R50 free failures pass, and then nothing does, whatever its outcome", free},
		{"R50 one try passes after a wait that doubles", doubling},
		{"R50 the wait is at most the longest delay", longest},
		{"R50 a success clears an account", cleared},
		{"L09 failures in a window are counted, and leave it", window},
		{"L09 a success does not clear a window", notCleared},
		{"what is refused, and what is released, counts for nothing", nothing},
		{"one call counts for many keys, and tells their waits in order", many},
		{"R49 what one key refuses counts for none, whether the password was right or not", none},
		{"L09 parallel guesses over replicas do not pass the limit together", parallel},
		{"keys of any text are apart", apart},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			part.run(t, suite{replicas: open(t), prefix: fmt.Sprintf("%s %d:", t.Name(), time.Now().UnixNano())})
		})
	}
}

type suite struct {
	replicas [2]limit.Shared
	prefix   string
}

// account and network are rules that let three failures pass. The longest delay of an account's is a tenth of a second.
func (s suite) account(name string) limit.Count {
	return limit.Count{Key: s.prefix + "account:" + name, Rule: limit.Rule{Free: 3, MaxDelay: 100 * time.Millisecond}}
}

func (s suite) network(name string, window time.Duration) limit.Count {
	return limit.Count{Key: s.prefix + "network:" + name, Rule: limit.Rule{Free: 3, Window: window}}
}

// settle asks one replica.
func (s suite) settle(t *testing.T, replica int, o limit.Outcome, counts ...limit.Count) []time.Duration {
	t.Helper()
	waits, err := s.replicas[replica%2].Settle(t.Context(), counts, o)
	if err != nil {
		t.Fatal(err)
	}
	if len(waits) != len(counts) {
		t.Fatalf("%d waits for %d counts", len(waits), len(counts))
	}
	for i, c := range counts {
		if most := max(c.Rule.MaxDelay, c.Rule.Window+c.Rule.Window/10); waits[i] < 0 || waits[i] > most {
			t.Fatalf("a wait of %v by a rule that asks for %v at most", waits[i], most)
		}
	}
	return waits
}

// fail counts n failures, by turns at both replicas, which must all pass.
func (s suite) fail(t *testing.T, n int, counts ...limit.Count) {
	t.Helper()
	for i := range n {
		for _, w := range s.settle(t, i, limit.Failed, counts...) {
			if w != 0 {
				t.Fatalf("failure %d is refused for %v", i+1, w)
			}
		}
	}
}

// refused wants every outcome refused by both replicas. The first wait of an account is a second: where a slow machine takes as long since
// the last failure, nothing can be said.
func (s suite) refused(t *testing.T, c limit.Count, last time.Time) (said bool) {
	t.Helper()
	for _, o := range []limit.Outcome{limit.Succeeded, limit.Failed} {
		for replica := range s.replicas {
			if s.settle(t, replica, o, c)[0] > 0 {
				continue
			}
			if c.Rule.Window == 0 && time.Since(last) >= time.Second {
				return false
			}
			t.Fatalf("outcome %d passes at replica %d", o, replica)
		}
	}
	return true
}

// until asks again and again until an attempt passes, and gives when that was asked.
func (s suite) until(t *testing.T, o limit.Outcome, c limit.Count) time.Time {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := 0; ; i++ {
		asked := time.Now()
		wait := s.settle(t, i, o, c)[0]
		if wait == 0 {
			return asked
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			t.Fatalf("still refused, for %v", wait)
		}
	}
}

// hour is a wait in which no test ends.
const hour = time.Hour

// slow is an account's rule whose delays are as long as they can be.
func (s suite) slow(name string) limit.Count {
	c := s.account(name)
	c.Rule.MaxDelay = hour
	return c
}

func free(t *testing.T, s suite) {
	long := s.network("a", hour)
	s.fail(t, 3, long)
	s.refused(t, long, time.Time{})
	s.fail(t, 3, s.network("another", hour))
	for i := range 10 {
		c := s.slow(fmt.Sprint(i))
		s.fail(t, 2, c)
		last := time.Now()
		s.fail(t, 1, c)
		if s.refused(t, c, last) {
			return
		}
	}
	t.Fatal("this machine takes a second for five calls")
}

func doubling(t *testing.T, s suite) {
	c := s.slow("ada")
	began := time.Now()
	s.fail(t, 3, c)
	passed := s.until(t, limit.Failed, c)
	if took := time.Since(began); took < time.Second {
		t.Fatalf("the first wait took %v", took)
	}
	w := s.settle(t, 1, limit.Failed, c)[0]
	if took := time.Since(passed); w > 2*time.Second || w <= time.Second && took < time.Second || w == 0 && took < 2*time.Second {
		t.Fatalf("the second wait is %v, not up to 2 s", w)
	}
}

func longest(t *testing.T, s suite) {
	c := s.account("ada")
	s.fail(t, 3, c)
	for range 6 { // by doubling it would be a minute by now
		s.until(t, limit.Failed, c)
	}
	if w := s.settle(t, 0, limit.Failed, c)[0]; w > c.Rule.MaxDelay {
		t.Fatalf("a wait of %v", w)
	}
}

func cleared(t *testing.T, s suite) {
	c := s.account("ada")
	s.fail(t, 3, c)
	s.until(t, limit.Succeeded, c)
	s.fail(t, 3, c)
	slow := s.slow("bob")
	s.fail(t, 2, slow)
	if w := s.settle(t, 1, limit.Succeeded, slow)[0]; w != 0 {
		t.Fatalf("a success after two failures waits %v", w)
	}
	s.fail(t, 3, slow)
}

func window(t *testing.T, s suite) {
	began := time.Now()
	c := s.network("a", 2*time.Second)
	s.fail(t, 3, c)
	if w := s.settle(t, 0, limit.Failed, c)[0]; w == 0 && time.Since(began) < c.Rule.Window {
		t.Fatal("a fourth failure in the window passes")
	}
	s.until(t, limit.Failed, c)
	if took := time.Since(began); took < c.Rule.Window {
		t.Fatalf("a failure left its window of %v after %v", c.Rule.Window, took)
	}
}

func notCleared(t *testing.T, s suite) {
	c := s.network("a", hour)
	s.fail(t, 2, c)
	for i := range 10 {
		if w := s.settle(t, i, limit.Succeeded, c)[0]; w != 0 {
			t.Fatalf("success %d waits %v", i, w)
		}
	}
	s.fail(t, 1, c)
	s.refused(t, c, time.Time{})
}

func nothing(t *testing.T, s suite) {
	c, slow := s.network("a", hour), s.slow("ada")
	for i := range 10 {
		for j, w := range s.settle(t, i, limit.Released, c, slow) {
			if w != 0 {
				t.Fatalf("a released attempt waits %v for count %d", w, j)
			}
		}
	}
	began := time.Now()
	s.fail(t, 3, c, slow)
	s.settle(t, 0, limit.Released, c, slow)
	for range 50 {
		s.settle(t, 0, limit.Failed, slow)
	}
	if w := s.settle(t, 1, limit.Failed, slow)[0]; w > 10*time.Second+2*time.Since(began) { // one passes after each wait
		t.Fatalf("refused attempts have made the wait %v", w)
	}
}

func many(t *testing.T, s suite) {
	tight, wide := s.network("tight", hour), s.network("wide", hour)
	wide.Rule.Free = 1000
	account := s.slow("ada")
	s.fail(t, 3, tight)
	waits := s.settle(t, 0, limit.Failed, account, tight, wide)
	if waits[0] != 0 || waits[1] == 0 || waits[2] != 0 {
		t.Fatalf("waits %v: the second count alone must refuse", waits)
	}
	waits = s.settle(t, 1, limit.Succeeded, wide, tight, account)
	if waits[0] != 0 || waits[1] == 0 || waits[2] != 0 {
		t.Fatalf("waits %v in another order: the second count alone must refuse", waits)
	}
	if waits := s.settle(t, 1, limit.Failed); len(waits) != 0 {
		t.Fatalf("no count gives %v", waits)
	}
}

// none wants a refused attempt to leave no trace in the keys that would have let it pass: its outcome could be read there.
func none(t *testing.T, s suite) {
	tight, slow, wide := s.network("tight", hour), s.slow("ada"), s.network("wide", hour)
	s.fail(t, 3, tight)
	s.fail(t, 2, slow, wide)
	for i, o := range []limit.Outcome{limit.Failed, limit.Succeeded, limit.Failed} {
		waits := s.settle(t, i, o, slow, tight, wide)
		if waits[0] != 0 || waits[1] == 0 || waits[2] != 0 {
			t.Fatalf("waits %v: the second count alone must refuse", waits)
		}
	}
	s.fail(t, 1, slow, wide)
	s.refused(t, wide, time.Time{})
	began := time.Now()
	if w := s.settle(t, 0, limit.Failed, slow)[0]; w == 0 && time.Since(began) < time.Second/2 {
		t.Error("a refused success has cleared the account's failures")
	}
}

func parallel(t *testing.T, s suite) {
	slow, c := s.slow("ada"), s.network("a", hour)
	slow.Rule.Free, c.Rule.Free = 5, 7
	for _, count := range []limit.Count{slow, c} {
		var passed atomic.Int64
		var wg sync.WaitGroup
		gate := make(chan struct{})
		began := time.Now()
		for i := range 60 {
			wg.Go(func() {
				<-gate
				waits, err := s.replicas[i%2].Settle(t.Context(), []limit.Count{count}, limit.Failed)
				if err != nil {
					t.Errorf("a guess among others: %v", err)
				} else if waits[0] == 0 {
					passed.Add(1)
				}
			})
		}
		close(gate)
		wg.Wait()
		more := int64(0)
		if count.Rule.Window == 0 {
			more = int64(time.Since(began) / time.Second) // each whole second may have let one more pass
		}
		if n := passed.Load(); n < int64(count.Rule.Free) || n > int64(count.Rule.Free)+more {
			t.Errorf("%d of 60 guesses at once pass a rule of %d", n, count.Rule.Free)
		}
	}
}

func apart(t *testing.T, s suite) {
	names := []string{"", " ", "a", "A", "a ", "a\x00", "a\n", "{a}", "{a}b", "}a{", "a:b", "a:b:c", "ä", "a\u0308", "*", "?", "0", "-1", "\"", "\r\nDEL x\r\n", strings.Repeat("x", 300)}
	for i, name := range names {
		c := s.network(name, hour)
		s.fail(t, 3, c)
		if s.settle(t, i, limit.Failed, c)[0] == 0 {
			t.Errorf("a fourth failure of %q passes", name)
		}
		if slices.Contains(names[:i], name) {
			t.Errorf("%q stands twice in this test", name)
		}
	}
}
