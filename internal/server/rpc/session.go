package rpc

import (
	"context"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/ids"
)

type sessionServer struct {
	authsvcv1.UnimplementedSessionServiceServer
	d *Door
}

// ListSessions gives the caller's live sessions.
func (s sessionServer) ListSessions(ctx context.Context, r *authsvcv1.ListSessionsRequest) (*authsvcv1.ListSessionsResponse, error) {
	who := s.d.caller(ctx)
	list, next, err := s.d.o.Sessions.List(ctx, who, r.GetPageSize(), r.GetPageToken())
	if err != nil {
		return nil, err
	}
	resp := &authsvcv1.ListSessionsResponse{NextPageToken: next}
	for _, row := range list {
		current := row.ID == who.Session
		resp.Sessions = append(resp.Sessions, &authsvcv1.Session{
			SessionId: string(row.ID), ClientId: string(row.Client), DeviceName: row.DeviceName, IpAddress: row.IP, UserAgent: row.UserAgent,
			CreateTime: stamp(row.CreatedAt), LastUsedTime: stamp(row.LastUsedAt), ExpireTime: stamp(row.IdleEndsAt), Current: &current, Amr: row.AMR,
		})
	}
	return resp, nil
}

// RevokeSession ends one of the caller's sessions.
func (s sessionServer) RevokeSession(ctx context.Context, r *authsvcv1.RevokeSessionRequest) (*authsvcv1.RevokeSessionResponse, error) {
	if err := s.d.o.Sessions.Revoke(ctx, s.d.caller(ctx), ids.Session(r.GetSessionId())); err != nil {
		return nil, err
	}
	return &authsvcv1.RevokeSessionResponse{}, nil
}

// RevokeAllSessions ends the caller's sessions.
func (s sessionServer) RevokeAllSessions(ctx context.Context, r *authsvcv1.RevokeAllSessionsRequest) (*authsvcv1.RevokeAllSessionsResponse, error) {
	n, err := s.d.o.Sessions.RevokeAll(ctx, s.d.caller(ctx), r.GetExceptCurrent())
	if err != nil {
		return nil, err
	}
	count := int32(n)
	return &authsvcv1.RevokeAllSessionsResponse{RevokedCount: &count}, nil
}
