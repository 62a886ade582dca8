package oauth_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/server/oauth"
	"github.com/authsvc/authsvc/internal/service"
)

const canary = "canary-7f3a"

// issuer is a small real token service: one client, whose requests it answers by their scope.
type issuer struct {
	last service.ClientCredentialsRequest
}

func (i *issuer) ClientCredentials(_ context.Context, r service.ClientCredentialsRequest) (service.Issued, error) {
	i.last = r
	if r.ClientID != "svc:1" || r.Secret != "s&cret %" {
		return service.Issued{}, fault.New(fault.Unauthenticated, fault.ClientInvalid, "client authentication failed")
	}
	if len(r.Resources) > 0 && r.Resources[0] == "https://other.example.com" {
		return service.Issued{}, fault.New(fault.Invalid, fault.InvalidTarget, "not one of the client's audiences")
	}
	kinds := map[string]error{
		"bad":      fault.New(fault.Invalid, fault.InvalidScope, `no scope "bad"`),
		"field":    fault.Field("scope", "malformed"),
		"denied":   fault.New(fault.Denied, fault.PermissionDenied, "a public client has no tokens of its own"),
		"conflict": fault.New(fault.Conflict, fault.VersionConflict, "changed"),
		"limited":  &fault.Error{Kind: fault.Limited, Reason: fault.RateLimited, Message: "slow", RetryAfter: 1500 * time.Millisecond},
		"away":     fault.Wrap(errors.New("dial "+canary), fault.Unavailable, fault.StoreUnavailable, "the store did not answer"),
		"raw":      errors.New("sql: " + canary),
		"late":     fmt.Errorf("sign: %w", context.DeadlineExceeded),
		"left":     fmt.Errorf("sign: %w", context.Canceled),
		"cut":      fault.Wrap(context.Canceled, fault.Unavailable, fault.StoreUnavailable, "the store did not answer"),
	}
	if err := kinds[r.Scope]; err != nil {
		return service.Issued{}, err
	}
	return service.Issued{AccessToken: "at", Scope: r.Scope, ExpiresIn: 5*time.Minute + time.Millisecond}, nil
}

func open(t *testing.T, name string) (http.Handler, *issuer, *bytes.Buffer) {
	t.Helper()
	tokens, log := &issuer{}, &bytes.Buffer{}
	door, err := oauth.New(oauth.Options{Issuer: name, Tokens: tokens, Logger: slog.New(slog.NewJSONHandler(log, nil)),
		Caller: func(*http.Request) service.Caller {
			return service.Caller{IP: netip.MustParseAddr("192.0.2.7"), RequestID: "r1"}
		}})
	if err != nil {
		t.Fatal(err)
	}
	routes := door.Routes()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := routes[r.URL.Path]; h != nil {
			h.ServeHTTP(w, r)
			return
		}
		http.NotFound(w, r)
	}), tokens, log
}

// post is a good request; each test puts one fault into it.
func post(form string, change func(*http.Request)) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/oauth2/token", strings.NewReader(form))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.SetBasicAuth(url.QueryEscape("svc:1"), url.QueryEscape("s&cret %"))
	if change != nil {
		change(r)
	}
	return r
}

