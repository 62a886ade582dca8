package redisstore_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/limit/limittest"
	"github.com/authsvc/authsvc/internal/store/redisstore"
)

func TestTheSharedLimits(t *testing.T) {
	t.Parallel()
	s := server(t)
	limittest.Run(t, func(t *testing.T) [2]limit.Shared {
		return [2]limit.Shared{up(t, redisstore.Patient(options(s.Address()))), up(t, redisstore.Patient(options(s.Address())))}
	})
}

// patient asks again what a busy machine did not answer within the time of a call; what was not made has counted nothing.
type patient struct{ *redisstore.Store }

func (p patient) Settle(ctx context.Context, counts []limit.Count, o limit.Outcome) ([]time.Duration, error) {
	for {
		waits, err := p.Store.Settle(ctx, counts, o)
		if !errors.Is(err, redisstore.ErrAway) || ctx.Err() != nil {
			return waits, err
		}
		rest := time.NewTimer(10 * time.Millisecond)
		select {
		case <-rest.C:
		case <-ctx.Done():
		}
	}
}

// account and network are rules by which three failures are free.
func account(key string) limit.Count {
	return limit.Count{Key: "account:" + key, Rule: limit.Rule{Free: 3, MaxDelay: time.Hour}}
}

func network(key string) limit.Count {
	return limit.Count{Key: "network:" + key, Rule: limit.Rule{Free: 3, Window: time.Hour}}
}

// settle wants an answer.
func settle(t *testing.T, s limit.Shared, o limit.Outcome, counts ...limit.Count) []time.Duration {
	t.Helper()
	waits, err := s.Settle(t.Context(), counts, o)
	if err != nil {
		t.Fatal(err)
	}
	return waits
}

func TestASignInIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	p := between(t, server(t).Address())
	s := patient{up(t, redisstore.Patient(options(p.address)))}
	settle(t, s, limit.Failed, account("warm"), network("warm"))
	before := p.sent.Load()
	settle(t, s, limit.Failed, account("ada"), network("a"), network("b"))
	if n := p.sent.Load() - before; n != 1 {
		t.Errorf("three counts took %d round trips", n)
	}
}

func TestNoNameStandsInRedisInClear(t *testing.T) {
	t.Parallel()
	r := server(t)
	s := patient{up(t, redisstore.Patient(options(r.Address())))}
	settle(t, s, limit.Failed, account("ada"), network("192.0.2.0/24"))
	keys := cli(t, r, "KEYS", "*")
	if strings.Contains(keys, "ada") || strings.Contains(keys, "192.0.2") || strings.Count(keys, "authsvc:") != 2 {
		t.Errorf("the keys are %q", keys)
	}
	for key := range strings.Lines(keys) {
		if ttl := cli(t, r, "PTTL", strings.TrimSpace(key)); strings.HasPrefix(ttl, "-") {
			t.Errorf("%s stays for good", key)
		}
	}
	o := options(r.Address())
	o.Issuer = "https://other.example.com"
	if other := (patient{up(t, redisstore.Patient(o))}); settle(t, other, limit.Failed, account("ada"))[0] != 0 || cli(t, r, "DBSIZE") != "3" {
		t.Error("another installation on the same Redis counts with this one")
	}
}

func TestD02FlushedRedisHasLostCountersAndNothingElse(t *testing.T) {
	t.Parallel()
	r := server(t)
	s := patient{up(t, redisstore.Patient(options(r.Address())))}
	for range 3 {
		settle(t, s, limit.Failed, network("a"))
	}
	cli(t, r, "SCRIPT", "FLUSH")
	if settle(t, s, limit.Failed, network("a"))[0] == 0 {
		t.Error("a fourth failure passes once the script is forgotten")
	}
	cli(t, r, "FLUSHALL")
	cli(t, r, "SCRIPT", "FLUSH")
	for i := range 3 {
		if w := settle(t, s, limit.Failed, network("a"), account("ada")); w[0] != 0 || w[1] != 0 {
			t.Errorf("after FLUSHALL failure %d waits %v", i+1, w)
		}
	}
	if w := settle(t, s, limit.Failed, network("a"), account("ada")); w[0] == 0 || w[1] == 0 {
		t.Errorf("after FLUSHALL a fourth failure waits %v", w)
	}
	if !s.Up() {
		t.Error("a flushed Redis counts as away")
	}
}

