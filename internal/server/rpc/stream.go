package rpc

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/internal/fault"
)

// wrapStream puts a streaming method into the pipeline: the rule is judged before anything is read. A stream without an end of
// its own must bring its request within maxCall all the same.
func (p piped) wrapStream(method string, next grpc.StreamHandler) grpc.StreamHandler {
	m := p.d.observer.method(method)
	return func(srv any, stream grpc.ServerStream) (err error) {
		ctx, end := m.begin(stream.Context())
		defer func() { end(err) }()
		ctx = withRequestID(ctx, false)
		var waiting *time.Timer
		if _, endless := ctx.Value(cancelKey{}).(context.CancelCauseFunc); endless {
			waiting = time.AfterFunc(maxCall, func() {
				ending(ctx)(fault.New(fault.Invalid, fault.FieldInvalid, "the request did not come in time"))
			})
			defer waiting.Stop()
		}
		_, err = p.d.run(ctx, method, func(ctx context.Context) (any, error) {
			return struct{}{}, next(srv, pipedStream{stream, ctx, waiting})
		})
		var ended *fault.Error
		if errors.As(context.Cause(ctx), &ended) {
			err = ended // what else came of it says less
		}
		if err != nil {
			return p.d.answer(ctx, method, err)
		}
		return nil
	}
}

// pipedStream is a stream behind the pipeline: its context says who calls, and what it reads is decoded as requests are.
type pipedStream struct {
	grpc.ServerStream
	ctx     context.Context //nolint:containedctx // grpc.ServerStream hands its context out by a method
	waiting *time.Timer     // for the request; nil where the stream has an end of its own
}

// Context implements grpc.ServerStream.
func (s pipedStream) Context() context.Context { return s.ctx }

// RecvMsg implements grpc.ServerStream.
func (s pipedStream) RecvMsg(m any) error {
	e := envelope{request: m}
	if err := s.ServerStream.RecvMsg(&e); err != nil {
		return err
	}
	if s.waiting != nil {
		s.waiting.Stop()
	}
	return e.err
}

type cancelKey struct{}

// endless makes the context of a stream that lasts until somebody ends it.
func endless(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(ctx)
	return context.WithValue(ctx, cancelKey{}, cancel)
}

// ending gives what ends an endless stream from outside of its handler, which may be blocked in a send until its peer reads. A
// send or a receipt that is broken off says of itself that it was canceled, so the status is written first; what the handler then
// answers is too late to be sent, and says the same.
func ending(ctx context.Context) func(cause *fault.Error) {
	stream, _ := grpc.ServerTransportStreamFromContext(ctx).(interface{ WriteStatus(st *status.Status) error })
	cancel, _ := ctx.Value(cancelKey{}).(context.CancelCauseFunc)
	return func(cause *fault.Error) {
		if st, ok := status.FromError(withRequestInfo(toStatus(cause), requestID(ctx))); ok && stream != nil {
			_ = stream.WriteStatus(st) // it fails where the stream has ended
		}
		if cancel != nil {
			cancel(cause)
		}
	}
}
