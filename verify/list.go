package verify

import (
	"encoding/binary"
	"iter"
	"math"
	"math/bits"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// tables is how many parts a list has. Each grows and is swept by itself, so that neither takes long.
	tables = 256
	// group is how many places of a table share one word of tags.
	group = 8
	// ones and highs are the lowest and the highest bit of each tag in a word.
	ones, highs = 0x0101010101010101, 0x8080808080808080
	// forever stands for a cut-off that hits every token, and for an entry that never expires.
	forever = math.MaxUint32
)

// List is the revocations that this process knows, in memory, 38 to 57 bytes each where there are many. Check takes no lock and
// allocates nothing. Entries are merged, never taken back: they leave by Sweep once they have expired.
type List struct {
	ready  atomic.Bool
	count  atomic.Int64
	tables [tables]atomic.Pointer[revoked] // nil while empty
	first  int                             // groups of a new table
	// version changes with each Apply, once its entries can be found. It begins at random, so that no other list has had it.
	version atomic.Uintptr
	mu      sync.Mutex // for writers
}

// ListOptions are what a List is made of.
type ListOptions struct {
	// Capacity is how many entries to make room for; it grows by itself. Optional.
	Capacity int
}

// NewList makes an empty list. It is not ready, and Check answers ErrNotReady, until SetReady(true) says that the first whole
// snapshot has been applied.
func NewList(o ListOptions) (*List, error) {
	l := &List{first: groupsFor(o.Capacity / tables)}
	l.version.Store(uintptr(rand.Uint64()))
	return l, nil
}

// SetReady says whether the list may be believed.
func (l *List) SetReady(ready bool) { l.ready.Store(ready) }

// Len is the number of entries, expired ones included until they are swept.
func (l *List) Len() int { return int(l.count.Load()) }

// Apply merges entries. Of several cut-offs for one target the latest counts, of several expiries too. Once Apply has returned,
// every Check that begins sees them.
func (l *List) Apply(entries ...Revocation) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.version.Add(1)
	for i := range entries {
		e := &entries[i]
		notBefore, expires := uint64(forever), uint64(forever)
		if e.NotBefore > 0 {
			notBefore = seconds(e.NotBefore)
		}
		if !e.ExpiresAt.IsZero() {
			expires = seconds(ceilSeconds(e.ExpiresAt))
		}
		lo, hi := e.Target.words()
		if l.room(hi).merge(lo, hi, notBefore, expires) {
			l.count.Add(1)
		}
	}
}

// room gives the table of a target, with a place to spare.
func (l *List) room(hi uint64) *revoked {
	at := &l.tables[tableOf(hi)]
	t := at.Load()
	switch {
	case t == nil:
		t = newRevoked(l.first)
		at.Store(t)
	case t.full():
		bigger := newRevoked(len(t.tags) + (len(t.tags)+1)/2)
		bigger.takeOver(t, -1)
		at.Store(bigger)
		t = bigger
	}
	return t
}

// Sweep forgets the entries that expired before now and says how many. It looks at each entry, so it is for a ticker; writers wait
// for a small part of it at a time.
func (l *List) Sweep(now time.Time) int {
	all := 0
	for i := range l.tables {
		all += l.sweep(&l.tables[i], now.Unix())
	}
	return all
}

func (l *List) sweep(at *atomic.Pointer[revoked], limit int64) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := at.Load()
	if t == nil {
		return 0
	}
	gone := 0
	for p := range t.all() {
		if p.expired(limit) {
			gone++
		}
	}
	switch gone {
	case 0:
		return 0
	case t.count:
		at.Store(nil)
	default:
		smaller := newRevoked(max(l.first, groupsFor(t.count-gone)))
		smaller.takeOver(t, limit)
		at.Store(smaller)
	}
	l.count.Add(-int64(gone))
	return gone
}

// Check says whether anything in the list hits the token.
func (l *List) Check(s *Subject) error {
	if !l.ready.Load() {
		return ErrNotReady
	}
	if l.count.Load() == 0 {
		return nil
	}
	version := l.version.Load() // first: what is merged from now on changes it again
	if s.passedAt(version) {
		return nil
	}
	if l.hits(&s.Token, s.AuthTime) || l.hits(&s.Account, s.AuthTime) || l.hits(&s.Client, s.AuthTime) ||
		l.hits(&s.Key, s.AuthTime) || l.hits(&s.All, s.AuthTime) || s.HasSession && l.hits(&s.Session, s.AuthTime) {
		return ErrRevoked
	}
	s.pass(version)
	return nil
}

