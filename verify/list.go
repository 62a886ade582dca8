package verify

import (
	"encoding/binary"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// forever stands for a cut-off that hits every token, and for an entry that never expires.
const forever = math.MaxInt64

// minPlaces is the size of the smallest table; sizes are powers of two.
const minPlaces = 64

// List is the revocations that this process knows, in memory, 64 to 128 bytes each. Check takes no lock and allocates nothing.
// Entries are merged, never taken back: they leave by Sweep once they have expired.
type List struct {
	ready atomic.Bool
	table atomic.Pointer[revoked]
	mu    sync.Mutex // for writers
}

// ListOptions are what a List is made of.
type ListOptions struct {
	// Capacity is how many entries to make room for at once; it grows by itself. Optional.
	Capacity int
}

// NewList makes an empty list. It is not ready, and Check answers ErrNotReady, until SetReady(true) says that the first whole
// snapshot has been applied.
func NewList(o ListOptions) (*List, error) {
	l := &List{}
	l.table.Store(newRevoked(o.Capacity))
	return l, nil
}

// SetReady says whether the list may be believed.
func (l *List) SetReady(ready bool) { l.ready.Store(ready) }

// Len is the number of entries, expired ones included until they are swept.
func (l *List) Len() int { return int(l.table.Load().count.Load()) }

// Apply merges entries. Of several cut-offs for one target the latest counts, of several expiries too. Once Apply has returned,
// every Check that begins sees them.
func (l *List) Apply(entries ...Revocation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	table := l.table.Load()
	for i := range entries {
		e := &entries[i]
		notBefore, expires := e.NotBefore, int64(forever)
		if notBefore <= 0 {
			notBefore = forever
		}
		if !e.ExpiresAt.IsZero() {
			expires = ceilSeconds(e.ExpiresAt)
		}
		if table.full() {
			bigger := newRevoked(2 * int(table.count.Load()))
			bigger.takeOver(table, math.MinInt64)
			l.table.Store(bigger)
			table = bigger
		}
		lo, hi := e.Target.words()
		table.merge(lo, hi, notBefore, expires)
	}
}

// Sweep forgets the entries that expired before now and says how many. It copies the table, so it is for a ticker.
func (l *List) Sweep(now time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	table, limit := l.table.Load(), now.Unix()
	before, gone := int(table.count.Load()), 0
	for i := range table.places {
		if p := &table.places[i]; p.lo.Load() != 0 && p.expires.Load() <= limit {
			gone++
		}
	}
	if gone > 0 {
		smaller := newRevoked(before - gone)
		smaller.takeOver(table, limit)
		l.table.Store(smaller)
	}
	return gone
}

// Check says whether anything in the list hits the token.
func (l *List) Check(s *Subject) error {
	if !l.ready.Load() {
		return ErrNotReady
	}
	t := l.table.Load()
	if t.count.Load() == 0 {
		return nil
	}
	if t.hits(&s.Token, s.AuthTime) || t.hits(&s.Account, s.AuthTime) || t.hits(&s.Client, s.AuthTime) ||
		t.hits(&s.Key, s.AuthTime) || t.hits(&s.All, s.AuthTime) || s.HasSession && t.hits(&s.Session, s.AuthTime) {
		return ErrRevoked
	}
	return nil
}

// revoked is an open-addressing table, at most half full. One writer at a time adds entries or raises their numbers; nothing is
// removed, a smaller table takes its place. lo is written last, so a reader that sees it sees the rest.
type revoked struct {
	mask   uint64
	count  atomic.Int64
	places []place
}

type place struct {
	lo, hi    atomic.Uint64 // the target; lo is never 0 for an entry
	notBefore atomic.Int64
	expires   atomic.Int64
}

func newRevoked(entries int) *revoked {
	places := minPlaces
	for places < 2*entries+2 {
		places *= 2
	}
	return &revoked{mask: uint64(places - 1), places: make([]place, places)}
}

func (t *Target) words() (lo, hi uint64) {
	lo, hi = binary.LittleEndian.Uint64(t[:8]), binary.LittleEndian.Uint64(t[8:])
	if lo == 0 {
		lo = 1 // 0 marks an empty place
	}
	return lo, hi
}

func (r *revoked) full() bool { return 2*(int(r.count.Load())+1) > len(r.places) }

// find gives the place of the target, or the empty one where it would be.
func (r *revoked) find(lo, hi uint64) (p *place, there bool) {
	for i := hi & r.mask; ; i = (i + 1) & r.mask {
		p = &r.places[i]
		switch found := p.lo.Load(); {
		case found == 0:
			return p, false
		case found == lo && p.hi.Load() == hi:
			return p, true
		}
	}
}

func (r *revoked) hits(t *Target, authTime int64) bool {
	lo, hi := t.words()
	p, there := r.find(lo, hi)
	return there && authTime < p.notBefore.Load()
}

func (r *revoked) merge(lo, hi uint64, notBefore, expires int64) {
	p, there := r.find(lo, hi)
	if there {
		p.notBefore.Store(max(notBefore, p.notBefore.Load()))
		p.expires.Store(max(expires, p.expires.Load()))
		return
	}
	p.hi.Store(hi)
	p.notBefore.Store(notBefore)
	p.expires.Store(expires)
	p.lo.Store(lo)
	r.count.Add(1)
}

// takeOver copies the entries of another table that expire after the given second.
func (r *revoked) takeOver(from *revoked, expired int64) {
	for i := range from.places {
		p := &from.places[i]
		if lo := p.lo.Load(); lo != 0 && p.expires.Load() > expired {
			r.merge(lo, p.hi.Load(), p.notBefore.Load(), p.expires.Load())
		}
	}
}
