package live

import (
	"net/http"
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/authsvc/authsvc/guard"
)

// TestTheFeedMeasuresARealRevocation compares the delay that a verifier says with what must be true of it: the commit came after
// the call that revoked was made, and before the token was refused.
func TestTheFeedMeasuresARealRevocation(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	in := s.login(t)
	reader := metric.NewManualReader()
	began := time.Now()
	feed, err := guard.NewFeed(guard.FeedOptions{
		Target: s.GRPC, Issuer: s.Issuer, ClientID: s.ServiceClientID, ClientSecret: s.ServiceClientSecret,
		Meter: metric.NewMeterProvider(metric.WithReader(reader)),
	})
	if err != nil {
		t.Fatal(err)
	}
	w := follow(t, feed, s)
	w.ready(t)
	if n := len(measuredDelays(t, reader)); n != 0 {
		t.Errorf("%d delays before anything was revoked", n)
	}
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")}); a.code != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.code, a.raw)
	}
	await(t, "the revocation is measured", func() bool { return len(measuredDelays(t, reader)) > 0 })
	delay := measuredDelays(t, reader)[0]
	// It is too long by the way of the feed's call to the server at most, which was made after began.
	if most := time.Since(began).Seconds(); delay.Count != 1 || delay.Sum <= 0 || delay.Sum > most {
		t.Errorf("%d delays, %v s together; all of it took %v s", delay.Count, delay.Sum, most)
	}
}

// measuredDelays are the data points of authsvc.guard.feed.delay.
func measuredDelays(t *testing.T, reader metric.Reader) []metricdata.HistogramDataPoint[float64] {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			if h, ok := m.Data.(metricdata.Histogram[float64]); ok && m.Name == "authsvc.guard.feed.delay" {
				return h.DataPoints
			}
		}
	}
	return nil
}
