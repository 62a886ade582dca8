package faults

import (
	"context"
	"net"
	"sync"
	"time"
)

// link is the network between two processes: it hands bytes on, late, or not at all. Where it leads can be changed.
type link struct {
	listener net.Listener
	ctx      context.Context
	cancel   context.CancelFunc
	running  sync.WaitGroup

	mu     sync.Mutex
	target string
	gate   chan struct{} // closed: bytes pass
	closed bool          // whether new connections are closed at once
	late   time.Duration // by which bytes are late
	conns  map[*net.TCPConn]bool
}

// newLink leads to the target, which may be empty for now.
func newLink(target string) (*link, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	l := &link{listener: listener, ctx: ctx, cancel: cancel, target: target, gate: make(chan struct{}), conns: map[*net.TCPConn]bool{}}
	close(l.gate)
	l.running.Go(l.accept)
	return l, nil
}

func (l *link) close() {
	l.cancel()
	_ = l.listener.Close()
	l.tear(false)
	l.running.Wait()
}

func (l *link) address() string { return l.listener.Addr().String() }

// lead makes new connections go elsewhere.
func (l *link) lead(target string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = target
}

func (l *link) accept() {
	for {
		conn, err := l.listener.Accept()
		if err != nil {
			return
		}
		from := conn.(*net.TCPConn)
		if !l.keep(from) {
			continue
		}
		l.running.Go(func() {
			defer l.drop(from)
			l.mu.Lock()
			target := l.target
			l.mu.Unlock()
			conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(l.ctx, "tcp", target)
			if err != nil {
				l.reset(from) // as the kernel would have refused it
				return
			}
			to := conn.(*net.TCPConn)
			if !l.keep(to) {
				return
			}
			defer l.drop(to)
			ctx, cancel := context.WithCancel(l.ctx)
			defer cancel()
			l.running.Go(func() { l.pass(ctx, from, to); l.drop(from) })
			l.pass(ctx, to, from)
		})
	}
}

// keep notes a connection, or closes it where none is let through.
func (l *link) keep(c *net.TCPConn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.ctx.Err() != nil {
		_ = c.SetLinger(0)
		_ = c.Close()
		return false
	}
	l.conns[c] = true
	return true
}

func (l *link) drop(c *net.TCPConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = c.Close()
	delete(l.conns, c)
}

func (l *link) reset(c *net.TCPConn) {
	_ = c.SetLinger(0)
	l.drop(c)
}

type chunk struct {
	bytes []byte
	due   time.Time
}

// pass hands on what one side says, in its order, and closes the other when it ends.
func (l *link) pass(ctx context.Context, to, from *net.TCPConn) {
	defer l.drop(to)
	chunks := make(chan chunk, 1024)
	l.running.Go(func() {
		defer l.drop(from)
		for c := range chunks {
			if !l.wait(ctx, c.due) {
				return
			}
			if _, err := to.Write(c.bytes); err != nil {
				return
			}
		}
	})
	defer close(chunks)
	for {
		buffer := make([]byte, 4<<10)
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		l.mu.Lock()
		c := chunk{buffer[:n], time.Now().Add(l.late)}
		l.mu.Unlock()
		select {
		case chunks <- c:
		case <-ctx.Done():
			return
		}
	}
}

// wait holds bytes until they are due and the link is open. It says whether they still have somewhere to go.
func (l *link) wait(ctx context.Context, due time.Time) bool {
	if d := time.Until(due); d > 0 && !pause(ctx, d) {
		return false
	}
	l.mu.Lock()
	gate := l.gate
	l.mu.Unlock()
	select {
	case <-gate:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause waits, and says whether ctx still holds.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// tear ends all connections, by a reset or as if the other side had closed them.
func (l *link) tear(reset bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if reset {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
		delete(l.conns, c)
	}
}

// refuse ends all connections and lets none through.
func (l *link) refuse() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.tear(true)
}

// stall holds every byte, and closes nothing.
func (l *link) stall() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gate = make(chan struct{})
}

// delay makes every byte late.
func (l *link) delay(by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = by
}

// mend makes all well again; what was held comes now.
func (l *link) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed, l.late = false, 0
	select {
	case <-l.gate:
	default:
		close(l.gate)
	}
}
