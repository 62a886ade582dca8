package guard_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// freshRules are the three kinds of limit.
func freshRules() map[string]guard.Rule {
	return map[string]guard.Rule{
		"/t/any":       {Authenticated: true},
		"/t/sensitive": {Authenticated: true, Sensitive: true},
		"/t/honour":    {Authenticated: true, HonourExp: true},
	}
}

// doors are a guard's three transports, which must all say the same.
type doors struct {
	*guard.Guard
	observed []string
}

func newDoors(t *testing.T, feed *guard.Feed, v *verify.Verifier) *doors {
	t.Helper()
	d := &doors{}
	d.Guard = newGuard(t, guard.Options{Verifier: v, Feed: feed, Rules: freshRules(), Observe: func(_ context.Context, rule, reason string) {
		d.observed = append(d.observed, rule+" "+reason)
	}})
	return d
}

// ask gives what Observe was told of a call with this token.
func (d *doors) ask(t *testing.T, method, token string) string {
	t.Helper()
	d.observed = nil
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token))
	var reached int
	reach := func(ctx context.Context) {
		if subject(ctx) != "-" {
			reached++
		}
	}
	_, unary := d.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method},
		func(ctx context.Context, _ any) (any, error) { reach(ctx); return struct{}{}, nil })
	streaming := d.StreamServerInterceptor()(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: method},
		func(_ any, s grpc.ServerStream) error { reach(s.Context()); return nil })
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, method, nil)
	r.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	d.Middleware(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { reach(r.Context()) })).ServeHTTP(w, r)

	if len(d.observed) != 3 || d.observed[0] != d.observed[1] || d.observed[0] != d.observed[2] {
		t.Fatalf("%s: unary, stream and HTTP said %q", method, d.observed)
	}
	got := d.observed[0][len(method)+1:]
	reasons := map[string]struct {
		code   codes.Code
		status int
	}{
		"": {codes.OK, 200}, guard.AcceptedStale: {codes.OK, 200}, guard.ReasonReplicaStale: {codes.Unavailable, 503},
		guard.ReasonTokenRevoked: {codes.Unauthenticated, 401}, guard.ReasonTokenExpired: {codes.Unauthenticated, 401},
		guard.ReasonTokenInvalid: {codes.Unauthenticated, 401},
	}
	want, known := reasons[got]
	if !known || status.Code(unary) != want.code || status.Code(streaming) != want.code || w.Code != want.status ||
		(reached == 3) != (want.code == codes.OK) || reached%3 != 0 {
		t.Errorf("%s: observed %q, but unary %v, stream %v, HTTP %d, and %d handlers were reached", method, got, unary, streaming, w.Code, reached)
	}
	return got
}

// expect compares what the three rules say, in the order any, sensitive, honour.
func (d *doors) expect(t *testing.T, when, token string, want ...string) {
	t.Helper()
	var got []string
	for _, method := range []string{"/t/any", "/t/sensitive", "/t/honour"} {
		got = append(got, d.ask(t, method, token))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: any, sensitive, honour (-want +got)\n%s", when, diff)
	}
}

const (
	accepted = ""
	stale    = guard.AcceptedStale
	refused  = guard.ReasonReplicaStale
	revoked  = guard.ReasonTokenRevoked
	expired  = guard.ReasonTokenExpired
)

// TestP02EachRuleHoldsItsLimit cuts the feed off for good. To the nanosecond, each rule goes on as long as it may.
func TestP02EachRuleHoldsItsLimit(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	within(t, func(_ *peer, _ int, s watch) error {
		if calls.Add(1) == 1 {
			if err := say(s, part(keySet("key-1"), "c1", entry(verify.KindToken, "dead")), beat("c1", 0, 0)); err != nil {
				return err
			}
		}
		return status.Error(codes.Unavailable, "away")
	}, func(t *testing.T, w *world) {
		d := newDoors(t, w.Feed, w.verifier)
		d.expect(t, "R32 a cold start", token(nil), refused, refused, refused)
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for _, c := range []struct {
			age  time.Duration
			want []string
		}{
			{0, []string{accepted, accepted, accepted}},
			{guard.MaxAgeSensitive, []string{accepted, accepted, accepted}},
			{guard.MaxAgeSensitive + 1, []string{accepted, refused, accepted}},
			{4 * time.Second, []string{accepted, refused, accepted}},
			{guard.StaleAge, []string{accepted, refused, accepted}},
			{guard.StaleAge + 1, []string{stale, refused, stale}},
			{guard.MaxAge, []string{stale, refused, stale}},
			{guard.MaxAge + 1, []string{refused, refused, stale}},
			{10 * time.Minute, []string{refused, refused, stale}},
		} {
			time.Sleep(c.age - time.Since(began))
			d.expect(t, c.age.String(), token(nil), c.want...)
			d.expect(t, c.age.String()+", a revoked token", token(map[string]any{"jti": "dead"}), revoked, revoked, revoked)
			d.expect(t, c.age.String()+", an expired token", token(map[string]any{"iat": issued - 100, "exp": issued + 20}), expired, expired, expired)
		}
	})
}

