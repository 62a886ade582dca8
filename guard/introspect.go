package guard

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// The bounds of Options.Introspect: an authsvc that stumbles must not be finished off by its verifiers.
const (
	introspectLag      = time.Second            // authsvc answers Introspect by knowledge that is no older
	introspectLife     = time.Second            // of an answer, from when its call was sent
	introspectDeadline = 250 * time.Millisecond // of one call, its connection included
	introspectMost     = 8                      // calls in flight
	introspectKept     = 10_000                 // answers in memory
	introspectSize     = 64 << 10               // bytes of one answer
	breakerFailures    = 5                      // in a row, after which nothing is asked for a while
	breakerFirst       = time.Second
	breakerLast        = 30 * time.Second
)

// errInactive is authsvc's word that the token is not good now. It does not say why: the token may have been revoked, or the
// feed's client has none of the token's audiences.
var errInactive = errors.New("guard: authsvc says that the token is not active")

// errBesideThePoint is an answer that does not say whether this token is good.
var errBesideThePoint = errors.New("guard: what authsvc answered is not about this token")

// verifyByAsking is for a token that is good but for the age of the feed's knowledge: the verdict is authsvc's, where the guard may
// ask for it.
func (g *Guard) verifyByAsking(ctx context.Context, rule Rule, token string, claims *verify.Claims) (*verify.Claims, string, error) {
	if !g.asks {
		return nil, "", verify.ErrStale
	}
	sent, err := g.feed.introspector.judge(ctx, token, claims)
	if err != nil {
		return nil, "", err
	}
	// Again: while we waited the token may have expired, or the feed may have told what hits it.
	if claims, err = g.verifier.Verify(ctx, token); err != nil && !errors.Is(err, verify.ErrStale) {
		return nil, "", err
	}
	g.feed.clock.measure()
	if g.feed.now()-sent+introspectLag > rule.maxAge() {
		return nil, "", verify.ErrStale
	}
	return claims, AcceptedIntrospected, nil
}

// introspector asks authsvc about single tokens while the feed's knowledge is too old to go by. It is one for all guards of a
// feed, works only while the feed runs, and has no queue: who cannot be asked for at once is refused.
type introspector struct {
	feed *Feed

	mu      sync.Mutex
	fly     func(q *inquiry, conn *grpc.ClientConn) // makes the call; nil while the feed does not run
	stop    context.CancelFunc
	calls   sync.WaitGroup
	conn    *grpc.ClientConn    // made by the first call
	flights map[string]*inquiry // by the whole text of the token: one token's verdict is never another's
	answers map[string]*inquiry // the same
	oldest  *inquiry            // of the answers that are kept, in the order in which they came
	newest  *inquiry
	kept    int
	breaker breaker
}

// inquiry is one call about one token, and its answer once done is closed.
type inquiry struct {
	token  string
	claims *verify.Claims
	sent   time.Duration // when, by the feed's clock
	probe  bool          // of the breaker
	done   chan struct{}
	err    error    // nil: active; errInactive; or verify.ErrStale, where nobody knows
	next   *inquiry // the answer that came after this
}

// open lets calls be made until close.
func (i *introspector) open(ctx context.Context) {
	i.mu.Lock()
	defer i.mu.Unlock()
	ctx, i.stop = context.WithCancel(ctx)
	i.flights, i.answers = map[string]*inquiry{}, map[string]*inquiry{}
	i.fly = func(q *inquiry, conn *grpc.ClientConn) {
		stood := conn.GetState() == connectivity.Ready
		err := q.ask(ctx, conn)
		i.settle(ctx, q, err)
		if stood && status.Code(err) == codes.DeadlineExceeded {
			i.doubt(conn)
		}
	}
}

// close ends the calls and forgets all that was answered.
func (i *introspector) close() {
	i.mu.Lock()
	i.fly = nil
	i.stop()
	i.mu.Unlock()
	i.calls.Wait()
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.conn != nil {
		_ = i.conn.Close() // it has no error that would change anything
	}
	i.conn, i.flights, i.answers, i.oldest, i.newest, i.kept, i.breaker = nil, nil, nil, nil, nil, 0, breaker{}
}

