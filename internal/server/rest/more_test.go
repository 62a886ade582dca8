package rest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/server/rest"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

func TestAnswersHaveProtoNamesAndNothingUnpopulated(t *testing.T) {
	t.Parallel()
	h := open(t, nil)
	for path, want := range map[string]string{
		"/v1/auth/login":      `{"access_token":"at","token_type":"Bearer","expires_in":300}`,
		"/v1/auth/introspect": `{"active":false}`,
	} {
		resp := h.do(request(func(r *http.Request) { r.URL.Path = path; withBody(r, `{}`) }))
		text, _ := read(t, resp)
		var got bytes.Buffer // protojson varies its white space on purpose
		if err := json.Compact(&got, []byte(text)); err != nil || got.String() != want {
			t.Errorf("R10 %s answers %s, want %s", path, text, want)
		}
		if ct := resp.Header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("the content type is %q", ct)
		}
	}
}

func TestBatchBodiesNeedACallerBeforeTheyAreRead(t *testing.T) {
	t.Parallel()
	admit := func(ctx context.Context, full string) error {
		md, _ := metadata.FromIncomingContext(ctx)
		if full != authsvcv1.AuthService_BatchIntrospect_FullMethodName || len(md["authorization"]) != 1 {
			return fault.New(fault.Unauthenticated, fault.ClientInvalid, "who are you?")
		}
		return nil
	}
	of := func(size int) string {
		const frame = `{"tokens":[""]}`
		return `{"tokens":["` + strings.Repeat("a", size-len(frame)) + `"]}`
	}
	tests := []struct {
		name, authorization string
		size                int
		chunked             bool
		admit               func(context.Context, string) error
		want                int
	}{
		{"a small one is decoded and left to the interceptors", "", 1 << 10, false, admit, 200},
		{"a large one from nobody is refused unread", "", 1 << 20, false, admit, 401},
		{"a large one of unknown size from nobody too", "", 1 << 20, true, admit, 401},
		{"a large one from a client is taken", "Basic x", 1 << 20, false, admit, 200},
		{"a large one in chunks is taken", "Basic x", 1 << 20, true, admit, 200},
		{"R58 one of 2 MiB is taken", "Basic x", 2 << 20, false, admit, 200},
		{"R58 one over 2 MiB is not", "Basic x", 2<<20 + 1, false, admit, 413},
		{"R58 one over 2 MiB in chunks is not", "Basic x", 2<<20 + 1, true, admit, 413},
		{"without an Admit nothing large is taken", "Basic x", 1 << 20, false, nil, 413},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, func(o *rest.Options) { o.Admit = tt.admit })
			resp := h.do(request(func(r *http.Request) {
				r.URL.Path = "/v1/auth/introspect:batch"
				withBody(r, of(tt.size))
				if tt.chunked {
					r.ContentLength = -1
				}
				if tt.authorization != "" {
					r.Header.Set("Authorization", tt.authorization)
				}
			}))
			if resp.StatusCode != tt.want {
				t.Errorf("answered %d, want %d", resp.StatusCode, tt.want)
			}
		})
	}
}

