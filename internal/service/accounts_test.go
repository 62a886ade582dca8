package service_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
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
	if a, err := c.accounts.Find(t.Context(), "GRACE"); err != nil || a.Username != "grace" {
		t.Errorf("the account is %q, %v", a.Username, err)
	}
}

func TestAnAccountIsFoundByItsIDAndByItsName(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	create := func(name string) string {
		t.Helper()
		a := account.Account{ID: ids.New[ids.Account](), Username: name, PasswordHash: "x", State: account.Active}
		if err := c.db.Accounts().Create(t.Context(), a, journal.Journal{}); err != nil {
			t.Fatal(err)
		}
		return string(a.ID)
	}
	grace := create("grace")
	const lookalike = "aaaaaaaaaaaaaaaaaaaaaa" // a name that is spelt as an id
	other := create(lookalike)
	for who, want := range map[string]string{grace: grace, "grace": grace, "GRACE": grace, lookalike: other, other: other} {
		if a, err := c.accounts.Find(t.Context(), who); err != nil || string(a.ID) != want {
			t.Errorf("%q is %q, %v; want %q", who, a.ID, err, want)
		}
	}
	named := account.Account{ID: "aaaaaaaaaaaaaaaaaaaaAQ", Username: "heidi", PasswordHash: "x", State: account.Active}
	if err := c.db.Accounts().Create(t.Context(), named, journal.Journal{}); err != nil {
		t.Fatal(err)
	}
	create("aaaaaaaaaaaaaaaaaaaaaq") // what its id is as a name
	if a, err := c.accounts.Find(t.Context(), string(named.ID)); err != nil || a.ID != named.ID {
		t.Errorf("an id that is also a name in another case is %q, %v", a.ID, err)
	}
	for _, who := range []string{"nobody", string(ids.New[ids.Account]()), ""} {
		if _, err := c.accounts.Find(t.Context(), who); err == nil {
			t.Errorf("%q is somebody", who)
		}
	}
}
