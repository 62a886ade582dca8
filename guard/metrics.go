package guard

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// meterName is the instrumentation scope of all that this package measures.
const meterName = "github.com/authsvc/authsvc/guard"

// meterOf gives the provider's meter, or one that measures nothing.
func meterOf(p metric.MeterProvider) metric.Meter {
	if p == nil {
		p = noop.NewMeterProvider()
	}
	return p.Meter(meterName)
}

// guardMeter counts what a guard decides. What its attributes say is made once: nothing that a caller wrote gets into them, and a
// call costs no allocation.
type guardMeter struct {
	calls    metric.Int64Counter
	outcomes map[string][]metric.AddOption // by what Options.Observe is told
	open     metric.Int64UpDownCounter
	ended    metric.Int64Counter
	reasons  map[error][]metric.AddOption // by the cause of a stream's end
}

// outcomes are the values of the attribute outcome by what Options.Observe is told. A reason stands for itself.
func outcomes() map[string]string {
	all := map[string]string{"": "accepted", AcceptedStale: "accepted_stale", AcceptedIntrospected: "accepted_introspected"}
	for _, reason := range []string{ReasonTokenInvalid, ReasonTokenExpired, ReasonTokenRevoked, ReasonScopeInsufficient, ReasonPermissionDenied, ReasonReplicaStale} {
		all[reason] = reason
	}
	return all
}

func newGuardMeter(p metric.MeterProvider) (*guardMeter, error) {
	meter := meterOf(p)
	m := &guardMeter{outcomes: map[string][]metric.AddOption{}, reasons: map[error][]metric.AddOption{}}
	var all [3]error
	m.calls, all[0] = meter.Int64Counter("authsvc.guard.calls", metric.WithUnit("{call}"),
		metric.WithDescription("Calls that were judged, by outcome: let through, or the reason of the refusal."))
	m.open, all[1] = meter.Int64UpDownCounter("authsvc.guard.streams.open", metric.WithUnit("{stream}"),
		metric.WithDescription("Streams that a token let in and whose handlers run."))
	m.ended, all[2] = meter.Int64Counter("authsvc.guard.streams.ended", metric.WithUnit("{stream}"),
		metric.WithDescription("Open streams that the guard ended, by reason."))
	if err := errors.Join(all[:]...); err != nil {
		return nil, err
	}
	// A rate sees the first of something only where there was a zero before.
	ctx := context.Background()
	m.open.Add(ctx, 0)
	for told, outcome := range outcomes() {
		m.outcomes[told] = []metric.AddOption{metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", outcome)))}
		m.calls.Add(ctx, 0, m.outcomes[told]...)
	}
	for _, cause := range []error{verify.ErrRevoked, verify.ErrExpired} {
		set := attribute.NewSet(attribute.String("reason", refuse(ctx, cause).reason))
		m.reasons[cause] = []metric.AddOption{metric.WithAttributeSet(set)}
		m.ended.Add(ctx, 0, m.reasons[cause]...)
	}
	return m, nil
}

// call counts a decision by what Options.Observe is told of it.
func (m *guardMeter) call(ctx context.Context, told string) {
	m.calls.Add(ctx, 1, m.outcomes[told]...)
}

// streams counts those that are open: by 1 when one is let in, by -1 when it is over.
func (m *guardMeter) streams(ctx context.Context, by int64) { m.open.Add(ctx, by) }

// streamEnded counts a stream that was ended.
func (m *guardMeter) streamEnded(cause error) {
	m.ended.Add(context.Background(), 1, m.reasons[cause]...)
}

// feedMeter measures a feed. All but delay is asked for when somebody reads it.
type feedMeter struct {
	meter           metric.Meter
	age, lag        metric.Float64ObservableGauge
	live, ready     metric.Int64ObservableGauge
	applied, breaks metric.Int64ObservableCounter
	delay           metric.Float64Histogram
	issuer          metric.MeasurementOption // tells the feeds of one process apart
}

func newFeedMeter(p metric.MeterProvider, issuer string) (*feedMeter, error) {
	meter := meterOf(p)
	m := &feedMeter{meter: meter, issuer: metric.WithAttributeSet(attribute.NewSet(attribute.String("issuer", issuer)))}
	var all [7]error
	m.age, all[0] = meter.Float64ObservableGauge("authsvc.guard.feed.age", metric.WithUnit("s"),
		metric.WithDescription("How old the feed's knowledge is; absent before there is any."))
	m.lag, all[1] = meter.Float64ObservableGauge("authsvc.guard.feed.lag", metric.WithUnit("s"),
		metric.WithDescription("How old authsvc's own knowledge was at its last heartbeat, by its word; absent before the first."))
	m.live, all[2] = meter.Int64ObservableGauge("authsvc.guard.feed.live", metric.WithUnit("{revocation}"),
		metric.WithDescription("Revocations in memory."))
	m.ready, all[3] = meter.Int64ObservableGauge("authsvc.guard.feed.ready",
		metric.WithDescription("1 while the feed judges tokens, 0 while it does not."))
	m.applied, all[4] = meter.Int64ObservableCounter("authsvc.guard.feed.applied", metric.WithUnit("{revocation}"),
		metric.WithDescription("Revocations that were applied, repeated ones included."))
	m.breaks, all[5] = meter.Int64ObservableCounter("authsvc.guard.feed.breaks", metric.WithUnit("{break}"),
		metric.WithDescription("Times that the feed broke or could not be reached."))
	m.delay, all[6] = meter.Float64Histogram("authsvc.guard.feed.delay", metric.WithUnit("s"),
		metric.WithDescription("From a revocation's commit to its application here, one value for each change."),
		metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60))
	return m, errors.Join(all[:]...)
}

