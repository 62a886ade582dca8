package service_test

import (
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/service"
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