func TestTokenEndpoint(t *testing.T) {
	t.Parallel()
	const good = "grant_type=client_credentials"
	header := func(name string, values ...string) func(*http.Request) {
		return func(r *http.Request) { r.Header[name] = values }
	}
	tests := []struct {
		name, form string
		change     func(*http.Request)
		code       int
		word       string
	}{
		{"a good request", good, nil, 200, ""},
		{"a parameter without a value counts as absent", good + "&scope=&resource=&client_secret=", nil, 200, ""},
		{"an unknown parameter is ignored (RFC 6749 §3.2)", good + "&x=y", nil, 200, ""},
		{"two resources (RFC 8707)", good + "&resource=https://a.example.com&resource=https://b.example.com", nil, 200, ""},
		{"client_id beside Basic, the same", good + "&client_id=svc%3A1", nil, 200, ""},
		{"a charset of UTF-8", good, header("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"), 200, ""},
		{"client_id beside Basic, another", good + "&client_id=other", nil, 400, "invalid_request"},
		{"R07 a parameter twice", good + "&scope=a&scope=b", nil, 400, "invalid_request"},
		{"R07 an unknown parameter twice", good + "&x=a&x=b", nil, 400, "invalid_request"},
		{"no grant type", "scope=a", nil, 400, "invalid_request"},
		{"R01 the password grant", "grant_type=password&username=a&password=" + canary, nil, 400, "unsupported_grant_type"},
		{"R01 the refresh grant", "grant_type=refresh_token&refresh_token=" + canary, nil, 400, "unsupported_grant_type"},
		{"R01 a grant type in another case", "grant_type=Client_Credentials", nil, 400, "unsupported_grant_type"},
		{"R07 a GET", good, func(r *http.Request) { r.Method = http.MethodGet }, 405, "invalid_request"},
		{"R07 the secret in the URI", good, func(r *http.Request) { r.URL.RawQuery = "client_secret=" + canary }, 400, "invalid_request"},
		{"R07 the secret in the body", good + "&client_id=svc:1&client_secret=" + canary, func(r *http.Request) { r.Header.Del("Authorization") }, 401, "invalid_client"},
		{"R07 two methods of authentication", good + "&client_secret=" + canary, nil, 400, "invalid_request"},
		{"an assertion beside Basic", good + "&client_assertion=" + canary, nil, 400, "invalid_request"},
		{"G01 two authorization headers", good, header("Authorization", "Basic YTpi", "Basic YTpi"), 400, "invalid_request"},
		{"no authentication", good, func(r *http.Request) { r.Header.Del("Authorization") }, 401, "invalid_client"},
		{"a bearer token", good, header("Authorization", "Bearer x"), 401, "invalid_client"},
		{"Basic that is not base64", good, header("Authorization", "Basic %%%"), 401, "invalid_client"},
		{"a wrong secret", good, func(r *http.Request) { r.SetBasicAuth("svc%3A1", canary) }, 401, "invalid_client"},
		{"parts that are not form-encoded", good, func(r *http.Request) { r.SetBasicAuth("svc%3A1", "%zz") }, 401, "invalid_client"},
		{"JSON", `{"grant_type":"client_credentials"}`, header("Content-Type", "application/json"), 415, "invalid_request"},
		{"no content type", good, header("Content-Type"), 415, "invalid_request"},
		{"a malformed form", good + "&a=%zz", nil, 400, "invalid_request"},
		{"a form with semicolons", good + ";scope=a", nil, 400, "invalid_request"},
		{"R58 a form over 64 KiB", good + "&x=" + strings.Repeat("a", 64<<10), nil, 413, "invalid_request"},
		{"another's audience", good + "&resource=https://other.example.com", nil, 400, "invalid_target"},
		{"another's scope", good + "&scope=bad", nil, 400, "invalid_scope"},
		{"a malformed field", good + "&scope=field", nil, 400, "invalid_request"},
		{"R13 a public client", good + "&scope=denied", nil, 400, "unauthorized_client"},
		{"a lost race", good + "&scope=conflict", nil, 400, "invalid_request"},
		{"throttled", good + "&scope=limited", nil, 429, "temporarily_unavailable"},
		{"R61 the store is away", good + "&scope=away", nil, 503, "temporarily_unavailable"},
		{"R59 an error that nobody foresaw", good + "&scope=raw", nil, 500, "server_error"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, tokens, log := open(t, "https://id.example.com")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, post(tt.form, tt.change))
			var got struct {
				AccessToken string `json:"access_token"`
				TokenType   string `json:"token_type"`
				ExpiresIn   int    `json:"expires_in"`
				Error       string `json:"error"`
			}
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
				t.Fatalf("%v: %s", err, w.Body)
			}
			if w.Code != tt.code || got.Error != tt.word {
				t.Fatalf("answered %d %s, want %d %s", w.Code, w.Body, tt.code, tt.word)
			}
			if tt.code == 200 && (got.AccessToken != "at" || got.TokenType != "Bearer" || got.ExpiresIn != 300) {
				t.Errorf("answered %s", w.Body)
			}
			if tt.code == 200 && (tokens.last.Caller.RequestID != "r1" || !tokens.last.Caller.IP.IsValid()) {
				t.Errorf("the caller is %+v", tokens.last.Caller)
			}
			if strings.Contains(w.Body.String(), canary) || tt.code < 500 && strings.Contains(log.String(), canary) {
				t.Errorf("R63 a secret or the inside is shown: %s %s", w.Body, log)
			}
			if w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("Pragma") != "no-cache" {
				t.Errorf("R07 the caching headers are %v", w.Header())
			}
			challenged := strings.HasPrefix(w.Header().Get("WWW-Authenticate"), "Basic ")
			if challenged != (tt.code == 401) {
				t.Errorf("the challenge is %q", w.Header().Get("WWW-Authenticate"))
			}
			if retry := w.Header().Get("Retry-After"); (retry != "") != (tt.code == 429 || tt.code == 503) || tt.code == 429 && retry != "2" {
				t.Errorf("Retry-After is %q", retry)
			}
			if allow := w.Header().Get("Allow"); (allow != "") != (tt.code == 405) {
				t.Errorf("Allow is %q", allow)
			}
		})
	}
}

