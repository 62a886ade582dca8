package guard_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"

	policyv1 "github.com/authsvc/authsvc/gen/authsvc/policy/v1"
	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// rpc is a method of a proto that a test writes. A nil rule is none.
type rpc struct {
	name           string
	rule           *policyv1.Rule
	client, server bool // which sides stream
}

// protoOf is the descriptor of a proto with one service, shop.v1.Orders, as a compiler would have made it.
func protoOf(t testing.TB, methods ...rpc) *descriptorpb.FileDescriptorProto {
	t.Helper()
	empty := "." + string((*emptypb.Empty)(nil).ProtoReflect().Descriptor().FullName())
	service := &descriptorpb.ServiceDescriptorProto{Name: proto.String("Orders")}
	for _, m := range methods {
		d := &descriptorpb.MethodDescriptorProto{
			Name: proto.String(m.name), InputType: proto.String(empty), OutputType: proto.String(empty),
			ClientStreaming: proto.Bool(m.client), ServerStreaming: proto.Bool(m.server),
		}
		if m.rule != nil {
			d.Options = &descriptorpb.MethodOptions{}
			proto.SetExtension(d.Options, policyv1.E_Rule, m.rule)
		}
		service.Method = append(service.Method, d)
	}
	return &descriptorpb.FileDescriptorProto{
		Name: proto.String("shop.proto"), Package: proto.String("shop.v1"), Syntax: proto.String("proto3"),
		Dependency: []string{"google/protobuf/empty.proto"}, Service: []*descriptorpb.ServiceDescriptorProto{service},
	}
}

