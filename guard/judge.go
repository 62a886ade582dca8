package guard

import (
	"context"

	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/verify"
)

// Refusal is why a call may not go on, for a transport of its own to say.
type Refusal struct {
	// Status has code, words and a google.rpc.ErrorInfo with the reason. UNAUTHENTICATED and PERMISSION_DENIED are verdicts; with
	// every other code nothing was decided.
	Status *status.Status
	// Challenge is the WWW-Authenticate field that belongs to it over HTTP (RFC 6750 §3), or empty.
	Challenge string
}

// Judge decides on a call that comes neither through an interceptor nor through Middleware, such as one that a proxy asks about:
// by a rule that stands in no table, on the call's authorization fields. The Claims are nil under a Public rule, and under an
// Optional one where there was no bearer token; they are shared, to be read and not written. A rule that New would refuse lets
// nobody.
func (g *Guard) Judge(ctx context.Context, rule Rule, authorization []string) (*verify.Claims, *Refusal) {
	if rule.check(g.feed != nil) != nil {
		rule = Rule{}
	}
	ctx, no := g.decide(ctx, "", rule, authorization)
	if no != nil {
		return nil, &Refusal{Status: no.status(), Challenge: g.challenge(no)}
	}
	claims, _ := ClaimsFromContext(ctx)
	return claims, nil
}
