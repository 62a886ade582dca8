package guard_test

import (
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// machine is a machine's clocks, by hand.
type machine struct{ mono, slept, step atomic.Int64 }

// at is where its wall clock begins.
const at = issued * int64(time.Second)

func (m *machine) read() (time.Duration, int64) {
	return time.Duration(m.mono.Load()), at + m.mono.Load() + m.slept.Load() + m.step.Load()
}

func (m *machine) boot() time.Duration {
	return time.Hour + time.Duration(m.mono.Load()+m.slept.Load())
}

func (m *machine) wait(d time.Duration)    { m.mono.Add(int64(d)) }
func (m *machine) suspend(d time.Duration) { m.slept.Add(int64(d)) }
func (m *machine) set(d time.Duration)     { m.step.Add(int64(d)) }

// beatAt is a heartbeat of a server whose clock says so many seconds after issued.
func beatAt(elapsed time.Duration, seconds int64) event {
	e := beat("c1", elapsed, 0)
	e.GetHeartbeat().GetServerTime().Seconds, e.GetHeartbeat().GetServerTime().Nanos = issued+seconds, 0
	return e
}

// timed is a feed on a machine, with a whole snapshot and a heartbeat of now, a verifier that goes by its clock, and the doors.
type timed struct {
	machine
	*guard.Feed
	*doors
	tell   func(...event) error
	during func() // what happens while a token is judged
}

func newTimed(t *testing.T, first ...event) *timed {
	t.Helper()
	w := &timed{during: func() {}}
	var err error
	w.Feed, err = guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "x"})
	if err != nil {
		t.Fatal(err)
	}
	w.CountBy(w.read, w.boot)
	v, err := verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: w.Feed, Revocations: w.Feed,
		Now: func() time.Time { w.during(); return w.Now() },
	})
	if err != nil {
		t.Fatal(err)
	}
	w.doors = newDoors(t, w.Feed, v)
	w.tell = w.Stream()
	if err := w.tell(append([]event{part(keySet("key-1"), "c1", entry(verify.KindToken, "dead"))}, first...)...); err != nil {
		t.Fatal(err)
	}
	return w
}

// until is a token that expires so long after issued.
func until(d time.Duration) string {
	exp := issued + int64(d/time.Second)
	return token(map[string]any{"exp": exp, "iat": exp - 300, "nbf": exp - 300})
}

// TestP08TheWallClockIsMoved moves the verifier's time of day. The skew of 30 s is the verifier's own.
func TestP08TheWallClockIsMoved(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		server int64 // what the server's clock says at first, in seconds after issued
		happen func(w *timed)
		now    time.Duration // what Now gives then, after issued
		until  time.Duration // when the token expires, after issued
		want   string
	}{
		"nothing, and the token is good":                    {0, func(*timed) {}, 0, 5 * time.Minute, accepted},
		"P08 set back 10 min, an expired token":             {0, func(w *timed) { w.set(-10 * time.Minute) }, 0, -time.Minute, expired},
		"P08 set back an hour, an expired token":            {0, func(w *timed) { w.set(-time.Hour) }, 0, -time.Minute, expired},
		"P08 set back an hour, the twin: a good one":        {0, func(w *timed) { w.set(-time.Hour) }, 0, time.Minute, accepted},
		"P08 set back, and a token expires since":           {0, func(w *timed) { w.set(-time.Hour); w.wait(time.Second) }, time.Second, -29 * time.Second, expired},
		"the same a second sooner":                          {0, func(w *timed) { w.set(-time.Hour) }, 0, -29 * time.Second, spared},
		"P08 set ahead an hour":                             {0, func(w *timed) { w.set(time.Hour) }, time.Hour, 5 * time.Minute, expired},
		"P08 set ahead an hour and back, once it was seen":  {0, func(w *timed) { w.set(time.Hour); w.Now(); w.set(-time.Hour) }, time.Hour, 5 * time.Minute, expired},
		"P08 the server is an hour ahead, an expired token": {3600, func(*timed) {}, time.Hour, 5 * time.Minute, expired},
		"the server is an hour ahead, a good one":           {3600, func(*timed) {}, time.Hour, time.Hour + 5*time.Minute, accepted},
		"the server is an hour behind":                      {-3600, func(*timed) {}, 0, 5 * time.Minute, accepted},
		"set back, and the server says it is later":         {60, func(w *timed) { w.set(-time.Hour); w.wait(time.Second) }, 61 * time.Second, 31 * time.Second, expired},
		"its twin": {60, func(w *timed) { w.set(-time.Hour); w.wait(time.Second) }, 61 * time.Second, 32 * time.Second, spared},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTimed(t, beatAt(0, c.server))
			c.happen(w)
			if got := w.Now().Sub(time.Unix(issued, 0)); got != c.now {
				t.Errorf("Now is %s after issued, want %s", got, c.now)
			}
			w.expect(t, "the token", until(c.until), c.want, c.want, c.want)
			now := issued + int64(c.now/time.Second)
			w.expect(t, "P08 a revoked token", token(map[string]any{"jti": "dead", "iat": now, "nbf": now, "exp": now + 300}), revoked, revoked, revoked)
		})
	}
}

