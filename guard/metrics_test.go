package guard_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// gauges reads what a Prometheus would: a value by name and labels, such as `calls_total{outcome="accepted"}`. Of a histogram it has the
// count and the sum, and the label issuer is left out.
type gauges struct {
	metric.MeterProvider
	registry *prometheus.Registry
}

func newGauges(t testing.TB) *gauges {
	t.Helper()
	registry := prometheus.NewRegistry()
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry), otelprom.WithoutScopeInfo(), otelprom.WithoutTargetInfo())
	if err != nil {
		t.Fatal(err)
	}
	return &gauges{sdkmetric.NewMeterProvider(sdkmetric.WithReader(exporter)), registry}
}

func (g *gauges) read(t testing.TB) map[string]float64 {
	t.Helper()
	families, err := g.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "authsvc_guard_")
			for _, l := range m.GetLabel() {
				if l.GetName() != "issuer" {
					name += fmt.Sprintf("{%s=%q}", l.GetName(), l.GetValue())
				} else if l.GetValue() != "https://auth.example" {
					t.Errorf("%s is of the issuer %q", name, l.GetValue())
				}
			}
			if h := m.GetHistogram(); h != nil {
				all[name+"_count"], all[name+"_sum"] = float64(h.GetSampleCount()), h.GetSampleSum()
				continue
			}
			all[name] = m.GetGauge().GetValue() + m.GetCounter().GetValue()
		}
	}
	return all
}

// expect compares those values that want has, and wants none that are absent.
func (g *gauges) expect(t testing.TB, when string, want map[string]float64, absent ...string) {
	t.Helper()
	got := g.read(t)
	for name, value := range want {
		if v, ok := got[name]; !ok || v < value-1e-9 || v > value+1e-9 {
			t.Errorf("%s: %s is %v (%v), want %v", when, name, v, ok, value)
		}
	}
	for _, name := range absent {
		if v, ok := got[name]; ok {
			t.Errorf("%s: %s is %v, want none", when, name, v)
		}
	}
}

func TestG15CallsAreCountedByOutcomeAlone(t *testing.T) {
	t.Parallel()
	m := newGauges(t)
	g := newGuard(t, guard.Options{Rules: rules(), Meter: m})
	before := len(m.read(t))
	names := map[string]call{}
	want := map[string]float64{"streams_open": 0}
	for name, c := range calls() {
		names[name] = c
		outcome := c.reason
		if outcome == "" {
			outcome = "accepted"
		}
		want[fmt.Sprintf("calls_total{outcome=%q}", outcome)]++
	}
	for i := range 1000 { // the callers' own words
		names[fmt.Sprint(i)] = call{method: fmt.Sprint("/made/up-", i), authorization: []string{fmt.Sprint("Scheme", i, " ", i)}}
		want[`calls_total{outcome="PERMISSION_DENIED"}`]++
	}
	for _, c := range names {
		md := metadata.MD{}
		md.Append("authorization", c.authorization...)
		_, _ = g.UnaryServerInterceptor()(metadata.NewIncomingContext(t.Context(), md), nil, &grpc.UnaryServerInfo{FullMethod: c.method},
			func(context.Context, any) (any, error) { return struct{}{}, nil })
	}
	m.expect(t, "G15", want)
	if after := len(m.read(t)); after != before {
		t.Errorf("G15: %d values, and %d before the first call", after, before)
	}
}

func TestStreamsAreCountedWhileTheyAreOpenAndWhenTheyAreEnded(t *testing.T) {
	t.Parallel()
	within(t, func(p *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
			return err
		}
		return p.relay(s)
	}, func(t *testing.T, w *world) {
		defer close(w.more)
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		m := newGauges(t)
		g := newGuard(t, guard.Options{Verifier: w.verifier, Feed: w.Feed, Rules: rules(), Meter: m})
		m.expect(t, "before", map[string]float64{
			"streams_open": 0, `streams_ended_total{reason="TOKEN_REVOKED"}`: 0, `streams_ended_total{reason="TOKEN_EXPIRED"}`: 0,
		})
		var handlers sync.WaitGroup
		leave := make(chan struct{})
		open := func(authorization string, until func(context.Context) <-chan struct{}) {
			ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("authorization", authorization))
			method := "/t/any"
			if authorization == "" {
				method = "/t/public"
			}
			handlers.Go(func() {
				_ = g.StreamServerInterceptor()(nil, stream{ctx: ctx}, &grpc.StreamServerInfo{FullMethod: method},
					func(_ any, s grpc.ServerStream) error { <-until(s.Context()); return nil })
			})
		}
		byItself := func(context.Context) <-chan struct{} { return leave }
		open("Bearer "+token(map[string]any{"sid": "dead"}), context.Context.Done)
		open("Bearer "+token(nil), byItself)
		open("", byItself) // a public one is not watched
		synctest.Wait()
		m.expect(t, "two that tokens let in", map[string]float64{"streams_open": 2, `calls_total{outcome="accepted"}`: 3})
		w.more <- change("c1", "c2", nil, entry(verify.KindSession, "dead"))
		synctest.Wait()
		m.expect(t, "one is revoked", map[string]float64{"streams_open": 1, `streams_ended_total{reason="TOKEN_REVOKED"}`: 1})
		close(leave)
		handlers.Wait()
		m.expect(t, "the other has left", map[string]float64{
			"streams_open": 0, `streams_ended_total{reason="TOKEN_REVOKED"}`: 1, `streams_ended_total{reason="TOKEN_EXPIRED"}`: 0,
		})
	})
}