// TestP02ACutThatHeals cuts the feed for a while. What was revoked meanwhile counts once it is back, and not before.
func TestP02ACutThatHeals(t *testing.T) {
	t.Parallel()
	for cut, want := range map[time.Duration][]string{
		4 * time.Second:  {accepted, refused, accepted},
		59 * time.Second: {stale, refused, stale},
		61 * time.Second: {refused, refused, stale},
		10 * time.Minute: {refused, refused, stale},
	} {
		t.Run(cut.String(), func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			down := make(chan struct{})
			away := false
			within(t, func(_ *peer, call int, s watch) error {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case away:
					return status.Error(codes.Unavailable, "away")
				case call > 1:
					return serveFrom(s, "c2", entry(verify.KindToken, "meanwhile"))
				}
				if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
					return err
				}
				mu.Unlock()
				<-down
				mu.Lock()
				return status.Error(codes.Unavailable, "killed")
			}, func(t *testing.T, w *world) {
				d := newDoors(t, w.Feed, w.verifier)
				if err := w.Ready(t.Context()); err != nil {
					t.Fatal(err)
				}
				d.expect(t, "before", token(nil), accepted, accepted, accepted)
				mu.Lock()
				away = true
				mu.Unlock()
				close(down)
				time.Sleep(cut)
				synctest.Wait()
				d.expect(t, "at its end", token(map[string]any{"jti": "meanwhile"}), want...)
				mu.Lock()
				away = false
				mu.Unlock()
				time.Sleep(6 * time.Second) // the longest until it is tried again
				synctest.Wait()
				d.expect(t, "P01 what was revoked meanwhile", token(map[string]any{"jti": "meanwhile"}), revoked, revoked, revoked)
				d.expect(t, "the twin", token(nil), accepted, accepted, accepted)
			})
		})
	}
}

// TestP02ADatabaseThatIsGone lets the server's heart beat on while what it knows gets old.
func TestP02ADatabaseThatIsGone(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1")); err != nil {
			return err
		}
		return tick(s, "c1", func(elapsed time.Duration) time.Duration { return max(0, elapsed-10*time.Second) })
	}, func(t *testing.T, w *world) {
		d := newDoors(t, w.Feed, w.verifier)
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			sleep time.Duration
			want  []string
		}{
			{12 * time.Second, []string{accepted, accepted, accepted}},
			{time.Second, []string{accepted, refused, accepted}},
			{3 * time.Second, []string{stale, refused, stale}},
			{54 * time.Second, []string{stale, refused, stale}},
			{time.Second, []string{refused, refused, stale}},
			{10 * time.Minute, []string{refused, refused, stale}},
		} {
			time.Sleep(c.sleep)
			synctest.Wait()
			d.expect(t, "age "+w.Status().Age.String(), token(nil), c.want...)
		}
		if len(w.asked()) != 1 {
			t.Errorf("asked for %q", w.asked())
		}
	})
}

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
		"nothing, and the token is good":                   {0, func(*timed) {}, 0, 5 * time.Minute, accepted},
		"P08 set back 10 min, an expired token":            {0, func(w *timed) { w.set(-10 * time.Minute) }, 0, -time.Minute, expired},
		"P08 set back an hour, an expired token":           {0, func(w *timed) { w.set(-time.Hour) }, 0, -time.Minute, expired},
		"P08 set back an hour, the twin: a good one":       {0, func(w *timed) { w.set(-time.Hour) }, 0, time.Minute, accepted},
		"P08 set back, and a token expires since":          {0, func(w *timed) { w.set(-time.Hour); w.wait(time.Second) }, time.Second, -29 * time.Second, expired},
		"the same a second sooner":                         {0, func(w *timed) { w.set(-time.Hour) }, 0, -29 * time.Second, accepted},
		"set ahead an hour":                                {0, func(w *timed) { w.set(time.Hour) }, time.Hour, 5 * time.Minute, expired},
		"P08 set ahead an hour and back, once it was seen": {0, func(w *timed) { w.set(time.Hour); w.Now(); w.set(-time.Hour) }, time.Hour, 5 * time.Minute, expired},
		"the server is an hour ahead, an expired token":    {3600, func(*timed) {}, time.Hour, 5 * time.Minute, expired},
		"the server is an hour ahead, a good one":          {3600, func(*timed) {}, time.Hour, time.Hour + 5*time.Minute, accepted},
		"the server is an hour behind":                     {-3600, func(*timed) {}, 0, 5 * time.Minute, accepted},
		"set back, and the server says it is later":        {60, func(w *timed) { w.set(-time.Hour); w.wait(time.Second) }, 61 * time.Second, 31 * time.Second, expired},
		"its twin": {60, func(w *timed) { w.set(-time.Hour); w.wait(time.Second) }, 61 * time.Second, 32 * time.Second, accepted},
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

