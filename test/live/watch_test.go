package live

import (
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// TestTheFeedEndsFirstWhenTheServerDrains: a stream that nobody ended would hold the drain up for as long as it may take, and
// would then be torn.
func TestTheFeedEndsFirstWhenTheServerDrains(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	stream, err := authsvcv1.NewTrustServiceClient(wire(t, s.GRPC)).WatchTrust(
		metadata.AppendToOutgoingContext(t.Context(), "authorization", s.basic()), &authsvcv1.WatchTrustRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for beaten := false; !beaten; {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		beaten = m.GetHeartbeat() != nil
	}
	in := s.login(t)
	call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")})
	for told := false; !told; {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		told = len(m.GetDelta().GetRevocations()) == 1
	}
	if watchers, deltas, cut := s.metric(t, "authsvc_feed_watchers"), s.metric(t, "authsvc_feed_deltas_total"), s.metric(t, "authsvc_feed_cut_total"); watchers != 1 || deltas < 1 || cut != 0 {
		t.Errorf("the metrics show %v watchers, %v deltas, %v cut off", watchers, deltas, cut)
	}
	ended := make(chan error, 1)
	go func() {
		for {
			if _, err := stream.Recv(); err != nil {
				ended <- err
				return
			}
		}
	}()
	s.stop(t)
	err = <-ended
	reason := ""
	for _, d := range status.Convert(err).Details() {
		if d, ok := d.(*errdetails.ErrorInfo); ok {
			reason = d.GetReason()
		}
	}
	if status.Code(err) != codes.Unavailable || reason != "DRAINING" {
		t.Errorf("the stream ended with %v, reason %q", err, reason)
	}
}