func fileOf(t testing.TB, file *descriptorpb.FileDescriptorProto) protoreflect.FileDescriptor {
	t.Helper()
	f, err := protodesc.NewFile(file, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func public() *policyv1.Rule {
	return &policyv1.Rule{Who: &policyv1.Rule_Public{Public: &policyv1.PublicRule{}}}
}

func user(scopes ...string) *policyv1.Rule {
	return &policyv1.Rule{Who: &policyv1.Rule_User{User: &policyv1.UserRule{Scopes: scopes}}}
}

func client(scope string) *policyv1.Rule {
	return &policyv1.Rule{Who: &policyv1.Rule_Client{Client: &policyv1.ClientRule{Scope: scope}}}
}

func authenticated(scopes ...string) *policyv1.Rule {
	return &policyv1.Rule{Who: &policyv1.Rule_Authenticated{Authenticated: &policyv1.AuthenticatedRule{Scopes: scopes}}}
}

// and sets the two limits of age.
func and(r *policyv1.Rule, sensitive, honour bool) *policyv1.Rule {
	r.Sensitive, r.HonourExp = sensitive, honour
	return r
}

// with adds a field that no version of the message has.
func with[M proto.Message](m M) M {
	m.ProtoReflect().SetUnknown(protowire.AppendVarint(protowire.AppendTag(nil, 1000, protowire.VarintType), 1))
	return m
}

func TestR56RulesOfReadsTheTableFromTheProto(t *testing.T) {
	t.Parallel()
	file := protoOf(t,
		rpc{name: "Show", rule: public()},
		rpc{name: "List", rule: authenticated()},
		rpc{name: "Read", rule: authenticated("orders.read", "orders.all")},
		rpc{name: "Watch", rule: and(user("orders.read"), false, true), server: true},
		rpc{name: "Upload", rule: and(user(), true, false), client: true},
		rpc{name: "Sync", rule: client("orders.sync"), client: true, server: true},
		rpc{name: "Ping", rule: client("")},
	)
	want := map[string]guard.Rule{
		"/shop.v1.Orders/Show":   {Public: true},
		"/shop.v1.Orders/List":   {Authenticated: true},
		"/shop.v1.Orders/Read":   {Authenticated: true, Scopes: []string{"orders.read", "orders.all"}},
		"/shop.v1.Orders/Watch":  {User: true, Scopes: []string{"orders.read"}, HonourExp: true},
		"/shop.v1.Orders/Upload": {User: true, Sensitive: true},
		"/shop.v1.Orders/Sync":   {Client: true, Scopes: []string{"orders.sync"}},
		"/shop.v1.Orders/Ping":   {Client: true},
	}
	raw, err := proto.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	unread := &descriptorpb.FileDescriptorProto{}
	if err := (proto.UnmarshalOptions{Resolver: new(protoregistry.Types)}).Unmarshal(raw, unread); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*descriptorpb.FileDescriptorProto{"as generated code has it": file, "an option that nobody has read": unread} {
		got, err := guard.RulesOf(fileOf(t, f))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
		feed := idleFeed(t)
		v, err := verify.New(verify.Options{Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: feed, Revocations: feed})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := guard.New(guard.Options{Verifier: v, Feed: feed, Rules: got}); err != nil {
			t.Errorf("%s: New refuses the table: %v", name, err)
		}
	}
	if got, err := guard.RulesOf(); err != nil || len(got) != 0 {
		t.Errorf("of no file: %v, %v", got, err)
	}
}

func idleFeed(t testing.TB) *guard.Feed {
	t.Helper()
	feed, err := guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return feed
}

func TestR56ARuleThatAGuardCannotKeepIsRefused(t *testing.T) {
	t.Parallel()
	own := user("orders.read")
	own.GetUser().Own = true
	within := user("orders.read")
	with(within.GetUser())
	for name, c := range map[string]struct {
		rule *policyv1.Rule
		says string
		twin *policyv1.Rule
	}{
		"R56 no rule":                         {nil, "has no authsvc.policy.v1.rule", public()},
		"a rule with none of its members":     {&policyv1.Rule{}, "says not who may call", authenticated()},
		"an age alone":                        {&policyv1.Rule{Sensitive: true}, "says not who may call", and(authenticated(), true, false)},
		"holder":                              {&policyv1.Rule{Who: &policyv1.Rule_Holder{Holder: &policyv1.HolderRule{}}}, "authsvc's own", user()},
		"operator":                            {&policyv1.Rule{Who: &policyv1.Rule_Operator{Operator: &policyv1.OperatorRule{}}}, "authsvc's own", user()},
		"own":                                 {own, "Claims.Subject", user("orders.read")},
		"both limits of age":                  {and(user(), true, true), "both Sensitive and HonourExp", and(user(), false, true)},
		"public, but sensitive":               {and(public(), true, false), "looks at no token", public()},
		"public, but honours exp":             {and(public(), false, true), "looks at no token", public()},
		"two scopes in one":                   {user("a b"), "is not one scope", user("a", "b")},
		"an empty scope":                      {authenticated(""), "is not one scope", authenticated()},
		"a field of a later version":          {with(user("orders.read")), "does not know", user("orders.read")},
		"a field of a later version, further": {within, "does not know", user("orders.read")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			good := rpc{name: "Good", rule: public()}
			for _, m := range []rpc{{name: "Bad"}, {name: "Bad", server: true}, {name: "Bad", client: true}, {name: "Bad", client: true, server: true}} {
				m.rule = c.rule
				rules, err := guard.RulesOf(fileOf(t, protoOf(t, good, m)))
				if err == nil || rules != nil || !strings.Contains(err.Error(), "/shop.v1.Orders/Bad ") || !strings.Contains(err.Error(), c.says) ||
					strings.Contains(err.Error(), "Good") {
					t.Errorf("got %v, %v", rules, err)
				}
				m.rule = c.twin
				if rules, err := guard.RulesOf(fileOf(t, protoOf(t, good, m))); err != nil || len(rules) != 2 {
					t.Errorf("the twin: got %v, %v", rules, err)
				}
			}
		})
	}
}

func TestR56AllMethodsThatWereForgottenAreNamed(t *testing.T) {
	t.Parallel()
	_, err := guard.RulesOf(fileOf(t, protoOf(t, rpc{name: "A"}, rpc{name: "B", rule: public()}, rpc{name: "C", server: true})), authsvcv1.File_authsvc_v1_auth_proto)
	if err == nil {
		t.Fatal("got a table")
	}
	for method, want := range map[string]bool{
		"/shop.v1.Orders/A ": true, "/shop.v1.Orders/B ": false, "/shop.v1.Orders/C ": true, "/authsvc.v1.AuthService/Revoke ": true,
	} {
		if strings.Contains(err.Error(), method) != want {
			t.Errorf("%s: want named %v in\n%v", method, want, err)
		}
	}
}

func TestR56AMethodThatTheFilesHoldTwiceIsRefused(t *testing.T) {
	t.Parallel()
	old, now := fileOf(t, protoOf(t, rpc{name: "A", rule: public()})), fileOf(t, protoOf(t, rpc{name: "A", rule: user()}))
	for _, files := range [][]protoreflect.FileDescriptor{{old, now}, {now, old}} {
		if rules, err := guard.RulesOf(files...); err == nil || rules != nil || !strings.Contains(err.Error(), "/shop.v1.Orders/A is in the files twice") {
			t.Errorf("got %v, %v", rules, err)
		}
	}
	if rules, err := guard.RulesOf(now); err != nil || !rules["/shop.v1.Orders/A"].User {
		t.Errorf("the twin: got %v, %v", rules, err)
	}
}

// TestR56EveryFieldOfThePolicyIsRead fails where the policy gets a field: it is known then, so that RulesOf has to read or refuse it.
func TestR56EveryFieldOfThePolicyIsRead(t *testing.T) {
	t.Parallel()
	var got []string
	var list func(m protoreflect.MessageDescriptor)
	list = func(m protoreflect.MessageDescriptor) {
		for i := range m.Fields().Len() {
			f := m.Fields().Get(i)
			got = append(got, string(m.Name())+"."+string(f.Name()))
			if f.Message() != nil {
				list(f.Message())
			}
		}
	}
	list((*policyv1.Rule)(nil).ProtoReflect().Descriptor())
	want := []string{
		"Rule.public", "Rule.holder", "Rule.user", "UserRule.scopes", "UserRule.own", "Rule.client", "ClientRule.scope",
		"Rule.authenticated", "AuthenticatedRule.scopes", "Rule.operator", "Rule.sensitive", "Rule.honour_exp",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
