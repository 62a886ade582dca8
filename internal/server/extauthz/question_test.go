package extauthz_test

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"

	"github.com/authsvc/authsvc/internal/server/extauthz"
)

// FuzzQuestion compares our reading of a message with that of the generated code, which knows the whole of it. Where a key of a
// map stands twice, ours keeps both and lets nobody pass.
func FuzzQuestion(f *testing.F) {
	whole := request("Bearer a.b.c")
	whole.Body, whole.RawBody, whole.Size = "body", []byte{0xff}, -1
	for _, q := range []*authv3.CheckRequest{
		{},
		{Attributes: &authv3.AttributeContext{ContextExtensions: map[string]string{"audience": "a", "scope": ""}, Request: &authv3.AttributeContext_Request{Http: whole}}},
		{Attributes: &authv3.AttributeContext{Request: &authv3.AttributeContext_Request{Http: &authv3.AttributeContext_HttpRequest{HeaderMap: &corev3.HeaderMap{
			Headers: []*corev3.HeaderValue{{Key: "Authorization", RawValue: []byte("Bearer \xff")}, {Key: "authorization", Value: "x"}, {Key: "a"}}}}}}},
	} {
		raw, err := proto.Marshal(q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
		f.Add(append(slices.Clone(raw), raw...)) // a message in two halves, which merge
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		authorization, extensions, err := extauthz.ReadQuestion(raw)
		var q authv3.CheckRequest
		if proto.Unmarshal(raw, &q) != nil {
			return // the generated code looks at more of it
		}
		if err != nil {
			t.Fatalf("we cannot read what the generated code can: %v", err)
		}
		h := q.GetAttributes().GetRequest().GetHttp()
		ours := map[string]string{}
		for i := 0; i < len(extensions); i += 2 {
			ours[extensions[i]] = extensions[i+1]
		}
		if !maps.Equal(ours, q.GetAttributes().GetContextExtensions()) {
			t.Errorf("the extensions are %q, want %q", extensions, q.GetAttributes().GetContextExtensions())
		}
		var want []string
		if v, ok := h.GetHeaders()["authorization"]; ok {
			want = append(want, v)
		}
		for _, v := range h.GetHeaderMap().GetHeaders() {
			if strings.EqualFold(v.GetKey(), "authorization") {
				want = append(want, v.GetValue()+string(v.GetRawValue()))
			}
		}
		if len(authorization) < len(want) || len(want) == 0 && len(authorization) > 0 {
			t.Errorf("%d authorizations, want %d", len(authorization), len(want))
		}
		if len(authorization) == 1 && authorization[0] != want[0] {
			t.Errorf("the authorization is %q, want %q", authorization[0], want[0])
		}
	})
}

// TestAKeyThatStandsTwiceLetsNobodyPass writes what no proxy does: a parameter twice, of which the generated code would keep the last.
func TestAKeyThatStandsTwiceLetsNobodyPass(t *testing.T) {
	t.Parallel()
	part := func(extensions map[string]string, r *authv3.AttributeContext_HttpRequest) []byte {
		return must(proto.Marshal(&authv3.CheckRequest{Attributes: &authv3.AttributeContext{ContextExtensions: extensions, Request: &authv3.AttributeContext_Request{Http: r}}}))(t)
	}
	p := open(t, nil)
	ada := "Bearer " + p.mint(t, nil)
	for _, tt := range []struct {
		name string
		raw  []byte
		code int
	}{
		{"twin: two halves", append(part(map[string]string{"scope": "orders.read"}, nil), part(nil, request(ada))...), 200},
		{"a scope twice", append(part(map[string]string{"scope": "admin"}, nil), part(map[string]string{"scope": "orders.read"}, request(ada))...), 500},
		{"G01 an authorization twice", append(part(nil, request("x")), part(nil, request(ada))...), 401},
	} {
		if a := p.wire(t, tt.raw); a.code != tt.code {
			t.Errorf("%s: %d %s", tt.name, a.code, a.body)
		}
	}
	good := part(nil, request(ada))
	for cut := range len(good) {
		if a := p.wire(t, good[:cut]); a.code == 200 {
			t.Fatalf("a message of which %d bytes came passes", cut)
		}
	}
}

// FuzzForwardQuery lets queries pass only if they say what net/url reads in them too, each parameter once and to its end.
func FuzzForwardQuery(f *testing.F) {
	p := open(f, nil)
	ada := "Bearer " + p.mint(f, nil)
	for _, seed := range []string{"", "audience=" + api, "audience=https%3A%2F%2Fapi.example.com&scope=orders.read+orders.write&require=user", "scope=a&scope=b", "scope", "require=client",
		"audience=" + api + ";scope=admin", "%61udience=x", "&", "scope=%zz", "scope=orders.read%00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, query string) {
		a := p.ask(t, "", func(r *http.Request) { with(ada)(r); r.URL.RawQuery = query })
		if a.code != 200 {
			return
		}
		values, err := url.ParseQuery(query)
		if err != nil {
			t.Fatalf("%q passes: %v", query, err)
		}
		for name, v := range values {
			switch {
			case len(v) != 1:
				t.Errorf("%q passes with %s twice", query, name)
			case name == "audience" && v[0] != api, name == "require" && v[0] != "user", name != "audience" && name != "require" && name != "scope":
				t.Errorf("%q passes", query)
			case name == "scope":
				for word := range strings.SplitSeq(v[0], " ") {
					if word != "orders.read" && word != "orders.write" {
						t.Errorf("%q passes without the scope %q", query, word)
					}
				}
			}
		}
	})
}