func TestKeySet(t *testing.T) {
	t.Parallel()
	get := func(change func(*http.Request)) *http.Request {
		r := httptest.NewRequest(http.MethodGet, "/.well-known/jwks.json", nil)
		if change != nil {
			change(r)
		}
		return r
	}
	h := open(t, func(o *rest.Options) { o.BasePath = "/auth" })
	resp := h.do(get(nil))
	text, _ := read(t, resp)
	if resp.StatusCode != 200 || text != `{"keys":[]}` || resp.Header.Get("ETag") != `"v1"` ||
		resp.Header.Get("Cache-Control") != "public, max-age=300, stale-if-error=86400" {
		t.Errorf("answered %d %s %v", resp.StatusCode, text, resp.Header)
	}
	if resp.Header.Get("Access-Control-Allow-Origin") != "*" || resp.Header.Get("Access-Control-Allow-Credentials") != "" {
		t.Errorf("R12 the CORS headers are %v", resp.Header)
	}
	tests := []struct {
		name   string
		change func(*http.Request)
		want   int
	}{
		{"the same tag is not sent again", func(r *http.Request) { r.Header.Set("If-None-Match", `W/"v0", "v1"`) }, 304},
		{"another tag is", func(r *http.Request) { r.Header.Set("If-None-Match", `"v0"`) }, 200},
		{"HEAD", func(r *http.Request) { r.Method = http.MethodHead }, 200},
		{"a preflight", func(r *http.Request) { r.Method = http.MethodOptions }, 204},
		{"POST", func(r *http.Request) { r.Method = http.MethodPost }, 405},
		{"under the issuer's path", func(r *http.Request) { r.URL.Path = "/auth/.well-known/jwks.json" }, 200},
		{"the OpenAPI document", func(r *http.Request) { r.URL.Path = "/openapi.json" }, 200},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if resp := h.do(get(tt.change)); resp.StatusCode != tt.want {
				t.Errorf("answered %d, want %d", resp.StatusCode, tt.want)
			}
		})
	}
	away := open(t, func(o *rest.Options) {
		o.KeySet = func(context.Context) ([]byte, string, error) {
			return nil, "", fault.New(fault.Unavailable, fault.SigningUnavailable, "no key set is loaded")
		}
	})
	resp = away.do(get(nil))
	if _, st := read(t, resp); resp.StatusCode != 503 || resp.Header.Get("Cache-Control") != "no-store" ||
		st.detail("ErrorInfo")["reason"] != "SIGNING_UNAVAILABLE" {
		t.Errorf("without keys answered %d %v", resp.StatusCode, st)
	}
}

func TestOtherDoorsGetTheCallerAndTheGuardRails(t *testing.T) {
	t.Parallel()
	h := open(t, func(o *rest.Options) {
		o.Extra = map[string]http.Handler{
			"/extra": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, ok := rest.ClientFrom(r.Context())
				if _, deadline := r.Context().Deadline(); !ok || !deadline || c.RequestID == "" {
					t.Errorf("the client is %+v", c)
				}
				_, _ = w.Write([]byte(c.IP.String() + " " + c.UserAgent))
			}),
			"/panic": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(canary) }),
		}
	})
	resp := h.do(request(func(r *http.Request) {
		r.URL.Path, r.RemoteAddr = "/extra", "10.0.0.1:80"
		r.Header.Set("X-Forwarded-For", "198.51.100.1")
		r.Header.Set("User-Agent", "tests/1")
	}))
	if text, _ := read(t, resp); text != "198.51.100.1 tests/1" {
		t.Errorf("the handler saw %q", text)
	}
	resp = h.do(request(func(r *http.Request) { r.URL.Path = "/panic" }))
	if text, _ := read(t, resp); resp.StatusCode != 500 || strings.Contains(text, canary) || h.panics != 1 {
		t.Errorf("a panic is answered %d %s and counted %d times", resp.StatusCode, text, h.panics)
	}
}

