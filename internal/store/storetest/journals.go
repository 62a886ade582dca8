package storetest

import (
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/session"
)

// world is everything that a change could have touched.
type world struct {
	Accounts []account.Account
	Clients  []client.Client
	Sessions []session.Session
	Keys     keys.Set
	Log      revocation.Page
	Audit    []audit.Record
	Revision int64
}

func (s *suite) world(watched ...ids.Session) world {
	s.Helper()
	var w world
	var err error
	w.Accounts, err = s.Accounts.List(s.ctx(), "", 100)
	s.ok(err)
	w.Clients, err = s.Clients.List(s.ctx(), "", 100)
	s.ok(err)
	w.Sessions, err = s.Sessions.List(s.ctx(), "", session.Cursor{}, 100)
	s.ok(err)
	for _, id := range watched {
		w.Sessions = append(w.Sessions, s.read(id))
	}
	w.Keys, w.Log, w.Audit = s.keys(), s.tail(0), s.records(audit.Filter{})
	w.Revision, _, err = s.Clients.Revision(s.ctx())
	s.ok(err)
	return w
}

// change is one mutating method, ready to be called with a journal.
type change struct {
	name string
	call func(journal.Journal) error
}

func (s *suite) changes(a account.Account, c client.Client, x session.Session) []change {
	version := s.keys().Version
	return []change{
		{"Accounts.Create", func(j journal.Journal) error {
			return s.Accounts.Create(s.ctx(), account.Account{ID: ids.New[ids.Account](), Username: "new", State: account.Active}, j)
		}},
		{"Accounts.Rehash", func(j journal.Journal) error { return s.Accounts.Rehash(s.ctx(), a.ID, a.PasswordHash, "$re", j) }},
		{"Clients.Create", func(j journal.Journal) error { return s.Clients.Create(s.ctx(), client.Client{ID: "new"}, j) }},
		{"Clients.RotateSecret", func(j journal.Journal) error {
			return s.Clients.RotateSecret(s.ctx(), c.ID, c.Version, [32]byte{5}, time.Hour, j)
		}},
		{"Sessions.End", func(j journal.Journal) error {
			_, err := s.Sessions.End(s.ctx(), "", journal.Journal{Revokes: j.Revokes, Audit: j.Audit,
				Ends: append([]journal.End{{Session: x.ID, Reason: journal.EndedByLogout}}, j.Ends...)})
			return err
		}},
		{"Sessions.Create", func(j journal.Journal) error {
			n := creation(a, c.ID)
			n.MaxPerAccount = 1
			_, _, err := s.Sessions.Create(s.ctx(), n, j)
			return err
		}},
		{"Keys.Apply", func(j journal.Journal) error {
			return s.Keys.Apply(s.ctx(), version, keys.Change{Insert: []keys.Key{key("new", keys.Active)}}, j)
		}},
		{"Revocations.Append", func(j journal.Journal) error { return s.Revocations.Append(s.ctx(), j) }},
		{"Accounts.SetPassword", func(j journal.Journal) error { return s.Accounts.SetPassword(s.ctx(), a.ID, a.Version, "$new", j) }},
		{"Accounts.SetState", func(j journal.Journal) error {
			return s.Accounts.SetState(s.ctx(), a.ID, s.readAccount(a.ID).Version, account.Disabled, j)
		}},
		{"Accounts.Delete", func(j journal.Journal) error {
			return s.Accounts.Delete(s.ctx(), a.ID, s.readAccount(a.ID).Version, j)
		}},
		{"Clients.Delete", func(j journal.Journal) error {
			now, err := s.Clients.Get(s.ctx(), c.ID)
			s.ok(err)
			return s.Clients.Delete(s.ctx(), c.ID, now.Version, j)
		}},
	}
}

