package service_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/service"
)

func TestL01R49UnknownWrongAndDisabledAreOneAnswer(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	if err := c.accounts.SetState(t.Context(), service.Operator(1000), "bob", account.Disabled); err != nil {
		t.Fatal(err)
	}
	var first *fault.Error
	for _, tt := range []struct{ name, username, password string }{
		{"an unknown name", "nobody", secretly},
		{"a wrong password", "ada", "wrong horse battery staple"},
		{"a disabled account with its right password", "bob", secretly},
		{"a disabled account with a wrong password", "bob", "wrong horse battery staple"},
	} {
		in, err := c.signIn.Login(t.Context(), service.LoginRequest{Username: tt.username, Password: tt.password, ClientID: "app", Caller: phone()})
		wantReason(t, err, fault.InvalidCredentials)
		if diff := cmp.Diff(service.Issued{}, in); diff != "" {
			t.Errorf("%s was issued something", tt.name)
		}
		got := fault.From(err)
		if first == nil {
			first = got
		}
		if diff := cmp.Diff(first, got); diff != "" {
			t.Errorf("%s can be told apart (-first +this)\n%s", tt.name, diff)
		}
	}
	c.login(t, "ADA") // the twin: the right password of an account that may act, its name in any case
}

func TestL03APasswordBeyondTheCapsIsRefusedAsInputWhoeverItIsFor(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	long := strings.Repeat("pass phrase 64! ", 4)
	must(c.accounts.Create(t.Context(), service.Operator(1000), "eve", long))(t)
	for _, username := range []string{"ada", "nobody"} {
		for name, password := range map[string]string{"1 MB": strings.Repeat("a", 1<<20), "257 code points": strings.Repeat("é", 257)} {
			// More often than there are free attempts: what was not hashed is not counted as a guess.
			for range 12 {
				_, err := c.signIn.Login(t.Context(), service.LoginRequest{Username: username, Password: password, ClientID: "app", Caller: phone()})
				if f := fault.From(err); f.Kind != fault.Invalid || f.Reason != fault.FieldInvalid {
					t.Fatalf("%s for %s: got %v, want an invalid field", name, username, err)
				}
			}
		}
	}
	must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "eve", Password: long, ClientID: "app", Caller: phone()}))(t)
	c.login(t, "ada")
}

func TestL05FormsOfOnePasswordOpenTheSameAccount(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	const composed, decomposed = "cr\u00e8me br\u00fbl\u00e9e \u00e9toile", "cre\u0300me bru\u0302le\u0301e e\u0301toile"
	must(c.accounts.Create(t.Context(), service.Operator(1000), "chef", composed))(t)
	must(c.accounts.Create(t.Context(), service.Operator(1000), "cook", decomposed))(t)
	for _, tt := range []struct {
		name, username, password string
		opens                    bool
	}{
		{"set composed, typed decomposed", "chef", decomposed, true},
		{"set composed, typed composed", "chef", composed, true},
		{"set decomposed, typed composed", "cook", composed, true},
		{"without the accents", "chef", "creme brulee etoile", false},
		{"in full width", "ada", "\uff43orrect horse battery staple", false},
		{"in another case", "ada", strings.ToUpper(secretly), false},
	} {
		_, err := c.signIn.Login(t.Context(), service.LoginRequest{Username: tt.username, Password: tt.password, ClientID: "app", Caller: phone()})
		switch {
		case tt.opens && err != nil:
			t.Errorf("%s: %v", tt.name, err)
		case !tt.opens:
			wantReason(t, err, fault.InvalidCredentials)
		}
	}
}

