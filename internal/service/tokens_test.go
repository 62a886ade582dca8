package service_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/test/soak"
)

func TestF01F02TheLastRedeemedTokenGivesItsSuccessorAgain(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	in := c.login(t, "ada")
	first, again := must(c.refresh(t.Context(), in.RefreshToken))(t), must(c.refresh(t.Context(), in.RefreshToken))(t)
	if first.RefreshToken != again.RefreshToken || first.RefreshToken == in.RefreshToken {
		t.Error("a retry in the window is not answered with the same successor")
	}
	if first.AccessToken == again.AccessToken {
		t.Error("two answers share one access token")
	}
	// F02: the answer was lost, and the client comes back after the window.
	c.clock.advance(client.DefaultReuseWindow + time.Second)
	late := must(c.refresh(t.Context(), in.RefreshToken))(t)
	if late.RefreshToken == first.RefreshToken {
		t.Error("after the window the unredeemed successor is given again")
	}
	must(c.refresh(t.Context(), late.RefreshToken))(t)
}

func TestF03F04F10AnOldTokenEndsTheSessionAndThatIsCommitted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		old  func(*testing.T, *core, service.Issued) (old string, newest service.Issued)
	}{
		{"F03: the dead successor after a lost answer", func(t *testing.T, c *core, in service.Issued) (string, service.Issued) {
			dead := must(c.refresh(t.Context(), in.RefreshToken))(t)
			c.clock.advance(client.DefaultReuseWindow + time.Second)
			fresh := must(c.refresh(t.Context(), in.RefreshToken))(t)
			newest := must(c.refresh(t.Context(), fresh.RefreshToken))(t)
			c.clock.advance(client.DefaultReuseWindow + time.Second)
			return dead.RefreshToken, newest
		}},
		{"F04: one older than the last redeemed", func(t *testing.T, c *core, in service.Issued) (string, service.Issued) {
			second := must(c.refresh(t.Context(), in.RefreshToken))(t)
			newest := must(c.refresh(t.Context(), second.RefreshToken))(t)
			c.clock.advance(client.DefaultReuseWindow + time.Second)
			return in.RefreshToken, newest
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := newCore(t)
			bystander := c.login(t, "ada")
			old, newest := tt.old(t, c, c.login(t, "ada"))
			if !c.seen(t, "rs", newest.AccessToken).Active {
				t.Fatal("the access token is inactive before the theft shows")
			}
			_, err := c.refresh(t.Context(), old)
			wantReason(t, err, fault.RefreshReused)
			wantDead(t, c, "the session", newest)
			row, alive, _, err := c.db.Sessions().Get(t.Context(), newest.SessionID)
			if err != nil || alive || row.EndedAt.IsZero() {
				t.Errorf("the end is not committed: alive %v, ended %v, error %v", alive, row.EndedAt, err)
			}
			records, err := c.db.Audit().List(t.Context(), audit.Filter{Event: "refresh.reuse"}, 0, 10)
			if err != nil || len(records) != 1 || records[0].Session != newest.SessionID {
				t.Errorf("the audit log has %d records of it, error %v", len(records), err)
			}
			wantAlive(t, c, "the same person's other session", bystander)
		})
	}
}

func TestG05ACallerWhoGivesUpDoesNotStopTheEndOfAStolenSession(t *testing.T) {
	t.Parallel()
	for name, patience := range map[string]time.Duration{"gone before the call": 0, "a deadline of a nanosecond": time.Nanosecond, "the twin, who waits": time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCore(t)
			in := c.login(t, "ada")
			newest := must(c.refresh(t.Context(), must(c.refresh(t.Context(), in.RefreshToken))(t).RefreshToken))(t)
			c.clock.advance(client.DefaultReuseWindow + time.Second)
			c.clock.hold() // the clients that are known do not age
			if err := c.clients.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := c.refresh(ctx, in.RefreshToken)
			wantReason(t, err, fault.RefreshReused)
			wantDead(t, c, "the session", newest)
		})
	}
}

