package guard_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/guard"
)

// authority is a server without a network, for tests in which time is the bubble's or the test's.
type authority struct {
	answer func(n int, presented string) (code int, body string, err error) // n counts from 1

	mu    sync.Mutex
	asked []time.Time
	retry string // the Retry-After of its answers
}

func (a *authority) RoundTrip(r *http.Request) (*http.Response, error) {
	sent, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	_, presented, _ := strings.Cut(string(sent), `"refresh_token":"`)
	presented, _, _ = strings.Cut(presented, `"`)
	a.mu.Lock()
	a.asked = append(a.asked, time.Now())
	n, header := len(a.asked), http.Header{}
	if a.retry != "" {
		header.Set("Retry-After", a.retry)
	}
	a.mu.Unlock()
	code, body, err := a.answer(n, presented)
	if err != nil {
		return nil, err
	}
	return &http.Response{StatusCode: code, Header: header, Body: io.NopCloser(strings.NewReader(body))}, nil
}

func (a *authority) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.asked)
}

// numbered answers each request with a token of its number, that lives so many seconds.
func numbered(seconds int) *authority {
	return &authority{answer: func(n int, _ string) (int, string, error) {
		return http.StatusOK, granted("at-"+strconv.Itoa(n), seconds, "rt-"+strconv.Itoa(n)), nil
	}}
}

func sourceBy(t *testing.T, a *authority, store guard.RefreshStore) *guard.TokenSource {
	t.Helper()
	s := sourceAt(t, "http://127.0.0.1:1", store)
	s.AskBy(a)
	base := time.Now() // of the bubble, if there is one: the machine's boot time is not
	s.CountBy(func() (time.Duration, int64) {
		now := time.Now()
		return now.Sub(base), now.UnixNano()
	}, func() time.Duration { return time.Since(base) })
	return s
}

// expectToken wants a token, or the reason for which there is none.
func expectToken(t *testing.T, s *guard.TokenSource, when, want string) {
	t.Helper()
	token, err := s.Token(t.Context())
	if err != nil {
		token = reasonOf(t, err)
	}
	if token != want {
		t.Errorf("%s: got %q (%v), want %q", when, token, err, want)
	}
}

func TestAThousandCallersAreOneRequest(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a := &authority{answer: func(int, string) (int, string, error) {
				time.Sleep(time.Second) // of the bubble
				if fails {
					return http.StatusServiceUnavailable, "", nil
				}
				return http.StatusOK, granted("at", 300, ""), nil
			}}
			s := sourceBy(t, a, nil)
			var callers sync.WaitGroup
			for range 1000 {
				callers.Go(func() {
					expectToken(t, s, "a caller", map[bool]string{true: "unavailable", false: "at"}[fails])
				})
			}
			callers.Wait()
			if a.count() != 1 {
				t.Errorf("%d requests", a.count())
			}
		})
	}
}

func TestARenewalComesEarlyAndBehindTheCallers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := numbered(300)
		s := sourceBy(t, a, nil)
		expectToken(t, s, "at first", "at-1")
		early, until := s.Times()
		if until != 295*time.Second {
			t.Errorf("handed out for %s", until)
		}
		time.Sleep(early - 1)
		expectToken(t, s, "a moment before", "at-1")
		synctest.Wait()
		if a.count() != 1 {
			t.Fatalf("%d requests before it is due", a.count())
		}
		time.Sleep(time.Nanosecond)
		expectToken(t, s, "due, the old one at once", "at-1")
		synctest.Wait()
		expectToken(t, s, "the new one", "at-2")
		time.Sleep(295 * time.Second)
		expectToken(t, s, "nobody came for 295 s: this caller waits", "at-3")
		if a.count() != 3 {
			t.Errorf("%d requests", a.count())
		}
	})
}

func TestTokensOfAnyLife(t *testing.T) {
	t.Parallel()
	for seconds, want := range map[int]time.Duration{
		1: 900 * time.Millisecond, 10: 9 * time.Second, 49: 44100 * time.Millisecond, 50: 45 * time.Second, 300: 295 * time.Second,
		900: 895 * time.Second, 901: 895 * time.Second, 1 << 40: 895 * time.Second,
	} {
		least, most := time.Hour, time.Duration(0)
		life := time.Duration(min(seconds, 900)) * time.Second
		for range 100 {
			s := sourceBy(t, numbered(seconds), nil)
			expectToken(t, s, "at first", "at-1")
			early, until := s.Times()
			if until != want {
				t.Fatalf("%d s: handed out for %s, want %s", seconds, until, want)
			}
			least, most = min(least, early), max(most, early)
		}
		if least < life*60/100 || least > life*65/100 || most > life*80/100 || most < life*75/100 {
			t.Errorf("%d s: 100 sources renew between %s and %s", seconds, least, most)
		}
	}
}

