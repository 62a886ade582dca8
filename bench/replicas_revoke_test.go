package bench

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/store/pgtest"
)

// The load of the fan-out over replicas: revocations and refreshes a second, the verifiers at each of B and C.
const (
	spreadRate     = 50
	spreadLoad     = 100
	spreadFor      = 8 * time.Second
	spreadMembers  = 25
	spreadTokens   = int(spreadFor/time.Second)*spreadRate + 1
	looksAtLag     = 50 * time.Millisecond
	withNotify     = "with NOTIFY alone"
	withRedis      = "with Redis alone"
	withoutHints   = "without hints"
	refreshedByOne = 8 // sessions, each of them by turns at the three
)

// BenchmarkReplicasRevoke has tokens revoked at the first of three replicas, while sessions are refreshed at all of them, and looks
// at verifiers that follow the other two. Hints come by Redis alone, by NOTIFY alone, and not at all: a listener for NOTIFY is taken
// away by ending its connection where the role may make no new one, and Redis by its end.
func BenchmarkReplicasRevoke(b *testing.B) {
	pg, r := database(b), counters(b)
	create(b, pg, "authsvc")
	create(b, pg, "bare")
	f := replicate(b, 3, settle(b, roleURL("authsvc", "", address(pg)), r.Address()))
	sources := f[0].watchers(b, 2)
	for i := range sources {
		sources[i].Target = f[1+i].rpc
	}
	s := f[0].feed(b, sources)
	s.rate = spreadRate
	s.watching = func() (sum int) {
		for _, in := range f[1:] {
			sum += int(in.metric(b, "authsvc_feed_watchers"))
		}
		return sum
	}
	h := newHolders(b, f[0], refreshedByOne)
	tokens := f[0].many(b, 3*spreadTokens)
	bare := f.spread(b, bareSpread(b, pg), make([]string, 0), tokens[:spreadTokens], nil)
	listening := func(on bool) {
		most := 0
		if on {
			most = -1
		}
		query(b, pg, "postgres", fmt.Sprintf(`ALTER ROLE %s CONNECTION LIMIT %d`, role, most))
		query(b, pg, "postgres", `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%-listen'`)
	}
	for i, mode := range []string{withRedis, withNotify, withoutHints} {
		switch mode {
		case withRedis:
			listening(false)
		case withNotify:
			listening(true)
			if err := r.Kill(); err != nil {
				b.Fatal(err)
			}
			b.Log("the listeners are back after", waitFor(b, func() bool {
				return query(b, pg, "postgres", `SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE '%-listen'`) == "3"
			}))
		default:
			listening(false)
		}
		heard := f[1].metric(b, "authsvc_revocation_hints_total")
		var lags []time.Duration
		got := f.spread(b, s, h.tokens, tokens[i*spreadTokens:(i+1)*spreadTokens], &lags)
		heard = f[1].metric(b, "authsvc_revocation_hints_total") - heard
		if (heard == 0) != (mode == withoutHints) {
			b.Errorf("%s: %v hints came", mode, heard)
		}
		reportSpread(b, mode, got, bare, lags)
		b.Logf("%s: %v hints at B; A's announcements by Redis: %v answered, %v failed, %v not made", mode, heard, f[0].redisCalls(b, "answered"),
			f[0].redisCalls(b, "failed"), f[0].redisCalls(b, "away"))
	}
}

// redisCalls are those by outcome, since the start.
func (in *installation) redisCalls(b testing.TB, outcome string) float64 {
	b.Helper()
	return in.metric(b, "authsvc_redis_calls_total", `"`+outcome+`"`)
}

