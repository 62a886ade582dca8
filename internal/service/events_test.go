package service_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/service"
)

// TestALoginThatItsCallerGaveUpIsCountedAsSuch: an alert on failures of the store or the service must not be anybody's to ring.
func TestALoginThatItsCallerGaveUpIsCountedAsSuch(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		gone bool
		want map[string]int
	}{
		{"the caller went away", true, map[string]int{"cancelled": 1}},
		{"the twin: the caller waits", false, map[string]int{"ok": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCore(t)
			c.clock.hold() // the clients that are known do not age
			if err := c.clients.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			if tt.gone {
				leave()
			}
			_, err := c.signIn.Login(ctx, service.LoginRequest{Username: "ada", Password: secretly, ClientID: "app"})
			if (err != nil) != tt.gone {
				t.Error(err)
			}
			if diff := cmp.Diff(tt.want, c.events.counted()); diff != "" {
				t.Errorf("counted (-want +got)\n%s", diff)
			}
		})
	}
}
