package limit

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"time"
)

// Memory holds counters in this process, bounded: it holds so many keys with a Window and so many without, and drops the one
// touched longest ago to make room. To push a key out, an attacker must first have as many other attempts hashed. It is a Shared for
// replicas that are one process.
type Memory struct {
	now      func() time.Time
	mu       sync.Mutex
	accounts shelf
	networks shelf
}

// MemoryOptions of a Memory.
type MemoryOptions struct {
	// Room is for how many keys there is room, of each of the two sorts. Required.
	Room int
	// Now is the clock. Nil: time.Now.
	Now func() time.Time
}

// shelf is a map with an order of use.
type shelf struct {
	room  int
	items map[string]*list.Element
	order *list.List // of *counter, the one used last in front
}

// counter is what is known of a key.
type counter struct {
	key      string
	reserved int // attempts under way
	since    time.Time
	failures int // since the last success
	last     time.Time
	until    time.Time      // when the key may be tried again by what a Shared said
	told     int            // how many failures were without consequence when it said so
	slices   [parts + 1]int // failures per slice of the Window, a ring
	slice    int64          // the number of the newest slice
}

// orphaned is after how long reserved attempts are given up: their caller is gone.
const orphaned = time.Minute

// NewMemory makes a Memory.
func NewMemory(o MemoryOptions) (*Memory, error) {
	if o.Room < 1 {
		return nil, errors.New("limit: a Memory needs room for at least one key")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Memory{now: o.Now, accounts: newShelf(o.Room), networks: newShelf(o.Room)}, nil
}

func newShelf(room int) shelf {
	return shelf{room: room, items: map[string]*list.Element{}, order: list.New()}
}

// Settle implements Shared.
func (m *Memory) Settle(_ context.Context, counts []Count, o Outcome) ([]time.Duration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if o == Released {
		return make([]time.Duration, len(counts)), nil
	}
	return m.verdict(counts, o), nil
}

// reserve takes one attempt of every key, or none where one of them must wait. Reserved attempts count as failures until they end,
// or for a minute where nobody ends them.
func (m *Memory) reserve(counts []Count) []time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	waits := make([]time.Duration, len(counts))
	for i, n := range counts {
		c := m.shelf(n.Rule).get(n.Key, false)
		if c == nil {
			continue
		}
		if c.reserved > 0 && now.Sub(c.since) > orphaned {
			c.reserved = 0
		}
		waits[i] = c.wait(n.Rule, now, c.reserved)
	}
	if worst(waits) >= 0 {
		return waits
	}
	for _, n := range counts {
		c := m.shelf(n.Rule).get(n.Key, true)
		c.reserved++
		c.since = now
	}
	return waits
}

// conclude ends a reserved attempt that reserve, or a Shared, has judged.
func (m *Memory) conclude(counts []Count, o Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for _, n := range counts {
		m.unreserve(n)
		m.count(n, o, now)
	}
}

// judge ends a reserved attempt and judges it once more, by rules that are not those by which it was reserved.
func (m *Memory) judge(counts []Count, o Outcome) []time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range counts {
		m.unreserve(n)
	}
	return m.verdict(counts, o)
}

// block ends a reserved attempt that a Shared refused, and remembers until when.
func (m *Memory) block(counts []Count, waits []time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	for i, n := range counts {
		m.unreserve(n)
		if waits[i] > 0 {
			c := m.shelf(n.Rule).get(n.Key, true)
			c.until, c.told = now.Add(waits[i]), n.Rule.Free
		}
		m.tidy(n, now)
	}
}

// verdict counts an attempt that holds no reservation, unless one of its keys must wait. Reservations of others say nothing: each
// of them gets a verdict of its own.
func (m *Memory) verdict(counts []Count, o Outcome) []time.Duration {
	now := m.now()
	waits := make([]time.Duration, len(counts))
	for i, n := range counts {
		if c := m.shelf(n.Rule).get(n.Key, false); c != nil {
			waits[i] = c.wait(n.Rule, now, 0)
		}
	}
	if worst(waits) < 0 {
		for _, n := range counts {
			m.count(n, o, now)
		}
	}
	return waits
}

func (m *Memory) unreserve(n Count) {
	if c := m.shelf(n.Rule).get(n.Key, false); c != nil {
		c.reserved = max(0, c.reserved-1)
	}
}

