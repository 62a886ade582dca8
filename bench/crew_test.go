package bench

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// source is where a feed comes from.
type source struct {
	Target string `json:"target"`
	Client string `json:"client"`
	Secret string `json:"secret"`
}

// follow makes a feed and a verifier on it, and runs the feed until ctx ends.
func (s source) follow(ctx context.Context, cacheBytes int) (*guard.Feed, *verify.Verifier, error) {
	feed, err := guard.NewFeed(guard.FeedOptions{Target: s.Target, Issuer: issuer, ClientID: s.Client, ClientSecret: s.Secret})
	if err != nil {
		return nil, nil, err
	}
	v, err := verify.New(verify.Options{Issuer: issuer, Audiences: []string{audience}, Keys: feed, Revocations: feed, Now: feed.Now,
		CacheBytes: cacheBytes})
	if err != nil {
		return nil, nil, err
	}
	go func() { _ = feed.Run(ctx) }() // its error is that of ctx
	ready, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return feed, v, feed.Ready(ready)
}

// crew is what a process of verifiers, or of bare listeners, reads.
type crew struct {
	Source source   `json:"source"`
	Tokens []string `json:"tokens"` // in the order in which they will be revoked
	Head   int      `json:"head"`   // bytes of a bare message before what was told
	Size   int      `json:"size"`   // members of the process, each with a connection of its own
	Seed   uint64   `json:"seed"`

	subjects []verify.Subject // what the revocation of each token hits
}

// Each revocation is looked for at so many members of each process, which are drawn anew, so often.
const (
	sampled  = 2
	lookEach = time.Millisecond
)

// recruit is one verifier, or one listener. learned says whether it would refuse the token of this index; told whether what it
// holds has the revocation.
type recruit struct {
	learned func(index int) (bool, error)
	told    func(index int) bool
}

// sightings is what a process tells at the end of a round.
type sightings struct {
	Seen [][2]int64 `json:"seen"` // the index of a token, and when a member drawn for it refused it, by CLOCK_MONOTONIC
	Lost int        `json:"lost"` // revocations, counted for each member, that it has not been told of
}

