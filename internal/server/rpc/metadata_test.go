package rpc_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// dial serves the door once more, on a real socket of the loopback network, and connects to it.
func (s *served) dial(t *testing.T, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	server := rpc.NewServer(nil)
	s.door.Register(server)
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn := must(grpc.NewClient(l.Addr().String(), append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))...))(t)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// behind gives a door that trusts the loopback network as a proxy, with whatever more.
func behind(t *testing.T, networks ...string) *served {
	t.Helper()
	return serve(t, func(o *rpc.Options) {
		for _, n := range networks {
			o.TrustedProxies = append(o.TrustedProxies, netip.MustParsePrefix(n))
		}
	})
}

// forwarding gives a context that sends x-forwarded-for values.
func forwarding(t *testing.T, values ...string) context.Context {
	t.Helper()
	ctx := t.Context()
	for _, v := range values {
		ctx = metadata.AppendToOutgoingContext(ctx, "x-forwarded-for", v)
	}
	return ctx
}

func TestClientAddressOverGRPC(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name      string
		trusted   []string
		forwarded []string
		want      string
	}{
		{"the peer, without a proxy", nil, nil, "127.0.0.1"},
		{"R57 L11 G02 a forged value where nobody is trusted", nil, []string{"198.51.100.1"}, "127.0.0.1"},
		{"R57 L11 G02 a forged value from a peer that is not the trusted proxy", []string{"10.0.0.0/8"}, []string{"198.51.100.1"}, "127.0.0.1"},
		{"R57 L11 a forged chain that names the trusted proxy", []string{"10.0.0.0/8"}, []string{"198.51.100.1, 10.0.0.1"}, "127.0.0.1"},
		{"R57 the twin: the same value from a trusted proxy", []string{"127.0.0.0/8"}, []string{"198.51.100.1"}, "198.51.100.1"},
		{"R57 the right-most untrusted hop", []string{"127.0.0.0/8", "10.0.0.0/8"}, []string{"203.0.113.9, 198.51.100.1, 10.0.0.2"}, "198.51.100.1"},
		{"R57 over many values", []string{"127.0.0.0/8", "10.0.0.0/8"}, []string{"203.0.113.9", "198.51.100.1", "10.0.0.2"}, "198.51.100.1"},
		{"IPv6", []string{"127.0.0.0/8", "fd00::/8"}, []string{"2001:db8::1, fd00::2"}, "2001:db8::1"},
		{"L11 garbage", []string{"127.0.0.0/8"}, []string{"a"}, "127.0.0.1"},
		{"L11 garbage on the right", []string{"127.0.0.0/8"}, []string{"198.51.100.1", "a"}, "127.0.0.1"},
		{"L11 an empty hop", []string{"127.0.0.0/8"}, []string{"198.51.100.1,"}, "127.0.0.1"},
		{"nothing but proxies", []string{"127.0.0.0/8", "10.0.0.0/8"}, []string{"10.0.0.2"}, "127.0.0.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := behind(t, tt.trusted...)
			in := must(authsvcv1.NewAuthServiceClient(s.dial(t)).Login(forwarding(t, tt.forwarded...),
				&authsvcv1.LoginRequest{Username: "ada", Password: oldPassword, ClientId: "app"}))(t)
			row, _, _, err := s.db.Sessions().Get(t.Context(), ids.Session(in.GetSessionId()))
			if err != nil || row.IP != tt.want {
				t.Errorf("the session is from %s, error %v; want %s", row.IP, err, tt.want)
			}
		})
	}
}

func TestL11R50CallersBehindOneBalancerAreThrottledApart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		trusted []string
		want    codes.Code // for a caller from elsewhere, once one network has used up its failures
	}{
		{"a trusted one tells them apart", []string{"127.0.0.0/8"}, codes.Unauthenticated},
		{"L11 what an untrusted one says opens no fresh counter", nil, codes.ResourceExhausted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := behind(t, tt.trusted...)
			auth := authsvcv1.NewAuthServiceClient(s.dial(t))
			fail := func(from string) codes.Code {
				_, err := auth.Login(forwarding(t, from), &authsvcv1.LoginRequest{Username: string(ids.New[ids.Account]()), Password: "wrong", ClientId: "app"})
				return status.Code(err)
			}
			for i := range 100 {
				if got := fail("198.51.100.1"); got != codes.Unauthenticated {
					t.Fatalf("failure %d: %v", i+1, got)
				}
			}
			if got := fail("198.51.100.2"); got != codes.ResourceExhausted {
				t.Errorf("one more from the same network: %v", got)
			}
			if got := fail("203.0.113.1"); got != tt.want {
				t.Errorf("one from another network: %v, want %v", got, tt.want)
			}
		})
	}
}

