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
		"": {codes.OK, 200}, guard.AcceptedStale: {codes.OK, 200}, guard.AcceptedIntrospected: {codes.OK, 200}, guard.ReasonReplicaStale: {codes.Unavailable, 503},
		guard.ReasonTokenRevoked: {codes.Unauthenticated, 401}, guard.ReasonTokenExpired: {codes.Unauthenticated, 401},
		guard.ReasonTokenInvalid: {codes.Unauthenticated, 401},
	}
	want, known := reasons[got]
	if got == accepted && errors.Is(streaming, verify.ErrExpired) {
		got, streaming, reached = spared, nil, reached+1
	}
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
	spared   = "SPARED" // a call is let through for the skew, and a stream is ended at once
)

// TestP02EachRuleHoldsItsLimit cuts the feed off for good. To the nanosecond, each rule goes on as long as it may.
func TestP02EachRuleHoldsItsLimit(t *testing.T) {
	t.Parallel()
	var calls atomic.Int32
	within(t, func(_ *peer, _ int, s watch) error {
		if calls.Add(1) == 1 {
			time.Sleep(time.Second) // there is a time before
			if err := say(s, part(keySet("key-1"), "c1", entry(verify.KindToken, "dead")), beat("c1", time.Second, 0)); err != nil {
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
	var feeds [2]*guard.Feed
	for i := range feeds {
		var err error
		if feeds[i], err = guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "x"}); err != nil {
			t.Fatal(err)
		}
	}
	feed, machines := feeds[0], feeds[1]
	at := time.Now().UnixNano() // it stands: what the feed knows stays fresh, however long a busy machine takes
	feed.CountBy(func() (time.Duration, int64) { return time.Hour, at }, func() time.Duration { return time.Hour })
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
	g := newGuard(t, guard.Options{Verifier: v, Feed: feed, Introspect: true, Rules: freshRules()})
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token(nil)))
	handler := func(context.Context, any) (any, error) { return struct{}{}, nil }
	intercept, info := g.UnaryServerInterceptor(), &grpc.UnaryServerInfo{FullMethod: "/t/sensitive"}
	s := &verify.Subject{Token: verify.TargetOf("https://auth.example", verify.KindToken, "tok")}
	for name, c := range map[string]struct {
		most float64
		do   func() error
	}{
		"a guarded call": {8, func() error { _, err := intercept(ctx, nil, info, handler); return err }},
		"its streams":    {0, func() error { g.MeasureStream(ctx); return nil }},
		"Check":          {0, func() error { return feed.Check(s) }},
		"Key":            {0, func() error { _, err := feed.Key(ctx, "key-1"); return err }},
		"Now":            {0, func() error { feed.Now(); machines.Now(); return nil }},
	} {
		if err := c.do(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n := testing.AllocsPerRun(1000, func() { _ = c.do() }); n > c.most {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// TestRulesThatNeedAFeed: a limit that cannot be kept is refused.
func TestRulesThatNeedAFeed(t *testing.T) {
	t.Parallel()
	v := verifier(true)
	feed := func() *guard.Feed {
		f, err := guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "x"})
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	ours := feed()
	fed, err := verify.New(verify.Options{Issuer: "https://auth.example", AnyAudience: true, Keys: ours, Revocations: ours})
	if err != nil {
		t.Fatal(err)
	}
	rule := func(r guard.Rule) map[string]guard.Rule { return map[string]guard.Rule{"/a": r} }
	for name, c := range map[string]struct {
		o  guard.Options
		ok bool
	}{
		"sensitive without a feed":       {guard.Options{Verifier: v, Rules: rule(guard.Rule{User: true, Sensitive: true})}, false},
		"a default like that, no feed":   {guard.Options{Verifier: v, Default: guard.Rule{User: true, HonourExp: true}}, false},
		"on by exp without a feed":       {guard.Options{Verifier: fed, Rules: rule(guard.Rule{User: true, HonourExp: true})}, false},
		"introspection without a feed":   {guard.Options{Verifier: v, Introspect: true}, false},
		"twin: introspection by a feed":  {guard.Options{Verifier: fed, Feed: ours, Introspect: true}, true},
		"another feed":                   {guard.Options{Verifier: fed, Feed: feed()}, false},
		"a feed that nobody asks":        {guard.Options{Verifier: v, Feed: ours}, false},
		"sensitive, and on by exp":       {guard.Options{Verifier: fed, Feed: ours, Rules: rule(guard.Rule{User: true, Sensitive: true, HonourExp: true})}, false},
		"public and sensitive":           {guard.Options{Verifier: fed, Feed: ours, Rules: rule(guard.Rule{Public: true, Sensitive: true})}, false},
		"sensitive, for nobody":          {guard.Options{Verifier: fed, Feed: ours, Rules: rule(guard.Rule{Sensitive: true})}, false},
		"twin: sensitive, with its feed": {guard.Options{Verifier: fed, Feed: ours, Rules: rule(guard.Rule{Scopes: []string{"x"}, Sensitive: true})}, true},
		"twin: on by exp, with its feed": {guard.Options{Verifier: fed, Feed: ours, Rules: rule(guard.Rule{Optional: true, HonourExp: true})}, true},
	} {
		if _, err := guard.New(c.o); (err == nil) != c.ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
