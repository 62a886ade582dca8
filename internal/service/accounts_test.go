package service_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/service"
)

func TestD21R60FiftyCreationsOfOneUsernameMakeOneAccount(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	var made atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			_, err := c.accounts.Create(t.Context(), service.Operator(0), "Grace", "a password of many words")
			switch {
			case err == nil:
				made.Add(1)
			case fault.From(err).Reason != fault.UsernameTaken && fault.From(err).Reason != fault.Overloaded:
				t.Errorf("a creation that lost gives %v", err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("%d accounts were made", made.Load())
	}
	if a, err := c.accounts.ByUsername(t.Context(), "GRACE"); err != nil || a.Username != "grace" {
		t.Errorf("the account is %q, %v", a.Username, err)
	}
}
