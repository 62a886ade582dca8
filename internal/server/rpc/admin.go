package rpc

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	adminv1 "github.com/authsvc/authsvc/gen/authsvc/admin/v1"
	"github.com/authsvc/authsvc/internal/fault"
)

// AdminOptions are what NewAdmin needs; all fields are required.
type AdminOptions struct {
	Feed   *Hub
	Logger *slog.Logger
	Panics func() // counts a handler that panicked
	Tracer trace.TracerProvider
	Meter  metric.MeterProvider
}

// Admin is the operators' door: its methods have the rule operator and run through the same pipeline as those of Door. It asks
// nobody who he is, since its listener has done that.
type Admin struct {
	d *Door
}

// NewAdmin makes the door; it fails if a method of its services has another rule.
func NewAdmin(o AdminOptions) (*Admin, error) {
	if o.Feed == nil || o.Logger == nil || o.Panics == nil || o.Tracer == nil || o.Meter == nil {
		return nil, errors.New("rpc: every option is required")
	}
	rules, err := readRules(readOperatorRule, adminv1.File_authsvc_admin_v1_watcher_proto)
	if err != nil {
		return nil, err
	}
	observer, err := newObserver(o.Tracer, o.Meter)
	if err != nil {
		return nil, err
	}
	return &Admin{&Door{o: Options{Feed: o.Feed, Logger: o.Logger, Panics: o.Panics}, rules: rules, observer: observer}}, nil
}

// Register puts the operators' services on a server, which must be that of the admin listener.
func (a *Admin) Register(s *grpc.Server) {
	adminv1.RegisterWatcherServiceServer(piped{s, a.d, true}, watcherServer{d: a.d})
}

// Limits of the admin listener, beside those of NewServer.
const (
	// MaxAdminAnswer is the largest answer, in bytes: a page of watchers that hold a hundred keys each.
	MaxAdminAnswer  = 16 << 20
	maxAdminStreams = 16
	maxAdminAge     = 5 * time.Minute // of a connection
)

// NewAdminServer makes the gRPC server of the admin listener, with every limit explicit.
func NewAdminServer() *grpc.Server {
	return grpc.NewServer(
		grpc.MaxRecvMsgSize(MaxMessage),
		grpc.MaxSendMsgSize(MaxAdminAnswer),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(maxAdminStreams),
		grpc.InTapHandle(timed),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: time.Minute, MaxConnectionAge: maxAdminAge,
			MaxConnectionAgeGrace: maxCall, Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.ForceServerCodecV2(codec{}),
		grpc.WaitForHandlers(true),
	)
}

type watcherServer struct {
	adminv1.UnimplementedWatcherServiceServer
	d *Door
}

// maxWatchersPage is how many watchers one answer has at most, and if it is not said.
const maxWatchersPage = 1000

// ListWatchers gives a page of the open streams of the feed, the oldest first.
func (s watcherServer) ListWatchers(_ context.Context, r *adminv1.ListWatchersRequest) (*adminv1.ListWatchersResponse, error) {
	size, after := int(r.GetPageSize()), uint64(0)
	switch {
	case size < 0:
		return nil, fault.Field("page_size", "must not be negative")
	case size == 0, size > maxWatchersPage:
		size = maxWatchersPage
	}
	if text := r.GetPageToken(); text != "" {
		var ok bool
		if after, ok = s.d.o.Feed.parsePage(text); !ok {
			return nil, fault.Field("page_token", "is not one that an earlier page of this list gave; leave it out to begin anew")
		}
	}
	list, more := s.d.o.Feed.page(after, size)
	answer, now := &adminv1.ListWatchersResponse{}, time.Now()
	for _, w := range list {
		answer.Watchers = append(answer.Watchers, w.show(now))
	}
	if more {
		answer.NextPageToken = s.d.o.Feed.pageToken(list[len(list)-1].id)
	}
	return answer, nil
}

// show gives what is known of a watcher.
func (w *watcher) show(now time.Time) *adminv1.Watcher {
	out := &adminv1.Watcher{ClientId: string(w.client), StartTime: timestamppb.New(w.start)}
	if w.address.IsValid() {
		out.Address = w.address.String()
	}
	if at := w.holds.Load(); at != nil {
		out.Position, out.Kids = &at.view.Cursor.Row, at.kids
	}
	if at := w.heard.Load(); at != nil {
		out.Age = durationpb.New(max(0, now.Sub(at.view.Known)))
	}
	return out
}
