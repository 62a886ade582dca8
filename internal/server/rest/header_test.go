package rest_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/server/rest"
)

func TestG01G02G03OnlyNamedHeadersReachAService(t *testing.T) {
	t.Parallel()
	h := open(t, nil)
	resp := h.do(request(func(r *http.Request) {
		for name, value := range map[string]string{
			"Authorization":                 "Bearer real",
			"User-Agent":                    "tests/1",
			"Traceparent":                   "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
			"Grpc-Metadata-Authorization":   "Bearer smuggled", // G01
			"Grpc-Metadata-X-Forwarded-For": "127.0.0.1",       // G02
			"Grpc-Metadata-X-User-Id":       "root",            // G03
			"Grpc-Metadata-Evil-Bin":        "AAAA",
			"X-Forwarded-Host":              "evil.example.com",
			"X-Forwarded-For":               "127.0.0.1",
			"X-Request-Id":                  "chosen-by-a-stranger",
			"X-User-Id":                     "root",
			"Cookie":                        "a=b",
			"Authsvc-Device":                "dt1.x",
		} {
			r.Header.Set(name, value)
		}
	}))
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("answered %d", resp.StatusCode)
	}
	call := h.services.last(t)
	id := resp.Header.Get("X-Request-Id")
	want := map[string]string{"authsvc-device": "dt1.x", "authorization": "Bearer real", "user-agent": "tests/1", "x-request-id": id,
		"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
	for name, values := range call.md {
		if len(values) != 1 || values[0] != want[name] {
			t.Errorf("G01 G02 G03 metadata %s is %q, want %q", name, values, want[name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("metadata %s is missing", name)
	}
	if len(id) != 22 || id == "chosen-by-a-stranger" {
		t.Errorf("the request id is %q, want 128 random bits", id)
	}
	if got := resp.Header.Values("Authsvc-Device"); len(got) != 1 || got[0] != "dt1.y" {
		t.Errorf("the device token of the answer is %q", got)
	}
	for name := range resp.Header {
		if strings.HasPrefix(name, "Grpc-") || name == "X-Internal" {
			t.Errorf("the header %s of a service has left the house", name)
		}
	}
}

// The rule itself is package proxy's; these cases are how its input is taken from a request.
func TestClientAddress(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, remote string
		forwarded    []string
		want         string
	}{
		{"R57 the peer, where no proxy is trusted", "192.0.2.7:4711", []string{"198.51.100.1"}, "192.0.2.7:4711"},
		{"R57 the right-most untrusted hop", "10.0.0.1:80", []string{"203.0.113.9, 198.51.100.1, 10.0.0.2"}, "198.51.100.1:0"},
		{"over several header lines", "10.0.0.1:80", []string{"203.0.113.9", "198.51.100.1", "10.0.0.2"}, "198.51.100.1:0"},
		{"IPv6", "[fd00::1]:80", []string{"2001:db8::1"}, "[2001:db8::1]:0"},
		{"IPv4 mapped into IPv6", "[::ffff:10.0.0.1]:80", []string{"::ffff:198.51.100.1"}, "198.51.100.1:0"},
		{"L11 a hop that is not an address", "10.0.0.1:80", []string{"a"}, "10.0.0.1:80"},
		{"no header", "10.0.0.1:80", nil, "10.0.0.1:80"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, nil)
			h.do(request(func(r *http.Request) {
				r.RemoteAddr = tt.remote
				r.Header["X-Forwarded-For"] = tt.forwarded
			}))
			if got := h.services.last(t).peer; got != tt.want {
				t.Errorf("the peer is %s, want %s", got, tt.want)
			}
		})
	}
}

