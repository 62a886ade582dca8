package storetest

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

var accountCases = []testCase{
	{"what is created is read by id and by name", func(s *suite) {
		a := s.account("ada")
		want := account.Account{ID: a.ID, Username: "ada", PasswordHash: "$argon2id$ada", State: account.Active, Version: 1,
			CreatedAt: s.Clock.Now(), UpdatedAt: s.Clock.Now()}
		byName, err := s.Accounts.ByUsername(s.ctx(), "ada")
		s.ok(err)
		if diff := cmp.Diff([]account.Account{want, want}, []account.Account{a, byName}); diff != "" {
			s.Fatal(diff)
		}
	}},
	{"an unknown account is not found by any method", func(s *suite) {
		id := ids.New[ids.Account]()
		_, err := s.Accounts.Get(s.ctx(), id)
		s.refused(err, fault.NotFound, fault.AccountNotFound)
		_, err = s.Accounts.ByUsername(s.ctx(), "nobody")
		s.refused(err, fault.NotFound, fault.AccountNotFound)
		s.refused(s.Accounts.SetState(s.ctx(), id, 1, account.Disabled, none), fault.NotFound, fault.AccountNotFound)
		s.refused(s.Accounts.SetPassword(s.ctx(), id, 1, "x", none), fault.NotFound, fault.AccountNotFound)
		s.refused(s.Accounts.Delete(s.ctx(), id, 1, none), fault.NotFound, fault.AccountNotFound)
	}},
	{"D21 of 50 creations of one name at once one succeeds", func(s *suite) {
		var made, taken atomic.Int32
		together(50, func(int) {
			err := s.Accounts.Create(s.ctx(), account.Account{ID: ids.New[ids.Account](), Username: "ada", State: account.Active}, none)
			switch {
			case err == nil:
				made.Add(1)
			case fault.From(err).Kind == fault.Exists && fault.From(err).Reason == fault.UsernameTaken:
				taken.Add(1)
			}
		})
		s.equal("made", made.Load(), int32(1))
		s.equal("taken", taken.Load(), int32(49))
		all, err := s.Accounts.List(s.ctx(), "", 10)
		s.ok(err)
		s.equal("accounts", len(all), 1)
		s.account("grace") // the twin: another name is free
	}},
	{"pages follow the name and skip nothing", func(s *suite) {
		for i := range 7 {
			s.account(fmt.Sprintf("user%d", 6-i))
		}
		var names []string
		for after := ""; ; {
			page, err := s.Accounts.List(s.ctx(), after, 3)
			s.ok(err)
			for _, a := range page {
				names = append(names, a.Username)
			}
			if len(page) < 3 {
				break
			}
			after = page[2].Username
		}
		if diff := cmp.Diff([]string{"user0", "user1", "user2", "user3", "user4", "user5", "user6"}, names); diff != "" {
			s.Fatal(diff)
		}
	}},
	{"a change of state or password raises the version and a stale one conflicts", func(s *suite) {
		a := s.account("ada")
		s.Clock.Advance(time.Second)
		s.ok(s.Accounts.SetState(s.ctx(), a.ID, 1, account.Disabled, none))
		s.refused(s.Accounts.SetState(s.ctx(), a.ID, 1, account.Active, none), fault.Conflict, fault.VersionConflict)
		s.ok(s.Accounts.SetPassword(s.ctx(), a.ID, 2, "$new", none))
		s.refused(s.Accounts.SetPassword(s.ctx(), a.ID, 2, "$newer", none), fault.Conflict, fault.VersionConflict)
		s.refused(s.Accounts.Delete(s.ctx(), a.ID, 2, none), fault.Conflict, fault.VersionConflict)
		got := s.readAccount(a.ID)
		want := a
		want.State, want.PasswordHash, want.Version, want.UpdatedAt = account.Disabled, "$new", 3, s.Clock.Now()
		if diff := cmp.Diff(want, got); diff != "" {
			s.Fatal(diff)
		}
	}},
	{"a rehash replaces only the hash it read and keeps the version", func(s *suite) {
		a := s.account("ada")
		record := journal.Journal{Audit: []journal.Record{{Event: "rehash", Outcome: "ok"}}}
		s.ok(s.Accounts.Rehash(s.ctx(), a.ID, "another", "$lost", record))
		s.equal("hash", s.readAccount(a.ID).PasswordHash, a.PasswordHash)
		s.ok(s.Accounts.Rehash(s.ctx(), a.ID, a.PasswordHash, "$new", record))
		got := s.readAccount(a.ID)
		s.equal("hash", got.PasswordHash, "$new")
		s.equal("version", got.Version, a.Version)
	}},
	{"of 20 changes at one version one wins", func(s *suite) {
		a := s.account("ada")
		var won atomic.Int32
		together(20, func(i int) {
			if s.Accounts.SetPassword(s.ctx(), a.ID, a.Version, fmt.Sprint("$", i), none) == nil {
				won.Add(1)
			}
		})
		s.equal("won", won.Load(), int32(1))
	}},
	{"deletion takes the sessions and leaves the cut-off in the log", func(s *suite) {
		a, other := s.account("ada"), s.account("grace")
		s.client("app")
		x, y := s.login(a, "app"), s.login(other, "app")
		s.ok(s.Accounts.Delete(s.ctx(), a.ID, a.Version, journal.Journal{
			Ends: []journal.End{{Account: a.ID, Reason: journal.EndedByDelete}}}))
		_, _, _, err := s.Sessions.Get(s.ctx(), x.ID)
		s.refused(err, fault.NotFound, fault.SessionNotFound)
		s.equal("the other's session lives", s.alive(y.ID), true)
		entries := s.tail(0).Entries
		s.equal("entries", len(entries), 1)
		s.equal("entry", entries[0].Kind, journal.KindSubject)
		s.equal("kills the session's tokens", x.AuthTime.Before(entries[0].NotBefore), true)
		s.account("ada") // the name is free again
	}},
}

