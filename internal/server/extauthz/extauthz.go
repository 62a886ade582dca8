// Package extauthz is the door for reverse proxies: they ask whether a request that they hold may pass, and whom it comes from.
// Envoy asks by envoy.service.auth.v3.Authorization/Check, nginx, Traefik and Caddy by GET /forward-auth. It owns how a proxy says
// what a route requires, and how the answer is written for it; who may pass is package guard's verdict.
//
// What is required comes from the proxy's configuration alone, and of the proxied request nothing counts but its authorization:
// neither its path nor its method nor any other header, for a client can choose those. What is not understood lets nobody pass.
package extauthz

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/oauth2"
	"github.com/authsvc/authsvc/verify"
)

// realm is named in challenges, as by the other doors.
const realm = "authsvc"

// cacheBytes bounds the memory for tokens that were found good, of all audiences together.
const cacheBytes = 32 << 20

// The outcomes that Options.Observe is told of beside those of guard.Options.Observe.
const (
	// Misconfigured: the proxy asked for what is not understood.
	Misconfigured = "MISCONFIGURED"
	// Undecided: revocations could not be read, or something failed that nobody foresaw.
	Undecided = "UNDECIDED"
)

// Options is what a Door is made of. All are required but Now.
type Options struct {
	// Config has at least one audience.
	Config Config
	// Issuer is the iss of the tokens.
	Issuer string
	// Keys are the issuer's, Revocations what this replica knows.
	Keys        verify.KeySource
	Revocations verify.RevocationSource
	// Fresh makes sure that revocations are at most a second old, or says that they cannot be read.
	Fresh func(ctx context.Context) error
	// Status renders an error: the one table from faults to codes.
	Status func(err error) *status.Status
	// Observe is told the outcome of every question: "" where the request may pass, the reason of guard's refusal, or one of the
	// outcomes above.
	Observe func(outcome string)
	// Logger gets what is wrong with a proxy's configuration, once a minute, and the causes of what failed on our side over HTTP.
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Door answers proxies. It is safe for concurrent use.
type Door struct {
	guards  map[string]*guard.Guard // by audience
	only    *guard.Guard            // where there is one audience
	headers []identity
	fresh   func(context.Context) error
	status  func(error) *status.Status
	observe func(string)
	log     *slog.Logger
	now     func() time.Time
	said    complaints
}

// New makes a Door, or says which option is missing or wrong.
func New(o Options) (*Door, error) {
	switch {
	case len(o.Config.Audiences) == 0:
		return nil, errors.New("extauthz: Options.Config has no audiences")
	case o.Fresh == nil || o.Status == nil || o.Observe == nil || o.Logger == nil:
		return nil, errors.New("extauthz: Options.Fresh, Status, Observe and Logger are required")
	}
	if err := o.Config.Validate(); err != nil {
		return nil, fmt.Errorf("extauthz: Options.Config: %w", err)
	}
	d := &Door{guards: map[string]*guard.Guard{}, fresh: o.Fresh, status: o.Status, observe: o.Observe, log: o.Logger, now: o.Now}
	if d.now == nil {
		d.now = time.Now
	}
	for _, audience := range o.Config.Audiences {
		v, err := verify.New(verify.Options{Issuer: o.Issuer, Audiences: []string{audience}, Keys: o.Keys, Revocations: o.Revocations,
			CacheBytes: cacheBytes / len(o.Config.Audiences), Now: o.Now})
		if err != nil {
			return nil, fmt.Errorf("extauthz: %w", err)
		}
		g, err := guard.New(guard.Options{Verifier: v, Realm: realm, Observe: func(_ context.Context, _, reason string) { o.Observe(reason) }})
		if err != nil {
			return nil, fmt.Errorf("extauthz: %w", err)
		}
		if d.guards[audience] = g; len(o.Config.Audiences) == 1 {
			d.only = g
		}
	}
	for _, h := range o.Config.Headers.list() {
		if h.name != "" {
			h.name = http.CanonicalHeaderKey(h.name)
			d.headers = append(d.headers, h)
		}
	}
	return d, nil
}

// need is what a proxy's configuration requires of a request.
type need struct {
	guard *guard.Guard // of the audience
	rule  guard.Rule
}

// parameter is one of a proxy's configuration.
type parameter struct{ name, value string }

// need reads what the proxy's configuration says, each parameter once.
func (d *Door) need(parameters []parameter) (need, error) {
	var n need
	for i, p := range parameters {
		if slices.ContainsFunc(parameters[:i], func(other parameter) bool { return other.name == p.name }) {
			return n, fault.Field(clip(p.name), "stands twice")
		}
		if err := d.set(&n, p.name, p.value); err != nil {
			return n, err
		}
	}
	if n.guard == nil {
		n.guard = d.only
	}
	if n.guard == nil {
		return n, fault.Field("audience", "is required, since forward_auth.audiences has several")
	}
	n.rule.Authenticated = !n.rule.User && !n.rule.Client
	return n, nil
}

// set takes one parameter of the proxy's configuration. Nothing is skipped: a restriction that was misspelt, or left empty, would
// be none.
func (d *Door) set(n *need, name, value string) error {
	switch name {
	case "audience":
		if n.guard = d.guards[value]; n.guard == nil {
			return fault.Field(name, "is not one of forward_auth.audiences")
		}
	case "scope":
		scopes, err := oauth2.ParseScope(value)
		if err != nil {
			return fault.Field(name, "must be scopes with single spaces between them")
		}
		n.rule.Scopes = scopes
	case "require":
		switch value {
		case "user":
			n.rule.User = true
		case "client":
			n.rule.Client = true
		default:
			return fault.Field(name, "must be user or client")
		}
	default:
		return fault.Field(clip(name), "is not a parameter: audience, scope and require are")
	}
	return nil
}

// clip makes a name fit for words.
func clip(name string) string {
	if len(name) > maxHeader {
		name = name[:maxHeader] + "…"
	}
	return strings.ToValidUTF8(name, "?")
}

// judge is the verdict; an error means that there is none.
func (d *Door) judge(ctx context.Context, n need, authorization []string) (*verify.Claims, *guard.Refusal, error) {
	if err := d.fresh(ctx); err != nil {
		d.observe(Undecided)
		return nil, nil, err
	}
	claims, no := n.guard.Judge(ctx, n.rule, authorization)
	switch {
	case no == nil:
		return claims, nil, nil
	case no.Status.Code() != codes.Unauthenticated && no.Status.Code() != codes.PermissionDenied:
		return nil, nil, no.Status.Err()
	}
	return nil, no, nil
}

// valueOf is a claim as a header carries it. What came out of a verified token is looked at all the same: a line break in it would
// be a header of somebody's choice.
func (h identity) valueOf(c *verify.Claims) (string, error) {
	v := h.value(c)
	for i := range len(v) {
		if v[i] < 0x20 || v[i] > 0x7e {
			return "", fmt.Errorf("extauthz: the claim %s has a character that no header carries", h.claim)
		}
	}
	return v, nil
}

// misconfigured counts what a proxy asks wrongly, and tells the operator once a minute.
func (d *Door) misconfigured(err error) *status.Status {
	d.observe(Misconfigured)
	if d.said.first(err.Error(), d.now()) {
		d.log.Warn("a proxy's configuration is not understood, and nothing passes by it", "problem", err)
	}
	return d.status(err)
}

// body is google.rpc.Status in JSON, with the reason.
func body(s *status.Status) []byte {
	out := struct {
		Code    codes.Code `json:"code"`
		Message string     `json:"message"`
		Details []detail   `json:"details,omitempty"`
	}{Code: s.Code(), Message: s.Message()}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			out.Details = append(out.Details, detail{"type.googleapis.com/google.rpc.ErrorInfo", info.GetReason(), info.GetDomain()})
		}
	}
	text, err := json.Marshal(out)
	if err != nil { // it has nothing that could not be written
		return nil
	}
	return append(text, '\n')
}

type detail struct {
	Type   string `json:"@type"`
	Reason string `json:"reason"`
	Domain string `json:"domain"`
}

// Who calls this door directly chooses the words of complaints, so their number is bounded, and they are forgotten: a stranger who
// filled the memory for good would keep from the log what an operator looks for there.
const (
	maxComplaints = 64
	forgetAfter   = time.Minute
)

// complaints remembers what was said already.
type complaints struct {
	mu    sync.Mutex
	seen  map[string]bool
	since time.Time
}

// first reports whether this was not said in this minute, and there is room to remember it.
func (c *complaints) first(what string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen == nil || now.Sub(c.since) >= forgetAfter {
		c.seen, c.since = map[string]bool{}, now
	}
	if c.seen[what] || len(c.seen) >= maxComplaints {
		return false
	}
	c.seen[what] = true
	return true
}