func TestL10ADeviceTokenTravelsInTheMetadata(t *testing.T) {
	t.Parallel()
	s := behind(t, "127.0.0.0/8")
	auth := authsvcv1.NewAuthServiceClient(s.dial(t))
	n := 0
	login := func(password string, device ...string) (string, codes.Code) {
		n++
		ctx := forwarding(t, fmt.Sprintf("10.0.%d.1", n))
		for _, d := range device {
			ctx = metadata.AppendToOutgoingContext(ctx, "authsvc-device", d)
		}
		var header metadata.MD
		_, err := auth.Login(ctx, &authsvcv1.LoginRequest{Username: "ada", Password: password, ClientId: "app"}, grpc.Header(&header))
		if got := header.Get("authsvc-device"); (len(got) == 1) == (err == nil) {
			return strings.Join(got, ""), status.Code(err)
		}
		t.Fatalf("a login that ended with %v has the metadata %v", err, header)
		return "", 0
	}
	device, _ := login(oldPassword)
	for range 20 {
		login("wrong")
	}
	for _, tt := range []struct {
		name    string
		devices []string
		want    codes.Code
	}{
		{"none", nil, codes.ResourceExhausted},
		{"two", []string{device, device}, codes.ResourceExhausted},
		{"garbage", []string{"dt1."}, codes.ResourceExhausted},
		{"megabytes", []string{strings.Repeat("x", 8<<10)}, codes.ResourceExhausted},
		{"twin: the one that it was given", []string{device}, codes.OK},
	} {
		if _, got := login(oldPassword, tt.devices...); got != tt.want {
			t.Errorf("with %s the victim gets %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestG03WhatACallerSaysOfItselfIsNotBelieved(t *testing.T) {
	t.Parallel()
	s := behind(t, "127.0.0.0/8") // not even from a trusted proxy, which speaks of addresses alone
	in := s.login(t)
	conn := s.dial(t)
	forged := metadata.NewOutgoingContext(t.Context(), metadata.Pairs("x-request-id", "chosen", "x-user-id", "root", "x-authsvc-subject", "root",
		"x-client-id", "rs", "grpc-metadata-authorization", "Bearer "+in.GetAccessToken()))
	_, err := authsvcv1.NewSessionServiceClient(conn).ListSessions(forged, &authsvcv1.ListSessionsRequest{})
	st := status.Convert(err)
	if st.Code() != codes.Unauthenticated {
		t.Errorf("a forged identity: %v", err)
	}
	for _, d := range st.Details() {
		if d, ok := d.(*errdetails.RequestInfo); ok && (d.GetRequestId() == "chosen" || d.GetRequestId() == "") {
			t.Errorf("the request id is %q", d.GetRequestId())
		}
	}
	// The twin: the same token where it belongs.
	if _, err := authsvcv1.NewSessionServiceClient(conn).ListSessions(with(t, "Bearer "+in.GetAccessToken()), &authsvcv1.ListSessionsRequest{}); err != nil {
		t.Error(err)
	}
}

func TestG13ACompressedBombIsRefused(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	auth := authsvcv1.NewAuthServiceClient(s.conn)
	bomb := func(size int) codes.Code {
		_, err := auth.BatchIntrospect(with(t, basicOf("rs", s.secret)), &authsvcv1.BatchIntrospectRequest{Tokens: []string{strings.Repeat("a", size)}},
			grpc.UseCompressor(gzip.Name))
		return status.Code(err)
	}
	// Whoever exports telemetry over gRPC knows gzip, and so the real server does.
	if got := bomb(rpc.MaxBatchMessage - 100); got != codes.OK {
		t.Errorf("a compressed message within the limit: %v", got)
	}
	for _, size := range []int{rpc.MaxBatchMessage + 1, 4 * rpc.MaxBatchMessage} {
		if got := bomb(size); got != codes.ResourceExhausted {
			t.Errorf("a message that grows to %d bytes: %v", size, got)
		}
	}
}

func TestG15UnknownMethodsAndUserAgentsMakeNoMetrics(t *testing.T) {
	t.Parallel()
	reader := sdkmetric.NewManualReader()
	conn := serve(t, func(o *rpc.Options) { o.Meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)) }).conn
	words := func() string {
		var all metricdata.ResourceMetrics
		if err := reader.Collect(t.Context(), &all); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(all.ScopeMetrics)
	}
	for i := range 200 {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-for", fmt.Sprintf("canary-%d", i), "user-agent", fmt.Sprintf("canary/%d", i))
		for _, method := range []string{"/canary%d.Service/Call", "/authsvc.v1.AuthService/canary%d"} {
			err := conn.Invoke(ctx, fmt.Sprintf(method, i), &authsvcv1.GetKeySetRequest{}, &authsvcv1.GetKeySetResponse{})
			if status.Code(err) != codes.Unimplemented {
				t.Fatalf("G10 an unknown method: %v", err)
			}
		}
		if _, err := authsvcv1.NewTrustServiceClient(conn).GetKeySet(ctx, &authsvcv1.GetKeySetRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	got := words()
	if strings.Contains(got, "canary") {
		t.Error("what a caller chose is a label of a metric")
	}
	if !strings.Contains(got, "GetKeySet") {
		t.Error("a known method is not measured, so nothing was looked at")
	}
}

func TestListSessionsSaysWhichParameterIsWrong(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	sessions, user := authsvcv1.NewSessionServiceClient(s.conn), with(t, "Bearer "+s.login(t).GetAccessToken())
	s.login(t)
	page := must(sessions.ListSessions(user, &authsvcv1.ListSessionsRequest{PageSize: 1}))(t)
	if len(page.GetSessions()) != 1 || page.GetNextPageToken() == "" {
		t.Fatalf("the first page is %v", page)
	}
	for _, tt := range []struct {
		name  string
		ask   *authsvcv1.ListSessionsRequest
		field string // empty: a page
	}{
		{"a negative size", &authsvcv1.ListSessionsRequest{PageSize: -1}, "page_size"},
		{"a token that nobody gave", &authsvcv1.ListSessionsRequest{PageToken: "x"}, "page_token"},
		{"a size beyond the most", &authsvcv1.ListSessionsRequest{PageSize: 201}, ""},
		{"the next page", &authsvcv1.ListSessionsRequest{PageToken: page.GetNextPageToken()}, ""},
	} {
		_, err := sessions.ListSessions(user, tt.ask)
		if tt.field == "" {
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			continue
		}
		var fields []string
		for _, d := range status.Convert(err).Details() {
			if d, ok := d.(*errdetails.BadRequest); ok {
				for _, v := range d.GetFieldViolations() {
					fields = append(fields, v.GetField())
				}
			}
		}
		if status.Code(err) != codes.InvalidArgument || len(fields) != 1 || fields[0] != tt.field {
			t.Errorf("%s: %v of the fields %v, want %s", tt.name, err, fields, tt.field)
		}
	}
}

// raw sends bytes as they are, where a client's own codec would not.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) {
	data, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("%T is not bytes", v)
	}
	return data, nil
}

func (raw) Unmarshal(data []byte, v any) error {
	into, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("%T is not bytes", v)
	}
	*into = data
	return nil
}