func TestTheFeedIsMeasuredWhileItRuns(t *testing.T) {
	t.Parallel()
	var m *gauges
	gone := []string{"feed_age_seconds", "feed_lag_seconds", "feed_live", "feed_ready", "feed_applied_total", "feed_breaks_total"}
	within(t, func(p *peer, call int, s watch) error {
		if call == 1 {
			<-p.more
			return errors.New("broken off")
		}
		if err := say(s, part(keySet("key-1"), "c1", entry(verify.KindToken, "dead"))); err != nil {
			return err
		}
		return p.relay(s)
	}, func(t *testing.T, w *world) {
		defer close(w.more)
		synctest.Wait()
		m.expect(t, "before anything came", map[string]float64{"feed_live": 0, "feed_ready": 0, "feed_applied_total": 0, "feed_breaks_total": 0},
			"feed_age_seconds", "feed_lag_seconds")
		w.more <- nil
		for w.Status().Applied == 0 {
			time.Sleep(time.Second) // of the bubble
		}
		m.expect(t, "a snapshot that is not dated", map[string]float64{"feed_live": 1, "feed_ready": 0, "feed_applied_total": 1, "feed_breaks_total": 1},
			"feed_age_seconds", "feed_lag_seconds")
		w.more <- beat("c1", 0, 1500*time.Millisecond)
		w.more <- change("c1", "c2", nil, entry(verify.KindToken, "dead"), entry(verify.KindToken, "late"))
		synctest.Wait()
		m.expect(t, "later", map[string]float64{
			"feed_lag_seconds": 1.5, "feed_age_seconds": w.Status().Age.Seconds(), "feed_live": 2, "feed_ready": 1, "feed_applied_total": 3,
		})
	}, func(o *guard.FeedOptions) { m = newGauges(t); o.Meter = m })
	m.expect(t, "after Run", nil, gone...)
}

// committed tells when a change was committed.
func committed(at time.Time, e event) event {
	e.GetDelta().CommitTime = timestamppb.New(at)
	return e
}

// beatBy is a heartbeat of a server with a clock of its own.
func beatBy(cursor string, elapsed time.Duration, wall time.Time) event {
	return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Heartbeat{Heartbeat: &authsvcv1.TrustHeartbeat{
		Cursor: cursor, Elapsed: durationpb.New(elapsed), Lag: durationpb.New(0), ServerTime: timestamppb.New(wall)}}}
}

