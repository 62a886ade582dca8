package live

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"
)

// way is the network between a service and authsvc: it hands bytes on, late, or not at all.
type way struct {
	target   string
	listener net.Listener
	ctx      context.Context
	running  sync.WaitGroup

	mu     sync.Mutex
	gate   chan struct{} // closed: bytes pass
	closed bool          // whether new connections are closed at once
	late   time.Duration // by which bytes are late
	conns  map[*net.TCPConn]bool
}

// newWay leads to the target until the test ends.
func newWay(t *testing.T, target string) *way {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &way{target: target, listener: listener, ctx: ctx, gate: make(chan struct{}), conns: map[*net.TCPConn]bool{}}
	close(p.gate)
	p.running.Go(p.accept)
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		p.tear(false)
		p.running.Wait()
	})
	return p
}

func (p *way) address() string { return p.listener.Addr().String() }

func (p *way) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		from := conn.(*net.TCPConn)
		if !p.keep(from) {
			continue
		}
		p.running.Go(func() {
			defer p.drop(from)
			conn, err := net.DialTimeout("tcp", p.target, 10*time.Second)
			if err != nil {
				return
			}
			to := conn.(*net.TCPConn)
			if !p.keep(to) {
				return
			}
			defer p.drop(to)
			ctx, cancel := context.WithCancel(p.ctx)
			defer cancel()
			p.running.Go(func() { p.pass(ctx, from, to); p.drop(from) })
			p.pass(ctx, to, from)
		})
	}
}

// keep notes a connection, or closes it where none is let through.
func (p *way) keep(c *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.ctx.Err() != nil {
		_ = c.Close()
		return false
	}
	p.conns[c] = true
	return true
}

func (p *way) drop(c *net.TCPConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = c.Close()
	delete(p.conns, c)
}

type chunk struct {
	bytes []byte
	due   time.Time
}

// pass hands on what one side says, in its order, and closes the other when it ends.
func (p *way) pass(ctx context.Context, to, from *net.TCPConn) {
	defer p.drop(to)
	chunks := make(chan chunk, 1024)
	p.running.Go(func() {
		defer p.drop(from)
		for c := range chunks {
			if !p.wait(ctx, c.due) {
				return
			}
			if _, err := to.Write(c.bytes); err != nil {
				return
			}
		}
	})
	defer close(chunks)
	for {
		buffer := make([]byte, 16<<10)
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		p.mu.Lock()
		c := chunk{buffer[:n], time.Now().Add(p.late)}
		p.mu.Unlock()
		select {
		case chunks <- c:
		case <-ctx.Done():
			return
		}
	}
}

// wait holds bytes until they are due and the way is open. It says whether they still have somewhere to go.
func (p *way) wait(ctx context.Context, due time.Time) bool {
	if d := time.Until(due); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return false
		}
	}
	p.mu.Lock()
	gate := p.gate
	p.mu.Unlock()
	select {
	case <-gate:
		return true
	case <-ctx.Done():
		return false
	}
}

// tear ends all connections, by a reset or as if the other side had closed them.
func (p *way) tear(reset bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if reset {
			_ = c.SetLinger(0)
		}
		_ = c.Close()
		delete(p.conns, c)
	}
}

// cut ends all connections and lets none through.
func (p *way) cut() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.tear(false)
}

// stall holds every byte, and closes nothing.
func (p *way) stall() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gate = make(chan struct{})
}

// delay makes every byte late.
func (p *way) delay(by time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.late = by
}

// mend makes all well again; what was held comes now.
func (p *way) mend() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed, p.late = false, 0
	select {
	case <-p.gate:
	default:
		close(p.gate)
	}
}
