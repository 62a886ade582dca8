package guard_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// TestP12OpenStreamsOutliveAFeedThatIsAway: they stay open, and end when the feed is back and tells what was revoked meanwhile, by few
// entries or by more than there are streams.
func TestP12OpenStreamsOutliveAFeedThatIsAway(t *testing.T) {
	t.Parallel()
	for _, others := range []int{0, 1, 50} {
		t.Run(fmt.Sprintf("P12 the session's end among %d others", others), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHall(t)
				g := newGuard(t, guard.Options{Verifier: h.verifier, Feed: h.Feed, Default: guard.Rule{Authenticated: true},
					Rules: map[string]guard.Rule{"/t.Streams/Optional": {Authenticated: true, Sensitive: true}}})
				h.serve(t, echo, g.StreamServerInterceptor())
				life := map[string]any{"exp": issued + 900}
				dies, sensitive := h.open(t, "Both", token(life)), h.open(t, "Optional", token(life))
				life["sid"] = "other"
				twin := h.open(t, "Both", token(life))
				for _, s := range []talk{dies, sensitive, twin} {
					s.echoes(t, "before")
				}
				time.Sleep(2 * guard.MaxAge) // of the bubble's clock
				for _, s := range []talk{dies, sensitive, twin} {
					s.echoes(t, "while the feed is away")
				}
				if _, err := h.open(t, "Both", token(life)).hears(); status.Code(err) != codes.Unavailable {
					t.Errorf("a stream is begun while the feed is away: %v", err)
				}
				entries := []*authsvcv1.Revocation{entry(verify.KindSession, "sess")}
				for i := range others {
					entries = append(entries, entry(verify.KindSession, fmt.Sprint("nobody", i)))
				}
				began := time.Now()
				h.tell = h.Stream()
				h.must(t, part(keySet("key-1"), "d1", entries...))
				dies.ended(t, "after", guard.ReasonTokenRevoked)
				sensitive.ended(t, "after, by a sensitive rule", guard.ReasonTokenRevoked)
				if passed := time.Since(began); passed != 0 {
					t.Errorf("the end took %s", passed)
				}
				twin.echoes(t, "after")
			})
		})
	}
}

// TestP12ManyAtOnce: what ends all does not wait for those that it ends, and leaves who has signed in since.
func TestP12ManyAtOnce(t *testing.T) {
	t.Parallel()
	const many = 300
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.came = make(chan error, many+1)
		h.serve(t, echo, h.guard(t).StreamServerInterceptor())
		dying, since := token(nil), token(map[string]any{"auth_time": issued + 1})
		var dies []talk
		for range many {
			dies = append(dies, h.open(t, "Both", dying))
		}
		twin := h.open(t, "Both", since)
		synctest.Wait()
		if streams, _ := h.Open(); streams != many+1 {
			t.Errorf("%d streams are watched", streams)
		}
		began := time.Now()
		h.must(t, change("c1", "c2", nil, cutOff(verify.KindAll, "", issued+1)), beat("c2", 0, 0))
		for range many {
			isEnd(t, "P12 one of many, at the handler", <-h.came, guard.ReasonTokenRevoked)
		}
		if passed := time.Since(began); passed != 0 {
			t.Errorf("the ends took %s", passed)
		}
		synctest.Wait()
		if streams, _ := h.Open(); streams != 1 || len(h.came) != 0 {
			t.Errorf("%d streams are watched", streams)
		}
		for _, s := range dies {
			s.ended(t, "P12 one of many", guard.ReasonTokenRevoked)
		}
		twin.echoes(t, "after")
	})
}

