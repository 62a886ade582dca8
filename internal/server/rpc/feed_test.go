package rpc_test

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/server/rpc"
	"github.com/authsvc/authsvc/verify"
)

// paper is a revocation log that a test writes, and its key set.
type paper struct {
	mu     sync.Mutex
	view   revocation.View
	keySet string
	fresh  bool // it is read whenever somebody looks
	busy   bool // each look finds one more entry
	panics bool // in Reach
}

func (p *paper) View() revocation.View {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fresh {
		p.view.Known = time.Now()
	}
	if p.busy {
		p.grow(1)
	}
	return p.view
}

func (p *paper) Reach(context.Context, revocation.Cursor) error {
	if p.panics {
		panic("canary")
	}
	return nil
}

func (p *paper) keys() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []byte(p.keySet)
}

// change writes and gives the cursor that leads there.
func (p *paper) change(do func()) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	do()
	return p.view.Cursor.String()
}

// add appends n entries.
func (p *paper) add(n int) string { return p.change(func() { p.grow(n) }) }

func (p *paper) grow(n int) {
	for range n {
		p.view.Cursor.Row++
		e := revocation.Live{Row: p.view.Cursor.Row, ExpireTime: 4e9, NotBefore: 2e9, CommitTime: 1e15 + p.view.Cursor.Row}
		binary.BigEndian.PutUint64(e.Target[:], uint64(e.Row))
		p.view.Live = append(p.view.Live, e) // nobody sees what is behind the length of an earlier view
	}
}

// written gives a door whose feed is from paper, with a quick hub.
func written(t *testing.T, change func(*rpc.HubOptions)) (*served, *paper) {
	t.Helper()
	p := &paper{view: revocation.View{Cursor: revocation.Cursor{Epoch: [16]byte{1}}}, keySet: "the first keys", fresh: true}
	s := serve(t, func(o *rpc.Options) {
		ho := rpc.HubOptions{Log: p, Issuer: "https://auth.example", KeySet: p.keys, Every: time.Millisecond, Beat: 50 * time.Millisecond}
		if change != nil {
			change(&ho)
		}
		o.Feed = must(rpc.NewHub(ho))(t)
	})
	return s.run(t), p
}

func (s *served) seat(t *testing.T, cursor string) *seat {
	t.Helper()
	return s.watch(with(t, basicOf("rs", s.secret)), t, cursor)
}

func TestWhatIsLargerThanAMessageComesInParts(t *testing.T) {
	t.Parallel()
	s, p := written(t, nil)
	p.add(25_000)
	w := s.seat(t, "")
	w.until(t, w.begun)
	if w.parts != 3 || len(w.targets) != 25_000 {
		t.Errorf("a snapshot of %d entries in %d parts", len(w.targets), w.parts)
	}
	at := p.add(25_000)
	w.until(t, func() bool { return w.cursor == at && w.part == 0 })
	want := map[time.Time]int{time.UnixMicro(1e15 + 25_001).UTC(): 1, time.UnixMicro(1e15 + 35_001).UTC(): 1, time.UnixMicro(1e15 + 45_001).UTC(): 1}
	if diff := cmp.Diff(want, w.commits); diff != "" {
		t.Errorf("the oldest commit of each part (-want +got):\n%s", diff)
	}
	if w.deltas < 3 || len(w.targets) != 50_000 {
		t.Errorf("then %d entries in %d deltas", len(w.targets), w.deltas)
	}
	for target, n := range w.targets {
		if n != 1 {
			t.Fatalf("entry %x came %d times", target, n)
		}
	}
}

