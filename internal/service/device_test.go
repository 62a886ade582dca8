package service_test

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
)

// from signs in from the n-th network, with what a device holds.
func (c *core) from(t *testing.T, n int, name, pass, device string) (service.Issued, fault.Reason) {
	t.Helper()
	caller := phone()
	caller.IP = netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 1})
	in, err := c.signIn.Login(t.Context(), service.LoginRequest{Username: name, Password: pass, ClientID: "app", DeviceToken: device, Caller: caller})
	if err == nil {
		return in, ""
	}
	return in, fault.From(err).Reason
}

func TestL10AVictimSignsInOnAKnownDeviceWhileOthersGuess(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	in, _ := c.from(t, 0, "ada", secretly, "")
	bobs, _ := c.from(t, 0, "bob", secretly, "")
	if in.DeviceToken == "" || in.DeviceToken == bobs.DeviceToken {
		t.Fatal("a login gives no device token of its own")
	}
	if refreshed := must(c.refresh(t.Context(), in.RefreshToken))(t); refreshed.DeviceToken != "" {
		t.Error("a refresh gives a device token")
	}
	for i := range 1000 {
		c.from(t, i, "ada", "wrong guess", fmt.Sprint("dt1.", i))
	}
	for name, token := range map[string]string{"none": "", "another account's": bobs.DeviceToken, "a refresh token": in.RefreshToken, "one cut short": in.DeviceToken[:20],
		"an old one": must(session.NewRefreshKeys(adminIssuer, testRefreshKeys()))(t).NewDevice("ada", "", c.clock.now().Add(-session.DeviceLife))} {
		if _, why := c.from(t, 1, "ada", secretly, token); why != fault.RateLimited {
			t.Errorf("with %s the victim gets %q", name, why)
		}
	}
	for _, name := range []string{"ada", "ADA"} {
		again, why := c.from(t, 1, name, secretly, in.DeviceToken)
		if why != "" {
			t.Fatalf("on the known device the victim gets %s", why)
		}
		if again.DeviceToken == "" {
			t.Fatal("it gives no token for the next time")
		}
		in = again
	}
	if _, why := c.from(t, 1, "ada", "wrong guess", in.DeviceToken); why != fault.InvalidCredentials {
		t.Errorf("there a wrong password gets %q", why)
	}
	c.clock.advance(session.DeviceLife - time.Hour)
	if err := c.clients.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, why := c.from(t, 1, "ada", secretly, in.DeviceToken); why != "" {
		t.Errorf("months later it gets %s", why)
	}
}

func TestR50AKnownDeviceIsGuessedOnNoFaster(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	in, _ := c.from(t, 0, "ada", secretly, "")
	passed := 0
	for i := range 30 { // whoever stole the token
		if _, why := c.from(t, i, "ada", "wrong guess", in.DeviceToken); why == fault.InvalidCredentials {
			passed++
		}
	}
	if passed != 10 {
		t.Errorf("%d guesses on one device are answered", passed)
	}
	if _, why := c.from(t, 1, "ada", secretly, ""); why != "" {
		t.Errorf("for those, everybody else gets %s", why)
	}
}

func TestR50WhoeverIsSignedInChangesThePasswordWhileOthersGuess(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	who := c.as(t, c.login(t, "ada"))
	for i := range 20 {
		c.from(t, i, "ada", "wrong guess", "")
	}
	if _, why := c.from(t, 1, "ada", secretly, ""); why != fault.RateLimited {
		t.Fatalf("the twin: a login gets %q", why)
	}
	for i := range 10 {
		if err := c.accounts.ChangePassword(t.Context(), who, ids.Secret(), ids.Secret()); fault.From(err).Reason != fault.InvalidCredentials {
			t.Fatalf("wrong password %d: %v", i+1, err)
		}
	}
	if err := c.accounts.ChangePassword(t.Context(), who, secretly, ids.Secret()); fault.From(err).Reason != fault.RateLimited {
		t.Errorf("after ten failures of its own: %v", err)
	}
	c.clock.advance(time.Second)
	if err := c.accounts.ChangePassword(t.Context(), who, secretly, ids.Secret()); err != nil {
		t.Errorf("after the wait: %v", err)
	}
}

// broken panics at every password, as long as it is told to.
type broken struct {
	*password.Hasher
	now atomic.Bool
}

func (b *broken) Verify(ctx context.Context, pass, hash string) (ok, rehash bool, err error) {
	if b.now.Load() {
		panic("broken")
	}
	return b.Hasher.Verify(ctx, pass, hash)
}

func TestR59WhatPanicsIsNoAttemptUnderWayForEver(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	who := c.as(t, c.login(t, "ada"))
	limits := limit.DefaultConfig()
	limits.TotalFailures, limits.NetworkFailures, limits.AccountFailures = 21, 5, 5
	throttle := must(limit.New(limit.Options{Config: limits, Now: c.clock.now}))(t)
	hasher := &broken{Hasher: must(password.New(password.Options{Config: password.Config{MemoryKiB: 8, Time: 1, Threads: 1, MemoryBudgetMiB: 1}, Weak: true}))(t)}
	o := c.options
	o.Throttle, o.Hasher = throttle, hasher
	signIn := must(service.NewSignIn(o))(t)
	accounts := must(service.NewAccounts(c.db.Accounts(), c.db.Revocations(), hasher, password.NewPolicy(), throttle, c.tail))(t)
	c.clock.hold()
	login := func(name string) error {
		_, err := signIn.Login(t.Context(), service.LoginRequest{Username: name, Password: secretly, ClientID: "app", Caller: phone()})
		return err
	}
	change := func() error { return accounts.ChangePassword(t.Context(), who, secretly, ids.Secret()) }
	hasher.now.Store(true)
	for i := range 30 {
		for what, call := range map[string]func() error{"a login": func() error { return login("ada") }, "a change of the password": change} {
			func() {
				defer func() {
					if recover() == nil {
						t.Fatalf("%s, number %d, does not get as far as the password", what, i+1)
					}
				}()
				t.Errorf("%s: %v", what, call())
			}()
		}
	}
	if n := throttle.Len(); n != 0 {
		t.Errorf("%d keys are held of what counts for nothing", n)
	}
	hasher.now.Store(false)
	if err := login("bob"); err != nil {
		t.Errorf("afterwards, somebody else: %v", err)
	}
	if err := change(); err != nil {
		t.Errorf("afterwards, a change of the password: %v", err)
	}
}
