package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// revocationRate is how many revocations a second the fan-out carries.
const revocationRate = 100

// fanoutSize is who takes part in a fan-out and for how long; -short makes it a try.
type fanoutSize struct {
	processes, each, rounds int
	idle, during            time.Duration
}

func fanoutOf() fanoutSize {
	if testing.Short() {
		return fanoutSize{processes: 2, each: 20, rounds: 1, idle: time.Second, during: 2 * time.Second}
	}
	return fanoutSize{processes: 10, each: 100, rounds: 3, idle: 2 * time.Second, during: 10 * time.Second}
}

func (f fanoutSize) members() int { return f.processes * f.each }

// calls is how many revocations a time at the rate has.
func calls(during time.Duration) int { return int(during.Seconds()*revocationRate) + 1 }

// side is a server that hands revocations out to a crew.
type side struct {
	*process
	rate     int    // revocations a second
	loop     string // what its crew's processes run
	crew     func(client int) crew
	revoke   func(ctx context.Context, tokens []string, index int) error
	handed   func() int   // messages handed out so far
	watching func() int   // members that are connected
	memory   func() int64 // in use by heap and stacks after a collection, in bytes
	base     float64      // nanoseconds of the server's CPU for a revocation that nobody is told of
}

// fanned is what a round found.
type fanned struct {
	late        []time.Duration // from the answer until a member refuses, at each that was looked at
	cpu         float64         // of the server, for a message to a member, in nanoseconds
	beat        float64         // for a second of a member that is told nothing, in nanoseconds
	memory, rss float64         // of the server, for a member, in bytes
}

// pay measures what a revocation costs where nobody is told.
func (s *side) pay(b testing.TB, tokens []string) {
	b.Helper()
	cpu := s.cpu()
	time.Sleep(time.Second)
	idle := float64(s.cpu() - cpu) // in a second
	begun, cpu := time.Now(), s.cpu()
	n, _ := s.drive(b, tokens, nil)
	s.base = (float64(s.cpu()-cpu) - idle*time.Since(begun).Seconds()) / float64(n)
}

// drive has the tokens revoked at the rate and tells the processes just before each; it gives when each was answered.
func (s *side) drive(b testing.TB, tokens []string, processes []*process) (n int, answered []int64) {
	b.Helper()
	answered = make([]int64, len(tokens))
	var next atomic.Int64
	during := time.Duration(len(tokens)-1) * time.Second / time.Duration(s.rate)
	_, failures := pace(s.rate, during, func(ctx context.Context) error {
		time.Sleep(rand.N(2 * time.Second / time.Duration(s.rate))) // in step with the server's ticks, all would wait the same time for one
		i := int(next.Add(1)) - 1
		for _, p := range processes {
			if _, err := io.WriteString(p.stdin, strconv.Itoa(i)+"\n"); err != nil {
				return fmt.Errorf("%w\n%s", err, p.errs)
			}
		}
		err := s.revoke(ctx, tokens, i)
		answered[i] = monotonic()
		return err
	})
	for _, err := range failures {
		b.Fatalf("%v\n%s", err, s.errs)
	}
	return int(next.Load()), answered
}

// round connects a crew, has the tokens revoked, and takes the crew away.
func (s *side) round(b testing.TB, size fanoutSize, tokens []string) (out fanned) {
	b.Helper()
	memory, rss := s.memory(), s.rss()
	processes := s.enlist(b, size, tokens)
	count := float64(size.members())
	out.memory, out.rss = float64(s.memory()-memory)/count, float64(s.rss()-rss)/count
	cpu := s.cpu()
	time.Sleep(size.idle)
	out.beat = float64(s.cpu()-cpu) / count / size.idle.Seconds()

	begun, cpu, handed := time.Now(), s.cpu(), s.handed()
	n, answered := s.drive(b, tokens, processes)
	time.Sleep(200 * time.Millisecond) // the last of them
	used, idle := float64(s.cpu()-cpu), out.beat*count*time.Since(begun).Seconds()
	out.cpu = (used - idle - float64(n)*s.base) / count / float64(s.handed()-handed)
	out.late = s.gather(b, processes, n, answered)
	if want := sampled * size.processes * n; len(out.late) != want {
		b.Errorf("%s: %d of the %d that were looked for were seen", s.loop, len(out.late), want)
	}
	s.await(b, 0)
	return out
}

// gather ends a round: it takes the processes away, and gives how long after its answer each revocation was seen to be refused.
func (s *side) gather(b testing.TB, processes []*process, n int, answered []int64) (late []time.Duration) {
	b.Helper()
	for _, p := range processes {
		if _, err := fmt.Fprintln(p.stdin, "end", n); err != nil {
			b.Fatalf("%v\n%s", err, p.errs)
		}
	}
	lost := 0
	for _, p := range processes {
		told := parse[sightings](b, []byte(p.line(b)))
		lost += told.Lost
		for _, seen := range told.Seen {
			late = append(late, max(0, time.Duration(seen[1]-answered[seen[0]])))
		}
		p.kill()
	}
	if lost > 0 {
		b.Errorf("%s: %d revocations did not come", s.loop, lost)
	}
	return late
}

// enlist starts the processes and waits until all members are connected and have seen their tokens.
func (s *side) enlist(b testing.TB, size fanoutSize, tokens []string) (processes []*process) {
	b.Helper()
	for i := range size.processes {
		in := s.crew(i)
		in.Tokens, in.Size, in.Seed = tokens, size.each, uint64(i)
		p := loop(b, s.loop, in)
		p.lines.Buffer(nil, 64<<20)
		processes = append(processes, p)
	}
	for _, p := range processes {
		if word := p.line(b); word != "ready" {
			b.Fatalf("a process of %s says %q", s.loop, word)
		}
	}
	s.await(b, size.members())
	return processes
}

