package bench

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// envoyAsks is a question as Envoy sends it of a browser's request, with all its headers.
func envoyAsks(token string) *authv3.CheckRequest {
	peer := func(address string, port uint32) *authv3.AttributeContext_Peer {
		return &authv3.AttributeContext_Peer{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
			Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port}}}}}
	}
	return &authv3.CheckRequest{Attributes: &authv3.AttributeContext{
		Source: peer("203.0.113.7", 52001), Destination: peer("10.0.0.5", 8443),
		ContextExtensions: map[string]string{"audience": audience, "require": "user"},
		Request: &authv3.AttributeContext_Request{Time: &timestamppb.Timestamp{Seconds: 1_800_000_000, Nanos: 5}, Http: &authv3.AttributeContext_HttpRequest{
			Id: "8125369217634512376", Method: "GET", Path: "/orders/17", Host: "api.bench.example", Scheme: "https", Protocol: "HTTP/2",
			Headers: map[string]string{":authority": "api.bench.example", ":method": "GET", ":path": "/orders/17", ":scheme": "https",
				"accept": "application/json", "accept-encoding": "gzip, deflate, br", "accept-language": "en-GB,en;q=0.9", "authorization": "Bearer " + token,
				"user-agent":      "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0",
				"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https", "x-request-id": "6a3f1f2e-5b0c-4d5e-9d8b-5a8f4c7e2b1a"},
		}}}}
}

func BenchmarkCheck(b *testing.B) {
	in := install(b)
	tokens := in.tokens(b, warmTokens)
	client := authv3.NewAuthorizationClient(in.conn)
	requests := make([]*authv3.CheckRequest, len(tokens))
	for i, token := range tokens {
		requests[i] = envoyAsks(token)
	}
	sample, err := client.Check(b.Context(), requests[0])
	if err != nil {
		b.Fatal(err)
	}
	sent, got := proto.Size(requests[0]), proto.Size(sample)
	echo := limit(b, "echo", strconv.Itoa(got-3))
	plain := bare(b, echo, in, sent-3)
	var next atomic.Int64
	ours := func(ctx context.Context, _ int) error {
		answer, err := client.Check(ctx, requests[next.Add(1)%warmTokens])
		if err == nil && answer.GetOkResponse() == nil {
			err = fmt.Errorf("denied: %v", answer)
		}
		return err
	}
	const n = 40_000
	p := alternate(b, func() cost { return drive(b, in.process, callers, n, ours) }, func() cost { return drive(b, echo, callers, n, plain) })
	report(b, fmt.Sprintf("Envoy's Check, CPU (%d B in, %d B out)", sent, got), took(p.ours.CPU), "gRPC echo "+took(p.limit.CPU),
		fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.5 ×", p.cpu <= 1.5)
}

func BenchmarkForwardAuth(b *testing.B) {
	in := install(b)
	tokens := in.tokens(b, warmTokens)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: callers}}
	ask := func(url, token string) (http.Header, error) {
		r, err := http.NewRequest(http.MethodGet, url, http.NoBody)
		if err != nil {
			return nil, err
		}
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(r)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Auth-Subject") == "" {
			return nil, fmt.Errorf("%d %v", resp.StatusCode, resp.Header)
		}
		return resp.Header, nil
	}
	const query = "/forward-auth?audience=" + audience + "&require=user"
	sample, err := ask("http://"+in.http+query, tokens[0])
	if err != nil {
		b.Fatal(err)
	}
	args := []string{"forward"}
	for name := range sample {
		if name != "Date" && name != "Content-Length" {
			args = append(args, name, sample.Get(name))
		}
	}
	handler := limit(b, args...)
	bareURL := "http://" + handler.line(b) + query
	var next atomic.Int64
	side := func(p *process, url string) func() cost {
		return func() cost {
			return drive(b, p, callers, 20_000, func(context.Context, int) error {
				_, err := ask(url, tokens[next.Add(1)%warmTokens])
				return err
			})
		}
	}
	p := alternate(b, side(in.process, "http://"+in.http+query), side(handler, bareURL))
	report(b, "forward-auth, CPU", took(p.ours.CPU), "`net/http` handler "+took(p.limit.CPU), fmt.Sprintf("%.2f ×", p.cpu), "≤ 1.5 ×", p.cpu <= 1.5)
}
