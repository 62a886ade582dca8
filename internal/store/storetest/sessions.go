package storetest

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
)

var sessionCases = []testCase{
	{"what a login creates is read again", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		c := creation(a, "app")
		got, now, err := s.Sessions.Create(s.ctx(), c, none)
		s.ok(err)
		at := s.Clock.Now()
		want := c.Session
		want.Rotation = session.Rotation{Head: 1, RedeemedAt: at, Device: device(1)}
		want.AuthTime, want.CreatedAt, want.LastUsedAt = at.Truncate(time.Second), at, at
		want.IdleEndsAt, want.EndsAt = at.Add(time.Hour), at.Add(24*time.Hour)
		if diff := cmp.Diff([]session.Session{want, want}, []session.Session{got, s.read(c.Session.ID)}); diff != "" {
			s.Fatal(diff)
		}
		s.equal("now", now, at)
		s.equal("alive", s.alive(got.ID), true)
		c = creation(a, "app")
		c.TTL = time.Minute
		short, _, err := s.Sessions.Create(s.ctx(), c, none)
		s.ok(err)
		s.equal("an idle end never passes the absolute one", short.IdleEndsAt, at.Add(time.Minute))
	}},
	{"a login is refused unless the account is as it was read and the client exists", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		stale, nobody, noClient := creation(a, "app"), creation(a, "app"), creation(a, "gone")
		stale.AccountVersion--
		nobody.Session.Account = ids.New[ids.Account]()
		refused := func(c session.Create) {
			s.Helper()
			_, _, err := s.Sessions.Create(s.ctx(), c, journal.Journal{Audit: []journal.Record{{Event: "login", Outcome: "ok"}}})
			s.refused(err, fault.Unauthenticated, fault.InvalidCredentials)
		}
		refused(stale)
		refused(nobody)
		refused(noClient)
		s.ok(s.Accounts.SetState(s.ctx(), a.ID, a.Version, account.Disabled, none))
		refused(creation(s.readAccount(a.ID), "app"))
		s.equal("records", len(s.records(audit.Filter{})), 0)
		s.ok(s.Accounts.SetState(s.ctx(), a.ID, a.Version+1, account.Active, none))
		s.login(s.readAccount(a.ID), "app") // the twin
	}},
	{"a login racing a disable leaves no live session", func(s *suite) {
		s.client("app")
		for i := range 10 {
			a := s.account(fmt.Sprint("user", i))
			made := make([]ids.Session, 8)
			together(9, func(n int) {
				if n == 8 {
					_ = s.Accounts.SetState(s.ctx(), a.ID, a.Version, account.Disabled,
						journal.Journal{Ends: []journal.End{{Account: a.ID, Reason: journal.EndedByDisable}}})
					return
				}
				if x, _, err := s.Sessions.Create(s.ctx(), creation(a, "app"), none); err == nil {
					made[n] = x.ID
				}
			})
			s.equal("state", s.readAccount(a.ID).State, account.Disabled)
			for _, id := range made {
				if id != "" {
					s.equal("alive", s.alive(id), false)
				}
			}
			live, err := s.Sessions.List(s.ctx(), a.ID, session.Cursor{}, 10)
			s.ok(err)
			s.equal("live", len(live), 0)
		}
	}},
	{"beyond the cap the oldest are ended and listed as dead", func(s *suite) {
		a, other := s.account("ada"), s.account("grace")
		s.client("app")
		bystander := s.login(other, "app")
		var made []session.Session
		for range 5 {
			s.Clock.Advance(time.Second)
			c := creation(a, "app")
			c.MaxPerAccount = 3
			x, _, err := s.Sessions.Create(s.ctx(), c, none)
			s.ok(err)
			made = append(made, x)
		}
		for i, x := range made {
			got := s.read(x.ID)
			if i < 2 {
				s.equal("reason", got.EndReason, journal.EndedBySessionCap)
			}
			s.equal("alive", s.alive(x.ID), i >= 2)
		}
		if diff := cmp.Diff([]string{"sid:" + string(made[0].ID), "sid:" + string(made[1].ID)}, s.listed()); diff != "" {
			s.Fatal(diff)
		}
		s.equal("another's session lives", s.alive(bystander.ID), true)
	}},
	{"live sessions are listed newest first, page by page", func(s *suite) {
		a, other := s.account("ada"), s.account("grace")
		s.client("app")
		var want []ids.Session
		for i := range 7 {
			if i%2 == 0 { // so that pairs share a time
				s.Clock.Advance(time.Second)
			}
			want = append(want, s.login(a, "app").ID)
		}
		mine := s.login(other, "app")
		s.end(journal.End{Session: want[3]})
		seen := map[ids.Session]bool{}
		var after session.Cursor
		last := session.Cursor{CreatedAt: s.Clock.Now().Add(time.Hour)}
		for {
			page, err := s.Sessions.List(s.ctx(), a.ID, after, 2)
			s.ok(err)
			for _, x := range page {
				if x.CreatedAt.After(last.CreatedAt) || x.CreatedAt.Equal(last.CreatedAt) && x.ID >= last.ID {
					s.Fatal("out of order")
				}
				seen[x.ID], last = true, session.Cursor{CreatedAt: x.CreatedAt, ID: x.ID}
			}
			if len(page) < 2 {
				break
			}
			after = last
		}
		s.equal("seen", len(seen), 6)
		s.equal("the ended one", seen[want[3]], false)
		s.equal("another's", seen[mine.ID], false)
		everybody, err := s.Sessions.List(s.ctx(), "", session.Cursor{}, 100)
		s.ok(err)
		s.equal("everybody's", len(everybody), 7)
		s.Clock.Advance(time.Hour)
		everybody, err = s.Sessions.List(s.ctx(), "", session.Cursor{}, 100)
		s.ok(err)
		s.equal("once idle", len(everybody), 0)
	}},
	{"an end lists the sid, again while its tokens may live, and not afterwards", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		s.equal("ended", s.end(journal.End{Session: x.ID, Reason: journal.EndedByLogout}), 1)
		got := s.read(x.ID)
		s.equal("ended at", got.EndedAt, s.Clock.Now())
		s.equal("reason", got.EndReason, journal.EndedByLogout)
		s.equal("alive", s.alive(x.ID), false)
		entry := s.tail(0).Entries[0]
		s.equal("expiry", entry.ExpiresAt, s.Clock.Now().Add(journal.RevocationTTL))
		s.Clock.Advance(journal.RevocationTTL - time.Second)
		s.equal("ended again", s.end(journal.End{Session: x.ID}), 0)
		s.equal("first reason", s.read(x.ID).EndReason, journal.EndedByLogout)
		s.equal("entries", len(s.tail(0).Entries), 2)
		head := s.tail(0).Head
		s.Clock.Advance(time.Second)
		s.end(journal.End{Session: x.ID})
		s.end(journal.End{Session: ids.New[ids.Session]()})
		s.equal("head", s.tail(0).Head, head)
	}},
	{"one session of the account may be spared", func(s *suite) {
		a, other := s.account("ada"), s.account("grace")
		s.client("app")
		x, y, z, theirs := s.login(a, "app"), s.login(a, "app"), s.login(a, "app"), s.login(other, "app")
		s.equal("ended", s.end(journal.End{Account: a.ID, Except: y.ID}), 2)
		for id, want := range map[ids.Session]bool{x.ID: false, y.ID: true, z.ID: false, theirs.ID: true} {
			s.equal("alive", s.alive(id), want)
		}
		s.equal("entries", len(s.listed()), 2)
		s.equal("no cut-off", s.readAccount(a.ID).NotBefore.IsZero(), true)
	}},
	{"a person ends only their own session", func(s *suite) {
		a, other := s.account("ada"), s.account("grace")
		s.client("app")
		x := s.login(a, "app")
		j := journal.Journal{Ends: []journal.End{{Session: x.ID, Reason: journal.EndedByRevoke}},
			Audit: []journal.Record{{Event: "session.revoke", Outcome: "ok"}}}
		_, err := s.Sessions.End(s.ctx(), other.ID, j)
		s.refused(err, fault.NotFound, fault.SessionNotFound)
		s.equal("alive", s.alive(x.ID), true)
		s.equal("records", len(s.records(audit.Filter{})), 0)
		n, err := s.Sessions.End(s.ctx(), a.ID, j)
		s.ok(err)
		s.equal("ended", n, 1)
		j.Ends[0].Session = ids.New[ids.Session]()
		_, err = s.Sessions.End(s.ctx(), a.ID, j)
		s.refused(err, fault.NotFound, fault.SessionNotFound)
	}},
	{"F08 an end racing refreshes wins for good", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		for range 10 {
			x := s.login(a, "app")
			var ended atomic.Bool
			together(9, func(n int) {
				if n == 8 {
					s.end(journal.End{Session: x.ID})
					ended.Store(true)
					return
				}
				over := ended.Load()
				if out, err := s.Sessions.Redeem(s.ctx(), present(x, 1)); err == nil && over && out.Verdict == session.Issue {
					s.Error("refreshed after the end was acknowledged")
				}
			})
			s.equal("verdict", s.redeem(present(x, 2)).Verdict, session.Invalid)
		}
	}},
	{"F14 a session lives to just before its idle and absolute ends", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		s.Clock.Advance(time.Hour - time.Microsecond)
		s.equal("alive", s.alive(x.ID), true)
		s.Clock.Advance(time.Microsecond)
		s.equal("alive", s.alive(x.ID), false)
		s.equal("verdict", s.redeem(present(x, 1)).Verdict, session.Expired)
		y := s.login(a, "app")
		out := session.Redeemed{}
		for g := uint32(1); g <= 24; g++ {
			s.Clock.Advance(time.Hour - time.Second)
			out = s.redeem(present(y, g))
			s.equal("verdict", out.Verdict, session.Issue)
		}
		s.equal("absolute end", out.Session.EndsAt, y.EndsAt)
		s.equal("idle end", out.Session.IdleEndsAt, y.EndsAt)
		s.Clock.Advance(y.EndsAt.Sub(s.Clock.Now()))
		s.equal("verdict", s.redeem(present(y, 25)).Verdict, session.Expired)
	}},
	{"a sweep deletes what ended or expired long ago and nothing else", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		ended, idle, used := s.login(a, "app"), s.login(a, "app"), s.login(a, "app")
		s.end(journal.End{Session: ended.ID})
		s.Clock.Advance(30 * time.Minute)
		s.redeem(present(used, 1)) // idle until 1 h 30 min
		s.Clock.Advance(31 * time.Minute)
		sweep := func() {
			s.Helper()
			for {
				n, err := s.Sessions.Sweep(s.ctx(), 20*time.Minute, 1)
				s.ok(err)
				if n == 0 {
					return
				}
				s.equal("at a time", n, 1)
			}
		}
		kept := func(id ids.Session) bool {
			_, _, _, err := s.Sessions.Get(s.ctx(), id)
			return err == nil
		}
		sweep() // at 1 h 1 min
		s.equal("ended", kept(ended.ID), false)
		s.equal("idle for a minute", kept(idle.ID), true)
		s.Clock.Advance(20 * time.Minute)
		sweep() // at 1 h 21 min
		s.equal("idle for 21 minutes", kept(idle.ID), false)
		s.equal("used meanwhile", kept(used.ID) && s.alive(used.ID), true)
		s.Clock.Advance(30 * time.Minute)
		sweep()
		s.equal("idle in the end", kept(used.ID), false)
	}},
}

