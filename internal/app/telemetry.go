package app

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/authsvc/authsvc/internal/config"
)

// telemetry sends traces and metrics to a collector by OTLP, where one is configured. A collector that is away costs
// nothing but a log line of the exporter: no call waits for it.
type telemetry struct {
	tracer  *sdktrace.TracerProvider
	readers []sdkmetric.Option
}

// flushFor bounds how long the last spans may take to leave at shutdown.
const flushFor = 3 * time.Second

func newTelemetry(ctx context.Context, c config.Telemetry) (*telemetry, error) {
	res := resource.NewSchemaless(semconv.ServiceName("authsvc"))
	t := &telemetry{readers: []sdkmetric.Option{sdkmetric.WithResource(res)}}
	if c.Endpoint == "" {
		// Callers' trace ids still reach the log.
		t.tracer = sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample()))
		return t, nil
	}
	traces := []otlptracegrpc.Option{otlptracegrpc.WithEndpoint(c.Endpoint)}
	metrics := []otlpmetricgrpc.Option{otlpmetricgrpc.WithEndpoint(c.Endpoint)}
	if c.Insecure {
		traces, metrics = append(traces, otlptracegrpc.WithInsecure()), append(metrics, otlpmetricgrpc.WithInsecure())
	}
	spans, err := otlptracegrpc.New(ctx, traces...)
	if err != nil {
		return nil, err
	}
	figures, err := otlpmetricgrpc.New(ctx, metrics...)
	if err != nil {
		return nil, err
	}
	t.tracer = sdktrace.NewTracerProvider(sdktrace.WithResource(res), sdktrace.WithBatcher(spans),
		sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(c.SampleRatio))))
	t.readers = append(t.readers, sdkmetric.WithReader(sdkmetric.NewPeriodicReader(figures)))
	return t, nil
}

// close sends what is left.
func (t *telemetry) close(m *metrics) error {
	ctx, cancel := context.WithTimeout(context.Background(), flushFor)
	defer cancel()
	return errors.Join(t.tracer.Shutdown(ctx), m.provider.Shutdown(ctx))
}