// TestAFailureIsFollowedByAPause asks again and again, without a token.
func TestAFailureIsFollowedByAPause(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		retry       string
		least, most time.Duration // between two requests; 0: what doubles from 0.1 s to 10 s, or half of it
	}{
		"with nothing said":   {},
		"Retry-After: soon":   {retry: "soon"},
		"Retry-After: -1":     {retry: "-1"},
		"Retry-After: 12":     {"12", 12 * time.Second, 13200 * time.Millisecond},
		"Retry-After: 3600":   {"3600", time.Minute, 66 * time.Second},
		"Retry-After: 1e9":    {"1000000000", time.Minute, 66 * time.Second},
		"Retry-After: 1e30":   {"1" + strings.Repeat("0", 30), time.Minute, 66 * time.Second},
		"Retry-After: a date": {"Sat, 01 Jan 2000 00:20:00 GMT", time.Minute, 66 * time.Second}, // the bubble begins with 2000
	} {
		synctest.Test(t, func(t *testing.T) {
			a := &authority{retry: c.retry, answer: func(int, string) (int, string, error) { return http.StatusServiceUnavailable, "", nil }}
			s := sourceBy(t, a, nil)
			tick, requests := 10*time.Millisecond, 12
			if c.most > 0 {
				tick, requests = time.Second, 4
			}
			for a.count() < requests {
				began := time.Now()
				expectToken(t, s, name, "unavailable")
				if time.Since(began) != 0 {
					t.Fatalf("%s: a caller had to wait", name)
				}
				time.Sleep(tick)
			}
			for i := 1; i < len(a.asked); i++ {
				gap, least, most := a.asked[i].Sub(a.asked[i-1]), c.least, c.most
				if most == 0 {
					most = min(100*time.Millisecond<<(i-1), 10*time.Second)
					least = most / 2
				}
				if gap < least || gap > most+tick {
					t.Errorf("%s: request %d comes %s after the last, want %s to %s", name, i, gap, least, most)
				}
			}
			a.answer = numbered(300).answer
			time.Sleep(66 * time.Second)
			expectToken(t, s, name+": the twin, it answers", "at-"+strconv.Itoa(requests+1))
		})
	}
}

// TestAGoodTokenOutlivesAServer hands out what is good while no renewal succeeds.
func TestAGoodTokenOutlivesAServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := numbered(300)
		good := a.answer
		s := sourceBy(t, a, nil)
		expectToken(t, s, "at first", "at-1")
		a.answer = func(int, string) (int, string, error) { return 0, "", errors.New("connection refused") }
		for second := range 295 {
			expectToken(t, s, strconv.Itoa(second), "at-1")
			time.Sleep(time.Second)
		}
		if n := a.count(); n < 8 || n > 40 {
			t.Errorf("%d requests", n)
		}
		expectToken(t, s, "after its time", "unavailable")
		a.answer = good
		time.Sleep(11 * time.Second)
		expectToken(t, s, "the twin: the server is back", "at-"+strconv.Itoa(a.count()+1))
	})
}

// TestARefusedSecretIsTriedAgain: an operator may mend it.
func TestARefusedSecretIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &authority{answer: func(n int, _ string) (int, string, error) {
			if n < 3 {
				return http.StatusUnauthorized, `{"error":"invalid_client"}`, nil
			}
			return http.StatusOK, granted("at", 300, ""), nil
		}}
		s := sourceBy(t, a, nil)
		expectToken(t, s, "at first", "invalid_client")
		expectToken(t, s, "at once", "invalid_client")
		time.Sleep(time.Second)
		expectToken(t, s, "later", "invalid_client")
		time.Sleep(time.Second)
		expectToken(t, s, "mended", "at")
		if a.count() != 3 {
			t.Errorf("%d requests", a.count())
		}
	})
}

