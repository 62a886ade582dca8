package guard

import (
	"context"
	"net"

	"google.golang.org/grpc"
)

// DialWith makes the feed connect by a function of the test.
func (f *Feed) DialWith(dial func(context.Context, string) (net.Conn, error)) {
	f.dial = append(f.dial, grpc.WithContextDialer(dial))
}
