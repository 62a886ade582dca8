package guard_test

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/authsvc/authsvc/guard"
)

// shop has one method of each kind, each with a rule.
func shop(t testing.TB) protoreflect.FileDescriptor {
	t.Helper()
	return fileOf(t, protoOf(t,
		rpc{name: "List", rule: authenticated("orders.read")},
		rpc{name: "Watch", rule: authenticated("orders.read"), server: true},
		rpc{name: "Upload", rule: authenticated("orders.read"), client: true},
		rpc{name: "Sync", rule: authenticated("orders.read"), client: true, server: true}))
}

// shopServer serves the file's services as generated code would, and counts what reaches a handler.
type shopServer struct {
	*grpc.Server
	conn    *grpc.ClientConn
	reached atomic.Int32
}

// serveShop begins a server; options come before those of the guard.
func serveShop(t *testing.T, g *guard.Guard, file protoreflect.FileDescriptor, options ...grpc.ServerOption) *shopServer {
	t.Helper()
	s := &shopServer{}
	options = append(options, grpc.UnknownServiceHandler(s.stream))
	s.Server = grpc.NewServer(append(options, g.ServerOptions()...)...)
	for i := range file.Services().Len() {
		d := file.Services().Get(i)
		desc := &grpc.ServiceDesc{ServiceName: string(d.FullName()), HandlerType: (*any)(nil)}
		for k := range d.Methods().Len() {
			if m := d.Methods().Get(k); m.IsStreamingClient() || m.IsStreamingServer() {
				desc.Streams = append(desc.Streams, grpc.StreamDesc{
					StreamName: string(m.Name()), Handler: s.stream, ClientStreams: m.IsStreamingClient(), ServerStreams: m.IsStreamingServer(),
				})
			} else {
				desc.Methods = append(desc.Methods, grpc.MethodDesc{MethodName: string(m.Name()), Handler: s.unary(desc.ServiceName, string(m.Name()))})
			}
		}
		s.RegisterService(desc, s)
	}
	grpc_health_v1.RegisterHealthServer(s, &health{})
	listener := bufconn.Listen(1 << 16)
	go func() { _ = s.Serve(listener) }()
	t.Cleanup(s.Stop)
	var err error
	s.conn, err = grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.conn.Close() })
	return s
}

func (s *shopServer) unary(service, method string) grpc.MethodHandler {
	return func(srv any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
		in := new(emptypb.Empty)
		if err := decode(in); err != nil {
			return nil, err
		}
		return interceptor(ctx, in, &grpc.UnaryServerInfo{Server: srv, FullMethod: "/" + service + "/" + method}, func(context.Context, any) (any, error) {
			s.reached.Add(1)
			return new(emptypb.Empty), nil
		})
	}
}

func (s *shopServer) stream(_ any, stream grpc.ServerStream) error {
	s.reached.Add(1)
	if err := stream.RecvMsg(new(emptypb.Empty)); err != nil {
		return err
	}
	return stream.SendMsg(new(emptypb.Empty))
}

// call sends one message and waits for one, whatever the kind of the method.
func (s *shopServer) call(ctx context.Context, path string) codes.Code {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path)
	if err == nil {
		if err = stream.SendMsg(new(emptypb.Empty)); err == nil {
			_ = stream.CloseSend() // what went wrong, RecvMsg says
		}
		err = stream.RecvMsg(new(emptypb.Empty))
	}
	return status.Code(err)
}

// methodsOf are the full names of all that a server serves.
func methodsOf(s *shopServer) []string {
	var names []string
	for service, info := range s.GetServiceInfo() {
		for _, m := range info.Methods {
			names = append(names, "/"+service+"/"+m.Name)
		}
	}
	slices.Sort(names)
	return names
}

func withToken(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token(nil))
}

func TestG10G17NoMethodIsReachedPastItsRule(t *testing.T) {
	t.Parallel()
	rules, err := guard.RulesOf(shop(t))
	if err != nil {
		t.Fatal(err)
	}
	bare := serveShop(t, newGuard(t, guard.Options{}), shop(t))
	ruled := serveShop(t, newGuard(t, guard.Options{Rules: rules}), shop(t))
	good, kinds := withToken(t.Context()), 0
	for _, name := range methodsOf(ruled) {
		if _, shops := rules[name]; !shops {
			continue
		}
		kinds++
		for _, tt := range []struct {
			name string
			on   *shopServer
			ctx  context.Context
			path string
			want codes.Code
		}{
			{"R56 G17 a method without a rule", bare, good, name, codes.PermissionDenied},
			{"G17 nobody", ruled, t.Context(), name, codes.Unauthenticated},
			{"G10 without a slash", ruled, good, strings.TrimPrefix(name, "/"), codes.Unimplemented},
			{"G10 two slashes", ruled, good, "/" + name, codes.PermissionDenied},
			{"G10 two slashes within", ruled, good, strings.Replace(name, "Orders/", "Orders//", 1), codes.PermissionDenied},
			{"G10 an escaped slash", ruled, good, strings.Replace(name, "Orders/", "Orders%2f", 1), codes.Unimplemented},
			{"G10 another case", ruled, good, strings.ToLower(name), codes.PermissionDenied},
			{"G10 a slash behind", ruled, good, name + "/", codes.PermissionDenied},
			{"G10 a dot segment", ruled, good, "/x/.." + name, codes.PermissionDenied},
			{"G17 a service that nobody registered", ruled, good, "/shop.v1.Others/List", codes.PermissionDenied},
		} {
			if got := tt.on.call(tt.ctx, tt.path); got != tt.want {
				t.Errorf("%s: %s gets %v, want %v", tt.name, tt.path, got, tt.want)
			}
		}
		if n := ruled.reached.Load() + bare.reached.Load(); n != 0 {
			t.Errorf("%s: a handler was reached %d times", name, n)
		}
		if got := ruled.call(good, name); got != codes.OK || ruled.reached.Swap(0) != 1 {
			t.Errorf("the twin, the exact path with a token: %s gets %v", name, got)
		}
	}
	if kinds != 4 {
		t.Errorf("looked at %d methods", kinds)
	}
}

