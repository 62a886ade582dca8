package live

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// narrow stands between a verifier and the real server. It hands introspections through, and of the feed one stream, until its first
// heartbeat.
type narrow struct {
	authsvcv1.UnimplementedTrustServiceServer
	authsvcv1.UnimplementedAuthServiceServer

	to      *grpc.ClientConn
	streams atomic.Int32
	calls   atomic.Int32
}

// as carries the caller's own credentials on.
func as(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", metadata.ValueFromIncomingContext(ctx, "authorization")[0])
}

func (n *narrow) WatchTrust(r *authsvcv1.WatchTrustRequest, s grpc.ServerStreamingServer[authsvcv1.WatchTrustResponse]) error {
	if n.streams.Add(1) > 1 {
		return status.Error(codes.Unavailable, "one was all")
	}
	from, err := authsvcv1.NewTrustServiceClient(n.to).WatchTrust(as(s.Context()), r)
	for beaten := false; err == nil && !beaten; {
		var m *authsvcv1.WatchTrustResponse
		if m, err = from.Recv(); err == nil {
			err = s.Send(m)
			beaten = m.GetHeartbeat() != nil
		}
	}
	if err == nil {
		<-s.Context().Done()
	}
	return err
}

func (n *narrow) Introspect(ctx context.Context, r *authsvcv1.IntrospectRequest) (*authsvcv1.IntrospectResponse, error) {
	n.calls.Add(1)
	return authsvcv1.NewAuthServiceClient(n.to).Introspect(as(ctx), r)
}

// TestP02AGuardAsksWhereTheFeedHangs has a feed that says no more, and a server that answers still: a call under a sensitive rule goes on,
// and is refused once its session has ended, of which the feed knows nothing.
func TestP02AGuardAsksWhereTheFeedHangs(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	between, door := &narrow{to: wire(t, s.GRPC)}, grpc.NewServer()
	authsvcv1.RegisterTrustServiceServer(door, between)
	authsvcv1.RegisterAuthServiceServer(door, between)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = door.Serve(listener) }()
	t.Cleanup(door.Stop)
	feed, err := guard.NewFeed(guard.FeedOptions{
		Target: listener.Addr().String(), Issuer: s.Issuer, ClientID: s.ServiceClientID, ClientSecret: s.ServiceClientSecret,
	})
	if err != nil {
		t.Fatal(err)
	}
	w := follow(t, feed, s)
	w.ready(t)
	sensitive := guard.Rule{Authenticated: true, Sensitive: true}
	says := func(introspect bool, token string) string {
		t.Helper()
		said := ""
		g, err := guard.New(guard.Options{Verifier: w.Verifier, Feed: feed, Introspect: introspect,
			Observe: func(_ context.Context, _, reason string) { said = reason }})
		if err != nil {
			t.Fatal(err)
		}
		g.Judge(t.Context(), sensitive, []string{"Bearer " + token})
		return said
	}
	ended, spared := s.login(t), s.login(t)
	token := ended.text("access_token")
	await(t, "the knowledge is too old", func() bool { return says(false, token) == guard.ReasonReplicaStale })
	await(t, "authsvc vouches for the token", func() bool { return says(true, token) == guard.AcceptedIntrospected })
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": ended.text("refresh_token")}); a.code != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.code, a.raw)
	}
	await(t, "the ended session's token is refused", func() bool { return says(true, token) == guard.ReasonTokenInvalid })
	if err := w.says(t, token); errors.Is(err, verify.ErrRevoked) {
		t.Error("the feed has told of it")
	}
	await(t, "the twin: another session's token goes on", func() bool { return says(true, spared.text("access_token")) == guard.AcceptedIntrospected })
	s.kill(t)
	await(t, "nobody answers any more", func() bool { return says(true, spared.text("access_token")) == guard.ReasonReplicaStale })
	calls := between.calls.Load()
	for range 1000 {
		if got := says(true, spared.text("access_token")); got != guard.ReasonReplicaStale {
			t.Fatalf("while nobody answers: %q", got)
		}
	}
	if n := between.calls.Load() - calls; n > 100 {
		t.Errorf("a thousand refused calls asked %d times", n)
	}
}