// TestNothingIsLostBetweenTheSnapshotAndTheFirstDelta has a log that grows whenever somebody looks, so that the hub is never
// where a snapshot leads.
func TestNothingIsLostBetweenTheSnapshotAndTheFirstDelta(t *testing.T) {
	t.Parallel()
	s, p := written(t, nil)
	p.change(func() { p.busy = true })
	seats := make([]*seat, 10)
	for i := range seats {
		if seats[i] = s.seat(t, ""); i%2 == 1 {
			seats[i] = s.seat(t, revocation.Cursor{Epoch: [16]byte{1}}.String())
		}
		seats[i].until(t, seats[i].begun)
	}
	at := p.change(func() { p.busy = false })
	for _, w := range seats {
		w.until(t, func() bool { return w.cursor == at })
		if want := p.View().Cursor.Row; len(w.targets) != int(want) {
			t.Errorf("one who came in the middle has %d entries of %d", len(w.targets), want)
		}
	}
}

func TestNoMessageIsOver512KiB(t *testing.T) {
	t.Parallel()
	s, p := written(t, nil)
	p.change(func() { // the longest entries there are
		for i := range 20_001 {
			e := revocation.Live{Row: int64(i + 1), ExpireTime: -1, NotBefore: -1}
			binary.BigEndian.PutUint64(e.Target[:], uint64(e.Row))
			p.view.Live = append(p.view.Live, e)
		}
		p.view.Cursor.Row, p.keySet = 20_001, strings.Repeat("k", 64<<10)
	})
	stream := must(authsvcv1.NewTrustServiceClient(s.conn).WatchTrust(with(t, basicOf("rs", s.secret)), &authsvcv1.WatchTrustRequest{},
		grpc.MaxCallRecvMsgSize(512<<10)))(t)
	for n := 0; n < 20_001; {
		m, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		n += len(m.GetSnapshot().GetRevocations())
	}
}

func TestAllWhoWatchShareOneSnapshotAndOneDelta(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // a snapshot is shared for a second, of the bubble's clock
		s, p := written(t, nil)
		p.add(10)
		seats := make([]*seat, 30)
		for i := range seats {
			seats[i] = s.seat(t, "")
		}
		for _, w := range seats {
			w.until(t, w.begun)
		}
		at := p.add(1)
		for _, w := range seats {
			if w.until(t, func() bool { return w.cursor == at }); w.deltas != 1 || len(w.targets) != 11 {
				t.Errorf("%d deltas brought %d entries", w.deltas, len(w.targets))
			}
		}
		if got := s.feed.Stats(); got.Deltas != 1 || got.Snapshots > 2 || got.Watchers != len(seats) || got.Cut != 0 {
			t.Errorf("the hub counts %+v", got)
		}
	})
}

func TestAnotherKeySetAndAnotherHistoryComeAsDeltas(t *testing.T) {
	t.Parallel()
	s, p := written(t, nil)
	p.add(3)
	w := s.seat(t, "")
	w.until(t, w.begun)
	first := w.cursor
	p.change(func() { p.keySet = "the second keys" })
	w.until(t, func() bool { return w.deltas == 1 })
	if w.jwks != "the second keys" || w.cursor != first || len(w.targets) != 3 {
		t.Errorf("other keys came as %q at %s, with %d entries", w.jwks, w.cursor, len(w.targets))
	}
	other := verify.Target{1, 2, 3}
	at := p.change(func() {
		p.view.Cursor = revocation.Cursor{Epoch: [16]byte{2}, Row: 1}
		p.view.Live = append([]revocation.Live{{}, {}, {}}, revocation.Live{Row: 1, Target: other})
	})
	w.until(t, func() bool { return w.cursor == at })
	if w.targets[other] != 1 || w.targets[verify.Target{}] != 3 || w.jwks != "the second keys" {
		t.Errorf("another history brought %v, keys %q", w.targets, w.jwks)
	}
	late := s.seat(t, first)
	late.until(t, late.begun)
	if late.cursor != at || late.targets[other] != 1 || late.jwks != "the second keys" {
		t.Errorf("who comes with the old history's cursor gets %v at %s", late.targets, late.cursor)
	}
}

