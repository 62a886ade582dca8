package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/store/pgtest"
)

// patients use the fleet through failovers: some refresh, each its own session at its own replica, with the same token until it has
// an answer; one signs in and out again at all of them by turns.
type patients struct {
	b        *testing.B
	f        fleet
	sessions []string
	tokens   []string
	acked    []atomic.Int64 // refreshes that were answered, by session

	mu      sync.Mutex
	ended   []string // sessions whose sign-out was answered
	failed  atomic.Int64
	logouts atomic.Int64
	good    []atomic.Int64 // when a refresh last was answered whose call began after since, by replica; by CLOCK_MONOTONIC
	since   atomic.Int64
}

const (
	patientsEach = 3 // that refresh at one replica
	restBetween  = 20 * time.Millisecond
	giveUpAfter  = 2 * time.Second
)

func newPatients(b *testing.B, f fleet) *patients {
	b.Helper()
	n := patientsEach * len(f)
	p := &patients{b: b, f: f, acked: make([]atomic.Int64, n), good: make([]atomic.Int64, len(f))}
	for range n {
		in := f[0].login(b)
		p.sessions, p.tokens = append(p.sessions, in.GetSessionId()), append(p.tokens, in.GetRefreshToken())
	}
	return p
}

func (p *patients) run(ctx context.Context) {
	var wg sync.WaitGroup
	for i := range p.tokens {
		wg.Go(func() { p.refreshing(ctx, i) })
	}
	wg.Go(func() { p.signing(ctx) })
	wg.Wait()
}

// call makes a call with a deadline, and counts what came of it; over says that the one who called must not go on.
func (p *patients) call(ctx context.Context, do func(context.Context) error) (ok, over bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpAfter)
	defer cancel()
	err := do(ctx)
	switch status.Code(err) {
	case codes.OK:
		return true, false
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted:
		p.failed.Add(1)
		return false, false
	default:
		p.logouts.Add(1)
		p.b.Errorf("somebody honest got %v", err)
		return false, true
	}
}

func (p *patients) refreshing(ctx context.Context, i int) {
	at := i % len(p.f)
	for ctx.Err() == nil {
		begun := monotonic()
		ok, over := p.call(ctx, func(ctx context.Context) error {
			out, err := p.f[at].auth.Refresh(ctx, &authsvcv1.RefreshRequest{RefreshToken: p.tokens[i], ClientId: app})
			if err == nil {
				p.tokens[i] = out.GetRefreshToken()
			}
			return err
		})
		if over {
			return
		}
		if ok {
			p.acked[i].Add(1)
			if begun >= p.since.Load() {
				p.good[at].CompareAndSwap(0, monotonic())
			}
		}
		pause(ctx, restBetween)
	}
}

func (p *patients) signing(ctx context.Context) {
	for n := 0; ctx.Err() == nil; n++ {
		in := p.f[n%len(p.f)].auth
		var made *authsvcv1.LoginResponse
		ok, over := p.call(ctx, func(ctx context.Context) (err error) {
			made, err = in.Login(ctx, &authsvcv1.LoginRequest{Username: member(n), Password: password, ClientId: app})
			return err
		})
		for out := !ok; !out && !over && ctx.Err() == nil; pause(ctx, restBetween) {
			out, over = p.call(ctx, func(ctx context.Context) error {
				_, err := in.Revoke(ctx, &authsvcv1.RevokeRequest{Token: made.GetRefreshToken()})
				return err
			})
			if out {
				p.mu.Lock()
				p.ended = append(p.ended, made.GetSessionId())
				p.mu.Unlock()
			}
		}
		if over {
			return
		}
		pause(ctx, 5*restBetween)
	}
}

// mark forgets what was good before now.
func (p *patients) mark() {
	p.since.Store(monotonic())
	for i := range p.good {
		p.good[i].Store(0)
	}
}

// back gives how long after the moment each replica had answered a refresh.
func (p *patients) back(moment int64) time.Duration {
	p.b.Helper()
	waitFor(p.b, func() bool {
		return !slices.ContainsFunc([]int{0, 1, 2}, func(i int) bool { return p.good[i].Load() == 0 })
	})
	var last int64
	for i := range p.good {
		last = max(last, p.good[i].Load())
	}
	return max(0, time.Duration(last-moment))
}