var redeemCases = []testCase{
	{"the head is redeemed, again answered, and then dead", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		s.Clock.Advance(time.Minute)
		out := s.redeem(present(x, 1))
		now := s.Clock.Now()
		want := x
		want.Rotation = session.Rotation{Base: 1, Head: 2, Low: 1, RedeemedAt: now, Device: device(1)}
		want.LastUsedAt, want.IdleEndsAt, want.IP, want.UserAgent = now, now.Add(time.Hour), "192.0.2.9", "agent/2"
		if diff := cmp.Diff(session.Redeemed{Verdict: session.Issue, Session: want, Now: now, Rotated: true}, out); diff != "" {
			s.Fatal(diff)
		}
		if diff := cmp.Diff(want, s.read(x.ID)); diff != "" {
			s.Fatal(diff)
		}
		again := s.redeem(present(x, 1))
		s.equal("rotated", again.Rotated, false)
		s.equal("head", again.Session.Head, uint32(2))
		s.equal("next", s.redeem(present(x, 2)).Session.Head, uint32(3))
	}},
	{"F05 100 calls with one token make one rotation and get one head", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		var rotated, issued atomic.Int32
		together(100, func(int) {
			out, err := s.Sessions.Redeem(s.ctx(), present(x, 1))
			if err == nil && out.Verdict == session.Issue && out.Session.Head == 2 {
				issued.Add(1)
			}
			if out.Rotated {
				rotated.Add(1)
			}
		})
		s.equal("issued", issued.Load(), int32(100))
		s.equal("rotated", rotated.Load(), int32(1))
	}},
	{"F10 theft is answered with the end committed", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		s.redeem(present(x, 1))
		s.Clock.Advance(time.Minute)
		s.redeem(present(x, 2))
		s.Clock.Advance(time.Minute)
		stolen := present(x, 1)
		stolen.RequestID = "request 1"
		out := s.redeem(stolen)
		s.equal("verdict", out.Verdict, session.Reused)
		s.equal("ended at", out.Session.EndedAt, s.Clock.Now())
		s.equal("reason", s.read(x.ID).EndReason, journal.EndedByReuse)
		if diff := cmp.Diff([]string{"sid:" + string(x.ID)}, s.listed()); diff != "" {
			s.Fatal(diff)
		}
		records := s.records(audit.Filter{Subjects: []string{string(a.ID)}})
		s.equal("records", len(records), 1)
		s.equal("request", records[0].RequestID, "request 1")
		s.equal("the honest head", s.redeem(present(x, 3)).Verdict, session.Invalid)
	}},
	{"what does not fit changes nothing", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		s.client("other")
		x := s.login(a, "app")
		for want, change := range map[session.Verdict]func(*session.Redeem){
			session.Invalid:       func(r *session.Redeem) { r.SecretHash[0]++ },
			session.ForeignClient: func(r *session.Redeem) { r.Client = "other" },
		} {
			r := present(x, 1)
			change(&r)
			s.equal("verdict", s.redeem(r).Verdict, want)
		}
		r := present(x, 1)
		r.Session = ids.New[ids.Session]()
		s.equal("unknown", s.redeem(r).Verdict, session.Invalid)
		if diff := cmp.Diff(x, s.read(x.ID)); diff != "" {
			s.Fatal(diff)
		}
		s.equal("listed", len(s.listed()), 0)
		s.equal("the twin", s.redeem(present(x, 1)).Verdict, session.Issue)
	}},
	{"past its deadline a decision writes nothing, a theft neither", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		s.redeem(present(x, 1))
		s.Clock.Advance(time.Minute)
		s.redeem(present(x, 2))
		before := s.read(x.ID)
		for _, g := range []uint32{1, 2, 3} {
			late := present(x, g)
			late.Deadline = s.Clock.Now().Add(-time.Microsecond)
			_, err := s.Sessions.Redeem(s.ctx(), late)
			s.refused(err, fault.Unavailable, fault.StoreUnavailable)
		}
		if diff := cmp.Diff(before, s.read(x.ID)); diff != "" {
			s.Fatal(diff)
		}
		intime := present(x, 3)
		intime.Deadline = s.Clock.Now()
		s.equal("the twin", s.redeem(intime).Verdict, session.Issue)
	}},
	{"F12 a disabled or deleted owner and a deleted client stop refreshes", func(s *suite) {
		a, b, d := s.account("ada"), s.account("grace"), s.account("edsger")
		s.client("app")
		c := s.client("other")
		x, y, z := s.login(a, "app"), s.login(b, "app"), s.login(d, "other")
		for _, twin := range []session.Session{x, y, z} {
			s.equal("the twin", s.redeem(present(twin, 1)).Verdict, session.Issue)
		}
		s.ok(s.Accounts.SetState(s.ctx(), a.ID, 1, account.Disabled, none))
		s.ok(s.Accounts.Delete(s.ctx(), b.ID, 1, none))
		s.ok(s.Clients.Delete(s.ctx(), "other", c.Version, none))
		for _, g := range []uint32{1, 2} {
			for _, dead := range []session.Session{x, y, z} {
				s.equal("verdict", s.redeem(present(dead, g)).Verdict, session.Invalid)
			}
		}
		s.ok(s.Accounts.SetState(s.ctx(), a.ID, 2, account.Active, none))
		s.equal("enabled again", s.redeem(present(x, 2)).Verdict, session.Issue)
	}},
}
