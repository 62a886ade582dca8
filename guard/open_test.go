package guard_test

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/wrapperspb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// hall is a service of streams behind guards, its client over a connection in memory, and a feed whose messages the test brings.
// Its time begins at issued and goes on with the bubble's.
type hall struct {
	*guard.Feed
	verifier *verify.Verifier
	tell     func(...event) error
	step     atomic.Int64 // by which the time of day was set
	conn     *grpc.ClientConn
	came     chan error // what each handler returned
}

// newHall is for the body of a bubble.
func newHall(t *testing.T) *hall {
	t.Helper()
	h := &hall{came: make(chan error, 16)}
	var err error
	h.Feed, err = guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "x"})
	if err != nil {
		t.Fatal(err)
	}
	base := time.Now()
	h.CountBy(func() (time.Duration, int64) {
		passed := time.Since(base)
		return passed, issued*int64(time.Second) + int64(passed) + h.step.Load()
	}, func() time.Duration { return time.Since(base) })
	h.verifier, err = verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: h.Feed, Revocations: h.Feed, Now: h.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	h.tell = h.Stream()
	h.must(t, part(keySet("key-1", "key-2"), "c1"), beatAt(0, 0))
	return h
}

func (h *hall) must(t *testing.T, events ...event) {
	t.Helper()
	if err := h.tell(events...); err != nil {
		t.Fatal(err)
	}
}

// guard is a guard on the feed that lets every good token through, to /t.Streams/Public everybody, and to /t.Streams/Optional who
// has no token too.
func (h *hall) guard(t *testing.T) *guard.Guard {
	t.Helper()
	return newGuard(t, guard.Options{
		Verifier: h.verifier, Feed: h.Feed, Default: guard.Rule{Authenticated: true},
		Rules: map[string]guard.Rule{"/t.Streams/Public": {Public: true}, "/t.Streams/Optional": {Optional: true}},
	})
}

// streamsOf describes a service whose streaming methods are all this handler.
func streamsOf(handler grpc.StreamHandler) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{ServiceName: "t.Streams", Streams: []grpc.StreamDesc{
		{StreamName: "Both", Handler: handler, ServerStreams: true, ClientStreams: true},
		{StreamName: "Down", Handler: handler, ServerStreams: true},
		{StreamName: "Up", Handler: handler, ClientStreams: true},
		{StreamName: "Public", Handler: handler, ServerStreams: true, ClientStreams: true},
		{StreamName: "Optional", Handler: handler, ServerStreams: true, ClientStreams: true},
	}}
}

// serve runs the service behind these interceptors, in their order.
func (h *hall) serve(t *testing.T, handler func(grpc.ServerStream) error, interceptors ...grpc.StreamServerInterceptor) {
	t.Helper()
	server := grpc.NewServer(grpc.ChainStreamInterceptor(interceptors...), grpc.WaitForHandlers(true))
	server.RegisterService(streamsOf(func(_ any, s grpc.ServerStream) error {
		err := handler(s)
		h.came <- err
		return err
	}), nil)
	listener := bufconn.Listen(1 << 20)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	var err error
	h.conn, err = grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.conn.Close() })
}

// open begins a stream; what is said to it and what it says are texts.
func (h *hall) open(t *testing.T, method, token string) talk {
	t.Helper()
	ctx := t.Context()
	if token != "" {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	s, err := h.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/t.Streams/"+method)
	if err != nil {
		t.Fatal(err)
	}
	return talk{s}
}

type talk struct{ grpc.ClientStream }

// hears gives the next message.
func (c talk) hears() (string, error) {
	m := &wrapperspb.StringValue{}
	err := c.RecvMsg(m)
	return m.GetValue(), err
}

// echoes says whether the stream is open, and what speaks against it.
func (c talk) echoes(t *testing.T, when string) {
	t.Helper()
	if err := c.SendMsg(wrapperspb.String("still here")); err != nil {
		t.Errorf("%s: the twin cannot be talked to: %v", when, err)
	}
	if m, err := c.hears(); err != nil || m != "still here" {
		t.Errorf("%s: the twin says %q, %v", when, m, err)
	}
}

// ended compares how a stream has ended, messages that were under way left aside.
func (c talk) ended(t *testing.T, when, reason string) {
	t.Helper()
	for {
		if _, err := c.hears(); err != nil {
			isEnd(t, when+", at the client", err, reason)
			return
		}
	}
}

func isEnd(t *testing.T, when string, err error, reason string) {
	t.Helper()
	if got, domain := errorInfo(err); status.Code(err) != codes.Unauthenticated || got != reason || domain != guard.Domain {
		t.Errorf("%s: got %v with the reason %q, want %q", when, err, got, reason)
	}
}

// echo is a handler that says what it hears.
func echo(s grpc.ServerStream) error {
	for {
		m := &wrapperspb.StringValue{}
		err := s.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = s.SendMsg(m)
		}
		if err != nil {
			if cause := context.Cause(s.Context()); cause == nil || cause.Error() != err.Error() {
				return fmt.Errorf("the context was done for %w, and the stream for: %w", cause, err)
			}
			return err
		}
	}
}