// TestTimeThatAMachineSlept suspends the machine: its monotonic clock stands still, what it knows gets older all the same.
func TestTimeThatAMachineSlept(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		happen func(w *timed)
		age    time.Duration
		want   []string
	}{
		"awake for 4 s":            {func(w *timed) { w.wait(4 * time.Second) }, 4 * time.Second, []string{accepted, refused, accepted}},
		"asleep for 4 s":           {func(w *timed) { w.suspend(4 * time.Second) }, 4 * time.Second, []string{accepted, refused, accepted}},
		"asleep for 30 s":          {func(w *timed) { w.suspend(30 * time.Second) }, 30 * time.Second, []string{stale, refused, stale}},
		"asleep and awake":         {func(w *timed) { w.suspend(time.Minute); w.wait(1) }, time.Minute + 1, []string{refused, refused, stale}},
		"asleep twice":             {func(w *timed) { w.suspend(time.Second); w.Status(); w.suspend(3 * time.Second) }, 4 * time.Second, []string{accepted, refused, accepted}},
		"asleep, set ahead":        {func(w *timed) { w.suspend(4 * time.Second); w.set(time.Minute) }, 4 * time.Second, []string{accepted, refused, accepted}},
		"awake, set ahead":         {func(w *timed) { w.set(time.Minute) }, 0, []string{accepted, accepted, accepted}},
		"awake, set back":          {func(w *timed) { w.set(-time.Hour) }, 0, []string{accepted, accepted, accepted}},
		"awake, set back, and 3 s": {func(w *timed) { w.set(-time.Hour); w.wait(3 * time.Second) }, 3 * time.Second, []string{accepted, refused, accepted}},
		"asleep as long as the clock was set back, at the next heartbeat": {func(w *timed) {
			w.suspend(30 * time.Second)
			w.set(-30 * time.Second)
			if err := w.tell(beatAt(0, 0)); err != nil {
				panic(err)
			}
		}, 30 * time.Second, []string{stale, refused, stale}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTimed(t, beatAt(0, 0))
			c.happen(w)
			if got := w.Status().Age; got != c.age {
				t.Errorf("age %s, want %s", got, c.age)
			}
			w.expect(t, name, until(5*time.Minute), c.want...)
		})
	}
}