func TestRequestIDOfATrustedProxy(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, remote, sent string
		kept               bool
	}{
		{"from a trusted proxy it is kept", "10.0.0.1:80", "abc_DEF-123", true},
		{"from anybody else it is replaced", "192.0.2.7:80", "abc_DEF-123", false},
		{"one of 65 characters is replaced", "10.0.0.1:80", strings.Repeat("a", 65), false},
		{"G16 one with a line break is replaced", "10.0.0.1:80", "a\r\nSet-Cookie: x=y", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, nil)
			resp := h.do(request(func(r *http.Request) { r.RemoteAddr = tt.remote; r.Header.Set("X-Request-Id", tt.sent) }))
			if got := resp.Header.Get("X-Request-Id"); (got == tt.sent) != tt.kept || got == "" {
				t.Errorf("the request id is %q", got)
			}
		})
	}
}

func TestG05ClientTimeoutIsClamped(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, sent string
		min, max   time.Duration
	}{
		{"none gives the door's own", "", 10 * time.Second, 20 * time.Second},
		{"a nanosecond becomes a second", "1n", 0, time.Second},
		{"five seconds are five seconds", "5S", time.Second, 5 * time.Second},
		{"an age becomes the door's own", "99999999H", 10 * time.Second, 20 * time.Second},
		{"nine digits are ignored", "999999999n", 10 * time.Second, 20 * time.Second},
		{"a malformed one is ignored", "soon", 10 * time.Second, 20 * time.Second},
		{"a negative one is ignored", "-1S", 10 * time.Second, 20 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, func(o *rest.Options) { o.RequestTimeout = 20 * time.Second })
			resp := h.do(request(func(r *http.Request) {
				if tt.sent != "" {
					r.Header.Set("Grpc-Timeout", tt.sent)
				}
			}))
			call := h.services.last(t)
			if resp.StatusCode != http.StatusOK || !call.hasDeadline || call.remaining < tt.min || call.remaining > tt.max {
				t.Errorf("answered %d with %v left, want 200 with %v to %v", resp.StatusCode, call.remaining, tt.min, tt.max)
			}
		})
	}
}

func TestFailuresShowNothingOfTheInside(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, username string
		want           int
		reason         string
		logged         string
	}{
		{"G16 R59 an error that nobody mapped", "raw", 500, "INTERNAL", "request failed"},
		{"G16 R59 an internal status", "internal", 500, "INTERNAL", ""},
		{"G16 R59 a panic", "panic", 500, "INTERNAL", `"panic"`},
		{"G16 an answer that is not UTF-8", "utf8", 500, "INTERNAL", "request failed"},
		{"a detail that is not ours", "limited", 429, "RATE_LIMITED", ""},
		{"the same without the fault", "ann", 200, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, nil)
			resp := h.do(request(func(r *http.Request) { withBody(r, `{"username":"`+tt.username+`"}`) }))
			text, st := read(t, resp)
			if resp.StatusCode != tt.want {
				t.Fatalf("answered %d %s, want %d", resp.StatusCode, text, tt.want)
			}
			if strings.Contains(text, canary) {
				t.Errorf("the answer shows the inside: %s", text)
			}
			if got, _ := st.detail("ErrorInfo")["reason"].(string); got != tt.reason {
				t.Errorf("the reason is %q, want %q", got, tt.reason)
			}
			if tt.logged != "" && !strings.Contains(h.log.String(), tt.logged) {
				t.Errorf("the log has no %s: %s", tt.logged, h.log)
			}
			if tt.username == "panic" && (h.panics != 1 || strings.Contains(h.log.String(), canary)) {
				t.Errorf("R63 %d panics counted; the log: %s", h.panics, h.log)
			}
			if tt.want == 429 && resp.Header.Get("Retry-After") != "2" {
				t.Errorf("Retry-After is %q, want the 1.5 s rounded up", resp.Header.Get("Retry-After"))
			}
		})
	}
}

