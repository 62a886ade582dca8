package rpc

import (
	"context"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

type accountServer struct {
	authsvcv1.UnimplementedAccountServiceServer
	d *Door
}

// ChangePassword replaces the caller's password and ends their other sessions.
func (s accountServer) ChangePassword(ctx context.Context, r *authsvcv1.ChangePasswordRequest) (*authsvcv1.ChangePasswordResponse, error) {
	if err := s.d.o.Accounts.ChangePassword(ctx, s.d.caller(ctx), r.GetOldPassword(), r.GetNewPassword()); err != nil {
		return nil, err
	}
	return &authsvcv1.ChangePasswordResponse{}, nil
}
