package rpc_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/server/rpc"
	"github.com/authsvc/authsvc/test/model"
	"github.com/authsvc/authsvc/verify"
)

// replica is a replica of the model that is the real tail and the real hub.
type replica struct {
	revocation.Store // what is not called here
	*rpc.Hub
	store *model.Store
	log   *revocation.Log
	turn  chan struct{} // one read at a time: who waits for a mutex stops the clock of a bubble
	look  func(v revocation.View) revocation.View

	tails   atomic.Int32 // that go on
	version uint64
	looked  func() // ends the tail that has looked before
}

// newReplica makes replicas whose hub sees the log through a look.
func newReplica(t *testing.T, look func(v revocation.View) revocation.View) func(*model.Store) model.Replica {
	return func(s *model.Store) model.Replica {
		r := &replica{store: s, turn: make(chan struct{}, 1), look: look}
		var err error
		if r.log, err = revocation.New(revocation.Options{Store: r, Issuer: model.Issuer, Every: time.Millisecond,
			List: must(verify.NewList(verify.ListOptions{}))(t)}); err != nil {
			t.Fatal(err)
		}
		keys := []byte(`{"keys":[]}`)
		if r.Hub, err = rpc.NewHub(rpc.HubOptions{Log: r, Issuer: "https://auth.example", KeySet: func() []byte { return keys }}); err != nil {
			t.Fatal(err)
		}
		return r
	}
}

// Read lets the tail run for one look.
func (r *replica) Read(ctx context.Context) error {
	r.turn <- struct{}{}
	defer func() {
		time.Sleep(time.Millisecond)
		for r.tails.Load() > 0 { // a read that was given up goes on for a while
			time.Sleep(time.Millisecond)
		}
		<-r.turn
	}()
	ctx, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	looks := 0
	r.looked = func() {
		if looks++; looks == 2 {
			end()
		}
	}
	return r.log.Run(ctx)
}

// Changed implements revocation.Store.
func (r *replica) Changed(ctx context.Context) (bool, error) {
	if r.looked(); ctx.Err() != nil {
		return false, ctx.Err()
	}
	version, err := r.store.Version(ctx)
	if err != nil {
		return false, err
	}
	before := r.version
	r.version = version
	return version != before, nil
}

// Tail implements revocation.Store.
func (r *replica) Tail(ctx context.Context, after int64) (revocation.Page, error) {
	r.tails.Add(1)
	defer r.tails.Add(-1)
	p, err := r.store.Tail(ctx, after)
	if err != nil {
		return revocation.Page{}, err
	}
	page := revocation.Page{Epoch: [16]byte{p.Epoch}, Head: p.Head, Now: time.Now()}
	for _, row := range p.Rows {
		page.Entries = append(page.Entries, revocation.Entry{Position: row.Position, Kind: journal.Kind(row.Kind), ID: row.ID,
			NotBefore: row.NotBefore, ExpiresAt: row.ExpiresAt})
	}
	return page, nil
}

// Reappend implements revocation.Store.
func (r *replica) Reappend(ctx context.Context, _ int64, entries []revocation.Entry) (int, error) {
	r.tails.Add(1)
	defer r.tails.Add(-1)
	var lost []model.Row
	for _, e := range entries {
		lost = append(lost, model.Row{Kind: verify.Kind(e.Kind), ID: e.ID, ExpiresAt: e.ExpiresAt})
	}
	return len(lost), r.store.Reappend(ctx, lost)
}

// Settle implements revocation.Store.
func (r *replica) Settle(context.Context, string) error { return nil }

// View implements the hub's log.
func (r *replica) View() revocation.View {
	v := r.log.View()
	if r.look != nil {
		v = r.look(v)
	}
	return v
}

// Reach implements the hub's log.
func (r *replica) Reach(ctx context.Context, c revocation.Cursor) error {
	r.turn <- struct{}{}
	defer func() { <-r.turn }()
	return r.log.Reach(context.WithoutCancel(ctx), c)
}

// Watch implements model.Replica.
func (r *replica) Watch(ctx context.Context, cursor string, send func(*authsvcv1.WatchTrustResponse) error) error {
	return r.WatchWithout(ctx, cursor, send)
}

// TestP01P02TheServerKeepsThePromiseUnderAnySchedule plays the schedules of the model against the real tail, views, snapshots,
// deltas and heartbeats, with plain verifiers.
func TestP01P02TheServerKeepsThePromiseUnderAnySchedule(t *testing.T) {
	t.Parallel()
	model.Prove(t, model.Subject{Replica: newReplica(t, nil), Verifier: model.NewVerifier})
}

// TestTheModelCatchesAServerThatBreaksThePromise gives the hub another look at its log.
func TestTheModelCatchesAServerThatBreaksThePromise(t *testing.T) {
	t.Parallel()
	broken := func(look func(v revocation.View) revocation.View) model.Subject {
		return model.Subject{Replica: newReplica(t, look), Verifier: model.NewVerifier}
	}
	model.Catch(t, map[string]model.Subject{
		"a server whose knowledge is always of this moment": broken(func(v revocation.View) revocation.View {
			if !v.Known.IsZero() {
				v.Known = time.Now()
			}
			return v
		}),
		"a server that does not tell epochs apart": broken(func(v revocation.View) revocation.View {
			v.Cursor.Epoch = [16]byte{1}
			return v
		}),
		"a server whose position is ahead of its entries": broken(func(v revocation.View) revocation.View {
			v.Live = v.Live[:max(0, len(v.Live)-1)]
			return v
		}),
	})
}
