package service_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/service"
)

func TestAPulseNoticesThatTheProcessWasAway(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		away time.Duration
		want bool // steady at once, and for four seconds and a half after
	}{
		{"never away", 0, true},
		{"away for less than two seconds", 1800 * time.Millisecond, true},
		{"away for more than two seconds", 2200 * time.Millisecond, false},
		{"away for an hour", time.Hour, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				start, slept := time.Now(), atomic.Int64{}
				p := service.NewPulse(func() time.Duration { return time.Since(start) + time.Duration(slept.Load()) })
				ctx, stop := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- p.Run(ctx) }()
				at := func(d time.Duration) bool {
					<-time.After(d)
					synctest.Wait()
					return p.Steady()
				}
				if !at(time.Minute) {
					t.Error("a process that ran for a minute is not steady")
				}
				slept.Add(int64(tt.away))
				if got := p.Steady(); got != tt.want {
					t.Errorf("on waking, before its next beat: steady is %v", got)
				}
				for _, later := range []time.Duration{150 * time.Millisecond, 2 * time.Second, 2300 * time.Millisecond} {
					if got := at(later); got != tt.want {
						t.Errorf("%v later steady is %v", later, got)
					}
				}
				if !at(time.Second) {
					t.Error("five seconds and a half later it is not steady again")
				}
				stop()
				if err := <-ended; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A replica that was stopped, or a store that answers late, must end no honest session: whatever was asked long ago is not
// decided, neither a redemption nor a theft.
func TestARefreshThatIsDecidedTooLateIsNotDecided(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(*service.TokensOptions)
		want   fault.Reason // empty: decided
	}{
		{"six seconds after its arrival", func(o *service.TokensOptions) {
			now := o.Now
			o.Now = func() time.Time { return now().Add(-6 * time.Second) }
		}, fault.StoreUnavailable},
		{"two seconds after its arrival", func(o *service.TokensOptions) {
			now := o.Now
			o.Now = func() time.Time { return now().Add(-2 * time.Second) }
		}, ""},
		{"by a replica that was stopped a moment ago", func(o *service.TokensOptions) {
			var boot atomic.Int64
			o.Pulse = service.NewPulse(func() time.Duration { return time.Duration(boot.Load()) })
			boot.Store(int64(time.Hour))
		}, fault.ReplicaStale},
		{"by a replica that was not", func(o *service.TokensOptions) {
			var boot atomic.Int64
			o.Pulse = service.NewPulse(func() time.Duration { return time.Duration(boot.Load()) })
			boot.Store(int64(time.Second))
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCore(t)
			in := c.login(t, "ada")
			second := must(c.refresh(t.Context(), in.RefreshToken))(t)
			newest := must(c.refresh(t.Context(), second.RefreshToken))(t)
			c.clock.advance(client.DefaultReuseWindow + time.Second)
			c.clock.hold() // what is late is late by what the case says
			before, _, _, err := c.db.Sessions().Get(t.Context(), in.SessionID)
			if err != nil {
				t.Fatal(err)
			}
			o := c.tokenOptions
			tt.change(&o)
			late := must(service.NewTokens(o))(t)
			ask := func(token string) error {
				_, err := late.Refresh(t.Context(), service.RefreshRequest{RefreshToken: token, ClientID: "app", Caller: phone()})
				return err
			}
			if tt.want == "" {
				if err := ask(newest.RefreshToken); err != nil {
					t.Error(err)
				}
				wantReason(t, ask(in.RefreshToken), fault.RefreshReused)
				return
			}
			for _, token := range []string{newest.RefreshToken, second.RefreshToken, in.RefreshToken} {
				err := ask(token)
				wantReason(t, err, tt.want)
				if kind := fault.From(err).Kind; kind != fault.Unavailable {
					t.Errorf("the kind is %v", kind)
				}
			}
			after, alive, _, err := c.db.Sessions().Get(t.Context(), in.SessionID)
			if err != nil || !alive {
				t.Errorf("the session is alive: %v, %v", alive, err)
			}
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("the row changed (-before +after)\n%s", diff)
			}
		})
	}
}
