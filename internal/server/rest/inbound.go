package rest

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/authsvc/authsvc/internal/ids"
)

// maxForwarded bounds the user agent, the trace header and the device token that go on, in bytes.
const maxForwarded = 512

// deviceHeader is the one header of a service's own that passes, both ways: what tells a login that its account is known on this device.
const deviceHeader = "Authsvc-Device"

// inbound is what the door found out about one HTTP request. It belongs to that request's goroutine.
type inbound struct {
	addr          net.TCPAddr
	ip            netip.Addr
	userAgent     string
	requestID     string
	authorization string
	traceparent   string
	device        string

	// reached is set once the call has left the gateway: an error before that is about the request's form.
	reached bool
	// refusal is what the decoder found wrong with the body.
	refusal refusal
}

type inboundKey struct{}

func inboundFrom(ctx context.Context) *inbound {
	in, _ := ctx.Value(inboundKey{}).(*inbound)
	return in
}

// Client is who sent an HTTP request, as far as the transport tells: the address after the trusted-proxy rule.
type Client struct {
	IP        netip.Addr // invalid only if the server does not know its peer
	UserAgent string     // at most 512 bytes of valid UTF-8
	RequestID string     // as answered in X-Request-Id
}

// ClientFrom gives the client of the HTTP request that ctx belongs to, for other doors that are mounted behind this one.
func ClientFrom(ctx context.Context) (Client, bool) {
	in := inboundFrom(ctx)
	if in == nil {
		return Client{}, false
	}
	return Client{IP: in.ip, UserAgent: in.userAgent, RequestID: in.requestID}, true
}

// read takes from r what may go on: nothing else of its headers ever reaches a service.
func (d *door) read(r *http.Request) *inbound {
	in := &inbound{}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	direct := from.Addr().Unmap().WithZone("")
	trusted := err == nil && d.trusted.Contains(direct)
	in.ip = d.trusted.Client(direct, r.Header["X-Forwarded-For"])
	if in.ip.IsValid() {
		in.addr.IP = in.ip.AsSlice()
		if in.ip == direct {
			in.addr.Port = int(from.Port())
		}
	}
	in.userAgent = clip(r.Header.Get("User-Agent"))
	if v := r.Header["Traceparent"]; len(v) == 1 && len(v[0]) <= maxForwarded {
		in.traceparent = v[0]
	}
	if v := r.Header[deviceHeader]; len(v) == 1 && len(v[0]) <= maxForwarded && printable(v[0]) {
		in.device = v[0]
	}
	if v := r.Header["Authorization"]; len(v) == 1 {
		in.authorization = v[0]
	}
	if v := r.Header["X-Request-Id"]; trusted && len(v) == 1 && wellFormedID(v[0]) {
		in.requestID = v[0]
	} else {
		in.requestID = ids.New[string]()
	}
	return in
}

// incoming dresses ctx as a gRPC server would: the peer, and the metadata of the allow-list.
func (in *inbound) incoming(ctx context.Context) context.Context {
	md := make(metadata.MD, 5)
	if in.authorization != "" {
		md["authorization"] = []string{in.authorization}
	}
	if in.userAgent != "" {
		md["user-agent"] = []string{in.userAgent}
	}
	if in.traceparent != "" {
		md["traceparent"] = []string{in.traceparent}
	}
	if in.device != "" {
		md[strings.ToLower(deviceHeader)] = []string{in.device}
	}
	md["x-request-id"] = []string{in.requestID}
	return metadata.NewIncomingContext(peer.NewContext(ctx, &peer.Peer{Addr: &in.addr}), md)
}

// traceID gives the trace that the caller says the request belongs to, or nothing. Where the caller named none, a trace that
// begins here is the call's own, and stands in what the call logs.
func (in *inbound) traceID() string {
	v := in.traceparent // version-trace-parent-flags in hexadecimal digits (W3C Trace Context §3.2)
	if len(v) < 55 || v[2] != '-' || v[35] != '-' {
		return ""
	}
	id, err := trace.TraceIDFromHex(v[3:35]) // refuses capitals and zeros
	if err != nil {
		return ""
	}
	return id.String()
}

// scheme gives the authentication scheme that the request used, in lower case; empty for none.
func (in *inbound) scheme() string {
	scheme, _, _ := strings.Cut(in.authorization, " ")
	return strings.ToLower(scheme)
}

func wellFormedID(s string) bool {
	if s == "" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

func clip(s string) string {
	if len(s) > maxForwarded {
		s = s[:maxForwarded]
	}
	return strings.ToValidUTF8(s, "")
}

// printable reports whether s may be metadata: visible ASCII and spaces.
func printable(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
