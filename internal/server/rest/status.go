package rest

import (
	"context"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/authsvc/authsvc/internal/fault"
)

// internalBody is what goes out when even the error cannot be written.
const internalBody = `{"code":13,"message":"internal error"}`

func attach(st *statuspb.Status, m proto.Message) {
	if detail, err := anypb.New(m); err == nil {
		st.Details = append(st.Details, detail)
	}
}

// gatewayError is the gateway's error handler: for errors of the services, and of the gateway's own parsing.
func (d *door) gatewayError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter,
	_ *http.Request, err error) {
	in := inboundFrom(ctx)
	if in == nil {
		in = &inbound{}
	}
	if !in.reached {
		d.fail(ctx, w, in, in.refusal.fault())
		return
	}
	d.fail(ctx, w, in, err)
}

func (r refusal) fault() error {
	if r.field != "" {
		return fault.Field(r.field, r.description)
	}
	message := r.description
	if message == "" {
		message = "a parameter is malformed"
	}
	return fault.New(fault.Invalid, fault.FieldInvalid, message)
}

// routingError is the gateway's answer where it knows no route. The door's own table has been asked before, so this is
// only reached where the two disagree; it refuses.
func (d *door) routingError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter,
	_ *http.Request, _ int) {
	in := inboundFrom(ctx)
	if in == nil {
		in = &inbound{}
	}
	d.notFound(ctx, w, in)
}

func (d *door) notFound(ctx context.Context, w http.ResponseWriter, in *inbound) {
	d.fail(ctx, w, in, fault.New(fault.NotFound, fault.RouteNotFound, "there is nothing at this path"))
}

func errInternal() error { return fault.New(fault.Internal, fault.InternalError, "internal error") }

// fail answers with err's status at the HTTP code that belongs to it.
func (d *door) fail(ctx context.Context, w http.ResponseWriter, in *inbound, err error) {
	d.failAs(ctx, w, in, err, 0)
}

// failAs answers with err's status at the given HTTP code; 0 means the one that belongs to it.
func (d *door) failAs(ctx context.Context, w http.ResponseWriter, in *inbound, err error, code int) {
	st := d.status(err).Proto()
	known, seen := d.public(st)
	if _, isStatus := status.FromError(err); !seen || !isStatus && codes.Code(st.GetCode()) == codes.Internal {
		// A service's interceptor has logged what it made Internal itself; what comes raw is logged here.
		d.log.LogAttrs(ctx, slog.LevelError, "request failed", slog.String("request_id", in.requestID), slog.Any("error", err))
	}
	st, reason, retry := known.status, known.reason, known.retry
	if in.requestID != "" && !known.requestInfo {
		attach(st, &errdetails.RequestInfo{RequestId: in.requestID})
	}
	if code == 0 {
		code = runtime.HTTPStatusFromCode(codes.Code(st.GetCode()))
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(retry.Seconds()))))
	}
	if c := challenge(code, in.scheme(), reason, known.scope); c != "" {
		h.Set("WWW-Authenticate", c)
	}
	data, merr := d.codec.out.Marshal(st)
	if merr != nil {
		data, code = []byte(internalBody), http.StatusInternalServerError
	}
	h.Set("Content-Length", strconv.Itoa(len(data)))
	w.WriteHeader(code)
	_, _ = w.Write(data) // a client that has gone away is not our error
}

// answer is a status as it may be sent.
type answer struct {
	status      *statuspb.Status
	reason      fault.Reason
	scope       string
	retry       time.Duration
	requestInfo bool
}

// public keeps of a status what a caller may see: the four kinds of details that are documented, and for an internal
// error no words but the fixed ones. seen is false if nobody has given the error a reason before.
func (d *door) public(st *statuspb.Status) (a answer, seen bool) {
	seen = true
	a.status = &statuspb.Status{Code: st.GetCode(), Message: st.GetMessage()}
	internal := false
	switch codes.Code(st.GetCode()) {
	case codes.Internal, codes.Unknown, codes.DataLoss, codes.OK:
		internal = true
		a.status.Code, a.status.Message = int32(codes.Internal), "internal error"
	}
	for _, detail := range st.GetDetails() {
		m, err := detail.UnmarshalNew()
		if err != nil {
			continue
		}
		switch m := m.(type) {
		case *errdetails.ErrorInfo:
			a.reason, a.scope = fault.Reason(m.GetReason()), m.GetMetadata()["scope"]
		case *errdetails.RetryInfo:
			a.retry = m.GetRetryDelay().AsDuration()
		case *errdetails.RequestInfo:
			a.requestInfo = true
		case *errdetails.BadRequest:
			if internal {
				continue
			}
		default:
			continue
		}
		a.status.Details = append(a.status.Details, detail)
	}
	if internal && a.reason == "" {
		seen = false
		a.reason = fault.InternalError
		a.status.Details = append(a.status.Details, d.status(errInternal()).Proto().GetDetails()...)
	}
	return a, seen
}

// challenge gives the WWW-Authenticate header (RFC 9110 §11.6.1), which every 401 has. It names the kind of credential that
// was refused: Basic for a client, Bearer for an access token, with the error code of RFC 6750 §3.1, which a request without
// one does not get. A password and a refresh token stand in the body, for which no scheme is registered: theirs is a name of
// our own with the reason, so that no library takes its good access token for a bad one or asks a person for Basic.
func challenge(code int, scheme string, reason fault.Reason, scope string) string {
	if code == http.StatusForbidden && scheme == "bearer" && reason == fault.ScopeInsufficient {
		c := `Bearer realm="authsvc", error="insufficient_scope"`
		if scope != "" && scopeText(scope) {
			c += `, scope="` + scope + `"`
		}
		return c
	}
	if code != http.StatusUnauthorized {
		return ""
	}
	switch reason {
	case fault.ClientInvalid:
		return `Basic realm="authsvc", charset="UTF-8"`
	case fault.InvalidCredentials, fault.RefreshInvalid, fault.RefreshExpired, fault.RefreshReused, fault.RefreshSuperseded:
		return `Authsvc realm="authsvc", reason="` + string(reason) + `"`
	case fault.TokenInvalid, fault.TokenExpired, fault.TokenRevoked:
		if scheme == "bearer" {
			return `Bearer realm="authsvc", error="invalid_token"`
		}
	}
	return `Bearer realm="authsvc"`
}

// scopeText reports whether s may stand in a quoted string: scope tokens and spaces (RFC 6749 §3.3).
func scopeText(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e || s[i] == '"' || s[i] == '\\' {
			return false
		}
	}
	return true
}