var clientCases = []testCase{
	{"what is created is read again", func(s *suite) {
		want := client.Client{ID: "svc", Name: "A service", Kind: client.Confidential,
			Secrets:   []client.Secret{{Hash: ids.HashSecret("s"), CreatedAt: s.Clock.Now()}},
			Audiences: []string{"a", "b"}, DefaultAudiences: []string{"a"}, Scopes: []string{"x", "y"}, DefaultScopes: []string{"y"},
			AccessTTL: time.Minute, SessionIdleTTL: time.Hour, SessionTTL: 2 * time.Hour, ReuseWindow: 10 * time.Second,
			Version: 1, CreatedAt: s.Clock.Now(), UpdatedAt: s.Clock.Now()}
		given := want
		given.Secrets = []client.Secret{{Hash: ids.HashSecret("s")}}
		s.ok(s.Clients.Create(s.ctx(), given, none))
		got, err := s.Clients.Get(s.ctx(), "svc")
		s.ok(err)
		if diff := cmp.Diff(want, got); diff != "" {
			s.Fatal(diff)
		}
		s.refused(s.Clients.Create(s.ctx(), given, none), fault.Exists, fault.ClientExists)
	}},
	{"an unknown client is not found by any method", func(s *suite) {
		_, err := s.Clients.Get(s.ctx(), "nobody")
		s.refused(err, fault.NotFound, fault.ClientNotFound)
		_, _, _, err = s.Clients.Begin(s.ctx(), "nobody")
		s.refused(err, fault.NotFound, fault.ClientNotFound)
		s.refused(s.Clients.RotateSecret(s.ctx(), "nobody", 1, [32]byte{}, 0, none), fault.NotFound, fault.ClientNotFound)
		s.refused(s.Clients.Delete(s.ctx(), "nobody", 1, none), fault.NotFound, fault.ClientNotFound)
	}},
	{"clients are listed by id", func(s *suite) {
		for _, id := range []ids.Client{"c", "a", "b"} {
			s.client(id)
		}
		page, err := s.Clients.List(s.ctx(), "a", 1)
		s.ok(err)
		s.equal("clients", len(page), 1)
		s.equal("id", page[0].ID, ids.Client("b"))
	}},
	{"a rotation keeps one older secret until the overlap ends", func(s *suite) {
		now := s.Clock.Now()
		s.ok(s.Clients.Create(s.ctx(), client.Client{ID: "svc", Kind: client.Confidential,
			Secrets: []client.Secret{{Hash: [32]byte{1}}}}, none))
		s.ok(s.Clients.RotateSecret(s.ctx(), "svc", 1, [32]byte{2}, time.Hour, none))
		s.refused(s.Clients.RotateSecret(s.ctx(), "svc", 1, [32]byte{9}, time.Hour, none), fault.Conflict, fault.VersionConflict)
		s.ok(s.Clients.RotateSecret(s.ctx(), "svc", 2, [32]byte{3}, time.Minute, none))
		c, err := s.Clients.Get(s.ctx(), "svc")
		s.ok(err)
		want := []client.Secret{{Hash: [32]byte{3}, CreatedAt: now}, {Hash: [32]byte{2}, CreatedAt: now, ExpiresAt: now.Add(time.Minute)}}
		if diff := cmp.Diff(want, c.Secrets); diff != "" {
			s.Fatal(diff)
		}
		s.ok(s.Clients.RotateSecret(s.ctx(), "svc", 3, [32]byte{4}, 0, none))
		c, err = s.Clients.Get(s.ctx(), "svc")
		s.ok(err)
		s.equal("secrets without overlap", len(c.Secrets), 1)
	}},
	{"every change raises the revision, cut-offs included", func(s *suite) {
		last := int64(-1)
		raised := func(what string) {
			s.Helper()
			n, now, err := s.Clients.Revision(s.ctx())
			s.ok(err)
			if n <= last {
				s.Fatalf("%s: revision %d after %d", what, n, last)
			}
			if _, begun, _, err := s.Clients.Begin(s.ctx(), "app"); err == nil && now.After(begun) {
				s.Fatalf("%s: the revision is of %v, a read after it of %v", what, now, begun)
			}
			if now.IsZero() {
				s.Fatalf("%s: the revision is of no time", what)
			}
			last = n
		}
		raised("at first")
		s.ok(s.Clients.Create(s.ctx(), client.Client{ID: "svc", Kind: client.Confidential}, none))
		raised("create")
		s.ok(s.Clients.RotateSecret(s.ctx(), "svc", 1, [32]byte{2}, 0, none))
		raised("rotate")
		s.ok(s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindClient, ID: "svc"}}}))
		raised("cut-off")
		s.end(journal.End{All: true})
		raised("cut-off of everything")
		s.ok(s.Clients.Delete(s.ctx(), "svc", 2, none))
		raised("delete")
	}},
	{"a client id that comes back does not bring its tokens back", func(s *suite) {
		a := s.account("ada")
		c := s.client("app")
		x := s.login(a, "app")
		s.ok(s.Clients.Delete(s.ctx(), "app", c.Version, journal.Journal{
			Ends: []journal.End{{Client: "app", Reason: journal.EndedByClient}}}))
		s.equal("alive without its client", s.alive(x.ID), false)
		s.client("app")
		s.equal("alive with the new client", s.alive(x.ID), false)
		_, _, authTime, err := s.Clients.Begin(s.ctx(), "app")
		s.ok(err)
		s.equal("a new token lives", authTime.Before(s.tail(0).Entries[0].NotBefore), false)
	}},
}