// TestASlowWatcherIsCutOffAlone has one that does not read, on a connection of its own, and one that does.
func TestASlowWatcherIsCutOffAlone(t *testing.T) {
	t.Parallel()
	s, p := written(t, nil)
	ctx := with(t, basicOf("rs", s.secret))
	narrow := s.dial(t, grpc.WithStaticStreamWindowSize(64<<10))
	slow, quick := watchOn(ctx, t, narrow, ""), s.seat(t, "")
	slow.until(t, slow.begun)
	quick.until(t, quick.begun)
	rounds := 0
	for ; s.feed.Stats().Cut == 0; rounds++ {
		if rounds == 2000 {
			t.Fatal("a watcher that reads nothing is never cut off")
		}
		at := p.add(300)
		quick.until(t, func() bool { return quick.cursor == at })
	}
	await(t, "its stream ends at the server", func() bool { return s.feed.Stats().Watchers == 1 })
	at := p.add(1)
	quick.until(t, func() bool { return quick.cursor == at })
	if got := s.feed.Stats(); got.Cut != 1 || len(quick.targets) != 300*rounds+1 {
		t.Errorf("the hub counts %+v; the quick one has %d entries of %d", got, len(quick.targets), 300*rounds+1)
	}
	if code, reason := slow.ends(t); code != codes.Unavailable || reason != "FEED_LAGGING" {
		t.Errorf("the slow one ends with %v %s", code, reason)
	}
	back := watchOn(ctx, t, s.conn, slow.cursor)
	back.targets = slow.targets
	back.until(t, func() bool { return back.begun() && back.cursor == at })
	if len(back.targets) != 300*rounds+1 {
		t.Errorf("back again, it has %d entries of %d", len(back.targets), 300*rounds+1)
	}
	if log := s.log.String(); strings.Contains(log, "call failed") {
		t.Errorf("that is logged as a failure: %s", log)
	}
}

func TestADrainEndsAllStreamsAndTakesNoNewOnes(t *testing.T) {
	t.Parallel()
	s, _ := written(t, nil)
	seats := make([]*seat, 5)
	for i := range seats {
		seats[i] = s.seat(t, "")
		seats[i].until(t, seats[i].begun)
	}
	s.feed.Drain()
	for _, w := range append(seats, s.seat(t, "")) {
		if code, reason := w.ends(t); code != codes.Unavailable || reason != "DRAINING" {
			t.Errorf("ended with %v %s", code, reason)
		}
	}
	await(t, "nobody watches", func() bool { return s.feed.Stats().Watchers == 0 })
	if log := s.log.String(); strings.Contains(log, "call failed") {
		t.Errorf("that is logged as a failure: %s", log)
	}
	if _, err := authsvcv1.NewTrustServiceClient(s.conn).GetKeySet(t.Context(), &authsvcv1.GetKeySetRequest{}); err != nil {
		t.Errorf("other calls go on: %v", err)
	}
}

func TestR58WatchersAreCounted(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		limit func(*rpc.HubOptions)
	}{
		{"of one client", func(o *rpc.HubOptions) { o.MaxPerClient = 2 }},
		{"in all", func(o *rpc.HubOptions) { o.MaxWatchers = 2 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, _ := written(t, tt.limit)
			first, second := s.seat(t, ""), s.seat(t, "")
			first.until(t, first.begun)
			second.until(t, second.begun)
			if code, reason := s.seat(t, "").ends(t); code != codes.ResourceExhausted || reason != "OVERLOADED" {
				t.Errorf("one too many gets %v %s", code, reason)
			}
			first.stop()
			await(t, "the first has left", func() bool { return s.feed.Stats().Watchers == 1 })
			third := s.seat(t, "")
			third.until(t, third.begun)
		})
	}
}