// TestNeverAnOlderTokenOverANewer has an answer that does not heed any limit, and comes after the next renewal's.
func TestNeverAnOlderTokenOverANewer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		takes time.Duration
		first string // what the caller gets who waits for it
	}{{19 * time.Second, "at-1"}, {21 * time.Second, "unavailable"}, {40 * time.Second, "unavailable"}} {
		for _, store := range []guard.RefreshStore{nil, guard.NewRefreshToken(sourceRefresh)} {
			synctest.Test(t, func(t *testing.T) {
				a := numbered(300)
				good := a.answer
				a.answer = func(n int, presented string) (int, string, error) {
					if n == 1 {
						time.Sleep(c.takes)
					}
					return good(n, presented)
				}
				s := sourceBy(t, a, store)
				began := time.Now()
				expectToken(t, s, "who waited "+c.takes.String(), c.first)
				if waited := time.Since(began); waited > 25*time.Second {
					t.Errorf("a caller waited %s", waited)
				}
				want := c.first
				if want == "unavailable" {
					time.Sleep(time.Second)
					want = "at-2"
				}
				expectToken(t, s, "the next", want)
				time.Sleep(time.Minute)
				synctest.Wait() // the first answer has come by now
				expectToken(t, s, "at the end", want)
				if store != nil {
					if kept, _ := store.Load(t.Context()); kept != strings.Replace(want, "at", "rt", 1) {
						t.Errorf("the storage holds %q beside %q", kept, want)
					}
				}
			})
		}
	}
}

// TestTheTimeThatAMachineSleptCounts suspends the machine while the request is out, and while a token is held.
func TestTheTimeThatAMachineSleptCounts(t *testing.T) {
	t.Parallel()
	for slept, want := range map[time.Duration]string{0: "at-1", 20 * time.Second: "at-1", 20*time.Second + 1: "unavailable", time.Hour: "unavailable"} {
		var m machine
		a := numbered(300)
		good := a.answer
		a.answer = func(n int, presented string) (int, string, error) {
			if n == 1 {
				m.suspend(slept)
				m.set(-slept) // and its wall clock says nothing of it
			}
			return good(n, presented)
		}
		store := guard.NewRefreshToken(sourceRefresh)
		s := sourceBy(t, a, store)
		s.CountBy(m.read, m.boot)
		expectToken(t, s, "asleep for "+slept.String(), want)
		if kept, _ := store.Load(t.Context()); (kept == "rt-1") != (want == "at-1") {
			t.Errorf("asleep for %s: the storage holds %q", slept, kept)
		}
		m.wait(time.Second)
		if want == "unavailable" {
			expectToken(t, s, "again", "at-2")
			continue
		}
		m.suspend(296 * time.Second)
		expectToken(t, s, "asleep beyond its life", "at-2")
	}
}

// TestARefusedTokenIsRenewed tells the source that a service did not take its token.
func TestARefusedTokenIsRenewed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := numbered(300)
		s := sourceBy(t, a, nil)
		s.Refused("at-1") // nobody has it yet
		expectToken(t, s, "at first", "at-1")
		for range 100 {
			s.Refused("at-1")
			expectToken(t, s, "too young", "at-1")
		}
		synctest.Wait()
		if a.count() != 1 {
			t.Fatalf("%d requests for a service that refuses all", a.count())
		}
		time.Sleep(10 * time.Second)
		expectToken(t, s, "the old one at once", "at-1")
		synctest.Wait()
		expectToken(t, s, "the next", "at-2")
		time.Sleep(20 * time.Second)
		s.Refused("at-1") // late news of the one before
		expectToken(t, s, "not this one", "at-2")
		synctest.Wait()
		s.Refused("at-2")
		expectToken(t, s, "this one", "at-2")
		synctest.Wait()
		expectToken(t, s, "the third", "at-3")
	})
}

// hangingServer answers after ten days, or gives a body that does not end; it heeds its request's context.
type hangingServer struct{ body bool }

func (h hangingServer) RoundTrip(r *http.Request) (*http.Response, error) {
	if h.body {
		return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(endlessBody{r.Context()})}, nil
	}
	select {
	case <-r.Context().Done():
	case <-time.After(240 * time.Hour):
	}
	return nil, context.Cause(r.Context())
}

// endlessBody gives a space each second.
type endlessBody struct {
	ctx context.Context
}

func (e endlessBody) Read(p []byte) (int, error) {
	select {
	case <-e.ctx.Done():
		return 0, context.Cause(e.ctx)
	case <-time.After(time.Second):
		p[0] = ' '
		return 1, nil
	}
}

func TestAServerThatHangsIsGivenUp(t *testing.T) {
	t.Parallel()
	for _, server := range []http.RoundTripper{hangingServer{}, hangingServer{body: true}} {
		synctest.Test(t, func(t *testing.T) {
			s := sourceBy(t, numbered(300), nil)
			s.AskBy(server)
			began := time.Now()
			_, err := s.Token(t.Context())
			if took := time.Since(began); reasonOf(t, err) != "unavailable" || errors.Is(err, context.DeadlineExceeded) || took != 10*time.Second {
				t.Errorf("%v after %s", err, took)
			}
			s.AskBy(numbered(300))
			time.Sleep(time.Second)
			expectToken(t, s, "the twin: it answers", "at-1")
		})
	}
}
