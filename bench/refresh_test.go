package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// holders are sessions that are refreshed, one for each caller.
type holders struct {
	in     *installation
	tokens []string
}

func newHolders(b *testing.B, in *installation, n int) *holders {
	b.Helper()
	h := &holders{in: in}
	for range n {
		h.tokens = append(h.tokens, in.login(b).GetRefreshToken())
	}
	return h
}

func (h *holders) refresh(ctx context.Context, caller int) error {
	out, err := h.in.auth.Refresh(ctx, &authsvcv1.RefreshRequest{RefreshToken: h.tokens[caller], ClientId: app})
	if err == nil {
		h.tokens[caller] = out.GetRefreshToken()
	}
	return err
}

func BenchmarkRefresh(b *testing.B) {
	in := install(b)
	h := newHolders(b, in, callers)
	request := &authsvcv1.RefreshRequest{RefreshToken: h.tokens[0], ClientId: app}
	sample, err := in.auth.Refresh(b.Context(), request)
	if err != nil {
		b.Fatal(err)
	}
	h.tokens[0] = sample.GetRefreshToken()
	sent, got := proto.Size(request), proto.Size(sample)
	signer := limit(b, "sign", strconv.Itoa(got-3))
	plain := bare(b, signer, in, sent-3)
	const n = 4000
	rotate := limit(b, "rotate", filepath.Join(b.TempDir(), "db"), strconv.Itoa(n))
	var signing []cost
	p := alternate(b, func() cost { return drive(b, in.process, callers, n, h.refresh) }, func() cost {
		s := drive(b, signer, callers, n, plain)
		signing = append(signing, s)
		return cost{CPU: s.CPU + rotate.round(b).CPU, Wall: s.Wall}
	})
	report(b, fmt.Sprintf("Refresh, CPU (%d B in, %d B out)", sent, got), took(p.ours.CPU),
		"gRPC + RS256 "+took(middle(signing).CPU)+" + SQLite rotate "+took(p.limit.CPU-middle(signing).CPU), fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.25 ×", p.cpu <= 1.25)
	report(b, "Refresh, calls/s of 16 callers", fmt.Sprintf("%.0f", 1e9/p.ours.Wall), fmt.Sprintf("gRPC + RS256 %.0f", 1e9/p.limit.Wall),
		fmt.Sprintf("%.2f ×", 1/p.wall), "≥ 0.75 ×", 1/p.wall >= 0.75)
}

func BenchmarkLogin(b *testing.B) {
	in := install(b)
	const n = 60
	logins := 0
	bareLogin := limit(b, "login", strconv.Itoa(n))
	var got int
	request := &authsvcv1.LoginRequest{Password: password, ClientId: app}
	p := alternate(b, func() cost {
		return drive(b, in.process, 1, n, func(ctx context.Context, _ int) error {
			logins++
			request.Username = member(logins)
			out, err := in.auth.Login(ctx, request)
			got = proto.Size(out)
			return err
		})
	}, func() cost { return bareLogin.round(b) })
	report(b, fmt.Sprintf("Login, CPU (%d B in, %d B out)", proto.Size(request), got), took(p.ours.CPU), "argon2id + RS256 "+took(p.limit.CPU),
		fmt.Sprintf("%.3f ×", p.cpu), "≤ 1.06 × (ADR 12)", p.cpu <= 1.06)
}

// The storm is ten times as many logins as the server can hash. Its default is one hash of 19 MiB for each core but one.
const (
	hashMemory = 19 << 20
	introRate  = 300 // introspections a second
	stormFor   = 12 * time.Second
)

func BenchmarkIntrospectUnderLoginStorm(b *testing.B) {
	in := install(b)
	tokens := in.tokens(b, warmTokens)
	var next atomic.Int64
	login := func(ctx context.Context, _ int) error {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		_, err := in.auth.Login(ctx, &authsvcv1.LoginRequest{Username: member(int(next.Add(1))), Password: password, ClientId: app})
		return err
	}
	begun := time.Now()
	const hashed = 20
	drive(b, in.process, 1, hashed, login)
	slots := slots()
	rate := int(10 * float64(slots) * hashed / time.Since(begun).Seconds())
	introspect := func(ctx context.Context) error {
		return introspected(in.auth.Introspect(in.asService(ctx), &authsvcv1.IntrospectRequest{Token: tokens[next.Add(1)%warmTokens]}))
	}
	in.stop(b)
	in.start(b)
	in.login(b)
	idle := in.rss()
	quiet, failures := pace(introRate, stormFor, introspect)
	peak := make(chan int64)
	done := make(chan struct{})
	go func() {
		var most int64
		for {
			select {
			case <-done:
				peak <- most
				return
			case <-time.After(20 * time.Millisecond):
				most = max(most, in.rss())
			}
		}
	}()
	storm := make(chan [2]int)
	go func() {
		ok, errs := pace(rate, stormFor, func(ctx context.Context) error { return login(ctx, 0) })
		for _, err := range errs {
			if c := status.Code(err); c != codes.ResourceExhausted && c != codes.Unavailable {
				b.Error(err)
			}
		}
		storm <- [2]int{len(ok), len(errs)}
	}()
	under, more := pace(introRate, stormFor, introspect)
	logins := <-storm
	close(done)
	most, bound := <-peak, idle+int64(2*slots*hashMemory+64<<20)
	for _, err := range append(failures, more...) {
		b.Error(err)
	}
	calm, stormy := percentile(quiet, 0.99), percentile(under, 0.99)
	reach := max(5*calm, 15*time.Millisecond)
	b.Logf("%d logins/s came: %d answered, %d shed", rate, logins[0], logins[1])
	report(b, fmt.Sprintf("Introspect p99 under %d logins/s (%d answered, %d shed)", rate, logins[0], logins[1]), took(float64(stormy)),
		"without them "+took(float64(calm)), fmt.Sprintf("%.1f ×", float64(stormy)/float64(calm)), "≤ 5 × or 15 ms", stormy <= reach)
	report(b, "memory in that storm", mebibytes(most), "idle "+mebibytes(idle), "+ "+mebibytes(most-idle),
		"≤ idle + 2 × slots × 19 MiB + 64 MiB", most <= bound)
}

func BenchmarkDatabaseGrowth(b *testing.B) {
	in := install(b)
	h := newHolders(b, in, 1)
	size := func(refreshes int) int64 {
		for range refreshes {
			if err := h.refresh(b.Context(), 0); err != nil {
				b.Fatal(err)
			}
		}
		in.stop(b) // which moves the log into the file
		defer in.start(b)
		return must(os.Stat(in.path("authsvc.db"))).Size()
	}
	one := size(1)
	thousand := size(999)
	report(b, "database file after 1,000 refreshes of one session", fmt.Sprintf("%d B", thousand), fmt.Sprintf("after one %d B", one),
		fmt.Sprintf("+ %d B", thousand-one), "+ ≤ 4096 B", thousand-one <= 4096)
}