func TestG16WhatIsNotARequestIsRefusedAsInput(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	good := string(must(proto.Marshal(&authsvcv1.LoginRequest{Username: "ada", Password: oldPassword, ClientId: "app"}))(t))
	for _, tt := range []struct {
		name string
		more string // behind a good login
		want codes.Code
	}{
		{"the twin: nothing more", "", codes.OK},
		{"the twin: a device's name", "\x32\x06canary", codes.OK},
		{"a name that is not UTF-8", "\x32\x07canary\xff", codes.InvalidArgument},
		{"a name cut short", "\x32\x20canary", codes.InvalidArgument},
		{"a group that does not end", "\x33canary", codes.InvalidArgument},
		{"bytes of no field", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xffcanary", codes.InvalidArgument},
	} {
		var out []byte
		err := s.conn.Invoke(t.Context(), authsvcv1.AuthService_Login_FullMethodName, []byte(good+tt.more), &out, grpc.ForceCodec(raw{}))
		st := status.Convert(err)
		if st.Code() != tt.want || strings.Contains(fmt.Sprint(st.Proto()), "canary") || strings.Contains(st.Message(), "proto:") {
			t.Errorf("%s: %v", tt.name, err)
		}
		if (len(out) > 0) != (tt.want == codes.OK) {
			t.Errorf("%s: %d bytes are answered", tt.name, len(out))
		}
	}
}

func TestG14OnlyOurServicesAreThere(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	for _, method := range []string{
		"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
		"/grpc.channelz.v1.Channelz/GetServers", "/grpc.admin.v1.Admin/Get",
	} {
		err := s.conn.Invoke(t.Context(), method, &authsvcv1.GetKeySetRequest{}, &authsvcv1.GetKeySetResponse{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
	if _, err := authsvcv1.NewTrustServiceClient(s.conn).GetKeySet(t.Context(), &authsvcv1.GetKeySetRequest{}); err != nil {
		t.Error(err)
	}
}
