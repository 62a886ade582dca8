package extauthz

import (
	"context"
	"net/http"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/verify"
)

// Register puts envoy.service.auth.v3.Authorization on a gRPC server, which decodes its requests by their UnmarshalBinary.
func (d *Door) Register(r grpc.ServiceRegistrar) {
	desc := authv3.Authorization_ServiceDesc
	desc.HandlerType = (*any)(nil)
	desc.Methods = []grpc.MethodDesc{{MethodName: "Check", Handler: func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var q question
		if err := decode(&q); err != nil {
			return nil, err
		}
		answer, err := d.check(ctx, &q)
		if err != nil {
			return nil, err // and not a nil answer in an interface
		}
		return answer, nil
	}}}
	r.RegisterService(&desc, d)
}

// check decides on the request that Envoy describes. What the route requires stands in its context_extensions. Where nothing could
// be decided the answer is an error, which Envoy takes by its failure_mode_allow: false, its default, denies.
func (d *Door) check(ctx context.Context, q *question) (*authv3.CheckResponse, error) {
	n, err := d.need(q.extensions)
	if err != nil {
		return denied(http.StatusInternalServerError, d.misconfigured(err), ""), nil
	}
	claims, no, err := d.judge(ctx, n, q.authorization)
	switch {
	case err != nil:
		return nil, err
	case no != nil:
		return denied(httpCode(no.Status.Code()), no.Status, no.Challenge), nil
	}
	return d.passed(claims)
}

// passed lets the request go on with the identity headers that its token has. All others are removed: what the client itself
// wrote there never reaches the API.
func (d *Door) passed(claims *verify.Claims) (*authv3.CheckResponse, error) {
	ok := &authv3.OkHttpResponse{Headers: make([]*corev3.HeaderValueOption, 0, len(d.headers))}
	for _, h := range d.headers {
		switch v, err := h.valueOf(claims); {
		case err != nil:
			return nil, err
		case v == "":
			ok.HeadersToRemove = append(ok.HeadersToRemove, h.name)
		default:
			ok.Headers = append(ok.Headers, header(h.name, v))
		}
	}
	return &authv3.CheckResponse{Status: status.New(codes.OK, "").Proto(), HttpResponse: &authv3.CheckResponse_OkResponse{OkResponse: ok}}, nil
}

// denied has Envoy answer the client.
func denied(code int, s *status.Status, challenge string) *authv3.CheckResponse {
	no := &authv3.DeniedHttpResponse{
		Status:  &typev3.HttpStatus{Code: typev3.StatusCode(code)},
		Headers: []*corev3.HeaderValueOption{header("Content-Type", "application/json"), header("Cache-Control", "no-store")},
		Body:    string(body(s)),
	}
	if challenge != "" {
		no.Headers = append(no.Headers, header("WWW-Authenticate", challenge))
	}
	return &authv3.CheckResponse{Status: s.Proto(), HttpResponse: &authv3.CheckResponse_DeniedResponse{DeniedResponse: no}}
}

// header takes the place of every header of that name.
func header(name, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{Header: &corev3.HeaderValue{Key: name, Value: value},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD}
}