func TestF05AHundredRefreshesAtOnceAreOneRotation(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	others := []*core{c, replica(t, c.db, c.clock), replica(t, c.db, c.clock)}
	in := c.login(t, "ada")
	var wg sync.WaitGroup
	got, errs := make([]service.Issued, 100), make([]error, 100)
	for i := range got {
		wg.Go(func() { got[i], errs[i] = others[i%len(others)].refresh(t.Context(), in.RefreshToken) })
	}
	wg.Wait()
	access := map[string]bool{}
	for i := range got {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
		if got[i].RefreshToken != got[0].RefreshToken {
			t.Fatal("the answers name different successors")
		}
		access[got[i].AccessToken] = true
	}
	if len(access) != len(got) {
		t.Errorf("%d answers have %d access tokens between them", len(got), len(access))
	}
	row, _, _, err := c.db.Sessions().Get(t.Context(), in.SessionID)
	if err != nil || row.Head != 2 {
		t.Errorf("the session is at generation %d, error %v; want one rotation", row.Head, err)
	}
	wantAlive(t, c, "the session", got[0])
}

func TestF08OnceRevokeAnsweredNothingRefreshes(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	races := soak.Count(1000, 10_000) // of one refresh with one revocation each
	for round := 0; races > 0; round++ {
		in := c.login(t, "ada")
		var wg sync.WaitGroup
		var revoked error
		minted := make([]service.Issued, 8)
		races -= len(minted)
		for i := range minted {
			who := caller(byte(round%2*i), 0) // in every other round from as many networks, so that each is decided by itself
			wg.Go(func() {
				minted[i], _ = c.tokens.Refresh(t.Context(), service.RefreshRequest{RefreshToken: in.RefreshToken, ClientID: "app", Caller: who})
			})
		}
		wg.Go(func() {
			_, revoked = c.tokens.Revoke(t.Context(), service.RevokeRequest{Token: in.RefreshToken, Caller: phone()})
			if _, err := c.refresh(t.Context(), in.RefreshToken); fault.From(err).Reason != fault.RefreshInvalid {
				t.Errorf("round %d: a refresh after the answer gives %v", round, err)
			}
		})
		wg.Wait()
		if revoked != nil {
			t.Fatal(revoked)
		}
		wantDead(t, c, "the login", in)
		for _, m := range minted {
			if m.AccessToken != "" {
				wantDead(t, c, "what was minted meanwhile", m)
			}
		}
	}
	wantAlive(t, c, "a session that nobody revoked", c.login(t, "ada"))
}

func TestF13R13ARefreshNarrowsItsAnswerAndNeverWidens(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	narrowed := must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, ClientID: "app", Scope: "read", Caller: phone()}))(t)
	ask := func(tok, scope string) (service.Issued, error) {
		return c.tokens.Refresh(t.Context(), service.RefreshRequest{RefreshToken: tok, ClientID: "app", Scope: scope, Caller: phone()})
	}
	for _, scope := range []string{"write", "read write", "authsvc.introspect", "read  write", "\"read\""} {
		_, err := ask(narrowed.RefreshToken, scope)
		wantReason(t, err, fault.InvalidScope)
	}
	row, _, _, err := c.db.Sessions().Get(t.Context(), narrowed.SessionID)
	if err != nil || row.Head != 1 || row.Scope != "read" {
		t.Errorf("a refused scope rotated the session to %d or changed its grant to %q, error %v", row.Head, row.Scope, err)
	}
	in := c.login(t, "ada")
	less := must(ask(in.RefreshToken, "read"))(t)
	if less.Scope != "read" || c.seen(t, "rs", less.AccessToken).Claims.Scope != "read" {
		t.Errorf("the narrowed answer has the scope %q", less.Scope)
	}
	if whole := must(ask(less.RefreshToken, ""))(t); whole.Scope != "read write" {
		t.Errorf("narrowing one answer left the grant at %q", whole.Scope)
	}
	for _, tt := range []struct {
		asked service.LoginRequest
		want  fault.Reason
	}{
		{service.LoginRequest{ClientID: "game", Audience: []string{wiki}}, fault.InvalidTarget},
		{service.LoginRequest{ClientID: "game", Audience: []string{api, adminIssuer}}, fault.InvalidTarget},
		{service.LoginRequest{ClientID: "game", Scope: "write"}, fault.InvalidScope},
	} {
		tt.asked.Username, tt.asked.Password, tt.asked.Caller = "ada", secretly, phone()
		_, err := c.signIn.Login(t.Context(), tt.asked)
		wantReason(t, err, tt.want)
	}
	must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, ClientID: "app", Audience: []string{wiki}, Caller: phone()}))(t)
}

