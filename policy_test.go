package authsvc_test

import (
	"testing"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	policyv1 "github.com/authsvc/authsvc/gen/authsvc/policy/v1"
	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// TestSurface holds who may call each RPC and where it stands over HTTP. Both are promises to others: a new RPC gets
// its line here, and a change of an old one is seen.
func TestSurface(t *testing.T) {
	t.Parallel()
	want := map[protoreflect.FullName]struct{ who, http string }{
		"authsvc.v1.AuthService.Login":                {"public", "POST /v1/auth/login"},
		"authsvc.v1.AuthService.Refresh":              {"public", "POST /v1/auth/refresh"},
		"authsvc.v1.AuthService.Revoke":               {"holder", "POST /v1/auth/revoke"},
		"authsvc.v1.AuthService.Introspect":           {"client authsvc.introspect", "POST /v1/auth/introspect"},
		"authsvc.v1.AuthService.BatchIntrospect":      {"client authsvc.introspect", "POST /v1/auth/introspect:batch"},
		"authsvc.v1.SessionService.ListSessions":      {"user own", "GET /v1/sessions"},
		"authsvc.v1.SessionService.RevokeSession":     {"user own", "DELETE /v1/sessions/{session_id}"},
		"authsvc.v1.SessionService.RevokeAllSessions": {"user own", "POST /v1/sessions:revokeAll"},
		"authsvc.v1.AccountService.ChangePassword":    {"user own", "POST /v1/account/password"},
		"authsvc.v1.TrustService.GetKeySet":           {"public", ""},
		"authsvc.v1.TrustService.WatchTrust":          {"client authsvc.trust", ""},
	}
	files := []protoreflect.FileDescriptor{authsvcv1.File_authsvc_v1_auth_proto, authsvcv1.File_authsvc_v1_session_proto,
		authsvcv1.File_authsvc_v1_account_proto, authsvcv1.File_authsvc_v1_trust_proto}
	seen := 0
	for _, file := range files {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				m := methods.Get(j)
				seen++
				w, ok := want[m.FullName()]
				if !ok {
					t.Errorf("%s is not in the table of who may call what", m.FullName())
					continue
				}
				if got := who(m); got != w.who {
					t.Errorf("%s may be called by %q, want %q", m.FullName(), got, w.who)
				}
				if got := httpOf(m); got != w.http {
					t.Errorf("%s stands at %q, want %q", m.FullName(), got, w.http)
				}
			}
		}
	}
	if seen != len(want) {
		t.Errorf("found %d RPCs, the table has %d", seen, len(want))
	}
}

// who gives an RPC's rule in a few words; an RPC without one gives none.
func who(m protoreflect.MethodDescriptor) string {
	rule, _ := proto.GetExtension(m.Options(), policyv1.E_Rule).(*policyv1.Rule)
	switch w := rule.GetWho().(type) {
	case *policyv1.Rule_Public:
		return "public"
	case *policyv1.Rule_Holder:
		return "holder"
	case *policyv1.Rule_User:
		if w.User.GetOwn() {
			return "user own"
		}
		return "user"
	case *policyv1.Rule_Client:
		return "client " + w.Client.GetScope()
	}
	return ""
}

// httpOf gives an RPC's place over HTTP, or nothing.
func httpOf(m protoreflect.MethodDescriptor) string {
	rule, _ := proto.GetExtension(m.Options(), annotations.E_Http).(*annotations.HttpRule)
	switch p := rule.GetPattern().(type) {
	case *annotations.HttpRule_Get:
		return "GET " + p.Get
	case *annotations.HttpRule_Delete:
		return "DELETE " + p.Delete
	case *annotations.HttpRule_Post:
		return "POST " + p.Post
	}
	return ""
}