// TestP02AVerifierThatWasStoppedForTwoMinutes finds heartbeats waiting in its socket. Each is dated by when it was written.
func TestP02AVerifierThatWasStoppedForTwoMinutes(t *testing.T) {
	t.Parallel()
	w := newTimed(t, beatAt(0, 0))
	w.wait(2 * time.Minute)
	for second := int64(0); second <= 119; second++ {
		age := 2*time.Minute - time.Duration(second)*time.Second
		if second > 0 {
			err := w.tell(beatAt(time.Duration(second)*time.Second, second))
			if errors.Is(err, guard.ErrRenew) { // a new stream resumes; here the old one's messages go on
				t.Logf("begun anew at second %d", second)
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if got := w.Status().Age; got != age {
			t.Fatalf("after the heartbeat of second %d: age %s, want %s", second, got, age)
		}
		want := []string{accepted, refused, accepted}
		switch {
		case age > guard.MaxAge:
			want = []string{refused, refused, stale}
		case age > guard.StaleAge:
			want = []string{stale, refused, stale}
		case age <= guard.MaxAgeSensitive:
			want = []string{accepted, accepted, accepted}
		}
		w.expect(t, "age "+age.String(), until(5*time.Minute), want...)
	}
	if err := w.tell(beatAt(2*time.Minute, 120)); err != nil {
		t.Fatal(err)
	}
	w.expect(t, "the twin: a heartbeat of now", until(5*time.Minute), accepted, accepted, accepted)
	w.expect(t, "a revoked token", token(map[string]any{"jti": "dead"}), revoked, revoked, revoked)
}

// TestTheAgeIsThatOfWhatWasKnownBefore tells news while a token is judged. The list may have been asked before they came, so they
// do not make the verdict younger; and what passes meanwhile makes it older.
func TestTheAgeIsThatOfWhatWasKnownBefore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		during func(w *timed)
		want   string
	}{
		"nothing":                      {func(*timed) {}, accepted},
		"3 s":                          {func(w *timed) { w.wait(3 * time.Second) }, refused},
		"3 s and a heartbeat of now":   {func(w *timed) { w.wait(3 * time.Second); _ = w.tell(beatAt(3*time.Second, 3)) }, refused},
		"2 s and a heartbeat of now":   {func(w *timed) { w.wait(2 * time.Second); _ = w.tell(beatAt(2*time.Second, 2)) }, accepted},
		"a suspension and a heartbeat": {func(w *timed) { w.suspend(time.Hour); _ = w.tell(beatAt(time.Hour, 0)) }, refused},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTimed(t, beatAt(0, 0))
			once := true
			w.during = func() {
				if once {
					once = false
					c.during(w)
				}
			}
			_, got := w.Decide(t.Context(), freshRules()["/t/sensitive"], []string{"Bearer " + until(5*time.Minute)})
			if name == "a suspension and a heartbeat" && got == guard.ReasonTokenExpired {
				got = refused // the token has expired too
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// TestR32AVerifierThatKnowsNoDate has a whole snapshot and no heartbeat. No rule goes on, and none on a date that comes meanwhile.
func TestR32AVerifierThatKnowsNoDate(t *testing.T) {
	t.Parallel()
	w := newTimed(t)
	w.expect(t, "no date", until(5*time.Minute), refused, refused, refused)
	for name, rule := range freshRules() {
		w := newTimed(t)
		w.during = func() { _ = w.tell(beatAt(0, 0)) }
		if _, got := w.Decide(t.Context(), rule, []string{"Bearer " + until(5*time.Minute)}); got != refused {
			t.Errorf("%s, on a date that came while the token was judged: got %q", name, got)
		}
		if _, got := w.Decide(t.Context(), rule, []string{"Bearer " + until(5*time.Minute)}); got != accepted {
			t.Errorf("%s, the twin: the date was there before: got %q", name, got)
		}
	}
}

// TestAStreamThatStaysLateIsBegunAnew suspends the other end: what it counts since the call will never meet ours again.
func TestAStreamThatStaysLateIsBegunAnew(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		before, behind time.Duration
		beats          int // heartbeats until the stream ends; 0: it does not
	}{
		"by an hour":                  {time.Minute, time.Hour, 10},
		"by a second":                 {time.Minute, time.Second, 10},
		"by as much as is usual":      {time.Minute, 500 * time.Millisecond, 0},
		"not at all":                  {time.Minute, 0, 0},
		"by a second, on a young one": {0, time.Second, 59},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTimed(t, beatAt(0, 0))
			elapsed := c.before
			w.wait(c.before + c.behind)
			for i := 1; i <= 100; i++ {
				elapsed += time.Second
				w.wait(time.Second)
				if err := w.tell(beatAt(elapsed, 0)); err != nil {
					if !errors.Is(err, guard.ErrRenew) || i != c.beats {
						t.Errorf("heartbeat %d: %v", i, err)
					}
					return
				}
			}
			if c.beats != 0 {
				t.Error("it goes on")
			}
		})
	}
}
