package storetest

import (
	"encoding/hex"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
)

// reappend appends entries that an earlier history had, after the log was read to its end.
func (s *suite) reappend(entries ...revocation.Entry) {
	s.Helper()
	s.reappendAfter(s.tail(0).Head, entries...)
}

// reappendAfter gives how many are appended again.
func (s *suite) reappendAfter(after int64, entries ...revocation.Entry) int {
	s.Helper()
	n, err := s.Revocations.Reappend(s.ctx(), after, entries)
	s.ok(err)
	return n
}

// had is an entry that an earlier history had, made some time ago.
func (s *suite) had(kind journal.Kind, id string, ago time.Duration) revocation.Entry {
	e := revocation.Entry{Kind: kind, ID: id, CommittedAt: s.Clock.Now().Add(-ago)}
	if kind != journal.KindKey {
		e.ExpiresAt = s.Clock.Now().Add(journal.RevocationTTL - ago)
	}
	if kind.CutOff() {
		e.NotBefore = s.Clock.Now().Add(2*time.Second - ago).Truncate(time.Second)
	}
	return e
}

func (s *suite) entries() []revocation.Entry {
	s.Helper()
	all := s.tail(0).Entries
	for i := range all {
		all[i].Position = 0
	}
	return all
}

var reappendCases = []testCase{
	{"an epoch is renewed once, by whoever comes first", func(s *suite) {
		old := s.tail(0).Epoch
		together(8, func(int) {
			if err := s.Revocations.Renew(s.ctx(), old); err != nil {
				s.Error(err)
			}
		})
		renewed := s.tail(0).Epoch
		s.equal("the same", renewed == old, false)
		s.ok(s.Revocations.Renew(s.ctx(), old))
		s.equal("again", s.tail(0).Epoch, renewed)
		said := s.records(audit.Filter{Event: revocation.EventHistory})
		s.equal("records", len(said), 1)
		s.equal("of the epoch before", said[0].Subject, hex.EncodeToString(old[:]))
	}},
	{"a server is settled more than once, and what is there goes on", func(s *suite) {
		for range 2 {
			s.ok(s.Revocations.Settle(s.ctx(), s.tail(0).Server))
			s.account(fmt.Sprint("ada", s.tail(0).Head))
			s.ok(s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: "t"}}}))
		}
	}},
	{"D07 a session that had been revoked ends again, and no other", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x, y := s.login(a, "app"), s.login(a, "app")
		entry := s.had(journal.KindSession, string(x.ID), 5*time.Minute)
		s.reappend(entry, s.had(journal.KindSession, string(ids.New[ids.Session]()), time.Minute))
		s.equal("refresh", s.redeem(present(x, 1)).Verdict, session.Invalid)
		got := s.read(x.ID)
		s.equal("ended", got.EndedAt, s.Clock.Now())
		s.equal("why", got.EndReason, journal.EndedByRevoke)
		s.equal("the twin", s.redeem(present(y, 1)).Verdict, session.Issue)
		s.equal("entries", len(s.listed()), 2)
		if diff := cmp.Diff(entry, s.entries()[0]); diff != "" {
			s.Fatal(diff)
		}
		s.Clock.Advance(12 * time.Minute)
		s.equal("it expires when it did", len(s.listed()), 1)
	}},
	{"D07 cut-offs that had been made stand again, at their time, unless later ones do", func(s *suite) {
		a := s.account("ada")
		for kind, id := range map[journal.Kind]string{journal.KindSubject: string(a.ID), journal.KindClient: "", journal.KindAll: ""} {
			app := ids.Client("app-" + string(kind))
			s.client(app)
			if kind == journal.KindClient {
				id = string(app)
			}
			before := s.login(a, app)
			s.Clock.Advance(time.Minute)
			cut := s.had(kind, id, 30*time.Second)
			after := s.login(a, app)
			s.reappend(cut)
			s.equal(string(kind)+": refresh of what began before", s.redeem(present(before, 1)).Verdict, session.Invalid)
			s.equal(string(kind)+": ended", s.read(before.ID).EndedAt, s.Clock.Now())
			s.equal(string(kind)+": what began after", s.alive(after.ID), true)
			entries := s.entries()
			if diff := cmp.Diff(cut, entries[len(entries)-1]); diff != "" {
				s.Fatal(diff)
			}
			// A lower one changes nothing that is kept.
			s.ok(s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{{Kind: kind, ID: id}}}))
			last := s.entries()
			s.Clock.Advance(time.Minute)
			s.reappend(s.had(kind, id, 10*time.Minute))
			if kind == journal.KindSubject {
				s.equal("kept", s.readAccount(a.ID).NotBefore, last[len(last)-1].NotBefore)
			}
			s.equal(string(kind)+": after a lower one", s.alive(after.ID), false)
			s.equal(string(kind)+": the next login", s.alive(s.login(a, app).ID), true)
		}
	}},
	{"D07 keys that had been revoked are compromised, and another signs", func(s *suite) {
		s.ok(s.Keys.Apply(s.ctx(), s.keys().Version, keys.Change{Insert: []keys.Key{key("old", keys.Retired), key("a", keys.Active), key("b", keys.Pending), key("c", keys.Pending)}}, none))
		version := s.keys().Version
		s.reappend(s.had(journal.KindKey, "a", 0), s.had(journal.KindKey, "b", 0), s.had(journal.KindKey, "unknown", 0))
		states := map[string]keys.State{}
		for _, k := range s.keys().Keys {
			states[k.ID] = k.State
			s.equal(k.ID+" is sealed", len(k.Sealed) > 0, k.State != keys.Compromised)
		}
		if diff := cmp.Diff(map[string]keys.State{"old": keys.Retired, "a": keys.Compromised, "b": keys.Compromised, "c": keys.Active}, states); diff != "" {
			s.Fatal(diff)
		}
		s.equal("version", s.keys().Version, version+1)
		if diff := cmp.Diff([]string{"kid:a", "kid:b", "kid:unknown"}, s.listed()); diff != "" {
			s.Fatal(diff)
		}
		s.reappend(s.had(journal.KindKey, "a", 0))
		s.equal("done again, the version", s.keys().Version, version+1)
	}},
	{"what the log has after the position, as late, is not appended again; nor what has expired", func(s *suite) {
		head := s.tail(0).Head
		x := s.had(journal.KindToken, "x", time.Minute)
		earlier, later := x, x
		earlier.ExpiresAt, later.ExpiresAt = x.ExpiresAt.Add(-time.Second), x.ExpiresAt.Add(time.Second)
		for _, tt := range []struct {
			what string
			e    revocation.Entry
			want int
		}{{"new", x, 1}, {"the same", x, 1}, {"an earlier expiry", earlier, 1}, {"a later expiry", later, 2}, {"the same again", later, 2},
			{"another kind", s.had(journal.KindSession, "x", time.Minute), 3}, {"expired", s.had(journal.KindToken, "y", journal.RevocationTTL), 3},
			{"a cut-off", s.had(journal.KindAll, "", time.Minute), 4}, {"an earlier cut-off", s.had(journal.KindAll, "", 2*time.Minute), 4},
			{"a later cut-off", s.had(journal.KindAll, "", 0), 5}} {
			before := len(s.entries())
			n := s.reappendAfter(head, tt.e)
			s.equal(tt.what, len(s.entries()), tt.want)
			s.equal(tt.what+", counted", n, tt.want-before)
		}
		s.reappend(x)
		s.equal("what the log has before the position", len(s.entries()), 6)
		s.reappendAfter(0)
	}},
	{"a whole part is appended in its order, by several at once, and no more than a part", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		part := []revocation.Entry{}
		for i := range revocation.ReappendSize {
			part = append(part, s.had(journal.KindToken, fmt.Sprint("token-", i), time.Minute))
		}
		part[777] = s.had(journal.KindSession, string(x.ID), time.Minute)
		part[5] = s.had(journal.KindSubject, string(a.ID), time.Minute)
		var counted atomic.Int64
		together(3, func(int) {
			n, err := s.Revocations.Reappend(s.ctx(), 0, part)
			if err != nil {
				s.Error(err)
			}
			counted.Add(int64(n))
		})
		s.equal("counted by all of them", counted.Load(), int64(len(part)))
		said, epoch := s.records(audit.Filter{Event: revocation.EventReappended}), s.tail(0).Epoch
		s.equal("records", len(said), 1) // who comes second appends nothing, and says nothing
		s.equal("how many", said[0].Reason, fmt.Sprintf("%d entries", len(part)))
		s.equal("of the epoch", said[0].Subject, hex.EncodeToString(epoch[:]))
		if diff := cmp.Diff(part, s.entries()); diff != "" {
			s.Fatal(diff)
		}
		s.equal("alive", s.alive(x.ID), false)
		if _, err := s.Revocations.Reappend(s.ctx(), 0, append(part, part[0])); err == nil {
			s.Fatal("more than a part was taken")
		}
	}},
}
