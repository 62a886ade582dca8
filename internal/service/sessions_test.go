package service_test

import (
	"encoding/base64"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
)

// wantDead says that a session neither refreshes nor has a live access token.
func wantDead(t *testing.T, c *core, what string, in service.Issued) {
	t.Helper()
	if _, err := c.refresh(t.Context(), in.RefreshToken); fault.From(err).Reason != fault.RefreshInvalid {
		t.Errorf("%s: refreshing gives %v", what, err)
	}
	if c.seen(t, "rs", in.AccessToken).Active {
		t.Errorf("%s: its access token is active", what)
	}
}

// wantAlive says the opposite, and gives what the refresh issued.
func wantAlive(t *testing.T, c *core, what string, in service.Issued) service.Issued {
	t.Helper()
	out, err := c.refresh(t.Context(), in.RefreshToken)
	if err != nil {
		t.Errorf("%s: refreshing gives %v", what, err)
	}
	if !c.seen(t, "rs", in.AccessToken).Active || !c.seen(t, "rs", out.AccessToken).Active {
		t.Errorf("%s: an access token is inactive", what)
	}
	return out
}

func TestR43APasswordChangeEndsTheOtherSessions(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	current, other, foreign := c.login(t, "ada"), c.login(t, "ada"), c.login(t, "bob")
	const next = "another horse, another staple"
	err := c.accounts.ChangePassword(t.Context(), c.as(t, current), "not the old password", next)
	wantReason(t, err, fault.InvalidCredentials)
	other = wantAlive(t, c, "the other session after a refused change", other)
	if err := c.accounts.ChangePassword(t.Context(), c.as(t, current), secretly, next); err != nil {
		t.Fatal(err)
	}
	wantDead(t, c, "the other session", other)
	wantAlive(t, c, "the current session", current)
	wantAlive(t, c, "another account's session", foreign)
	_, err = c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, ClientID: "app", Caller: phone()})
	wantReason(t, err, fault.InvalidCredentials)
	must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: next, ClientID: "app", Caller: phone()}))(t)
}

func TestSessionsAreListedByPagesOfOnesOwn(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	var mine []ids.Session
	for range 3 {
		mine = append(mine, c.login(t, "ada").SessionID)
		c.clock.advance(time.Second)
	}
	slices.Reverse(mine) // the newest comes first
	me, him := c.as(t, c.login(t, "ada")), c.as(t, c.login(t, "bob"))
	c.login(t, "bob")
	list, token, err := c.sessions.List(t.Context(), me, 1, "")
	if err != nil || len(list) != 1 || token == "" {
		t.Fatalf("the first page has %d sessions, error %v", len(list), err)
	}
	first, got := token, []ids.Session(nil)
	for token != "" {
		if list, token, err = c.sessions.List(t.Context(), me, 2, token); err != nil {
			t.Fatal(err)
		}
		for _, row := range list {
			got = append(got, row.ID)
		}
	}
	if diff := cmp.Diff(mine, got); diff != "" {
		t.Errorf("the pages after the first (-want +got)\n%s", diff)
	}
	raw := must(base64.RawURLEncoding.DecodeString(first))(t)
	for i := range raw { // every part of it counts
		bad := slices.Clone(raw)
		bad[i] ^= 1
		if _, _, err := c.sessions.List(t.Context(), me, 1, base64.RawURLEncoding.EncodeToString(bad)); fault.From(err).Reason != fault.FieldInvalid {
			t.Errorf("a page token with byte %d changed: %v", i, err)
		}
	}
	for _, tt := range []struct {
		name  string
		who   service.Caller
		size  int32
		token string
		field string // empty: a page
	}{
		{"a negative size", me, -1, "", "page_size"},
		{"the least size", me, math.MinInt32, "", "page_size"},
		{"the greatest size", me, math.MaxInt32, "", ""},
		{"a size of one more than there may be", me, service.MaxPage + 1, "", ""},
		{"no size", me, 0, "", ""},
		{"a token of this list", me, 1, first, ""},
		{"another account's token", him, 1, first, "page_token"},
		{"his own list", him, 1, "", ""},
		{"a token that is a word", me, 1, "next", "page_token"},
		{"a token that is not base64url", me, 1, "!" + first[1:], "page_token"},
		{"a padded token", me, 1, first + "=", "page_token"},
		{"a token cut short", me, 1, first[:len(first)-4], "page_token"},
		{"a token twice", me, 1, first + first, "page_token"},
		{"a session's id for a token", me, 1, string(mine[0]), "page_token"},
	} {
		_, _, err := c.sessions.List(t.Context(), tt.who, tt.size, tt.token)
		if tt.field == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		wantReason(t, err, fault.FieldInvalid)
		if f := fault.From(err); f.Kind != fault.Invalid || len(f.Violations) != 1 || f.Violations[0].Field != tt.field {
			t.Errorf("%s: the violations are %v, want one of %s", tt.name, f.Violations, tt.field)
		}
	}
}

