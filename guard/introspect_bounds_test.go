package guard_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/authsvc/authsvc/guard"
)

// TestJ30ManyCallersOfOneTokenAreOneCall: and of another token, another. Tokens that begin or end alike, of one account, share nothing.
func TestJ30ManyCallersOfOneTokenAreOneCall(t *testing.T) {
	t.Parallel()
	askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
		time.Sleep(guard.MaxAge + 1)
		good, bad, open := token(nil), token(map[string]any{"jti": "tok2"}), make(chan struct{})
		w.oracle.says(func(_ context.Context, token string) (inspection, error) {
			<-open
			if token == good {
				return active(token), nil
			}
			return inactive(), nil
		})
		said := make([]string, 200)
		var callers sync.WaitGroup
		for n := range said {
			callers.Go(func() { said[n] = w.decide(t.Context(), anyToken, []string{good, bad}[n%2]) })
		}
		synctest.Wait()
		if n := w.oracle.calls(); n != 2 {
			t.Errorf("J30 200 callers of two tokens are %d calls", n)
		}
		close(open)
		callers.Wait()
		for n, got := range said {
			if want := []string{introspected, invalid}[n%2]; got != want {
				t.Fatalf("J30 caller %d: %q, want %q", n, got, want)
			}
		}
		d.expect(t, "J30 an account's good token, after its bad one", good, introspected, introspected, stale)
		d.expect(t, "J30 its bad one, after its good one", bad, invalid, invalid, stale)
		for name, forged := range map[string]string{
			"J30 the same but for the end":                good[:len(good)-4] + "AAAA",
			"J30 another's claims under a good signature": bad[:len(bad)-342] + good[len(good)-342:],
		} {
			d.expect(t, name, forged, invalid, invalid, invalid)
		}
		if n := w.oracle.calls(); n != 2 {
			t.Errorf("J30 asked %d times", n)
		}
	})
}

// TestNoMoreThanEightCallsAtATime: the ninth token is refused at once, one that is asked about already is not.
func TestNoMoreThanEightCallsAtATime(t *testing.T) {
	t.Parallel()
	askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
		time.Sleep(guard.MaxAge + 1)
		open := make(chan struct{})
		w.oracle.says(func(_ context.Context, token string) (inspection, error) { <-open; return active(token), nil })
		said := make([]string, 9)
		var callers sync.WaitGroup
		for n := range said {
			callers.Go(func() { said[n] = w.decide(t.Context(), anyToken, of(fmt.Sprint(n%8))) })
		}
		synctest.Wait()
		began := time.Now()
		d.expect(t, "the ninth", of("8"), refused, refused, stale)
		if time.Since(began) > 0 {
			t.Errorf("it took %s", time.Since(began))
		}
		close(open)
		callers.Wait()
		for n, got := range said {
			if got != introspected {
				t.Errorf("caller %d: %q", n, got)
			}
		}
		d.expect(t, "the twin: the ninth, after the others", of("8"), introspected, introspected, stale)
		if asked, _, _, most := w.oracle.heard(); most != 8 || len(asked) != 9 {
			t.Errorf("%d calls, %d at a time", len(asked), most)
		}
	})
}

// TestACallHasItsDeadlineAndItsCallersTheirs: a caller waits no longer than the call may take, and one who leaves does not end it.
func TestACallHasItsDeadlineAndItsCallersTheirs(t *testing.T) {
	t.Parallel()
	askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
		time.Sleep(guard.MaxAge + 1)
		w.oracle.says(unanswered)
		began := time.Now()
		if got := w.decide(t.Context(), anyToken, token(nil)); got != refused || time.Since(began) != 250*time.Millisecond {
			t.Errorf("no answer: %q after %s", got, time.Since(began))
		}
		w.oracle.says(func(_ context.Context, token string) (inspection, error) {
			time.Sleep(200 * time.Millisecond)
			return active(token), nil
		})
		ctx, leave := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer leave()
		began = time.Now()
		if got := w.decide(ctx, anyToken, token(nil)); got != refused || time.Since(began) != 50*time.Millisecond {
			t.Errorf("a caller who leaves: %q after %s", got, time.Since(began))
		}
		calls := w.oracle.calls()
		if got := w.decide(ctx, anyToken, of("new")); got != refused || w.oracle.calls() != calls {
			t.Errorf("a caller who has left: %q", got)
		}
		d.expect(t, "the twin: one who comes after", token(nil), introspected, introspected, stale)
		if w.oracle.calls() != calls {
			t.Error("the call that was under way was made again")
		}
	})
}

