package guard_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

type inspection = *authsvcv1.IntrospectResponse

// oracle is authsvc's Introspect, whose every word is the test's. By itself it calls every token active.
type oracle struct {
	authsvcv1.UnimplementedAuthServiceServer

	mu     sync.Mutex
	answer func(ctx context.Context, token string) (inspection, error) // nil: active
	asked  []string
	when   []time.Time
	auth   []string
	now    int // in flight
	most   int // that ever were
}

func (o *oracle) Introspect(ctx context.Context, r *authsvcv1.IntrospectRequest) (inspection, error) {
	o.mu.Lock()
	o.asked, o.when = append(o.asked, r.GetToken()), append(o.when, time.Now())
	o.auth = metadata.ValueFromIncomingContext(ctx, "authorization")
	o.now++
	o.most = max(o.most, o.now)
	answer := o.answer
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		o.now--
		o.mu.Unlock()
	}()
	if answer == nil {
		return active(r.GetToken()), nil
	}
	return answer(ctx, r.GetToken())
}

// says puts the answers of from now on.
func (o *oracle) says(answer func(ctx context.Context, token string) (inspection, error)) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.answer = answer
}

// calls is how many there were so far.
func (o *oracle) calls() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.asked)
}

// heard is what the calls so far had in them, when they came, and how many there were at a time at the most.
func (o *oracle) heard() (asked, auth []string, when []time.Time, most int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.asked), o.auth, slices.Clone(o.when), o.most
}

// active is what authsvc says of a good token.
func active(token string) inspection {
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err != nil {
		panic(err)
	}
	var c struct{ Jti, Sid, Sub string }
	if err := json.Unmarshal(payload, &c); err != nil {
		panic(err)
	}
	yes := true
	return &authsvcv1.IntrospectResponse{Active: &yes, Jti: c.Jti, Sid: c.Sid, Sub: c.Sub}
}

func inactive() inspection { return &authsvcv1.IntrospectResponse{Active: new(bool)} }

func always(m inspection, err error) func(context.Context, string) (inspection, error) {
	return func(context.Context, string) (inspection, error) { return m, err }
}

// failing is always an error with this code.
func failing(c codes.Code) func(context.Context, string) (inspection, error) {
	return always(nil, status.Error(c, "no"))
}

// unanswered never answers.
func unanswered(ctx context.Context, _ string) (inspection, error) {
	<-ctx.Done()
	return nil, status.FromContextError(ctx.Err()).Err()
}

// of gives a token of another jti, session and account.
func of(who string) string {
	return token(map[string]any{"jti": "tok-" + who, "sid": "sess-" + who, "sub": "acct-" + who})
}

// askingWhileCut runs body with a feed whose stream was cut off a moment ago, while calls still pass, and a guard that asks.
func askingWhileCut(t *testing.T, body func(t *testing.T, w *world, d *doors)) {
	t.Helper()
	within(t, func(_ *peer, call int, s watch) error {
		if call == 1 {
			if err := say(s, part(keySet("key-1"), "c1", entry(verify.KindToken, "dead")), beat("c1", 0, 0)); err != nil {
				return err
			}
		}
		return status.Error(codes.Unavailable, "away")
	}, func(t *testing.T, w *world) {
		d := newAsking(t, w)
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		body(t, w, d)
	})
}

// newAsking is a guard that introspects.
func newAsking(t *testing.T, w *world) *doors {
	t.Helper()
	d := &doors{}
	w.asks = newGuard(t, guard.Options{Verifier: w.verifier, Feed: w.Feed, Introspect: true, Rules: freshRules(),
		Observe: func(ctx context.Context, rule, reason string) {
			if said, ok := ctx.Value(saidKey{}).(*string); ok {
				*said = reason
				return
			}
			d.observed = append(d.observed, rule+" "+reason)
		}})
	d.Guard = w.asks
	return d
}

type saidKey struct{}

// decide is what Observe is told of one of many callers.
func (w *world) decide(ctx context.Context, rule guard.Rule, token string) string {
	said := ""
	w.asks.Decide(context.WithValue(ctx, saidKey{}, &said), rule, []string{"Bearer " + token})
	return said
}

// anyToken is the rule that any token satisfies.
var anyToken = guard.Rule{Authenticated: true}

const (
	introspected = guard.AcceptedIntrospected
	invalid      = guard.ReasonTokenInvalid
)