// by is a token that another kid signed.
func by(kid, token string) string {
	signed := encode([]byte(`{"alg":"RS256","typ":"at+jwt","kid":"`+kid+`"}`)) + "." + strings.Split(token, ".")[1]
	digest := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key(), crypto.SHA256, digest[:])
	if err != nil {
		panic(err)
	}
	return signed + "." + encode(signature)
}

func cutOff(kind verify.Kind, id string, before int64) *authsvcv1.Revocation {
	e := entry(kind, id)
	e.NotBefore = before
	return e
}

// TestP12ARevocationEndsTheOpenStreamsThatItHits: at the moment at which the feed hears of it, to the nanosecond of the bubble.
func TestP12ARevocationEndsTheOpenStreamsThatItHits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		dies  string
		entry *authsvcv1.Revocation
		twin  string
	}{
		"P12 its session's end":                      {token(nil), entry(verify.KindSession, "sess"), token(map[string]any{"sid": "other"})},
		"P12 its session's end, and a service":       {token(nil), entry(verify.KindSession, "sess"), token(map[string]any{"sid": nil})},
		"P12 itself":                                 {token(nil), entry(verify.KindToken, "tok"), token(map[string]any{"jti": "other"})},
		"P12 its account":                            {token(nil), entry(verify.KindAccount, "acct"), token(map[string]any{"sub": "other"})},
		"P12 its account's cut-off":                  {token(nil), cutOff(verify.KindAccount, "acct", issued+1), token(map[string]any{"sub": "other"})},
		"P12 its account's, and a session since":     {token(nil), cutOff(verify.KindAccount, "acct", issued+1), token(map[string]any{"auth_time": issued + 1})},
		"P12 its client's cut-off":                   {token(nil), cutOff(verify.KindClient, "web", issued+1), token(map[string]any{"client_id": "other"})},
		"P12 its client's, and a session since":      {token(nil), cutOff(verify.KindClient, "web", issued+1), token(map[string]any{"auth_time": issued + 1})},
		"P12 a service's own, by the client's entry": {token(map[string]any{"sid": nil}), entry(verify.KindClient, "web"), token(map[string]any{"sid": nil, "client_id": "other"})},
		"P12 all before now, and a session since":    {token(nil), cutOff(verify.KindAll, "", issued+1), token(map[string]any{"auth_time": issued + 1})},
		"P12 J28 its key":                            {by("key-2", token(nil)), entry(verify.KindKey, "key-2"), token(nil)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHall(t)
				h.serve(t, echo, h.guard(t).StreamServerInterceptor())
				dies, twin := h.open(t, "Both", c.dies), h.open(t, "Both", c.twin)
				dies.echoes(t, "before")
				twin.echoes(t, "before")
				h.must(t, change("c1", "c2", keySet("key-1"), entry(verify.KindSession, "nobody"))) // a key that retires ends nothing
				dies.echoes(t, "after another's end")
				began := time.Now()
				h.must(t, change("c2", "c3", nil, c.entry))
				dies.ended(t, name, guard.ReasonTokenRevoked)
				isEnd(t, name+", at the handler", <-h.came, guard.ReasonTokenRevoked)
				if passed := time.Since(began); passed != 0 {
					t.Errorf("the end took %s", passed)
				}
				twin.echoes(t, "after")
				if err := twin.CloseSend(); err != nil {
					t.Fatal(err)
				}
				if err := <-h.came; err != nil {
					t.Errorf("the twin's handler: %v", err)
				}
				synctest.Wait()
				if streams, targets := h.Open(); streams != 0 || targets != 0 {
					t.Errorf("%d streams are left behind, by %d targets", streams, targets)
				}
			})
		})
	}
}

