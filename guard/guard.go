// Package guard puts an access token's verdict in front of handlers: gRPC interceptors, unary and stream, and net/http
// middleware, over one table of rules that denies what it does not name. It owns who may call what and how a refusal is
// said, and the end of an open gRPC stream whose token expires or is revoked; whether a token is good is package verify's
// business alone. It owns too the client of the trust feed, which tells a verifier the issuer's keys and what has been revoked,
// and the source of the tokens with which a service calls others.
//
//	g, err := guard.New(guard.Options{
//		Verifier: v,
//		Rules: map[string]guard.Rule{
//			"/shop.v1.Orders/List":   {Scopes: []string{"orders.read"}},
//			"/grpc.health.v1.Health/Check": {Public: true},
//		},
//	})
//	server := grpc.NewServer(g.ServerOptions()...)
package guard

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/metric"

	"github.com/authsvc/authsvc/verify"
)

// Domain is the domain of the google.rpc.ErrorInfo in every refusal.
const Domain = "authsvc"

// The reasons of google.rpc.ErrorInfo.
const (
	// ReasonTokenInvalid: no token, more than one, malformed, not from our issuer, or for another audience.
	ReasonTokenInvalid = "TOKEN_INVALID"
	// ReasonTokenExpired: the signature is good, the time is over.
	ReasonTokenExpired = "TOKEN_EXPIRED"
	// ReasonTokenRevoked: the signature is good, something has ended the token.
	ReasonTokenRevoked = "TOKEN_REVOKED"
	// ReasonScopeInsufficient: the token lacks a scope that the rule needs.
	ReasonScopeInsufficient = "SCOPE_INSUFFICIENT"
	// ReasonPermissionDenied: no rule lets anybody call this, or not with this kind of token.
	ReasonPermissionDenied = "PERMISSION_DENIED"
	// ReasonReplicaStale: the verifier has no keys or no revocations at the moment, or they are too old; nothing was decided.
	ReasonReplicaStale = "REPLICA_STALE"
)

// What Options.Observe is told where a call went on, but not by fresh knowledge of the feed.
const (
	// AcceptedStale: by what the feed knew more than StaleAge ago.
	AcceptedStale = "ACCEPTED_STALE"
	// AcceptedIntrospected: beyond the limit of the rule, by what authsvc has answered about this token; see Options.Introspect.
	AcceptedIntrospected = "ACCEPTED_INTROSPECTED"
)

// Rule says who may call. The zero Rule lets nobody. At most one of Public, Optional, Authenticated, User and Client is set;
// Scopes alone mean Authenticated with those scopes.
type Rule struct {
	// Public lets everybody call; a token, if there is one, is not looked at.
	Public bool
	// Optional lets calls without a bearer token through, without claims, for a handler that has another way to know its caller
	// and must use it. A bearer token that is there has to be good.
	Optional bool
	// Authenticated asks for a good token, any.
	Authenticated bool
	// User asks for a token of a session (with a sid), which a service's own token is not.
	User bool
	// Client asks for a service's own token (without a sid).
	Client bool
	// Scopes are what the token must have, all of them.
	Scopes []string
	// Sensitive makes MaxAgeSensitive, 2 s, the greatest age of the feed's knowledge at which a call goes on; it is MaxAge, 60 s,
	// otherwise. It needs Options.Feed.
	Sensitive bool
	// HonourExp lets calls go on beyond MaxAge, by the last keys and revocations that are known, until the token expires. It gives
	// up the promise of Feed: while authsvc is away, a token that was revoked since is let through. A verifier that has never
	// known anything still lets nothing through. It needs Options.Feed and excludes Sensitive.
	HonourExp bool
}

