package verify

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
)

const (
	ways          = 8    // places that one token may have in the cache
	bytesPerPlace = 512  // of the bound, so that sets are seldom full before memory is
	entryOverhead = 1792 // what a verified token takes beside its decoded payload and a text that is not inline
	sweepStep     = 16   // places that each admission looks through for expired tokens
	hashedEnd     = 32   // bytes of a token that its hash is made of
	inlineText    = 1024 // bytes of a token that are kept within its entry
)

// cache keeps verified tokens by their whole text, in at most a number of bytes. It is a table of sets of eight places. Reading
// takes no lock: the tag finds a candidate, the full text decides. Writing takes the one lock; it happens once per
// token, beside a signature check that costs a hundred times as much. What is evicted was not asked for lately.
type cache struct {
	seed   maphash.Seed
	mask   uint64
	places []cachePlace

	mu    sync.Mutex
	limit int
	bytes int
	hand  uint64
}

// cachePlace is one place of the table; the tag is the hash of what is there, and may be stale for a moment.
type cachePlace struct {
	tag atomic.Uint64
	at  atomic.Pointer[verified]
}

// cacheSlot is the cache's part of a verified token. The text of most tokens stands in the entry itself: a pointer to it would
// cost every hit one more wait for memory.
type cacheSlot struct {
	long   string // the text, if it is longer than inlineText
	length int    // of the text; 0 before put
	used   atomic.Bool
	hash   uint64
	bytes  int
	inline [inlineText]byte
}

// is says whether token is the slot's text, all of it.
func (s *cacheSlot) is(token string) bool {
	if len(token) > inlineText {
		return s.long == token
	}
	return string(s.inline[:len(token)]) == token && s.length == len(token)
}

func (s *cacheSlot) keep(hash uint64, token string) {
	s.hash, s.length = hash, len(token)
	// The claims are substrings of the decoded payload, which is less than three quarters of the token.
	s.bytes = entryOverhead + len(token)*3/4
	if len(token) > inlineText {
		s.long = strings.Clone(token)
		s.bytes += len(token)
		return
	}
	copy(s.inline[:], token)
}

func newCache(limit int) *cache {
	places := ways
	for places < limit/bytesPerPlace {
		places *= 2
	}
	return &cache{
		seed: maphash.MakeSeed(), mask: uint64(places/ways - 1), limit: limit - 16*places,
		places: make([]cachePlace, places),
	}
}

// hash says where to look for a token, by its end. That of a good one is the end of an RSA signature, as random as any hash; what
// others put there finds nothing or is told apart by the whole text. Hashing all of it would only read it once more.
func (c *cache) hash(token string) uint64 {
	return maphash.String(c.seed, token[max(0, len(token)-hashedEnd):])
}

// get finds the token's entry, or nil.
func (c *cache) get(hash uint64, token string) *verified {
	base := (hash & c.mask) * ways
	set := c.places[base : base+ways]
	for i := range set {
		if set[i].tag.Load() != hash {
			continue
		}
		if t := set[i].at.Load(); t != nil && t.slot.is(token) {
			if !t.slot.used.Load() {
				t.slot.used.Store(true)
			}
			return t
		}
	}
	return nil
}

// put admits a token that was found good. What expired before the given second is of no use to anybody.
func (c *cache) put(hash uint64, token string, t *verified, expired int64) {
	t.slot.keep(hash, token)
	if t.slot.bytes > c.limit {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	base := (hash & c.mask) * ways
	at, best := base, 0
	for i := base; i < base+ways; i++ {
		other := c.places[i].at.Load()
		worth := 0
		switch {
		case other == nil:
			worth = 3
		case other.slot.hash == hash && other.slot.is(token):
			return
		case other.exp <= expired:
			worth = 2
		case !other.slot.used.Load():
			worth = 1
		}
		if worth > best {
			at, best = i, worth
		}
	}
	if best == 0 {
		at = base + hash>>61
	}
	c.clear(at)
	c.places[at].at.Store(t)
	c.places[at].tag.Store(hash)
	c.bytes += t.slot.bytes
	for range sweepStep {
		if other := c.turn(); other != nil && other.exp <= expired {
			c.clear(c.hand)
		}
	}
	for c.bytes > c.limit {
		if other := c.turn(); other != nil && other != t && !other.slot.used.CompareAndSwap(true, false) {
			c.clear(c.hand)
		}
	}
}

// turn moves the hand to the next place and gives what is there.
func (c *cache) turn() *verified {
	c.hand = (c.hand + 1) % uint64(len(c.places))
	return c.places[c.hand].at.Load()
}

// clear empties a place; the lock is held.
func (c *cache) clear(at uint64) {
	if t := c.places[at].at.Swap(nil); t != nil {
		c.places[at].tag.Store(0)
		c.bytes -= t.slot.bytes
	}
}

// drop removes t if it is in the cache.
func (c *cache) drop(t *verified) {
	if t.slot.length == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	base := (t.slot.hash & c.mask) * ways
	for i := base; i < base+ways; i++ {
		if c.places[i].at.Load() == t {
			c.clear(i)
			return
		}
	}
}
