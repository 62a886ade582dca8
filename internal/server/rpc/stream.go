package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/authsvc/authsvc/internal/fault"
)

// wrapStream puts a streaming method into the pipeline: the rule is judged before anything is read.
func (p piped) wrapStream(method string, next grpc.StreamHandler) grpc.StreamHandler {
	m := p.d.observer.method(method)
	return func(srv any, stream grpc.ServerStream) (err error) {
		ctx, end := m.begin(stream.Context())
		defer func() { end(err) }()
		ctx = withRequestID(ctx, false)
		_, err = p.d.run(ctx, method, func(ctx context.Context) (any, error) {
			return struct{}{}, next(srv, pipedStream{stream, ctx})
		})
		if err != nil {
			return p.d.answer(ctx, method, err)
		}
		return nil
	}
}

// pipedStream is a stream behind the pipeline: its context says who calls, and what it reads is decoded as requests are.
type pipedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // grpc.ServerStream hands its context out by a method
}

// Context implements grpc.ServerStream.
func (s pipedStream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s pipedStream) RecvMsg(m any) error {
	e := envelope{request: m}
	err := s.ServerStream.RecvMsg(&e)
	l := lastingOf(s.ctx)
	switch {
	case errors.Is(context.Cause(s.ctx), errNoRequest):
		return fault.Wrap(errNoRequest, fault.Invalid, fault.FieldInvalid, "the request did not come in time")
	case err != nil:
		return err
	case l != nil:
		l.waiting.Stop()
	}
	return e.err
}

// lasting is a stream that has no time to end by. Its request must come within maxCall all the same, and whoever holds its
// end can end it while it is blocked in a send.
type lasting struct {
	waiting *time.Timer
	end     context.CancelCauseFunc
}

type lastingKey struct{}

var errNoRequest = errors.New("rpc: a stream without its request")

func withLasting(ctx context.Context) context.Context {
	ctx, end := context.WithCancelCause(ctx)
	waiting := time.AfterFunc(maxCall, func() { end(errNoRequest) })
	return context.WithValue(ctx, lastingKey{}, &lasting{waiting, end})
}

func lastingOf(ctx context.Context) *lasting {
	l, _ := ctx.Value(lastingKey{}).(*lasting)
	return l
}