// TestP02BeyondEachLimitAuthsvcIsAsked cuts the feed off for good, while calls still pass.
func TestP02BeyondEachLimitAuthsvcIsAsked(t *testing.T) {
	t.Parallel()
	askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
		never := newDoors(t, w.Feed, w.verifier)
		began := time.Now()
		for _, c := range []struct {
			age    time.Duration
			answer func(context.Context, string) (inspection, error)
			calls  int
			want   []string
		}{
			{0, nil, 0, []string{accepted, accepted, accepted}},
			{guard.MaxAgeSensitive, nil, 0, []string{accepted, accepted, accepted}},
			{guard.MaxAgeSensitive + 1, nil, 1, []string{accepted, introspected, accepted}},
			{guard.StaleAge + 1, nil, 1, []string{stale, introspected, stale}},
			{guard.MaxAge, nil, 1, []string{stale, introspected, stale}},
			{guard.MaxAge + 2*time.Second, nil, 1, []string{introspected, introspected, stale}},
			{10 * time.Minute, nil, 1, []string{introspected, introspected, stale}},
			{11 * time.Minute, always(inactive(), nil), 1, []string{invalid, invalid, stale}},
			// One door after the other asks, and the fifth failure is the last.
			{12 * time.Minute, failing(codes.Unavailable), 5, []string{refused, refused, stale}},
			{13 * time.Minute, nil, 1, []string{introspected, introspected, stale}},
		} {
			time.Sleep(c.age - time.Since(began))
			w.oracle.says(c.answer)
			before := w.oracle.calls()
			d.expect(t, c.age.String()+", a revoked token", token(map[string]any{"jti": "dead"}), revoked, revoked, revoked)
			d.expect(t, c.age.String()+", an expired token", token(map[string]any{"iat": issued - 100, "exp": issued + 20}), expired, expired, expired)
			d.expect(t, c.age.String()+", another audience's", token(map[string]any{"aud": []string{"https://other.example"}}), invalid, invalid, invalid)
			if n := w.oracle.calls() - before; n > 0 {
				t.Errorf("%s: about tokens that are not good it was asked %d times", c.age, n)
			}
			d.expect(t, c.age.String(), token(nil), c.want...)
			if n := w.oracle.calls() - before; n != c.calls {
				t.Errorf("%s: asked %d times, want %d", c.age, n, c.calls)
			}
			before = w.oracle.calls()
			if got := never.ask(t, "/t/sensitive", token(nil)); (got == accepted) != (c.want[1] == accepted) || got != accepted && got != refused {
				t.Errorf("%s: a guard that does not ask says %q", c.age, got)
			}
			if w.oracle.calls() != before {
				t.Errorf("%s: a guard that does not ask has asked", c.age)
			}
		}
		if asked, auth, _, _ := w.oracle.heard(); asked[0] != token(nil) || !slices.Equal(auth, []string{"Basic c3ZjOnMzY3JldCUzQSUyNQ=="}) {
			t.Errorf("asked about %q as %q", asked[0], auth)
		}
	})
}

// TestP01AnAnswerCountsForASecond revokes a token right after authsvc was asked: by the age of an answer, no rule goes on longer than its
// limit.
func TestP01AnAnswerCountsForASecond(t *testing.T) {
	t.Parallel()
	askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
		time.Sleep(guard.MaxAge + 1)
		w.oracle.says(func(_ context.Context, token string) (inspection, error) {
			time.Sleep(200 * time.Millisecond)
			return active(token), nil
		})
		began := time.Now()
		d.expect(t, "asked", token(nil), introspected, introspected, stale)
		if d := time.Since(began); d != 200*time.Millisecond {
			t.Errorf("six doors took %s", d)
		}
		w.oracle.says(always(inactive(), nil))
		time.Sleep(time.Second - time.Since(began))
		d.expect(t, "a second after the call was sent", token(nil), introspected, introspected, stale)
		if n := w.oracle.calls(); n != 1 {
			t.Errorf("asked %d times", n)
		}
		time.Sleep(time.Nanosecond)
		d.expect(t, "later", token(nil), invalid, invalid, stale)
		w.oracle.says(nil)
		time.Sleep(time.Second)
		d.expect(t, "a no counts as long as a yes", token(nil), invalid, invalid, stale)
		time.Sleep(time.Nanosecond)
		d.expect(t, "the twin: a yes after it", token(nil), introspected, introspected, stale)
	})
}

