package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// tap stands between servers and what they use: it hands bytes on, and shows what the servers send. Where it leads can be changed.
type tap struct {
	address string
	target  atomic.Pointer[string]
	listen  func() ear // of a new connection; nil if nobody does
}

// ear hears one connection.
type ear interface {
	sent(chunk []byte) // by the server of ours
	answered()         // something came back
}

func newTap(b testing.TB, target string, listen func() ear) *tap {
	b.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	w := &tap{address: l.Addr().String(), listen: listen}
	w.lead(target)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	b.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { w.pass(ctx, from) })
		}
	})
	return w
}

// lead makes new connections go elsewhere.
func (w *tap) lead(target string) { w.target.Store(&target) }

func (w *tap) pass(ctx context.Context, from net.Conn) {
	defer from.Close()
	to, err := net.Dial("tcp", *w.target.Load())
	if err != nil {
		return
	}
	defer to.Close()
	stop := context.AfterFunc(ctx, func() { _ = from.Close(); _ = to.Close() })
	defer stop()
	sent, answered := func([]byte) {}, func([]byte) {}
	if w.listen != nil {
		e := w.listen()
		sent, answered = e.sent, func([]byte) { e.answered() }
	}
	var wg sync.WaitGroup
	wg.Go(func() { relay(to, from, sent) })
	wg.Go(func() { relay(from, to, answered) })
	wg.Wait()
}

func relay(to, from net.Conn, look func([]byte)) {
	defer to.Close()
	chunk := make([]byte, 64<<10)
	for {
		n, err := from.Read(chunk)
		if err != nil {
			return
		}
		look(chunk[:n])
		if _, err := to.Write(chunk[:n]); err != nil {
			return
		}
	}
}

// trips counts round trips by what was asked.
type trips struct {
	mu    sync.Mutex
	count map[string]int
}

func (t *trips) add(what string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.count == nil {
		t.count = map[string]int{}
	}
	t.count[what]++
}

func (t *trips) counted() map[string]int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.count)
}

// during gives the round trips of n calls that f makes, and apart from them what is the server's own: what usual has, and what
// came less often than once in ten calls, such as a sweep.
func (t *trips) during(n int, f func(), usual map[string]int) (sum int, own map[string]int) {
	before, own := t.counted(), map[string]int{}
	f()
	for text, times := range t.counted() {
		switch times -= before[text]; {
		case times == 0:
		case usual[text] > 0 || times < n/10:
			own[text] = times
		default:
			sum += times
		}
	}
	return sum, own
}

// postgresEar understands what a client says to PostgreSQL. A round trip ends with Sync or is a Query.
type postgresEar struct {
	trips    *trips
	begun    bool
	rest     []byte
	prepared map[string]string // statements by name
	flight   []string
}

func (t *trips) postgres() ear { return &postgresEar{trips: t, prepared: map[string]string{}} }

func (*postgresEar) answered() {}

func (e *postgresEar) sent(chunk []byte) {
	e.rest = append(e.rest, chunk...)
	for {
		head := 5
		if !e.begun {
			head = 4 // the first message has no type
		}
		if len(e.rest) < head {
			return
		}
		size := head - 4 + int(binary.BigEndian.Uint32(e.rest[head-4:]))
		if len(e.rest) < size {
			return
		}
		if e.begun {
			e.message(e.rest[0], e.rest[head:size])
		}
		e.begun, e.rest = true, e.rest[size:]
	}
}

func (e *postgresEar) message(kind byte, body []byte) {
	word := func() string {
		text, rest, _ := bytes.Cut(body, []byte{0})
		body = rest
		return string(text)
	}
	switch kind {
	case 'P':
		name := word()
		e.prepared[name] = word()
		e.flight = append(e.flight, "Parse")
	case 'B':
		word() // the portal
		e.flight = append(e.flight, strings.Join(strings.Fields(e.prepared[word()]), " "))
	case 'Q':
		e.trips.add(word())
	case 'S':
		e.trips.add(strings.Join(e.flight, "; "))
		e.flight = nil
	}
}

// redisEar counts what is written after something was read, by its first word.
type redisEar struct {
	trips   *trips
	waiting atomic.Bool
}

func (t *trips) redis() ear { return &redisEar{trips: t} }

func (e *redisEar) answered() { e.waiting.Store(false) }

func (e *redisEar) sent(chunk []byte) {
	if e.waiting.Swap(true) {
		return
	}
	what := "?"
	if lines := bytes.SplitN(chunk, []byte("\r\n"), 4); len(lines) == 4 && bytes.HasPrefix(lines[0], []byte("*")) {
		what = strings.ToLower(string(lines[2]))
	}
	e.trips.add(what)
}
