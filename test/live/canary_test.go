package live

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// bytesCodec passes messages on as they are, so that a collector needs no schema.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(any) ([]byte, error) { return nil, nil }

func (bytesCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...) //nolint:forcetypeassert // collector asks for nothing else
	return nil
}

// collector takes whatever telemetry is sent to it and keeps its bytes.
func collector(t *testing.T) (addr string, got *speech) {
	t.Helper()
	got = &speech{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodec(bytesCodec{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		var m []byte
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		method, _ := grpc.MethodFromServerStream(stream)
		_, _ = fmt.Fprintf(got, "%s\n%s\n", method, m)
		return stream.SendMsg(nil)
	}))
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-done })
	return l.Addr().String(), got
}

// canary is a secret that nobody else says.
func canary(n int) string { return fmt.Sprintf("canary-%d-Zq7Zq7Zq7Zq7", n) }

// TestA07R63NoSecretComesOut sends secrets through every call, good and bad, with everything logged and every trace sent,
// and then reads all that came out of the server: log, metrics, traces, audit, database, and the answers.
func TestA07R63NoSecretComesOut(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	addr, traces := collector(t)
	s, said := serve(t, dir, d, plain+fmt.Sprintf("log: {level: debug}\ntelemetry: {endpoint: %q, insecure: true, sample_ratio: 1}\n", addr), "http")
	var answers strings.Builder
	secrets := map[string]string{"the password": s.Password, "a client's secret": s.ServiceClientSecret, "a client's Basic header": strings.TrimPrefix(s.basic(), "Basic "),
		"a new password": phrase + " of the canary"}
	next := 0
	plant := func(where string) string {
		next++
		v := canary(next)
		secrets["a canary as "+where] = v
		secrets["a canary in base64 as "+where] = base64.RawStdEncoding.EncodeToString([]byte(v))[:20]
		return v
	}
	post := func(path, auth string, body any) {
		header := []string{}
		if auth != "" {
			header = []string{"Authorization", auth}
		}
		a := s.say(t, http.DefaultClient, path, body, header...)
		if a.code < 400 && path != "/v1/auth/introspect" && path != "/v1/auth/revoke" && path != "/v1/auth/introspect:batch" {
			t.Errorf("%s took a canary: %d %s", path, a.code, a.raw)
		}
		fmt.Fprintln(&answers, a.raw, a.header)
	}
	in := s.login(t) // the twins: calls that succeed
	refreshed := s.refresh(t, in.text("refresh_token"))
	for name, v := range map[string]string{"an access token": in.text("access_token"), "another access token": refreshed.text("access_token"),
		"a refresh token": in.text("refresh_token"), "its successor": refreshed.text("refresh_token")} {
		secrets[name], secrets[name+"'s last part"] = v, v[len(v)-24:]
	}
	bearer := "Bearer " + refreshed.text("access_token")
	if a := s.introspect(t, refreshed.text("refresh_token")); a.code != http.StatusOK {
		t.Errorf("introspection of a refresh token: %d %s", a.code, a.raw)
	}
	post("/v1/auth/login", "", s.credentials(s.Username, plant("a wrong password")))
	post("/v1/auth/login", "", s.credentials("nobody", plant("an unknown name's password")))
	post("/v1/auth/login", "", s.credentials(s.Username, plant("a password far too long")+strings.Repeat("x", 2000)))
	post("/v1/auth/login", "Basic "+base64.StdEncoding.EncodeToString([]byte("x:"+plant("a Basic secret"))), s.credentials(s.Username, s.Password))
	post("/v1/auth/login", "", `{"password":"`+plant("a body that breaks off"))
	post("/v1/auth/login", "", `{"password":{"nested":"`+plant("a password that is an object")+`"}}`)
	post("/v1/auth/login", "", `{"username":"a","no_such_field":"`+plant("an unknown field")+`"}`)
	post("/v1/auth/login", "", "{\"password\":\"\xff"+plant("bad UTF-8")+"\"}")
	post("/v1/auth/login?password="+plant("a query"), "", s.credentials(s.Username, "x"))
	post("/v1/auth/refresh", "", map[string]any{"refresh_token": plant("a refresh token"), "client_id": s.PublicClientID})
	post("/v1/auth/refresh", "", map[string]any{"refresh_token": "rt1." + plant("a refresh token's body"), "client_id": s.PublicClientID})
	post("/v1/auth/revoke", "", map[string]any{"token": plant("a token to revoke")})
	post("/v1/auth/introspect", s.basic(), map[string]any{"token": plant("a token to ask about")})
	post("/v1/auth/introspect:batch", s.basic(), map[string]any{"tokens": []string{plant("one of many"), in.text("access_token")}})
	post("/v1/account/password", bearer, map[string]any{"old_password": plant("an old password"), "new_password": phrase + " of the canary"})
	post("/v1/account/password", bearer, map[string]any{"old_password": s.Password, "new_password": "c-" + plant("x")[:9]})
	post("/v1/account/password", "Bearer "+plant("a bearer token"), map[string]any{"old_password": s.Password, "new_password": plant("a new password of nobody")})
	post("/v1/sessions:revokeAll", "Bearer eyJhbGciOiJSUzI1NiJ9."+plant("a token's claims")+".x", map[string]any{})
	for _, path := range []string{"/v1/sessions?page_token=", "/v1/sessions/", "/", "/v1/auth/login/"} {
		a := call(t, "DELETE", s.HTTP+path+plant("the path "+path), bearer, nil)
		fmt.Fprintln(&answers, a.raw, a.header)
	}
	for _, form := range []string{"grant_type=client_credentials&client_secret=" + plant("a form's secret"), "grant_type=password&username=a&password=" + plant("a form's password"),
		"grant_type=client_credentials&scope=" + plant("a scope")} {
		r, err := http.NewRequest(http.MethodPost, s.HTTP+"/oauth2/token", strings.NewReader(form))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.SetBasicAuth(s.ServiceClientID, s.ServiceClientSecret)
		r.Header.Set("Cookie", "session="+plant("a cookie"))
		a, err := do(http.DefaultClient, r)
		if err != nil || a.code < 400 {
			t.Errorf("%s: %d %s %v", form, a.code, a.raw, err)
		}
		fmt.Fprintln(&answers, a.raw, a.header)
	}
	conn := wire(t, s.GRPC)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+plant("a bearer token over gRPC"), "x-password", plant("metadata"), "traceparent", plant("a trace"))
	for method, m := range map[string]any{
		"/authsvc.v1.AuthService/Introspect":                   &authsvcv1.IntrospectRequest{Token: plant("a token over gRPC")},
		"/authsvc.v1.AuthService/Refresh":                      &authsvcv1.RefreshRequest{RefreshToken: plant("a refresh token over gRPC"), ClientId: s.PublicClientID},
		"/authsvc.v1.AuthService/Login":                        &authsvcv1.LoginRequest{Username: s.Username, Password: plant("a password over gRPC"), ClientId: s.PublicClientID},
		"/authsvc.v1.AccountService/ChangePassword":            &authsvcv1.ChangePasswordRequest{OldPassword: plant("an old password over gRPC"), NewPassword: plant("a new one")},
		"/authsvc.v1.AuthService/" + plant("a method's name"):  &authsvcv1.GetKeySetRequest{},
		"/" + plant("a service's name") + "/authsvc.v1.Method": &authsvcv1.GetKeySetRequest{},
	} {
		err := conn.Invoke(ctx, method, m, &authsvcv1.GetKeySetResponse{})
		if err == nil || status.Code(err) == codes.Internal || status.Code(err) == codes.Unknown {
			t.Errorf("%s answered %v", method, err)
		}
		if status.Code(err) != codes.Unimplemented { // that one says the name back to its caller
			fmt.Fprintln(&answers, err)
		}
	}
	out, err := command(plant("a password by stdin")+"\n", "account", "create", "-dir", dir, "demo")
	if err == nil {
		t.Errorf("a second demo account was made: %s", out)
	}
	answers.WriteString(out)
	audit := operate(t, "", "audit", "list", "-dir", dir, "-o", "json", "-limit", "0")
	scrape := call(t, "GET", s.Ops+"/metrics", "", nil).raw
	s.stop(t) // which sends the last traces
	places := map[string]string{"the log": said.String(), "the metrics": scrape, "the traces": traces.String(), "the audit log": audit, "an answer": answers.String()}
	for _, name := range []string{"authsvc.db", "authsvc.db-wal"} {
		if content, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			places["the database"] += string(content)
		}
	}
	for place, sign := range map[string]string{"the log": "/v1/auth/login", "the metrics": "authsvc_logins_total", "the traces": "authsvc.v1.AuthService/Refresh",
		"the audit log": in.text("session_id"), "an answer": "INVALID_CREDENTIALS", "the database": in.text("session_id")} {
		if !strings.Contains(places[place], sign) {
			t.Errorf("%s lack %q: they were not read", place, sign)
		}
	}
	for name, secret := range secrets {
		for place, content := range places {
			if at := strings.Index(content, secret); at >= 0 {
				t.Errorf("%s stands in %s: …%.200q", name, place, content[max(0, at-100):])
			}
		}
	}
}
