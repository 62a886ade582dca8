package rpc_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/server/rpc"
	"github.com/authsvc/authsvc/internal/service"
)

// methods gives every method of every service, by full name, with its request and response types.
func methods(t *testing.T) map[string]protoreflect.MethodDescriptor {
	t.Helper()
	all := map[string]protoreflect.MethodDescriptor{}
	protoregistry.GlobalFiles.RangeFilesByPackage("authsvc.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for k := range s.Methods().Len() {
				all[fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(k).Name())] = s.Methods().Get(k)
			}
		}
		return true
	})
	return all
}

// call invokes a method with an empty request.
func (s *served) call(ctx context.Context, t *testing.T, name string, m protoreflect.MethodDescriptor) error {
	t.Helper()
	in, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
	if err != nil {
		t.Fatal(err)
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(m.Output().FullName())
	if err != nil {
		t.Fatal(err)
	}
	if !m.IsStreamingServer() {
		return s.conn.Invoke(ctx, name, in.New().Interface(), out.New().Interface())
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream := must(s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, name))(t)
	if err := errors.Join(stream.SendMsg(in.New().Interface()), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	return stream.RecvMsg(out.New().Interface())
}

// Who calls in TestA01.
const (
	nobody = iota
	wrongBasic
	goodBasic
	user
	userElsewhere // a person's token without the issuer as audience
	serviceScoped
	servicePlain // a service's token without the scope
	callers
)

// allowed is the whole table: what each kind of caller gets for an empty request. InvalidArgument, like OK, is from behind
// the rule. A new method fails the test until it has its row.
func allowed() map[string][callers]codes.Code {
	const ok, bad, un, no = codes.OK, codes.InvalidArgument, codes.Unauthenticated, codes.PermissionDenied
	auth, sess := "/authsvc.v1.AuthService/", "/authsvc.v1.SessionService/"
	return map[string][callers]codes.Code{
		auth + "Login":                              {bad, bad, bad, un, un, un, un},
		auth + "Refresh":                            {bad, bad, bad, un, un, un, un},
		auth + "Revoke":                             {bad, bad, bad, un, un, un, un},
		auth + "Introspect":                         {un, un, bad, no, un, bad, no},
		auth + "BatchIntrospect":                    {un, un, ok, no, un, ok, no},
		sess + "ListSessions":                       {un, un, un, ok, un, no, no},
		sess + "RevokeSession":                      {un, un, un, bad, un, no, no},
		sess + "RevokeAllSessions":                  {un, un, un, ok, un, no, no},
		"/authsvc.v1.AccountService/ChangePassword": {un, un, un, bad, un, no, no},
		"/authsvc.v1.TrustService/GetKeySet":        {ok, ok, ok, ok, ok, ok, ok},
		"/authsvc.v1.TrustService/WatchTrust":       {un, un, ok, no, un, no, no},
	}
}

func TestA01R56EveryMethodAdmitsExactlyWhomItsRuleNames(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	table := allowed()
	for name, m := range methods(t) {
		row, ok := table[name]
		if !ok {
			t.Errorf("%s has no row", name)
			continue
		}
		delete(table, name)
		for who, want := range row {
			ctx := with(t)
			switch who {
			case wrongBasic:
				ctx = with(t, basicOf("rs", "wrong"))
			case goodBasic:
				ctx = with(t, basicOf("rs", s.secret))
			case user: // a new one each time, since some methods end sessions
				ctx = with(t, "Bearer "+s.login(t).GetAccessToken())
			case userElsewhere:
				ctx = with(t, "Bearer "+s.login(t, api).GetAccessToken())
			case serviceScoped:
				ctx = with(t, "Bearer "+s.service(t, "authsvc.introspect"))
			case servicePlain:
				ctx = with(t, "Bearer "+s.service(t, "read"))
			}
			if got := status.Code(s.call(ctx, t, name, m)); got != want {
				t.Errorf("%s by caller %d: %v, want %v", name, who, got, want)
			}
		}
	}
	for name := range table {
		t.Errorf("%s has a row and does not exist", name)
	}
}

func TestR56AMethodWithoutARuleIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for method, want := range map[string]codes.Code{
		"/authsvc.v1.AuthService/Nothing":      codes.PermissionDenied,
		"authsvc.v1.TrustService/GetKeySet":    codes.PermissionDenied, // exact names only
		"/authsvc.v1.TrustService/GetKeySet/":  codes.PermissionDenied,
		"/authsvc.v1.trustservice/getkeyset":   codes.PermissionDenied,
		"/authsvc.v1.AuthService/Introspect":   codes.Unauthenticated,
		"/authsvc.v1.TrustService/GetKeySet":   codes.OK,
		"/authsvc.v1.AdminService/ListClients": codes.PermissionDenied,
	} {
		if got := status.Code(s.door.Admit(t.Context(), method)); got != want {
			t.Errorf("%s: %v, want %v", method, got, want)
		}
	}
	if got := status.Code(s.conn.Invoke(t.Context(), "/authsvc.v1.AuthService/Nothing", &authsvcv1.GetKeySetRequest{}, &authsvcv1.GetKeySetResponse{})); got != codes.Unimplemented {
		t.Errorf("over the wire: %v", got)
	}
}

func TestG01TwoAuthorizationsAreNone(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	bearer, basic := "Bearer "+s.login(t).GetAccessToken(), basicOf("rs", s.secret)
	for name, m := range methods(t) {
		if strings.HasSuffix(name, "/GetKeySet") {
			continue // it looks at none
		}
		for _, pair := range [][]string{{bearer, bearer}, {basic, basic}, {basic, bearer}, {bearer, basic}, {"", bearer}, {bearer, ""}} {
			if got := status.Code(s.call(with(t, pair...), t, name, m)); got != codes.Unauthenticated {
				t.Errorf("%s: %v", name, got)
			}
		}
	}
	if _, err := authsvcv1.NewSessionServiceClient(s.conn).ListSessions(with(t, bearer), &authsvcv1.ListSessionsRequest{}); err != nil {
		t.Errorf("one authorization: %v", err)
	}
}

// broken is a use case with a fault that nobody foresaw.
type broken struct{ with any }

func (b broken) Login(context.Context, service.LoginRequest) (service.Issued, error) {
	if err, ok := b.with.(error); ok {
		return service.Issued{}, err
	}
	panic(b.with)
}

func TestR59G16APanicIsCountedAndTellsNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		with   any
		panics int64
	}{
		{"a panic with text", "canary: SELECT * FROM accounts", 1},
		{"a panic with a number", 7, 1},
		{"an error of a driver", errors.New("sql: canary at 10.0.0.1"), 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(o *rpc.Options) { o.SignIn = broken{tt.with} })
			_, err := authsvcv1.NewAuthServiceClient(s.conn).Login(t.Context(), &authsvcv1.LoginRequest{Username: "ada", Password: oldPassword, ClientId: "app"})
			st := status.Convert(err)
			if st.Code() != codes.Internal || st.Message() != "internal error" || s.panics.Load() != tt.panics {
				t.Errorf("got %v with %d panics counted", st, s.panics.Load())
			}
			var id, reason string
			for _, d := range st.Details() {
				switch d := d.(type) {
				case *errdetails.RequestInfo:
					id = d.GetRequestId()
				case *errdetails.ErrorInfo:
					reason = d.GetReason()
				default:
					t.Errorf("the caller is told %T", d)
				}
			}
			if id == "" || reason != "INTERNAL" || !strings.Contains(s.log.String(), id) {
				t.Errorf("the reason is %q, and the log lacks the request id %q", reason, id)
			}
			if text := fmt.Sprint(st.Proto()); strings.Contains(text, "canary") || strings.Contains(text, ".go:") || strings.Contains(s.log.String(), oldPassword) {
				t.Errorf("internals leak: %s", text)
			}
			if _, err := authsvcv1.NewTrustServiceClient(s.conn).GetKeySet(t.Context(), &authsvcv1.GetKeySetRequest{}); err != nil {
				t.Errorf("the next call: %v", err)
			}
		})
	}
}

func TestAMessageBeyondItsLimitIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	auth := authsvcv1.NewAuthServiceClient(s.conn)
	batch := func(tokens, size int) *authsvcv1.BatchIntrospectRequest {
		r := &authsvcv1.BatchIntrospectRequest{}
		for range tokens {
			r.Tokens = append(r.Tokens, strings.Repeat("a", size))
		}
		return r
	}
	revoke := func(size int) *authsvcv1.RevokeRequest {
		r := &authsvcv1.RevokeRequest{Token: strings.Repeat("a", size)}
		for proto.Size(r) > size {
			r.Token = r.GetToken()[1:]
		}
		return r
	}
	basic := with(t, basicOf("rs", s.secret))
	for _, tt := range []struct {
		name string
		call func() error
		want codes.Code
	}{
		{"64 KiB", func() error { _, err := auth.Revoke(t.Context(), revoke(rpc.MaxMessage)); return err }, codes.OK},
		{"a byte more", func() error { _, err := auth.Revoke(t.Context(), revoke(rpc.MaxMessage+1)); return err }, codes.ResourceExhausted},
		{"2 MiB", func() error { _, err := auth.Revoke(t.Context(), revoke(2<<20)); return err }, codes.ResourceExhausted},
		{"a batch of 1.5 MiB", func() error { _, err := auth.BatchIntrospect(basic, batch(1000, 1500)); return err }, codes.OK},
		{"a batch of 1.5 MiB by nobody", func() error { _, err := auth.BatchIntrospect(t.Context(), batch(1000, 1500)); return err }, codes.Unauthenticated},
		{"a batch beyond 2 MiB", func() error { _, err := auth.BatchIntrospect(basic, batch(1000, 2200)); return err }, codes.ResourceExhausted},
		{"a batch of too many", func() error { _, err := auth.BatchIntrospect(basic, batch(1001, 1)); return err }, codes.InvalidArgument},
		{"what nobody may send is refused as nobody's, not as too large", func() error {
			_, err := auth.Introspect(t.Context(), &authsvcv1.IntrospectRequest{Token: strings.Repeat("a", 100<<10)})
			return err
		}, codes.Unauthenticated},
	} {
		if got := status.Code(tt.call()); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestA07NoSecretIsInALogOrAnError(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	in := s.login(t)
	canaries := []string{oldPassword, newPassword, "canary", s.secret, in.GetAccessToken(), in.GetRefreshToken(), s.service(t, "authsvc.introspect")}
	answers := 0
	sweep := func() {
		for _, authorization := range []string{"", basicOf("rs", s.secret), basicOf("rs", "canary-secret"), "Bearer " + in.GetAccessToken(),
			"Bearer " + canaries[6], "Bearer canary.canary.canary", "Canary canary"} {
			ctx := with(t)
			if authorization != "" {
				ctx = with(t, authorization)
			}
			for _, err := range everyCall(ctx, s, in) {
				if err == nil {
					continue
				}
				answers++
				text := fmt.Sprint(status.Convert(err).Proto())
				for i, c := range canaries {
					if strings.Contains(text, c) {
						t.Errorf("an error holds canary %d", i)
					}
				}
			}
		}
	}
	sweep()
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	sweep() // every path again, into a store that does not answer
	log := s.log.String()
	if answers == 0 || !strings.Contains(log, "call failed") {
		t.Fatal("nothing failed, so nothing was looked at")
	}
	for i, c := range canaries {
		if strings.Contains(log, c) {
			t.Errorf("the log holds canary %d", i)
		}
	}
}

// everyCall puts secrets through every method that takes one, well formed and not.
func everyCall(ctx context.Context, s *served, in *authsvcv1.LoginResponse) []error {
	auth, sess := authsvcv1.NewAuthServiceClient(s.conn), authsvcv1.NewSessionServiceClient(s.conn)
	acct := authsvcv1.NewAccountServiceClient(s.conn)
	var errs []error
	note := func(_ any, err error) { errs = append(errs, err) }
	for _, password := range []string{oldPassword, newPassword, "canary\x01", strings.Repeat("canary", 1000)} {
		for _, id := range []string{"app", "rs", "canary"} {
			note(auth.Login(ctx, &authsvcv1.LoginRequest{Username: "ada", Password: password, ClientId: id}))
		}
		note(acct.ChangePassword(ctx, &authsvcv1.ChangePasswordRequest{OldPassword: password, NewPassword: newPassword}))
	}
	for _, tok := range []string{in.GetAccessToken(), in.GetRefreshToken(), in.GetRefreshToken() + "canary", "canary"} {
		note(auth.Refresh(ctx, &authsvcv1.RefreshRequest{RefreshToken: tok, ClientId: "app", Scope: "canary"}))
		note(auth.Refresh(ctx, &authsvcv1.RefreshRequest{RefreshToken: tok, ClientId: "app"}))
		note(auth.Introspect(ctx, &authsvcv1.IntrospectRequest{Token: tok, MinPosition: "canary"}))
		note(auth.Introspect(ctx, &authsvcv1.IntrospectRequest{Token: tok}))
		note(auth.BatchIntrospect(ctx, &authsvcv1.BatchIntrospectRequest{Tokens: []string{tok, tok}}))
		note(sess.ListSessions(ctx, &authsvcv1.ListSessionsRequest{PageToken: tok}))
		note(sess.RevokeSession(ctx, &authsvcv1.RevokeSessionRequest{SessionId: tok}))
		note(auth.Revoke(ctx, &authsvcv1.RevokeRequest{Token: tok + "x"}))
	}
	note(sess.RevokeAllSessions(ctx, &authsvcv1.RevokeAllSessionsRequest{}))
	note(auth.Revoke(ctx, &authsvcv1.RevokeRequest{Token: in.GetRefreshToken()}))
	return errs
}

func TestATokenThatAStrangerMadeUpRingsNoAlarm(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	auth := authsvcv1.NewAuthServiceClient(s.conn)
	madeUp := "rt1." + base64.RawURLEncoding.EncodeToString(append([]byte{200}, make([]byte, 52)...)) // of a key that nobody has
	if _, err := auth.Refresh(t.Context(), &authsvcv1.RefreshRequest{RefreshToken: madeUp, ClientId: "app"}); status.Code(err) != codes.Unavailable {
		t.Fatal(err)
	}
	if got := s.log.String(); !strings.Contains(got, "level=WARN") || !strings.Contains(got, "REFRESH_KEY_UNKNOWN") || strings.Contains(got, "level=ERROR") {
		t.Errorf("the log says %s", got)
	}
	// The twin: a failure of our own is an error.
	if err := s.db.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := auth.Login(t.Context(), &authsvcv1.LoginRequest{Username: "ada", Password: oldPassword, ClientId: "app"}); err == nil {
		t.Fatal("a login without a store")
	}
	if got := s.log.String(); !strings.Contains(got, "level=ERROR") {
		t.Errorf("the log says %s", got)
	}
}