func TestP12TwoGuardsOnOneFeed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		outer, inner := h.guard(t), h.guard(t)
		var between error
		wrap := func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			err := handler(srv, stream{s, s.Context()})
			if _, domain := errorInfo(err); domain != "" {
				between = err
			}
			return err
		}
		h.serve(t, echo, wrap, outer.StreamServerInterceptor(), wrap, inner.StreamServerInterceptor(), wrap)
		dies, twin := h.open(t, "Both", token(nil)), h.open(t, "Both", token(map[string]any{"sid": "other"}))
		dies.echoes(t, "before")
		twin.echoes(t, "before")
		if streams, _ := h.Open(); streams != 4 {
			t.Errorf("%d streams are watched", streams)
		}
		h.must(t, change("c1", "c2", nil, entry(verify.KindSession, "sess")))
		dies.ended(t, "P12 behind two guards", guard.ReasonTokenRevoked)
		<-h.came
		synctest.Wait()
		if isEnd(t, "P12 at other interceptors", between, guard.ReasonTokenRevoked); !errors.Is(between, verify.ErrRevoked) {
			t.Errorf("other interceptors got %v", between)
		}
		twin.echoes(t, "after")
		if streams, _ := h.Open(); streams != 2 {
			t.Errorf("%d streams are watched", streams)
		}
	})
}

func TestStreamsWithoutATokenAreNotWatched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t)
		h.serve(t, echo, h.guard(t).StreamServerInterceptor())
		for _, s := range []talk{h.open(t, "Public", ""), h.open(t, "Public", token(nil)), h.open(t, "Optional", "")} {
			s.echoes(t, "without a token")
		}
		if streams, _ := h.Open(); streams != 0 {
			t.Errorf("%d streams are watched", streams)
		}
		dies := h.open(t, "Optional", token(nil))
		dies.echoes(t, "with a token")
		h.must(t, change("c1", "c2", nil, cutOff(verify.KindAll, "", issued+1)))
		dies.ended(t, "P12 a token that was not needed", guard.ReasonTokenRevoked)
	})
}

// TestP12OverServeHTTP: the server's other transport, on a real socket, behind net/http.
func TestP12OverServeHTTP(t *testing.T) {
	t.Parallel()
	w := newTimed(t, beatAt(0, 0))
	h := &hall{came: make(chan error, 16), Feed: w.Feed}
	g := newGuard(t, guard.Options{Verifier: h.without(t, w.Feed), Feed: w.Feed, Default: guard.Rule{Authenticated: true}})
	server := grpc.NewServer(grpc.StreamInterceptor(g.StreamServerInterceptor()))
	server.RegisterService(streamsOf(func(_ any, s grpc.ServerStream) error {
		err := echo(s)
		h.came <- err
		return err
	}), nil)
	door := httptest.NewUnstartedServer(server)
	door.EnableHTTP2 = true
	door.StartTLS()
	t.Cleanup(door.Close)
	roots := x509.NewCertPool()
	roots.AddCert(door.Certificate())
	var err error
	h.conn, err = grpc.NewClient("passthrough:///"+door.Listener.Addr().String(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "example.com"})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.conn.Close() })
	dies, twin := h.open(t, "Both", token(nil)), h.open(t, "Both", token(map[string]any{"sid": "other"}))
	dies.echoes(t, "before")
	twin.echoes(t, "before")
	if err := w.tell(change("c1", "c2", nil, entry(verify.KindSession, "sess"))); err != nil {
		t.Fatal(err)
	}
	dies.ended(t, "P12 over ServeHTTP", guard.ReasonTokenRevoked)
	isEnd(t, "P12 over ServeHTTP, at the handler", <-h.came, guard.ReasonTokenRevoked)
	twin.echoes(t, "after")
}

// bare is a transport that cannot end a stream from outside.
type bare struct {
	grpc.ServerStream
	ctx  context.Context
	sent *int
}

func (s bare) Context() context.Context     { return s.ctx }
func (s bare) RecvMsg(any) error            { return nil }
func (s bare) SendMsg(any) error            { *s.sent++; return nil }
func (s bare) SendHeader(metadata.MD) error { *s.sent++; return nil }

