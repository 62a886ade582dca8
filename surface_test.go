package authsvc_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// messages is every message that others rely on: its fields in the order of their numbers, which begin at 1 and leave
// none out.
func messages() map[string]string {
	const issued = "access_token string, token_type string, expires_in int32, refresh_token string, scope string, session_id string"
	const at = " google.protobuf.Timestamp"
	return map[string]string{
		"LoginRequest":              "username string, password string, client_id string, audience repeated string, scope string, device_name string",
		"LoginResponse":             issued,
		"RefreshRequest":            "refresh_token string, client_id string, scope string",
		"RefreshResponse":           issued,
		"RevokeRequest":             "token string, token_type_hint string",
		"RevokeResponse":            "position string",
		"IntrospectRequest":         "token string, token_type_hint string, min_position string",
		"IntrospectResponse":        "active optional bool, scope string, client_id string, username string, token_type string, exp" + at + ", iat" + at + ", nbf" + at + ", auth_time" + at + ", sub string, aud repeated string, iss string, jti string, sid string, amr repeated string",
		"BatchIntrospectRequest":    "tokens repeated string",
		"BatchIntrospectResponse":   "results repeated authsvc.v1.IntrospectResponse",
		"Session":                   "session_id string, client_id string, device_name string, ip_address string, user_agent string, create_time" + at + ", last_used_time" + at + ", expire_time" + at + ", current optional bool, amr repeated string",
		"ListSessionsRequest":       "page_size int32, page_token string",
		"ListSessionsResponse":      "sessions repeated authsvc.v1.Session, next_page_token string",
		"RevokeSessionRequest":      "session_id string",
		"RevokeSessionResponse":     "",
		"RevokeAllSessionsRequest":  "except_current bool",
		"RevokeAllSessionsResponse": "revoked_count optional int32",
		"ChangePasswordRequest":     "old_password string, new_password string",
		"ChangePasswordResponse":    "",
		"GetKeySetRequest":          "",
		"GetKeySetResponse":         "jwks bytes",
		"WatchTrustRequest":         "cursor string",
		"WatchTrustResponse":        "snapshot authsvc.v1.TrustSnapshot, delta authsvc.v1.TrustDelta, heartbeat authsvc.v1.TrustHeartbeat",
		"TrustSnapshot":             "jwks bytes, revocations repeated authsvc.v1.Revocation, cursor string, part uint32, issuer string",
		"TrustDelta":                "after string, cursor string, jwks bytes, revocations repeated authsvc.v1.Revocation, part uint32, more bool, commit_time" + at,
		"TrustHeartbeat":            "cursor string, elapsed google.protobuf.Duration, lag google.protobuf.Duration, server_time" + at,
		"Revocation":                "target bytes, not_before int64, expire_time int64",
	}
}

// describe gives a message's fields as messages writes them.
func describe(m protoreflect.MessageDescriptor) string {
	var fields []string
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		kind := f.Kind().String()
		if f.Message() != nil {
			kind = string(f.Message().FullName())
		}
		switch {
		case int(f.Number()) != i+1:
			kind = "out of order"
		case f.IsList():
			kind = "repeated " + kind
		case f.HasOptionalKeyword():
			kind = "optional " + kind
		}
		fields = append(fields, string(f.Name())+" "+kind)
	}
	return strings.Join(fields, ", ")
}

// TestMessages holds the fields of every message. buf breaking sees what goes; this sees what comes, too.
func TestMessages(t *testing.T) {
	t.Parallel()
	got := map[string]string{}
	for _, file := range []protoreflect.FileDescriptor{authsvcv1.File_authsvc_v1_auth_proto, authsvcv1.File_authsvc_v1_session_proto,
		authsvcv1.File_authsvc_v1_account_proto, authsvcv1.File_authsvc_v1_trust_proto} {
		for i := range file.Messages().Len() {
			m := file.Messages().Get(i)
			got[string(m.Name())] = describe(m)
		}
	}
	if diff := cmp.Diff(messages(), got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestOpenAPIDescribesTheSurface compares the document that REST serves with the protos: the places, and the fields by
// the names that JSON has.
func TestOpenAPIDescribesTheSurface(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("gen/openapi/authsvc.swagger.json")
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Paths       map[string]map[string]json.RawMessage
		Definitions map[string]struct{ Properties map[string]json.RawMessage }
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	var got []string
	for path, methods := range document.Paths {
		for method := range methods {
			got = append(got, strings.ToUpper(method)+" "+path)
		}
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{
		"DELETE /v1/sessions/{session_id}", "GET /v1/sessions", "POST /v1/account/password", "POST /v1/auth/introspect",
		"POST /v1/auth/introspect:batch", "POST /v1/auth/login", "POST /v1/auth/refresh", "POST /v1/auth/revoke",
		"POST /v1/sessions:revokeAll",
	}, got); diff != "" {
		t.Errorf("the places (-want +got)\n%s", diff)
	}
	for name, fields := range messages() {
		d, described := document.Definitions[name]
		if !described {
			continue // one without a body: its fields are parameters, or it is of gRPC alone
		}
		var want, have []string
		for f := range strings.SplitSeq(fields, ", ") {
			if f != "" {
				want = append(want, strings.Fields(f)[0])
			}
		}
		for f := range d.Properties {
			have = append(have, f)
		}
		slices.Sort(want)
		slices.Sort(have)
		if diff := cmp.Diff(want, have); diff != "" {
			t.Errorf("the fields of %s (-want +got)\n%s", name, diff)
		}
	}
}
