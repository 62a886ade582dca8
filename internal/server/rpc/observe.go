package rpc

import (
	"context"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// observer measures every call and puts it into its trace. All that names a method is made when the method is registered,
// because making it at each call, as the stats handler of OpenTelemetry's own does, costs a third of an introspection.
type observer struct {
	tracer   trace.Tracer
	duration metric.Float64Histogram
}

// lastCode is the highest code that gRPC has.
const lastCode = codes.Unauthenticated

// observed is one method's share of it.
type observed struct {
	*observer
	span     string
	start    []trace.SpanStartOption
	outcomes [lastCode + 1][]metric.RecordOption
}

// newObserver makes rpc.server.call.duration, in seconds, by method and status code.
func newObserver(t trace.TracerProvider, m metric.MeterProvider) (*observer, error) {
	const scope = "github.com/authsvc/authsvc/internal/server/rpc"
	duration, err := m.Meter(scope).Float64Histogram("rpc.server.call.duration", metric.WithUnit("s"),
		metric.WithDescription("How long calls took, over gRPC and REST."),
		metric.WithExplicitBucketBoundaries(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))
	if err != nil {
		return nil, err
	}
	return &observer{tracer: t.Tracer(scope), duration: duration}, nil
}

func (o *observer) method(full string) *observed {
	name := strings.TrimPrefix(full, "/")
	m := &observed{observer: o, span: name}
	common := []attribute.KeyValue{semconv.RPCSystemNameGRPC, semconv.RPCMethod(name)}
	m.start = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer), trace.WithAttributes(common...)}
	for c := range m.outcomes {
		set := attribute.NewSet(append(common[:len(common):len(common)], semconv.RPCResponseStatusCode(codeName(codes.Code(c))))...)
		m.outcomes[c] = []metric.RecordOption{metric.WithAttributeSet(set)}
	}
	return m
}

// begin follows the caller's trace (W3C Trace Context), or begins one; end takes what the call answered.
func (m *observed) begin(ctx context.Context) (_ context.Context, end func(error)) {
	start := time.Now()
	if len(metadata.ValueFromIncomingContext(ctx, "traceparent")) > 0 {
		ctx = propagation.TraceContext{}.Extract(ctx, incoming{ctx})
	}
	ctx, span := m.tracer.Start(ctx, m.span, m.start...)
	return ctx, func(err error) {
		code := status.Code(err)
		if code > lastCode {
			code = codes.Unknown
		}
		m.duration.Record(ctx, time.Since(start).Seconds(), m.outcomes[code]...)
		if span.IsRecording() {
			span.SetAttributes(semconv.RPCResponseStatusCode(codeName(code)))
			if serverFault(code) {
				span.SetStatus(otelcodes.Error, codeName(code))
			}
		}
		span.End()
	}
}

// serverFault says which codes are this service's failure and not the caller's, as the conventions for gRPC list them.
func serverFault(c codes.Code) bool {
	switch c {
	case codes.Unknown, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unavailable, codes.DataLoss:
		return true
	default:
		return false
	}
}

// codeName spells a code as gRPC's own documents do: INVALID_ARGUMENT.
func codeName(c codes.Code) string {
	switch c {
	case codes.OK:
		return "OK"
	case codes.Canceled:
		return "CANCELLED"
	}
	var b strings.Builder
	for i, r := range c.String() {
		if i > 0 && r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

// incoming reads the metadata of a call as a carrier of trace headers.
type incoming struct{ ctx context.Context } //nolint:containedctx // it lives for one extraction

func (c incoming) Get(key string) string {
	if v := metadata.ValueFromIncomingContext(c.ctx, key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (incoming) Set(string, string) {}

func (incoming) Keys() []string { return nil }