func TestLoginsAreCountedByHowTheyEnded(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	c.login(t, "ada")
	ask := func(signIn *service.SignIn, username, password string, by ids.Client) {
		_, _ = signIn.Login(t.Context(), service.LoginRequest{Username: username, Password: password, ClientID: by, Caller: phone()})
	}
	ask(c.signIn, "ada", "wrong horse battery staple", "app")
	ask(c.signIn, "ada", secretly, "nobody")
	c.clock.hold() // or a wait may end meanwhile
	for range 13 { // ten are free
		ask(c.signIn, "bob", "wrong horse battery staple", "app")
	}
	if diff := cmp.Diff(map[string]int{"ok": 1, "invalid_credentials": 11, "client_invalid": 1, "rate_limited": 3}, c.events.counted()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	// One slot and one place in its queue: of many logins at once some find no place.
	o := c.options
	o.Hasher = must(password.New(password.Options{Config: password.Config{MemoryKiB: 8 << 10, Time: 16, Threads: 1, MemoryBudgetMiB: 8}, Weak: true,
		Slots: 1, Queue: 1, QueueWait: time.Minute}))(t)
	narrow := must(service.NewSignIn(o))(t)
	for round := 0; c.events.counted()["overloaded"] == 0 && round < 50; round++ {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() { ask(narrow, string(ids.New[ids.Account]()), secretly, "app") })
		}
		wg.Wait()
	}
	if got := c.events.counted(); got["overloaded"] == 0 || got["rate_limited"] != 3 || got["ok"] != 1 {
		t.Errorf("with a full hashing queue the logins are counted as %v", got)
	}
}

func TestTheRefusalOfATargetNamesItsParameter(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	login := func(id ids.Client, audience ...string) error {
		r := service.LoginRequest{Username: "ada", Password: secretly, Audience: audience, Caller: phone()}
		if c.secrets[id] != "" {
			r.Client = c.proof(id)
		} else {
			r.ClientID = id
		}
		_, err := c.signIn.Login(t.Context(), r)
		return err
	}
	service := func(id ids.Client, resources ...string) error {
		_, err := c.tokens.ClientCredentials(t.Context(), service.ClientCredentialsRequest{ClientID: string(id), Secret: c.secrets[id], Resources: resources, Caller: phone()})
		return err
	}
	many := make([]string, 65)
	for _, tt := range []struct {
		name      string
		err       error
		parameter string // empty: no refusal
		says      string
	}{
		{"a login for another's audience", login("game", wiki), "audience", "registered with"},
		{"a login for none where there is no default", login("wiki"), "audience", "is required"},
		{"a login for too many", login("game", many...), "audience", "at most 64"},
		{"a login for its own", login("game", api), "", ""},
		{"a service's token for another's audience", service("web", wiki), "resource", "registered with"},
		{"a service's token for none where there is no default", service("wiki"), "resource", "is required"},
		{"a service's token for too many", service("web", many...), "resource", "at most 64"},
		{"a service's token for its own", service("web", api), "", ""},
	} {
		if tt.parameter == "" {
			if tt.err != nil {
				t.Errorf("%s: %v", tt.name, tt.err)
			}
			continue
		}
		wantReason(t, tt.err, fault.InvalidTarget)
		f := fault.From(tt.err)
		if f.Kind != fault.Invalid || !strings.HasPrefix(f.Message, tt.parameter+": ") || !strings.Contains(f.Message, tt.says) ||
			len(f.Violations) != 1 || f.Violations[0].Field != tt.parameter {
			t.Errorf("%s is refused with %q and %v", tt.name, f.Message, f.Violations)
		}
	}
}

func TestR36EveryLoginIsANewSession(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	first := c.login(t, "ada")
	// The session of whoever calls is not taken over: no fixation.
	second := must(c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, ClientID: "app", Caller: c.as(t, first)}))(t)
	if first.SessionID == second.SessionID || first.RefreshToken == second.RefreshToken {
		t.Error("two logins share a session")
	}
	if _, err := ids.Bytes(second.SessionID); err != nil { // 16 bytes, or it is an error
		t.Errorf("the session id is not 16 bytes: %v", err)
	}
	rotated := must(c.refresh(t.Context(), first.RefreshToken))(t)
	if rotated.SessionID != first.SessionID {
		t.Error("a refresh, which authenticates nobody, changed the session")
	}
	row, _, _, err := c.db.Sessions().Get(t.Context(), first.SessionID)
	if err != nil {
		t.Fatal(err)
	}
	if row.SecretHash == ([32]byte{}) || strings.Contains(first.RefreshToken, string(row.SecretHash[:])) {
		t.Error("the session's secret is not stored as a hash")
	}
}
