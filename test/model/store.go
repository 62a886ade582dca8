package model

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// Row is one row of the log.
type Row struct {
	Position             int64
	Kind                 verify.Kind
	ID                   string
	NotBefore, ExpiresAt time.Time

	committed time.Time
	hits      uint32 // a bit for each token
}

// Revocation is the row as verifiers get it.
func (r *Row) Revocation() verify.Revocation {
	return verify.NewRevocation(Issuer, r.Kind, r.ID, r.NotBefore, r.ExpiresAt)
}

// Page is what one tail read saw.
type Page struct {
	Epoch byte
	Head  int64
	Rows  []Row // those that live, after the position that was asked for, in order
}

// database is the log that all replicas tail.
type database struct {
	early  bool // positions are given when a transaction begins
	tokens [tokens]verify.Subject

	mu      sync.Mutex
	epoch   byte
	next    int64
	rows    []Row // in the order of their positions
	open    []Row // transactions that have not committed; committed says when they will
	history []Row // all that ever committed
	version uint64
}

const (
	lateBy = 10 * time.Second
	lives  = 17 * time.Minute
)

// begin begins a transaction that revokes, and commits after some time.
func (d *database) begin(n int, after time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := Row{committed: time.Now().Add(after)}
	r.Kind, r.ID = revokes(n)
	if d.early {
		d.next++
		r.Position = d.next
	}
	d.open = append(d.open, r)
	d.settle()
}

// settle commits what is due, in the order of time. Under d.mu.
func (d *database) settle() {
	slices.SortStableFunc(d.open, func(a, b Row) int { return a.committed.Compare(b.committed) })
	for len(d.open) > 0 && !d.open[0].committed.After(time.Now()) {
		r := d.open[0]
		d.open = d.open[1:]
		if !d.early {
			d.next++
			r.Position = d.next
		}
		r.ExpiresAt = r.committed.Add(lives)
		if r.Kind == verify.KindAccount || r.Kind == verify.KindAll {
			r.NotBefore = r.committed.Truncate(time.Second).Add(2 * time.Second)
		}
		target := r.Revocation().Target
		for i := range d.tokens {
			if s := &d.tokens[i]; (target == s.Token || target == s.Session || target == s.Account || target == s.Key || target == s.All) &&
				(r.NotBefore.IsZero() || s.AuthTime < r.NotBefore.Unix()) {
				r.hits |= 1 << i
			}
		}
		at, _ := slices.BinarySearchFunc(d.rows, r.Position, func(r Row, p int64) int { return int(r.Position - p) })
		d.rows = slices.Insert(slices.Clip(d.rows), at, r)
		d.history = append(d.history, r)
		d.version++
	}
}

// restore loses the last rows, and what is open.
func (d *database) restore(lose int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settle()
	d.epoch++
	d.version++
	d.open = nil
	d.rows = d.rows[:max(0, len(d.rows)-lose)]
	if d.next = 0; len(d.rows) > 0 {
		d.next = d.rows[len(d.rows)-1].Position
	}
}

// truth gives the log and all that was ever in it.
func (d *database) truth() (rows, history []Row) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.settle()
	return d.rows, d.history
}

// Store is a replica's way to the database.
type Store struct {
	db *database

	mu            sync.Mutex
	away          bool
	before, after time.Duration
}

var errAway = errors.New("the database is away")

func (s *Store) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// Tail reads the log in one consistent read, some time after the call and before the answer.
func (s *Store) Tail(ctx context.Context, after int64) (Page, error) {
	s.mu.Lock()
	away, first, second := s.away, s.before, s.after
	s.mu.Unlock()
	if away {
		return Page{}, errAway
	}
	if err := pause(ctx, first); err != nil {
		return Page{}, err
	}
	s.db.mu.Lock()
	s.db.settle()
	p := Page{Epoch: s.db.epoch, Rows: []Row{}}
	for _, r := range s.db.rows {
		if p.Head = r.Position; r.Position > after && r.ExpiresAt.After(time.Now()) {
			p.Rows = append(p.Rows, r)
		}
	}
	s.db.mu.Unlock()
	return p, pause(ctx, second)
}

// Reappend commits rows anew that the log has lost, as they were.
func (s *Store) Reappend(ctx context.Context, lost []Row) error {
	if _, err := s.Version(ctx); err != nil {
		return err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	for _, l := range lost {
		for _, r := range s.db.history {
			if r.Kind == l.Kind && r.ID == l.ID && r.ExpiresAt.Equal(l.ExpiresAt) {
				s.db.next++
				r.Position, r.committed = s.db.next, time.Now() // a replica that never read it learns of it from now on
				s.db.rows = append(slices.Clip(s.db.rows), r)
				s.db.version++
				break
			}
		}
	}
	return nil
}

// Version changes whenever the log does. It is read some time after the call.
func (s *Store) Version(ctx context.Context) (uint64, error) {
	s.mu.Lock()
	away, first := s.away, s.before
	s.mu.Unlock()
	if away {
		return 0, errAway
	}
	if err := pause(ctx, first); err != nil {
		return 0, err
	}
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.db.settle()
	return s.db.version, nil
}

// pause waits by the clock of the bubble.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
