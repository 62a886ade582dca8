package live

import (
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

func TestTheOAuth2LibraryOfGoGetsAServiceToken(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	c := clientcredentials.Config{ClientID: s.ServiceClientID, ClientSecret: s.ServiceClientSecret, TokenURL: s.HTTP + "/oauth2/token",
		AuthStyle: oauth2.AuthStyleInHeader, EndpointParams: url.Values{"resource": {s.Audience}}}
	token, err := c.Token(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if a := s.introspect(t, token.AccessToken); a.json["active"] != true || a.text("sub") != s.ServiceClientID || a.text("sid") != "" {
		t.Errorf("the service's token is introspected as %s", a.raw)
	}
	c.ClientSecret = "wrong"
	if _, err := c.Token(t.Context()); err == nil || !strings.Contains(err.Error(), "invalid_client") {
		t.Errorf("a wrong secret answered %v", err)
	}
}

func TestATokenVerifiesInNodeWithJose(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("node/node_modules/jose"); err != nil {
		lacking(t, "jose is not installed (make test installs it): %v", err)
	}
	s := start(t, t.TempDir())
	s.verifiesIn(t, "node", "node", "verify.mjs", s.HTTP+"/.well-known/jwks.json", s.Issuer, s.Audience)
}

func TestATokenVerifiesInPythonWithPyJWT(t *testing.T) {
	t.Parallel()
	const debians = "/usr/bin/python3" // whose packages the test uses, whatever else is called python3 here
	if out, err := exec.Command(debians, "-c", "import jwt, cryptography").CombinedOutput(); err != nil {
		lacking(t, "PyJWT is not installed (make test installs it): %v %s", err, out)
	}
	s := start(t, t.TempDir())
	s.verifiesIn(t, "python", debians, "verify.py", s.Issuer, s.Audience)
}

// verifiesIn runs a verifier of another language, which reads a token and prints its sid.
func (s *server) verifiesIn(t *testing.T, dir, program string, args ...string) {
	t.Helper()
	in := s.login(t)
	run := func(token string) (string, error) {
		cmd := exec.Command(program, args...)
		cmd.Dir, cmd.Stdin = dir, strings.NewReader(token)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(in.text("access_token")); err != nil || !strings.Contains(out, in.text("session_id")) {
		t.Errorf("it refused our token: %v %s", err, out)
	}
	if out, err := run(in.text("access_token")[:20] + "A" + in.text("access_token")[21:]); err == nil {
		t.Errorf("it accepted a changed token: %s", out)
	}
}

func TestGRPCDoor(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	conn, err := grpc.NewClient(s.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	auth, sessions, trust := authsvcv1.NewAuthServiceClient(conn), authsvcv1.NewSessionServiceClient(conn), authsvcv1.NewTrustServiceClient(conn)
	ctx := t.Context()
	in, err := auth.Login(ctx, &authsvcv1.LoginRequest{Username: s.Username, Password: s.Password, ClientId: s.PublicClientID})
	if err != nil {
		t.Fatal(err)
	}
	with := func(v string) metadata.MD { return metadata.Pairs("authorization", v) }
	basic := metadata.NewOutgoingContext(ctx, with(s.basic()))
	if r, err := auth.Introspect(basic, &authsvcv1.IntrospectRequest{Token: in.GetAccessToken()}); err != nil || !r.GetActive() {
		t.Errorf("introspect: %v %v", r, err)
	}
	if _, err := auth.Introspect(ctx, &authsvcv1.IntrospectRequest{Token: in.GetAccessToken()}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("P11: introspect without authentication: %v", err)
	}
	if _, err := auth.BatchIntrospect(basic, &authsvcv1.BatchIntrospectRequest{Tokens: make([]string, 1001)}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("1,001 tokens: %v", err)
	}
	if r, err := auth.BatchIntrospect(basic, &authsvcv1.BatchIntrospectRequest{Tokens: []string{in.GetAccessToken(), "x", in.GetAccessToken()}}); err != nil ||
		len(r.GetResults()) != 3 || !r.GetResults()[0].GetActive() || r.GetResults()[1].GetActive() || !r.GetResults()[2].GetActive() {
		t.Errorf("batch: %v %v", r, err)
	}
	if r, err := auth.BatchIntrospect(basic, &authsvcv1.BatchIntrospectRequest{}); err != nil || len(r.GetResults()) != 0 {
		t.Errorf("an empty batch: %v %v", r, err)
	}
	user := metadata.NewOutgoingContext(ctx, with("Bearer "+in.GetAccessToken()))
	if r, err := sessions.ListSessions(user, &authsvcv1.ListSessionsRequest{}); err != nil || len(r.GetSessions()) != 1 || !r.GetSessions()[0].GetCurrent() {
		t.Errorf("sessions: %v %v", r, err)
	}
	twice := metadata.NewOutgoingContext(ctx, metadata.Join(with("Bearer "+in.GetAccessToken()), with("Bearer "+in.GetAccessToken())))
	if _, err := sessions.ListSessions(twice, &authsvcv1.ListSessionsRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("G01: two authorization values: %v", err)
	}
	if r, err := trust.GetKeySet(ctx, &authsvcv1.GetKeySetRequest{}); err != nil || string(r.GetJwks()) != call(t, "GET", s.HTTP+"/.well-known/jwks.json", "", nil).raw {
		t.Errorf("GetKeySet is not what HTTP serves: %v", err)
	}
	if r, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil || r.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		t.Errorf("health: %v %v", r, err)
	}
	for _, name := range []string{"authsvc.v1.AuthService/Introspect", "//authsvc.v1.AuthService/Introspect", "/authsvc.v1.authservice/introspect", "/authsvc.v1.AuthService%2fIntrospect"} {
		if err := conn.Invoke(basic, name, &authsvcv1.IntrospectRequest{Token: "x"}, &authsvcv1.IntrospectResponse{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("G10: %s answered %v", name, err)
		}
	}
	big := &authsvcv1.IntrospectRequest{Token: strings.Repeat("a", 70<<10)}
	if _, err := auth.Introspect(basic, big); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("R58: a message of 70 KiB: %v", err)
	}
}
