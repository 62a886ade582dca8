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

// TestHeartbeatsComeEachSecondAndNotAllAtOnce has a hundred who came together watch for ten seconds.
func TestHeartbeatsComeEachSecondAndNotAllAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := &paper{view: revocation.View{Cursor: revocation.Cursor{Epoch: [16]byte{1}}}, keySet: "keys", fresh: true}
		h := must(rpc.NewHub(rpc.HubOptions{Log: p, Issuer: "https://auth.example", KeySet: p.keys}))(t)
		ctx, stop := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() { _ = h.Run(ctx) })
		var mu sync.Mutex
		at := map[int64]int{} // heartbeats by their instant
		for range 100 {
			all.Go(func() {
				last, beats := time.Now(), 0
				_ = h.WatchWithout(ctx, "", func(m *authsvcv1.WatchTrustResponse) error {
					if m.GetHeartbeat() == nil {
						return nil
					}
					now := time.Now()
					if since := now.Sub(last); since > time.Second+40*time.Millisecond {
						t.Errorf("a heartbeat came %v after the last", since)
					}
					if last = now; beats > 0 { // the first is part of the start
						mu.Lock()
						at[now.UnixNano()]++
						mu.Unlock()
					}
					beats++
					return nil
				})
				if beats < 10 {
					t.Errorf("%d heartbeats in 10 s", beats)
				}
			})
		}
		time.Sleep(10*time.Second + 500*time.Millisecond)
		stop()
		all.Wait()
		for instant, n := range at {
			if n > 25 {
				t.Errorf("%d of 100 had their heartbeat at %v", n, time.Unix(0, instant))
			}
		}
	})
}
