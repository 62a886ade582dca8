package rpc_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	adminv1 "github.com/authsvc/authsvc/gen/authsvc/admin/v1"
	policyv1 "github.com/authsvc/authsvc/gen/authsvc/policy/v1"
	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// operators is the admin listener of a door.
type operators struct {
	conn   *grpc.ClientConn
	server *grpc.Server
	adminv1.WatcherServiceClient
}

func (s *served) operators(t *testing.T) *operators {
	t.Helper()
	door := must(rpc.NewAdmin(rpc.AdminOptions{Feed: s.feed, Logger: slog.New(slog.NewTextHandler(s.log, nil)), Panics: func() { s.panics.Add(1) },
		Tracer: tracenoop.NewTracerProvider(), Meter: metricnoop.NewMeterProvider()}))(t)
	server := rpc.NewAdminServer()
	door.Register(server)
	l := bufconn.Listen(1 << 20)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn := must(grpc.NewClient("passthrough:///admin", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })))(t)
	t.Cleanup(func() { conn.Close() })
	return &operators{conn, server, adminv1.NewWatcherServiceClient(conn)}
}

// list gives all who watch.
func (o *operators) list(t *testing.T) []*adminv1.Watcher {
	t.Helper()
	return must(o.ListWatchers(t.Context(), &adminv1.ListWatchersRequest{}))(t).GetWatchers()
}

// await asks until those who watch are as they should be: a client may have read what the server has yet to note as sent.
func (o *operators) await(t *testing.T, what string, so func([]*adminv1.Watcher) bool) []*adminv1.Watcher {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // so that a test fails and does not hang
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		all := o.list(t)
		if so(all) {
			return all
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s: %v", what, all)
		case <-tick.C:
		}
	}
}

// set is a JWK Set, as far as the feed reads it.
func set(kids ...string) string {
	text := ""
	for i, kid := range kids {
		if i > 0 {
			text += ","
		}
		text += fmt.Sprintf(`{"kty":"RSA","kid":%q}`, kid)
	}
	return `{"keys":[` + text + `]}`
}

func TestAWatcherIsListedWithWhatItWasSent(t *testing.T) {
	t.Parallel()
	s, p := written(t, nil)
	p.change(func() { p.keySet = set("k1", "k2") })
	p.add(3)
	o := s.operators(t)
	if all := o.list(t); len(all) != 0 {
		t.Fatalf("before anybody came: %v", all)
	}
	before := time.Now()
	first, second := s.seat(t, ""), s.seat(t, "")
	first.until(t, first.begun)
	second.until(t, second.begun)
	at := func(row int64, kids ...string) func([]*adminv1.Watcher) bool {
		return func(all []*adminv1.Watcher) bool {
			return len(all) == 2 && !slices.ContainsFunc(all, func(w *adminv1.Watcher) bool {
				return w.Position == nil || w.GetPosition() != row || !slices.Equal(w.GetKids(), kids) || w.GetAge() == nil
			})
		}
	}
	for _, w := range o.await(t, "both have the snapshot", at(3, "k1", "k2")) {
		began := w.GetStartTime().AsTime()
		if w.GetClientId() != "rs" || w.GetAddress() != "" || began.Before(before) || began.After(time.Now()) || w.GetAge().AsDuration() > time.Minute {
			t.Errorf("got %v", w)
		}
	}
	p.add(2)
	o.await(t, "both have the delta", at(5, "k1", "k2"))
	p.change(func() { p.keySet = set("k2", "k3") })
	o.await(t, "both have the next keys", at(5, "k2", "k3"))
	if !s.feed.SharedKids() {
		t.Error("each watcher has a list of kids of its own")
	}
	p.change(func() { p.keySet = "no JSON" })
	o.await(t, "the keys cannot be named", at(5))
	first.stop()
	o.await(t, "one has left", func(all []*adminv1.Watcher) bool { return len(all) == 1 })
}

// TestNothingIsSaidOfAWatcherBeforeItsSnapshotIsWhole has one that takes only the first part.
func TestNothingIsSaidOfAWatcherBeforeItsSnapshotIsWhole(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, p := written(t, func(o *rpc.HubOptions) { o.Every, o.Beat = time.Second, time.Second })
		p.change(func() { p.keySet = set("k1") })
		p.add(manyEntries)
		server := rpc.NewServer(nil)
		s.door.Register(server)
		conn, _ := narrow(t, server)
		o := s.operators(t)
		watchOn(with(t, basicOf("rs", s.secret)), t, conn, "")
		time.Sleep(5 * time.Second) // of the bubble's clock
		all := o.list(t)
		if len(all) != 1 || all[0].Position != nil || all[0].GetAge() != nil || len(all[0].GetKids()) != 0 || all[0].GetClientId() != "rs" {
			t.Fatalf("one that does not read: %v", all)
		}
		twin := s.seat(t, "")
		twin.until(t, twin.begun)
		time.Sleep(5 * time.Second)
		if all = o.list(t); len(all) != 2 || all[1].GetPosition() != manyEntries || all[1].GetAge() == nil || len(all[1].GetKids()) != 1 {
			t.Errorf("the twin: one that reads: %v", all)
		}
	})
}

