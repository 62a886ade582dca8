package service_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
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
