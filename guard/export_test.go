package guard

import (
	"context"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// DialWith makes the feed connect by a function of the test.
func (f *Feed) DialWith(dial func(context.Context, string) (net.Conn, error)) {
	f.dial = append(f.dial, grpc.WithContextDialer(dial))
}

// CountBy puts the test's clocks in the place of the machine's, before anything has come.
func (f *Feed) CountBy(read func() (mono time.Duration, wall int64), boot func() time.Duration) {
	f.clock = newClock(read, boot)
}

// Stream begins a stream without a connection, and gives what takes its messages.
func (f *Feed) Stream() func(events ...*authsvcv1.WatchTrustResponse) error {
	s := &stream{feed: f, sent: f.now()}
	return func(events ...*authsvcv1.WatchTrustResponse) error {
		for _, e := range events {
			if err := s.take(e); err != nil {
				return err
			}
		}
		return nil
	}
}

// ErrRenew is what a stream that is to be begun anew ends with.
var ErrRenew = errRenew

// Decide is the one path of every transport.
func (g *Guard) Decide(ctx context.Context, rule Rule, values []string) (context.Context, string) {
	ctx, no := g.decide(ctx, "", rule, values)
	if no != nil {
		return nil, no.reason
	}
	return ctx, ""
}

// MeasureStream is all that is measured of a stream that is ended, but for the decision to let it in.
func (g *Guard) MeasureStream(ctx context.Context) {
	g.meter.streams(ctx, 1)
	g.meter.streamEnded(verify.ErrRevoked)
	g.meter.streams(ctx, -1)
}

// DialLoopback is how a feed without TLS connects.
var DialLoopback = dialLoopback

// Answers keeps n answers about as many tokens, each sent so long after the one before, and says how many are held at the end, and
// by how many entries.
func (f *Feed) Answers(n int, apart func()) (held, entries int) {
	i := &introspector{feed: f, answers: map[string]*inquiry{}}
	for k := range n {
		i.keep(&inquiry{token: strconv.Itoa(k), sent: f.now()})
		apart()
	}
	for q := i.oldest; q != nil; q = q.next {
		entries++
	}
	return len(i.answers), entries
}
