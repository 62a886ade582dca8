package guard_test

import (
	"context"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/guard"
)

func TestACursorThatTheServerCannotReadIsGivenUp(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, call int, s watch) error {
		switch call {
		case 1:
			return say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0))
		case 2:
			return status.Error(codes.InvalidArgument, "cursor: not a position that this service gave")
		default:
			return serveFrom(s, "d1")
		}
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second) // of the bubble's clock
		synctest.Wait()
		if asked := w.asked(); !slices.Equal(asked, []string{"", "c1", ""}) {
			t.Errorf("asked for %q", asked)
		}
		w.want(t, "after it began anew", nil, nil)
	})
}

// TestWithoutTLSOnlyThisMachineIsReached: a name such as localhost is believed for the address that it leads to, no further.
func TestWithoutTLSOnlyThisMachineIsReached(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", ":0") // on every address of this machine
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	elsewhere := ""
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			elsewhere = n.IP.String()
		}
	}
	for address, reached := range map[string]bool{"127.0.0.1": true, elsewhere: false} {
		if address == "" {
			continue // a machine without a network has nobody to be fooled by
		}
		conn, err := guard.DialLoopback(context.Background(), net.JoinHostPort(address, port))
		if (err == nil) != reached {
			t.Errorf("%s: %v", address, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}