func TestP02TheAgeIsThatOfWhatTheLastHeartbeatSaid(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		fresh bool
		age   time.Duration
	}{
		{"the log is not read", false, 10 * time.Second},
		{"the twin: it is", true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, p := written(t, func(o *rpc.HubOptions) { o.Every, o.Beat = 100*time.Millisecond, time.Second })
				p.change(func() { p.fresh, p.view.Known = tt.fresh, time.Now() })
				o := s.operators(t)
				w := s.seat(t, "")
				w.until(t, w.begun)
				time.Sleep(10 * time.Second) // of the bubble's clock; the heartbeats wait unread
				all := o.list(t)
				if age := all[0].GetAge().AsDuration(); len(all) != 1 || age < tt.age || age > tt.age+time.Second {
					t.Errorf("%d watch, the age is %v", len(all), age)
				}
			})
		})
	}
}

func TestL11TheAddressOfAWatcherIsWhatATrustedProxySays(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		trusted []netip.Prefix
		want    string
	}{
		{"a trusted proxy is believed", []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, "203.0.113.7"},
		{"anybody else is not", nil, "127.0.0.1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, func(o *rpc.Options) { o.TrustedProxies = tt.trusted }).run(t)
			server := rpc.NewServer(nil)
			s.door.Register(server)
			l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
			go server.Serve(l)
			t.Cleanup(server.Stop)
			conn := must(grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
			t.Cleanup(func() { conn.Close() })
			w := watchOn(metadata.AppendToOutgoingContext(with(t, basicOf("rs", s.secret)), "x-forwarded-for", "203.0.113.7"), t, conn, "")
			w.until(t, w.begun)
			if all := s.operators(t).list(t); len(all) != 1 || all[0].GetAddress() != tt.want {
				t.Errorf("got %v", all)
			}
		})
	}
}

func TestWatchersComeInPagesTheOldestFirst(t *testing.T) {
	t.Parallel()
	s, _ := written(t, nil)
	o := s.operators(t)
	const n = 5
	for i := range n {
		s.seat(t, "")
		o.await(t, "it watches", func(all []*adminv1.Watcher) bool { return len(all) == i+1 })
	}
	var times []time.Time
	request := &adminv1.ListWatchersRequest{PageSize: 2}
	for _, want := range []int{2, 2, 1} {
		page := must(o.ListWatchers(t.Context(), request))(t)
		if len(page.GetWatchers()) != want || (page.GetNextPageToken() == "") != (want == 1) {
			t.Fatalf("a page of %d, then %q", len(page.GetWatchers()), page.GetNextPageToken())
		}
		for _, w := range page.GetWatchers() {
			times = append(times, w.GetStartTime().AsTime())
		}
		request.PageToken = page.GetNextPageToken()
	}
	if len(times) != n || !slices.IsSortedFunc(times, time.Time.Compare) {
		t.Errorf("they came in the order %v", times)
	}
	if page := must(o.ListWatchers(t.Context(), &adminv1.ListWatchersRequest{PageSize: 1 << 30}))(t); len(page.GetWatchers()) != n {
		t.Errorf("a page as large as may be: %d", len(page.GetWatchers()))
	}
	if _, err := o.ListWatchers(t.Context(), &adminv1.ListWatchersRequest{PageSize: -1}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a negative size: %v", err)
	}
}