// TestAnAuthsvcThatFailsIsLeftAlone: for a second at first and half a minute later, and is tried by one call at a time.
func TestAnAuthsvcThatFailsIsLeftAlone(t *testing.T) {
	t.Parallel()
	other := active(of("other"))
	for name, fail := range map[string]func(context.Context, string) (inspection, error){
		"unavailable":              failing(codes.Unavailable),
		"shed":                     failing(codes.ResourceExhausted),
		"in doubt of us":           failing(codes.Unauthenticated),
		"broken":                   failing(codes.Internal),
		"silent":                   unanswered,
		"speaking of other tokens": always(other, nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
				time.Sleep(guard.MaxAge + 1)
				one := token(nil)
				tries := func(n int) {
					for range n {
						if got := w.decide(t.Context(), anyToken, one); got != refused {
							t.Fatalf("got %q", got)
						}
					}
				}
				w.oracle.says(fail)
				tries(4)
				w.oracle.says(nil)
				if got := w.decide(t.Context(), anyToken, token(nil)); got != introspected {
					t.Fatalf("the twin: after four failures, %q", got)
				}
				time.Sleep(time.Second + 1)
				w.oracle.says(fail)
				tries(5)
				before, opened := w.oracle.calls(), time.Now()
				for time.Since(opened) < 2*time.Minute {
					tries(1)
					time.Sleep(250 * time.Millisecond)
				}
				last, pause := opened, time.Second
				_, _, when, _ := w.oracle.heard()
				for n, at := range when[before:] {
					// A try comes each 250 ms, and a probe may take as long to fail.
					if d := at.Sub(last); d < pause || d > pause+pause/2+600*time.Millisecond {
						t.Errorf("probe %d came after %s, not %s and half of that", n, d, pause)
					}
					last, pause = at, min(2*pause, 30*time.Second)
				}
				if n := w.oracle.calls() - before; n < 6 || n > 8 {
					t.Errorf("%d probes in two minutes", n)
				}
				w.oracle.says(nil)
				time.Sleep(45 * time.Second)
				d.expect(t, "when it is well again", of("a"), introspected, introspected, stale)
				d.expect(t, "and another token at once", of("b"), introspected, introspected, stale)
				synctest.Wait()
				if log := w.log.String(); strings.Count(log, "introspection fails and pauses") != 1 ||
					strings.Count(log, "introspection works again") != 1 || strings.Contains(log, token(nil)[:60]) {
					t.Errorf("the log: %s", log)
				}
			})
		})
	}
}

// TestOneProbeAtATime: while it is under way all others are refused, and its success lets all in.
func TestOneProbeAtATime(t *testing.T) {
	t.Parallel()
	askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
		time.Sleep(guard.MaxAge + 1)
		w.oracle.says(failing(codes.Unavailable))
		for range 5 {
			w.decide(t.Context(), anyToken, token(nil))
		}
		open := make(chan struct{})
		w.oracle.says(func(_ context.Context, token string) (inspection, error) { <-open; return active(token), nil })
		d.expect(t, "at once", token(nil), refused, refused, stale)
		time.Sleep(1500 * time.Millisecond)
		calls, said := w.oracle.calls(), make(chan string, 1)
		go func() { said <- w.decide(t.Context(), anyToken, of("probe")) }()
		synctest.Wait()
		d.expect(t, "while the probe is under way", token(nil), refused, refused, stale)
		if n := w.oracle.calls() - calls; n != 1 {
			t.Errorf("%d probes", n)
		}
		close(open)
		if got := <-said; got != introspected {
			t.Errorf("the probe: %q", got)
		}
		d.expect(t, "after it", token(nil), introspected, introspected, stale)
	})
}

// TestVerdictsAreNoFailures: an authsvc that says no is well.
func TestVerdictsAreNoFailures(t *testing.T) {
	t.Parallel()
	askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
		time.Sleep(guard.MaxAge + 1)
		w.oracle.says(always(inactive(), nil))
		for n := range 20 {
			if got := w.decide(t.Context(), anyToken, of(fmt.Sprint(n))); got != invalid {
				t.Fatalf("token %d: %q", n, got)
			}
		}
		w.oracle.says(nil)
		d.expect(t, "the twin", token(nil), introspected, introspected, stale)
	})
}

// TestAConnectionThatDiedSilentlyIsReplaced stops what comes on the connections that there are, and lets new ones be.
func TestAConnectionThatDiedSilentlyIsReplaced(t *testing.T) {
	t.Parallel()
	askingWhileCut(t, func(t *testing.T, w *world, d *doors) {
		time.Sleep(guard.MaxAge + 1)
		d.expect(t, "before", of("a"), introspected, introspected, stale)
		stop := make(chan struct{})
		defer close(stop)
		w.gate.Store(&stop)
		for n := range 5 {
			if got := w.decide(t.Context(), anyToken, of(fmt.Sprint(n))); got != refused {
				t.Errorf("while nothing comes: %q", got)
			}
		}
		w.gate.Store(nil)
		time.Sleep(1500 * time.Millisecond)
		d.expect(t, "over a new connection", of("b"), introspected, introspected, stale)
	})
}

// TestAnswersDoNotFillTheMemory keeps many at once, and many one after the other.
func TestAnswersDoNotFillTheMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		feed, err := guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "x"})
		if err != nil {
			t.Fatal(err)
		}
		base := time.Now()
		feed.CountBy(func() (time.Duration, int64) { return time.Since(base), time.Now().UnixNano() }, func() time.Duration { return time.Since(base) })
		if held, entries := feed.Answers(25_000, func() {}); held != 10_000 || entries != 10_000 {
			t.Errorf("of 25,000 at once %d are held, by %d entries", held, entries)
		}
		if held, entries := feed.Answers(5_000, func() { time.Sleep(100 * time.Millisecond) }); held != 11 || entries != 11 {
			t.Errorf("of ten a second %d are held, by %d entries", held, entries)
		}
	})
}
