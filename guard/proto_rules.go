package guard

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	policyv1 "github.com/authsvc/authsvc/gen/authsvc/policy/v1"
)

// RulesOf reads a table for Options.Rules from protos: from the option authsvc.policy.v1.rule of every method, unary and
// streaming alike, of every service in the files. What is sensitive or honours exp needs Options.Feed.
//
// The error names each method that has no rule, so that a forgotten one cannot be served, each that the files hold twice, and each
// whose rule a guard cannot keep: one with none of its members or with something that this version does not know, one that contradicts itself, holder and operator,
// which are authsvc's own, and own, because an interceptor does not know whose thing a request names. It cannot see that several option
// statements named two kinds of callers, which protoc lets pass: in generated code only the last is left. buf refuses them.
func RulesOf(files ...protoreflect.FileDescriptor) (map[string]Rule, error) {
	rules := map[string]Rule{}
	var faults []error
	for _, file := range files {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for k := range methods.Len() {
				m := methods.Get(k)
				name := fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
				rule, err := ruleOf(m)
				if _, twice := rules[name]; twice { // perhaps of another version of the proto, with another rule
					err = errors.New("is in the files twice")
				}
				if err != nil {
					faults = append(faults, fmt.Errorf("guard: %s %w", name, err))
				}
				rules[name] = rule
			}
		}
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return rules, nil
}

func ruleOf(m protoreflect.MethodDescriptor) (Rule, error) {
	option, err := policyOf(m)
	switch {
	case err != nil:
		return Rule{}, err
	case option == nil:
		return Rule{}, errors.New("has no authsvc.policy.v1.rule")
	case hasUnknown(option.ProtoReflect()): // it may be a restriction
		return Rule{}, errors.New("has a rule with a field that this version of guard does not know")
	}
	rule := Rule{Sensitive: option.GetSensitive(), HonourExp: option.GetHonourExp()}
	switch who := option.GetWho().(type) {
	case *policyv1.Rule_Public:
		rule.Public = true
	case *policyv1.Rule_User:
		if who.User.GetOwn() {
			return Rule{}, errors.New("has a rule with own, which an interceptor cannot keep: leave it out, and compare Claims.Subject in the handler")
		}
		rule.User, rule.Scopes = true, who.User.GetScopes()
	case *policyv1.Rule_Client:
		rule.Client = true
		if scope := who.Client.GetScope(); scope != "" {
			rule.Scopes = []string{scope}
		}
	case *policyv1.Rule_Authenticated:
		rule.Authenticated, rule.Scopes = true, who.Authenticated.GetScopes()
	case *policyv1.Rule_Holder, *policyv1.Rule_Operator:
		return Rule{}, errors.New("has a rule for holder or operator, which are authsvc's own")
	default:
		return Rule{}, errors.New("has a rule that says not who may call")
	}
	return rule, rule.check(true)
}

// policyOf gives a method's option, or nil. The options are read anew: a descriptor that was made at run time may hold this one under
// another Go type, or as bytes that nobody has read.
func policyOf(m protoreflect.MethodDescriptor) (*policyv1.Rule, error) {
	raw, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m.Options())
	if err != nil {
		return nil, fmt.Errorf("has options that cannot be read: %w", err)
	}
	options := new(descriptorpb.MethodOptions)
	if err := (proto.UnmarshalOptions{AllowPartial: true}).Unmarshal(raw, options); err != nil {
		return nil, fmt.Errorf("has options that cannot be read: %w", err)
	}
	if !proto.HasExtension(options, policyv1.E_Rule) {
		return nil, nil //nolint:nilnil // no option is no fault of its own here
	}
	rule, ok := proto.GetExtension(options, policyv1.E_Rule).(*policyv1.Rule)
	if !ok {
		return nil, errors.New("has an authsvc.policy.v1.rule of another type")
	}
	return rule, nil
}

// hasUnknown says whether a message, or one within it, has fields that its type does not.
func hasUnknown(m protoreflect.Message) bool {
	found := len(m.GetUnknown()) > 0
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Message() != nil && f.Cardinality() != protoreflect.Repeated {
			found = found || hasUnknown(v.Message())
		}
		return !found
	})
	return found
}