func TestG15R63AccessLogHasOnlyBoundedWords(t *testing.T) {
	t.Parallel()
	h := open(t, nil)
	for _, change := range []func(*http.Request){
		func(r *http.Request) { r.URL.Path = "/" + canary },
		func(r *http.Request) { r.Method = strings.ToUpper(canary) },
		func(r *http.Request) {
			r.Method, r.URL.Path = http.MethodDelete, "/v1/sessions/"+canary
			withBody(r, "")
		},
		func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+canary) },
		func(r *http.Request) { r.Header.Set("User-Agent", canary) },
		func(r *http.Request) { withBody(r, `{"password":"`+canary+`"}`) },
		func(r *http.Request) { withBody(r, `{"password":{"`+canary+`":1}}`) },
	} {
		h.do(request(change))
	}
	log := h.log.String()
	if n := strings.Count(log, `"msg":"request"`); n != 7 {
		t.Errorf("%d requests are in the log, want 7", n)
	}
	if strings.Contains(strings.ToLower(log), canary) {
		t.Errorf("G15 R63 a client's words are in the log: %s", log)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*rest.Options)
		bad    string
	}{
		{"complete ones are taken", func(*rest.Options) {}, ""},
		{"no channel", func(o *rest.Options) { o.Channel = nil }, "Channel"},
		{"no key set", func(o *rest.Options) { o.KeySet = nil }, "KeySet"},
		{"no table of codes", func(o *rest.Options) { o.Status = nil }, "Status"},
		{"no logger", func(o *rest.Options) { o.Logger = nil }, "Logger"},
		{"any origin", func(o *rest.Options) { o.CORSOrigins = []string{"*"} }, "origin"},
		{"a null origin", func(o *rest.Options) { o.CORSOrigins = []string{"null"} }, "origin"},
		{"an origin with a path", func(o *rest.Options) { o.CORSOrigins = []string{"https://a.example/"} }, "origin"},
		{"an origin in capitals", func(o *rest.Options) { o.CORSOrigins = []string{"https://A.example"} }, "origin"},
		{"an origin with its scheme's port", func(o *rest.Options) { o.CORSOrigins = []string{"https://a.example:443"} }, "origin"},
		{"a timeout of a minute", func(o *rest.Options) { o.RequestTimeout = 60e9 }, "RequestTimeout"},
		{"a base path with a slash behind", func(o *rest.Options) { o.BasePath = "/a/" }, "BasePath"},
		{"a path twice", func(o *rest.Options) {
			o.Extra = map[string]http.Handler{"/v1/auth/login": http.NotFoundHandler()}
		}, "twice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := &services{}
			channel := rest.NewChannel()
			authsvcv1.RegisterAuthServiceServer(channel, s)
			o := rest.Options{Channel: channel, Status: rpc.StatusOf, Logger: slog.New(slog.DiscardHandler),
				KeySet: func(context.Context) ([]byte, string, error) { return nil, "", nil }}
			tt.change(&o)
			_, err := rest.New(o)
			if (err != nil) != (tt.bad != "") || err != nil && !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("New says %v, want an error about %q", err, tt.bad)
			}
		})
	}
}

func TestChannelCallsAsAServerWould(t *testing.T) {
	t.Parallel()
	s := &services{}
	channel := rest.NewChannel()
	authsvcv1.RegisterAuthServiceServer(noting{channel, s}, s)
	client := authsvcv1.NewAuthServiceClient(channel)
	var header metadata.MD
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer smuggled")
	out, err := client.Login(ctx, &authsvcv1.LoginRequest{Username: "ann", DeviceName: "phone"}, grpc.Header(&header))
	if err != nil || out.GetSessionId() != "phone" {
		t.Fatalf("Login gives %v, %v", out, err)
	}
	if got := header["x-internal"]; len(got) != 1 {
		t.Errorf("the header that the interceptor set is %v", header)
	}
	if call := s.last(t); len(call.md) != 0 || call.method != authsvcv1.AuthService_Login_FullMethodName {
		t.Errorf("outgoing metadata has become incoming: %+v", call)
	}
	if _, err := client.Login(t.Context(), &authsvcv1.LoginRequest{Username: "limited"}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the error is %v", err)
	}
	if _, err := client.Refresh(t.Context(), &authsvcv1.RefreshRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method without an implementation gives %v", err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic did not reach the caller")
			}
		}()
		_, _ = client.Login(t.Context(), &authsvcv1.LoginRequest{Username: "panic"})
	}()
	for name, err := range map[string]error{
		"an unknown method": channel.Invoke(t.Context(), "/authsvc.v1.AuthService/login", &authsvcv1.LoginRequest{}, &authsvcv1.LoginResponse{}),
		"an empty method":   channel.Invoke(t.Context(), "", &authsvcv1.LoginRequest{}, &authsvcv1.LoginResponse{}),
		"the wrong request": channel.Invoke(t.Context(), authsvcv1.AuthService_Login_FullMethodName, &authsvcv1.RefreshRequest{}, &authsvcv1.LoginResponse{}),
	} {
		if code := status.Code(err); code != codes.Unimplemented && code != codes.Internal {
			t.Errorf("G10 %s gives %v", name, err)
		}
	}
	if _, err := channel.NewStream(t.Context(), &grpc.StreamDesc{}, "/x/y"); status.Code(err) != codes.Unimplemented {
		t.Errorf("a stream gives %v", err)
	}
}