// TestTheCauseOfAFailureIsLoggedOnce: what could not be done for a caller who waits is the service's to explain; a caller who
// went away is nobody's failure.
func TestTheCauseOfAFailureIsLoggedOnce(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, scope string
		gone        bool
		code, lines int
	}{
		{"a store that is away", "away", false, 503, 1},
		{"what nobody foresaw", "raw", false, 500, 1},
		{"no time left to sign", "late", false, 503, 1},
		{"the caller went away before the signature", "left", true, 499, 0},
		{"the caller went away while the store was asked", "cut", true, 499, 0},
		{"the store is away, and then the caller, too", "away", true, 503, 1},
		{"a refusal is no failure", "denied", false, 400, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, _, log := open(t, "https://id.example.com")
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			if tt.gone {
				leave()
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, post("grant_type=client_credentials&scope="+tt.scope, nil).WithContext(ctx))
			if lines := strings.Count(log.String(), "\n"); w.Code != tt.code || lines != tt.lines {
				t.Errorf("answered %d with %d lines in the log: %s", w.Code, lines, log)
			}
		})
	}
}

func TestWhatIsAskedForArrives(t *testing.T) {
	t.Parallel()
	h, tokens, _ := open(t, "https://id.example.com")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, post("grant_type=client_credentials&scope=a+b&resource=https://x.example.com&resource=y", nil))
	want := service.ClientCredentialsRequest{ClientID: "svc:1", Secret: "s&cret %", Scope: "a b",
		Resources: []string{"https://x.example.com", "y"}, Caller: tokens.last.Caller}
	if diff := cmp.Diff(want, tokens.last, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if w.Body.String() != `{"access_token":"at","token_type":"Bearer","expires_in":300,"scope":"a b"}` {
		t.Errorf("R13 answered %s: want no refresh token", w.Body)
	}
}