// judge gives authsvc's verdict on a token that the verifier found good but for the age of the feed, and when it was asked for, by
// the feed's clock: nil for active, errInactive, or verify.ErrStale where there is none to be had. A caller whose ctx ends
// leaves with its error; the call goes on, for the others and for the next.
func (i *introspector) judge(ctx context.Context, token string, claims *verify.Claims) (sent time.Duration, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	i.mu.Lock()
	q := i.answers[token]
	if q == nil || i.feed.now()-q.sent > introspectLife {
		if q = i.flights[token]; q == nil {
			q = i.begin(token, claims)
		}
	}
	i.mu.Unlock()
	if q == nil {
		return 0, verify.ErrStale
	}
	select {
	case <-q.done:
		return q.sent, q.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// begin makes a call, or gives nil where none may be made.
func (i *introspector) begin(token string, claims *verify.Claims) *inquiry {
	if i.fly == nil || len(i.flights) >= introspectMost {
		return nil
	}
	if i.conn == nil { // this connects to nothing yet
		conn, err := grpc.NewClient("dns:///"+i.feed.o.Target, i.feed.dial...)
		if err != nil {
			return nil // as the feed's own stream says in the log
		}
		i.conn = conn
	}
	now := i.feed.now()
	ok, probe := i.breaker.admit(now)
	if !ok {
		return nil
	}
	q := &inquiry{token: strings.Clone(token), claims: claims, sent: now, probe: probe, done: make(chan struct{})}
	i.flights[q.token] = q
	fly, conn := i.fly, i.conn
	i.calls.Go(func() { fly(q, conn) })
	return q
}

// ask is the call. A probe waits for the connection as long as it may, so that it does not fail for a backoff of grpc's; every other
// call fails at once where there is none.
func (q *inquiry) ask(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(ctx, introspectDeadline)
	defer cancel()
	if q.probe {
		conn.ResetConnectBackoff()
	}
	m, err := authsvcv1.NewAuthServiceClient(conn).Introspect(ctx,
		&authsvcv1.IntrospectRequest{Token: q.token, TokenTypeHint: "access_token"},
		grpc.WaitForReady(q.probe), grpc.MaxCallRecvMsgSize(introspectSize))
	switch c := q.claims; {
	case err != nil:
		return err
	case m.Active == nil:
		return errBesideThePoint
	case !m.GetActive():
		return errInactive
	case m.GetJti() != c.ID || m.GetSid() != c.SessionID || m.GetSub() != c.Subject:
		return errBesideThePoint
	default:
		return nil
	}
}

// settle notes what came of a call. Only a verdict is kept; all else is a failure, whosever fault it is.
func (i *introspector) settle(ctx context.Context, q *inquiry, err error) {
	f := i.feed
	i.mu.Lock()
	delete(i.flights, q.token)
	opened, closed := false, false
	switch {
	case err == nil, errors.Is(err, errInactive):
		q.err = err
		i.keep(q)
		closed = i.breaker.succeeded()
	default:
		q.err = verify.ErrStale
		opened = ctx.Err() == nil && i.breaker.failed(f.now(), q.probe)
	}
	i.mu.Unlock()
	close(q.done)
	switch {
	case opened:
		f.o.Logger.WarnContext(ctx, "introspection fails and pauses", "target", f.o.Target, "error", err)
	case closed:
		f.o.Logger.InfoContext(ctx, "introspection works again", "target", f.o.Target)
	}
}

// keep makes room for an answer, by what has expired and by the oldest, and has it.
func (i *introspector) keep(q *inquiry) {
	q.claims = nil
	for o := i.oldest; o != nil && (i.feed.now()-o.sent > introspectLife || i.kept >= introspectKept); o = i.oldest {
		if i.answers[o.token] == o {
			delete(i.answers, o.token)
		}
		i.oldest, o.next = o.next, nil
		i.kept--
	}
	i.answers[q.token] = q
	if i.kept++; i.oldest == nil {
		i.oldest = q
	} else {
		i.newest.next = q
	}
	i.newest = q
}

// doubt gives up a connection on which a call was not answered in time, once the breaker is open: its other end may be gone
// without a word, and TCP takes many minutes to see that. The next call makes a new one.
func (i *introspector) doubt(conn *grpc.ClientConn) {
	i.mu.Lock()
	gone := i.conn == conn && i.breaker.pause > 0
	if gone {
		i.conn = nil
	}
	i.mu.Unlock()
	if gone {
		_ = conn.Close() // calls that are still on it are failures, too late to count
	}
}

// breaker keeps calls from a server that fails them. It opens after breakerFailures in a row; after a pause, one call goes
// through as a probe. Its success closes the breaker, its failure doubles the pause.
type breaker struct {
	failures int           // in a row
	pause    time.Duration // 0 while closed
	until    time.Duration // the end of the pause, by the feed's clock
	probing  bool
}

func (b *breaker) admit(now time.Duration) (ok, probe bool) {
	switch {
	case b.pause == 0:
		return true, false
	case b.probing || now < b.until:
		return false, false
	}
	b.probing = true
	return true, true
}

func (b *breaker) succeeded() (closed bool) {
	closed = b.pause > 0
	*b = breaker{}
	return closed
}

// failed is not told of the end of the pause by calls that were made before the breaker opened. The pause is longer by up to a half, at
// random, so that the verifiers of one authsvc do not come back all at once.
func (b *breaker) failed(now time.Duration, probe bool) (opened bool) {
	b.failures++
	switch {
	case b.pause > 0 && !probe, b.failures < breakerFailures:
		return false
	case b.pause > 0:
		b.pause = min(2*b.pause, breakerLast)
	default:
		b.pause, opened = breakerFirst, true
	}
	b.probing, b.until = false, now+b.pause+rand.N(b.pause/2)
	return opened
}