func TestAFeedThatKnowsNothingSaysSo(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		lacks  func(*paper)
		reason string
	}{
		{"the log was never read", func(p *paper) { p.fresh, p.view.Known = false, time.Time{} }, "REPLICA_STALE"},
		{"there are no keys", func(p *paper) { p.keySet = "" }, "SIGNING_UNAVAILABLE"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, p := written(t, nil)
			p.change(func() { tt.lacks(p) })
			if code, reason := s.seat(t, "").ends(t); code != codes.Unavailable || reason != tt.reason {
				t.Errorf("got %v %s", code, reason)
			}
			p.change(func() { p.fresh, p.keySet = true, "keys" })
			w := s.seat(t, "")
			w.until(t, w.begun)
		})
	}
}

func TestR59APanicInAStreamEndsThatStreamOnly(t *testing.T) {
	t.Parallel()
	s, p := written(t, nil)
	p.panics = true
	other := s.seat(t, "")
	other.until(t, other.begun)
	if code, reason := s.seat(t, revocation.Cursor{Epoch: [16]byte{1}, Row: 9}.String()).ends(t); code != codes.Internal || reason != "INTERNAL" || s.panics.Load() != 1 {
		t.Errorf("got %v %s with %d panics counted", code, reason, s.panics.Load())
	}
	at := p.add(1)
	other.until(t, func() bool { return other.cursor == at })
	if got := s.feed.Stats().Watchers; got != 1 {
		t.Errorf("%d watch", got)
	}
}

func TestG10G14G17NoStreamIsReachedPastItsRule(t *testing.T) {
	t.Parallel()
	s, _ := written(t, nil)
	streams := 0
	open := func(ctx context.Context, path string, opts ...grpc.CallOption) (codes.Code, string) {
		ctx, stop := context.WithCancel(ctx)
		defer stop()
		w := &seat{stop: stop, targets: map[verify.Target]int{}, stream: &grpc.GenericClientStream[authsvcv1.WatchTrustRequest, authsvcv1.WatchTrustResponse]{
			ClientStream: must(s.conn.NewStream(ctx, &authsvcv1.TrustService_ServiceDesc.Streams[0], path, opts...))(t)}}
		if err := w.stream.SendMsg(&authsvcv1.WatchTrustRequest{}); err == nil {
			_ = w.stream.CloseSend()
		}
		if err := w.next(t); err == nil {
			return codes.OK, ""
		}
		return w.ends(t)
	}
	good := with(t, basicOf("rs", s.secret))
	for name, m := range methods(t) {
		if !m.IsStreamingServer() && !m.IsStreamingClient() {
			continue
		}
		streams++
		short := strings.TrimPrefix(name, "/")
		for _, tt := range []struct {
			name string
			ctx  context.Context
			path string
			opts []grpc.CallOption
			want codes.Code
		}{
			{"the twin: the exact path by who may call it", good, name, nil, codes.OK},
			{"the twin: the same, compressed", good, name, []grpc.CallOption{grpc.UseCompressor(gzip.Name)}, codes.OK},
			{"G17 nobody", t.Context(), name, nil, codes.Unauthenticated},
			{"G14 a health probe, as it says", metadata.AppendToOutgoingContext(t.Context(), "user-agent", "kube-probe/1.30"), name, nil, codes.Unauthenticated},
			{"G14 another path in a header", metadata.AppendToOutgoingContext(t.Context(), "x-forwarded-uri", "/grpc.health.v1.Health/Check"), name, nil, codes.Unauthenticated},
			{"G10 without a slash", good, short, nil, codes.Unimplemented},
			{"G10 two slashes", good, "/" + name, nil, codes.Unimplemented},
			{"G10 an escaped slash", good, strings.Replace(name, "/Watch", "%2fWatch", 1), nil, codes.Unimplemented},
			{"G10 another case", good, strings.ToLower(name), nil, codes.Unimplemented},
			{"G10 a slash behind", good, name + "/", nil, codes.Unimplemented},
		} {
			if got, _ := open(tt.ctx, tt.path, tt.opts...); got != tt.want {
				t.Errorf("%s: %s gets %v, want %v", tt.name, tt.path, got, tt.want)
			}
		}
	}
	if streams == 0 {
		t.Error("there is no stream, so nothing was looked at")
	}
}

