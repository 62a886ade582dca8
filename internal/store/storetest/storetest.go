// Package storetest is the one conformance suite that every store passes: what the contracts in the noun packages say
// in prose, as tests. It knows no SQL.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
)

// Stores is a fresh, empty store under test.
type Stores struct {
	Accounts    account.Store
	Clients     client.Store
	Sessions    session.Store
	Keys        keys.Store
	Revocations revocation.Store
	Audit       audit.Store
	Instances   instance.Store
	Clock       *Clock // what the store was opened with
	// Shared says that other tests' changes may make Changed say true.
	Shared bool
}

// Clock is a clock that a test sets.
type Clock struct {
	mu  sync.Mutex
	now time.Time
}

// NewClock stands at a time with a fraction of a second, in whole microseconds.
func NewClock() *Clock {
	return &Clock{now: time.Date(2026, 3, 1, 12, 0, 0, 250_000_000, time.UTC)}
}

// Now gives the time.
func (c *Clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// Advance moves the clock.
func (c *Clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// Run runs the whole suite, or only some groups of it. open gives a new empty store for each test and closes it with the test.
func Run(t *testing.T, open func(*testing.T) Stores, only ...string) {
	for _, group := range []struct {
		name  string
		cases []testCase
	}{
		{"accounts", accountCases},
		{"clients", clientCases},
		{"sessions", sessionCases},
		{"redeem", redeemCases},
		{"schedules", scheduleCases},
		{"cut-offs", cutOffCases},
		{"races", raceCases},
		{"keys", keyCases},
		{"revocations", revocationCases},
		{"reappend", reappendCases},
		{"audit", auditCases},
		{"journals", journalCases},
		{"text", textCases},
		{"instances", instanceCases},
	} {
		if len(only) > 0 && !slices.Contains(only, group.name) {
			continue
		}
		for _, c := range group.cases {
			t.Run(group.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				c.run(&suite{T: t, Stores: open(t)})
			})
		}
	}
}

type testCase struct {
	name string
	run  func(*suite)
}

// suite is one test's store with the few words that the tests are written in.
type suite struct {
	*testing.T
	Stores
}

var none journal.Journal

func (s *suite) ctx() context.Context { return s.Context() }

// ok fails the test on an error.
func (s *suite) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// refused fails the test unless err is a fault of that kind and reason.
func (s *suite) refused(err error, kind fault.Kind, reason fault.Reason) {
	s.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != kind || f.Reason != reason {
		s.Fatalf("got %v, want %s", err, reason)
	}
}

func (s *suite) equal(what string, got, want any) {
	s.Helper()
	if got != want {
		s.Fatalf("%s: got %v, want %v", what, got, want)
	}
}

func (s *suite) account(name string) account.Account {
	s.Helper()
	a := account.Account{ID: ids.New[ids.Account](), Username: name, PasswordHash: "$argon2id$" + name, State: account.Active}
	s.ok(s.Accounts.Create(s.ctx(), a, none))
	return s.readAccount(a.ID)
}

func (s *suite) readAccount(id ids.Account) account.Account {
	s.Helper()
	a, err := s.Accounts.Get(s.ctx(), id)
	s.ok(err)
	return a
}

func (s *suite) client(id ids.Client) client.Client {
	s.Helper()
	s.ok(s.Clients.Create(s.ctx(), client.Client{
		ID: id, Name: "client " + string(id), Kind: client.Public, Audiences: []string{"https://api.example"},
		DefaultAudiences: []string{"https://api.example"}, Scopes: []string{"read", "write"}, DefaultScopes: []string{"read"},
		AccessTTL: 5 * time.Minute, SessionIdleTTL: time.Hour, SessionTTL: 24 * time.Hour, ReuseWindow: 30 * time.Second,
	}, none))
	c, err := s.Clients.Get(s.ctx(), id)
	s.ok(err)
	return c
}

// device is a sender that the number names.
func device(n byte) session.Device {
	return session.Device{Network: [8]byte{n}, UserAgent: [8]byte{n, 1}}
}

func creation(a account.Account, c ids.Client) session.Create {
	id := ids.New[ids.Session]()
	return session.Create{
		Session: session.Session{
			ID: id, Account: a.ID, Client: c, SecretHash: ids.HashSecret("secret of " + string(id)), KeyID: 7,
			Rotation: session.Rotation{Device: device(1)}, IdleTTL: time.Hour, Scope: "read write",
			Audiences: []string{"https://api.example", "https://two.example"}, AMR: []string{"pwd"}, DeviceName: "a telephone",
			IP: "192.0.2.1", UserAgent: "agent/1",
		},
		TTL: 24 * time.Hour, AccountVersion: a.Version, MaxPerAccount: 100,
	}
}

func (s *suite) login(a account.Account, c ids.Client) session.Session {
	s.Helper()
	made, _, err := s.Sessions.Create(s.ctx(), creation(a, c), none)
	s.ok(err)
	return made
}

// present is the redemption of one generation from device 1.
func present(x session.Session, generation uint32) session.Redeem {
	return session.Redeem{Session: x.ID, SecretHash: x.SecretHash, Generation: generation, Client: x.Client, Device: device(1),
		IP: "192.0.2.9", UserAgent: "agent/2", Window: 30 * time.Second}
}

func (s *suite) redeem(r session.Redeem) session.Redeemed {
	s.Helper()
	out, err := s.Sessions.Redeem(s.ctx(), r)
	s.ok(err)
	return out
}

func (s *suite) alive(id ids.Session) bool {
	s.Helper()
	_, alive, _, err := s.Sessions.Get(s.ctx(), id)
	s.ok(err)
	return alive
}

func (s *suite) read(id ids.Session) session.Session {
	s.Helper()
	x, _, _, err := s.Sessions.Get(s.ctx(), id)
	s.ok(err)
	return x
}

func (s *suite) end(e journal.End) int {
	s.Helper()
	if e.Reason == "" {
		e.Reason = journal.EndedByRevoke
	}
	n, err := s.Sessions.End(s.ctx(), "", journal.Journal{Ends: []journal.End{e}})
	s.ok(err)
	return n
}

func (s *suite) tail(after int64) revocation.Page {
	s.Helper()
	p, err := s.Revocations.Tail(s.ctx(), after)
	s.ok(err)
	return p
}

// listed gives the live entries as "kind:id".
func (s *suite) listed() []string {
	s.Helper()
	var all []string
	for _, e := range s.tail(0).Entries {
		all = append(all, fmt.Sprintf("%s:%s", e.Kind, e.ID))
	}
	return all
}

func (s *suite) records(f audit.Filter) []audit.Record {
	s.Helper()
	all, err := s.Audit.List(s.ctx(), f, 0, 1000)
	s.ok(err)
	return all
}

// together calls f n times at once and waits for all.
func together(n int, f func(i int)) {
	var ready, done sync.WaitGroup
	start := make(chan struct{})
	for i := range n {
		ready.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			ready.Done()
			<-start
			f(i)
		}()
	}
	ready.Wait()
	close(start)
	done.Wait()
}
