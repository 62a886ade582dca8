package bench

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkFeed has tokens revoked at the server, and verifiers in processes of their own, each with its own feed, connection and
// list, that are looked at each millisecond until they refuse; beside it the bare fan-out of the same bytes to as many listeners,
// which are looked at in the same way.
func BenchmarkFeed(b *testing.B) {
	size := fanoutOf()
	in := install(b)
	ours, bare := in.feed(b, in.watchers(b, 2)), bareFanout(b)
	tokens := in.many(b, size.rounds*calls(size.during)+calls(3*time.Second))
	take := func(n int) (some []string) {
		some, tokens = tokens[:n], tokens[n:]
		return some
	}
	prepaid := take(calls(3 * time.Second))
	ours.pay(b, prepaid)
	bare.pay(b, prepaid)

	calledBefore, revokedBefore := in.called(b), in.revoked(b)
	var o, l []fanned
	for range size.rounds {
		some := take(calls(size.during))
		o, l = append(o, ours.round(b, size, some)), append(l, bare.round(b, size, some))
	}
	revoked := in.revoked(b) - revokedBefore
	others := in.called(b) - calledBefore - revoked
	b.Logf("a revocation costs the server %s, bare %s", took(ours.base), took(bare.base))
	reportFanout(b, size, o, l, others)
}

// called counts the calls that the server has answered, but for streams of the feed; revoked those of Revoke.
func (in *installation) called(b testing.TB) int {
	b.Helper()
	return int(in.metric(b, "rpc_server_call_duration_seconds_count") -
		in.metric(b, "rpc_server_call_duration_seconds_count", "TrustService/WatchTrust"))
}

func (in *installation) revoked(b testing.TB) int {
	b.Helper()
	return int(in.metric(b, "rpc_server_call_duration_seconds_count", "AuthService/Revoke"))
}

func reportFanout(b *testing.B, size fanoutSize, ours, bare []fanned, others int) {
	b.Helper()
	of := func(all []fanned, figure func(fanned) float64) float64 {
		var v []float64
		for _, f := range all {
			v = append(v, figure(f))
		}
		return median(v)
	}
	ratio := func(figure func(fanned) float64) float64 {
		var v []float64
		rounds := ""
		for i := range ours {
			v = append(v, figure(ours[i])/figure(bare[i]))
			rounds += fmt.Sprintf(" %.0f/%.0f", figure(ours[i]), figure(bare[i]))
		}
		b.Log("rounds:", rounds)
		return median(v)
	}
	late := func(p float64) func(fanned) float64 {
		return func(f fanned) float64 { return float64(percentile(f.late, p)) }
	}
	name := fmt.Sprintf("Revoke answered → refused, at %d verifiers in %d processes, %d revocations/s", size.members(), size.processes, revocationRate)
	p50, p99 := ratio(late(0.5)), ratio(late(0.99))
	report(b, name+", p50", took(of(ours, late(0.5))), "bare fan-out "+took(of(bare, late(0.5))), fmt.Sprintf("%.2f ×", p50), "–", true)
	worst := of(ours, late(0.99))
	report(b, "the same, p99", took(worst), "bare fan-out "+took(of(bare, late(0.99))), fmt.Sprintf("%.2f ×", p99), "≤ 100 ms, ≤ 1.7 ×",
		worst <= 1e8 && p99 <= 1.7)
	report(b, "calls at the server meanwhile, other than Revoke and the streams", fmt.Sprint(others), "–", "", "0", others == 0)
	cpu := func(f fanned) float64 { return f.cpu }
	memory := func(f fanned) float64 { return f.memory }
	c, m := ratio(cpu), ratio(memory)
	report(b, "server CPU per delta per watcher", took(of(ours, cpu)), "bare stream send "+took(of(bare, cpu)), fmt.Sprintf("%.2f ×", c), "≤ 1.3 ×", c <= 1.3)
	kib := func(v float64) string { return fmt.Sprintf("%.1f KiB", v/1024) }
	report(b, "server memory per watcher", kib(of(ours, memory)), "bare stream "+kib(of(bare, memory)), fmt.Sprintf("%.2f ×", m), "≤ 1.3 ×", m <= 1.3)
	b.Logf("RSS per watcher %s, bare %s; a second of a watcher that is told nothing costs %s", kib(of(ours, func(f fanned) float64 { return f.rss })),
		kib(of(bare, func(f fanned) float64 { return f.rss })), took(of(ours, func(f fanned) float64 { return f.beat })))
}
