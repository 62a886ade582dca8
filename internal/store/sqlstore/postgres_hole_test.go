package sqlstore_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// hole is a way to the server that can be closed without a word, as a machine that loses its power does: what had come through hears
// nothing any more, ever, and what comes meanwhile is taken and not answered.
type hole struct {
	listener net.Listener
	to       string
	mu       sync.Mutex
	closed   bool
	ways     []*way
}

// way is one connection through a hole.
type way struct{ lost atomic.Bool }

func newHole(t *testing.T) *hole {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	h := &hole{listener: l, to: fmt.Sprintf("127.0.0.1:%d", server.Port)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go h.lead(c)
		}
	}()
	return h
}

func (h *hole) lead(c net.Conn) {
	defer c.Close()
	w := &way{}
	h.mu.Lock()
	w.lost.Store(h.closed)
	h.ways = append(h.ways, w)
	h.mu.Unlock()
	if w.lost.Load() {
		_, _ = io.Copy(io.Discard, c)
		return
	}
	s, err := net.Dial("tcp", h.to)
	if err != nil {
		return
	}
	defer s.Close()
	go w.carry(c, s)
	w.carry(s, c)
}

// carry goes on reading once the way is lost, and keeps what it reads.
func (w *way) carry(from, to net.Conn) {
	some := make([]byte, 32<<10)
	for {
		n, err := from.Read(some)
		if err != nil {
			if !w.lost.Load() {
				_ = to.Close()
			}
			return
		}
		if !w.lost.Load() {
			_, _ = to.Write(some[:n])
		}
	}
}

func (h *hole) set(closed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = closed
	for _, w := range h.ways {
		w.lost.Store(w.lost.Load() || closed)
	}
}

// TestADatabaseThatIsBackIsReachedAtOnce has the way to the server closed while calls are made. Connections that are given up then say
// farewell for 15 s; whoever waits for that is away for as long.
func TestADatabaseThatIsBackIsReachedAtOnce(t *testing.T) {
	t.Parallel()
	url := schema(t, "pool_max_conns=4")
	h := newHole(t)
	url = strings.Replace(url, h.to, h.listener.Addr().String(), 1)
	r := following(t, sqlstore.Options{URL: url, OpTimeout: time.Second}, 250*time.Millisecond, true)
	until(t, "it is answered", func() bool { return r.Ping(t.Context()) == nil })
	clock := pulse(t)
	h.set(true)
	var calls sync.WaitGroup
	for range 8 {
		calls.Go(func() {
			began := clock.Now()
			wantUnavailable(t, r.Ping(t.Context()))
			if took := clock.Now() - began; took > 10*time.Second { // of one second
				t.Errorf("a call hung for %v", took)
			}
		})
	}
	calls.Wait()
	until(t, "the lag is told", func() bool { return r.log.Lag() > 3*time.Second })
	h.set(false)
	back := clock.Now()
	until(t, "calls are answered again", func() bool { return r.Ping(t.Context()) == nil })
	until(t, "the log is read again", func() bool { return r.log.Lag() < time.Second })
	if took := clock.Now() - back; took > 8*time.Second { // within 15
		t.Errorf("it took %v", took)
	}
}

// TestRevocationsThatWaitForEachOtherLeaveConnectionsToOthers has one that does not end, as with a standby that is slow to confirm.
func TestRevocationsThatWaitForEachOtherLeaveConnectionsToOthers(t *testing.T) {
	t.Parallel()
	f := undriven(t, sqlstore.Options{URL: schema(t, "pool_max_conns=4", "application_name=waiters"), OpTimeout: 20 * time.Second})
	s := f.login(t, t)
	written, release := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		if err := f.AppendSlowly(t.Context(), revoke("slow"), written, release); err != nil {
			t.Error(err)
		}
	})
	<-written
	for i := range 20 {
		all.Go(func() {
			if err := f.Revocations().Append(t.Context(), revoke(fmt.Sprint("behind", i))); err != nil {
				t.Error(err)
			}
		})
	}
	until(t, "another waits for it", func() bool { return waiting(t, "waiters") > 0 })
	if err := f.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := f.Sessions().Redeem(t.Context(), present(s, 1)); err != nil {
		t.Error(err)
	}
	if n := waiting(t, "waiters"); n != 1 {
		t.Errorf("%d connections wait for the log, beside the one that has it", n)
	}
	close(release)
	all.Wait()
	if page, err := f.Revocations().Tail(t.Context(), 0); err != nil || len(page.Entries) != 21 {
		t.Errorf("%d entries %v", len(page.Entries), err)
	}
}