func (m *Memory) count(n Count, o Outcome, now time.Time) {
	c := m.shelf(n.Rule).get(n.Key, o == Failed)
	if c == nil {
		return
	}
	switch {
	case o == Failed && n.Rule.Window > 0:
		c.turn(n.Rule, now)
		c.slices[c.slice%int64(len(c.slices))]++
		c.failures++
	case o == Failed:
		c.failures++
		c.last = now
	case o == Succeeded && n.Rule.Window == 0:
		c.failures = 0
	}
	m.tidy(n, now)
}

// tidy drops a counter that says nothing.
func (m *Memory) tidy(n Count, now time.Time) {
	s := m.shelf(n.Rule)
	if c := s.get(n.Key, false); c != nil && c.reserved == 0 && c.failures == 0 && !c.until.After(now) {
		s.drop(n.Key)
	}
}

// Len gives how many keys are held.
func (m *Memory) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.accounts.items) + len(m.networks.items)
}

func (m *Memory) shelf(r Rule) *shelf {
	if r.Window > 0 {
		return &m.networks
	}
	return &m.accounts
}

// get finds a counter and marks it as used; where there is none it makes one, if asked to.
func (s *shelf) get(key string, make bool) *counter {
	if e, ok := s.items[key]; ok {
		s.order.MoveToFront(e)
		return e.Value.(*counter) //nolint:forcetypeassert // the list holds nothing else
	}
	if !make {
		return nil
	}
	for len(s.items) >= s.room {
		s.drop(s.order.Back().Value.(*counter).key) //nolint:forcetypeassert // the list holds nothing else
	}
	c := &counter{key: key}
	s.items[key] = s.order.PushFront(c)
	return c
}

func (s *shelf) drop(key string) {
	if e, ok := s.items[key]; ok {
		s.order.Remove(e)
		delete(s.items, key)
	}
}

// wait is how long the key must wait for its next attempt beside those reserved; 0 if it need not.
func (c *counter) wait(r Rule, now time.Time, reserved int) time.Duration {
	if w := min(c.until.Sub(now), r.longest()); w > 0 && r.Free <= c.told { // a limit that was raised since counts at once
		return w
	}
	if r.Window > 0 {
		return c.waitWindow(r, now, reserved)
	}
	if c.last.After(now) {
		c.last = now // a clock that went back must not make the wait longer than its rule
	}
	if c.failures > 0 && now.Sub(c.last) > Forget {
		c.failures = 0
	}
	if c.failures+reserved < r.Free {
		return 0
	}
	if reserved > 0 {
		return time.Second // one at a time from here on; how this one ends is not known yet
	}
	return max(0, c.last.Add(r.Delay(c.failures)).Sub(now))
}

func (c *counter) waitWindow(r Rule, now time.Time, reserved int) time.Duration {
	c.turn(r, now)
	if c.failures+reserved < r.Free {
		return 0
	}
	width := r.Window / parts
	for age := int64(parts); age >= 0; age-- { // the oldest failures are the first to leave
		if n := c.slice - age; n >= 0 && c.slices[n%int64(len(c.slices))] > 0 {
			leaves := time.Unix(0, (n+parts+1)*int64(width))
			return max(time.Nanosecond, leaves.Sub(now))
		}
	}
	return time.Second // nothing but attempts under way
}

// turn moves the ring to the slice of now and forgets what has left the Window. Where the clock went back, failures keep their ages: nothing
// is forgotten, and nobody waits until the clock is again where it was.
func (c *counter) turn(r Rule, now time.Time) {
	n := now.UnixNano() / int64(r.Window/parts)
	if n < c.slice {
		size := int64(len(c.slices))
		var kept [parts + 1]int
		for age := range size {
			kept[((n-age)%size+size)%size] = c.slices[((c.slice-age)%size+size)%size]
		}
		c.slices, c.slice = kept, n
	}
	if n-c.slice > parts {
		c.slices = [parts + 1]int{}
	}
	for ; c.slice < n && n-c.slice <= parts; c.slice++ {
		c.slices[(c.slice+1)%int64(len(c.slices))] = 0
	}
	c.slice = n
	c.failures = 0
	for _, f := range c.slices {
		c.failures += f
	}
}