func TestAPageHasAtMostTwoHundredSessions(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	in := c.login(t, "ada")
	ada := must(c.db.Accounts().ByUsername(t.Context(), "ada"))(t)
	for range service.MaxPage { // without tokens, which take long to sign
		_, _, err := c.db.Sessions().Create(t.Context(), session.Create{AccountVersion: ada.Version, MaxPerAccount: 2 * service.MaxPage, TTL: time.Hour,
			Session: session.Session{ID: ids.New[ids.Session](), Account: ada.ID, Client: "app", IdleTTL: time.Hour}}, journal.Journal{})
		if err != nil {
			t.Fatal(err)
		}
	}
	for size, want := range map[int32]int{0: service.DefaultPage, service.MaxPage - 1: service.MaxPage - 1, service.MaxPage: service.MaxPage,
		service.MaxPage + 1: service.MaxPage, math.MaxInt32: service.MaxPage} {
		list, token, err := c.sessions.List(t.Context(), c.as(t, in), size, "")
		if err != nil || len(list) != want || token == "" {
			t.Errorf("of a size of %d there are %d sessions, token %q, error %v; want %d and a token", size, len(list), token, err, want)
		}
	}
}

func TestR43APersonEndsTheirSessionsAndNoOthers(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	current, other, third, foreign := c.login(t, "ada"), c.login(t, "ada"), c.login(t, "ada"), c.login(t, "bob")
	me := c.as(t, current)
	wantReason(t, c.sessions.Revoke(t.Context(), me, foreign.SessionID), fault.SessionNotFound)
	wantReason(t, c.sessions.Revoke(t.Context(), me, ids.New[ids.Session]()), fault.SessionNotFound)
	wantReason(t, c.sessions.Revoke(t.Context(), me, "x"), fault.FieldInvalid)
	foreign = wantAlive(t, c, "another's session", foreign)
	if err := c.sessions.Revoke(t.Context(), me, third.SessionID); err != nil {
		t.Fatal(err)
	}
	wantDead(t, c, "the session that was ended by name", third)
	if err := c.sessions.Revoke(t.Context(), me, third.SessionID); err != nil {
		t.Errorf("ending one's own session twice: %v", err)
	}
	for _, step := range []struct {
		except bool
		want   int
	}{{true, 1}, {true, 0}, {false, 1}, {false, 0}} {
		if n, err := c.sessions.RevokeAll(t.Context(), me, step.except); err != nil || n != step.want {
			t.Errorf("ending all, except the current one %v: %d, %v; want %d", step.except, n, err, step.want)
		}
		wantDead(t, c, "the other session", other)
		if step.except {
			current = wantAlive(t, c, "the current session", current)
		} else {
			wantDead(t, c, "the current session", current)
		}
	}
	wantAlive(t, c, "another's session", foreign)
	if list, _, err := c.sessions.List(t.Context(), me, 0, ""); err != nil || len(list) != 0 {
		t.Errorf("after the end of all there are %d sessions, error %v", len(list), err)
	}
}

func TestR54F12WhoMayNotActRefreshesNothing(t *testing.T) {
	t.Parallel()
	operator := service.Operator(1000)
	for _, tt := range []struct {
		name string
		stop func(*testing.T, *core) error
	}{
		{"a disabled account", func(t *testing.T, c *core) error {
			return c.accounts.SetState(t.Context(), operator, "ada", account.Disabled)
		}},
		{"an account that was disabled and is enabled again", func(t *testing.T, c *core) error {
			if err := c.accounts.SetState(t.Context(), operator, "ada", account.Disabled); err != nil {
				return err
			}
			return c.accounts.SetState(t.Context(), operator, "ada", account.Active)
		}},
		{"a deleted account", func(t *testing.T, c *core) error { return c.accounts.Delete(t.Context(), operator, "ada") }},
		{"an account whose password the operator set", func(t *testing.T, c *core) error {
			return c.accounts.SetPassword(t.Context(), operator, "ada", "another horse, another staple")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCore(t)
			hers, his := c.login(t, "ada"), c.login(t, "bob")
			hers = wantAlive(t, c, "before", hers)
			if err := tt.stop(t, c); err != nil {
				t.Fatal(err)
			}
			wantDead(t, c, tt.name, hers)
			wantAlive(t, c, "another account", his)
		})
	}
}

