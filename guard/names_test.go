package guard_test

import (
	"context"
	"fmt"
	"testing"

	"google.golang.org/grpc"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/test/soak"
)

func TestG15AMillionMethodNamesAreOneLabel(t *testing.T) {
	t.Parallel()
	labels := map[string]int{}
	g := newGuard(t, guard.Options{Rules: rules(), Observe: func(_ context.Context, rule, reason string) { labels[rule+" "+reason]++ }})
	call := func(method string) error {
		_, err := g.UnaryServerInterceptor()(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: method},
			func(context.Context, any) (any, error) { return struct{}{}, nil })
		return err
	}
	for i := range soak.Count(100_000, 1_000_000) {
		if call(fmt.Sprint("/t/made-up-", i)) == nil {
			t.Fatalf("call %d of an unknown method is let through", i)
		}
	}
	if err := call("/t/public"); err != nil { // the twin: a known method has a label of its own
		t.Error(err)
	}
	if len(labels) != 2 || labels["/t/public "] != 1 {
		t.Errorf("%d labels: %v", len(labels), labels)
	}
}