func TestD03CancelledCallsNeverGetAnothersAnswer(t *testing.T) {
	t.Parallel()
	s := patient{up(t, redisstore.Patient(options(server(t).Address())))}
	const keys = 32
	for i := range keys {
		for range i % 2 * 3 { // every other key is refused from now on
			settle(t, s, limit.Failed, network(fmt.Sprint(i)))
		}
	}
	rounds := 150
	if testing.Short() {
		rounds = 30
	}
	var answered, cancelled atomic.Int64
	var wg sync.WaitGroup
	for worker := range keys {
		wg.Go(func() {
			for range rounds {
				i := rand.N(keys)
				ctx, cancel := context.WithCancel(t.Context())
				timer := time.AfterFunc(rand.N(2*time.Millisecond), cancel)
				if worker%2 == 0 {
					timer.Stop()
				}
				waits, err := s.Settle(ctx, []limit.Count{network(fmt.Sprint(i)), network(fmt.Sprint(keys - 1 - i))}, limit.Released)
				cancel()
				switch {
				case err != nil:
					cancelled.Add(1)
				case waits[0] > 0 != (i%2 == 1) || waits[1] > 0 != (i%2 == 0):
					t.Errorf("keys %d and %d have another's answer: %v", i, keys-1-i, waits)
				default:
					answered.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if answered.Load() == 0 || cancelled.Load() == 0 {
		t.Errorf("%d calls were answered and %d were not: nothing was tried", answered.Load(), cancelled.Load())
	}
}

func TestD03AnAnswerToSomethingElseIsNone(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		answer func(key, call string) (string, string)
		ok     bool
	}{
		{"the answer to this call is taken", func(k, c string) (string, string) { return k, c }, true},
		{"that to another's key is not", func(_, c string) (string, string) { return "authsvc:another", c }, false},
		{"nor that to an earlier call", func(k, c string) (string, string) { return k, c + "0" }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var lie atomic.Bool
			address := resp(t, func(args []string) string {
				switch strings.ToUpper(args[0]) {
				case "EVALSHA": // sha, 1, key, call, …
					key, call := args[3], args[4]
					if lie.Load() {
						key, call = c.answer(key, call)
					}
					return fmt.Sprintf("*3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:0\r\n", len(call), call, len(key), key)
				default:
					return "-ERR unknown command\r\n"
				}
			})
			s := patient{up(t, redisstore.Patient(options(address)))}
			lie.Store(true)
			if _, err := s.Settle(t.Context(), []limit.Count{network("a")}, limit.Failed); err == nil != c.ok {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func TestD16AClockOfRedisThatGoesBackForgetsNothingAndHoldsNobody(t *testing.T) {
	t.Parallel()
	r := server(t)
	s := patient{up(t, redisstore.Patient(options(r.Address())))}
	hour := time.Hour.Microseconds()
	now := time.Now().UnixMicro()
	a, n := limit.Count{Key: "account", Rule: limit.Rule{Free: 3, MaxDelay: time.Minute}}, limit.Count{Key: "network", Rule: limit.Rule{Free: 3, Window: 2 * time.Second}}
	width := (n.Rule.Window / 10).Microseconds()
	cli(t, r, "SET", s.Name(a.Key), fmt.Sprintf("3:%d", now+hour))
	cli(t, r, "SET", s.Name(n.Key), fmt.Sprintf("%d:%d:1,2,0", width, (now+hour)/width))
	w := settle(t, s, limit.Failed, a, n)
	if w[0] <= 0 || w[0] > time.Second || w[1] <= 0 || w[1] > 3*time.Second {
		t.Errorf("failures an hour ahead are waited for %v", w)
	}
	for i, c := range []limit.Count{a, n} {
		await(t, fmt.Sprintf("count %d passes", i), func() bool { return settle(t, s, limit.Released, c)[0] == 0 })
	}
}

func TestWhatSomebodyElsePutInTheWayOfACounterMakesWay(t *testing.T) {
	t.Parallel()
	r := server(t)
	var c calls
	o := redisstore.Patient(options(r.Address()))
	o.Called = c.called
	s := up(t, o)
	for name, put := range map[string][]string{
		"a list": {"RPUSH", "x"}, "a set": {"SADD", "x"}, "a hash": {"HSET", "x", "y"}, "no number": {"SET", "x"}, "half of one": {"SET", "1:"},
		"numbers beyond any": {"SET", strings.Repeat("9", 400) + ":" + strings.Repeat("9", 400)},
		"slices beyond any":  {"SET", "360000000:" + strings.Repeat("9", 400) + ":" + strings.Repeat("9", 400) + ",1"},
	} {
		for _, count := range []limit.Count{account(name), network(name)} {
			had := strings.Fields(cli(t, r, "KEYS", "*"))
			settle(t, patient{s}, limit.Failed, count)
			key := ""
			for k := range strings.FieldsSeq(cli(t, r, "KEYS", "*")) {
				if !slices.Contains(had, k) {
					key = k
				}
			}
			cli(t, r, "DEL", key)
			cli(t, r, slices.Concat(put[:1], []string{key}, put[1:])...)
			var last time.Duration
			for n := range 5 { // three are free; numbers like ours may refuse the first, and are forgotten with it
				last = settle(t, patient{s}, limit.Failed, count)[0]
				if last > 0 && n < 3 && !strings.Contains(name, "beyond") || last > time.Hour+6*time.Minute {
					t.Errorf("%s before %s: the failure %d waits %v", name, count.Key, n, last)
				}
			}
			if last <= 0 {
				t.Errorf("%s before %s: it does not count: %s", name, count.Key, cli(t, r, "GET", key))
			}
		}
	}
	if !s.Up() || c.failed.Load() > 0 {
		t.Errorf("%d calls failed, up: %v", c.failed.Load(), s.Up())
	}
}

func TestAChangedWindowStartsAnew(t *testing.T) {
	t.Parallel()
	s := patient{up(t, redisstore.Patient(options(server(t).Address())))}
	long, short := network("a"), network("a")
	short.Rule.Window = time.Minute
	for range 3 {
		settle(t, s, limit.Failed, long)
	}
	if settle(t, s, limit.Failed, long)[0] == 0 || settle(t, s, limit.Failed, short)[0] != 0 {
		t.Error("a network's failures are counted by a window that is not its rule's")
	}
}
