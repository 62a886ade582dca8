package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/timestamppb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/service"
)

const bearerType = "Bearer"

// deviceHeader carries the device token: out with what a Login answers, and in with the next one on the same device.
const deviceHeader = "authsvc-device"

// device gives the device token that came with a request.
func device(ctx context.Context) string {
	if v := metadata.ValueFromIncomingContext(ctx, deviceHeader); len(v) == 1 {
		return v[0]
	}
	return ""
}

type authServer struct {
	authsvcv1.UnimplementedAuthServiceServer
	d *Door
}

// Login signs a person in.
func (s authServer) Login(ctx context.Context, r *authsvcv1.LoginRequest) (*authsvcv1.LoginResponse, error) {
	auth, err := basic(ctx)
	if err != nil {
		return nil, err
	}
	issued, err := s.d.o.SignIn.Login(ctx, service.LoginRequest{
		Username: r.GetUsername(), Password: r.GetPassword(), Client: auth, ClientID: ids.Client(r.GetClientId()),
		Audience: r.GetAudience(), Scope: r.GetScope(), DeviceName: r.GetDeviceName(), DeviceToken: device(ctx), Caller: s.d.caller(ctx),
	})
	if err != nil {
		return nil, err
	}
	// It fails only where the headers have been sent already, and the next login here is then one of an unknown device.
	_ = grpc.SetHeader(ctx, metadata.Pairs(deviceHeader, issued.DeviceToken))
	return &authsvcv1.LoginResponse{AccessToken: issued.AccessToken, TokenType: bearerType, ExpiresIn: seconds(issued.ExpiresIn),
		RefreshToken: issued.RefreshToken, Scope: issued.Scope, SessionId: string(issued.SessionID)}, nil
}

// Refresh redeems a refresh token.
func (s authServer) Refresh(ctx context.Context, r *authsvcv1.RefreshRequest) (*authsvcv1.RefreshResponse, error) {
	auth, err := basic(ctx)
	if err != nil {
		return nil, err
	}
	if r.GetRefreshToken() == "" {
		return nil, fault.Field("refresh_token", "is required")
	}
	issued, err := s.d.o.Tokens.Refresh(ctx, service.RefreshRequest{RefreshToken: r.GetRefreshToken(), Client: auth,
		ClientID: ids.Client(r.GetClientId()), Scope: r.GetScope(), Caller: s.d.caller(ctx)})
	if err != nil {
		return nil, err
	}
	return &authsvcv1.RefreshResponse{AccessToken: issued.AccessToken, TokenType: bearerType, ExpiresIn: seconds(issued.ExpiresIn),
		RefreshToken: issued.RefreshToken, Scope: issued.Scope, SessionId: string(issued.SessionID)}, nil
}

// Revoke ends a token.
func (s authServer) Revoke(ctx context.Context, r *authsvcv1.RevokeRequest) (*authsvcv1.RevokeResponse, error) {
	auth, err := basic(ctx)
	if err != nil {
		return nil, err
	}
	position, err := s.d.o.Tokens.Revoke(ctx, service.RevokeRequest{Token: r.GetToken(), Client: auth, Caller: s.d.caller(ctx)})
	if err != nil {
		return nil, err
	}
	return &authsvcv1.RevokeResponse{Position: position}, nil
}

// Introspect says whether a token is good now.
func (s authServer) Introspect(ctx context.Context, r *authsvcv1.IntrospectRequest) (*authsvcv1.IntrospectResponse, error) {
	if r.GetToken() == "" {
		return nil, fault.Field("token", "is required")
	}
	in, err := s.d.o.Tokens.Introspect(ctx, authenticated(ctx), r.GetToken(), r.GetMinPosition())
	if err != nil {
		return nil, err
	}
	return introspection(in), nil
}

// BatchIntrospect says it of many tokens, in order.
func (s authServer) BatchIntrospect(ctx context.Context, r *authsvcv1.BatchIntrospectRequest) (*authsvcv1.BatchIntrospectResponse, error) {
	all, err := s.d.o.Tokens.BatchIntrospect(ctx, authenticated(ctx), r.GetTokens())
	if err != nil {
		return nil, err
	}
	resp := &authsvcv1.BatchIntrospectResponse{Results: make([]*authsvcv1.IntrospectResponse, len(all))}
	for i, in := range all {
		resp.Results[i] = introspection(in)
	}
	return resp, nil
}

func introspection(in service.Introspection) *authsvcv1.IntrospectResponse {
	active := in.Active
	resp := &authsvcv1.IntrospectResponse{Active: &active}
	switch {
	case !active:
	case in.Claims != nil:
		c := in.Claims
		resp.Scope, resp.ClientId, resp.TokenType = c.Scope, c.ClientID, in.TokenType
		resp.Exp, resp.Iat, resp.Nbf, resp.AuthTime = stamp(c.ExpiresAt), stamp(c.IssuedAt), stamp(c.NotBefore), stamp(c.AuthTime)
		resp.Sub, resp.Aud, resp.Iss, resp.Jti, resp.Sid, resp.Amr = c.Subject, c.Audience, c.Issuer, c.ID, c.SessionID, c.AMR
	case in.Session != nil:
		row := in.Session
		resp.Scope, resp.ClientId, resp.TokenType, resp.Username = row.Scope, string(row.Client), in.TokenType, in.Username
		resp.Exp, resp.Iat, resp.AuthTime = stamp(row.IdleEndsAt), stamp(row.RedeemedAt), stamp(row.AuthTime)
		resp.Sub, resp.Aud, resp.Sid, resp.Amr = string(row.Account), row.Audiences, string(row.ID), row.AMR
	}
	return resp
}

// stamp gives whole seconds, as in the token; the zero time gives nothing.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return &timestamppb.Timestamp{Seconds: t.Unix()}
}

func seconds(d time.Duration) int32 { return int32(min(d/time.Second, 1<<31-1)) }
