package app

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/attribute"
	otelprom "go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/metric"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/server/extauthz"
)

// metrics counts what the core does, by outcome. Every label value comes from a closed list.
type metrics struct {
	provider *sdkmetric.MeterProvider
	handler  http.Handler

	logins, refreshes, revocations, introspections, proxies, limits, reloads, redisCalls, panics metric.Int64Counter
	outcomes                                                                                     map[string]metric.MeasurementOption // of introspections: made once, since they are the hot path
	refused                                                                                      atomic.Bool                         // the configuration that was last read
	answers                                                                                      map[string]metric.MeasurementOption // to proxies, for the same reason
}

func newMetrics(also ...sdkmetric.Option) (*metrics, error) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	exporter, err := otelprom.New(otelprom.WithRegisterer(registry), otelprom.WithoutScopeInfo(), otelprom.WithoutTargetInfo())
	if err != nil {
		return nil, err
	}
	m := &metrics{provider: sdkmetric.NewMeterProvider(append(also, sdkmetric.WithReader(exporter))...),
		handler: promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), outcomes: map[string]metric.MeasurementOption{},
		answers: map[string]metric.MeasurementOption{"": outcomeOf("ok")}}
	meter := m.provider.Meter("github.com/authsvc/authsvc")
	for _, c := range []struct {
		into *metric.Int64Counter
		name string
		help string
	}{
		{&m.logins, "authsvc.logins", "Logins, by outcome: ok, or why not; invalid_credentials is a failed one, rate_limited a throttled one, overloaded one that found the hashing queue full."},
		{&m.refreshes, "authsvc.refreshes", "Refreshes, by outcome; refresh_reused is theft, refresh_superseded a late duplicate."},
		{&m.revocations, "authsvc.revocations", "Calls of Revoke by token holders, by kind of token; authsvc.revocation.entries counts whatever was revoked."},
		{&m.introspections, "authsvc.introspections", "Introspected tokens, by outcome."},
		{&m.proxies, "authsvc.forward_auth", "Requests that a reverse proxy asked about, by outcome: ok, or why not; misconfigured is a proxy's configuration that is not understood, undecided a replica that could not judge."},
		{&m.limits, "authsvc.login.limits", "Decisions about password attempts, by who decided: shared, the counters of all replicas, or process, this one's alone; and by what refused: account, network (IPv4 /24, IPv6 /64), site (IPv6 /48), total (all failures), device (a known one), devices (all known ones of an account), or none."},
		{&m.reloads, "authsvc.config.reloads", "Times that the configuration was read again, by outcome: ok, restart_needed where some of what changed needs one, refused where something was wrong and nothing changed."},
		{&m.panics, "authsvc.panics", "Handlers that panicked."},
		{&m.redisCalls, "authsvc.redis.calls", "Calls of Redis, by outcome: answered, failed (late, or by an error), or away: not made, since one before had failed."},
	} {
		if *c.into, err = meter.Int64Counter(c.name, metric.WithDescription(c.help)); err != nil {
			return nil, err
		}
	}
	for _, o := range []string{"active", "inactive"} {
		m.outcomes[o] = metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", o)))
	}
	for _, reason := range []string{guard.ReasonTokenInvalid, guard.ReasonTokenExpired, guard.ReasonTokenRevoked, guard.ReasonScopeInsufficient,
		guard.ReasonPermissionDenied, guard.ReasonReplicaStale, extauthz.Misconfigured, extauthz.Undecided} {
		m.answers[reason] = outcomeOf(strings.ToLower(reason))
	}
	m.begin()
	return m, nil
}