func reportSpread(b *testing.B, mode string, got, bare, lags []time.Duration) {
	b.Helper()
	bound := 100 * time.Millisecond
	if mode == withoutHints {
		bound = 600 * time.Millisecond
	}
	p50, p99, limit := percentile(got, 0.5), percentile(got, 0.99), percentile(bare, 0.99)
	report(b, "Revoke at A answered → refused by verifiers at B and C, p99, "+mode, fmt.Sprintf("%s (p50 %s)", took(float64(p99)), took(float64(p50))),
		"bare NOTIFY + bare fan-out "+took(float64(limit)), fmt.Sprintf("%.2f ×", float64(p99)/float64(limit)), "≤ "+bound.String(), p99 <= bound)
	lag := percentile(lags, 0.99)
	report(b, "lag of B and C meanwhile, p99", took(float64(lag)), "–", "", "≤ 300 ms", lag <= 300*time.Millisecond)
}

// waitFor waits for a condition, and says how long that took.
func waitFor(b testing.TB, f func() bool) time.Duration {
	b.Helper()
	begun := time.Now()
	for !f() {
		if time.Since(begun) > 30*time.Second {
			b.Fatal("what was waited for did not come within 30 s")
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(begun)
}

// spread has the tokens revoked, refreshes the others meanwhile, and looks at the members, and at how old what B and C know is.
func (f fleet) spread(b *testing.B, s *side, refreshed, tokens []string, lags *[]time.Duration) []time.Duration {
	b.Helper()
	size := fanoutSize{processes: 2, each: spreadMembers}
	processes := s.enlist(b, size, tokens)
	ctx, stop := context.WithCancel(b.Context())
	defer stop()
	var wg sync.WaitGroup
	for i := range refreshed {
		wg.Go(func() { f.refreshing(ctx, b, &refreshed[i], i, len(refreshed)*int(time.Second)/spreadLoad) })
	}
	if lags != nil {
		wg.Go(func() {
			for ctx.Err() == nil {
				for _, in := range f[1:] {
					*lags = append(*lags, time.Duration(in.metric(b, "authsvc_revocation_lag_seconds")*float64(time.Second)))
				}
				pause(ctx, looksAtLag)
			}
		})
	}
	n, answered := s.drive(b, tokens, processes)
	stop()
	wg.Wait()
	late := s.gather(b, processes, n, answered)
	if want := sampled * size.processes * n; len(late) != want {
		b.Errorf("%s: %d of the %d that were looked for were seen", s.loop, len(late), want)
	}
	s.await(b, 0)
	return late
}

// refreshing refreshes one session at all replicas by turns, every so many nanoseconds.
func (f fleet) refreshing(ctx context.Context, b *testing.B, token *string, at, every int) {
	for ; ctx.Err() == nil; at++ {
		out, err := f[at%len(f)].auth.Refresh(context.WithoutCancel(ctx), &authsvcv1.RefreshRequest{RefreshToken: *token, ClientId: app})
		if err != nil {
			b.Error(err)
			return
		}
		*token = out.GetRefreshToken()
		pause(ctx, time.Duration(every))
	}
}

func pause(ctx context.Context, long time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(long):
	}
}

// bareSpread is the least that any program must do: three servers of the bare fan-out that tell each other by NOTIFY.
func bareSpread(b *testing.B, pg *pgtest.Server) *side {
	b.Helper()
	query(b, pg, "bare", `CREATE TABLE told (position bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, entry bytea NOT NULL); ALTER TABLE told OWNER TO `+role)
	head := proto.Size(delta(0))
	var all []bareServer
	for range 3 {
		all = append(all, newBareServer(b, strconv.Itoa(head), roleURL("bare", rolesWord, address(pg))))
	}
	return &side{
		process: all[0].process, rate: spreadRate, loop: "listeners",
		crew: func(client int) crew { return crew{Source: source{Target: all[1+client%2].target}, Head: head} },
		revoke: func(ctx context.Context, _ []string, index int) error {
			_, err := all[0].call(ctx, "Tell", told(index, entrySize))
			return err
		},
		watching: func() int { return all[1].number(b, "Listeners") + all[2].number(b, "Listeners") },
	}
}
