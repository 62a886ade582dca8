package storetest

import (
	"fmt"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/session"
)

// cutOffs are the three ways to end everything of somebody, as an End and as a Revocation.
func cutOffs(a account.Account, c ids.Client) map[string]journal.Journal {
	reason := journal.EndedByOperator
	return map[string]journal.Journal{
		"end of an account":     {Ends: []journal.End{{Account: a.ID, Reason: reason}}},
		"end of a client":       {Ends: []journal.End{{Client: c, Reason: reason}}},
		"end of everything":     {Ends: []journal.End{{All: true, Reason: reason}}},
		"cut-off of an account": {Revokes: []journal.Revocation{{Kind: journal.KindSubject, ID: string(a.ID)}}},
		"cut-off of a client":   {Revokes: []journal.Revocation{{Kind: journal.KindClient, ID: string(c)}}},
		"cut-off of everything": {Revokes: []journal.Revocation{{Kind: journal.KindAll}}},
	}
}

var cutOffCases = []testCase{
	{"what began before is dead and a login in the same second lives", func(s *suite) {
		s.client("other")
		bystander := s.login(s.account("grace"), "other")
		i := 0
		for name, j := range cutOffs(s.account("ada"), "app") {
			if i++; i == 1 {
				s.client("app")
			}
			a, err := s.Accounts.ByUsername(s.ctx(), "ada")
			s.ok(err)
			x := s.login(a, "app")
			s.ok(s.Revocations.Append(s.ctx(), j))
			y := s.login(a, "app")
			entries := s.tail(0).Entries
			cut := entries[len(entries)-1]
			s.equal(name+": alive before", s.alive(x.ID), false)
			s.equal(name+": refresh before", s.redeem(present(x, 1)).Verdict, session.Invalid)
			s.equal(name+": token before", x.AuthTime.Before(cut.NotBefore), true)
			s.equal(name+": alive after", s.alive(y.ID), true)
			s.equal(name+": refresh after", s.redeem(present(y, 1)).Verdict, session.Issue)
			s.equal(name+": token after", y.AuthTime.Before(cut.NotBefore), false)
			s.equal(name+": whole second", cut.NotBefore, cut.NotBefore.Truncate(time.Second))
			s.equal(name+": expiry", cut.ExpiresAt, s.Clock.Now().Add(journal.RevocationTTL))
			_, now, authTime, err := s.Clients.Begin(s.ctx(), "app")
			s.ok(err)
			s.equal(name+": now", now, s.Clock.Now())
			if cut.Kind != journal.KindSubject {
				s.equal(name+": service token after", authTime.Before(cut.NotBefore), false)
			}
			s.Clock.Advance(time.Minute)
		}
		s.equal("a bystander after the end of everything", s.alive(bystander.ID), false)
	}},
	{"it stands at the next whole second and one more", func(s *suite) {
		a := s.account("ada")
		at := func(want time.Time) {
			s.Helper()
			s.end(journal.End{Account: a.ID})
			s.equal("not before", s.readAccount(a.ID).NotBefore, want)
		}
		whole := s.Clock.Now().Truncate(time.Second)
		at(whole.Add(2 * time.Second)) // from .25
		s.Clock.Advance(750 * time.Millisecond)
		at(whole.Add(2 * time.Second)) // from 1.0
		s.Clock.Advance(time.Microsecond)
		at(whole.Add(3 * time.Second))
	}},
	{"two within a second kill what began between them", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		for name, j := range cutOffs(a, "app") {
			s.ok(s.Revocations.Append(s.ctx(), j))
			x := s.login(a, "app")
			_, _, service, err := s.Clients.Begin(s.ctx(), "app")
			s.ok(err)
			s.equal(name+": between", s.alive(x.ID), true)
			s.ok(s.Revocations.Append(s.ctx(), j))
			entries := s.tail(0).Entries
			cut := entries[len(entries)-1]
			s.equal(name+": afterwards", s.alive(x.ID), false)
			s.equal(name+": its tokens", x.AuthTime.Before(cut.NotBefore), true)
			if cut.Kind != journal.KindSubject {
				s.equal(name+": a service's token", service.Before(cut.NotBefore), true)
			}
			s.equal(name+": the next login", s.alive(s.login(a, "app").ID), true)
			s.Clock.Advance(time.Minute)
		}
	}},
	{"it outlives its entry in the log", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		s.end(journal.End{Account: a.ID})
		s.Clock.Advance(time.Hour / 2)
		s.equal("entries", len(s.listed()), 0)
		s.equal("kept", s.readAccount(a.ID).NotBefore.After(x.AuthTime), true)
		s.equal("version", s.readAccount(a.ID).Version, a.Version)
	}},
	{"the end of 1,200 sessions commits first and is finished by sweeps", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		made := make([]ids.Session, 1200)
		together(24, func(n int) {
			for i := range 50 {
				c := creation(a, "app")
				c.MaxPerAccount = 0
				x, _, err := s.Sessions.Create(s.ctx(), c, none)
				if err != nil {
					s.Error(err)
				}
				made[n*50+i] = x.ID
			}
		})
		s.equal("ended at once", s.end(journal.End{Account: a.ID, Reason: journal.EndedByDisable}), 1000)
		s.equal("entries", len(s.listed()), 1)
		again := s.login(a, "app")
		open := 0
		for _, id := range made {
			x, alive, _, err := s.Sessions.Get(s.ctx(), id)
			s.ok(err)
			s.equal("alive", alive, false)
			if x.EndedAt.IsZero() {
				open++
			}
		}
		s.equal("left", open, 200)
		for _, want := range []int{150, 50, 0} {
			n, err := s.Sessions.Sweep(s.ctx(), 24*time.Hour, 150)
			s.ok(err)
			s.equal("swept", n, want)
		}
		for i := 0; i < len(made); i += 20 {
			s.equal("reason", s.read(made[i]).EndReason, journal.EndedByDisable)
		}
		s.equal("a login after the cut-off", s.alive(again.ID), true)
	}},
	{"the deletion of an account with 1,200 sessions leaves none behind", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		var last session.Session
		together(24, func(n int) {
			for range 50 {
				c := creation(a, "app")
				c.MaxPerAccount = 0
				x, _, err := s.Sessions.Create(s.ctx(), c, none)
				if err != nil {
					s.Error(err)
				}
				if n == 0 {
					last = x
				}
			}
		})
		s.ok(s.Accounts.Delete(s.ctx(), a.ID, a.Version, journal.Journal{Ends: []journal.End{{Account: a.ID, Reason: journal.EndedByDelete}}}))
		s.equal("refresh", s.redeem(present(last, 1)).Verdict, session.Invalid)
		swept := 0
		for {
			n, err := s.Sessions.Sweep(s.ctx(), 24*time.Hour, 100)
			s.ok(err)
			if n == 0 {
				break
			}
			swept += n
		}
		s.equal("swept", swept, 200)
	}},
}

