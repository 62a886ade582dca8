package rpc

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/revocation"
)

// feedLog is the revocation log as the feed needs it.
type feedLog interface {
	View() revocation.View
	Reach(ctx context.Context, c revocation.Cursor) error
}

// HubOptions are what NewHub needs.
type HubOptions struct {
	Log    feedLog       // required
	Issuer string        // required: whose feed it is
	KeySet func() []byte // required: the JWK Set, empty while there is none
	// Every is between two changes that are handed out, and so the most that one waits for others to share its message; 20 ms by
	// default. One that comes later than that goes at once.
	Every time.Duration
	Beat  time.Duration // between heartbeats, and between looks at a watcher's credentials; 1 s by default
	// Start is how long a watcher may take to read what it gets at first; 2 min by default. Until then nothing is queued for it,
	// so that nothing else would show that it does not read.
	Start time.Duration
	// MaxWatchers and MaxPerClient bound who may watch at once, in all and of one client; 10,000 and 1,000 by default.
	MaxWatchers, MaxPerClient int
	// Now is the store's time, which heartbeats tell: a verifier that is told a later one never goes back. Nil: time.Now.
	Now func() time.Time
}

const (
	queued    = 64          // events that a watcher may be behind before it is cut off
	sharedFor = time.Second // how long a whole snapshot serves those who join; what it lacks they get as a delta
	maxWholes = 8           // snapshots that are being sent; while there are as many, those who join share the newest, however old
)

// Why the hub ends a stream.
var (
	errLagging  = fault.New(fault.Unavailable, fault.FeedLagging, "the feed was not taken as fast as it came; begin anew from the last cursor")
	errDraining = fault.New(fault.Unavailable, fault.Draining, "this server is being stopped")
)

// Hub is the trust feed: it looks at the log and the key set, and hands each change to all who watch as one message that was
// marshalled once. A watcher that does not keep up is cut off, and costs the others nothing.
type Hub struct {
	o    HubOptions
	born [16]byte // at random: no two hubs have one

	// One at a time moves at and joins. Changes are marshalled under order alone, so that many of them hold up nobody who comes,
	// leaves, counts or drains. It is taken before mu.
	order  sync.Mutex
	at     standing  // what has been handed to all who have joined
	named  naming    // the key set that was looked at last
	handed time.Time // when a change was last handed out

	mu       sync.Mutex
	watchers map[*watcher]struct{}
	entered  uint64                // how many there have been
	came     chan struct{}         // holds at most one: somebody entered since Run looked
	joined   map[*watcher]struct{} // those that have all of at, or will before what comes through their queue
	clients  map[ids.Client]int    // how many of them are whose
	draining bool
	stats    HubStats

	building sync.Mutex // one whole snapshot at a time; guards what follows
	whole    *whole
	wholes   int // that are being sent
}

// HubStats count since NewHub, but for Watchers.
type HubStats struct {
	Watchers  int    // streams that are open
	Deltas    uint64 // changes handed out, each once for all
	Cut       uint64 // watchers cut off for not keeping up
	Snapshots uint64 // whole snapshots marshalled
}

// standing is a place in the feed, with all that whoever stands there holds.
type standing struct {
	view   revocation.View
	keySet []byte
	kids   []string // of the key set; all who hold it share them
}

func (s standing) same(other standing) bool {
	return s.view.Cursor == other.view.Cursor && bytes.Equal(s.keySet, other.keySet)
}

// whole is a marshalled snapshot.
type whole struct {
	at      standing // without its entries
	built   time.Time
	frames  []frame
	readers int // to whom it is being sent; guarded by Hub.building
}

// watcher is one open stream.
type watcher struct {
	id      uint64 // greater than that of all who came before
	client  ids.Client
	address netip.Addr // invalid where it is not known
	start   time.Time
	end     func(cause *fault.Error) // also of a send that is blocked
	queue   chan *event
	due     time.Time // of its next heartbeat; guarded by Hub.mu
	// What it was sent, for who asks: where it stands since its snapshot was whole, and the standing of its last heartbeat. Both
	// are without entries, and those of the hub's events, so that keeping them takes a store and no memory.
	holds, heard atomic.Pointer[standing]
}

