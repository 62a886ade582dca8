package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/authsvc/authsvc/guard"
)

// The methods of a service that a guard stands before.
const (
	callMethod = "/limit/Call"
	openMethod = "/limit/Open"
)

// options give a service's server the guard, with a feed of its own.
func (s source) options() ([]grpc.ServerOption, *guard.Guard, error) {
	feed, v, err := s.follow(context.Background(), 0)
	if err != nil {
		return nil, nil, err
	}
	g, err := guard.New(guard.Options{Verifier: v, Feed: feed, Rules: map[string]guard.Rule{
		callMethod: {Authenticated: true}, openMethod: {Authenticated: true}}})
	if err != nil {
		return nil, nil, err
	}
	return g.ServerOptions(), g, nil
}

// runHandler is this binary as a process that calls a handler that gives back what it gets, through the guard's interceptor or
// without, with one token of many each time.
func runHandler(guarded bool) error {
	var in trusting
	if err := json.Unmarshal(must(os.ReadFile(os.Getenv("AUTHSVC_BENCH_IN"))), &in); err != nil {
		return err
	}
	handler := func(_ context.Context, in any) (any, error) { return in, nil }
	interceptor := func(ctx context.Context, in any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		return next(ctx, in)
	}
	if guarded {
		_, g, err := in.Source.options()
		if err != nil {
			return err
		}
		interceptor = g.UnaryServerInterceptor()
	}
	var calls []context.Context
	for _, token := range in.Tokens {
		calls = append(calls, metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", "Bearer "+token)))
	}
	info, message := &grpc.UnaryServerInfo{FullMethod: callMethod}, &wrapperspb.BytesValue{}
	call := func(n int) error {
		for i := range n {
			if _, err := interceptor(calls[i%len(calls)], message, info, handler); err != nil {
				return err
			}
		}
		return nil
	}
	if err := call(len(calls)); err != nil { // from then on they have been seen
		return err
	}
	out := json.NewEncoder(os.Stdout)
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		c, err := measured(in.Calls, func() error { return call(in.Calls) })
		if err != nil {
			return err
		}
		if err := out.Encode(c); err != nil {
			return err
		}
	}
	return nil
}

// runService is this binary as a bare gRPC server of a unary method and of one whose streams stay open, with the guard or
// without. It prints its address.
func runService(guarded bool) error {
	var in trusting
	if err := json.Unmarshal(must(os.ReadFile(os.Getenv("AUTHSVC_BENCH_IN"))), &in); err != nil {
		return err
	}
	var options []grpc.ServerOption
	if guarded {
		var err error
		if options, _, err = in.Source.options(); err != nil {
			return err
		}
	}
	s := grpc.NewServer(options...)
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "limit", HandlerType: (*any)(nil), Methods: []grpc.MethodDesc{{
		MethodName: "Call",
		Handler: func(_ any, ctx context.Context, decode func(any) error, interceptor grpc.UnaryServerInterceptor) (any, error) {
			var in wrapperspb.BytesValue
			if err := decode(&in); err != nil {
				return nil, err
			}
			if interceptor == nil {
				return &in, nil
			}
			return interceptor(ctx, &in, &grpc.UnaryServerInfo{FullMethod: callMethod}, func(_ context.Context, in any) (any, error) { return in, nil })
		},
	}}, Streams: []grpc.StreamDesc{{StreamName: "Open", ServerStreams: true, Handler: func(_ any, stream grpc.ServerStream) error {
		if err := stream.SendMsg(&wrapperspb.BytesValue{}); err != nil {
			return err
		}
		<-stream.Context().Done()
		return stream.Context().Err()
	}}}}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return s.Serve(l)
}

// BenchmarkGuard has a unary handler called through the guard and without.
func BenchmarkGuard(b *testing.B) {
	in := install(b)
	n, wire := 2_000_000, 40_000
	if testing.Short() {
		n, wire = 200_000, 4_000
	}
	given := trusting{Source: in.watchers(b, 1)[0], Tokens: in.many(b, warmTokens), Calls: n}
	with, without := loop(b, "guarded", given), loop(b, "unguarded", given)
	p := alternate(b, func() cost { return with.round(b) }, func() cost { return without.round(b) })
	with.kill()
	without.kill()
	added, allocations := p.ours.CPU-p.limit.CPU, p.ours.Allocations-p.limit.Allocations
	report(b, "guard, unary, token seen before, CPU", took(p.ours.CPU), "the handler alone "+took(p.limit.CPU),
		fmt.Sprintf("+ %s, + %.1f allocs", took(added), allocations), "≤ 2 µs, ≤ 8 allocs", added <= 2000 && allocations <= 8.05)

	side := func(p *process) func() cost {
		conn := must(grpc.NewClient(p.line(b), grpc.WithTransportCredentials(insecure.NewCredentials())))
		b.Cleanup(func() { _ = conn.Close() })
		var next atomic.Int64
		message := wrapperspb.Bytes(make([]byte, 100))
		return func() cost {
			return drive(b, p, callers, wire, func(ctx context.Context, _ int) error {
				token := given.Tokens[next.Add(1)%warmTokens]
				return conn.Invoke(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), callMethod, message, &wrapperspb.BytesValue{})
			})
		}
	}
	p = alternate(b, side(loop(b, "guarded service", given)), side(loop(b, "service", given)))
	report(b, "the same over the wire, CPU", took(p.ours.CPU), "without guard "+took(p.limit.CPU), fmt.Sprintf("%.2f ×", p.cpu), "–", true)
}

// BenchmarkOpenStreams has streams open, each by a token of its own, and the tokens revoked one after the other.
func BenchmarkOpenStreams(b *testing.B) {
	streams, connections := 1000, 10
	if testing.Short() {
		streams = 100
	}
	in := install(b)
	tokens := in.many(b, streams)
	sources := in.watchers(b, 1)
	service := loop(b, "guarded service", trusting{Source: sources[0]})
	target := service.line(b)
	ended := make([]int64, streams)
	faults := make(chan error, streams)
	var conns []*grpc.ClientConn
	for range connections {
		conn := must(grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials())))
		b.Cleanup(func() { _ = conn.Close() })
		conns = append(conns, conn)
	}
	for i, token := range tokens {
		ctx := metadata.AppendToOutgoingContext(b.Context(), "authorization", "Bearer "+token)
		stream, err := conns[i%connections].NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, openMethod)
		if err != nil {
			b.Fatal(err)
		}
		var m wrapperspb.BytesValue
		for _, do := range []func() error{func() error { return stream.SendMsg(&m) }, stream.CloseSend, func() error { return stream.RecvMsg(&m) }} {
			if err := do(); err != nil {
				b.Fatalf("%v\n%s", err, service.errs)
			}
		}
		go func() {
			err := stream.RecvMsg(&wrapperspb.BytesValue{})
			ended[i] = monotonic()
			faults <- err
		}()
	}
	s := in.feed(b, sources)
	n, answered := s.drive(b, tokens, nil)
	var late []time.Duration
	for range n {
		select {
		case err := <-faults:
			if status.Code(err) != codes.Unauthenticated {
				b.Fatalf("a stream ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			b.Fatal("a stream has not ended")
		}
	}
	for i := range n {
		late = append(late, max(0, time.Duration(ended[i]-answered[i])))
	}
	p99 := percentile(late, 0.99)
	b.Logf("p50 %v, most %v", percentile(late, 0.5), percentile(late, 1))
	report(b, fmt.Sprintf("Revoke answered → its open stream ends, at the caller, %d streams, p99", streams), took(float64(p99)), "–", "",
		"≤ 100 ms", p99 <= 100*time.Millisecond)
}