// delayed takes how long a change was on its way.
func (m *feedMeter) delayed(by time.Duration) {
	m.delay.Record(context.Background(), by.Seconds(), m.issuer)
}

// register lets the feed be asked, until what it gives is called. That it fails is no reason to know of no revocations.
func (m *feedMeter) register(ctx context.Context, f *Feed) (unregister func()) {
	r, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := f.Status()
		if f.date.Load() != neverDated {
			o.ObserveFloat64(m.age, s.Age.Seconds(), m.issuer)
			o.ObserveFloat64(m.lag, time.Duration(f.lag.Load()).Seconds(), m.issuer)
		}
		ready := int64(0)
		if s.Ready {
			ready = 1
		}
		o.ObserveInt64(m.ready, ready, m.issuer)
		o.ObserveInt64(m.live, int64(s.Live), m.issuer)
		o.ObserveInt64(m.applied, int64(s.Applied), m.issuer)
		o.ObserveInt64(m.breaks, int64(f.breaks.Load()), m.issuer)
		return nil
	}, m.age, m.lag, m.live, m.ready, m.applied, m.breaks)
	if err != nil {
		f.o.Logger.WarnContext(ctx, "the trust feed is not measured", "error", err)
		return func() {}
	}
	return func() { _ = r.Unregister() } // it fails only where it is done already
}

// delays measures how long revocations take to come, by the feed's own clock: a heartbeat tells what the server's said at a
// moment that ours knows too, so it makes no difference how far the two are apart.
type delays struct {
	known  bool
	ahead  int64 // the server's time of day less the feed's time passed, in nanoseconds, by the last heartbeat
	oldest int64 // commit of the change whose parts are coming, Unix nanoseconds; 0 where none was told
}

// beat takes a heartbeat's time of day, of the moment at which the feed's clock said at. That was when the call was on its way for
// no time at all, so what is measured is too long by the call's way to the server, not too short.
func (d *delays) beat(server time.Time, at time.Duration) {
	d.known, d.ahead = true, server.UnixNano()-int64(at)
}

// part takes a part of a change, which was applied at a time of the feed's clock. It gives a delay with the last part, if a
// commit was told in any, and a heartbeat came before it.
func (d *delays) part(m *authsvcv1.TrustDelta, applied time.Duration) (time.Duration, bool) {
	if t := m.GetCommitTime(); t.IsValid() && t.GetSeconds() > 0 && t.GetSeconds() < serverTimeMost {
		if at := t.AsTime().UnixNano(); d.oldest == 0 || at < d.oldest {
			d.oldest = at
		}
	}
	if m.GetMore() {
		return 0, false
	}
	oldest := d.oldest
	d.oldest = 0
	return max(0, applied-time.Duration(oldest-d.ahead)), d.known && oldest != 0
}