func TestTheDelayOfARevocationNeedsNoCommonClock(t *testing.T) {
	t.Parallel()
	server := time.Unix(issued, 0) // what the server's clock said when it received the call; ours says 1970
	dead := entry(verify.KindToken, "dead")
	at := func(d time.Duration) time.Time { return server.Add(d) }
	const ms = time.Millisecond
	type step struct {
		passed time.Duration // by our clock, when the event comes
		event  event
	}
	beaten := step{1000 * ms, beatBy("c1", 990*ms, at(990*ms))} // 10 ms on its way
	for name, c := range map[string]struct {
		steps []step
		want  []time.Duration // all that were measured
	}{
		"a change after a heartbeat":   {[]step{beaten, {1500 * ms, committed(at(1460*ms), change("c1", "c2", nil, dead))}}, []time.Duration{40 * ms}},
		"a change before any":          {[]step{{1500 * ms, committed(at(1460*ms), change("c1", "c2", nil, dead))}}, nil},
		"one that tells no commit":     {[]step{beaten, {1500 * ms, change("c1", "c2", keySet("key-1", "key-2"))}}, nil},
		"one of the year 1":            {[]step{beaten, {1500 * ms, committed(time.Time{}, change("c1", "c2", nil, dead))}}, nil},
		"one of the year 9999":         {[]step{beaten, {1500 * ms, committed(time.Unix(253402300799, 0), change("c1", "c2", nil, dead))}}, nil},
		"a commit after its arrival":   {[]step{beaten, {1500 * ms, committed(at(1700*ms), change("c1", "c2", nil, dead))}}, []time.Duration{0}},
		"a commit before the call":     {[]step{beaten, {1500 * ms, committed(at(-2000*ms), change("c1", "c2", nil, dead))}}, []time.Duration{3500 * ms}},
		"two changes":                  {[]step{beaten, {1500 * ms, committed(at(1460*ms), change("c1", "c2", nil, dead))}, {1600 * ms, committed(at(1590*ms), change("c2", "c3", nil, dead))}}, []time.Duration{40 * ms, 10 * ms}},
		"the next tells no commit":     {[]step{beaten, {1500 * ms, committed(at(1460*ms), change("c1", "c2", nil, dead))}, {1600 * ms, change("c2", "c3", nil, dead)}}, []time.Duration{40 * ms}},
		"a server that is set ahead":   {[]step{beaten, {2000 * ms, beatBy("c1", 1990*ms, at(1990*ms+time.Hour))}, {2100 * ms, committed(at(2080*ms+time.Hour), change("c1", "c2", nil, dead))}}, []time.Duration{20 * ms}},
		"a server that is ahead of us": {[]step{{1000 * ms, beatBy("c1", 5000*ms, at(5000*ms))}, {1500 * ms, committed(at(5480*ms), change("c1", "c2", nil, dead))}}, []time.Duration{20 * ms}},
		"a change of two parts, by its oldest, when it is whole": {[]step{beaten,
			{1500 * ms, committed(at(1460*ms), portion(0, true, change("c1", "c1", nil, dead)))},
			{1600 * ms, committed(at(1490*ms), portion(1, false, change("c1", "c2", nil, dead)))}}, []time.Duration{140 * ms}},
		"a change of two parts, of which one tells": {[]step{beaten,
			{1500 * ms, portion(0, true, change("c1", "c1", nil, dead))},
			{1600 * ms, committed(at(1490*ms), portion(1, false, change("c1", "c2", nil, dead)))}}, []time.Duration{110 * ms}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newGauges(t)
			feed, err := guard.NewFeed(guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "x", Meter: m})
			if err != nil {
				t.Fatal(err)
			}
			var passed time.Duration
			feed.CountBy(func() (time.Duration, int64) { return passed, int64(passed) }, func() time.Duration { return passed })
			take := feed.Stream()
			if err := take(part(keySet("key-1"), "c1")); err != nil {
				t.Fatal(err)
			}
			for _, s := range c.steps {
				passed = s.passed
				if err := take(s.event); err != nil {
					t.Fatal(err)
				}
			}
			sum := 0.0
			for _, d := range c.want {
				sum += d.Seconds()
			}
			if len(c.want) == 0 {
				m.expect(t, "none", nil, "feed_delay_seconds_count")
				return
			}
			m.expect(t, "all", map[string]float64{"feed_delay_seconds_count": float64(len(c.want)), "feed_delay_seconds_sum": sum})
		})
	}
}

// TestEveryMetricIsDocumented reads the table of docs/verify.md: what it names is exported, and nothing else is.
func TestEveryMetricIsDocumented(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/verify.md")
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, row := range regexp.MustCompile("(?m)^\\| `(authsvc\\.guard\\.[a-z.]+)`[^|]*\\| `(authsvc_guard_[a-z_]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		want = append(want, row[2])
		if !strings.HasPrefix(row[2], strings.ReplaceAll(row[1], ".", "_")) {
			t.Errorf("%s is documented as %s", row[1], row[2])
		}
	}
	var m *gauges
	within(t, func(p *peer, _ int, s watch) error {
		if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0), committed(time.Now(), change("c1", "c2", nil, entry(verify.KindToken, "dead")))); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}, func(t *testing.T, w *world) {
		newGuard(t, guard.Options{Verifier: w.verifier, Feed: w.Feed, Meter: m})
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		families, err := m.registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range families {
			got = append(got, f.GetName())
		}
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("documented and exported (-want +got)\n%s", diff)
		}
	}, func(o *guard.FeedOptions) { m = newGauges(t); o.Meter = m })
}

var errRefusing = errors.New("no instrument of this name")

// refusing is a provider that makes no instruments.
type refusing struct{ noop.MeterProvider }

type refusingMeter struct{ noop.Meter }

func (refusing) Meter(string, ...metric.MeterOption) metric.Meter { return refusingMeter{} }

func (refusingMeter) Int64UpDownCounter(string, ...metric.Int64UpDownCounterOption) (metric.Int64UpDownCounter, error) {
	return nil, errRefusing
}

func (refusingMeter) Float64Histogram(string, ...metric.Float64HistogramOption) (metric.Float64Histogram, error) {
	return nil, errRefusing
}

func (refusingMeter) RegisterCallback(metric.Callback, ...metric.Observable) (metric.Registration, error) {
	return nil, errRefusing
}

func TestAMeterThatRefusesIsSaid(t *testing.T) {
	t.Parallel()
	if _, err := guard.New(guard.Options{Verifier: verifier(true), Meter: refusing{}}); !errors.Is(err, errRefusing) {
		t.Errorf("New: %v", err)
	}
	o := guard.FeedOptions{Target: "127.0.0.1:1", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "x", Meter: refusing{}}
	if _, err := guard.NewFeed(o); !errors.Is(err, errRefusing) {
		t.Errorf("NewFeed: %v", err)
	}
}
