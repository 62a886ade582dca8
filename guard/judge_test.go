package guard_test

import (
	"context"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/authsvc/authsvc/guard"
)

func TestJudgeAnswersAsTheOtherWaysDo(t *testing.T) {
	t.Parallel()
	var seen []string
	g := newGuard(t, guard.Options{Realm: "shop", Observe: func(_ context.Context, _, reason string) { seen = append(seen, reason) }})
	good := "Bearer " + token(nil)
	for _, tt := range []struct {
		name      string
		rule      guard.Rule
		values    []string
		code      codes.Code
		reason    string
		challenge string
		subject   string
	}{
		{"a good token", guard.Rule{Scopes: []string{"orders.read"}}, []string{good}, codes.OK, "", "", "acct"},
		{"nobody, under a public rule", guard.Rule{Public: true}, nil, codes.OK, "", "", ""},
		{"no token", guard.Rule{Authenticated: true}, nil, codes.Unauthenticated, "TOKEN_INVALID", `Bearer realm="shop"`, ""},
		{"G01 two", guard.Rule{Authenticated: true}, []string{good, good}, codes.Unauthenticated, "TOKEN_INVALID",
			`Bearer realm="shop", error="invalid_token", error_description="more than one authorization"`, ""},
		{"a revoked one", guard.Rule{Authenticated: true}, []string{"Bearer " + token(map[string]any{"jti": "revoked"})}, codes.Unauthenticated, "TOKEN_REVOKED",
			`Bearer realm="shop", error="invalid_token", error_description="the access token has been revoked"`, ""},
		{"a scope that it lacks", guard.Rule{Scopes: []string{"orders.write"}}, []string{good}, codes.PermissionDenied, "SCOPE_INSUFFICIENT",
			`Bearer realm="shop", error="insufficient_scope", scope="orders.write"`, ""},
		{"the zero rule", guard.Rule{}, []string{good}, codes.PermissionDenied, "PERMISSION_DENIED", "", ""},
		{"a rule that contradicts itself", guard.Rule{Public: true, Scopes: []string{"orders.read"}}, []string{good}, codes.PermissionDenied, "PERMISSION_DENIED", "", ""},
		{"a rule that needs a feed", guard.Rule{Authenticated: true, Sensitive: true}, []string{good}, codes.PermissionDenied, "PERMISSION_DENIED", "", ""},
	} {
		seen = nil
		claims, no := g.Judge(t.Context(), tt.rule, tt.values)
		if no == nil {
			subject := ""
			if claims != nil {
				subject = claims.Subject
			}
			if tt.code != codes.OK || subject != tt.subject {
				t.Errorf("%s: let through as %q", tt.name, subject)
			}
			continue
		}
		if reason, _ := errorInfo(no.Status.Err()); claims != nil || no.Status.Code() != tt.code || reason != tt.reason || no.Challenge != tt.challenge {
			t.Errorf("%s: %v, the reason %q, the challenge %q", tt.name, no.Status, reason, no.Challenge)
		}
		if len(seen) != 1 || seen[0] != tt.reason {
			t.Errorf("%s: Observe was told %q", tt.name, seen)
		}
	}
	waiting := newGuard(t, guard.Options{Verifier: verifier(false)})
	if _, no := waiting.Judge(t.Context(), guard.Rule{Authenticated: true}, []string{good}); no == nil || no.Status.Code() != codes.Unavailable || no.Challenge != "" {
		t.Errorf("a verifier that is not ready: %v", no)
	}
}