// TestP12OverATransportThatCannotBeEnded: its handler is told all the same, and nothing that it sends goes out.
func TestP12OverATransportThatCannotBeEnded(t *testing.T) {
	t.Parallel()
	w := newTimed(t, beatAt(0, 0))
	for name, sid := range map[string]string{"P12 it is revoked": "sess", "the twin, another is": "nobody"} {
		sent, dies := 0, sid == "sess"
		ctx, leave := context.WithCancelCause(metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token(nil))))
		err := w.StreamServerInterceptor()(nil, bare{ctx: ctx, sent: &sent}, &grpc.StreamServerInfo{FullMethod: "/t/any"}, func(_ any, s grpc.ServerStream) error {
			if err := errors.Join(s.SendHeader(nil), s.SendMsg(nil), s.RecvMsg(nil)); err != nil {
				t.Errorf("%s: before: %v", name, err)
			}
			if err := w.tell(change(w.Status().Cursor, w.Status().Cursor+"+", nil, entry(verify.KindSession, sid))); err != nil {
				t.Error(err)
			}
			if !dies {
				leave(nil)
			}
			<-s.Context().Done()
			for _, err := range []error{s.SendHeader(nil), s.SendMsg(nil), s.RecvMsg(nil)} {
				if errors.Is(err, verify.ErrRevoked) != dies {
					t.Errorf("%s: after: %v", name, err)
				}
			}
			return nil
		})
		if reason, _ := errorInfo(err); (reason == revoked) != dies || (sent == 2) != dies {
			t.Errorf("%s: got %v, and %d messages were sent", name, err, sent)
		}
		leave(nil)
		w = newTimed(t, beatAt(0, 0))
	}
}

// TestP12ARevocationMeetsAStreamThatBegins: whichever is first, the stream ends or does not begin. A stream between the judgement and
// the index would stay open for ever.
func TestP12ARevocationMeetsAStreamThatBegins(t *testing.T) {
	t.Parallel()
	w := newTimed(t, beatAt(0, 0))
	var handled, refused int
	takes := time.Millisecond // a stream to begin; so the revocation comes in the midst of the next
	for i := range 500 {
		sid := fmt.Sprint("sess", i)
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", "Bearer "+token(map[string]any{"sid": sid})))
		told := make(chan error)
		began, wait := time.Now(), rand.N(takes+takes/2)
		go func() {
			for time.Since(began) < wait {
				runtime.Gosched()
			}
			told <- w.tell(change(w.Status().Cursor, fmt.Sprint("r", i), nil, entry(verify.KindSession, sid)))
		}()
		reached := false
		err := w.StreamServerInterceptor()(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/t/any"}, func(_ any, s grpc.ServerStream) error {
			takes, reached = (3*takes+time.Since(began))/4, true
			<-s.Context().Done()
			return nil
		})
		isEnd(t, "P12 "+sid, err, guard.ReasonTokenRevoked)
		if reached {
			handled++
		} else {
			refused++
		}
		if err := <-told; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d streams were ended, %d did not begin", handled, refused)
	if streams, targets := w.Open(); streams != 0 || targets != 0 {
		t.Errorf("%d streams are left behind, by %d targets", streams, targets)
	}
}

