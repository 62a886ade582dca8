// Package rpc is the gRPC door: one file per proto service, one table that maps faults to status codes, and the one
// pipeline that every call runs through, over the wire and from the REST gateway alike. It parses, calls one use case of
// package service, and renders; no rule lives here.
//
// Who may call a method stands in the proto, as its authsvc.policy.v1.rule. A method without one is refused.
package rpc

import (
	"context"
	"errors"
	"log/slog"

	"net/netip"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/tap"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/verify"
)

type signIn interface {
	Login(ctx context.Context, r service.LoginRequest) (service.Issued, error)
}

type tokens interface {
	Refresh(ctx context.Context, r service.RefreshRequest) (service.Issued, error)
	Revoke(ctx context.Context, r service.RevokeRequest) (string, error)
	Introspect(ctx context.Context, caller client.Client, token, minPosition string) (service.Introspection, error)
	BatchIntrospect(ctx context.Context, caller client.Client, tokens []string) ([]service.Introspection, error)
}

type clients interface {
	Authenticate(ctx context.Context, a service.ClientAuth) (client.Client, error)
	Get(ctx context.Context, id ids.Client) (client.Client, error)
}

type sessions interface {
	List(ctx context.Context, caller service.Caller, size int32, pageToken string) ([]session.Session, string, error)
	Revoke(ctx context.Context, caller service.Caller, id ids.Session) error
	RevokeAll(ctx context.Context, caller service.Caller, exceptCurrent bool) (int, error)
}

type accounts interface {
	ChangePassword(ctx context.Context, caller service.Caller, oldPassword, newPassword string) error
}

// Options are what New needs; all fields are required but TrustedProxies.
type Options struct {
	SignIn   signIn
	Tokens   tokens
	Clients  clients
	Sessions sessions
	Accounts accounts
	Feed     *Hub
	KeySet   func() []byte                   // the JWK Set as served over HTTP
	Verifier *verify.Verifier                // of this issuer's tokens with the issuer as audience
	Fresh    func(ctx context.Context) error // makes sure that revocations are at most a second old, or says Unavailable
	Logger   *slog.Logger
	Panics   func() // counts a handler that panicked
	Tracer   trace.TracerProvider
	Meter    metric.MeterProvider
	// TrustedProxies may say in the metadata x-forwarded-for whom they speak for.
	TrustedProxies []netip.Prefix
}

// Door is the four services behind the pipeline.
type Door struct {
	o        Options
	rules    map[string]*rule
	guard    *guard.Guard
	observer *observer
	well     atomic.Uint64 // calls that went well
}

// New makes the door; it fails if a method of the services has no rule.
func New(o Options) (*Door, error) {
	if o.SignIn == nil || o.Tokens == nil || o.Clients == nil || o.Sessions == nil || o.Accounts == nil || o.Feed == nil ||
		o.KeySet == nil || o.Verifier == nil || o.Fresh == nil || o.Logger == nil || o.Panics == nil || o.Tracer == nil || o.Meter == nil {
		return nil, errors.New("rpc: every option is required")
	}
	rules, err := publicRules()
	if err != nil {
		return nil, err
	}
	guarded := map[string]guard.Rule{}
	for method, r := range rules {
		if r.bearer {
			guarded[method] = guard.Rule{User: r.user, Client: r.client, Scopes: r.scopes}
		}
	}
	g, err := guard.New(guard.Options{Verifier: o.Verifier, Rules: guarded})
	if err != nil {
		return nil, err
	}
	observer, err := newObserver(o.Tracer, o.Meter)
	if err != nil {
		return nil, err
	}
	return &Door{o: o, rules: rules, guard: g, observer: observer}, nil
}

// Register puts the services, wrapped in the pipeline, on a gRPC server or on the REST door's channel.
func (d *Door) Register(r grpc.ServiceRegistrar) {
	_, wire := r.(*grpc.Server)
	p := piped{r, d, wire}
	authsvcv1.RegisterAuthServiceServer(p, authServer{d: d})
	authsvcv1.RegisterSessionServiceServer(p, sessionServer{d: d})
	authsvcv1.RegisterAccountServiceServer(p, accountServer{d: d})
	authsvcv1.RegisterTrustServiceServer(p, trustServer{d: d})
}

// Limits of the gRPC listener. Only BatchIntrospect may send more than MaxMessage.
const (
	MaxMessage      = 64 << 10
	MaxBatchMessage = 2 << 20
	maxHeaderList   = 16 << 10
	maxStreams      = 128
	maxCall         = 30 * time.Second // from its headers to its answer, whatever its caller says
	maxAge          = 30 * time.Minute // of a connection that takes new calls, and of a stream that anybody may open
	feedAge         = 2 * time.Hour    // of a connection after maxAge; a feed that lasts longer goes on by its cursor on another
)

// timed gives a call maxCall, or less where its caller gives it less. grpc-go has no bound of its own, and takes a message
// into memory before it calls anybody: one that never comes whole would be held for as long as its connection. The streams
// that are meant to last have maxAge, where anybody may open them; the feed has none, only its request must come in time.
func timed(ctx context.Context, call *tap.Info) (context.Context, error) {
	limit := maxCall
	switch call.FullMethodName {
	case authsvcv1.TrustService_WatchTrust_FullMethodName:
		return endless(ctx), nil
	case healthv1.Health_Watch_FullMethodName, reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName,
		reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName:
		limit = maxAge
	}
	if end, ok := ctx.Deadline(); ok && time.Until(end) <= limit {
		return ctx, nil
	}
	ctx, cancel := context.WithTimeout(ctx, limit) //nolint:gosec // grpc-go cancels the outer one when the stream ends
	_ = cancel
	return ctx, nil
}

// NewServer makes a gRPC server with every limit explicit; without creds it speaks plain text.
func NewServer(creds credentials.TransportCredentials) *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxBatchMessage),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.InTapHandle(timed),
		grpc.ConnectionTimeout(10 * time.Second),
		// An old connection takes no new calls, and stays for its feed, though not for good: a call that has ended stays with it
		// until its answer has been read, if ever.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: 15 * time.Minute, MaxConnectionAge: maxAge,
			MaxConnectionAgeGrace: feedAge, Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.ForceServerCodecV2(codec{}),
		// Calls run on goroutines that stay: a new one for each call would grow its stack anew each time.
		grpc.NumStreamWorkers(16),
		grpc.WaitForHandlers(true),
	}
	if creds == nil {
		creds = insecure.NewCredentials()
	}
	return grpc.NewServer(append(opts, grpc.Creds(metered{creds}))...)
}