func TestABodyHasTheNamesOfTheProtoAlone(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, path, text string
		field            string // that is refused; empty: taken
	}{
		{"lowerCamelCase", "login", `{"username":"ann","clientId":"a"}`, "clientId"},
		{"the proto's spelling is taken", "login", `{"username":"ann","client_id":"a"}`, ""},
		{"one after a list", "login", `{"audience":["a","b"],"deviceName":"x"}`, "deviceName"},
		{"one before a list", "login", `{"deviceName":"x","audience":["a"]}`, "deviceName"},
		{"white space around the colon", "login", "{ \"clientId\"\t\r\n : \"a\" }", "clientId"},
		{"escaped", "login", `{"client\u0049d":"a"}`, "clientId"},
		{"the proto's spelling escaped is taken", "login", `{"client\u005fid":"a"}`, ""},
		{"a value that looks like it is taken", "login", `{"username":"clientId","password":"\"clientId\":","audience":["clientId"]}`, ""},
		{"a value that ends in backslashes", "login", `{"password":"\\\\","clientId":"a"}`, "clientId"},
		{"a value that ends in an escaped quote", "login", `{"password":"a\\\"","clientId":"a"}`, "clientId"},
		{"null for a value", "login", `{"clientId":null}`, "clientId"},
		{"of a refresh", "refresh", `{"refreshToken":"` + canary + `"}`, "refreshToken"},
		{"of an introspection", "introspect", `{"token":"` + canary + `","tokenTypeHint":"x"}`, "tokenTypeHint"},
		{"another of an introspection", "introspect", `{"token":"` + canary + `","minPosition":"x"}`, "minPosition"},
		{"a name of another message", "introspect", `{"token":"` + canary + `","clientId":"x"}`, "clientId"},
		{"an introspection is taken", "introspect", `{"token":"` + canary + `","token_type_hint":"x","min_position":"y"}`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h := open(t, nil)
			resp := h.do(request(func(r *http.Request) { r.URL.Path = "/v1/auth/" + tt.path; withBody(r, tt.text) }))
			text, st := read(t, resp)
			if tt.field == "" {
				if resp.StatusCode != http.StatusOK {
					t.Errorf("answered %d %s", resp.StatusCode, text)
				}
				return
			}
			violations, _ := st.detail("BadRequest")["field_violations"].([]any)
			if resp.StatusCode != http.StatusBadRequest || st.Code != int(codes.InvalidArgument) || len(violations) != 1 || h.services.count() != 0 {
				t.Fatalf("answered %d %s after %d calls", resp.StatusCode, text, h.services.count())
			}
			if v, _ := violations[0].(map[string]any); v["field"] != tt.field {
				t.Errorf("the violation is of %v, want %s", v["field"], tt.field)
			}
			if strings.Contains(text, canary) {
				t.Errorf("R63 the answer shows a value: %s", text)
			}
		})
	}
}

func FuzzJSONBody(f *testing.F) {
	for _, seed := range []string{`{"username":"ann","password":"pw"}`, `{"username":"a","username":"b"}`, `{"x":1}`, ``, `null`,
		`{"audience":["a","b"],"scope":"\ud800"}`, `{"username":"\u0000"}`, "{}\x00", `{"client_id":"a","clientId":"b"}`,
		`{"tokens":["a"]}`, `{"token":"a\\","minPosition":"x"}`, `{"min\u0050osition":"x"}`, `{"token":"minPosition" ,"token_type_hint" : "\""}`, strings.Repeat(`{"a":`, 200), `{"username":"raw"}`} {
		f.Add([]byte(seed))
	}
	h := open(f, func(o *rest.Options) { o.Logger = slog.New(slog.DiscardHandler) })
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, path := range []string{"/v1/auth/introspect", "/v1/auth/introspect:batch"} {
			resp := h.do(request(func(r *http.Request) { r.URL.Path = path; withBody(r, string(data)) }))
			text, _ := read(t, resp)
			switch resp.StatusCode {
			case http.StatusOK:
				var object map[string]any
				if err := json.Unmarshal(data, &object); err != nil || object == nil {
					t.Errorf("%q was taken for an object of %s", data, path)
				}
				for name := range object {
					if strings.ToLower(name) != name {
						t.Errorf("%q was taken with the name %s", data, name)
					}
				}
			case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
			default:
				t.Errorf("%q is answered %d %s", data, resp.StatusCode, text)
			}
		}
	})
}