func TestClientLibraryGetsAToken(t *testing.T) {
	t.Parallel()
	h, _, _ := open(t, "https://id.example.com")
	ts := httptest.NewServer(h)
	t.Cleanup(ts.Close)
	config := clientcredentials.Config{ClientID: "svc:1", ClientSecret: "s&cret %", TokenURL: ts.URL + "/oauth2/token", Scopes: []string{"a"}}
	token, err := config.Token(t.Context())
	if err != nil || token.AccessToken != "at" {
		t.Fatalf("the library gets %v, %v", token, err)
	}
	config.ClientSecret = "wrong"
	if token, err := config.Token(t.Context()); err == nil {
		t.Errorf("with a wrong secret it gets %v", token)
	}
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, issuer, path, token string }{
		{"O22 at the root, asked under another Host", "https://id.example.com", "/.well-known/oauth-authorization-server", "https://id.example.com/oauth2/token"},
		{"R11 an issuer with a path", "https://id.example.com/a/b", "/.well-known/oauth-authorization-server/a/b", "https://id.example.com/a/b/oauth2/token"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, _, _ := open(t, tt.issuer)
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, tt.path, nil)
			r.Host = "evil.example.com" // O22
			r.Header.Set("X-Forwarded-Host", "evil.example.com")
			h.ServeHTTP(w, r)
			var got map[string]any
			if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != 200 {
				t.Fatalf("answered %d %s: %v", w.Code, w.Body, err)
			}
			want := map[string]any{"issuer": tt.issuer, "token_endpoint": tt.token,
				"jwks_uri":                              tt.issuer + "/.well-known/jwks.json",
				"response_types_supported":              []any{},
				"grant_types_supported":                 []any{"client_credentials"},
				"token_endpoint_auth_methods_supported": []any{"client_secret_basic"}}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error("O22 R11 " + diff)
			}
			token, err := url.Parse(tt.token)
			if err != nil {
				t.Fatal(err)
			}
			w = httptest.NewRecorder()
			h.ServeHTTP(w, post("grant_type=client_credentials", func(r *http.Request) { r.URL.Path = token.Path }))
			if w.Code != 200 {
				t.Errorf("the token endpoint that is named answers %d", w.Code)
			}
		})
	}
}

func TestR12CORSWithoutCredentials(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		verb, path string
		code       int
	}{
		{"OPTIONS", "/oauth2/token", 204}, {"POST", "/oauth2/token", 200},
		{"OPTIONS", "/.well-known/oauth-authorization-server", 204}, {"GET", "/.well-known/oauth-authorization-server", 200},
		{"POST", "/.well-known/oauth-authorization-server", 405},
	} {
		t.Run(fmt.Sprint(tt.verb, tt.path), func(t *testing.T) {
			t.Parallel()
			h, tokens, _ := open(t, "https://id.example.com")
			w := httptest.NewRecorder()
			h.ServeHTTP(w, post("grant_type=client_credentials", func(r *http.Request) {
				r.Method, r.URL.Path = tt.verb, tt.path
				r.Header.Set("Origin", "https://any.example.com")
			}))
			if w.Code != tt.code || w.Header().Get("Access-Control-Allow-Origin") != "*" || w.Header().Get("Access-Control-Allow-Credentials") != "" {
				t.Errorf("answered %d %v", w.Code, w.Header())
			}
			if tt.verb == "OPTIONS" && tokens.last.ClientID != "" {
				t.Error("a preflight asked for a token")
			}
		})
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	caller := func(*http.Request) service.Caller { return service.Caller{} }
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for name, o := range map[string]oauth.Options{
		"no issuer":                {Tokens: &issuer{}, Caller: caller, Logger: log},
		"an issuer with a query":   {Issuer: "https://a.example?x", Tokens: &issuer{}, Caller: caller, Logger: log},
		"one with a fragment":      {Issuer: "https://a.example#", Tokens: &issuer{}, Caller: caller, Logger: log},
		"one with a user":          {Issuer: "https://u@a.example", Tokens: &issuer{}, Caller: caller, Logger: log},
		"R11 one without TLS":      {Issuer: "http://a.example", Tokens: &issuer{}, Caller: caller, Logger: log},
		"one of another scheme":    {Issuer: "ftp://a.example", Tokens: &issuer{}, Caller: caller, Logger: log},
		"nobody to issue":          {Issuer: "https://a.example", Caller: caller, Logger: log},
		"nobody to name a caller":  {Issuer: "https://a.example", Tokens: &issuer{}, Logger: log},
		"nowhere to write a cause": {Issuer: "https://a.example", Tokens: &issuer{}, Caller: caller},
	} {
		if _, err := oauth.New(o); err == nil {
			t.Errorf("%s: New has no error", name)
		}
	}
}