func TestR58TheRequestOfAStreamIsLimitedAsAll(t *testing.T) {
	t.Parallel()
	s, _ := written(t, nil)
	for _, tt := range []struct {
		name   string
		cursor int
		by     context.Context
		want   codes.Code
	}{
		{"60 KiB that are no cursor", 60 << 10, with(t, basicOf("rs", s.secret)), codes.InvalidArgument},
		{"over 64 KiB", 65 << 10, with(t, basicOf("rs", s.secret)), codes.ResourceExhausted},
		{"over 64 KiB by nobody, of which nothing is read", 65 << 10, t.Context(), codes.Unauthenticated},
	} {
		if got, _ := s.watch(tt.by, t, strings.Repeat("a", tt.cursor)).ends(t); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestAStoreThatIsAwayShowsInTheHeartbeats(t *testing.T) {
	t.Parallel()
	s, p := written(t, nil)
	w := s.seat(t, "")
	w.until(t, func() bool { return len(w.beats) >= 5 })
	dates := func() (all []time.Duration) {
		for _, b := range w.beats {
			if b.GetLag().AsDuration() < 0 || b.GetElapsed().AsDuration() <= 0 || b.GetServerTime() == nil {
				t.Fatalf("a heartbeat: %v", b)
			}
			all = append(all, b.GetElapsed().AsDuration()-b.GetLag().AsDuration())
		}
		return all
	}
	if d := dates(); !slices.IsSorted(d) || d[0] == d[4] {
		t.Errorf("what is known is dated %v", d)
	}
	p.change(func() { p.fresh = false })
	beats := len(w.beats)
	w.until(t, func() bool { return len(w.beats) >= beats+8 })
	if d := dates(); !slices.IsSorted(d) || d[len(d)-1] != d[len(d)-2] {
		t.Errorf("nothing is learned any more, and what is known is dated %v", d)
	}
	if early, late := w.beats[len(w.beats)-2].GetLag().AsDuration(), w.beats[len(w.beats)-1].GetLag().AsDuration(); early >= late {
		t.Errorf("the lag goes from %v to %v", early, late)
	}
}

// TestTheFeedOutlivesTheAgeOfItsConnection by the clock of a bubble: connections take no new calls after 30 minutes.
func TestTheFeedOutlivesTheAgeOfItsConnection(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		asks bool // the request comes
		want codes.Code
	}{
		{"R58 a request that never comes", false, codes.InvalidArgument},
		{"the twin: one that comes", true, codes.OK},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := &paper{view: revocation.View{Cursor: revocation.Cursor{Epoch: [16]byte{1}}}, keySet: "keys", fresh: true}
				s := serve(t, func(o *rpc.Options) {
					o.Feed = must(rpc.NewHub(rpc.HubOptions{Log: p, Issuer: "https://auth.example", KeySet: p.keys, Every: 10 * time.Second, Beat: 30 * time.Second}))(t)
				})
				ctx, stop := context.WithCancel(with(t, basicOf("rs", s.secret)))
				ended := make(chan error, 1)
				go func() { ended <- s.feed.Run(ctx) }()
				opened := time.Now()
				stream := must(s.conn.NewStream(ctx, &authsvcv1.TrustService_ServiceDesc.Streams[0], authsvcv1.TrustService_WatchTrust_FullMethodName))(t)
				if tt.asks {
					if err := errors.Join(stream.SendMsg(&authsvcv1.WatchTrustRequest{}), stream.CloseSend()); err != nil {
						t.Fatal(err)
					}
				}
				var err error
				for err == nil && time.Since(opened) < 35*time.Minute {
					err = stream.RecvMsg(&authsvcv1.WatchTrustResponse{})
				}
				if status.Code(err) != tt.want || !tt.asks && time.Since(opened) > time.Minute {
					t.Errorf("after %v: %v", time.Since(opened), err)
				}
				stop()
				<-ended
			})
		})
	}
}