func TestR54F12AnEnabledAccountBeginsAnew(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	old := c.login(t, "ada")
	for _, state := range []account.State{account.Disabled, account.Active} {
		if err := c.accounts.SetState(t.Context(), service.Operator(1000), "ada", state); err != nil {
			t.Fatal(err)
		}
	}
	wantAlive(t, c, "a session begun after enabling", c.login(t, "ada"))
	wantDead(t, c, "the session from before", old)
}

func TestF12O24ADeletedClientsRefreshTokensDie(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	in, in2 := c.login(t, "ada"), must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, ClientID: "game", Caller: phone()}))(t)
	c.clock.hold() // the clients that are known do not age
	if err := c.clients.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.admin.Delete(t.Context(), service.Operator(1000), "app"); err != nil {
		t.Fatal(err)
	}
	wantDead(t, c, "while this process still knows the client", in)
	if err := c.clients.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err := c.refresh(t.Context(), in.RefreshToken)
	wantReason(t, err, fault.ClientInvalid)
	must(c.tokens.Refresh(t.Context(), service.RefreshRequest{RefreshToken: in2.RefreshToken, ClientID: "game", Caller: phone()}))(t)
}

func TestO24SecretsExpireByTheStoresClockEverywhere(t *testing.T) {
	t.Parallel()
	for name, apart := range map[string]time.Duration{"a process whose clock is ahead": 3 * time.Hour, "a process whose clock is behind": -3 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCore(t)
			off := must(service.NewClients(c.db.Clients(), adminIssuer, func() time.Time { return c.clock.now().Add(apart) }))(t)
			o := c.options
			o.Clients = off
			signIn := must(service.NewSignIn(o))(t)
			old := service.ClientAuth{Presented: true, ID: "web", Secret: c.secrets["web"]}
			in := must(signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, Client: old, Caller: phone()}))(t)
			next := service.ClientAuth{Presented: true, ID: "web", Secret: must(c.admin.RotateSecret(t.Context(), service.Operator(1000), "web", time.Hour))(t)}
			ask := func(by service.ClientAuth) []error {
				if err := off.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				_, direct := off.Authenticate(t.Context(), by)
				_, login := signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, Client: by, Caller: phone()})
				_, own := c.tokens.ClientCredentials(t.Context(), service.ClientCredentialsRequest{ClientID: "web", Secret: by.Secret, Caller: phone()})
				return []error{direct, login, own}
			}
			for _, err := range append(ask(old), ask(next)...) {
				if err != nil {
					t.Errorf("in the overlap: %v", err)
				}
			}
			tokens := c.tokensWith(t, off, apart)
			in = must(tokens.Refresh(t.Context(), service.RefreshRequest{RefreshToken: in.RefreshToken, Client: old, Caller: phone()}))(t)
			c.clock.advance(time.Hour + time.Second)
			for _, err := range ask(old) {
				wantReason(t, err, fault.ClientInvalid)
			}
			for _, err := range ask(next) {
				if err != nil {
					t.Errorf("after the overlap, by the new secret: %v", err)
				}
			}
			_, err := tokens.Refresh(t.Context(), service.RefreshRequest{RefreshToken: in.RefreshToken, Client: old, Caller: phone()})
			wantReason(t, err, fault.ClientInvalid)
			must(tokens.Refresh(t.Context(), service.RefreshRequest{RefreshToken: in.RefreshToken, Client: next, Caller: phone()}))(t)
		})
	}
}

func TestO24TwoSecretsAreValidOnlyInTheOverlap(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	ask := func(secret string) error {
		_, err := c.tokens.ClientCredentials(t.Context(), service.ClientCredentialsRequest{ClientID: "web", Secret: secret, Caller: phone()})
		return err
	}
	old := c.secrets["web"]
	next := must(c.admin.RotateSecret(t.Context(), service.Operator(1000), "web", time.Hour))(t)
	if err := c.clients.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{old, next} {
		if err := ask(secret); err != nil {
			t.Errorf("in the overlap: %v", err)
		}
	}
	wantReason(t, ask(next+"x"), fault.ClientInvalid)
	wantReason(t, ask(""), fault.ClientInvalid)
	c.clock.advance(time.Hour + time.Second)
	wantReason(t, ask(old), fault.ClientInvalid)
	if err := ask(next); err != nil {
		t.Errorf("after the overlap the new secret: %v", err)
	}
}
