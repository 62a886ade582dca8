package live

import (
	"errors"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extauthzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3" // the example names it
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3" // the example names it
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
)

// TestEnvoyAsksOverTheRealListener speaks Envoy's protocol, as its filter does.
func TestEnvoyAsksOverTheRealListener(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	in := s.login(t)
	good := "Bearer " + in.text("access_token")
	client := authv3.NewAuthorizationClient(wire(t, s.GRPC))
	check := func(header, extensions map[string]string) (*authv3.CheckResponse, error) {
		return client.Check(t.Context(), &authv3.CheckRequest{Attributes: &authv3.AttributeContext{ContextExtensions: extensions,
			Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{Method: "GET", Path: "/orders", Host: "api.example", Headers: header}}}})
	}
	answer, err := check(map[string]string{"authorization": good, "x-auth-subject": "root"}, map[string]string{"audience": s.Audience, "scope": "demo.read", "require": "user"})
	if err != nil || answer.GetOkResponse() == nil {
		t.Fatalf("a good token: %v %v", answer, err)
	}
	named := map[string]*corev3.HeaderValueOption{}
	for _, o := range answer.GetOkResponse().GetHeaders() {
		named[o.GetHeader().GetKey()] = o
	}
	if o := named["X-Auth-Session"]; o.GetHeader().GetValue() != in.text("session_id") || o.GetAppendAction() != corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
		t.Errorf("the session's header is %v", o)
	}
	for name, tt := range map[string]struct {
		header, extensions map[string]string
		code               int32
	}{
		"no token":              {nil, nil, 401},
		"a scope that it lacks": {map[string]string{"authorization": good}, map[string]string{"scope": "demo.admin"}, 403},
		"a misspelt scope":      {map[string]string{"authorization": good}, map[string]string{"scop": "demo.read"}, 500},
	} {
		if answer, err := check(tt.header, tt.extensions); err != nil || int32(answer.GetDeniedResponse().GetStatus().GetCode()) != tt.code {
			t.Errorf("%s: %v %v", name, answer, err)
		}
	}
	if _, err := check(map[string]string{"authorization": good, "x-large": strings.Repeat("a", 70<<10)}, nil); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("R58 a request of 70 KiB: %v", err)
	}
	call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")})
	if answer, err := check(map[string]string{"authorization": good}, nil); err != nil || answer.GetDeniedResponse().GetStatus().GetCode() != 401 {
		t.Errorf("P01 a revoked token: %v %v", answer, err)
	}
}

// TestTheEnvoyExampleIsWhatEnvoyReads reads the example by the messages that Envoy reads it by, strictly, and asks what its routes
// would ask.
func TestTheEnvoyExampleIsWhatEnvoyReads(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../deploy/envoy/ext-authz.yaml")
	if err != nil {
		t.Fatal(err)
	}
	asJSON, err := yaml.YAMLToJSON(text)
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(asJSON, &b); err != nil {
		t.Fatal(err)
	}
	if err := b.ValidateAll(); err != nil {
		t.Fatal(err)
	}
	var manager hcmv3.HttpConnectionManager
	if err := b.GetStaticResources().GetListeners()[0].GetFilterChains()[0].GetFilters()[0].GetTypedConfig().UnmarshalTo(&manager); err != nil {
		t.Fatal(err)
	}
	var filter extauthzv3.ExtAuthz
	if err := manager.GetHttpFilters()[0].GetTypedConfig().UnmarshalTo(&filter); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(manager.ValidateAll(), filter.ValidateAll()); err != nil {
		t.Fatal(err)
	}
	if filter.GetFailureModeAllow() || manager.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction() != corev3.HttpProtocolOptions_REJECT_REQUEST {
		t.Error("the example fails open, or lets headers with underscores through")
	}
	s := start(t, t.TempDir())
	good := "Bearer " + s.login(t).text("access_token")
	client := authv3.NewAuthorizationClient(wire(t, s.GRPC))
	asked := 0
	host := manager.GetRouteConfig().GetVirtualHosts()[0]
	for _, route := range host.GetRoutes() {
		extensions := extensionsOf(t, host.GetTypedPerFilterConfig())
		maps.Copy(extensions, extensionsOf(t, route.GetTypedPerFilterConfig()))
		asked += len(extensions)
		q := &authv3.CheckRequest{Attributes: &authv3.AttributeContext{ContextExtensions: extensions, Request: &authv3.AttributeContext_Request{
			Http: &authv3.AttributeContext_HttpRequest{HeaderMap: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{{Key: "authorization", RawValue: []byte(good)}}}}}}}
		if answer, err := client.Check(t.Context(), q); err != nil || answer.GetOkResponse() == nil {
			t.Errorf("with %v: %v %v", extensions, answer, err)
		}
	}
	if asked != 6 {
		t.Errorf("the routes ask for %d things, want 6", asked)
	}
}

func extensionsOf(t *testing.T, filters map[string]*anypb.Any) map[string]string {
	t.Helper()
	found := map[string]string{}
	if config := filters["envoy.filters.http.ext_authz"]; config != nil {
		var perRoute extauthzv3.ExtAuthzPerRoute
		if err := config.UnmarshalTo(&perRoute); err != nil {
			t.Fatal(err)
		}
		maps.Copy(found, perRoute.GetCheckSettings().GetContextExtensions())
	}
	return found
}

// TestProxiesAreServedWhereTheConfigurationNamesAnAudience: by itself neither door is there.
func TestProxiesAreServedWhereTheConfigurationNamesAnAudience(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	s, _ := serve(t, dir, d, plain, "http")
	if a := call(t, "GET", s.HTTP+"/forward-auth", "", nil); a.code != http.StatusNotFound {
		t.Errorf("nobody asked for it, and it answers %d", a.code)
	}
	if _, err := authv3.NewAuthorizationClient(wire(t, s.GRPC)).Check(t.Context(), &authv3.CheckRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("nobody asked for it, and it answers %v", err)
	}
	s.stop(t)
	s, _ = serve(t, dir, d, plain+"forward_auth: {audiences: [https://other.example, "+d.Audience+"], headers: {sub: Remote-User, scope: \"\"}}\n", "http")
	good := "Bearer " + s.login(t).text("access_token")
	if a := call(t, "GET", s.HTTP+"/forward-auth?audience="+d.Audience, good, nil); a.code != 200 || a.header.Get("Remote-User") == "" || a.header.Get("X-Auth-Subject") != "" ||
		a.header.Get("X-Auth-Scope") != "" || a.header.Get("X-Auth-Client") != d.PublicClientID || a.raw != "" {
		t.Errorf("a good token: %d %v %s", a.code, a.header, a.raw)
	}
	if a := call(t, "GET", s.HTTP+"/forward-auth?audience=https://other.example", good, nil); a.code != 401 {
		t.Errorf("J29 a token for another audience: %d", a.code)
	}
	if a := call(t, "GET", s.HTTP+"/forward-auth", good, nil); a.code != 400 || !strings.Contains(a.raw, "audience: is required") {
		t.Errorf("no audience, where there are two: %d %s", a.code, a.raw)
	}
}
