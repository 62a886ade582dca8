package oauth2_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/oauth2"
)

func TestAScopeIsReadStrictly(t *testing.T) {
	t.Parallel() // O13
	long := strings.Repeat("a", oauth2.MaxScope)
	for _, c := range []struct {
		name, in string
		want     oauth2.Scopes // nil: refused
	}{
		{"one word", "read", oauth2.Scopes{"read"}},
		{"words keep their order", "write read", oauth2.Scopes{"write", "read"}},
		{"a word that stands twice counts once", "a b a", oauth2.Scopes{"a", "b"}},
		{"case matters", "A a", oauth2.Scopes{"A", "a"}},
		{"the edges of the charset", "! # [ ] ~", oauth2.Scopes{"!", "#", "[", "]", "~"}},
		{"exactly the cap", long, oauth2.Scopes{long}},
		{"a byte over the cap", long + "a", nil},
		{"nothing", "", nil},
		{"a leading space", " a", nil},
		{"a trailing space", "a ", nil},
		{"two spaces", "a  b", nil},
		{"a tab between words", "a\tb", nil},
		{"a line break", "a\nb", nil},
		{"NUL", "a\x00b", nil},
		{"a quote", `a"b`, nil},
		{"a backslash", `a\b`, nil},
		{"DEL", "a\x7f", nil},
		{"a letter outside ASCII", "é", nil},
		{"an invalid byte", "\xff", nil},
	} {
		got, err := oauth2.ParseScope(c.in)
		if diff := cmp.Diff(c.want, got); diff != "" || (err != nil) != (c.want == nil) || err != nil && !errors.Is(err, oauth2.ErrScope) {
			t.Errorf("%s: %v\n%s", c.name, err, diff)
		}
	}
}

func FuzzParseScope(f *testing.F) {
	for _, s := range []string{"read", "a b a", " a", "a\tb", `"`, "\xff", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		got, err := oauth2.ParseScope(in)
		if err != nil {
			if got != nil {
				t.Error("an error and words")
			}
			return
		}
		again, err := oauth2.ParseScope(got.String())
		if err != nil || again.String() != got.String() || len(got) == 0 || len(got.String()) > len(in) {
			t.Errorf("%q reads as %q, then as %q (%v)", in, got, again, err)
		}
		seen := map[string]bool{}
		for _, w := range strings.Split(in, " ") {
			seen[w] = true
		}
		if len(seen) != len(got) {
			t.Errorf("%q has %d words, %d came out", in, len(seen), len(got))
		}
	})
}

func basic(decoded string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(decoded))
}

func TestBasicClientAuthenticationIsReadStrictly(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, header, id, secret string
		err                      error
	}{
		{"plain parts", basic("client:secret"), "client", "secret", nil},
		{"the scheme in any case", "bAsIc " + basic("client:secret")[6:], "client", "secret", nil},
		{"form-encoded parts", basic("a%3Ab+c:p%25%2B"), "a:b c", "p%+", nil},
		{"what a client's library formats", basic(url.QueryEscape("a:b c") + ":" + url.QueryEscape("p%+/=")), "a:b c", "p%+/=", nil},
		{"parts at the cap", basic(strings.Repeat("a", 256) + ":" + strings.Repeat("b", 256)), strings.Repeat("a", 256), strings.Repeat("b", 256), nil},
		{"no header", "", "", "", oauth2.ErrBasicMissing},
		{"another scheme", "Bearer abc", "", "", oauth2.ErrBasicMissing},
		{"a scheme that begins alike", "Basics " + basic("a:b")[6:], "", "", oauth2.ErrBasicMissing},
		{"the scheme alone", "Basic", "", "", oauth2.ErrBasicMalformed},
		{"no credentials", "Basic ", "", "", oauth2.ErrBasicMalformed},
		{"two spaces", "Basic  " + basic("a:b")[6:], "", "", oauth2.ErrBasicMalformed},
		{"a space at the end", basic("a:b") + " ", "", "", oauth2.ErrBasicMalformed},
		{"no base64", "Basic a:b", "", "", oauth2.ErrBasicMalformed},
		{"base64 without its padding", strings.TrimRight(basic("a:bb"), "="), "", "", oauth2.ErrBasicMalformed},
		{"base64 with stray bits at its end", "Basic YTpiYh==", "", "", oauth2.ErrBasicMalformed},
		{"its twin with clean bits", "Basic YTpiYg==", "a", "bb", nil},
		{"the URL alphabet", "Basic " + base64.URLEncoding.EncodeToString([]byte("a:~~~?>>")), "", "", oauth2.ErrBasicMalformed},
		{"a line break in the base64", "Basic YTpi\nYg==", "", "", oauth2.ErrBasicMalformed},
		{"no colon", basic("client"), "", "", oauth2.ErrBasicMalformed},
		{"two colons", basic("client:a:b"), "", "", oauth2.ErrBasicMalformed},
		{"no id", basic(":secret"), "", "", oauth2.ErrBasicMalformed},
		{"no secret", basic("client:"), "", "", oauth2.ErrBasicMalformed},
		{"a broken escape", basic("cl%zzient:secret"), "", "", oauth2.ErrBasicMalformed},
		{"NUL behind an escape", basic("client%00:secret"), "", "", oauth2.ErrBasicMalformed},
		{"a letter outside ASCII", basic("clé:secret"), "", "", oauth2.ErrBasicMalformed},
		{"a part over the cap", basic(strings.Repeat("a", 257) + ":b"), "", "", oauth2.ErrBasicMalformed},
		{"a header over the cap", basic(strings.Repeat("%61", 600) + ":b"), "", "", oauth2.ErrBasicMalformed},
	} {
		id, secret, err := oauth2.ParseBasic(c.header)
		if id != c.id || secret != c.secret || !errors.Is(err, c.err) {
			t.Errorf("%s: %q, %q, %v", c.name, id, secret, err)
		}
	}
}

