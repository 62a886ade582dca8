package limit

import (
	"container/list"
	"errors"
	"sync"
	"time"
)

// Memory is a Store in this process, bounded: it holds so many keys with a Window and so many without, and drops the one
// touched longest ago to make room. To push a key out, an attacker must first have as many other attempts hashed.
type Memory struct {
	mu       sync.Mutex
	accounts shelf
	networks shelf
}

// shelf is a map with an order of use.
type shelf struct {
	room  int
	items map[string]*list.Element
	order *list.List // of *counter, the one used last in front
}

// parts is into how many slices a Window is cut: a failure counts for at least Window and less than Window × 11/10.
const parts = 10

// counter is what is known of a key.
type counter struct {
	key      string
	reserved int // attempts under way
	since    time.Time
	failures int // since the last success
	last     time.Time
	slices   [parts + 1]int // failures per slice of the Window, a ring
	slice    int64          // the number of the newest slice
}

// orphaned is after how long reserved attempts are given up: their caller is gone.
const orphaned = time.Minute

// NewMemory makes a Memory with room for so many keys of each of the two sorts.
func NewMemory(room int) (*Memory, error) {
	if room < 1 {
		return nil, errors.New("limit: a Memory needs room for at least one key")
	}
	return &Memory{accounts: newShelf(room), networks: newShelf(room)}, nil
}

func newShelf(room int) shelf {
	return shelf{room: room, items: map[string]*list.Element{}, order: list.New()}
}

// Reserve implements Store.
func (m *Memory) Reserve(key string, r Rule, now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.shelf(r).get(key, true)
	if c.reserved > 0 && now.Sub(c.since) > orphaned {
		c.reserved = 0
	}
	wait := c.wait(r, now)
	if wait == 0 {
		c.reserved++
		c.since = now
	}
	return wait
}

// Settle implements Store.
func (m *Memory) Settle(key string, r Rule, now time.Time, o Outcome) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.shelf(r).get(key, o == Failed)
	if c == nil {
		return
	}
	c.reserved = max(0, c.reserved-1)
	switch {
	case o == Failed && r.Window > 0:
		c.turn(r, now)
		c.slices[c.slice%int64(len(c.slices))]++
		c.failures++
	case o == Failed:
		c.failures++
		c.last = now
	case o == Succeeded && r.Window == 0:
		c.failures = 0
	}
	if c.reserved == 0 && c.failures == 0 {
		m.shelf(r).drop(key)
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

// wait is how long the key must wait for its next attempt; 0 if it need not.
func (c *counter) wait(r Rule, now time.Time) time.Duration {
	if r.Window > 0 {
		return c.waitWindow(r, now)
	}
	if c.failures > 0 && now.Sub(c.last) > Forget {
		c.failures = 0
	}
	if c.failures+c.reserved < r.Free {
		return 0
	}
	if c.reserved > 0 {
		return time.Second // one at a time from here on; how this one ends is not known yet
	}
	delay := r.MaxDelay
	if n := c.failures - r.Free; n < 16 {
		delay = min(delay, time.Second<<n)
	}
	return max(0, c.last.Add(delay).Sub(now))
}

func (c *counter) waitWindow(r Rule, now time.Time) time.Duration {
	c.turn(r, now)
	if c.failures+c.reserved < r.Free {
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

// turn moves the ring to the slice of now and forgets what has left the Window. A clock that goes back counts on in the
// newest slice.
func (c *counter) turn(r Rule, now time.Time) {
	n := now.UnixNano() / int64(r.Window/parts)
	if n-c.slice > parts {
		c.slices = [parts + 1]int{}
	}
	for ; c.slice < n && n-c.slice <= parts; c.slice++ {
		c.slices[(c.slice+1)%int64(len(c.slices))] = 0
	}
	c.slice = max(c.slice, n)
	c.failures = 0
	for _, f := range c.slices {
		c.failures += f
	}
}
