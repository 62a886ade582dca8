package live

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"strconv"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"golang.org/x/sys/unix"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// guardedEnv makes this test binary a guarded service instead: a process that can be stopped, and that shares nothing with the test.
const guardedEnv = "LIVE_GUARDED_SERVICE"

// told is what a guarded service reads from its standard input, and announced what it then writes to its output.
type (
	told      struct{ Target, Issuer, ClientID, ClientSecret, Audience string }
	announced struct{ GRPC, Ops string }
)

// The methods of a guarded service. The three calls differ in their rule's limit alone.
const (
	anyCall   = "/live.Shop/Any"
	sensitive = "/live.Shop/Sensitive"
	honourExp = "/live.Shop/HonourExp"
	openCall  = "/live.Shop/Open" // a stream that says something once, and then nothing
)

func shopRules() map[string]guard.Rule {
	return map[string]guard.Rule{
		anyCall: {Authenticated: true}, sensitive: {Authenticated: true, Sensitive: true},
		honourExp: {Authenticated: true, HonourExp: true}, openCall: {Authenticated: true},
	}
}

// shop has the methods without a line of generated code.
func shop() *grpc.ServiceDesc {
	desc := &grpc.ServiceDesc{ServiceName: "live.Shop", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
		StreamName: path.Base(openCall), ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
			if err := stream.SendMsg(&emptypb.Empty{}); err != nil {
				return err
			}
			<-stream.Context().Done()
			return stream.Context().Err()
		}}}}
	for _, name := range []string{anyCall, sensitive, honourExp} {
		desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: path.Base(name),
			Handler: func(_ any, ctx context.Context, read func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
				in := new(emptypb.Empty)
				if err := read(in); err != nil {
					return nil, err
				}
				return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: name}, func(context.Context, any) (any, error) { return in, nil })
			}})
	}
	return desc
}

// now is a clock that all processes of this machine share and nobody sets, in nanoseconds.
func now() int64 {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &at); err != nil {
		panic(err)
	}
	return at.Nano()
}

// dated says in the trailer of each call when it began and ended, and the date of the knowledge before and after: what the verdict
// was by is not older than the one and not younger than the other.
func dated(feed *guard.Feed) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
		began := now()
		least := began - int64(feed.Status().Age)
		out, err := handle(ctx, in)
		age := int64(feed.Status().Age)
		ended := now()
		trailer := metadata.MD{}
		for name, at := range map[string]int64{"began": began, "ended": ended, "least": least, "most": ended - age} {
			trailer.Set(name, strconv.FormatInt(at, 10))
		}
		return out, errors.Join(grpc.SetTrailer(ctx, trailer), err)
	}
}

// serveGuarded is the whole of the other process. It ends with its input, so that it outlives no test.
func serveGuarded(in io.Reader, out io.Writer) error {
	var o told
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return err
	}
	registry := prometheus.NewRegistry()
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry))
	if err != nil {
		return err
	}
	meter := sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter))
	feed, err := guard.NewFeed(guard.FeedOptions{Target: o.Target, Issuer: o.Issuer, ClientID: o.ClientID, ClientSecret: o.ClientSecret,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)), Meter: meter})
	if err != nil {
		return err
	}
	v, err := verify.New(verify.Options{Issuer: o.Issuer, Audiences: []string{o.Audience}, Keys: feed, Revocations: feed, Now: feed.Now})
	if err != nil {
		return err
	}
	g, err := guard.New(guard.Options{Verifier: v, Feed: feed, Rules: shopRules(), Meter: meter})
	if err != nil {
		return err
	}
	server := grpc.NewServer(append([]grpc.ServerOption{grpc.ChainUnaryInterceptor(dated(feed))}, g.ServerOptions()...)...)
	server.RegisterService(shop(), nil)
	ops := http.NewServeMux()
	ops.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	ops.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(feed.Status()) })
	calls, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	looks, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ended := make(chan error, 4)
	go func() { ended <- feed.Run(context.Background()) }()
	go func() { ended <- server.Serve(calls) }()
	go func() { ended <- http.Serve(looks, ops) }()
	if err := json.NewEncoder(out).Encode(announced{calls.Addr().String(), "http://" + looks.Addr().String()}); err != nil {
		return err
	}
	go func() { _, err := io.Copy(io.Discard, in); ended <- err }()
	return <-ended
}

// service is a guarded service in a process of its own.
type service struct {
	*server // its process, doors and metrics
	conn    *grpc.ClientConn
	said    *speech
}

// startService runs a guarded service whose feed comes from the address.
func startService(t *testing.T, s *server, target string) *service {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	v := &service{server: &server{cmd: exec.Command(self), exited: make(chan error, 1)}, said: &speech{}}
	v.cmd.Env, v.cmd.Stderr = append(os.Environ(), guardedEnv+"=1"), v.said
	in, err := v.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.kill(t)
		if t.Failed() {
			t.Logf("the service said\n%s", v.said)
		}
	})
	if err := json.NewEncoder(in).Encode(told{target, s.Issuer, s.ServiceClientID, s.ServiceClientSecret, s.Audience}); err != nil {
		t.Error(err)
	}
	var doors announced
	err = json.NewDecoder(bufio.NewReader(out)).Decode(&doors)
	go func() { v.exited <- v.cmd.Wait() }()
	if err != nil {
		t.Fatalf("the service did not start: %v\n%s", err, v.said)
	}
	v.GRPC, v.Ops = doors.GRPC, doors.Ops
	v.conn = wire(t, v.GRPC)
	return v
}

// status is how its feed stands.
func (v *service) status(t *testing.T) (s guard.FeedStatus) {
	t.Helper()
	a := call(t, "GET", v.Ops+"/status", "", nil)
	if err := json.Unmarshal([]byte(a.raw), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// said is what a guarded call was answered: accepted, or the reason of the refusal.
func said(err error) string {
	if err == nil {
		return accepted
	}
	for _, d := range status.Convert(err).Details() {
		if d, ok := d.(*errdetails.ErrorInfo); ok {
			return d.GetReason()
		}
	}
	return fmt.Sprintf("%s: %s", status.Code(err), status.Convert(err).Message())
}

const accepted = "accepted"

// bearing is a context of a call with a token.
func bearing(ctx context.Context, token string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
}

// openStream is a stream that a service has let in.
type openStream struct{ ended chan error }

// open opens a stream and waits until its handler runs.
func (v *service) open(t *testing.T, token string) *openStream {
	t.Helper()
	stream, err := v.conn.NewStream(bearing(t.Context(), token), &grpc.StreamDesc{ServerStreams: true}, openCall)
	if err == nil {
		err = errors.Join(stream.SendMsg(&emptypb.Empty{}), stream.CloseSend())
	}
	if err == nil {
		err = stream.RecvMsg(&emptypb.Empty{})
	}
	if err != nil {
		t.Fatalf("a stream with a good token: %v", err)
	}
	o := &openStream{make(chan error, 1)}
	go func() { o.ended <- stream.RecvMsg(&emptypb.Empty{}) }()
	return o
}

// over says how the stream has ended, or "" while it is open.
func (o *openStream) over() string {
	select {
	case err := <-o.ended:
		o.ended <- err
		if code := status.Code(err); code != codes.Unauthenticated {
			return fmt.Sprintf("%s: %s", code, said(err))
		}
		return said(err)
	default:
		return ""
	}
}
