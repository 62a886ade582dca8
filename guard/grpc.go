package guard

import (
	"context"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// UnaryServerInterceptor guards unary methods. Refusals are UNAUTHENTICATED (TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_REVOKED),
// PERMISSION_DENIED (SCOPE_INSUFFICIENT, PERMISSION_DENIED) or UNAVAILABLE (REPLICA_STALE), each with a google.rpc.ErrorInfo.
func (g *Guard) UnaryServerInterceptor() grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		ctx, err := g.admit(ctx, info.FullMethod)
		if err != nil {
			return nil, err
		}
		return handler(ctx, req)
	}
}

// StreamServerInterceptor guards streaming methods by the same rules. A stream that a token let in is ended while its handler runs,
// with UNAUTHENTICATED: with TOKEN_REVOKED a moment after the Feed was told of what revokes the token, and with TOKEN_EXPIRED at the
// token's exp by Feed.Now, without skew. Where the Verifier's Revocations are no Feed, they are asked each second, and exp counts by
// the Verifier's clock; without any, exp alone ends the stream. That knowledge gets old ends nothing.
//
// The handler is told at once: a RecvMsg or SendMsg that it is blocked in and all later ones give the end's status, its context is
// done, and with errors.Is that error and the context's cause match verify.ErrRevoked or verify.ErrExpired. What the handler then
// returns is not sent. A transport other than grpc-go's own cannot break off a blocked RecvMsg or SendMsg unless it has WriteStatus;
// that of grpc.Server.ServeHTTP ends a blocked SendMsg when the peer reads or goes. Whoever calls grpc.SetSendCompressor does so before
// SetHeader: grpc-go reads what it sets when a stream with such headers is ended, and takes no lock.
func (g *Guard) StreamServerInterceptor() grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		ctx, err := g.admit(stream.Context(), info.FullMethod)
		if err != nil {
			return err
		}
		claims, ok := ClaimsFromContext(ctx)
		if !ok {
			return handler(srv, guardedStream{stream, ctx})
		}
		ctx, open := g.watch(ctx, claims)
		defer open.close()
		g.meter.streams(ctx, 1)
		defer g.meter.streams(ctx, -1)
		if err := open.err(); err != nil {
			return err
		}
		err = handler(srv, watchedStream{guardedStream{stream, ctx}, open})
		open.close()
		if ended := open.err(); ended != nil {
			return ended
		}
		return err
	}
}

type guardedStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // grpc.ServerStream hands its context out by a method
}

func (s guardedStream) Context() context.Context { return s.ctx }

func (g *Guard) admit(ctx context.Context, method string) (context.Context, error) {
	key, rule := method, g.fallback
	if r, ok := g.rules[method]; ok {
		rule = r
	} else {
		key = ""
	}
	ctx, no := g.decide(ctx, key, rule, metadata.ValueFromIncomingContext(ctx, "authorization"))
	if no != nil {
		return nil, no.status().Err()
	}
	return ctx, nil
}

func (no *refusal) code() codes.Code {
	switch no.reason {
	case ReasonPermissionDenied, ReasonScopeInsufficient:
		return codes.PermissionDenied
	case ReasonReplicaStale:
		return codes.Unavailable
	default:
		return codes.Unauthenticated
	}
}

func (no *refusal) status() *status.Status {
	if no.ctx != nil {
		return status.FromContextError(no.ctx)
	}
	bare := status.New(no.code(), no.message)
	full, err := bare.WithDetails(&errdetails.ErrorInfo{Reason: no.reason, Domain: Domain})
	if err != nil {
		return bare
	}
	return full
}