// TestNothingOfAStreamIsLeftBehind: what a stream held is free when its handler has returned or panicked, not when its token expires.
func TestNothingOfAStreamIsLeftBehind(t *testing.T) {
	t.Parallel()
	for name, handler := range map[string]grpc.StreamHandler{
		"its handler returned": func(any, grpc.ServerStream) error { return nil },
		"its handler panicked": func(any, grpc.ServerStream) error { panic("no") },
		"it was ended": func(_ any, s grpc.ServerStream) error {
			s.Context().Value(teller{}).(func())()
			<-s.Context().Done()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTimed(t, beatAt(0, 0))
			free := make(chan struct{})
			func() {
				defer func() { _ = recover() }()
				held := new([64]byte)
				runtime.AddCleanup(held, func(free chan struct{}) { close(free) }, free)
				ctx := context.WithValue(t.Context(), heldKey{}, held)
				ctx = context.WithValue(ctx, teller{}, func() {
					if err := w.tell(change("c1", "c2", nil, entry(verify.KindSession, "sess"))); err != nil {
						t.Error(err)
					}
				})
				ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("authorization", "Bearer "+token(nil)))
				_ = w.StreamServerInterceptor()(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: "/t/any"}, handler)
			}()
			if streams, targets := w.Open(); streams != 0 || targets != 0 {
				t.Errorf("%d streams are left behind, by %d targets", streams, targets)
			}
			for {
				runtime.GC()
				select {
				case <-free:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
	}
}

type (
	heldKey struct{}
	teller  struct{}
)

// counting is a list that counts how often it is asked, and says that all is revoked.
type counting struct{ asked int }

func (c *counting) Check(*verify.Subject) error { c.asked++; return verify.ErrRevoked }

// TestARevocationDoesNotWalkAllStreams: with 10,000 of them open, an entry looks at those that it may hit.
func TestARevocationDoesNotWalkAllStreams(t *testing.T) {
	t.Parallel()
	const streams, clients = 10_000, 100
	v := verifier(true)
	var index guard.Index
	var remove []func()
	for i := range streams {
		remove = append(remove, index.Add(v.Subject(&verify.Claims{
			ID: fmt.Sprint("tok", i), SessionID: fmt.Sprint("sess", i/2), Subject: fmt.Sprint("acct", i/4), ClientID: fmt.Sprint("web", i%clients), KeyID: "key-1",
		})))
	}
	of := func(kind verify.Kind, id string) verify.Revocation {
		return verify.NewRevocation("https://auth.example", kind, id, time.Time{}, time.Time{})
	}
	many := make([]verify.Revocation, streams+1)
	for name, c := range map[string]struct {
		entries []verify.Revocation
		asked   int
	}{
		"no entry":                          {nil, 0},
		"an entry of nobody's":              {[]verify.Revocation{of(verify.KindSession, "nobody")}, 0},
		"one token's":                       {[]verify.Revocation{of(verify.KindToken, "tok77")}, 1},
		"a session's with two streams":      {[]verify.Revocation{of(verify.KindSession, "sess77")}, 2},
		"an account's with four":            {[]verify.Revocation{of(verify.KindAccount, "acct77")}, 4},
		"a client's with a hundred":         {[]verify.Revocation{of(verify.KindClient, "web7")}, streams / clients},
		"the key of all":                    {[]verify.Revocation{of(verify.KindKey, "key-1")}, streams},
		"another key":                       {[]verify.Revocation{of(verify.KindKey, "key-2")}, 0},
		"all":                               {[]verify.Revocation{of(verify.KindAll, "")}, streams},
		"10,000 entries of nobody's":        {many[:streams], 0},
		"10,001, and each stream asks once": {many, streams},
	} {
		list := &counting{}
		if index.Wake(list, c.entries...); list.asked != c.asked {
			t.Errorf("%s: %d streams were looked at, want %d", name, list.asked, c.asked)
		}
	}
	for _, r := range remove {
		r()
	}
	if left, targets := index.Size(); left != 0 || targets != 0 {
		t.Errorf("%d streams are left behind, by %d targets", left, targets)
	}
}

// overtaken is a source whose first answer is overtaken by a revocation.
type overtaken struct {
	index *guard.Index
	entry verify.Revocation
	asked atomic.Int32
}

func (o *overtaken) Check(*verify.Subject) error {
	if o.asked.Add(1) > 1 {
		return verify.ErrRevoked
	}
	going := make(chan struct{})
	go func() {
		close(going)
		o.index.Wake(o, o.entry)
	}()
	<-going
	for range 1000 {
		runtime.Gosched()
	}
	return nil
}

// TestP12NoWakingIsLost: neither to a judgement under way, which then sets the timer, nor to a clock that is set at the same moment.
func TestP12NoWakingIsLost(t *testing.T) {
	t.Parallel()
	of := verify.NewRevocation("https://auth.example", verify.KindSession, "sess", time.Time{}, time.Time{})
	subject := verify.Subject{Session: of.Target, HasSession: true}
	synctest.Test(t, func(t *testing.T) { // where no timer fires before the judgement has set it
		index, began := &guard.Index{}, time.Now()
		<-index.Watch(subject, &overtaken{index: index, entry: of})
		if passed := time.Since(began); passed != 0 {
			t.Errorf("P12 the end took %s", passed)
		}
	})
	for range 100 {
		index := &guard.Index{}
		<-index.Watch(subject, &overtaken{index: index, entry: of})
	}
	for range 1000 {
		index, list := &guard.Index{}, &revocable{}
		ended := index.Watch(subject, list)
		list.revoked.Store(true)
		index.Wake(list, of)
		index.ClockRaised()
		<-ended
	}
}

// revocable is a source that may change its mind.
type revocable struct{ revoked atomic.Bool }

func (r *revocable) Check(*verify.Subject) error {
	if r.revoked.Load() {
		return verify.ErrRevoked
	}
	return nil
}
