package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"runtime/debug"
	"strings"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/proxy"
	"github.com/authsvc/authsvc/internal/service"
)

// piped registers services with every method wrapped in the pipeline. It wraps the method's handler and not the
// server's interceptor, because a handler decodes before its interceptor runs, and nothing of a caller who may not call is
// to be decoded.
type piped struct {
	grpc.ServiceRegistrar
	d    *Door
	wire bool // requests come as bytes, through codec
}

// RegisterService wraps and registers.
func (p piped) RegisterService(desc *grpc.ServiceDesc, impl any) {
	wrapped := *desc
	wrapped.Streams = make([]grpc.StreamDesc, len(desc.Streams))
	for i, s := range desc.Streams {
		s.Handler = p.wrapStream("/"+desc.ServiceName+"/"+s.StreamName, s.Handler)
		wrapped.Streams[i] = s
	}
	wrapped.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		wrapped.Methods[i] = grpc.MethodDesc{MethodName: m.MethodName, Handler: p.wrap("/"+desc.ServiceName+"/"+m.MethodName, m.Handler)}
	}
	p.ServiceRegistrar.RegisterService(&wrapped, impl)
}

func (p piped) wrap(method string, next grpc.MethodHandler) grpc.MethodHandler {
	m := p.d.observer.method(method)
	return func(srv any, ctx context.Context, dec func(any) error, _ grpc.UnaryServerInterceptor) (_ any, err error) {
		ctx, end := m.begin(ctx)
		ctx = withRequestID(ctx, !p.wire)
		defer func() {
			end(err)
			p.d.mention(ctx, method, err)
		}()
		if p.wire {
			dec = unpack(dec)
		}
		resp, err := p.d.run(ctx, method, func(ctx context.Context) (any, error) { return next(srv, ctx, dec, nil) })
		if err != nil {
			return nil, p.d.answer(ctx, method, err)
		}
		return resp, nil
	}
}

// mentionedOf is of how many calls that went well one is logged at Info. Those of a busy service would drown what matters, and
// with none an operator could not see what a usual call looks like.
const mentionedOf = 100

// mention logs a call: one of mentionedOf that went well at Info, the others at Debug. What failed on our side was logged where
// it failed, and what was refused is for the audit log.
func (d *Door) mention(ctx context.Context, method string, err error) {
	level := slog.LevelDebug
	if err == nil && d.well.Add(1)%mentionedOf == 1 {
		level = slog.LevelInfo
	}
	if !d.o.Logger.Enabled(ctx, level) {
		return
	}
	d.o.Logger.LogAttrs(ctx, level, "call", slog.String("method", method), slog.String("code", codeName(status.Code(err))),
		slog.String("request_id", requestID(ctx)), slog.String("trace_id", traceID(ctx)))
}

// run authenticates, calls, and turns a panic into an error.
func (d *Door) run(ctx context.Context, method string, call func(context.Context) (any, error)) (resp any, err error) {
	defer func() {
		if r := recover(); r != nil {
			d.o.Panics()
			err = fmt.Errorf("panic: %T at %s", r, debug.Stack())
		}
	}()
	return d.authenticate(ctx, method, call)
}

// answer renders an error once, and logs once what the caller is not told.
func (d *Door) answer(ctx context.Context, method string, err error) error {
	var known *fault.Error
	undecided := !errors.As(err, &known)
	if known != nil && known.Kind == fault.Unavailable {
		undecided = errors.Is(err, context.Canceled) // a store says so of a caller who left as of its own failures
	}
	switch {
	case undecided && errors.Is(ctx.Err(), context.Canceled):
		return status.Error(codes.Canceled, "the caller went away") // nobody reads it
	case known == nil && errors.Is(err, context.DeadlineExceeded):
		err = fault.Wrap(err, fault.Unavailable, fault.StoreUnavailable, "there was not enough time to decide")
	}
	id := requestID(ctx)
	if s, ok := status.FromError(err); ok {
		return withRequestInfo(s, id) // guard's own answers
	}
	f := fault.From(err)
	ended := f.Reason == fault.Draining || f.Reason == fault.FeedLagging // by us, as meant
	if f.Kind == fault.Internal || f.Kind == fault.Unavailable && !ended {
		level := slog.LevelError
		if f.Reason == fault.RefreshKeyUnknown { // a stranger can write such a token, and is not to ring an alarm
			level = slog.LevelWarn
		}
		d.o.Logger.LogAttrs(ctx, level, "call failed", slog.String("method", method), slog.String("reason", string(f.Reason)),
			slog.String("request_id", id), slog.String("trace_id", traceID(ctx)), slog.Any("error", err))
	}
	return withRequestInfo(toStatus(f), id)
}