func FuzzParseBasic(f *testing.F) {
	for _, s := range []string{basic("client:secret"), basic("a%3Ab:c"), basic("a:b:c"), "Basic ", "Bearer x", "Basic YTpiYh==", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, header string) {
		id, secret, err := oauth2.ParseBasic(header)
		if err != nil {
			if id != "" || secret != "" || !errors.Is(err, oauth2.ErrBasicMissing) && !errors.Is(err, oauth2.ErrBasicMalformed) {
				t.Errorf("%v with id %q", err, id)
			}
			return
		}
		id2, secret2, err := oauth2.ParseBasic(basic(url.QueryEscape(id) + ":" + url.QueryEscape(secret)))
		if err != nil || id2 != id || secret2 != secret || id == "" || secret == "" {
			t.Errorf("%q does not come back: %q, %v", id, id2, err)
		}
	})
}

func TestR11AnIssuerHasOneSpelling(t *testing.T) {
	t.Parallel()
	for s, ok := range map[string]bool{
		"https://auth.example.com": true, "https://auth.example.com/tenant": true, "https://auth.example.com:8443": true,
		"http://127.0.0.1:8080": true, "http://[::1]:8080": true, "http://localhost:8080": true,
		"https://auth.example.com/": false, "https://auth.example.com/tenant/": false, "https://Auth.example.com": false,
		"HTTPS://auth.example.com": false, "https://auth.example.com:443": false, "https://auth.example.com:": false, "https://auth.example.com?": false,
		"https://auth.example.com?x": false, "https://auth.example.com#x": false, "https://u@auth.example.com": false,
		"http://auth.example.com": false, "https://": false, "auth.example.com": false, "": false, "https://auth.example.com/a/../b": false,
		"https://auth.example.com//a": false, "https://auth.example.com/%61": false, "https:auth.example.com": false,
	} {
		if err := oauth2.CheckIssuer(s); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestR11TheWellKnownPartStandsBetweenHostAndPath(t *testing.T) {
	t.Parallel()
	for issuer, want := range map[string]string{
		"https://auth.example.com":        "/.well-known/oauth-authorization-server",
		"https://auth.example.com/tenant": "/.well-known/oauth-authorization-server/tenant",
	} {
		if got, err := oauth2.WellKnownPath(issuer, oauth2.MetadataName); got != want || err != nil {
			t.Errorf("%s: %q, %v", issuer, got, err)
		}
	}
	if _, err := oauth2.WellKnownPath("https://auth.example.com/", oauth2.MetadataName); !errors.Is(err, oauth2.ErrIssuer) {
		t.Errorf("a trailing slash: %v", err)
	}
}

func TestMetadataNamesOnlyWhatExists(t *testing.T) {
	t.Parallel()
	got, err := json.Marshal(oauth2.Metadata{Issuer: "https://i", TokenEndpoint: "https://i/oauth2/token", ResponseTypesSupported: []string{},
		GrantTypesSupported: []string{oauth2.GrantClientCredentials}, TokenEndpointAuthMethods: []string{oauth2.AuthBasic}})
	want := `{"issuer":"https://i","token_endpoint":"https://i/oauth2/token","response_types_supported":[],` +
		`"grant_types_supported":["client_credentials"],"token_endpoint_auth_methods_supported":["client_secret_basic"]}`
	if err != nil || string(got) != want {
		t.Errorf("%s, %v", got, err)
	}
}
