package rpc_test

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	otelcodes "go.opentelemetry.io/otel/codes"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/server/rpc"
)

// watched is a door whose traces and metrics end in memory.
func watched(t *testing.T) (*served, *tracetest.SpanRecorder, *sdkmetric.ManualReader) {
	t.Helper()
	spans, reader := tracetest.NewSpanRecorder(), sdkmetric.NewManualReader()
	s := serve(t, func(o *rpc.Options) {
		o.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
		o.Meter = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
	})
	return s, spans, reader
}

func TestCallsAreMeasuredByMethodAndCode(t *testing.T) {
	t.Parallel()
	s, _, reader := watched(t)
	auth := authsvcv1.NewAuthServiceClient(s.conn)
	for range 3 {
		_, _ = auth.Introspect(t.Context(), &authsvcv1.IntrospectRequest{Token: "a"})
	}
	_, _ = auth.Introspect(with(t, basicOf("rs", s.secret)), &authsvcv1.IntrospectRequest{})
	if _, err := auth.Introspect(with(t, basicOf("rs", s.secret)), &authsvcv1.IntrospectRequest{Token: "a"}); err != nil {
		t.Fatal(err)
	}
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, m := range all.ScopeMetrics[0].Metrics {
		histogram, ok := m.Data.(metricdata.Histogram[float64])
		if m.Name != "rpc.server.call.duration" || m.Unit != "s" || !ok {
			t.Errorf("%s in %q", m.Name, m.Unit)
			continue
		}
		for _, p := range histogram.DataPoints {
			method, _ := p.Attributes.Value("rpc.method")
			code, _ := p.Attributes.Value("rpc.response.status_code")
			got[method.AsString()+" "+code.AsString()] = p.Count
		}
	}
	for want, n := range map[string]uint64{"UNAUTHENTICATED": 3, "INVALID_ARGUMENT": 1, "OK": 1} {
		if got["authsvc.v1.AuthService/Introspect "+want] != n {
			t.Errorf("%d times %s, want %d: %v", got["authsvc.v1.AuthService/Introspect "+want], want, n, got)
		}
	}
}

func TestACallersTraceIsFollowed(t *testing.T) {
	t.Parallel()
	const id, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
	for _, tt := range []struct {
		name, header string
		spans        int
	}{
		{"a sampled trace", "00-" + id + "-" + parent + "-01", 1},
		{"a trace that is not sampled", "00-" + id + "-" + parent + "-00", 0},
		{"no trace", "", 0},
		{"a malformed one", "00-" + id + "-b7ad-01", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, spans, _ := watched(t)
			ctx := t.Context()
			if tt.header != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", tt.header)
			}
			_, _ = authsvcv1.NewAuthServiceClient(s.conn).Introspect(ctx, &authsvcv1.IntrospectRequest{Token: "a"})
			ended := spans.Ended()
			if len(ended) != tt.spans {
				t.Fatalf("%d spans, want %d", len(ended), tt.spans)
			}
			for _, span := range ended {
				if span.Name() != "authsvc.v1.AuthService/Introspect" || span.SpanKind() != trace.SpanKindServer ||
					span.SpanContext().TraceID().String() != id || span.Parent().SpanID().String() != parent {
					t.Errorf("the span is %s, %s, of %s", span.Name(), span.SpanKind(), span.Parent().SpanID())
				}
				if !slices.Contains(span.Attributes(), attribute.String("rpc.response.status_code", "UNAUTHENTICATED")) {
					t.Errorf("its attributes are %v", span.Attributes())
				}
				if span.Status().Code != otelcodes.Unset {
					t.Errorf("a caller's fault is the server's: %v", span.Status())
				}
			}
		})
	}
}

func TestOneOfAHundredCallsThatWentWellIsLogged(t *testing.T) {
	t.Parallel()
	var out buffer
	s := serve(t, func(o *rpc.Options) {
		o.Logger = slog.New(slog.NewTextHandler(&out, nil))
		o.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
	})
	trust := authsvcv1.NewTrustServiceClient(s.conn)
	for range 250 {
		if _, err := trust.GetKeySet(t.Context(), &authsvcv1.GetKeySetRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 {
		t.Fatalf("%d lines of 250 calls:\n%s", len(lines), out.String())
	}
	for _, want := range []string{"method=/authsvc.v1.TrustService/GetKeySet", "code=OK", "request_id=", "trace_id="} {
		if !strings.Contains(lines[0], want) || strings.Contains(lines[0], want+`""`) {
			t.Errorf("the line lacks %s: %s", want, lines[0])
		}
	}
}