// The handlers that an end meets, each with the methods that it can be the handler of.
func handlers() map[string]struct {
	methods []string
	handler func(grpc.ServerStream) error
} {
	type h = struct {
		methods []string
		handler func(grpc.ServerStream) error
	}
	receive := func(s grpc.ServerStream) error { return s.RecvMsg(&wrapperspb.StringValue{}) }
	return map[string]h{
		"blocked in a receipt": {[]string{"Both", "Down", "Up"}, receive},
		"blocked in a send": {[]string{"Both", "Down"}, func(s grpc.ServerStream) error {
			for {
				if err := s.SendMsg(wrapperspb.String(strings.Repeat("x", 32<<10))); err != nil {
					return err
				}
			}
		}},
		"waiting for its context": {[]string{"Both", "Down", "Up"}, func(s grpc.ServerStream) error {
			<-s.Context().Done()
			return context.Cause(s.Context())
		}},
		"busy in two goroutines": {[]string{"Both"}, func(s grpc.ServerStream) error {
			other := make(chan error)
			go func() { other <- receive(s) }()
			for {
				if err := s.SendMsg(wrapperspb.String("tick")); err != nil {
					return errors.Join(err, <-other)
				}
				time.Sleep(time.Millisecond) // of the bubble's clock
			}
		}},
		"deaf to its end": {[]string{"Both", "Down", "Up"}, func(s grpc.ServerStream) error {
			<-s.Context().Done()
			for range 100 {
				if s.SendMsg(wrapperspb.String("late")) == nil || s.SendHeader(metadata.Pairs("late", "1")) == nil {
					return errors.New("something was sent after the end")
				}
			}
			return s.SendMsg(wrapperspb.String("late"))
		}},
	}
}

// TestP12WhereverAHandlerIsItsStreamEnds: a client that does not read cannot hold it up.
func TestP12WhereverAHandlerIsItsStreamEnds(t *testing.T) {
	t.Parallel()
	for name, c := range handlers() {
		for _, method := range c.methods {
			t.Run("P12 "+name+", "+method, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					h := newHall(t)
					h.serve(t, c.handler, h.guard(t).StreamServerInterceptor())
					dies, twin := h.open(t, method, token(nil)), h.open(t, method, token(map[string]any{"sid": "other"}))
					time.Sleep(time.Second) // of the bubble's clock: they are as far as they get
					began := time.Now()
					h.must(t, change("c1", "c2", nil, entry(verify.KindSession, "sess")))
					err := <-h.came // before the client has read anything
					isEnd(t, "at the handler", err, guard.ReasonTokenRevoked)
					if !errors.Is(err, verify.ErrRevoked) || errors.Is(err, verify.ErrExpired) {
						t.Errorf("the handler got %v, which is not verify.ErrRevoked", err)
					}
					if passed := time.Since(began); passed > time.Millisecond {
						t.Errorf("the end took %s", passed)
					}
					if strings.HasPrefix(name, "deaf") {
						if m, err := dies.hears(); err == nil {
							t.Errorf("the client was sent %q after the end", m)
						}
					}
					dies.ended(t, "after", guard.ReasonTokenRevoked)
					time.Sleep(time.Second)
					select {
					case err := <-h.came:
						t.Errorf("the twin ended: %v", err)
					default:
					}
					h.must(t, change("c2", "c3", nil, entry(verify.KindSession, "other")))
					<-h.came
					twin.ended(t, "the twin, once its own session ends", guard.ReasonTokenRevoked)
				})
			})
		}
	}
}