func TestR08Challenge(t *testing.T) {
	t.Parallel()
	const basic = `Basic realm="authsvc", charset="UTF-8"`
	tests := []struct {
		name, username, authorization string
		code                          int
		want                          string
	}{
		{"no credentials have no error code", "token", "", 401, `Bearer realm="authsvc"`},
		{"a bad bearer token is an invalid_token", "token", "Bearer x", 401, `Bearer realm="authsvc", error="invalid_token"`},
		{"a bad client is asked for Basic", "client", "", 401, basic},
		{"bad Basic is asked for Basic", "client", "Basic x", 401, basic},
		{"a bad token as Basic is asked for Bearer", "token", "Basic x", 401, `Bearer realm="authsvc"`},
		{"a bad client with a bearer token is asked for Basic", "client", "Bearer x", 401, basic},
		{"a wrong password is neither a bad token nor a bad client", "wrong", "", 401, `Authsvc realm="authsvc", reason="INVALID_CREDENTIALS"`},
		{"a wrong password beside a good client", "wrong", "Basic x", 401, `Authsvc realm="authsvc", reason="INVALID_CREDENTIALS"`},
		{"a wrong old password beside a good token", "wrong", "Bearer x", 401, `Authsvc realm="authsvc", reason="INVALID_CREDENTIALS"`},
		{"a refresh token that was used", "reused", "", 401, `Authsvc realm="authsvc", reason="REFRESH_REUSED"`},
		{"a refresh token that was superseded", "superseded", "Basic x", 401, `Authsvc realm="authsvc", reason="REFRESH_SUPERSEDED"`},
		{"a refresh token that has expired", "expired", "", 401, `Authsvc realm="authsvc", reason="REFRESH_EXPIRED"`},
		{"a refresh token that has ended", "ended", "", 401, `Authsvc realm="authsvc", reason="REFRESH_INVALID"`},
		{"a lacking scope is named", "scope", "Bearer x", 403, `Bearer realm="authsvc", error="insufficient_scope", scope="authsvc.introspect"`},
		{"success is not challenged", "ann", "Bearer x", 200, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, nil)
			resp := h.do(request(func(r *http.Request) {
				withBody(r, `{"username":"`+tt.username+`"}`)
				if tt.authorization != "" {
					r.Header.Set("Authorization", tt.authorization)
				}
			}))
			if got := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != tt.code || got != tt.want {
				t.Errorf("answered %d with the challenge %q, want %d %q", resp.StatusCode, got, tt.code, tt.want)
			}
		})
	}
}

func TestG18CORS(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, origin string
		allowed      bool
	}{
		{"the listed origin", goodOrigin, true},
		{"null", "null", false},
		{"a suffix of another's name", goodOrigin + ".evil", false},
		{"another port", goodOrigin + ":8443", false},
		{"another scheme", "http://app.example.com", false},
		{"a subdomain", "https://x.app.example.com", false},
		{"another case", "https://APP.example.com", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, nil)
			want := ""
			if tt.allowed {
				want = tt.origin
			}
			device := func(h http.Header, name string) bool { return strings.Contains(h.Get(name), "Authsvc-Device") }
			call := h.do(request(func(r *http.Request) { r.Header.Set("Origin", tt.origin) }))
			flight := h.do(request(func(r *http.Request) {
				r.Method = http.MethodOptions
				withBody(r, "")
				r.Header.Set("Origin", tt.origin)
				r.Header.Set("Access-Control-Request-Method", "POST")
			}))
			for _, resp := range []*http.Response{call, flight} {
				if got := resp.Header.Get("Access-Control-Allow-Origin"); got != want {
					t.Errorf("Access-Control-Allow-Origin is %q, want %q", got, want)
				}
				if got := resp.Header.Get("Access-Control-Allow-Credentials"); got != "" {
					t.Errorf("Access-Control-Allow-Credentials is %q", got)
				}
				if got := resp.Header.Values("Vary"); len(got) == 0 || got[0] != "Origin" {
					t.Errorf("Vary is %q", got)
				}
			}
			if device(call.Header, "Access-Control-Expose-Headers") != tt.allowed || device(flight.Header, "Access-Control-Allow-Headers") != tt.allowed {
				t.Error("a page of the listed origin, and of no other, may send and read the device token")
			}
			wantCode := http.StatusForbidden
			if tt.allowed {
				wantCode = http.StatusNoContent
			}
			if flight.StatusCode != wantCode || h.services.count() != 1 {
				t.Errorf("the preflight is answered %d, want %d; %d calls", flight.StatusCode, wantCode, h.services.count())
			}
		})
	}
}
