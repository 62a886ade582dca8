package revocation_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/verify"
)

const issuer = "https://auth.example.com"

// history is a store of the log that a test writes to, breaks and holds up.
type history struct {
	revocation.Store // what a Log never calls

	mu      sync.Mutex
	epoch   byte
	rows    []revocation.Entry
	changed bool
	away    error
	hold    chan struct{} // a read that has seen the rows waits here before it answers
	reads   int
	server  string
	settled []string
	refused error // what Reappend fails with
	parts   []int // how many entries it was given at a time
}

func (h *history) Tail(_ context.Context, after int64) (revocation.Page, error) {
	h.mu.Lock()
	h.reads++
	p, err, hold := revocation.Page{Epoch: [16]byte{h.epoch}, Server: h.server}, h.away, h.hold
	for _, e := range h.rows {
		if p.Head = e.Position; e.Position > after {
			p.Entries = append(p.Entries, e)
		}
	}
	h.mu.Unlock()
	if hold != nil {
		<-hold
	}
	return p, err
}

// Renew implements revocation.Store.
func (h *history) Renew(_ context.Context, old [16]byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away == nil && h.epoch == old[0] {
		h.epoch++
	}
	return h.away
}

// Reappend implements revocation.Store.
func (h *history) Reappend(_ context.Context, after int64, entries []revocation.Entry) (appended int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.refused != nil {
		return 0, h.refused
	}
	h.parts = append(h.parts, len(entries))
next:
	for _, e := range entries {
		for _, r := range h.rows {
			if r.Position > after && r.Kind == e.Kind && r.ID == e.ID && !r.NotBefore.Before(e.NotBefore) && !r.ExpiresAt.Before(e.ExpiresAt) {
				continue next
			}
		}
		e.Position = 1
		if n := len(h.rows); n > 0 {
			e.Position = h.rows[n-1].Position + 1
		}
		h.rows = append(h.rows, e)
		appended++
	}
	return appended, nil
}

// Settle implements revocation.Store.
func (h *history) Settle(_ context.Context, server string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.settled = append(h.settled, server)
	return nil
}

func (h *history) Changed(context.Context) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.away != nil {
		return false, h.away
	}
	was := h.changed
	h.changed = false
	return was, nil
}

// commit adds a row, as another process would.
func (h *history) commit(kind journal.Kind, id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rows = append(h.rows, revocation.Entry{Position: int64(len(h.rows) + 1), Kind: kind, ID: id, ExpiresAt: time.Now().Add(17 * time.Minute)})
	h.changed = true
}

func (h *history) breaks(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.away = err
}

// holdUp keeps the reads that begin from now on; the returned function lets them go.
func (h *history) holdUp() (letGo func()) {
	hold := make(chan struct{})
	h.mu.Lock()
	h.hold = hold
	h.mu.Unlock()
	return func() {
		h.mu.Lock()
		h.hold = nil
		h.mu.Unlock()
		close(hold)
	}
}

func (h *history) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reads
}

// open gives a log over an empty history, and its list.
func open(t *testing.T, change func(*revocation.Options)) (*revocation.Log, *history, *verify.List) {
	t.Helper()
	list, err := verify.NewList(verify.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	h := &history{epoch: 1}
	o := revocation.Options{Store: h, Issuer: issuer, List: list}
	if change != nil {
		change(&o)
	}
	l, err := revocation.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return l, h, list
}

// follow runs the log until the test ends.
func follow(t *testing.T, l *revocation.Log) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// token is what the list is asked about one token.
func token(id string) *verify.Subject {
	return &verify.Subject{Token: verify.TargetOf(issuer, verify.KindToken, id), Session: verify.TargetOf(issuer, verify.KindSession, id), HasSession: true,
		Key: verify.TargetOf(issuer, verify.KindKey, id), AuthTime: time.Now().Unix()}
}

func want(t *testing.T, list *verify.List, id string, verdict error) {
	t.Helper()
	if err := list.Check(token(id)); !errors.Is(err, verdict) {
		t.Errorf("%s: %v, want %v", id, err, verdict)
	}
}

func wantStale(t *testing.T, what string, err error) {
	t.Helper()
	if f := fault.From(err); err == nil || f.Kind != fault.Unavailable || f.Reason != fault.ReplicaStale {
		t.Errorf("%s: %v, want that this replica is stale", what, err)
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
