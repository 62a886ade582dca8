package service_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/service"
)

// TestTheTokensOfEveryClientFitAVerifier: what may be registered may be asked for all at once, and a token that is longer
// than verifiers take would lock the client's users out.
func TestTheTokensOfEveryClientFitAVerifier(t *testing.T) {
	t.Parallel()
	c := newCore(t)
	entries := func(n int, fill string) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("%02d%s", i, fill))
		}
		return all
	}
	for _, tt := range []struct {
		name              string
		audiences, scopes []string
		fits              bool
	}{
		{"sixty-four short ones of each", entries(64, strings.Repeat("a", 26)), entries(64, strings.Repeat("s", 26)), true},
		{"long audiences", entries(64, strings.Repeat("a", 254)), nil, false},
		{"the twin: a few long audiences", entries(15, strings.Repeat("a", 254)), nil, true},
		{"long scopes", entries(1, "a"), entries(64, strings.Repeat("s", 254)), false},
		{"characters that JSON spells with six", entries(15, strings.Repeat("&", 254)), nil, false},
	} {
		id, _, err := c.admin.Create(t.Context(), service.Operator(1000), client.Client{Kind: client.Public,
			Audiences: tt.audiences, DefaultAudiences: tt.audiences, Scopes: tt.scopes, DefaultScopes: tt.scopes})
		if !tt.fits {
			if fault.From(err).Reason != fault.FieldInvalid {
				t.Errorf("%s: registering gives %v", tt.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		issued, err := c.signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, ClientID: id.ID})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if _, err := c.verifier.Verify(t.Context(), issued.AccessToken); err != nil {
			t.Errorf("%s: a token of %d bytes: %v", tt.name, len(issued.AccessToken), err)
		}
	}
}