// await waits until so many are connected.
func (s *side) await(b testing.TB, members int) {
	b.Helper()
	for deadline := time.Now().Add(30 * time.Second); s.watching() != members; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d watch, not %d", s.watching(), members)
		}
	}
}

// watchers makes confidential clients that may watch the feed, and gives where it is for each of them.
func (in *installation) watchers(b testing.TB, clients int) (all []source) {
	b.Helper()
	for i := range clients {
		id := fmt.Sprintf("bench-watcher-%d", i)
		out := in.cli(b, "client", "create", "-o", "json", "-id", id, "-kind", "confidential", "-name", id, "-scope", "authsvc.trust",
			"-audience", audience)
		secret := parse[struct {
			Secret string `json:"client_secret"`
		}](b, out).Secret
		all = append(all, source{Target: in.rpc, Client: id, Secret: secret})
	}
	return all
}

// feed is the real side.
func (in *installation) feed(b testing.TB, sources []source) *side {
	b.Helper()
	return &side{
		process: in.process, rate: revocationRate, loop: "verifiers",
		crew: func(client int) crew { return crew{Source: sources[client%len(sources)]} },
		revoke: func(ctx context.Context, tokens []string, index int) error {
			_, err := in.auth.Revoke(ctx, &authsvcv1.RevokeRequest{Token: tokens[index]})
			return err
		},
		handed:   func() int { return int(in.metric(b, "authsvc_feed_deltas_total")) },
		watching: func() int { return int(in.metric(b, "authsvc_feed_watchers")) },
		memory:   func() int64 { return in.inUse(b) },
	}
}

// bareServer is one of the bare fan-out: where it is, and how it is asked.
type bareServer struct {
	*process
	target string
	call   func(ctx context.Context, method string, in []byte) (string, error)
}

func newBareServer(b testing.TB, args ...string) bareServer {
	b.Helper()
	p := limit(b, append([]string{"fanout"}, args...)...)
	target := p.line(b)
	conn := must(grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials())))
	b.Cleanup(func() { _ = conn.Close() })
	return bareServer{p, target, func(ctx context.Context, method string, in []byte) (string, error) {
		var out wrapperspb.BytesValue
		err := conn.Invoke(ctx, "/limit/"+method, wrapperspb.Bytes(in), &out)
		return string(out.GetValue()), err
	}}
}

func (s bareServer) number(b testing.TB, method string) int {
	b.Helper()
	text, err := s.call(context.Background(), method, nil)
	if err != nil {
		b.Fatalf("%v\n%s", err, s.errs)
	}
	return must(strconv.Atoi(text))
}

// bareFanout is the limit's side.
func bareFanout(b testing.TB) *side {
	b.Helper()
	head := proto.Size(delta(0))
	s := newBareServer(b, strconv.Itoa(head))
	return &side{
		process: s.process, rate: revocationRate, loop: "listeners",
		crew: func(int) crew { return crew{Source: source{Target: s.target}, Head: head} },
		revoke: func(ctx context.Context, _ []string, index int) error {
			_, err := s.call(ctx, "Tell", told(index, entrySize))
			return err
		},
		handed:   func() int { return s.number(b, "Sent") },
		watching: func() int { return s.number(b, "Listeners") },
		memory:   func() int64 { return int64(s.number(b, "Memory")) },
	}
}

// metric sums the samples of a metric whose labels have all the words.
func (in *installation) metric(b testing.TB, name string, words ...string) (sum float64) {
	b.Helper()
	resp, err := http.Get("http://" + in.ops + "/metrics")
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
next:
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		rest, found := strings.CutPrefix(lines.Text(), name)
		if !found || rest == "" || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		for _, w := range words {
			if !strings.Contains(rest, w) {
				continue next
			}
		}
		sum += must(strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64))
	}
	return sum
}

var inUseLines = regexp.MustCompile(`(?m)^# (?:HeapAlloc|Stack) = (\d+)`)

// inUse is what the server's heap and stacks hold after two collections, the second of which takes what pools held, in bytes, as
// its profile says.
func (in *installation) inUse(b testing.TB) (sum int64) {
	b.Helper()
	var profile []byte
	for range 2 {
		resp, err := http.Get("http://" + in.ops + "/debug/pprof/heap?gc=1&debug=1")
		if err != nil {
			b.Fatal(err)
		}
		profile = must(io.ReadAll(resp.Body))
		_ = resp.Body.Close()
	}
	found := inUseLines.FindAllSubmatch(profile, -1)
	if len(found) != 2 {
		b.Fatalf("the profile tells %d of the two numbers", len(found))
	}
	for _, f := range found {
		sum += must(strconv.ParseInt(string(f[1]), 10, 64))
	}
	return sum
}

// many gives n distinct access tokens of a few sessions.
func (in *installation) many(b testing.TB, n int) []string {
	b.Helper()
	const sessions = 8
	all := make([]string, n)
	var refresh [sessions]string
	for s := range sessions {
		refresh[s] = in.login(b).GetRefreshToken()
	}
	errs := make([]error, sessions)
	var wg sync.WaitGroup
	for s := range sessions {
		wg.Go(func() {
			for i := s; i < n && errs[s] == nil; i += sessions {
				out, err := in.auth.Refresh(context.Background(), &authsvcv1.RefreshRequest{RefreshToken: refresh[s], ClientId: app})
				errs[s], refresh[s], all[i] = err, out.GetRefreshToken(), out.GetAccessToken()
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			b.Fatal(err)
		}
	}
	return all
}
