package sqlstore_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/store/storetest"
)

// fixture is a database with one account, one client and a clock.
type fixture struct {
	*sqlstore.DB
	clock   *storetest.Clock
	account account.Account
}

func newFixture(t *testing.T, path string) *fixture {
	t.Helper()
	clock := storetest.NewClock()
	f := &fixture{DB: open(t, sqlstore.Options{Path: path, Now: clock.Now}), clock: clock}
	f.seed(t, "app")
	return f
}

func (f *fixture) seed(t testing.TB, id ids.Client) {
	t.Helper()
	a := account.Account{ID: ids.New[ids.Account](), Username: "ada", State: account.Active}
	if err := f.Accounts().Create(t.Context(), a, journal.Journal{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Clients().Create(t.Context(), client.Client{ID: id, Kind: client.Public}, journal.Journal{}); err != nil {
		t.Fatal(err)
	}
	f.account = a
}

// fataler is what *testing.T and *rapid.T share.
type fataler interface {
	Helper()
	Fatal(args ...any)
}

func (f *fixture) login(t fataler, tb testing.TB) session.Session {
	t.Helper()
	id := ids.New[ids.Session]()
	s, _, err := f.Sessions().Create(tb.Context(), session.Create{Session: session.Session{ID: id, Account: f.account.ID, Client: "app",
		SecretHash: ids.HashSecret(string(id)), IdleTTL: time.Hour, Scope: "read", Audiences: []string{"https://api.example"},
		AMR: []string{"pwd"}, IP: "192.0.2.1", UserAgent: "agent/1"}, TTL: 24 * time.Hour, AccountVersion: 1}, journal.Journal{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// model is what Redeem must do, said with the pure rules alone.
func model(s session.Session, r session.Redeem, mayAct bool, notBefore, now time.Time) session.Redeemed {
	want := session.Redeemed{Verdict: session.Check(s, r, mayAct, notBefore, now), Session: s, Now: now}
	if want.Verdict != session.Issue {
		return want
	}
	d := session.Decide(s.Rotation, r.Generation, r.Device, now, r.Window)
	want.Verdict, want.Rotated, want.Alert = d.Verdict, d.Rotated, d.Alert
	want.Session.Rotation = d.Next
	if d.Rotated {
		want.Session.LastUsedAt, want.Session.IdleEndsAt = now, s.IdleEnd(now)
		want.Session.IP, want.Session.UserAgent = r.IP, r.UserAgent
	}
	if d.End {
		want.Session.EndedAt, want.Session.EndReason = now, journal.EndedByReuse
	}
	return want
}

// The conditional statement of the happy path and the loaded path must both be exactly Check and Decide.
func TestRedeemIsCheckAndDecideForAnyRow(t *testing.T) {
	t.Parallel()
	redeemIsCheckAndDecide(t, newFixture(t, sqlstore.Memory))
}

func TestRedeemIsCheckAndDecideForAnyRowInPostgreSQL(t *testing.T) {
	t.Parallel()
	redeemIsCheckAndDecide(t, newPostgres(t))
}

func redeemIsCheckAndDecide(t *testing.T, f *fixture) {
	t.Helper()
	base := f.clock.Now()
	if _, err := f.Sessions().End(t.Context(), "", journal.Journal{Ends: []journal.End{{Account: f.account.ID, Reason: "test"}}}); err != nil {
		t.Fatal(err)
	}
	f.clock.Advance(10 * time.Minute)
	a, err := f.Accounts().Get(t.Context(), f.account.ID)
	if err != nil {
		t.Fatal(err)
	}
	window := 30 * time.Second
	rotated := 0
	rapid.Check(t, func(rt *rapid.T) {
		now := f.clock.Now()
		s := f.login(rt, t)
		generation := rapid.OneOf(rapid.Uint32Range(0, 6), rapid.Uint32Range(math.MaxUint32-2, math.MaxUint32))
		d := rapid.Custom(func(t *rapid.T) session.Device {
			return session.Device{Network: [8]byte{rapid.ByteRange(0, 1).Draw(t, "network")}, UserAgent: [8]byte{rapid.ByteRange(0, 1).Draw(t, "agent")}}
		})
		ago := rapid.SampledFrom([]time.Duration{-time.Second, 0, time.Microsecond, window - time.Microsecond, window, window + time.Microsecond, time.Hour})
		end := rapid.SampledFrom([]time.Duration{-time.Microsecond, 0, time.Microsecond, time.Minute, time.Hour, 48 * time.Hour})
		s.Base, s.Head, s.Low = generation.Draw(rt, "base"), generation.Draw(rt, "head"), generation.Draw(rt, "low")
		s.RedeemedAt = now.Add(-ago.Draw(rt, "ago"))
		s.Device = d.Draw(rt, "device")
		s.Elsewhere, s.ElsewhereOf, s.Forks = rapid.IntRange(0, 5).Draw(rt, "elsewhere"), generation.Draw(rt, "elsewhere of"), rapid.IntRange(0, 9).Draw(rt, "forks")
		if rapid.Bool().Draw(rt, "elsewhere of base") {
			s.ElsewhereOf = s.Base
		}
		if rapid.IntRange(0, 3).Draw(rt, "ending") == 0 {
			s.IdleEndsAt, s.EndsAt = now.Add(end.Draw(rt, "idle")), now.Add(end.Draw(rt, "absolute"))
		}
		if rapid.IntRange(0, 7).Draw(rt, "ended") == 0 {
			s.EndedAt = base
		}
		if rapid.IntRange(0, 3).Draw(rt, "cut off") == 0 {
			s.AuthTime = a.NotBefore.Add(rapid.SampledFrom([]time.Duration{-time.Second, 0, time.Second}).Draw(rt, "beside the cut-off"))
		}
		if err := f.Overwrite(t.Context(), s); err != nil {
			rt.Fatal(err)
		}
		r := session.Redeem{Session: s.ID, SecretHash: s.SecretHash, Generation: generation.Draw(rt, "generation"), Client: "app",
			Device: d.Draw(rt, "sender"), IP: "192.0.2.2", UserAgent: "agent/2", Window: window}
		if rapid.IntRange(0, 1).Draw(rt, "head presented") == 0 {
			r.Generation = s.Head
		}
		switch rapid.IntRange(0, 9).Draw(rt, "credential") {
		case 0:
			r.SecretHash[31]++
		case 1:
			r.Client = "other"
		}
		want := model(s, r, true, a.NotBefore, now)
		got, err := f.Sessions().Redeem(t.Context(), r)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatal(diff)
		}
		stored, _, _, err := f.Sessions().Get(t.Context(), s.ID)
		if err != nil {
			rt.Fatal(err)
		}
		if diff := cmp.Diff(want.Session, stored); diff != "" {
			rt.Fatal(diff)
		}
		if got.Rotated {
			rotated++
		}
	})
	if rotated == 0 {
		t.Fatal("no row was ever rotated: the property saw only refusals")
	}
}