func TestR09RevokingWhatIsNotOnesOwnChangesNothing(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	people := must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, Client: c.proof("web"), Caller: phone()}))(t)
	app := c.login(t, "ada")
	webRefreshes := func(tok string) (service.Issued, error) {
		return c.tokens.Refresh(t.Context(), service.RefreshRequest{RefreshToken: tok, Client: c.proof("web"), Caller: phone()})
	}
	for name, r := range map[string]service.RevokeRequest{
		"another client's refresh token":        {Token: people.RefreshToken, Client: c.proof("rs")},
		"another client's access token":         {Token: people.AccessToken, Client: c.proof("rs")},
		"a public client's, by another":         {Token: app.RefreshToken, Client: c.proof("rs")},
		"a public client's access, by another":  {Token: app.AccessToken, Client: c.proof("rs")},
		"an unknown token":                      {Token: "nothing"},
		"an unknown token of our form":          {Token: app.RefreshToken[:len(app.RefreshToken)-2] + "AA"},
		"an unknown token by a client":          {Token: "nothing", Client: c.proof("web")},
		"an access token with a changed letter": {Token: app.AccessToken[:len(app.AccessToken)-2] + "AA"},
	} {
		if position, err := c.tokens.Revoke(t.Context(), r); err != nil || position == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Without its authentication a confidential client's token is not ended, and its holder is told.
	_, err := c.tokens.Revoke(t.Context(), service.RevokeRequest{Token: people.RefreshToken})
	wantReason(t, err, fault.ClientInvalid)
	_, err = c.tokens.Revoke(t.Context(), service.RevokeRequest{Token: people.RefreshToken, Client: service.ClientAuth{Presented: true, ID: "web", Secret: "x"}})
	wantReason(t, err, fault.ClientInvalid)
	app = wantAlive(t, c, "the public client's session", app)
	people2 := must(webRefreshes(people.RefreshToken))(t)
	if !c.seen(t, "rs", people.AccessToken).Active {
		t.Error("the confidential client's access token is inactive")
	}
	// The twins: one's own tokens end, a refresh token with all its access tokens, an access token alone.
	must(c.tokens.Revoke(t.Context(), service.RevokeRequest{Token: people2.RefreshToken, Client: c.proof("web")}))(t)
	if _, err := webRefreshes(people2.RefreshToken); fault.From(err).Reason != fault.RefreshInvalid {
		t.Errorf("a revoked session refreshes: %v", err)
	}
	for _, tok := range []string{people.AccessToken, people2.AccessToken} {
		if c.seen(t, "rs", tok).Active {
			t.Error("an access token outlives its session")
		}
	}
	must(c.tokens.Revoke(t.Context(), service.RevokeRequest{Token: app.AccessToken}))(t)
	if c.seen(t, "rs", app.AccessToken).Active {
		t.Error("a revoked access token is active")
	}
	must(c.refresh(t.Context(), app.RefreshToken))(t)
}

func TestR10P11WhoIsToldAboutAToken(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	web := must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, Client: c.proof("web"), Caller: phone()}))(t)
	app := c.login(t, "ada")
	own := must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, ClientID: "app", Audience: []string{adminIssuer}, Caller: phone()}))(t)
	for _, tt := range []struct {
		name   string
		by     ids.Client
		token  string
		active bool
	}{
		{"an access token, by a server of its audience", "rs", app.AccessToken, true},
		{"an access token, by a server of another audience", "wiki", app.AccessToken, false},
		{"an access token for the issuer alone, by a client that lists the issuer", "rs", own.AccessToken, false},
		{"a refresh token, by its client", "web", web.RefreshToken, true},
		{"a refresh token, by a resource server", "rs", web.RefreshToken, false},
		{"a public client's refresh token, by a resource server", "rs", app.RefreshToken, false},
		{"nonsense", "rs", "nonsense", false},
		{"nonsense of our form", "rs", "asr_nonsense", false},
		{"an access token without its signature", "rs", app.AccessToken[:bytes.LastIndexByte([]byte(app.AccessToken), '.')+1], false},
	} {
		got := c.seen(t, tt.by, tt.token)
		if got.Active != tt.active {
			t.Errorf("%s: active is %v", tt.name, got.Active)
		}
		if diff := cmp.Diff(service.Introspection{}, got); !tt.active && diff != "" {
			t.Errorf("%s: more is told than that it is inactive", tt.name)
		}
	}
	rs := must(c.clients.Get(t.Context(), "rs"))(t)
	batch := must(c.tokens.BatchIntrospect(t.Context(), rs, []string{app.AccessToken, "nonsense", own.AccessToken, web.AccessToken}))(t)
	var words []bool
	for _, in := range batch {
		words = append(words, in.Active)
	}
	if diff := cmp.Diff([]bool{true, false, false, true}, words); diff != "" {
		t.Errorf("a batch is not answered in order (-want +got)\n%s", diff)
	}
	_, err := c.tokens.BatchIntrospect(t.Context(), rs, make([]string, service.MaxBatch+1))
	wantReason(t, err, fault.FieldInvalid)
	c.clock.advance(client.DefaultAccessTTL + 31*time.Second) // 30 s are for clocks that differ
	if c.seen(t, "rs", app.AccessToken).Active {
		t.Error("an expired access token is active")
	}
}

