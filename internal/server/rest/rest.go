// Package rest owns the HTTP/JSON face of the gRPC services: the grpc-gateway in process, over a Channel to the same handlers
// that a network call meets, policy included, so that no rule of who may call exists twice.
//
// The gateway's defaults are unsafe for an authentication service, so it never sees the client's request. This door finds
// the route in its own table, checks method, content type, query, credentials and size, reads the body, and hands the gateway
// a bare request: method, path, query and body. What a service learns of the client beside that (address, user agent,
// authorization, request id, trace) is taken from the HTTP request by name.
package rest

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/proxy"
)

// Bounds of the time that one request may take.
const (
	MinTimeout = time.Second
	MaxTimeout = 30 * time.Second
)

// Default limits of a request's body, in bytes.
const (
	DefaultMaxBody      = 64 << 10
	DefaultMaxBatchBody = 2 << 20
)

// Options is what a REST door is made of.
type Options struct {
	// Channel carries the calls; the services are registered on it before New. Required.
	Channel *Channel
	// KeySet gives the JWK Set (RFC 7517 §5) as JSON, and its entity tag with the quotes (RFC 9110 §8.8.3). Required.
	KeySet func(ctx context.Context) (body []byte, etag string, err error)
	// Status renders an error as the services do: the one table from faults to codes. Required.
	Status func(err error) *status.Status
	// Admit authenticates the caller of fullMethod from ctx alone, before a body over MaxBody is read. Only BatchIntrospect
	// takes such bodies; without Admit it does not either.
	Admit func(ctx context.Context, fullMethod string) error
	// TrustedProxies may say in X-Forwarded-For whom they speak for, and in X-Request-Id which request it is.
	TrustedProxies []netip.Prefix
	// CORSOrigins are the web origins whose pages may call the API, compared exactly.
	CORSOrigins []string
	// MaxBody limits a request's body, in bytes; 0 means DefaultMaxBody.
	MaxBody int64
	// MaxBatchBody limits the body of BatchIntrospect, in bytes; 0 means DefaultMaxBatchBody.
	MaxBatchBody int64
	// RequestTimeout is the deadline of a call, between MinTimeout and MaxTimeout; 0 means MaxTimeout. A client's Grpc-Timeout
	// may shorten it, to no less than MinTimeout.
	RequestTimeout time.Duration
	// Extra holds the handlers of other doors on this listener, by exact path. They get the address rule, the request id, the
	// log, the catching of panics, the deadline and the limit MaxBody of this one; ClientFrom tells them who is calling.
	Extra map[string]http.Handler
	// BasePath is the path of the issuer, "" or "/..." without a slash at its end; the key set is served under it too.
	BasePath string
	// OpenAPI is the document at /openapi.json; empty for none.
	OpenAPI []byte
	// Logger gets the access log (failures at Info and Error, the rest at Debug) and the causes of internal errors. Required.
	Logger *slog.Logger
	// Panicked is called for each panic that was caught, for a counter; may be nil.
	Panicked func()
	// Now is the clock of the access log; nil means time.Now.
	Now func() time.Time
}

type door struct {
	gateway  *runtime.ServeMux
	codec    *codec
	table    table
	keySet   func(context.Context) ([]byte, string, error)
	status   func(error) *status.Status
	admit    func(context.Context, string) error
	trusted  proxy.Trusted
	origins  map[string]bool
	maxBody  int64
	timeout  time.Duration
	basePath string
	openAPI  []byte
	log      *slog.Logger
	panicked func()
	now      func() time.Time
}

// New makes the handler of the public HTTP listener.
func New(o Options) (http.Handler, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	allowed, err := origins(o.CORSOrigins)
	if err != nil {
		return nil, err
	}
	d := &door{codec: newCodec(), keySet: o.KeySet, status: o.Status, admit: o.Admit, trusted: o.TrustedProxies, origins: allowed,
		maxBody: o.MaxBody, timeout: o.RequestTimeout, basePath: o.BasePath, openAPI: o.OpenAPI, log: o.Logger,
		panicked: o.Panicked, now: o.Now, table: table{literal: make(map[string]*place)}}
	d.gateway = runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, d.codec),
		runtime.WithIncomingHeaderMatcher(nothing),
		runtime.WithOutgoingHeaderMatcher(leaving),
		runtime.WithOutgoingTrailerMatcher(nothing),
		runtime.WithErrorHandler(d.gatewayError),
		runtime.WithRoutingErrorHandler(d.routingError),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithWriteContentLength(),
	)
	if err := d.register(o); err != nil {
		return nil, err
	}
	return d, nil
}

func (o *Options) complete() error {
	switch {
	case o.Channel == nil:
		return errors.New("rest: Options.Channel is required")
	case o.KeySet == nil:
		return errors.New("rest: Options.KeySet is required")
	case o.Status == nil:
		return errors.New("rest: Options.Status is required")
	case o.Logger == nil:
		return errors.New("rest: Options.Logger is required")
	case o.BasePath != "" && (!strings.HasPrefix(o.BasePath, "/") || strings.HasSuffix(o.BasePath, "/")):
		return errors.New("rest: Options.BasePath begins with a slash and does not end with one")
	case o.MaxBody < 0 || o.MaxBatchBody < 0:
		return errors.New("rest: Options.MaxBody and MaxBatchBody cannot be negative")
	}
	if o.MaxBody == 0 {
		o.MaxBody = DefaultMaxBody
	}
	if o.MaxBatchBody == 0 {
		o.MaxBatchBody = DefaultMaxBatchBody
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = MaxTimeout
	}
	if o.RequestTimeout < MinTimeout || o.RequestTimeout > MaxTimeout {
		return errors.New("rest: Options.RequestTimeout is outside its bounds of 1 s and 30 s")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return nil
}

// register fills the table and the gateway with the services on the channel and the other handlers.
func (d *door) register(o Options) error {
	ctx := context.Background()
	for _, service := range o.Channel.services {
		routes, err := routesOf(service, o.MaxBody, o.MaxBatchBody)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if err := d.table.add(r); err != nil {
				return err
			}
		}
		switch service {
		case authsvcv1.AuthService_ServiceDesc.ServiceName:
			err = authsvcv1.RegisterAuthServiceHandlerClient(ctx, d.gateway, authsvcv1.NewAuthServiceClient(o.Channel))
		case authsvcv1.SessionService_ServiceDesc.ServiceName:
			err = authsvcv1.RegisterSessionServiceHandlerClient(ctx, d.gateway, authsvcv1.NewSessionServiceClient(o.Channel))
		case authsvcv1.AccountService_ServiceDesc.ServiceName:
			err = authsvcv1.RegisterAccountServiceHandlerClient(ctx, d.gateway, authsvcv1.NewAccountServiceClient(o.Channel))
		default:
			if len(routes) > 0 {
				err = errors.New("rest: " + service + " has HTTP rules but no place in this door")
			}
		}
		if err != nil {
			return err
		}
	}
	for path, handler := range d.documents() {
		d.table.literal[path] = &place{template: path, extra: handler}
	}
	for path, handler := range o.Extra {
		if d.table.literal[path] != nil {
			return errors.New("rest: " + path + " is claimed twice")
		}
		d.table.literal[path] = &place{template: path, extra: handler}
	}
	return nil
}

// nothing is the gateway's header matcher: no header passes, in either direction.
func nothing(string) (string, bool) { return "", false }

// leaving lets one header of a service's answer out.
func leaving(name string) (string, bool) { return deviceHeader, strings.EqualFold(name, deviceHeader) }
