package app_test

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/app"
)

// TestCleaningKeepsUp lets a table grow for an hour: what is over must not pile up, and a store that fails is not pressed.
func TestCleaningKeepsUp(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		over   int64 // rows that are over already
		second int64 // and that come in a second
		fails  error
		left   int64 // at most
		sweeps int64 // at most
	}{
		{"little to do is done every ten seconds", 0, 10, nil, 200, 360},
		{"five hundred rows a second do not pile up", 0, 500, nil, 10_000, 40_000},
		{"a million rows are gone within the hour", 1_000_000, 0, nil, 0, 2_400},
		{"a store that fails is asked every ten seconds", 1_000_000, 0, errors.New("away"), 1_000_000, 360},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				var rows, sweeps atomic.Int64
				rows.Store(tt.over)
				ended := make(chan error, 1)
				go func() {
					ended <- app.Sweeping(ctx, slog.New(slog.DiscardHandler), func(_ context.Context, limit int) (int, error) {
						sweeps.Add(1)
						if tt.fails != nil {
							return limit, tt.fails
						}
						n := min(rows.Load(), int64(limit))
						rows.Add(-n)
						return int(n), nil
					})
				}()
				for range 3600 {
					<-time.After(time.Second)
					rows.Add(tt.second)
				}
				synctest.Wait()
				if left, n := rows.Load(), sweeps.Load(); left > tt.left || n > tt.sweeps {
					t.Errorf("after an hour %d rows are left, after %d sweeps", left, n)
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}