// envelope is what the pipeline asks the server to decode in place of the request. grpc-go sends an error of the codec to
// the caller at once, as Internal; in an envelope it comes back to the pipeline, which has the right code for it.
type envelope struct {
	request any
	err     error
}

func unpack(dec func(any) error) func(any) error {
	return func(request any) error {
		e := envelope{request: request}
		if err := dec(&e); err != nil {
			return err
		}
		return e.err
	}
}

// frame is a message that was marshalled already, once for all who get it.
type frame []byte

// codec is the standard one, with the size of every request but a batch capped before it is decoded, and frames as they are.
type codec struct{}

func (codec) Name() string { return proto.Name }

func (codec) Marshal(v any) (mem.BufferSlice, error) {
	if f, ok := v.(frame); ok {
		return mem.BufferSlice{mem.SliceBuffer(f)}, nil
	}
	return encoding.GetCodecV2(proto.Name).Marshal(v)
}

func (codec) Unmarshal(data mem.BufferSlice, v any) error {
	e, ok := v.(*envelope)
	switch {
	case !ok && data.Len() > MaxMessage: // of a service without a pipeline, such as the health
		return errors.New("the message is larger than 64 KiB")
	case !ok:
		return encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
	}
	_, batch := e.request.(*authsvcv1.BatchIntrospectRequest)
	switch {
	case !batch && data.Len() > MaxMessage:
		e.err = status.Error(codes.ResourceExhausted, "the message is larger than 64 KiB")
	case decode(data, e.request) != nil:
		e.err = fault.New(fault.Invalid, fault.FieldInvalid, "the message is not a valid request")
	}
	return nil
}

// traceID is empty where the call belongs to no trace.
func traceID(ctx context.Context) string {
	if s := trace.SpanContextFromContext(ctx); s.HasTraceID() {
		return s.TraceID().String()
	}
	return ""
}

type requestIDKey struct{}

var wellFormedID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// withRequestID takes the id that the REST door chose, and makes one for a call from the wire: a stranger's would let him
// choose what the audit log says.
func withRequestID(ctx context.Context, chosen bool) context.Context {
	if v := metadata.ValueFromIncomingContext(ctx, "x-request-id"); chosen && len(v) == 1 && wellFormedID.MatchString(v[0]) {
		return context.WithValue(ctx, requestIDKey{}, v[0])
	}
	return context.WithValue(ctx, requestIDKey{}, ids.New[string]())
}

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestIDKey{}).(string)
	return id
}

// caller collects what the door knows of who is calling. The address is the connection's, or, where that is a trusted
// proxy's, what the proxy says of it. The REST door has applied the same rule already, and passes no such metadata on.
func (d *Door) caller(ctx context.Context) service.Caller {
	c := service.Caller{RequestID: requestID(ctx)}
	if p, ok := peer.FromContext(ctx); ok {
		c.IP = proxy.Trusted(d.o.TrustedProxies).Client(address(p.Addr), metadata.ValueFromIncomingContext(ctx, "x-forwarded-for"))
	}
	if ua := metadata.ValueFromIncomingContext(ctx, "user-agent"); len(ua) > 0 {
		c.UserAgent = service.Clip(ua[0], service.MaxUserAgent)
	}
	if claims, ok := guard.ClaimsFromContext(ctx); ok && claims.SessionID != "" {
		c.Subject, c.Client, c.Session = ids.Account(claims.Subject), ids.Client(claims.ClientID), ids.Session(claims.SessionID)
		c.Scopes = strings.Fields(claims.Scope)
	}
	return c
}

func address(a net.Addr) netip.Addr {
	if tcp, ok := a.(*net.TCPAddr); ok {
		ip, _ := netip.AddrFromSlice(tcp.IP)
		return ip.Unmap()
	}
	return netip.Addr{}
}
