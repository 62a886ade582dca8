package app_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/app"
)

// TestAStoreThatIsAwayFillsNoLog takes the clients away for an hour, and then gives them back.
func TestAStoreThatIsAwayFillsNoLog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var said bytes.Buffer
		var away atomic.Bool
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- app.Following(ctx, slog.New(slog.NewTextHandler(&said, nil)), func(context.Context) error {
				if away.Load() {
					return errors.New("away")
				}
				return nil
			})
		}()
		for _, step := range []struct {
			away bool
			want []string // what is said from the start
		}{
			{false, nil},
			{true, []string{"level=WARN"}},
			{false, []string{"level=WARN", "level=INFO"}},
		} {
			away.Store(step.away)
			<-time.After(time.Hour + time.Millisecond)
			synctest.Wait()
			lines := strings.Split(strings.TrimSpace(said.String()), "\n")
			for i, want := range step.want {
				if len(lines) != len(step.want) || !strings.Contains(lines[i], want) {
					t.Errorf("with the store away %v: %d lines, want %v; the last is %s", step.away, len(lines), step.want, lines[len(lines)-1])
					break
				}
			}
			if len(step.want) == 0 && said.Len() > 0 {
				t.Errorf("with nothing to say: %s", said.String())
			}
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
