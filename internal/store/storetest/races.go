package storetest

import (
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
)

var raceCases = []testCase{
	{"F08 of logins, refreshes and service tokens that race a cut-off only what began after it lives", func(s *suite) {
		s.client("app")
		round := 0
		for _, name := range slices.Sorted(maps.Keys(cutOffs(account.Account{}, "app"))) {
			for range 2 {
				round++
				a := s.account(fmt.Sprint("user", round))
				before := s.login(a, "app")
				made, service := make([]session.Session, 8), make([]time.Time, 8)
				var cut atomic.Bool
				together(17, func(n int) {
					switch over := cut.Load(); {
					case n == 16:
						s.append(cutOffs(a, "app")[name])
						cut.Store(true)
					case n%2 == 0:
						if x, _, err := s.Sessions.Create(s.ctx(), creation(a, "app"), none); err == nil {
							made[n/2] = x
						}
						if out, err := s.Sessions.Redeem(s.ctx(), present(before, 1)); err == nil && over && out.Verdict == session.Issue {
							s.Error("refreshed after the cut-off was acknowledged")
						}
					default:
						if _, _, at, err := s.Clients.Begin(s.ctx(), "app"); err == nil && over {
							service[n/2] = at
						}
					}
				})
				entries := s.tail(0).Entries
				last := entries[len(entries)-1]
				for _, x := range append(made, before) {
					if x.ID != "" {
						s.equal(name+": alive", s.alive(x.ID), !x.AuthTime.Before(last.NotBefore))
					}
				}
				s.equal(name+": before it", s.alive(before.ID), false)
				for _, at := range service {
					if !at.IsZero() && last.Kind != journal.KindSubject {
						s.equal(name+": a service's token after it", at.Before(last.NotBefore), false)
					}
				}
				s.Clock.Advance(time.Minute)
			}
		}
	}},
	{"F08 refreshes and logins that race a new password, a disable or a deletion leave no live session", func(s *suite) {
		s.client("app")
		changes := map[string]func(a account.Account, j journal.Journal) error{
			"password": func(a account.Account, j journal.Journal) error {
				return s.Accounts.SetPassword(s.ctx(), a.ID, a.Version, "$new", j)
			},
			"disable": func(a account.Account, j journal.Journal) error {
				return s.Accounts.SetState(s.ctx(), a.ID, a.Version, account.Disabled, j)
			},
			"delete": func(a account.Account, j journal.Journal) error {
				return s.Accounts.Delete(s.ctx(), a.ID, a.Version, j)
			},
		}
		for name, change := range changes {
			for i := range 3 {
				a := s.account(fmt.Sprint(name, i))
				x := s.login(a, "app")
				var over atomic.Bool
				together(13, func(n int) {
					switch acknowledged := over.Load(); {
					case n == 12:
						if err := change(a, journal.Journal{Ends: []journal.End{{Account: a.ID, Reason: journal.EndedByOperator}}}); err != nil {
							s.Error(name, err)
						}
						over.Store(true)
					case n%2 == 0:
						_, _, err := s.Sessions.Create(s.ctx(), creation(a, "app"), none)
						if err == nil && acknowledged {
							s.Error(name, "a login that had read the account before was let in after")
						}
					default:
						out, err := s.Sessions.Redeem(s.ctx(), present(x, 1))
						if err == nil && acknowledged && out.Verdict == session.Issue {
							s.Error(name, "refreshed after the change was acknowledged")
						}
					}
				})
				live, err := s.Sessions.List(s.ctx(), a.ID, session.Cursor{}, 10)
				s.ok(err)
				s.equal(name+": live", len(live), 0)
				s.equal(name+": refresh", s.redeem(present(x, 2)).Verdict, session.Invalid)
			}
		}
	}},
}

func (s *suite) append(j journal.Journal) {
	s.Helper()
	if err := s.Revocations.Append(s.ctx(), j); err != nil {
		s.Error(err)
	}
}
