package keys_test

import (
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/keys"
)

// TestD16ARingSaysHowFarItsClockIsFromTheStores moves this process's clock; the twin has the store's.
func TestD16ARingSaysHowFarItsClockIsFromTheStores(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"an hour ahead": time.Hour, "an hour behind": -time.Hour, "the same": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			store := &rows{now: time.Now}
			r := ring(t, store, sealer(t, "k"), func(o *keys.Options) { o.Now = func() time.Time { return time.Now().Add(off) } })
			if err := r.Bootstrap(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := r.Status().Ahead; (got - off).Abs() > time.Since(began) {
				t.Errorf("it says %v, want %v", got, off)
			}
		})
	}
}