func TestG14HealthIsExemptByItsExactName(t *testing.T) {
	t.Parallel()
	s := serveShop(t, newGuard(t, guard.Options{Rules: map[string]guard.Rule{grpc_health_v1.Health_Check_FullMethodName: {Public: true}}}), shop(t))
	for _, tt := range []struct {
		name string
		ctx  context.Context
		path string
		want codes.Code
	}{
		{"the twin: the exact name", t.Context(), "/grpc.health.v1.Health/Check", codes.OK},
		{"G14 the stream beside it", t.Context(), "/grpc.health.v1.Health/Watch", codes.PermissionDenied},
		{"G14 the list beside it", t.Context(), "/grpc.health.v1.Health/List", codes.PermissionDenied},
		{"G14 in another case", t.Context(), "/grpc.health.v1.Health/check", codes.PermissionDenied},
		{"G14 of another version", t.Context(), "/grpc.health.v1beta.Health/Check", codes.PermissionDenied},
		{"G14 a method of the same name", t.Context(), "/shop.v1.Orders/Check", codes.PermissionDenied},
		{"G14 a path that begins alike", t.Context(), "/grpc.health.v1.Health/Check/shop.v1.Orders/List", codes.PermissionDenied},
		{"G14 a path that ends alike", t.Context(), "/shop.v1.Orders/grpc.health.v1.Health/Check", codes.PermissionDenied},
		{"G14 a probe, as it says", metadata.AppendToOutgoingContext(t.Context(), "user-agent", "kube-probe/1.30"), "/shop.v1.Orders/List", codes.PermissionDenied},
		{"G14 another path in a header", metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-uri", "/grpc.health.v1.Health/Check"), "/shop.v1.Orders/List", codes.PermissionDenied},
	} {
		if got := s.call(tt.ctx, tt.path); got != tt.want {
			t.Errorf("%s: %s gets %v, want %v", tt.name, tt.path, got, tt.want)
		}
	}
	if n := s.reached.Load(); n != 0 {
		t.Errorf("the shop was reached %d times", n)
	}
}

func TestUnruledNamesWhatTheTableForgets(t *testing.T) {
	t.Parallel()
	rules, err := guard.RulesOf(shop(t))
	if err != nil {
		t.Fatal(err)
	}
	delete(rules, "/shop.v1.Orders/Sync")
	s := serveShop(t, newGuard(t, guard.Options{}), shop(t))
	open := newGuard(t, guard.Options{Rules: rules, Default: guard.Rule{Public: true}})
	if diff := cmp.Diff([]string{
		"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch", "/shop.v1.Orders/Sync",
	}, open.Unruled(s)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, name := range methodsOf(s) {
		rules[name] = guard.Rule{}
	}
	if got := newGuard(t, guard.Options{Rules: rules}).Unruled(s); len(got) != 0 {
		t.Errorf("all have a rule, and got %v", got)
	}
}

func TestTheGuardStandsBesideOtherInterceptors(t *testing.T) {
	t.Parallel()
	rules, err := guard.RulesOf(shop(t))
	if err != nil {
		t.Fatal(err)
	}
	var seen atomic.Int32
	s := serveShop(t, newGuard(t, guard.Options{Rules: rules}), shop(t),
		grpc.UnaryInterceptor(func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
			seen.Add(1)
			return next(ctx, in)
		}),
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
			seen.Add(1)
			return next(srv, stream)
		}))
	for i, name := range []string{"/shop.v1.Orders/List", "/shop.v1.Orders/Sync"} {
		if got := s.call(t.Context(), name); got != codes.Unauthenticated || seen.Load() != int32(2*i+1) {
			t.Errorf("G17 %s without a token gets %v", name, got)
		}
		if got := s.call(withToken(t.Context()), name); got != codes.OK || s.reached.Load() != int32(i+1) {
			t.Errorf("%s with a token gets %v", name, got)
		}
	}
}
