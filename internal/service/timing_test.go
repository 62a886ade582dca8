package service_test

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/test/soak"
)

// slower is how likely a sample of a takes longer than a sample of b: a half where nothing tells the two apart.
func slower(a, b []time.Duration) float64 {
	type sample struct {
		took time.Duration
		ofA  bool
	}
	var all []sample
	for _, d := range a {
		all = append(all, sample{d, true})
	}
	for _, d := range b {
		all = append(all, sample{d, false})
	}
	slices.SortFunc(all, func(x, y sample) int { return cmp.Compare(x.took, y.took) })
	faster, pairs := 0, 0
	for _, s := range all {
		if s.ofA {
			pairs += faster
		} else {
			faster++
		}
	}
	return float64(pairs) / float64(len(a)*len(b))
}

// A measurement, so it runs alone, and in a soak only. Of a thousand samples each, the share has a standard deviation of 0.013.
func TestL01R49TimeDoesNotTellUnknownWrongAndDisabledApart(t *testing.T) {
	if !soak.On() {
		t.Skip("a measurement of time: set AUTHSVC_SOAK=1")
	}
	c := newCore(t)
	o := c.options
	hasher := must(password.New(password.Options{Queue: 10, QueueWait: time.Minute}))(t)
	o.Hasher = hasher
	signIn := must(service.NewSignIn(o))(t)
	for _, name := range []string{"eve", "mallory"} {
		a := account.Account{ID: ids.New[ids.Account](), Username: name, PasswordHash: must(hasher.Hash(t.Context(), secretly))(t), State: account.Active}
		if err := c.db.Accounts().Create(t.Context(), a, journal.Journal{}); err != nil {
			t.Fatal(err)
		}
		if name == "mallory" {
			if err := c.db.Accounts().SetState(t.Context(), a.ID, 1, account.Disabled, journal.Journal{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	kinds := []struct{ name, username, password string }{
		{"an unknown name", "nobody", secretly},
		{"a wrong password", "eve", "wrong horse battery staple"},
		{"a disabled account", "mallory", secretly},
	}
	took := make([][]time.Duration, len(kinds))
	for round := range 1000 {
		for n := range kinds {
			i := (round + n) % len(kinds)              // so that none is always the first
			c.clock.advance(time.Minute + time.Second) // past what the throttle asks for
			began := time.Now()
			_, err := signIn.Login(t.Context(), service.LoginRequest{Username: kinds[i].username, Password: kinds[i].password, ClientID: "app", Caller: phone()})
			took[i] = append(took[i], time.Since(began))
			if reason := fault.From(err).Reason; reason != fault.InvalidCredentials {
				t.Fatalf("%s: %v", kinds[i].name, err)
			}
		}
	}
	for i := range kinds {
		for j := range i {
			words := fmt.Sprintf("%s takes longer than %s in %.3f of the cases", kinds[i].name, kinds[j].name, slower(took[i], took[j]))
			t.Log(words)
			if share := slower(took[i], took[j]); share < 0.44 || share > 0.56 {
				t.Error(words)
			}
		}
	}
	if share := slower([]time.Duration{2, 3}, []time.Duration{1, 2, 1}); share < 0.8 {
		t.Errorf("what takes longer is told apart by %.3f only", share)
	}
}