func TestP12AnOpenStreamEndsAtExp(t *testing.T) {
	t.Parallel()
	longer := map[string]any{"exp": issued + 900}
	for name, c := range map[string]struct {
		source verify.RevocationSource // nil: the feed
		none   bool                    // no revocations at all
		happen func(h *hall) error
		after  time.Duration // to the end
		reason string
		twin   map[string]any
	}{
		"P12 by the feed's clock":                  {after: 300 * time.Second, reason: expired, twin: longer},
		"P12 the server says it is later":          {happen: func(h *hall) error { return h.tell(beatAt(0, 400)) }, reason: expired, twin: longer},
		"P12 the wall clock is set ahead":          {happen: func(h *hall) error { h.step.Add(int64(400 * time.Second)); return nil }, after: time.Second, reason: expired, twin: longer},
		"P12 the wall clock is set back":           {happen: func(h *hall) error { h.step.Add(-int64(400 * time.Second)); return nil }, after: 300 * time.Second, reason: expired, twin: longer},
		"P12 by a list of one's own":               {source: ownList(), after: 300 * time.Second, reason: expired, twin: longer},
		"P12 by a source that cannot say":          {source: saying(verify.ErrNotReady), after: 300 * time.Second, reason: expired, twin: longer},
		"P12 by no revocations at all":             {none: true, after: 300 * time.Second, reason: expired, twin: longer},
		"P12 the clock is set ahead, and no feed":  {none: true, happen: func(h *hall) error { h.step.Add(int64(400 * time.Second)); return nil }, after: time.Minute, reason: expired, twin: longer},
		"P12 a list of one's own is asked again":   {source: endsAt(10 * time.Second), after: 10 * time.Second, reason: revoked, twin: map[string]any{"sid": "other"}},
		"P12 and soon, where that is not a second": {source: endsAt(10*time.Second + 1), after: 11 * time.Second, reason: revoked, twin: map[string]any{"sid": "other"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHall(t)
				g := h.guard(t)
				if c.source != nil || c.none {
					if late, ok := c.source.(*endsLate); ok {
						late = &endsLate{late.after, time.Now()}
						c.source = late
					}
					g = newGuard(t, guard.Options{Verifier: h.without(t, c.source), Default: guard.Rule{Authenticated: true}})
				}
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				h.DialWith(func(context.Context, string) (net.Conn, error) { return nil, errors.New("cut off") })
				go func() { _ = h.Run(ctx) }()
				h.serve(t, echo, g.StreamServerInterceptor())
				dies, twin := h.open(t, "Both", token(nil)), h.open(t, "Both", token(c.twin))
				dies.echoes(t, "before")
				twin.echoes(t, "before")
				began := time.Now()
				if c.happen != nil {
					if err := c.happen(h); err != nil {
						t.Fatal(err)
					}
				}
				dies.ended(t, name, c.reason)
				if passed := time.Since(began); passed != c.after {
					t.Errorf("the end came after %s, want %s", passed, c.after)
				}
				err := <-h.came
				if isEnd(t, "at the handler", err, c.reason); errors.Is(err, verify.ErrExpired) != (c.reason == expired) {
					t.Errorf("the handler got %v", err)
				}
				twin.echoes(t, "after")
			})
		})
	}
}

// without is a verifier that the feed gives its keys and its clock, and no revocations.
func (h *hall) without(t *testing.T, source verify.RevocationSource) *verify.Verifier {
	t.Helper()
	wall := func() time.Time { return h.Now() }
	v, err := verify.New(verify.Options{
		Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: h.Feed, Revocations: source, Now: wall,
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func ownList() verify.RevocationSource {
	list, err := verify.NewList(verify.ListOptions{})
	if err != nil {
		panic(err)
	}
	list.SetReady(true)
	return list
}

// saying is a source of one answer, once a stream was let in.
func saying(err error) verify.RevocationSource { return &twice{err: err} }

type twice struct {
	asked atomic.Int32
	err   error
}

// Check lets two streams in, each of which is judged as a call and as a stream.
func (s *twice) Check(*verify.Subject) error {
	if s.asked.Add(1) <= 4 {
		return nil
	}
	return s.err
}

// endsLate revokes the session "sess" some time from its beginning on.
type endsLate struct {
	after time.Duration
	began time.Time
}

func endsAt(d time.Duration) verify.RevocationSource { return &endsLate{after: d} }

func (e *endsLate) Check(s *verify.Subject) error {
	if s.Session == verify.TargetOf("https://auth.example", verify.KindSession, "sess") && time.Since(e.began) >= e.after {
		return fmt.Errorf("asked again: %w", verify.ErrRevoked)
	}
	return nil
}

// TestP12SkewIsForCallsAndNotForStreams: a stream that is let in after exp would have no end.
func TestP12SkewIsForCallsAndNotForStreams(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		left int64
		open bool
	}{
		"P12 a second too late":              {-1, false},
		"P12 in the second in which it ends": {0, false},
		"the twin has a second":              {1, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := newHall(t)
				g := h.guard(t)
				h.serve(t, echo, g.StreamServerInterceptor())
				text := token(map[string]any{"exp": issued + c.left, "iat": issued - 60, "nbf": issued - 60})
				md := metadata.Pairs("authorization", "Bearer "+text)
				if _, err := g.UnaryServerInterceptor()(metadata.NewIncomingContext(t.Context(), md), nil, &grpc.UnaryServerInfo{FullMethod: "/t/x"},
					func(context.Context, any) (any, error) { return struct{}{}, nil }); err != nil {
					t.Errorf("a call: %v", err)
				}
				s := h.open(t, "Both", text)
				if c.open {
					s.echoes(t, "at first")
				}
				began := time.Now()
				s.ended(t, name, expired)
				if passed := time.Since(began); passed != time.Duration(max(c.left, 0))*time.Second {
					t.Errorf("ended after %s", passed)
				}
				synctest.Wait()
				if (len(h.came) == 1) != c.open {
					t.Errorf("%d handlers were reached", len(h.came))
				}
			})
		})
	}
}