// check says what in the rule contradicts itself, or needs a feed that is not there.
func (r Rule) check(feed bool) error {
	set := 0
	for _, b := range []bool{r.Public, r.Optional, r.Authenticated, r.User, r.Client} {
		if b {
			set++
		}
	}
	switch {
	case set > 1:
		return errors.New("has more than one of Public, Optional, Authenticated, User and Client")
	case r.Public && len(r.Scopes) > 0:
		return errors.New("a public rule has no scopes")
	case r.Sensitive && r.HonourExp:
		return errors.New("has both Sensitive and HonourExp")
	case (r.Sensitive || r.HonourExp) && (r.Public || r.denies()):
		return errors.New("has Sensitive or HonourExp, and looks at no token")
	case (r.Sensitive || r.HonourExp) && !feed:
		return errors.New("has Sensitive or HonourExp, which needs Options.Feed")
	}
	for _, s := range r.Scopes {
		if s == "" || strings.ContainsAny(s, " \t\"\\") {
			return fmt.Errorf("%q is not one scope", s)
		}
	}
	return nil
}

// clone is a rule that its caller cannot change any more.
func (r Rule) clone() Rule {
	r.Scopes = slices.Clone(r.Scopes)
	return r
}

func (r Rule) denies() bool {
	return !(r.Public || r.Optional || r.Authenticated || r.User || r.Client || len(r.Scopes) > 0)
}

// maxAge is the age beyond which a call does not go on; HonourExp has none.
func (r Rule) maxAge() time.Duration {
	switch {
	case r.HonourExp:
		return math.MaxInt64
	case r.Sensitive:
		return MaxAgeSensitive
	default:
		return MaxAge
	}
}

// Options are what a Guard is made of.
type Options struct {
	// Verifier judges the tokens. Required.
	Verifier *verify.Verifier
	// Feed is the Verifier's Revocations, where that is a Feed: the guard then knows the age of each verdict, holds the limits of
	// its rules and tells Observe of stale ones. Without it no rule may be Sensitive or HonourExp.
	Feed *Feed
	// Introspect asks authsvc about a token, over a connection like the Feed's, where the Feed's knowledge is older than the limit
	// of the rule and the token is good but for that. The call goes on if the answer is that this very token is active; if it is
	// not, the refusal is TOKEN_INVALID, for authsvc does not say whether the token was revoked or is none of the Feed's client's
	// business: that client needs the audience of the tokens. Without an answer it is REPLICA_STALE, as without Introspect.
	// The promise of Feed holds: authsvc answers by knowledge of at most 1 s, which is added to the age of the answer.
	//
	// authsvc is asked with care: once for all who present the same token, and again after 1 s; 8 calls at a time and none that
	// waits; 250 ms for each; after 5 failures in a row not at all for a second, and then by one call at a time, at pauses that
	// double up to 30 s. Nothing is asked before the Feed has ever known anything, under HonourExp, or while the Feed does not run.
	// It needs Feed.
	Introspect bool
	// Rules are found by exact match, never by pattern: for gRPC by full method, "/package.Service/Method"; for HTTP see
	// Middleware.
	Rules map[string]Rule
	// Default is for what Rules does not name. The zero Rule denies. Over HTTP it is not for what Rules names in another spelling; see
	// Middleware.
	Default Rule
	// Realm is named in HTTP challenges (RFC 9110 §11.5); empty leaves it out.
	Realm string
	// Observe is told of every decision, for metrics: the key of the rule that was found ("" for Default, so that callers cannot
	// invent names) and the reason of the refusal ("", AcceptedStale or AcceptedIntrospected where the call went on). Of the end of a
	// stream that was let in it is not told; Meter counts those. Nil is fine.
	Observe func(ctx context.Context, rule, reason string)
	// Meter is where the same is counted by OpenTelemetry, by outcome; docs/verify.md lists what. Nil means that nothing is.
	Meter metric.MeterProvider
}

// Guard decides on calls. It is safe for concurrent use and never changes.
type Guard struct {
	verifier *verify.Verifier
	feed     *Feed // or nil
	rules    map[string]Rule
	spelled  map[string]bool // the keys of rules, in the plain spelling
	fallback Rule
	realm    string
	asks     bool // Options.Introspect
	observe  func(ctx context.Context, rule, reason string)
	meter    *guardMeter
}