// broken are journals that no store may commit. Each begins with parts that are good.
func broken(a account.Account) map[string]journal.Journal {
	record := journal.Record{Event: "test", Outcome: "ok"}
	revoke := journal.Revocation{Kind: journal.KindToken, ID: "t"}
	end := journal.End{Account: a.ID, Reason: journal.EndedByRevoke}
	return map[string]journal.Journal{
		"an unknown kind":             {Ends: []journal.End{end}, Revokes: []journal.Revocation{revoke, {Kind: "iss", ID: "x"}}},
		"a kind without its id":       {Revokes: []journal.Revocation{revoke, {Kind: journal.KindSession}}},
		"everything with an id":       {Revokes: []journal.Revocation{revoke, {Kind: journal.KindAll, ID: "x"}}},
		"an end of nothing":           {Ends: []journal.End{end, {Reason: journal.EndedByRevoke}}},
		"an end of two things":        {Ends: []journal.End{end, {All: true, Account: a.ID, Reason: journal.EndedByRevoke}}},
		"an end without a reason":     {Ends: []journal.End{end, {Account: a.ID}}},
		"an exception from no one":    {Ends: []journal.End{end, {All: true, Except: "x", Reason: journal.EndedByRevoke}}},
		"a record without an event":   {Ends: []journal.End{end}, Audit: []journal.Record{record, {Outcome: "ok"}}},
		"a record without an outcome": {Audit: []journal.Record{record, {Event: "test"}}},
		"a record with a NUL":         {Audit: []journal.Record{record, {Event: "test", Outcome: "ok", UserAgent: "a\x00b"}}},
	}
}

var journalCases = []testCase{
	{"a change whose journal fails leaves no trace, and with a good one both are there", func(s *suite) {
		a := s.account("ada")
		s.ok(s.Clients.Create(s.ctx(), client.Client{ID: "app", Kind: client.Confidential, Secrets: []client.Secret{{Hash: [32]byte{1}}}}, none))
		c, err := s.Clients.Get(s.ctx(), "app")
		s.ok(err)
		x := s.login(a, "app")
		before := s.world(x.ID)
		for _, change := range s.changes(a, c, x) {
			for name, j := range broken(a) {
				if change.call(j) == nil {
					s.Fatalf("%s accepted %s", change.name, name)
				}
				if diff := cmp.Diff(before, s.world(x.ID)); diff != "" {
					s.Fatalf("%s with %s wrote something:\n%s", change.name, name, diff)
				}
			}
		}
		for _, change := range s.changes(a, c, x) {
			before := s.world()
			good := journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: "t of " + change.name}},
				Audit: []journal.Record{{Event: change.name, Outcome: "ok"}}}
			if err := change.call(good); err != nil {
				s.Fatalf("%s: %v", change.name, err)
			}
			after := s.world()
			if change.name != "Revocations.Append" && cmp.Equal(world{Accounts: before.Accounts, Clients: before.Clients, Sessions: before.Sessions, Keys: before.Keys},
				world{Accounts: after.Accounts, Clients: after.Clients, Sessions: after.Sessions, Keys: after.Keys}) {
				s.Fatalf("%s changed nothing", change.name)
			}
			s.equal(change.name+": record", after.Audit[0].Event, change.name)
			s.equal(change.name+": entry", after.Log.Entries[len(after.Log.Entries)-1].ID, "t of "+change.name)
		}
	}},
	{"of changes that run together a refused one leaves no trace in the others", func(s *suite) {
		a := s.account("ada")
		together(40, func(i int) {
			j := journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: "good"}}}
			if i%2 == 1 {
				j.Revokes = []journal.Revocation{{Kind: journal.KindToken, ID: "bad"}, {Kind: "iss"}}
			}
			err := s.Accounts.Rehash(s.ctx(), a.ID, a.PasswordHash, a.PasswordHash, j)
			if (err == nil) != (i%2 == 0) {
				s.Error(i, err)
			}
		})
		s.equal("entries", strings.Join(s.listed(), " "), strings.TrimSpace(strings.Repeat("jti:good ", 20)))
	}},
}

// hostile are texts that a careless statement would stumble on.
var hostile = []string{
	`'; DROP TABLE accounts; --`, `" OR ""="`, `$1`, `$$ ; DELETE FROM clients; $$`, `$tag$x$tag$`, `?`, `?1`, `:name`, `@p`, `%`, `_`, `\`, `\'`,
	"`", "[x]", "/* */", "naïve ☃ 𝕏", "a\nb\tc\r", `{"json":[1,"]"]}`, strings.Repeat("x", 8192),
}

var unstorable = []string{"a\x00b", "\xff\xfe", strings.Repeat("x", 1<<20)}

