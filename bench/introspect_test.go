package bench

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// warmTokens is how many distinct tokens the introspections are about.
const warmTokens = 500

// bare dials a limit's gRPC server and gives a call of it, of the given size.
func bare(b *testing.B, p *process, in *installation, request int) func(context.Context, int) error {
	b.Helper()
	conn := must(grpc.NewClient(p.line(b), grpc.WithTransportCredentials(insecure.NewCredentials())))
	b.Cleanup(func() { _ = conn.Close() })
	body := wrapperspb.Bytes(make([]byte, request))
	return func(ctx context.Context, _ int) error {
		return conn.Invoke(in.asService(ctx), "/limit/Call", body, &wrapperspb.BytesValue{})
	}
}

func introspected(out *authsvcv1.IntrospectResponse, err error) error {
	if err == nil && !out.GetActive() {
		return fmt.Errorf("inactive")
	}
	return err
}

func BenchmarkIntrospect(b *testing.B) {
	in := install(b)
	tokens := in.tokens(b, warmTokens)
	request := &authsvcv1.IntrospectRequest{Token: tokens[0]}
	sample, err := in.auth.Introspect(in.asService(b.Context()), request)
	if err != nil {
		b.Fatal(err)
	}
	// The bytes field of the limit's message has a header of its own, of some three bytes.
	sent, got := proto.Size(request), proto.Size(sample)
	echo := limit(b, "echo", strconv.Itoa(got-3))
	plain := bare(b, echo, in, sent-3)
	var next atomic.Int64
	ours := func(ctx context.Context, _ int) error {
		return introspected(in.auth.Introspect(in.asService(ctx), &authsvcv1.IntrospectRequest{Token: tokens[next.Add(1)%warmTokens]}))
	}
	const n = 40_000
	p := alternate(b, func() cost { return drive(b, in.process, callers, n, ours) }, func() cost { return drive(b, echo, callers, n, plain) })
	report(b, fmt.Sprintf("Introspect RPC, CPU (%d B in, %d B out)", sent, got), took(p.ours.CPU), "gRPC echo "+took(p.limit.CPU),
		fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.5 ×", p.cpu <= 1.5)
}

func BenchmarkBatchIntrospect(b *testing.B) {
	in := install(b)
	tokens := in.tokens(b, warmTokens)
	var next atomic.Int64
	single := func(ctx context.Context, _ int) error {
		return introspected(in.auth.Introspect(in.asService(ctx), &authsvcv1.IntrospectRequest{Token: tokens[next.Add(1)%warmTokens]}))
	}
	batch := &authsvcv1.BatchIntrospectRequest{Tokens: tokens[:100]}
	var got int
	together := func(ctx context.Context, _ int) error {
		out, err := in.auth.BatchIntrospect(in.asService(ctx), batch)
		if err != nil {
			return err
		}
		got = proto.Size(out)
		for _, r := range out.GetResults() {
			if !r.GetActive() {
				return fmt.Errorf("inactive")
			}
		}
		return nil
	}
	const n = 400
	p := alternate(b, func() cost { return drive(b, in.process, 1, n, together) }, func() cost { return drive(b, in.process, 1, 100*n, single) })
	ratio := p.cpu / 100
	report(b, fmt.Sprintf("BatchIntrospect of 100, CPU (%d B in, %d B out)", proto.Size(batch), got), took(p.ours.CPU),
		"100 Introspect "+took(100*p.limit.CPU), fmt.Sprintf("1/%.1f", 1/ratio), "≤ 1/8", ratio <= 1.0/8)
}

func BenchmarkIntrospectREST(b *testing.B) {
	in := install(b)
	tokens := in.tokens(b, warmTokens)
	var bodies [][]byte
	for _, token := range tokens {
		bodies = append(bodies, []byte(`{"token":"`+token+`"}`))
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	post := func(url string, body []byte) ([]byte, error) {
		r, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", in.basic)
		resp, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		out, err := io.ReadAll(resp.Body)
		if err == nil && !bytes.HasPrefix(out, []byte(`{"active":true`)) {
			err = fmt.Errorf("%d %s", resp.StatusCode, out)
		}
		return out, err
	}
	url := "http://" + in.http + "/v1/auth/introspect"
	sample, err := post(url, bodies[0])
	if err != nil {
		b.Fatal(err)
	}
	handler := limit(b, "json", string(sample))
	bareURL := "http://" + handler.line(b) + "/"
	var next atomic.Int64
	side := func(p *process, url string) func() cost {
		return func() cost {
			return drive(b, p, callers, 20_000, func(context.Context, int) error {
				_, err := post(url, bodies[next.Add(1)%warmTokens])
				return err
			})
		}
	}
	p := alternate(b, side(in.process, url), side(handler, bareURL))
	report(b, fmt.Sprintf("REST introspect, CPU (%d B in, %d B out)", len(bodies[0]), len(sample)), took(p.ours.CPU),
		"net/http JSON handler "+took(p.limit.CPU), fmt.Sprintf("%.2f ×", p.cpu), "≤ 2.1 ×", p.cpu <= 2.1)
}
