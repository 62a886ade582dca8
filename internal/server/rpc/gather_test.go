package rpc_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// TestAChangeWaitsForOthersNoLongerThanItMay counts the messages of changes that come one upon the other, and how late each is.
func TestAChangeWaitsForOthersNoLongerThanItMay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		every time.Duration // between changes
		late  time.Duration // the most that one comes late
		least int           // messages of a second
		most  int
	}{
		"one alone comes at once":              {200 * time.Millisecond, 5 * time.Millisecond, 5, 5},
		"those of a busy time share a message": {3 * time.Millisecond, 20 * time.Millisecond, 35, 55},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &paper{view: revocation.View{Cursor: revocation.Cursor{Epoch: [16]byte{1}}}, keySet: "keys", fresh: true}
				h := must(rpc.NewHub(rpc.HubOptions{Log: p, Issuer: "https://auth.example", KeySet: p.keys}))(t)
				ctx, stop := context.WithCancel(t.Context())
				var all sync.WaitGroup
				all.Go(func() { _ = h.Run(ctx) })
				var mu sync.Mutex
				var asked []time.Time // of each change that has not come
				messages := 0
				all.Go(func() {
					_ = h.WatchWithout(ctx, "", func(m *authsvcv1.WatchTrustResponse) error {
						mu.Lock()
						defer mu.Unlock()
						n := len(m.GetDelta().GetRevocations())
						if n > 0 {
							messages++
						}
						for _, at := range asked[:n] {
							if late := time.Since(at); late > c.late {
								t.Errorf("a change came %v late", late)
							}
						}
						asked = asked[n:]
						return nil
					})
				})
				time.Sleep(500 * time.Millisecond)
				for began := time.Now(); time.Since(began) < time.Second; time.Sleep(c.every) {
					mu.Lock()
					asked = append(asked, time.Now())
					mu.Unlock()
					p.add(1)
				}
				time.Sleep(100 * time.Millisecond)
				stop()
				all.Wait()
				if len(asked) > 0 || messages < c.least || messages > c.most {
					t.Errorf("%d messages, and %d changes have not come", messages, len(asked))
				}
			})
		})
	}
}