func key(id string, state keys.State) keys.Key {
	return keys.Key{ID: id, State: state, Public: []byte(`{"kid":"` + id + `"}`), Sealed: []byte("sealed " + id)}
}

func (s *suite) keys() keys.Set {
	s.Helper()
	set, err := s.Keys.Load(s.ctx())
	s.ok(err)
	return set
}

var keyCases = []testCase{
	{"a set is inserted, moved and re-sealed at its version", func(s *suite) {
		empty := s.keys()
		s.equal("keys", len(empty.Keys), 0)
		t0 := s.Clock.Now()
		s.ok(s.Keys.Apply(s.ctx(), empty.Version, keys.Change{Insert: []keys.Key{key("a", keys.Active), key("b", keys.Pending)}}, none))
		first := s.keys()
		s.Clock.Advance(time.Hour)
		t1 := s.Clock.Now()
		s.ok(s.Keys.Apply(s.ctx(), first.Version, keys.Change{
			Move:   []keys.Move{{ID: "b", To: keys.Active}, {ID: "a", To: keys.Retired, GoneIn: time.Minute}},
			Insert: []keys.Key{key("c", keys.Pending)}, Reseal: map[string][]byte{"b": []byte("again")},
		}, none))
		got := s.keys()
		a, b, c := key("a", keys.Retired), key("b", keys.Active), key("c", keys.Pending)
		a.CreatedAt, a.PublishedAt, a.ActivatedAt, a.RetiredAt, a.GoneAt = t0, t0, t0, t1, t1.Add(time.Minute)
		b.CreatedAt, b.PublishedAt, b.ActivatedAt, b.Sealed = t0, t0, t1, []byte("again")
		c.CreatedAt, c.PublishedAt = t1, t1
		want := keys.Set{Version: first.Version + 1, Now: t1, Keys: []keys.Key{a, b, c}}
		if diff := cmp.Diff(want, got); diff != "" {
			s.Fatal(diff)
		}
	}},
	{"what is gone or compromised loses its private half and never comes back", func(s *suite) {
		s.ok(s.Keys.Apply(s.ctx(), s.keys().Version, keys.Change{Insert: []keys.Key{key("a", keys.Active), key("b", keys.Pending)}}, none))
		s.ok(s.Keys.Apply(s.ctx(), s.keys().Version, keys.Change{Move: []keys.Move{{ID: "a", To: keys.Compromised}, {ID: "b", To: keys.Gone}}},
			journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindKey, ID: "a"}}}))
		set := s.keys()
		s.equal("keys", len(set.Keys), 1)
		s.equal("state", set.Keys[0].State, keys.Compromised)
		s.equal("sealed", len(set.Keys[0].Sealed), 0)
		for _, id := range []string{"a", "b", "unknown"} {
			s.refused(s.Keys.Apply(s.ctx(), set.Version, keys.Change{Move: []keys.Move{{ID: id, To: keys.Active}}}, none),
				fault.NotFound, fault.KeyNotFound)
			s.refused(s.Keys.Apply(s.ctx(), set.Version, keys.Change{Reseal: map[string][]byte{id: []byte("x")}}, none),
				fault.NotFound, fault.KeyNotFound)
		}
		s.equal("version", s.keys().Version, set.Version)
		if diff := cmp.Diff([]string{"kid:a"}, s.listed()); diff != "" {
			s.Fatal(diff)
		}
	}},
	{"D14 of many first keys at one version one set is made", func(s *suite) {
		version := s.keys().Version
		won := make([]bool, 20)
		together(20, func(i int) {
			won[i] = s.Keys.Apply(s.ctx(), version, keys.Change{Insert: []keys.Key{
				key(fmt.Sprint("a", i), keys.Active), key(fmt.Sprint("p", i), keys.Pending)}}, none) == nil
		})
		wins := 0
		for _, w := range won {
			if w {
				wins++
			}
		}
		s.equal("wins", wins, 1)
		s.equal("keys", len(s.keys().Keys), 2)
		s.refused(s.Keys.Apply(s.ctx(), version, keys.Change{}, none), fault.Conflict, fault.VersionConflict)
	}},
}