// monotonic is a clock that all processes share, in nanoseconds.
func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// runCrew is this binary as a process of members. It says "ready" once all of them are; then each line with an index begins the
// looking for that revocation, and "end N" ends the round once the first N are known, or have not come for 30 s.
func runCrew(join func(ctx context.Context, in *crew, index int) (recruit, error)) error {
	var in crew
	if err := json.Unmarshal(must(os.ReadFile(os.Getenv("AUTHSVC_BENCH_IN"))), &in); err != nil {
		return err
	}
	for _, token := range in.Tokens {
		in.subjects = append(in.subjects, subject(token))
	}
	c := &looking{crew: &in, members: make([]recruit, in.Size)}
	errs := make([]error, in.Size)
	var wg sync.WaitGroup
	for i := range in.Size {
		wg.Go(func() { c.members[i], errs[i] = join(context.Background(), &in, i) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := c.prepare(); err != nil {
		return err
	}
	fmt.Println("ready")
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			lines <- s.Text()
		}
	}()
	return c.run(lines)
}

// looking is a process at work.
type looking struct {
	*crew
	members []recruit
	open    []draw
	out     sightings
}

type draw struct{ index, member int }

// drawn are the members that the revocation is looked for at.
func (c *looking) drawn(index int) (all []draw) {
	r := rand.New(rand.NewPCG(c.Seed, uint64(index)))
	first := r.IntN(c.Size)
	for i := range sampled {
		all = append(all, draw{index, (first + i*(1+r.IntN(c.Size-1))) % c.Size})
	}
	return all
}

// prepare has each token seen by the members drawn for it: it is good until it is revoked, and from then on its signature is not
// what is waited for.
func (c *looking) prepare() error {
	for i := range c.Tokens {
		for _, d := range c.drawn(i) {
			if learned, err := c.members[d.member].learned(i); err != nil || learned {
				return fmt.Errorf("token %d before its revocation: refused %v, %w", i, learned, err)
			}
		}
	}
	return nil
}

func (c *looking) run(lines <-chan string) error {
	tick := time.NewTicker(lookEach)
	defer tick.Stop()
	for {
		select {
		case line, open := <-lines:
			if !open {
				return nil
			}
			if n, ending := strings.CutPrefix(line, "end "); ending {
				if err := c.finish(must(strconv.Atoi(n)), tick); err != nil {
					return err
				}
				continue
			}
			c.open = append(c.open, c.drawn(must(strconv.Atoi(line)))...)
		case <-tick.C:
			if err := c.look(); err != nil {
				return err
			}
		}
	}
}

func (c *looking) look() (err error) {
	c.open = slices.DeleteFunc(c.open, func(d draw) bool {
		learned, fault := c.members[d.member].learned(d.index)
		if fault != nil {
			err = fmt.Errorf("token %d: %w", d.index, fault)
		}
		if learned {
			c.out.Seen = append(c.out.Seen, [2]int64{int64(d.index), monotonic()})
		}
		return learned
	})
	return err
}

// finish waits for the rest and tells what came.
func (c *looking) finish(n int, tick *time.Ticker) error {
	deadline := time.Now().Add(30 * time.Second)
	for len(c.open) > 0 && time.Now().Before(deadline) {
		<-tick.C
		if err := c.look(); err != nil {
			return err
		}
	}
	for {
		c.out.Lost = 0
		for i := range n {
			for _, m := range c.members {
				if !m.told(i) {
					c.out.Lost++
				}
			}
		}
		if c.out.Lost == 0 || time.Now().After(deadline) {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	defer func() { c.open, c.out = nil, sightings{} }()
	return json.NewEncoder(os.Stdout).Encode(c.out)
}

// joinFeed is a verifier on a feed of its own.
func joinFeed(ctx context.Context, in *crew, _ int) (recruit, error) {
	feed, v, err := in.Source.follow(ctx, 1<<20)
	if err != nil {
		return recruit{}, err
	}
	return recruit{
		learned: func(index int) (bool, error) {
			_, err := v.Verify(ctx, in.Tokens[index])
			if errors.Is(err, verify.ErrRevoked) {
				return true, nil
			}
			return false, err
		},
		told: func(index int) bool { return errors.Is(feed.Check(&in.subjects[index]), verify.ErrRevoked) },
	}, nil
}

// subject is what a revocation of a token by its jti hits.
func subject(token string) verify.Subject {
	return verify.Subject{Token: verify.TargetOf(issuer, verify.KindToken, tokenID(token))}
}

// tokenID is the jti of a token.
func tokenID(token string) string {
	payload := must(base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1]))
	var claims struct {
		ID string `json:"jti"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		panic(err)
	}
	return claims.ID
}

// told is one revocation as the bare fan-out carries it: the token's index in eight bytes, and as many more as an entry of the
// feed has.
func told(index, size int) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(index)), make([]byte, size-8)...)
}

// entrySize is the bytes of one revocation in a message of the feed.
var entrySize = proto.Size(delta(1)) - proto.Size(delta(0))

// delta is a message of the feed with so many revocations of tokens, as to its size.
func delta(entries int) *authsvcv1.WatchTrustResponse {
	d := &authsvcv1.TrustDelta{After: strings.Repeat("c", 32), Cursor: strings.Repeat("c", 32), CommitTime: timestamppb.New(time.Unix(1e9, 1e8))}
	for range entries {
		d.Revocations = append(d.Revocations, &authsvcv1.Revocation{Target: make([]byte, 16), ExpireTime: 2e9})
	}
	return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Delta{Delta: d}}
}

// raw receives a message as it came.
type raw struct{ bytes []byte }

// Name implements encoding.CodecV2.
func (raw) Name() string { return "proto" }

// Marshal implements encoding.CodecV2: the one request is empty.
func (raw) Marshal(any) (mem.BufferSlice, error) { return nil, nil }

// Unmarshal implements encoding.CodecV2.
func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	v.(*raw).bytes = data.Materialize()
	return nil
}

// joinBare is a listener of the bare fan-out: it notes which indices have come.
func joinBare(ctx context.Context, in *crew, _ int) (recruit, error) {
	conn, err := grpc.NewClient(in.Source.Target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return recruit{}, err
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/limit/Listen", grpc.ForceCodecV2(raw{}))
	if err != nil {
		return recruit{}, err
	}
	if err := errors.Join(stream.SendMsg(&wrapperspb.BytesValue{}), stream.CloseSend()); err != nil {
		return recruit{}, err
	}
	var m raw
	if err := stream.RecvMsg(&m); err != nil {
		return recruit{}, err
	}
	seen := make([]atomic.Bool, len(in.Tokens))
	var fault atomic.Pointer[error]
	go func() {
		for {
			var m raw
			if err := stream.RecvMsg(&m); err != nil {
				fault.Store(&err)
				return
			}
			for entries := m.bytes[in.Head:]; len(entries) > 0; entries = entries[entrySize:] {
				seen[binary.BigEndian.Uint64(entries)].Store(true)
			}
		}
	}()
	return recruit{
		learned: func(index int) (bool, error) {
			if err := fault.Load(); err != nil {
				return false, *err
			}
			return seen[index].Load(), nil
		},
		told: func(index int) bool { return seen[index].Load() },
	}, nil
}
