package service_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/service"
)

// verdicts are counters of all replicas that say what a test wants.
type verdicts struct {
	wait   atomic.Int64 // of the account's name
	away   atomic.Bool
	failed atomic.Int64
}

func (v *verdicts) Settle(_ context.Context, counts []limit.Count, o limit.Outcome) ([]time.Duration, error) {
	if v.away.Load() {
		return nil, errors.New("connection refused")
	}
	waits := make([]time.Duration, len(counts))
	waits[0] = time.Duration(v.wait.Load())
	if waits[0] == 0 && o == limit.Failed {
		v.failed.Add(1)
	}
	return waits, nil
}

// guesses are a login and a change of the password of ada, by a password.
func (c *core) guesses(t *testing.T, v *verdicts) map[string]func(pass string) error {
	t.Helper()
	hasher := must(password.New(password.Options{Config: password.Config{MemoryKiB: 8, Time: 1, Threads: 1, MemoryBudgetMiB: 1}, Weak: true}))(t)
	throttle := must(limit.New(limit.Options{Shared: v, Now: c.clock.now}))(t)
	o := c.options
	o.Throttle = throttle
	signIn := must(service.NewSignIn(o))(t)
	accounts := must(service.NewAccounts(c.db.Accounts(), c.db.Revocations(), hasher, password.NewPolicy(), throttle, c.tail))(t)
	who := c.as(t, c.login(t, "ada"))
	c.clock.hold() // waits end by the test's word alone
	return map[string]func(string) error{
		"a login": func(pass string) error {
			_, err := signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: pass, ClientID: "app", Caller: phone()})
			return err
		},
		"a change of the password": func(pass string) error {
			return accounts.ChangePassword(t.Context(), who, pass, secretly)
		},
	}
}

func TestL09WhatTheReplicasRefuseTogetherTellsNothingAndWritesNothing(t *testing.T) {
	t.Parallel()
	for _, what := range []string{"a login", "a change of the password"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			c, v := newCore(t), &verdicts{}
			guess := c.guesses(t, v)[what]
			before := c.records(t)
			for _, pass := range []string{secretly, "not the one at all"} {
				v.wait.Store(int64(3 * time.Second))
				err := fault.From(guess(pass))
				if err.Reason != fault.RateLimited || err.RetryAfter != 3*time.Second {
					t.Fatalf("refused with %v, again after %v", err, err.RetryAfter)
				}
				v.wait.Store(0)
				if err := fault.From(guess(pass)); err.Reason != fault.RateLimited {
					t.Fatalf("what is known to be refused is tried: %v", err)
				}
				c.clock.advance(3 * time.Second)
			}
			if n := c.records(t); n != before {
				t.Errorf("%d audit records of attempts that count for nothing", n-before)
			}
			if err := guess("not the one at all"); fault.From(err).Reason != fault.InvalidCredentials || v.failed.Load() != 1 || c.records(t) != before+1 {
				t.Errorf("the twin: a wrong password is answered by %v, %d counted, %d recorded", err, v.failed.Load(), c.records(t)-before)
			}
			if err := guess(secretly); err != nil {
				t.Errorf("the twin: the right one is answered by %v", err)
			}
		})
	}
}

func TestR61D01CountersThatAreAwayStopNoLogin(t *testing.T) {
	t.Parallel()
	c, v := newCore(t), &verdicts{}
	v.away.Store(true)
	login := c.guesses(t, v)["a login"]
	for range 10 {
		if err := login("not the one at all"); fault.From(err).Reason != fault.InvalidCredentials {
			t.Fatal(err)
		}
	}
	if err := login(secretly); fault.From(err).Reason != fault.RateLimited {
		t.Errorf("after ten failures: %v", err)
	}
	c.clock.advance(time.Second)
	if err := login(secretly); err != nil {
		t.Errorf("after the wait: %v", err)
	}
}

// records gives how many audit records there are.
func (c *core) records(t *testing.T) int {
	t.Helper()
	return len(must(c.db.Audit().List(t.Context(), audit.Filter{}, 0, 1000))(t))
}