var revocationCases = []testCase{
	{"positions rise, the tail gives what is live after one, and the epoch stays", func(s *suite) {
		empty := s.tail(0)
		s.equal("head", empty.Head, int64(0))
		s.equal("epoch", empty.Epoch == [16]byte{}, false)
		for _, id := range []string{"one", "two", "three"} {
			s.ok(s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: id}}}))
		}
		all := s.tail(0)
		s.equal("entries", len(all.Entries), 3)
		s.equal("head", all.Head, all.Entries[2].Position)
		s.equal("now", all.Now, s.Clock.Now())
		s.equal("epoch", all.Epoch, empty.Epoch)
		rest := s.tail(all.Entries[0].Position)
		if diff := cmp.Diff(all.Entries[1:], rest.Entries); diff != "" {
			s.Fatal(diff)
		}
		s.equal("at the head", len(s.tail(all.Head).Entries), 0)
	}},
	{"entries expire after 17 minutes, a key's never, and the newest row stays", func(s *suite) {
		append1 := func(kind journal.Kind, id string) {
			s.Helper()
			s.ok(s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{{Kind: kind, ID: id}}}))
		}
		append1(journal.KindKey, "k")
		append1(journal.KindToken, "one")
		append1(journal.KindToken, "two")
		head := s.tail(0).Head
		s.Clock.Advance(journal.RevocationTTL - time.Microsecond)
		s.equal("live", len(s.listed()), 3)
		n, err := s.Revocations.Sweep(s.ctx(), 100)
		s.ok(err)
		s.equal("swept early", n, 0)
		s.Clock.Advance(time.Microsecond)
		if diff := cmp.Diff([]string{"kid:k"}, s.listed()); diff != "" {
			s.Fatal(diff)
		}
		n, err = s.Revocations.Sweep(s.ctx(), 100)
		s.ok(err)
		s.equal("swept", n, 1)
		s.equal("head", s.tail(0).Head, head)
		append1(journal.KindToken, "three")
		s.equal("next position", s.tail(0).Head > head, true)
	}},
	{"a key's entry goes some time after the key", func(s *suite) {
		s.ok(s.Keys.Apply(s.ctx(), s.keys().Version, keys.Change{Insert: []keys.Key{key("a", keys.Pending)}}, none))
		s.ok(s.Keys.Apply(s.ctx(), s.keys().Version, keys.Change{Move: []keys.Move{{ID: "a", To: keys.Gone}}}, journal.Journal{Revokes: []journal.Revocation{
			{Kind: journal.KindKey, ID: "a"}, {Kind: journal.KindKey, ID: "b"}, {Kind: journal.KindToken, ID: "t"}}}))
		n, err := s.Revocations.Sweep(s.ctx(), 100)
		s.ok(err)
		s.equal("swept", n, 0)
		s.Clock.Advance(journal.RevocationTTL)
		n, err = s.Revocations.Sweep(s.ctx(), 100)
		s.ok(err)
		s.equal("swept", n, 1)
		if diff := cmp.Diff([]string{"kid:b"}, s.listed()); diff != "" {
			s.Fatal(diff)
		}
	}},
	{"changed never misses a change", func(s *suite) {
		changed := func() bool {
			s.Helper()
			v, err := s.Revocations.Changed(s.ctx())
			s.ok(err)
			return v
		}
		s.equal("at first", changed(), true)
		for i := range 20 {
			s.ok(s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: fmt.Sprint("t", i)}}}))
			s.equal("after a change", changed(), true)
			if !s.Shared {
				s.equal("after none", changed(), false)
			}
		}
		s.account("ada")
		s.equal("after another change", changed(), true)
	}},
	{"entries of concurrent changes are all delivered, in order, to a tail that follows", func(s *suite) {
		seen := map[string]bool{}
		var position int64
		read := func() {
			p, err := s.Revocations.Tail(s.ctx(), position)
			if err != nil {
				s.Error(err)
				return
			}
			for _, e := range p.Entries {
				if e.Position <= position {
					s.Error("out of order")
				}
				position = e.Position
				seen[e.ID] = true
			}
			position = max(position, p.Head)
		}
		together(9, func(n int) {
			for i := range 25 {
				if n == 8 {
					read()
					continue
				}
				if err := s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{
					{Kind: journal.KindToken, ID: fmt.Sprint(n, "-", i)}}}); err != nil {
					s.Error(err)
				}
			}
		})
		read()
		s.equal("seen", len(seen), 200)
	}},
}

