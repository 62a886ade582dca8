package guard_test

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// TestP02AFeedThatIsCutOff loses the server for good: what is known serves for MaxAge, and not a moment longer.
func TestP02AFeedThatIsCutOff(t *testing.T) {
	t.Parallel()
	up := true
	var mu sync.Mutex
	within(t, func(_ *peer, _ int, s watch) error {
		mu.Lock()
		defer mu.Unlock()
		if !up {
			return status.Error(codes.Unavailable, "away")
		}
		if err := say(s, part(keySet("key-1"), "c1", entry(verify.KindToken, "dead")), beat("c1", 0, 0)); err != nil {
			return err
		}
		up = false
		return status.Error(codes.Unavailable, "going away")
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, after := range []time.Duration{0, 4 * time.Second, 56 * time.Second} {
			time.Sleep(after)
			w.want(t, "within the limit", nil, nil)
		}
		time.Sleep(time.Nanosecond)
		w.want(t, "beyond the limit", nil, verify.ErrNotReady)
		w.want(t, "beyond the limit a revoked token is still revoked", map[string]any{"jti": "dead"}, verify.ErrRevoked)
		if _, err := w.Key(t.Context(), "key-1"); err != nil {
			t.Errorf("R32 the last good keys: %v", err)
		}
		if s := w.Status(); s.Ready || s.Age != guard.MaxAge+1 {
			t.Errorf("status %+v", s)
		}
		time.Sleep(9 * time.Minute)
		w.want(t, "ten minutes later", nil, verify.ErrNotReady)
		asked := w.asked()
		if n := len(asked); n < 120 || n > 500 {
			t.Errorf("asked %d times in ten minutes", n)
		}
		for _, cursor := range asked[1:] {
			if cursor != "c1" {
				t.Fatalf("asked for %q", asked)
			}
		}
		mu.Lock()
		up = true
		mu.Unlock()
		time.Sleep(6 * time.Second)
		w.want(t, "when it is back", nil, nil)
	})
}

// TestP02AHeartThatBeatsWithoutADatabase lets the server's heart beat on while its own knowledge gets old.
func TestP02AHeartThatBeatsWithoutADatabase(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1")); err != nil {
			return err
		}
		return tick(s, "c1", func(elapsed time.Duration) time.Duration { return max(0, elapsed-10*time.Second) })
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10*time.Second + guard.MaxAge)
		w.want(t, "as long as the last read is young enough", nil, nil)
		time.Sleep(2 * time.Second)
		w.want(t, "beyond that", nil, verify.ErrNotReady)
		if len(w.asked()) != 1 {
			t.Errorf("asked for %q", w.asked())
		}
	})
}

// stoppable is a connection that hands on nothing while the process is stopped; what is sent waits.
type stoppable struct {
	net.Conn
	w *world
}

func (c stoppable) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if gate := c.w.gate.Load(); gate != nil {
		<-*gate
	}
	return n, err
}

// TestP02AVerifierThatWasStopped stops the reader while the server writes on and then dies. What waited is read after that, and
// says nothing about now.
func TestP02AVerifierThatWasStopped(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
			return err
		}
		for second := 1; second <= 5; second++ {
			time.Sleep(time.Second)
			if err := s.Send(beat("c1", time.Duration(second)*time.Second, 0)); err != nil {
				return err
			}
		}
		<-s.Context().Done()
		return s.Context().Err()
	}, func(t *testing.T, w *world) {
		time.Sleep(1500 * time.Millisecond)
		synctest.Wait()
		stop := make(chan struct{})
		w.gate.Store(&stop)
		time.Sleep(7500 * time.Millisecond)
		if age := w.Status().Age; age != 8*time.Second {
			t.Fatalf("while it is stopped: age %s", age)
		}
		w.gate.Store(nil)
		close(stop)
		synctest.Wait()
		if age := w.Status().Age; age != 4*time.Second { // the last heartbeat was of second 5, and this is second 9
			t.Errorf("after it goes on: age %s", age)
		}
	})
}

