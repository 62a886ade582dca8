package extauthz_test

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/server/extauthz"
)

var staleError = fault.New(fault.Unavailable, fault.ReplicaStale, "this replica cannot read the revocation log; nothing was decided")

func unix(t time.Time) string { return strconv.FormatInt(t.Unix(), 10) }

func TestConfigSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*extauthz.Config)
		says   string // empty: it is right
	}{
		{"the default", func(*extauthz.Config) {}, ""},
		{"an audience", func(c *extauthz.Config) { c.Audiences = []string{api, "orders"} }, ""},
		{"an empty audience", func(c *extauthz.Config) { c.Audiences = []string{""} }, "audiences: entry 1"},
		{"an audience with a space", func(c *extauthz.Config) { c.Audiences = []string{api, "a b"} }, "audiences: entry 2"},
		{"an audience of 257 bytes", func(c *extauthz.Config) { c.Audiences = []string{strings.Repeat("a", 257)} }, "audiences: entry 1"},
		{"an audience twice", func(c *extauthz.Config) { c.Audiences = []string{api, api} }, "stands twice"},
		{"no headers", func(c *extauthz.Config) { c.Headers = extauthz.Headers{} }, ""},
		{"another header", func(c *extauthz.Config) { c.Headers.Subject = "Remote-User" }, ""},
		{"a header with a space", func(c *extauthz.Config) { c.Headers.Subject = "X Auth" }, "headers.sub"},
		{"a header with a line break", func(c *extauthz.Config) { c.Headers.SessionID = "X\r\nY" }, "headers.sid"},
		{"a header with an underscore, which proxies drop", func(c *extauthz.Config) { c.Headers.TokenID = "X_Auth_Id" }, "headers.jti"},
		{"a long header", func(c *extauthz.Config) { c.Headers.AuthTime = strings.Repeat("a", 65) }, "headers.auth_time"},
		{"one header for two claims, in another case", func(c *extauthz.Config) { c.Headers.ExpiresAt = "x-auth-SUBJECT" }, "carries sub already"},
		{"the authorization", func(c *extauthz.Config) { c.Headers.Subject = "authorization" }, "meaning of its own"},
		{"a cookie", func(c *extauthz.Config) { c.Headers.Subject = "Set-Cookie" }, "meaning of its own"},
		{"the host", func(c *extauthz.Config) { c.Headers.Subject = "Host" }, "meaning of its own"},
		{"a header of one hop", func(c *extauthz.Config) { c.Headers.Subject = "Connection" }, "meaning of its own"},
		{"the client's address", func(c *extauthz.Config) { c.Headers.Subject = "X-Forwarded-For" }, "meaning of its own"},
		{"what sends nginx elsewhere", func(c *extauthz.Config) { c.Headers.Subject = "X-Accel-Redirect" }, "meaning of its own"},
		{"what sends some servers to another path", func(c *extauthz.Config) { c.Headers.Subject = "X-Original-URL" }, "meaning of its own"},
		{"what CGI takes for its own proxy", func(c *extauthz.Config) { c.Headers.Subject = "Proxy" }, "meaning of its own"},
		{"a length", func(c *extauthz.Config) { c.Headers.Subject = "Content-Length" }, "meaning of its own"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := extauthz.DefaultConfig()
			tt.change(&c)
			err := c.Validate()
			if (err == nil) != (tt.says == "") || err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("it says %v, want %q", err, tt.says)
			}
		})
	}
}

func TestNewWantsAnAudienceAndItsParts(t *testing.T) {
	t.Parallel()
	if _, err := extauthz.New(extauthz.Options{Config: extauthz.DefaultConfig(), Issuer: issuer}); err == nil {
		t.Error("a door without audiences")
	}
	c := extauthz.DefaultConfig()
	c.Audiences = []string{api}
	if _, err := extauthz.New(extauthz.Options{Config: c, Issuer: issuer}); err == nil {
		t.Error("a door without its parts")
	}
}