// begin shows at zero what alerts are made of, since a rate cannot be told from a counter's first value.
func (m *metrics) begin() {
	ctx := context.Background()
	for _, c := range []struct {
		counter metric.Int64Counter
		reasons []fault.Reason
	}{
		{m.logins, []fault.Reason{fault.InvalidCredentials, fault.RateLimited, fault.Overloaded}},
		{m.refreshes, []fault.Reason{fault.RefreshReused, fault.RefreshSuperseded}},
	} {
		c.counter.Add(ctx, 0, outcomeOf("ok"))
		for _, r := range c.reasons {
			c.counter.Add(ctx, 0, outcomeOf(strings.ToLower(string(r))))
		}
	}
	for _, o := range m.outcomes {
		m.introspections.Add(ctx, 0, o)
	}
	for _, o := range m.answers {
		m.proxies.Add(ctx, 0, o)
	}
	for _, by := range []string{limit.ByShared, limit.ByProcess} {
		for _, kind := range append(limit.Kinds(), "") {
			m.limits.Add(ctx, 0, decisionOf(limit.Decision{By: by, Refused: kind}))
		}
	}
	for _, o := range []string{"ok", "restart_needed", "refused"} {
		m.reloads.Add(ctx, 0, outcomeOf(o))
	}
	m.panics.Add(ctx, 0)
}

func outcomeOf(v string) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(attribute.String("outcome", v)))
}

// Login counts one.
func (m *metrics) Login(outcome string) { m.logins.Add(context.Background(), 1, outcomeOf(outcome)) }

// Refresh counts one.
func (m *metrics) Refresh(outcome string) {
	m.refreshes.Add(context.Background(), 1, outcomeOf(outcome))
}

// Revoke counts one.
func (m *metrics) Revoke(kind string) {
	m.revocations.Add(context.Background(), 1, metric.WithAttributeSet(attribute.NewSet(attribute.String("kind", kind))))
}

// Introspect counts n tokens.
func (m *metrics) Introspect(outcome string, n int) {
	m.introspections.Add(context.Background(), int64(n), m.outcomes[outcome])
}

// proxied counts an answer to a reverse proxy.
func (m *metrics) proxied(outcome string) {
	answer := m.answers[outcome]
	if answer == nil { // a reason that guard has beside those of newMetrics
		answer = outcomeOf("other")
	}
	m.proxies.Add(context.Background(), 1, answer)
}

func decisionOf(d limit.Decision) metric.MeasurementOption {
	if d.Refused == "" {
		d.Refused = "none"
	}
	return metric.WithAttributeSet(attribute.NewSet(attribute.String("by", d.By), attribute.String("refused", d.Refused)))
}

// redisCalled counts a call of Redis.
func (m *metrics) redisCalled(outcome string) {
	m.redisCalls.Add(context.Background(), 1, outcomeOf(outcome))
}

// decided counts a decision of the throttle.
func (m *metrics) decided(d limit.Decision) { m.limits.Add(context.Background(), 1, decisionOf(d)) }

func (m *metrics) reloaded(outcome string) {
	m.refused.Store(outcome == "refused")
	m.reloads.Add(context.Background(), 1, outcomeOf(outcome))
}

func (m *metrics) panicked() { m.panics.Add(context.Background(), 1) }

// gauge is a figure that is read when somebody looks.
type gauge struct {
	name, unit, help string
	read             func() float64
}

// observe shows gauges, and counters that are kept elsewhere.
func (m *metrics) observe(gauges, counters []gauge) error {
	meter := m.provider.Meter("github.com/authsvc/authsvc")
	for _, g := range gauges {
		_, err := meter.Float64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.help), metric.WithFloat64Callback(g.look))
		if err != nil {
			return err
		}
	}
	for _, g := range counters {
		_, err := meter.Float64ObservableCounter(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.help), metric.WithFloat64Callback(g.look))
		if err != nil {
			return err
		}
	}
	return nil
}

// parted is a gauge with one series for each part; the values of its label come from a closed list.
type parted struct {
	name, unit, help, label string
	read                    func(context.Context) map[string]float64
}

// observeParts shows gauges that have parts.
func (m *metrics) observeParts(gauges ...parted) error {
	meter := m.provider.Meter("github.com/authsvc/authsvc")
	for _, g := range gauges {
		_, err := meter.Float64ObservableGauge(g.name, metric.WithUnit(g.unit), metric.WithDescription(g.help),
			metric.WithFloat64Callback(func(ctx context.Context, o metric.Float64Observer) error {
				for part, v := range g.read(ctx) {
					o.Observe(v, metric.WithAttributeSet(attribute.NewSet(attribute.String(g.label, part))))
				}
				return nil
			}))
		if err != nil {
			return err
		}
	}
	return nil
}

func (g gauge) look(_ context.Context, o metric.Float64Observer) error {
	o.Observe(g.read())
	return nil
}