// event is what the hub hands out: a change, or the sign for a heartbeat, with where all who have joined then stand.
type event struct {
	frames []frame
	beat   bool
	at     *standing // without its entries
}

// NewHub makes a hub; nobody gets anything new before Run.
func NewHub(o HubOptions) (*Hub, error) {
	if o.Log == nil || o.Issuer == "" || o.KeySet == nil {
		return nil, errors.New("rpc: HubOptions.Log, HubOptions.Issuer and HubOptions.KeySet are required")
	}
	if o.Every <= 0 {
		o.Every = 20 * time.Millisecond
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Beat <= 0 {
		o.Beat = time.Second
	}
	if o.Start <= 0 {
		o.Start = 2 * time.Minute
	}
	if o.MaxWatchers <= 0 {
		o.MaxWatchers = 10_000
	}
	if o.MaxPerClient <= 0 {
		o.MaxPerClient = 1_000
	}
	h := &Hub{o: o, came: make(chan struct{}, 1), watchers: map[*watcher]struct{}{}, joined: map[*watcher]struct{}{}, clients: map[ids.Client]int{}}
	ids.Random(h.born[:])
	return h, nil
}

// Run hands out changes and heartbeats until ctx ends.
func (h *Hub) Run(ctx context.Context) error {
	tick, tidy := time.NewTicker(h.o.look()), time.NewTicker(h.o.Beat)
	defer tick.Stop()
	defer tidy.Stop()
	resting := false // nobody watches, and a server that nobody uses is not woken 200 times a second
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-h.came:
			if resting {
				tick.Reset(h.o.look())
			}
			resting = false
		case <-tick.C:
			if resting = !h.step(time.Now()); resting {
				tick.Stop()
			}
		case <-tidy.C:
			h.forget()
		}
	}
}

// step hands out what is new, unless it has to wait, and the sign for a heartbeat to whose time has come by now; false if nobody watches.
func (h *Hub) step(now time.Time) (watched bool) {
	h.order.Lock()
	defer h.order.Unlock()
	h.mu.Lock()
	watched = len(h.watchers) > 0
	h.mu.Unlock()
	if !watched {
		h.at = standing{} // whoever comes next looks anew; until then the log's old entries need not be kept
		return false
	}
	if next := h.look(); h.at.same(next) || now.Sub(h.handed) > h.o.Every-h.o.look()/2 {
		h.move(next)
	}
	h.beat(now)
	return true
}

// look is how often Run looks whether anything is new.
func (o *HubOptions) look() time.Duration { return max(o.Every/4, time.Millisecond) }

// beat hands the sign for a heartbeat to whose time has come. Each watcher has a time of its own: if all had one, a change that came
// then would wait for all their heartbeats. Under h.order.
func (h *Hub) beat(now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := &event{beat: true, at: h.at.bare()}
	for w := range h.joined {
		if now.Before(w.due) {
			continue
		}
		if w.due = w.due.Add(h.o.Beat); w.due.Before(now) {
			w.due = now.Add(h.o.Beat)
		}
		h.put(w, e)
	}
}

// look gives where the log and the keys are. Under h.order.
func (h *Hub) look() standing {
	next := standing{view: h.o.Log.View(), keySet: h.o.KeySet()}
	next.kids = h.named.of(next.keySet)
	return next
}

// advance moves to where the log and the keys are at once. Under h.order.
func (h *Hub) advance() { h.move(h.look()) }

// move hands what lies between to all who have joined. Under h.order.
func (h *Hub) move(next standing) {
	h.mu.Lock()
	joined := len(h.joined) > 0 // nobody joins meanwhile
	h.mu.Unlock()
	if joined && !h.at.same(next) {
		e := &event{at: next.bare()}
		err := deltas(h.at, next, func(f frame) error { e.frames = append(e.frames, f); return nil })
		h.mu.Lock()
		if err != nil { // nobody may miss it
			h.cut(fault.From(err))
		}
		h.hand(e)
		h.stats.Deltas++
		h.mu.Unlock()
		h.handed = time.Now()
	}
	h.at = next
}