// TestJ26J30WhatIsAskedOfTheFeed judges tokens with random kids, and tokens that begin or end alike. No call is made for any.
func TestJ26J30WhatIsAskedOfTheFeed(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error { return serveFrom(s, "c1") }, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		good := token(nil)
		w.want(t, "the twin", nil, nil)
		for i := range 10_000 {
			if _, err := w.Key(t.Context(), fmt.Sprint("kid-", i)); !errors.Is(err, verify.ErrKeyUnknown) {
				t.Fatalf("J26 a random kid: %v", err)
			}
		}
		for name, bad := range map[string]string{
			"J30 the same but for the last letters": good[:len(good)-4] + "AAAA",
			"J30 another's claims, this signature":  token(map[string]any{"sub": "other"})[:len(token(map[string]any{"sub": "other"}))-342] + good[len(good)-342:],
		} {
			if _, err := w.verifier.Verify(t.Context(), bad); !errors.Is(err, verify.ErrSignature) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, who := range []string{"acct", "other", "acct"} {
			if claims, err := w.verifier.Verify(t.Context(), token(map[string]any{"sub": who})); err != nil || claims.Subject != who {
				t.Errorf("J30 the token of %s: %v, %v", who, claims, err)
			}
		}
		w.want(t, "J26 a good token meanwhile", nil, nil)
		if n := len(w.asked()); n != 1 {
			t.Errorf("J26: %d calls", n)
		}
	})
}

// TestStaleClaims: the claims come with ErrStale and with no other error.
func TestStaleClaims(t *testing.T) {
	t.Parallel()
	w := newTimed(t, beatAt(0, 0))
	v, err := verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: w.Feed, Revocations: w.Feed, Now: w.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	w.wait(guard.MaxAge + 1)
	for range 2 { // judged anew, and from memory
		claims, err := v.Verify(t.Context(), until(5*time.Minute))
		if !errors.Is(err, verify.ErrStale) || !errors.Is(err, verify.ErrNotReady) || claims == nil || claims.Subject != "acct" {
			t.Errorf("got %v, %v", claims, err)
		}
	}
	for name, text := range map[string]string{"revoked": token(map[string]any{"jti": "dead"}), "expired": until(0), "malformed": "x"} {
		if claims, err := v.Verify(t.Context(), text); err == nil || errors.Is(err, verify.ErrStale) || claims != nil {
			t.Errorf("%s: got %v, %v", name, claims, err)
		}
	}
}

// TestWhatACallCosts counts allocations, so it runs alone.
//
//nolint:paralleltest // AllocsPerRun is not for parallel tests
func TestWhatACallCosts(t *testing.T) {
	feed, err := guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := feed.Stream()(part(keySet("key-1"), "c1", entry(verify.KindToken, "dead")), beat("c1", 0, 0)); err != nil {
		t.Fatal(err)
	}
	v, err := verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: feed, Revocations: feed,
		Now: func() time.Time { return time.Unix(issued+60, 0) },
	})
	if err != nil {
		t.Fatal(err)
	}
	g := newGuard(t, guard.Options{Verifier: v, Feed: feed, Rules: freshRules()})
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token(nil)))
	handler := func(context.Context, any) (any, error) { return struct{}{}, nil }
	intercept, info := g.UnaryServerInterceptor(), &grpc.UnaryServerInfo{FullMethod: "/t/sensitive"}
	s := &verify.Subject{Token: verify.TargetOf("https://auth.example", verify.KindToken, "tok")}
	for name, c := range map[string]struct {
		most float64
		do   func() error
	}{
		"a guarded call": {8, func() error { _, err := intercept(ctx, nil, info, handler); return err }},
		"Check":          {0, func() error { return feed.Check(s) }},
		"Key":            {0, func() error { _, err := feed.Key(ctx, "key-1"); return err }},
		"Now":            {0, func() error { feed.Now(); return nil }},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := testing.AllocsPerRun(1000, func() { _ = c.do() }); n > c.most {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
