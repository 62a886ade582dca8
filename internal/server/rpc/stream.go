package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

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

// lasting is a stream that has no time to end by. Its request must come within maxCall all the same.
type lasting struct {
	waiting *time.Timer
	cancel  context.CancelCauseFunc
}

type lastingKey struct{}

var errNoRequest = errors.New("rpc: a stream without its request")

func withLasting(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	waiting := time.AfterFunc(maxCall, func() { cancel(errNoRequest) })
	return context.WithValue(ctx, lastingKey{}, &lasting{waiting, cancel})
}

func lastingOf(ctx context.Context) *lasting {
	l, _ := ctx.Value(lastingKey{}).(*lasting)
	return l
}

// ending gives what ends a lasting stream from outside of its handler, which may be blocked in a send until its peer reads. A
// send that is broken off says of itself that it was canceled, so the status is written first; what the handler then answers is
// too late to be sent, and says the same.
func ending(ctx context.Context) func(cause *fault.Error) {
	stream, _ := grpc.ServerTransportStreamFromContext(ctx).(interface{ WriteStatus(st *status.Status) error })
	return func(cause *fault.Error) {
		if st, ok := status.FromError(withRequestInfo(toStatus(cause), requestID(ctx))); ok && stream != nil {
			_ = stream.WriteStatus(st) // it fails where the stream has ended
		}
		if l := lastingOf(ctx); l != nil {
			l.cancel(cause)
		}
	}
}
