package guard_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
)

// asker is a hall whose feed stays cut off, and whose guard asks an authsvc that is there.
type asker struct {
	*hall
	oracle oracle
	guard  *guard.Guard
}

// newAsker is for the body of a bubble.
func newAsker(t *testing.T) *asker {
	t.Helper()
	a := &asker{hall: newHall(t)}
	listener, server := bufconn.Listen(1<<20), grpc.NewServer(grpc.WaitForHandlers(true))
	authsvcv1.RegisterTrustServiceServer(server, &peer{script: func(*peer, int, watch) error { return status.Error(codes.Unavailable, "away") }})
	authsvcv1.RegisterAuthServiceServer(server, &a.oracle)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	a.DialWith(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) })
	a.guard = newGuard(t, guard.Options{Verifier: a.verifier, Feed: a.Feed, Introspect: true})
	time.Sleep(3 * time.Second) // of the bubble's clock
	return a
}

// run has the feed run while something is done.
func (a *asker) run(t *testing.T, during func()) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- a.Run(ctx) }()
	synctest.Wait()
	during()
	stop()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Errorf("Run gave %v", err)
	}
}

func (a *asker) expect(t *testing.T, when, token, want string) {
	t.Helper()
	if _, got := a.guard.Decide(t.Context(), anyBriefly, []string{"Bearer " + token}); got != want {
		t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// TestR61NothingIsAskedBetweenTwoRuns, what the first was answered is forgotten in the second, and a call that is under way when a Run
// ends holds up neither it nor the caller.
func TestR61NothingIsAskedBetweenTwoRuns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, one := newAsker(t), token(nil)
		a.expect(t, "R61 before the first", one, refused)
		a.run(t, func() { a.expect(t, "in the first", one, accepted) })
		a.expect(t, "R61 after the first, which had an answer", one, refused)
		a.oracle.says(always(inactive(), nil))
		a.run(t, func() { a.expect(t, "in the second, another answer", one, invalid) })
		a.oracle.says(unanswered)
		said, began := make(chan string, 1), time.Now()
		a.run(t, func() {
			go func() {
				_, got := a.guard.Decide(t.Context(), anyBriefly, []string{"Bearer " + of("third")})
				said <- got
			}()
			synctest.Wait()
		})
		if got := <-said; got != refused || time.Since(began) != 0 {
			t.Errorf("R61 a call that was under way: %q after %s", got, time.Since(began))
		}
		a.oracle.says(failing(codes.Unavailable))
		a.run(t, func() {
			for range 6 {
				a.expect(t, "R61 authsvc fails", one, refused)
			}
		})
		a.oracle.says(nil)
		calls := a.oracle.calls()
		a.run(t, func() { a.expect(t, "the twin: the next Run knows of no failures", one, accepted) })
		if n := a.oracle.calls() - calls; n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

// anyBriefly is a rule that any token satisfies, of knowledge of 2 s.
var anyBriefly = guard.Rule{Authenticated: true, Sensitive: true}

// TestP01AMachineThatSleptAndWasSetBack by as much while authsvc was asked: its wall clock tells nothing of it, and the answer is old.
func TestP01AMachineThatSleptAndWasSetBack(t *testing.T) {
	t.Parallel()
	for slept, want := range map[time.Duration]string{800 * time.Millisecond: accepted, 1200 * time.Millisecond: refused, time.Hour: refused} {
		synctest.Test(t, func(t *testing.T) {
			a, base, suspended := newAsker(t), time.Now(), time.Duration(0)
			passed := func() time.Duration { return time.Since(base) + 3*time.Second }
			a.CountBy(func() (time.Duration, int64) { return passed(), issued*int64(time.Second) + int64(passed()) },
				func() time.Duration { return passed() + suspended })
			a.oracle.says(func(_ context.Context, token string) (inspection, error) {
				suspended = slept
				return active(token), nil
			})
			a.run(t, func() { a.expect(t, "P01 it slept for "+slept.String(), token(nil), want) })
		})
	}
}

// TestP12ATokenThatExpiresWhileAuthsvcIsAsked is not let through by the answer.
func TestP12ATokenThatExpiresWhileAuthsvcIsAsked(t *testing.T) {
	t.Parallel()
	for took, want := range map[time.Duration]string{50 * time.Millisecond: accepted, 100 * time.Millisecond: expired, 200 * time.Millisecond: expired} {
		synctest.Test(t, func(t *testing.T) {
			a := newAsker(t)
			a.oracle.says(func(_ context.Context, token string) (inspection, error) {
				time.Sleep(took)
				return active(token), nil
			})
			a.run(t, func() {
				time.Sleep(7*time.Second - 100*time.Millisecond) // 10 s after issued, and the skew is 30 s
				a.expect(t, "P12 authsvc takes "+took.String(), token(map[string]any{"exp": issued - 20, "iat": issued - 60, "nbf": issued - 60}), want)
			})
		})
	}
}