var auditCases = []testCase{
	{"records are listed newest first, by filter and page", func(s *suite) {
		var all []journal.Record
		for i := range 5 {
			r := journal.Record{Event: fmt.Sprint("event", i%2), Outcome: "ok", Reason: "why", Actor: "operator:0", Subject: fmt.Sprint("subject", i%3),
				Client: "app", Session: "sid", IP: "192.0.2.1", UserAgent: "agent", RequestID: fmt.Sprint("r", i)}
			all = append(all, r)
			s.ok(s.Revocations.Append(s.ctx(), journal.Journal{Audit: []journal.Record{r}}))
			s.Clock.Advance(time.Second)
		}
		got := func(f audit.Filter) string {
			s.Helper()
			names := ""
			for _, r := range s.records(f) {
				names += r.RequestID
			}
			return names
		}
		s.equal("all", got(audit.Filter{}), "r4r3r2r1r0")
		s.equal("event", got(audit.Filter{Event: "event0"}), "r4r2r0")
		s.equal("subject", got(audit.Filter{Subjects: []string{"subject1"}}), "r4r1")
		s.equal("subjects", got(audit.Filter{Subjects: []string{"subject1", "subject2", "none"}}), "r4r2r1")
		s.equal("since", got(audit.Filter{Since: s.Clock.Now().Add(-2 * time.Second)}), "r4r3")
		s.equal("both", got(audit.Filter{Event: "event1", Subjects: []string{"subject0"}}), "r3")
		page, err := s.Audit.List(s.ctx(), audit.Filter{}, s.records(audit.Filter{})[1].ID, 2)
		s.ok(err)
		s.equal("page", page[0].RequestID+page[1].RequestID, "r2r1")
		if diff := cmp.Diff(all[2], page[0].Record); diff != "" {
			s.Fatal(diff)
		}
		s.equal("time", page[0].Time, s.Clock.Now().Add(-3*time.Second))
		n, err := s.Audit.Prune(s.ctx(), 3*time.Second, 1)
		s.ok(err)
		s.equal("pruned", n, 1)
		n, err = s.Audit.Prune(s.ctx(), 3*time.Second, 10)
		s.ok(err)
		s.equal("pruned", n, 1)
		s.equal("left", got(audit.Filter{}), "r4r3r2")
	}},
}