var textCases = []testCase{
	{"D20 hostile text comes back as it went in", func(s *suite) {
		for i, text := range hostile {
			a := account.Account{ID: ids.Account("id" + text), Username: text, PasswordHash: text, State: account.Active}
			s.ok(s.Accounts.Create(s.ctx(), a, none))
			got, err := s.Accounts.ByUsername(s.ctx(), text)
			s.ok(err)
			s.equal("account", got.ID, a.ID)
			s.equal("hash", got.PasswordHash, text)
			c := client.Client{ID: ids.Client(text), Name: text, Kind: client.Public, Audiences: []string{text, "x"}, DefaultAudiences: []string{text},
				Scopes: []string{text}, DefaultScopes: []string{text, text}}
			s.ok(s.Clients.Create(s.ctx(), c, none))
			back, err := s.Clients.Get(s.ctx(), c.ID)
			s.ok(err)
			c.Version, c.CreatedAt, c.UpdatedAt = 1, s.Clock.Now(), s.Clock.Now()
			if diff := cmp.Diff(c, back); diff != "" {
				s.Fatal(diff)
			}
			n := creation(s.readAccount(a.ID), c.ID)
			n.Session.Scope, n.Session.DeviceName, n.Session.IP, n.Session.UserAgent = text, text, text, text
			n.Session.Audiences, n.Session.AMR = []string{text}, []string{text}
			x, _, err := s.Sessions.Create(s.ctx(), n, journal.Journal{Audit: []journal.Record{{Event: text, Outcome: "ok", Subject: text,
				Reason: text, Actor: text, Client: ids.Client(text), Session: ids.Session(text), IP: text, UserAgent: text, RequestID: text}}})
			s.ok(err)
			if diff := cmp.Diff(x, s.read(x.ID)); diff != "" {
				s.Fatal(diff)
			}
			r := present(x, 1)
			r.IP, r.UserAgent = text, text
			s.equal("user agent", s.redeem(r).Session.UserAgent, text)
			records := s.records(audit.Filter{Event: text, Subjects: []string{text}})
			s.equal("records", len(records), 1)
			s.equal("request", records[0].RequestID, text)
			s.ok(s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: text}}}))
			entries := s.tail(0).Entries
			s.equal("entry", entries[len(entries)-1].ID, text)
			all, err := s.Accounts.List(s.ctx(), "", 100)
			s.ok(err)
			s.equal("accounts", len(all), i+1)
		}
	}},
	{"D20 what no store could give back is refused, and never found", func(s *suite) {
		a := s.account("ada")
		s.client("app")
		x := s.login(a, "app")
		for _, text := range unstorable {
			refused := func(err error) {
				s.Helper()
				s.refused(err, fault.Invalid, fault.FieldInvalid)
			}
			refused(s.Accounts.Create(s.ctx(), account.Account{ID: "x", Username: text, State: account.Active}, none))
			refused(s.Accounts.SetPassword(s.ctx(), a.ID, a.Version, text, none))
			refused(s.Accounts.Rehash(s.ctx(), a.ID, a.PasswordHash, text, none))
			refused(s.Clients.Create(s.ctx(), client.Client{ID: "y", Scopes: []string{"ok", text}}, none))
			for _, field := range []func(*session.Session){
				func(x *session.Session) { x.DeviceName = text }, func(x *session.Session) { x.UserAgent = text },
				func(x *session.Session) { x.IP = text }, func(x *session.Session) { x.Scope = text },
				func(x *session.Session) { x.Audiences = []string{text} }, func(x *session.Session) { x.AMR = []string{text} },
			} {
				n := creation(a, "app")
				field(&n.Session)
				_, _, err := s.Sessions.Create(s.ctx(), n, none)
				refused(err)
			}
			r := present(x, 1)
			r.UserAgent = text
			_, err := s.Sessions.Redeem(s.ctx(), r)
			refused(err)
			refused(s.Revocations.Append(s.ctx(), journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindToken, ID: text}}}))
			refused(s.Revocations.Append(s.ctx(), journal.Journal{Audit: []journal.Record{{Event: "e", Outcome: "ok", RequestID: text}}}))
			_, err = s.Accounts.ByUsername(s.ctx(), text)
			s.refused(err, fault.NotFound, fault.AccountNotFound)
			_, err = s.Clients.Get(s.ctx(), ids.Client(text))
			s.refused(err, fault.NotFound, fault.ClientNotFound)
			_, _, _, err = s.Sessions.Get(s.ctx(), ids.Session(text))
			s.refused(err, fault.NotFound, fault.SessionNotFound)
		}
		if diff := cmp.Diff(x, s.read(x.ID)); diff != "" {
			s.Fatal(diff)
		}
	}},
}