// TestP01AMachineThatSleptOverTheAnswer is suspended while the call is under way: the answer is as old as that.
func TestP01AMachineThatSleptOverTheAnswer(t *testing.T) {
	t.Parallel()
	for slept, want := range map[time.Duration][2]string{
		0: {introspected, introspected}, 800 * time.Millisecond: {introspected, introspected},
		5 * time.Second: {introspected, refused}, time.Minute: {refused, refused},
	} {
		askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
			time.Sleep(guard.MaxAge + 1)
			w.oracle.says(func(_ context.Context, token string) (inspection, error) {
				w.slept.Add(int64(slept))
				return active(token), nil
			})
			for n, rule := range []guard.Rule{anyToken, {Authenticated: true, Sensitive: true}} {
				if got := w.decide(t.Context(), rule, of(fmt.Sprint(n))); got != want[n] {
					t.Errorf("after a sleep of %s, sensitive %v: %q, want %q", slept, rule.Sensitive, got, want[n])
				}
			}
		})
	}
}

// TestJ30AnAnswerAboutAnotherToken lets nothing through, and is not kept.
func TestJ30AnAnswerAboutAnotherToken(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(m inspection){
		"J30 another jti":      func(m inspection) { m.Jti = "other" },
		"J30 no jti":           func(m inspection) { m.Jti = "" },
		"J30 another session":  func(m inspection) { m.Sid = "other" },
		"J30 no session":       func(m inspection) { m.Sid = "" },
		"J30 another account":  func(m inspection) { m.Sub = "other" },
		"no word on its state": func(m inspection) { m.Active = nil },
	} {
		askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
			time.Sleep(guard.MaxAge + 1)
			w.oracle.says(func(_ context.Context, token string) (inspection, error) {
				m := active(token)
				change(m)
				return m, nil
			})
			if got := w.decide(t.Context(), anyToken, token(nil)); got != refused {
				t.Errorf("%s: %q", name, got)
			}
			w.oracle.says(nil)
			d.expect(t, name+", the twin", token(nil), introspected, introspected, stale)
			own := token(map[string]any{"sid": nil})
			d.expect(t, name+", the twin: a service's own token", own, introspected, introspected, stale)
		})
	}
}

// TestR32AColdStartAsksNobody: nor does a feed that does not run.
func TestR32AColdStartAsksNobody(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error { // keys and revocations, but no date
		if err := say(s, part(keySet("key-1"), "c1")); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}, func(t *testing.T, w *world) {
		d := newAsking(t, w)
		d.expect(t, "R32 before anything came", token(nil), refused, refused, refused)
		time.Sleep(5 * time.Second)
		d.expect(t, "R32 a snapshot that nobody has dated", token(nil), refused, refused, refused)
		if n := w.oracle.calls(); n != 0 {
			t.Errorf("R32 asked %d times", n)
		}
	})
	timed := newTimed(t, beatAt(0, 0))
	v, err := verify.New(verify.Options{Issuer: "https://auth.example", AnyAudience: true, Keys: timed.Feed, Revocations: timed.Feed, Now: timed.Now})
	if err != nil {
		t.Fatal(err)
	}
	timed.wait(guard.MaxAge + 1)
	idle := &world{Feed: timed.Feed, verifier: v}
	newAsking(t, idle)
	if got := idle.decide(t.Context(), anyToken, until(5*time.Minute)); got != refused {
		t.Errorf("a feed that does not run: %q", got)
	}
}

// TestP01WhatTheFeedTellsMeanwhile: a revocation that comes while authsvc is asked counts, whatever the answer.
func TestP01WhatTheFeedTellsMeanwhile(t *testing.T) {
	t.Parallel()
	within(t, func(p *peer, _ int, s watch) error {
		return p.relay(s)
	}, func(t *testing.T, w *world) {
		defer close(w.more)
		w.more <- part(keySet("key-1"), "c1")
		w.more <- beat("c1", 0, 0)
		synctest.Wait()
		d := newAsking(t, w)
		time.Sleep(3 * time.Second)
		open := make(chan struct{})
		w.oracle.says(func(_ context.Context, token string) (inspection, error) { <-open; return active(token), nil })
		said := make(chan string, 2)
		sensitive := guard.Rule{Authenticated: true, Sensitive: true}
		for _, jti := range []string{"hit", "spared"} {
			go func() {
				said <- jti + " " + w.decide(t.Context(), sensitive, token(map[string]any{"jti": jti}))
			}()
		}
		synctest.Wait()
		w.more <- change("c1", "c2", nil, entry(verify.KindToken, "hit"))
		synctest.Wait()
		close(open)
		got := map[string]bool{<-said: true, <-said: true}
		if !got["hit "+revoked] || !got["spared "+introspected] {
			t.Errorf("got %v", got)
		}
		if got := d.ask(t, "/t/sensitive", token(map[string]any{"jti": "hit"})); got != revoked {
			t.Errorf("afterwards: %q", got)
		}
	})
}