// TestA01EachListenerHasItsOwnServicesOnly asks each for what the other has, as everybody and as a service that may watch.
func TestA01EachListenerHasItsOwnServicesOnly(t *testing.T) {
	t.Parallel()
	s, _ := written(t, nil)
	o := s.operators(t)
	const method = adminv1.WatcherService_ListWatchers_FullMethodName
	for _, ctx := range []context.Context{t.Context(), with(t, basicOf("rs", s.secret)), with(t, "Bearer "+s.service(t, "authsvc.trust")),
		with(t, "Bearer "+s.login(t).GetAccessToken())} {
		_, err := adminv1.NewWatcherServiceClient(s.conn).ListWatchers(ctx, &adminv1.ListWatchersRequest{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("an operators' method at the public listener: %v", err)
		}
		if _, err := authsvcv1.NewTrustServiceClient(o.conn).GetKeySet(ctx, &authsvcv1.GetKeySetRequest{}); status.Code(err) != codes.Unimplemented {
			t.Errorf("a public method at the operators' listener: %v", err)
		}
		if _, err := o.ListWatchers(ctx, &adminv1.ListWatchersRequest{}); err != nil {
			t.Errorf("the twin: an operators' method at their listener: %v", err)
		}
	}
	if got := status.Code(s.door.Admit(t.Context(), method)); got != codes.PermissionDenied {
		t.Errorf("the public door's table has it: %v", got)
	}
	if _, err := authsvcv1.NewTrustServiceClient(s.conn).GetKeySet(t.Context(), &authsvcv1.GetKeySetRequest{}); err != nil {
		t.Errorf("the twin: a public method at the public listener: %v", err)
	}
}

func TestR58AMessageToTheOperatorsListenerIsBounded(t *testing.T) {
	t.Parallel()
	s, _ := written(t, nil)
	o := s.operators(t)
	for size, want := range map[int]codes.Code{rpc.MaxMessage: codes.ResourceExhausted, 32: codes.InvalidArgument} {
		token := make([]byte, size)
		for i := range token {
			token[i] = 'x'
		}
		if _, err := o.ListWatchers(t.Context(), &adminv1.ListWatchersRequest{PageToken: string(token)}); status.Code(err) != want {
			t.Errorf("a page token of %d bytes: %v", size, err)
		}
	}
}

// method makes a method with this rule in its proto; nil is none.
func method(t *testing.T, r *policyv1.Rule) protoreflect.MethodDescriptor {
	t.Helper()
	options := &descriptorpb.MethodOptions{}
	if r != nil {
		proto.SetExtension(options, policyv1.E_Rule, r)
	}
	f := must(protodesc.NewFile(&descriptorpb.FileDescriptorProto{Name: proto.String("m.proto"), Package: proto.String("m"), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{{Name: proto.String("M")}},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{{
			Name: proto.String("Do"), InputType: proto.String(".m.M"), OutputType: proto.String(".m.M"), Options: options}}}}}, nil))(t)
	return f.Services().Get(0).Methods().Get(0)
}

func TestR56ADoorRefusesARuleThatItWouldNotKeep(t *testing.T) {
	t.Parallel()
	public, holder := &policyv1.Rule_Public{Public: &policyv1.PublicRule{}}, &policyv1.Rule_Holder{Holder: &policyv1.HolderRule{}}
	user, client := &policyv1.Rule_User{User: &policyv1.UserRule{}}, &policyv1.Rule_Client{Client: &policyv1.ClientRule{Scope: "s"}}
	operator := &policyv1.Rule_Operator{Operator: &policyv1.OperatorRule{}}
	for _, tt := range []struct {
		name              string
		rule              *policyv1.Rule
		public, operators bool
	}{
		{"none", nil, false, false},
		{"nobody", &policyv1.Rule{}, false, false},
		{"public", &policyv1.Rule{Who: public}, true, false},
		{"holder", &policyv1.Rule{Who: holder}, true, false},
		{"user", &policyv1.Rule{Who: user}, true, false},
		{"client", &policyv1.Rule{Who: client}, true, false},
		{"authenticated", &policyv1.Rule{Who: &policyv1.Rule_Authenticated{Authenticated: &policyv1.AuthenticatedRule{}}}, false, false},
		{"operator", &policyv1.Rule{Who: operator}, false, true},
		{"user, sensitive", &policyv1.Rule{Who: user, Sensitive: true}, false, false},
		{"client, until exp", &policyv1.Rule{Who: client, HonourExp: true}, false, false},
		{"operator, sensitive", &policyv1.Rule{Who: operator, Sensitive: true}, false, false},
		{"operator, until exp", &policyv1.Rule{Who: operator, HonourExp: true}, false, false},
	} {
		m := method(t, tt.rule)
		if diff := cmp.Diff([]bool{tt.public, tt.operators}, []bool{rpc.PublicRule(m) == nil, rpc.OperatorRule(m) == nil}); diff != "" {
			t.Errorf("%s (-want +got)\n%s", tt.name, diff)
		}
	}
}

func TestTheOperatorsDoorNeedsAllItsOptions(t *testing.T) {
	t.Parallel()
	if _, err := rpc.NewAdmin(rpc.AdminOptions{}); err == nil {
		t.Error("it is made of nothing")
	}
}
