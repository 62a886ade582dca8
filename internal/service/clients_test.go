package service_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/service"
)

// hung is a store of clients that answers nothing but its own timeout, as a database does whose disk has stopped.
type hung struct {
	client.Store
	looks atomic.Int64
}

func (h *hung) Revision(context.Context) (int64, time.Time, error) {
	h.looks.Add(1)
	<-time.After(5 * time.Second)
	return 0, time.Time{}, fault.New(fault.Unavailable, fault.StoreUnavailable, "the database did not answer in time")
}

// TestAHungStoreOfClientsHoldsNobodyForLong has many callers ask for clients that memory lacks, with no deadline of their own.
func TestAHungStoreOfClientsHoldsNobodyForLong(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		callers int
	}{
		{"the twin: one caller alone", 1},
		{"a hundred callers share the looks at the store", 100},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				store := &hung{}
				clients := must(service.NewClients(store, adminIssuer, time.Now))(t)
				start := time.Now()
				var all sync.WaitGroup
				for range tt.callers {
					all.Go(func() {
						if _, err := clients.Get(context.Background(), ids.Client("stranger")); fault.From(err).Kind != fault.Unavailable {
							t.Errorf("a store that hangs gives %v", err)
						}
					})
				}
				all.Wait()
				if took, looks := time.Since(start), store.looks.Load(); took > 10*time.Second || looks > 2 {
					t.Errorf("%d callers took %v and %d looks at the store", tt.callers, took, looks)
				}
			})
		})
	}
}

// TestAStoreThatHearsNobodyHoldsNobody: a caller's own time is kept too by a store that does not notice that it is over, whether
// the caller begins a look or shares one.
func TestAStoreThatHearsNobodyHoldsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		clients := must(service.NewClients(&hung{}, adminIssuer, time.Now))(t)
		for range 30 {
			ctx, cancel := context.WithTimeout(t.Context(), 250*time.Millisecond)
			start := time.Now()
			if _, err := clients.Get(ctx, ids.Client("watcher")); fault.From(err).Kind != fault.Unavailable {
				t.Errorf("a store that hangs gives %v", err)
			}
			cancel()
			if took := time.Since(start); took > 250*time.Millisecond {
				t.Errorf("a caller with 250 ms was held for %v", took)
			}
		}
		<-time.After(10 * time.Second) // the looks end before the bubble does
	})
}

// TestALookOfACallerWhoLeftIsNotShared: that his context ended says nothing about the store.
func TestALookOfACallerWhoLeftIsNotShared(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	gone, leave := context.WithCancel(t.Context())
	leave()
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() { _ = c.clients.Refresh(gone) })
		all.Go(func() {
			if err := c.clients.Refresh(t.Context()); err != nil {
				t.Errorf("a caller who stays: %v", err)
			}
		})
	}
	all.Wait()
}

// timed is a store of clients whose time is not the process's.
type timed struct {
	client.Store
	apart time.Duration
}

func (s timed) Revision(context.Context) (int64, time.Time, error) {
	return 0, time.Now().Add(s.apart), nil
}

func (timed) List(context.Context, ids.Client, int) ([]client.Client, error) { return nil, nil }

func TestD16TheTimeIsTheStores(t *testing.T) {
	t.Parallel()
	for name, apart := range map[string]time.Duration{
		"the twin: one time": 0, "D16 an hour ahead of the store": -time.Hour, "D16 an hour behind it": time.Hour, "D16 a year ahead": -365 * 24 * time.Hour,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				clients := must(service.NewClients(timed{apart: apart}, adminIssuer, time.Now))(t)
				if err := clients.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				<-time.After(3 * time.Second) // without another look
				if got, want := clients.Now(), time.Now().Add(apart); !got.Equal(want) {
					t.Errorf("it is %v, and at the store %v", got, want)
				}
			})
		})
	}
}
