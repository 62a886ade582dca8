package rpc

import (
	"context"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/fault"
)

type trustServer struct {
	authsvcv1.UnimplementedTrustServiceServer
	d *Door
}

// GetKeySet gives the JWK Set, the same bytes as over HTTP.
func (s trustServer) GetKeySet(context.Context, *authsvcv1.GetKeySetRequest) (*authsvcv1.GetKeySetResponse, error) {
	set := s.d.o.KeySet()
	if len(set) == 0 {
		return nil, fault.New(fault.Unavailable, fault.SigningUnavailable, "no key set is loaded")
	}
	return &authsvcv1.GetKeySetResponse{Jwks: set}, nil
}
