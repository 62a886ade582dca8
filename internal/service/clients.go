package service

import (
	"context"
	"crypto/subtle"
	"sync"
	"time"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
)

// Clients is the directory of clients, held in memory and read again when the store's revision moves, so that
// authenticating a caller costs no I/O. A client that the directory does not know is looked up once.
type Clients struct {
	store  client.Store
	now    func() time.Time
	issuer string

	reading chan struct{} // one look at the store at a time; a channel, which a test's own clock can wait for

	waiting sync.Mutex
	next    *clientsLook // the look that callers who come now will share

	mu       sync.RWMutex
	revision int64
	byID     map[ids.Client]client.Client
	asOf     time.Time // when the last completed look at the store began, by this process's clock
	storeAt  time.Time // the store's time at that look
}

type clientsLook struct {
	done chan struct{}
	err  error
}

// maxAge is how old the directory may be to authenticate anybody without looking at the store first.
const maxAge = time.Second

// NewClients makes a directory; it is empty until Refresh.
func NewClients(store client.Store, issuer string, now func() time.Time) (*Clients, error) {
	if store == nil || issuer == "" || now == nil {
		return nil, missing("client store, issuer or clock")
	}
	return &Clients{store: store, now: now, issuer: issuer, byID: map[ids.Client]client.Client{}, revision: -1, reading: make(chan struct{}, 1)}, nil
}

// Refresh reads the clients again if their revision moved. It looks at the store after the call, not before. Callers who
// wait together share one look and what became of it, so a store that hangs costs each of them two of its timeouts at most,
// however many they are, and never more than a caller's own context has: a store may take its time to notice that a look is
// over.
func (s *Clients) Refresh(ctx context.Context) error {
	s.waiting.Lock()
	r := s.next
	if r == nil {
		r = &clientsLook{done: make(chan struct{})}
		s.next = r
		go s.run(context.WithoutCancel(ctx), r)
	}
	s.waiting.Unlock()
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return fault.Wrap(ctx.Err(), fault.Unavailable, fault.StoreUnavailable, "the clients were not read in time")
	}
}

// run waits its turn, closes the door behind those who share it, and looks.
func (s *Clients) run(ctx context.Context, r *clientsLook) {
	s.reading <- struct{}{}
	defer func() { <-s.reading }()
	s.waiting.Lock()
	s.next = nil
	s.waiting.Unlock()
	r.err = s.look(ctx)
	close(r.done)
}

func (s *Clients) look(ctx context.Context) error {
	began := s.now()
	revision, storeAt, err := s.store.Revision(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	same := revision == s.revision
	if same {
		s.asOf, s.storeAt = began, storeAt
	}
	s.mu.Unlock()
	if same {
		return nil
	}
	const page = 500
	all := map[ids.Client]client.Client{}
	for after := ids.Client(""); ; {
		list, err := s.store.List(ctx, after, page)
		if err != nil {
			return err
		}
		for _, c := range list {
			all[c.ID] = c
		}
		if len(list) < page {
			break
		}
		after = list[len(list)-1].ID
	}
	s.mu.Lock()
	s.byID, s.revision, s.asOf, s.storeAt = all, revision, began, storeAt
	s.mu.Unlock()
	return nil
}

// Get gives a client from memory. Where memory lacks it, or is older than a second, it looks at the store's revision once;
// a store that does not answer then is Unavailable, never a client from old memory.
func (s *Clients) Get(ctx context.Context, id ids.Client) (client.Client, error) {
	if c, ok := s.held(id); ok {
		return c, nil
	}
	if len(id) == 0 || len(id) > MaxClientID {
		return client.Client{}, clientInvalid()
	}
	if err := s.Refresh(ctx); err != nil {
		return client.Client{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c, ok := s.byID[id]; ok {
		return c, nil
	}
	return client.Client{}, clientInvalid()
}

// storeTime gives the store's time at a moment of this process's clock, as of the last look at the store. It is exact to the
// time that the look took and what the two clocks drift apart in a second, and costs no I/O; by it secrets expire everywhere
// at once, as they do where the store itself decides.
func (s *Clients) storeTime(at time.Time) time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.storeAt.Add(at.Sub(s.asOf))
}

// Now gives the store's time, as storeTime does: what replicas judge expiry by, whatever the clock of their machine says.
func (s *Clients) Now() time.Time { return s.storeTime(s.now()) }

// MaxClientID is the longest client id, in bytes.
const MaxClientID = 128

func (s *Clients) held(id ids.Client) (client.Client, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.now().Sub(s.asOf) > maxAge {
		return client.Client{}, false
	}
	c, ok := s.byID[id]
	return c, ok
}

// ClientAuth is how a client proves itself: by HTTP Basic (RFC 6749 §2.3.1), or not at all.
type ClientAuth struct {
	Presented bool // a Basic header was there
	ID        ids.Client
	Secret    string
}

// Authenticate checks a confidential client's secret. Whatever is wrong, the answer is CLIENT_INVALID.
func (s *Clients) Authenticate(ctx context.Context, a ClientAuth) (client.Client, error) {
	if !a.Presented {
		return client.Client{}, clientInvalid()
	}
	c, err := s.Get(ctx, a.ID)
	if err != nil {
		return client.Client{}, err
	}
	if !c.Authentic(a.Secret, s.storeTime(s.now())) {
		return client.Client{}, clientInvalid()
	}
	return c, nil
}

// Resolve gives the client that a request speaks for: a confidential one must authenticate, a public one must not, and
// where the request names a client beside its authentication both must be the same.
func (s *Clients) Resolve(ctx context.Context, a ClientAuth, named ids.Client) (client.Client, error) {
	if a.Presented {
		c, err := s.Authenticate(ctx, a)
		if err == nil && named != "" && subtle.ConstantTimeCompare([]byte(named), []byte(c.ID)) != 1 {
			return client.Client{}, clientInvalid()
		}
		return c, err
	}
	if named == "" {
		return client.Client{}, fault.Field("client_id", "is required")
	}
	c, err := s.Get(ctx, named)
	if err != nil {
		return client.Client{}, err
	}
	if c.Kind != client.Public {
		return client.Client{}, clientInvalid()
	}
	return c, nil
}

func clientInvalid() error {
	return fault.New(fault.Unauthenticated, fault.ClientInvalid, "client authentication is missing or wrong, or the client is unknown")
}
