package client_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
)

const (
	issuer = "https://auth.example.com"
	api    = "https://api.example.com"
	wiki   = "https://wiki.example.com"
)

func TestDefaultsFillWhatIsZeroAndNothingElse(t *testing.T) {
	t.Parallel()
	want := client.Client{AccessTTL: 5 * time.Minute, SessionIdleTTL: 14 * 24 * time.Hour, SessionTTL: 90 * 24 * time.Hour, ReuseWindow: 30 * time.Second}
	if diff := cmp.Diff(want, client.Client{}.Defaults()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	own := client.Client{AccessTTL: time.Minute, SessionIdleTTL: time.Hour, SessionTTL: 2 * time.Hour, ReuseWindow: 10 * time.Second}
	if diff := cmp.Diff(own, own.Defaults()); diff != "" {
		t.Errorf("what is set (-want +got)\n%s", diff)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	many := func(n, size int) (all []string) {
		for i := range n {
			all = append(all, fmt.Sprintf("%0*d", size, i))
		}
		return all
	}
	for _, tt := range []struct {
		name   string
		change func(*client.Client)
		field  string // empty: it is good
	}{
		{"a good client", func(*client.Client) {}, ""},
		{"no id", func(c *client.Client) { c.ID = "" }, "client_id"},
		{"an id of 128 bytes", func(c *client.Client) { c.ID = ids.Client(strings.Repeat("a", 128)) }, ""},
		{"an id of 129 bytes", func(c *client.Client) { c.ID = ids.Client(strings.Repeat("a", 129)) }, "client_id"},
		{"a name of 129 bytes", func(c *client.Client) { c.Name = strings.Repeat("a", 129) }, "name"},
		{"another kind", func(c *client.Client) { c.Kind = "trusted" }, "kind"},
		{"R55 a public client with a secret", func(c *client.Client) { c.Kind, c.Secrets = client.Public, make([]client.Secret, 1) }, "secrets"},
		{"two secrets, during a rotation", func(c *client.Client) { c.Secrets = make([]client.Secret, 2) }, ""},
		{"three secrets", func(c *client.Client) { c.Secrets = make([]client.Secret, 3) }, "secrets"},
		{"R27 tokens that live 15 minutes", func(c *client.Client) { c.AccessTTL = 15 * time.Minute }, ""},
		{"R27 tokens that live a second longer", func(c *client.Client) { c.AccessTTL = 15*time.Minute + time.Second }, "access_ttl"},
		{"tokens that live less than a second", func(c *client.Client) { c.AccessTTL = time.Millisecond }, "access_ttl"},
		{"sessions that idle longer than they live", func(c *client.Client) { c.SessionIdleTTL = c.SessionTTL + 1 }, "session_ttl"},
		{"sessions shorter than a token", func(c *client.Client) { c.SessionTTL, c.SessionIdleTTL = time.Minute, time.Minute }, "session_ttl"},
		{"a reuse window of 10 s", func(c *client.Client) { c.ReuseWindow = 10 * time.Second }, ""},
		{"a reuse window of 60 s", func(c *client.Client) { c.ReuseWindow = time.Minute }, ""},
		{"a shorter one", func(c *client.Client) { c.ReuseWindow = 10*time.Second - 1 }, "reuse_window"},
		{"a longer one", func(c *client.Client) { c.ReuseWindow = time.Minute + 1 }, "reuse_window"},
		{"the issuer as a service's default", func(c *client.Client) { c.Audiences, c.DefaultAudiences = []string{issuer}, []string{issuer} }, "default_audiences"},
		{"the same of an app", func(c *client.Client) {
			c.Kind, c.Audiences, c.DefaultAudiences = client.Public, []string{issuer}, []string{issuer}
		}, ""},
		{"a default audience beyond the audiences", func(c *client.Client) { c.DefaultAudiences = []string{wiki} }, "default_audiences"},
		{"a default scope beyond the scopes", func(c *client.Client) { c.DefaultScopes = []string{"write"} }, "default_scopes"},
		{"an audience with a space", func(c *client.Client) { c.Audiences = []string{"a b"} }, "audiences"},
		{"a scope with a quote", func(c *client.Client) { c.Scopes = []string{`a"`} }, "scopes"},
		{"a scope with a backslash", func(c *client.Client) { c.Scopes = []string{`a\`} }, "scopes"},
		{"an empty scope", func(c *client.Client) { c.Scopes = []string{""} }, "scopes"},
		{"a scope that is not ASCII", func(c *client.Client) { c.Scopes = []string{"lés"} }, "scopes"},
		{"an audience of 257 bytes", func(c *client.Client) { c.Audiences = []string{strings.Repeat("a", 257)} }, "audiences"},
		{"64 audiences", func(c *client.Client) { c.Audiences, c.DefaultAudiences = many(64, 10), nil }, ""},
		{"65 audiences", func(c *client.Client) { c.Audiences, c.DefaultAudiences = many(65, 10), nil }, "audiences"},
		{"more text than a token has room for", func(c *client.Client) { c.Audiences, c.DefaultAudiences = many(16, 256), nil }, "audiences"},
		{"no audience", func(c *client.Client) { c.Audiences, c.DefaultAudiences = nil, nil }, "audiences"},
		{"no audience, and a scope of this service's", func(c *client.Client) {
			c.Audiences, c.DefaultAudiences, c.Scopes = nil, nil, []string{"authsvc.introspect"}
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := client.Client{ID: "svc", Kind: client.Confidential, Audiences: []string{api}, DefaultAudiences: []string{api}, Scopes: []string{"read"}}.Defaults()
			tt.change(&c)
			err := c.Validate(issuer)
			if tt.field == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if f := fault.From(err); err == nil || f.Reason != fault.FieldInvalid || f.Violations[0].Field != tt.field {
				t.Errorf("got %v, want it to name %s", err, tt.field)
			}
		})
	}
}

func TestR55TwoSecretsAreValidDuringARotationAndNoOther(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	c := client.Client{Kind: client.Confidential, Secrets: []client.Secret{
		{Hash: ids.HashSecret("new")}, {Hash: ids.HashSecret("old"), ExpiresAt: now.Add(time.Hour)}}}
	for _, tt := range []struct {
		secret string
		at     time.Duration
		want   bool
	}{
		{"new", 0, true}, {"old", 0, true}, {"old", time.Hour - 1, true}, {"old", time.Hour, false}, {"new", 1000 * time.Hour, true},
		{"", 0, false}, {"New", 0, false}, {"new ", 0, false}, {"newold", 0, false}, {string(c.Secrets[0].Hash[:]), 0, false},
	} {
		if got := c.Authentic(tt.secret, now.Add(tt.at)); got != tt.want {
			t.Errorf("%q after %v: %v", tt.secret, tt.at, got)
		}
	}
	same := c
	same.Secrets = []client.Secret{c.Secrets[0], c.Secrets[0]}
	if !same.Authentic("new", now) {
		t.Error("one secret twice does not authenticate")
	}
	public := c
	public.Kind = client.Public
	if public.Authentic("new", now) || (client.Client{Kind: client.Confidential}).Authentic("", now) {
		t.Error("a client without secrets authenticates")
	}
}

func TestAudience(t *testing.T) {
	t.Parallel()
	plain := client.Client{Audiences: []string{api, wiki}, DefaultAudiences: []string{api}}
	asker := client.Client{Audiences: []string{api}, Scopes: []string{"authsvc.introspect"}}
	for _, tt := range []struct {
		name  string
		c     client.Client
		asked []string
		want  []string // nil: INVALID_TARGET
	}{
		{"none gives the defaults", plain, nil, []string{api}},
		{"one of its own", plain, []string{wiki}, []string{wiki}},
		{"its own in the order asked, each once", plain, []string{wiki, api, wiki}, []string{wiki, api}},
		{"another's beside its own", plain, []string{api, "https://other.example"}, nil},
		{"its own with a slash", plain, []string{api + "/"}, nil},
		{"its own in another case", plain, []string{strings.ToUpper(api)}, nil},
		{"an empty one", plain, []string{""}, nil},
		{"the issuer", plain, []string{issuer}, nil},
		{"the issuer, with a scope of this service's", asker, []string{issuer}, []string{issuer}},
		{"none, where there is no default", asker, nil, nil},
		{"65 times the same", plain, slices.Repeat([]string{api}, 65), nil},
	} {
		got, err := tt.c.Audience(tt.asked, issuer, "resource")
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tt.name, diff)
		}
		if f := fault.From(err); tt.want == nil && (f.Reason != fault.InvalidTarget || f.Violations[0].Field != "resource") {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	got, err := plain.Audience(nil, issuer, "audience")
	if err != nil {
		t.Fatal(err)
	}
	if got[0] = "changed"; plain.DefaultAudiences[0] != api {
		t.Error("the answer is the client's own list")
	}
}

func TestR10P11AClientSeesTokensOfItsAudiencesTheIssuerApart(t *testing.T) {
	t.Parallel()
	c := client.Client{Audiences: []string{api, issuer}}
	for _, tt := range []struct {
		name     string
		audience []string
		want     bool
	}{
		{"one of its own", []string{api}, true},
		{"one of its own among others", []string{wiki, issuer, api}, true},
		{"another's", []string{wiki}, false},
		{"the issuer, which it has too", []string{issuer}, false},
		{"another's and the issuer", []string{wiki, issuer}, false},
		{"none", nil, false},
	} {
		if got := c.Sees(tt.audience, issuer); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