// promised is what was answered so far: the least generation of each session, and who was signed out.
func (p *patients) promised() (heads map[string]int64, ended []string) {
	heads = map[string]int64{}
	for i, session := range p.sessions {
		heads[session] = 1 + p.acked[i].Load()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return heads, slices.Clone(p.ended)
}

// lost counts what a database does not have of what was answered.
func (p *patients) lost(pg *pgtest.Server, heads map[string]int64, ended []string) (n, of int) {
	p.b.Helper()
	for line := range strings.Lines(query(p.b, pg, "authsvc", `SELECT id || ' ' || head FROM sessions WHERE id IN ('`+strings.Join(p.sessions, `','`)+`')`)) {
		id, head, _ := strings.Cut(strings.TrimSpace(line), " ")
		of += int(heads[id] - 1)
		n += int(max(0, heads[id]-must(strconv.ParseInt(head, 10, 64))))
		delete(heads, id)
	}
	there := must(strconv.Atoi(query(p.b, pg, "authsvc", `SELECT count(*) FROM sessions WHERE ended_at IS NOT NULL AND id IN ('`+strings.Join(ended, `','`)+`')`)))
	return n + len(heads) + len(ended) - there, of + len(ended)
}

// BenchmarkFailover kills PostgreSQL, whose standby takes over, and Redis, which starts again, while the fleet is used.
func BenchmarkFailover(b *testing.B) {
	times := 3
	if soaking {
		times = 20
	}
	primary, r := database(b, "wal_retrieve_retry_interval=200ms"), counters(b)
	create(b, primary, "authsvc")
	// Standbys come and go at ports of their own: the two addresses in the configuration lead to whoever there is.
	slots := [2]*tap{newTap(b, address(primary), nil), newTap(b, address(primary), nil)}
	standby := standBy(b, primary)
	slots[1].lead(address(standby))
	f := replicate(b, 3, settle(b, roleURL("authsvc", "", slots[0].address, slots[1].address), r.Address()))
	p := newPatients(b, f)
	ctx, stop := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { p.run(ctx) })
	defer func() { stop(); wg.Wait() }()

	var took []time.Duration
	var lost, writes int
	for n := range times {
		pause(ctx, time.Second)
		if err := primary.Kill(); err != nil {
			b.Fatal(err)
		}
		p.mark()
		heads, ended := p.promised()
		waitFor(b, func() bool {
			return query(b, standby, "postgres", `SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()`) == "t"
		})
		var missing int
		missing, writes = p.lost(standby, heads, ended)
		lost += missing
		if err := standby.Promote(b.Context()); err != nil {
			b.Fatal(err)
		}
		took = append(took, p.back(monotonic()))
		primary = standby
		standby = standBy(b, primary)
		slots[n%2].lead(address(standby))
	}
	name := fmt.Sprintf("PostgreSQL killed, its synchronous standby promoted, %d times: ", times)
	reportBack(b, name+"until every replica refreshes", took)
	report(b, "writes that were answered and lost thereby", fmt.Sprintf("%d of %d", lost, writes), "–", "", "0", lost == 0)

	took = nil
	failed := p.failed.Load()
	for range times {
		if err := r.Kill(); err != nil {
			b.Fatal(err)
		}
		pause(ctx, time.Second)
		if err := r.Run(b.Context()); err != nil {
			b.Fatal(err)
		}
		took = append(took, waitFor(b, func() bool {
			return !slices.ContainsFunc(f, func(in *installation) bool { return in.metric(b, "authsvc_redis_up") != 1 })
		}))
	}
	failed = p.failed.Load() - failed
	reportBack(b, fmt.Sprintf("Redis killed and started again, %d times: until every replica counts in it", times), took)
	report(b, "calls that failed meanwhile", fmt.Sprint(failed), "–", "", "0", failed == 0)
	stop()
	wg.Wait()
	heads, ended := p.promised()
	missing, writes := p.lost(primary, heads, ended)
	report(b, "people who were signed out by all of this; writes lost in the end", fmt.Sprintf("%d; %d of %d", p.logouts.Load(), missing, writes), "–", "", "0; 0",
		p.logouts.Load() == 0 && missing == 0)
}

func standBy(b *testing.B, primary *pgtest.Server) *pgtest.Server {
	b.Helper()
	s, err := primary.Standby(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = s.Close() })
	return s
}

func reportBack(b *testing.B, name string, took []time.Duration) {
	b.Helper()
	p50, most := percentile(took, 0.5), slices.Max(took)
	report(b, name, fmt.Sprintf("p50 %.2f s, max %.2f s", p50.Seconds(), most.Seconds()), "–", "", "≤ 5 s", most <= 5*time.Second)
}
