package guard_test

import (
	"context"
	"testing"

	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/authsvc/authsvc/guard"
)

// BenchmarkUnary is what a guard adds to a call whose token it has seen before: all but the handler, which does nothing.
func BenchmarkUnary(b *testing.B) {
	ctx := metadata.NewIncomingContext(b.Context(), metadata.Pairs("authorization", "Bearer "+token(nil), "user-agent", "bench", ":authority", "api.example"))
	handler := func(context.Context, any) (any, error) { return nil, nil }
	for _, c := range []struct {
		name  string
		meter metric.MeterProvider
	}{
		{"not measured", nil},
		{"measured", sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewManualReader()))},
	} {
		interceptor := newGuard(b, guard.Options{Rules: rules(), Meter: c.meter}).UnaryServerInterceptor()
		info := &grpc.UnaryServerInfo{FullMethod: "/t/read"}
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := interceptor(ctx, nil, info, handler); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
