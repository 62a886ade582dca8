package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	policyv1 "github.com/authsvc/authsvc/gen/authsvc/policy/v1"
	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/oauth2"
	"github.com/authsvc/authsvc/internal/service"
)

// rule is a method's policy as the pipeline runs it.
type rule struct {
	open   bool // anybody, or the holder of the token in the request
	user   bool // a person's access token
	client bool // an authenticated client: Basic, or its own access token
	bearer bool // guard judges access tokens for it
	scopes []string
}

// publicRules is the table of the services that everybody may reach.
func publicRules() (map[string]*rule, error) {
	return readRules(readRule, authsvcv1.File_authsvc_v1_auth_proto, authsvcv1.File_authsvc_v1_session_proto,
		authsvcv1.File_authsvc_v1_account_proto, authsvcv1.File_authsvc_v1_trust_proto)
}

// readRules builds a table from the descriptors of the services; a method whose rule its door cannot keep is an error, so
// that none is served by less than its proto says.
func readRules(read func(protoreflect.MethodDescriptor) (*rule, error), files ...protoreflect.FileDescriptor) (map[string]*rule, error) {
	rules := map[string]*rule{}
	for _, f := range files {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for k := range s.Methods().Len() {
				m := s.Methods().Get(k)
				name := fmt.Sprintf("/%s/%s", s.FullName(), m.Name())
				r, err := read(m)
				if err != nil {
					return nil, fmt.Errorf("rpc: %s: %w", name, err)
				}
				rules[name] = r
			}
		}
	}
	return rules, nil
}

// ruleOf reads what a method's proto says of who may call it.
func ruleOf(m protoreflect.MethodDescriptor) (*policyv1.Rule, error) {
	p, ok := proto.GetExtension(m.Options(), policyv1.E_Rule).(*policyv1.Rule)
	if !ok || !proto.HasExtension(m.Options(), policyv1.E_Rule) {
		return nil, errors.New("it has no authsvc.policy.v1.rule")
	}
	return p, nil
}

// readRule reads the rule of a method at the public door.
func readRule(m protoreflect.MethodDescriptor) (*rule, error) {
	p, err := ruleOf(m)
	if err != nil {
		return nil, err
	}
	if p.GetSensitive() || p.GetHonourExp() {
		return nil, errors.New("its rule is sensitive or honours exp: this door reads the log itself, at most a second ago, and keeps no other age")
	}
	switch who := p.GetWho().(type) {
	case *policyv1.Rule_Public, *policyv1.Rule_Holder:
		return &rule{open: true}, nil
	case *policyv1.Rule_User:
		return &rule{user: true, bearer: true, scopes: who.User.GetScopes()}, nil
	case *policyv1.Rule_Client:
		return &rule{client: true, bearer: true, scopes: []string{who.Client.GetScope()}}, nil
	case *policyv1.Rule_Authenticated:
		return nil, errors.New("its rule is authenticated: a method of this door is for a user or for a client")
	case *policyv1.Rule_Operator:
		return nil, errors.New("its rule is operator: it is for the admin listener alone")
	default:
		return nil, errors.New("its rule names nobody")
	}
}

// readOperatorRule reads the rule of a method at the operators' door. Its listener has judged who calls.
func readOperatorRule(m protoreflect.MethodDescriptor) (*rule, error) {
	p, err := ruleOf(m)
	switch {
	case err != nil:
		return nil, err
	case p.GetOperator() == nil || p.GetSensitive() || p.GetHonourExp():
		return nil, errors.New("its rule is not operator and nothing else, and the admin listener knows no other")
	}
	return &rule{open: true}, nil
}

type clientKey struct{}

// authenticated is the client that a client rule let in.
func authenticated(ctx context.Context) client.Client {
	c, _ := ctx.Value(clientKey{}).(client.Client)
	return c
}

// authenticate runs the method's rule and then the call. Default deny: a method that is not in the table is refused.
func (d *Door) authenticate(ctx context.Context, method string, call func(context.Context) (any, error)) (any, error) {
	r := d.rules[method]
	switch {
	case r == nil:
		return nil, fault.New(fault.Denied, fault.PermissionDenied, "nobody may call this method")
	case r.open:
		return call(ctx)
	case r.client && isBasic(ctx):
		auth, err := basic(ctx)
		if err != nil {
			return nil, err
		}
		c, err := d.o.Clients.Authenticate(ctx, auth)
		if err != nil {
			return nil, err
		}
		return call(context.WithValue(ctx, clientKey{}, c))
	case r.client && len(metadata.ValueFromIncomingContext(ctx, "authorization")) == 0:
		return nil, fault.New(fault.Unauthenticated, fault.ClientInvalid, "client authentication is missing or wrong, or the client is unknown")
	}
	if err := d.o.Fresh(ctx); err != nil {
		return nil, err
	}
	return d.byToken(ctx, method, call)
}

// byToken asks the guard, and for a client's rule whether the client is still there.
func (d *Door) byToken(ctx context.Context, method string, call func(context.Context) (any, error)) (any, error) {
	return d.guard.UnaryServerInterceptor()(ctx, nil, &grpc.UnaryServerInfo{FullMethod: method}, func(ctx context.Context, _ any) (any, error) {
		if d.rules[method].user {
			return call(ctx)
		}
		claims, _ := guard.ClaimsFromContext(ctx)
		c, err := d.o.Clients.Get(ctx, ids.Client(claims.ClientID))
		if err != nil {
			return nil, err
		}
		return call(context.WithValue(ctx, clientKey{}, c))
	})
}

// rejudgeFor bounds a look at the credentials of a stream.
const rejudgeFor = 250 * time.Millisecond

// rejudge says why the caller of a client's stream may not have it any longer. It decides from memory, as old as that may
// be: while the store is away nobody's stream ends for it, and its heartbeats tell how old their news are.
func (d *Door) rejudge(ctx context.Context, method string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, rejudgeFor)
	defer cancel()
	if isBasic(ctx) {
		var auth service.ClientAuth
		if auth, err = basic(ctx); err == nil {
			_, err = d.o.Clients.Authenticate(ctx, auth)
		}
	} else {
		_, err = d.byToken(ctx, method, func(context.Context) (any, error) { return struct{}{}, nil })
	}
	if c := StatusOf(err).Code(); c != codes.Unauthenticated && c != codes.PermissionDenied {
		return nil
	}
	return err
}

func isBasic(ctx context.Context) bool {
	v := metadata.ValueFromIncomingContext(ctx, "authorization")
	return len(v) == 1 && len(v[0]) >= 6 && strings.EqualFold(v[0][:6], "basic ")
}

// basic reads a client's authentication; its absence is not an error, anything malformed or doubled is.
func basic(ctx context.Context) (service.ClientAuth, error) {
	v := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(v) == 0 {
		return service.ClientAuth{}, nil
	}
	if len(v) == 1 {
		if id, secret, err := oauth2.ParseBasic(v[0]); err == nil {
			return service.ClientAuth{Presented: true, ID: ids.Client(id), Secret: secret}, nil
		}
	}
	return service.ClientAuth{}, fault.New(fault.Unauthenticated, fault.ClientInvalid, "the authorization is not one HTTP Basic header of a client")
}

// Admit runs a method's rule alone, for a door that must know before it reads a large request.
func (d *Door) Admit(ctx context.Context, method string) error {
	_, err := d.authenticate(ctx, method, func(context.Context) (any, error) { return nil, nil })
	if err != nil {
		return d.answer(ctx, method, err)
	}
	return nil
}
