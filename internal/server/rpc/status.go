package rpc

import (
	"errors"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/authsvc/authsvc/internal/fault"
)

// domain is google.rpc.ErrorInfo.domain of every reason.
const domain = "authsvc"

// code maps every kind of fault; the switch is exhaustive.
func code(k fault.Kind) codes.Code {
	switch k {
	case fault.Invalid:
		return codes.InvalidArgument
	case fault.Unauthenticated:
		return codes.Unauthenticated
	case fault.Denied:
		return codes.PermissionDenied
	case fault.NotFound:
		return codes.NotFound
	case fault.Exists:
		return codes.AlreadyExists
	case fault.Conflict:
		return codes.Aborted
	case fault.Precondition:
		return codes.FailedPrecondition
	case fault.Limited:
		return codes.ResourceExhausted
	case fault.Unavailable:
		return codes.Unavailable
	case fault.Internal:
	}
	return codes.Internal
}

// StatusOf renders an error: a status as it is, a fault by the table, anything else as Internal. It is the one table of this
// service; the REST door is given it.
func StatusOf(err error) *status.Status {
	var f *fault.Error
	if s, ok := status.FromError(err); ok && !errors.As(err, &f) {
		return s
	}
	return toStatus(fault.From(err))
}

// toStatus renders a fault: its message and reason, never its cause.
func toStatus(f *fault.Error) *status.Status {
	s := status.New(code(f.Kind), f.Message)
	details := []protoadapt.MessageV1{&errdetails.ErrorInfo{Reason: string(f.Reason), Domain: domain, Metadata: f.Meta}}
	if len(f.Violations) > 0 {
		bad := &errdetails.BadRequest{}
		for _, v := range f.Violations {
			bad.FieldViolations = append(bad.FieldViolations, &errdetails.BadRequest_FieldViolation{Field: v.Field, Description: v.Description})
		}
		details = append(details, bad)
	}
	if f.RetryAfter > 0 {
		details = append(details, &errdetails.RetryInfo{RetryDelay: durationpb.New(f.RetryAfter)})
	}
	if with, err := s.WithDetails(details...); err == nil {
		s = with
	}
	return s
}

// withRequestInfo adds the request id by which the log can be searched.
func withRequestInfo(s *status.Status, requestID string) error {
	if with, err := s.WithDetails(&errdetails.RequestInfo{RequestId: requestID}); err == nil {
		s = with
	}
	return s.Err()
}