func TestR13AServicesOwnTokenIsItsOwnAlone(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	for _, tt := range []struct {
		name   string
		r      service.ClientCredentialsRequest
		want   fault.Reason // empty: issued
		wanted []string
	}{
		{"its default audience", service.ClientCredentialsRequest{ClientID: "rs"}, "", []string{api}},
		{"the issuer by name, with a scope of this service's", service.ClientCredentialsRequest{ClientID: "rs", Resources: []string{adminIssuer}, Scope: "authsvc.introspect"}, "", []string{adminIssuer}},
		{"the issuer by name, without", service.ClientCredentialsRequest{ClientID: "web", Resources: []string{adminIssuer}}, fault.InvalidTarget, nil},
		{"another's audience", service.ClientCredentialsRequest{ClientID: "web", Resources: []string{wiki}}, fault.InvalidTarget, nil},
		{"no audience where there is no default", service.ClientCredentialsRequest{ClientID: "wiki"}, fault.InvalidTarget, nil},
		{"a scope that it does not have", service.ClientCredentialsRequest{ClientID: "web", Scope: "authsvc.introspect"}, fault.InvalidScope, nil},
		{"a public client", service.ClientCredentialsRequest{ClientID: "app"}, fault.ClientInvalid, nil},
		{"an unknown client", service.ClientCredentialsRequest{ClientID: "nobody"}, fault.ClientInvalid, nil},
	} {
		tt.r.Secret, tt.r.Caller = c.secrets[ids.Client(tt.r.ClientID)], phone()
		got, err := c.tokens.ClientCredentials(t.Context(), tt.r)
		if tt.want != "" {
			wantReason(t, err, tt.want)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		claims := must(c.verifier.Verify(t.Context(), got.AccessToken))(t)
		if got.RefreshToken != "" || got.SessionID != "" || claims.SessionID != "" || claims.Subject != tt.r.ClientID {
			t.Errorf("%s: a service got a person's things", tt.name)
		}
		if !slices.Equal(claims.Audience, tt.wanted) {
			t.Errorf("%s: audience %v, want %v", tt.name, claims.Audience, tt.wanted)
		}
	}
}

func TestAMinimumPositionIsReachedBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	other := replica(t, c.db, c.clock)
	rs := must(other.clients.Get(t.Context(), "rs"))(t)
	for name, position := range map[string]string{
		"not base64":        "!",
		"too short":         "AAAA",
		"padded":            base64.URLEncoding.EncodeToString(make([]byte, 25)),
		"of a negative row": base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 24)),
	} {
		if _, err := other.tokens.Introspect(t.Context(), rs, "x", position); fault.From(err).Kind != fault.Invalid {
			t.Errorf("a position %s: %v", name, err)
		}
	}
	elsewhere := base64.RawURLEncoding.EncodeToString(make([]byte, 24))
	for name, place := range map[string]func(revoked string) string{
		"the position that Revoke gave":     func(p string) string { return p },
		"a position of another log's epoch": func(string) string { return elsewhere },
	} {
		dies, lives := c.login(t, "ada"), c.login(t, "ada")
		position := must(c.tokens.Revoke(t.Context(), service.RevokeRequest{Token: dies.AccessToken, Caller: phone()}))(t)
		if in := must(other.tokens.Introspect(t.Context(), rs, dies.AccessToken, place(position)))(t); in.Active {
			t.Errorf("%s: another replica calls the revoked token active", name)
		}
		if in := must(other.tokens.Introspect(t.Context(), rs, lives.AccessToken, place(position)))(t); !in.Active {
			t.Errorf("%s: another replica calls a live token inactive", name)
		}
	}
}