func (l *List) hits(target *Target, authTime int64) bool {
	lo, hi := target.words()
	t := l.tables[tableOf(hi)].Load()
	if t == nil {
		return false
	}
	p := t.find(lo, hi)
	if p == nil {
		return false
	}
	notBefore := p.times.Load() >> 32
	return notBefore == forever || authTime < int64(notBefore)
}

// revoked is an open-addressing table of groups of places, at most two thirds full. One writer at a time adds entries or raises
// their numbers; nothing is removed, another table takes its place. A place has a tag of one byte, seven bits of its target and
// one that says that it is taken. Tags of a group stand in one word: it tells a reader in nearly all cases that a target is not
// there, and a writer stores it last, so that a reader who sees a tag sees the rest.
type revoked struct {
	tags   []atomic.Uint64 // one for each group
	places []place
	count  int // for writers
}

// place is 24 bytes.
type place struct {
	lo, hi atomic.Uint64 // the target
	times  atomic.Uint64 // the cut-off in the upper half, the expiry in the lower, in Unix seconds or forever
}

func newRevoked(groups int) *revoked {
	return &revoked{tags: make([]atomic.Uint64, groups), places: make([]place, groups*group)}
}

func (p *place) expired(limit int64) bool {
	expires := p.times.Load() & forever
	return expires != forever && int64(expires) <= limit
}

// seconds bounds a time to what a place holds, which is until the year 2106.
func seconds(unix int64) uint64 { return uint64(min(max(unix, 0), forever)) }

// groupsFor is the size of a table that some more entries fit into than there are.
func groupsFor(entries int) int { return 7*entries/32 + 1 }

func (t *Target) words() (lo, hi uint64) {
	return binary.LittleEndian.Uint64(t[:8]), binary.LittleEndian.Uint64(t[8:])
}

// tableOf says which table a target is in: by the upper eight bits of hi; the others say in which group, and lo gives the tag.
func tableOf(hi uint64) uint64 { return hi >> 56 }

func tagOf(lo uint64) uint64 { return lo&0x7f | 0x80 }

func (r *revoked) home(hi uint64) uint64 {
	at, _ := bits.Mul64(hi<<8, uint64(len(r.tags)))
	return at
}

func (r *revoked) after(at uint64) uint64 {
	if at++; at < uint64(len(r.tags)) {
		return at
	}
	return 0
}

func (r *revoked) full() bool { return 3*(r.count+1) > 2*len(r.places) }

// find gives the place of the target, or nil. A target stands in the first group from its home on that had room for it.
func (r *revoked) find(lo, hi uint64) *place {
	wanted := tagOf(lo) * ones
	for at := r.home(hi); ; at = r.after(at) {
		tags := r.tags[at].Load()
		differ := tags ^ wanted
		for same := (differ - ones) &^ differ & highs; same != 0; same &= same - 1 { // may name a tag too many
			p := &r.places[at*group+uint64(bits.TrailingZeros64(same)/8)]
			if p.lo.Load() == lo && p.hi.Load() == hi {
				return p
			}
		}
		if tags&highs != highs {
			return nil
		}
	}
}

// merge says whether the entry is new.
func (r *revoked) merge(lo, hi, notBefore, expires uint64) bool {
	if p := r.find(lo, hi); p != nil {
		old := p.times.Load()
		p.times.Store(max(notBefore, old>>32)<<32 | max(expires, old&forever))
		return false
	}
	at := r.home(hi)
	tags := r.tags[at].Load()
	for tags&highs == highs {
		at = r.after(at)
		tags = r.tags[at].Load()
	}
	free := uint64(bits.TrailingZeros64(^tags&highs) / 8)
	p := &r.places[at*group+free]
	p.lo.Store(lo)
	p.hi.Store(hi)
	p.times.Store(notBefore<<32 | expires)
	r.tags[at].Store(tags | tagOf(lo)<<(8*free))
	r.count++
	return true
}

// all gives the places that are taken.
func (r *revoked) all() iter.Seq[*place] {
	return func(yield func(*place) bool) {
		for i := range r.places {
			if r.tags[i/group].Load()>>(i%group*8)&0x80 != 0 && !yield(&r.places[i]) {
				return
			}
		}
	}
}

// takeOver copies the entries of another table that expire after the given second.
func (r *revoked) takeOver(from *revoked, expired int64) {
	for p := range from.all() {
		if !p.expired(expired) {
			times := p.times.Load()
			r.merge(p.lo.Load(), p.hi.Load(), times>>32, times&forever)
		}
	}
}