// TestP02HeartbeatsThatWaitedAreOld delivers heartbeats ever later: what is read is dated by when it was written, however soon after
// its reading the knowledge is asked for.
func TestP02HeartbeatsThatWaitedAreOld(t *testing.T) {
	t.Parallel()
	within(t, func(p *peer, _ int, s watch) error {
		return p.relay(s)
	}, func(t *testing.T, w *world) {
		defer close(w.more)
		w.more <- part(keySet("key-1"), "c1")
		for second := range 8 { // each waited nine seconds longer than the one before
			w.more <- beat("c1", time.Duration(second)*time.Second, 0)
			synctest.Wait()
			if want := time.Duration(second) * 8 * time.Second; w.Status().Age != want {
				t.Fatalf("the heartbeat of second %d, read in second %d: age %s", second, 9*second, w.Status().Age)
			}
			if second < 7 {
				w.want(t, "while it is young", nil, nil)
				time.Sleep(9 * time.Second)
			}
		}
		time.Sleep(guard.MaxAge - 56*time.Second + 1)
		w.want(t, "beyond the limit, a moment after a heartbeat", nil, verify.ErrNotReady)
		w.more <- beat("c1", 3*time.Second, 0)
		synctest.Wait()
		if age := w.Status().Age; age != guard.MaxAge+1 {
			t.Errorf("an older heartbeat moved the date: age %s", age)
		}
		w.more <- beat("c1", 67*time.Second, 0)
		synctest.Wait()
		w.want(t, "the twin: a heartbeat of now", nil, nil)
	})
}

// TestAServerAheadOfUs tells a longer time than has passed.
func TestAServerAheadOfUs(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1"), beat("c1", time.Hour, 0)); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if age := w.Status().Age; age != 0 {
			t.Errorf("age %s", age)
		}
	})
}

func TestP02AStreamThatStallsIsBegunAnew(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, call int, s watch) error {
		if call == 1 {
			if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		}
		return serveFrom(s, "c2", entry(verify.KindToken, "dead"))
	}, func(t *testing.T, w *world) {
		time.Sleep(12 * time.Second)
		w.want(t, "the next stream's entry", map[string]any{"jti": "dead"}, verify.ErrRevoked)
		w.want(t, "the keys", nil, nil)
		if asked := w.asked(); !slices.Equal(asked, []string{"", "c1"}) {
			t.Errorf("asked for %q", asked)
		}
	})
}

// TestP08AnotherEpochWithTheSamePositions answers a cursor with the whole snapshot of another history: it is merged, and nothing is forgotten.
func TestP08AnotherEpochWithTheSamePositions(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, call int, s watch) error {
		if call == 1 {
			if err := say(s, part(keySet("key-1"), "epoch1-5", entry(verify.KindToken, "one")), beat("epoch1-5", 0, 0)); err != nil {
				return err
			}
			return status.Error(codes.Unavailable, "restored from a copy")
		}
		return serveFrom(s, "epoch2-5", entry(verify.KindToken, "two"))
	}, func(t *testing.T, w *world) {
		time.Sleep(2 * time.Second)
		for _, jti := range []string{"one", "two"} {
			w.want(t, jti, map[string]any{"jti": jti}, verify.ErrRevoked)
		}
		w.want(t, "the twin: neither", nil, nil)
		if s := w.Status(); s.Cursor != "epoch2-5" {
			t.Errorf("status %+v", s)
		}
	})
}

// TestAnOldStreamIsBegunAnew bounds how far two clocks run apart.
func TestAnOldStreamIsBegunAnew(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error { return serveFrom(s, "c1") }, func(t *testing.T, w *world) {
		for range 61 {
			time.Sleep(time.Minute)
			w.want(t, "at all times", nil, nil)
		}
		if asked := w.asked(); !slices.Equal(asked, []string{"", "c1"}) {
			t.Errorf("asked for %q", asked)
		}
		if strings.Contains(w.log.String(), "WARN") {
			t.Errorf("it is logged as a fault: %s", w.log)
		}
	})
}

// TestEntriesLeaveOnceBothClocksSaySo sweeps. The server's clock stands an hour behind ours at first.
func TestEntriesLeaveOnceBothClocksSaySo(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, _ int, s watch) error {
		soon := entry(verify.KindToken, "soon")
		soon.ExpireTime = time.Now().Unix() + 30
		if err := say(s, part(keySet("key-1"), "c1", soon)); err != nil {
			return err
		}
		for second := range 300 {
			b := beat("c1", time.Duration(second)*time.Second, 0)
			if second < 150 {
				b.GetHeartbeat().ServerTime.Seconds -= 3600
			}
			if err := s.Send(b); err != nil {
				return err
			}
			time.Sleep(time.Second)
		}
		return nil
	}, func(t *testing.T, w *world) {
		time.Sleep(130 * time.Second)
		if n := w.Status().Live; n != 1 {
			t.Errorf("by one clock alone the list has %d entries", n)
		}
		time.Sleep(60 * time.Second)
		if n := w.Status().Live; n != 0 {
			t.Errorf("by both clocks the list has %d entries", n)
		}
	})
}