// hand puts an event into every queue that has room, and cuts the others off. Under h.mu.
func (h *Hub) hand(e *event) {
	for w := range h.joined {
		h.put(w, e)
	}
}

func (h *Hub) put(w *watcher, e *event) {
	select {
	case w.queue <- e:
	default:
		delete(h.joined, w)
		w.end(errLagging)
		h.stats.Cut++
	}
}

// cut ends all streams. Under h.mu.
func (h *Hub) cut(cause *fault.Error) {
	clear(h.joined)
	for w := range h.watchers {
		w.end(cause)
	}
}

// Drain ends all streams and refuses new ones, so that watchers go to another replica.
func (h *Hub) Drain() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = true
	h.cut(errDraining)
}

// Stats says how the feed goes.
func (h *Hub) Stats() HubStats {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.stats
	s.Watchers = len(h.watchers)
	return s
}

// enter counts a watcher in, and leave out; nothing is handed to it before it has joined.
func (h *Hub) enter(c ids.Client, address netip.Addr, end func(cause *fault.Error)) (*watcher, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.draining:
		return nil, errDraining
	case len(h.watchers) >= h.o.MaxWatchers || h.clients[c] >= h.o.MaxPerClient:
		return nil, &fault.Error{Kind: fault.Limited, Reason: fault.Overloaded, Message: "too many watch already", RetryAfter: 5 * time.Second}
	}
	h.entered++
	w := &watcher{id: h.entered, client: c, address: address, start: time.Now(), end: end, queue: make(chan *event, queued)}
	h.watchers[w] = struct{}{}
	h.clients[c]++
	select {
	case h.came <- struct{}{}:
	default:
	}
	return w, nil
}

func (h *Hub) leave(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
	delete(h.joined, w)
	if h.clients[w.client]--; h.clients[w.client] == 0 {
		delete(h.clients, w.client)
	}
}

// now gives where the feed stands, after a look at the log and the keys.
func (h *Hub) now() standing {
	h.order.Lock()
	defer h.order.Unlock()
	h.advance()
	return h.at
}

// join lets a watcher have all that comes after the standing that it gives.
func (h *Hub) join(w *watcher) standing {
	h.order.Lock()
	defer h.order.Unlock()
	h.advance()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.draining {
		h.joined[w] = struct{}{}
		w.due = time.Now().Add(rand.N(h.o.Beat))
	}
	return h.at
}

// snapshot gives a whole snapshot, the one that others had a moment ago if there is one, and where it leads. What it gives is to
// be released.
func (h *Hub) snapshot(at standing) (*whole, error) {
	h.building.Lock()
	defer h.building.Unlock()
	s := h.whole
	if s == nil || !s.at.same(at) && (s.at.view.Cursor.Epoch != at.view.Cursor.Epoch || time.Since(s.built) >= sharedFor && h.wholes < maxWholes) {
		s = &whole{at: at, built: time.Now()}
		s.at.view.Live = nil
		if err := snapshots(h.o.Issuer, at, at.view.Live, func(f frame) error { s.frames = append(s.frames, f); return nil }); err != nil {
			return nil, err
		}
		h.whole = s
		h.mu.Lock()
		h.stats.Snapshots++
		h.mu.Unlock()
	}
	if s.readers++; s.readers == 1 {
		h.wholes++
	}
	return s, nil
}

func (h *Hub) release(s *whole) {
	h.building.Lock()
	defer h.building.Unlock()
	if s.readers--; s.readers == 0 {
		h.wholes--
	}
}

// forget lets go of a snapshot that is old, unless it has to serve for the next.
func (h *Hub) forget() {
	if !h.building.TryLock() {
		return // somebody makes one
	}
	defer h.building.Unlock()
	if h.whole != nil && time.Since(h.whole.built) >= sharedFor && h.wholes < maxWholes {
		h.whole = nil
	}
}