// New makes a Guard, or says which rule contradicts itself.
func New(o Options) (*Guard, error) {
	if o.Verifier == nil {
		return nil, errors.New("guard: Options.Verifier is required")
	}
	if strings.ContainsAny(o.Realm, "\"\\\r\n") {
		return nil, errors.New("guard: Options.Realm has characters that a challenge cannot quote")
	}
	if o.Feed != nil && o.Verifier.Revocations() != verify.RevocationSource(o.Feed) {
		return nil, errors.New("guard: Options.Feed is not the Revocations of Options.Verifier")
	}
	if o.Introspect && o.Feed == nil {
		return nil, errors.New("guard: Options.Introspect needs Options.Feed")
	}
	if err := o.Default.check(o.Feed != nil); err != nil {
		return nil, fmt.Errorf("guard: Options.Default: %w", err)
	}
	for key, rule := range o.Rules {
		if err := rule.check(o.Feed != nil); err != nil {
			return nil, fmt.Errorf("guard: the rule of %q: %w", key, err)
		}
		if !nameable(key) {
			return nil, fmt.Errorf("guard: the rule of %q: neither a gRPC full method nor an HTTP path, with a method in capitals or without", key)
		}
	}
	g := &Guard{
		verifier: o.Verifier, feed: o.Feed, rules: maps.Clone(o.Rules), fallback: o.Default.clone(), realm: o.Realm, observe: o.Observe,
		asks: o.Introspect, spelled: map[string]bool{},
	}
	for key, rule := range g.rules {
		g.rules[key] = rule.clone()
		g.spelled[spelling(key)] = true
	}
	if g.observe == nil {
		g.observe = func(context.Context, string, string) {}
	}
	var err error
	if g.meter, err = newGuardMeter(o.Meter); err != nil {
		return nil, fmt.Errorf("guard: Options.Meter: %w", err)
	}
	return g, nil
}

// nameable says whether a call can ever have the key, so that a misspelled rule does not leave its call to Default.
func nameable(key string) bool {
	before, _, ok := strings.Cut(key, "/")
	method, host, spaced := strings.Cut(before, " ")
	return ok && (!spaced || method != "" && method == strings.ToUpper(method)) && !strings.ContainsAny(method+host, " \t")
}

// refusal is why a call may not go on, before a transport words it.
type refusal struct {
	reason  string
	message string
	scopes  []string // with SCOPE_INSUFFICIENT: what is needed
	bare    bool     // there were no credentials at all
	ctx     error    // the call itself had ended
}

// decide is the one path to every handler. values are the call's authorization fields; the context it gives carries the claims
// where there are some.
func (g *Guard) decide(ctx context.Context, key string, rule Rule, values []string) (context.Context, *refusal) {
	ctx, how, no := g.apply(ctx, rule, values)
	if no != nil {
		g.tell(ctx, key, no.reason)
		return nil, no
	}
	g.tell(ctx, key, how)
	return ctx, nil
}

// tell is where every decision is counted.
func (g *Guard) tell(ctx context.Context, key, reason string) {
	g.meter.call(ctx, reason)
	g.observe(ctx, key, reason)
}

// apply also says how it judged what it let through: "", AcceptedStale or AcceptedIntrospected.
func (g *Guard) apply(ctx context.Context, rule Rule, values []string) (_ context.Context, how string, _ *refusal) {
	if _, ok := ClaimsFromContext(ctx); ok { // another guard's, further out; not this one's verdict
		ctx = context.WithValue(ctx, claimsKey{}, (*verify.Claims)(nil))
	}
	switch {
	case rule.denies():
		return ctx, "", &refusal{reason: ReasonPermissionDenied, message: "nobody may call this"}
	case len(values) > 1:
		return ctx, "", &refusal{reason: ReasonTokenInvalid, message: "more than one authorization"}
	case rule.Public:
		return ctx, "", nil
	}
	token, bearer := "", false
	if len(values) == 1 {
		token, bearer = bearerToken(values[0])
	}
	if !bearer {
		if rule.Optional {
			return ctx, "", nil
		}
		return ctx, "", &refusal{reason: ReasonTokenInvalid, message: "a bearer token is required", bare: true}
	}
	claims, how, err := g.verify(ctx, rule, token)
	if err != nil {
		return ctx, "", refuse(ctx, err)
	}
	switch {
	case rule.User && claims.SessionID == "":
		return ctx, "", &refusal{reason: ReasonPermissionDenied, message: "this needs a user's token"}
	case rule.Client && claims.SessionID != "":
		return ctx, "", &refusal{reason: ReasonPermissionDenied, message: "this needs a service's own token"}
	}
	for _, scope := range rule.Scopes {
		if !claims.HasScope(scope) {
			return ctx, "", &refusal{reason: ReasonScopeInsufficient, message: "the token lacks a scope", scopes: rule.Scopes}
		}
	}
	return context.WithValue(ctx, claimsKey{}, claims), how, nil
}

// verify is the verdict on a token within the limit of the rule, and how it was come by, as apply says it.
func (g *Guard) verify(ctx context.Context, rule Rule, token string) (claims *verify.Claims, how string, err error) {
	if g.feed == nil {
		claims, err = g.verifier.Verify(ctx, token)
		return claims, "", err
	}
	// In this order: what the feed had told by the date is in the list that is asked after it, and the age ends with the verdict.
	date := g.feed.date.Load()
	claims, err = g.verifier.Verify(ctx, token)
	if err != nil && !errors.Is(err, verify.ErrStale) {
		return nil, "", err
	}
	age := g.feed.age(date)
	switch {
	case date == neverDated:
		return nil, "", verify.ErrStale
	case age > rule.maxAge() || err != nil && !rule.HonourExp:
		return g.verifyByAsking(ctx, rule, token, claims)
	case age > StaleAge:
		return claims, AcceptedStale, nil
	default:
		return claims, "", nil
	}
}

// refuse words the verifier's errors. All that is wrong with a token itself gets the same words; what is not a verdict on the
// token is never told as one.
func refuse(ctx context.Context, err error) *refusal {
	switch {
	case errors.Is(err, verify.ErrExpired):
		return &refusal{reason: ReasonTokenExpired, message: "the access token has expired"}
	case errors.Is(err, verify.ErrRevoked):
		return &refusal{reason: ReasonTokenRevoked, message: "the access token has been revoked"}
	case errors.Is(err, verify.ErrMalformed), errors.Is(err, verify.ErrSignature), errors.Is(err, verify.ErrKeyUnknown),
		errors.Is(err, verify.ErrIssuer), errors.Is(err, verify.ErrAudience), errors.Is(err, verify.ErrNotYetValid),
		errors.Is(err, errInactive):
		return &refusal{reason: ReasonTokenInvalid, message: "the access token is not valid"}
	default:
		return &refusal{reason: ReasonReplicaStale, message: "tokens cannot be verified at the moment", ctx: ctx.Err()}
	}
}

// bearerToken reads an Authorization field (RFC 6750 §2.1); the scheme's case does not count (RFC 9110 §11.1).
func bearerToken(value string) (string, bool) {
	scheme, token, found := strings.Cut(value, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", false
	}
	if found {
		token = strings.TrimLeft(token, " ")
	}
	return token, true
}

type claimsKey struct{}

// ClaimsFromContext gives the claims of the token that the guard let through, to be read and not written. It is false under a
// Public rule, and under an Optional one where there was no bearer token.
func ClaimsFromContext(ctx context.Context) (*verify.Claims, bool) {
	claims, _ := ctx.Value(claimsKey{}).(*verify.Claims)
	return claims, claims != nil
}
