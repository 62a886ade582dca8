package rest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
)

// recorder remembers what was answered, for the access log and for panics.
type recorder struct {
	http.ResponseWriter
	code  int
	bytes int
}

func (w *recorder) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
	w.ResponseWriter.WriteHeader(code)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += n
	return n, err
}

// Unwrap lets http.ResponseController reach the server's own writer.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ServeHTTP answers one request.
func (d *door) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	start := d.now()
	in := d.read(r)
	w := &recorder{ResponseWriter: rw}
	p := d.table.find(r)
	h := w.Header()
	h.Set("X-Request-Id", in.requestID)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
		// net/http drops a Content-Length that came beside Transfer-Encoding without saying so. A proxy in front may have
		// believed the other one, so nothing after a chunked body is read from this connection (RFC 9112 §6.1).
		h.Set("Connection", "close")
	}
	ctx, cancel := context.WithTimeout(context.WithValue(r.Context(), inboundKey{}, in), d.deadline(r))
	defer cancel()
	defer d.record(ctx, w, r, in, p, start)
	defer d.recovered(ctx, w, in)
	switch {
	case p == nil:
		d.notFound(ctx, w, in)
	case p.extra != nil:
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, d.maxBody)
		p.extra.ServeHTTP(w, r)
	default:
		d.serveAPI(ctx, w, r, in, p)
	}
}

// serveAPI checks the request's form and passes on what is left of it.
func (d *door) serveAPI(ctx context.Context, w http.ResponseWriter, r *http.Request, in *inbound, p *place) {
	allowed := d.cors(w.Header(), r)
	if r.Method == http.MethodOptions {
		d.options(w, r.WithContext(ctx), in, p, allowed)
		return
	}
	route := p.route(r.Method)
	if route == nil {
		w.Header().Set("Allow", p.allow())
		d.failAs(ctx, w, in, errMethod(), http.StatusMethodNotAllowed)
		return
	}
	if v := r.Header["Authorization"]; len(v) > 1 || len(v) == 1 && !printable(v[0]) {
		d.fail(ctx, w, in, fault.New(fault.Unauthenticated, fault.TokenInvalid, "want one authorization header, in visible ASCII"))
		return
	}
	if err := checkQuery(r.URL, route); err != nil {
		d.fail(ctx, w, in, err)
		return
	}
	data, code, err := d.readBody(ctx, w, r, in, route)
	if err != nil {
		d.failAs(ctx, w, in, err, code)
		return
	}
	bare := r.WithContext(ctx)
	bare.Header, bare.Host, bare.RemoteAddr = nil, "", ""
	bare.Body, bare.ContentLength, bare.TransferEncoding, bare.Trailer = &body{data: data, in: in}, int64(len(data)), nil, nil
	d.gateway.ServeHTTP(w, bare)
}

// checkQuery refuses every query parameter that the route does not have: a token in a URL ends up in logs.
func checkQuery(u *url.URL, route *route) error {
	if u.RawQuery == "" {
		return nil
	}
	if len(route.query) == 0 {
		return fault.New(fault.Invalid, fault.FieldInvalid, "this method takes no query parameters")
	}
	values, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return fault.New(fault.Invalid, fault.FieldInvalid, "the query is malformed")
	}
	for name, v := range values {
		if !slices.Contains(route.query, name) {
			return fault.New(fault.Invalid, fault.FieldInvalid,
				"the query parameters of this method are "+strings.Join(route.query, ", "))
		}
		if len(v) != 1 {
			return fault.Field(name, "the parameter is there twice")
		}
	}
	return nil
}

// believed is the longest body, in bytes, that a stranger is given memory for before it comes. Most are shorter; with more,
// streams that announce a body and send none would cost their senders nothing and this process 64 KiB each.
const believed = 4 << 10

// readBody reads the body that the route wants. code is the HTTP code of err where it has one of its own.
func (d *door) readBody(ctx context.Context, w http.ResponseWriter, r *http.Request, in *inbound, route *route) (
	data []byte, code int, err error) {
	if !route.body {
		if r.ContentLength != 0 {
			return nil, 0, fault.New(fault.Invalid, fault.FieldInvalid, "this method takes no body")
		}
		return nil, 0, nil
	}
	if !isJSON(r.Header) {
		return nil, http.StatusUnsupportedMediaType,
			fault.New(fault.Invalid, fault.ContentTypeUnsupported, "the content type is application/json, without an encoding")
	}
	limit := min(route.limit, d.maxBody)
	if route.limit > d.maxBody && d.admit != nil && (r.ContentLength < 0 || r.ContentLength > d.maxBody) {
		if err := d.admit(in.incoming(ctx), route.full); err != nil {
			return nil, 0, err
		}
		limit = route.limit
	}
	tooLarge := fault.New(fault.Invalid, fault.BodyTooLarge, fmt.Sprintf("the body is larger than %d bytes", limit))
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return nil, http.StatusRequestEntityTooLarge, tooLarge
	}
	reader := http.MaxBytesReader(w, r.Body, limit)
	if r.ContentLength >= 0 && (r.ContentLength <= believed || limit > d.maxBody) {
		data = make([]byte, r.ContentLength)
		_, err = io.ReadFull(reader, data)
	} else {
		data, err = io.ReadAll(reader)
	}
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, http.StatusRequestEntityTooLarge, tooLarge
	case err != nil:
		return nil, 0, fault.New(fault.Invalid, fault.FieldInvalid, "the body ended early")
	case len(data) == 0:
		return nil, 0, fault.New(fault.Invalid, fault.FieldInvalid, "the body is empty; want a JSON object")
	}
	return data, 0, nil
}

// isJSON reports whether the body is declared to be JSON in UTF-8, once, and not compressed.
func isJSON(h http.Header) bool {
	types := h["Content-Type"]
	if len(types) != 1 || len(h["Content-Encoding"]) > 0 {
		return false
	}
	if types[0] == "application/json" {
		return true
	}
	name, params, err := mime.ParseMediaType(types[0])
	if err != nil || name != "application/json" {
		return false
	}
	for k, v := range params {
		if k != "charset" || !strings.EqualFold(v, "utf-8") {
			return false
		}
	}
	return true
}

// deadline is the door's own, or the client's wish within its bounds: a client must not be able to abort a call at the
// moment of its choice.
func (d *door) deadline(r *http.Request) time.Duration {
	v := r.Header["Grpc-Timeout"]
	if len(v) != 1 {
		return d.timeout
	}
	wish, ok := grpcTimeout(v[0])
	if !ok {
		return d.timeout
	}
	return min(max(wish, MinTimeout), d.timeout)
}

// grpcTimeout reads the Grpc-Timeout header: at most 8 digits and a unit.
func grpcTimeout(s string) (time.Duration, bool) {
	if len(s) < 2 || len(s) > 9 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
	if err != nil {
		return 0, false
	}
	units := [...]struct {
		letter byte
		unit   time.Duration
	}{{'H', time.Hour}, {'M', time.Minute}, {'S', time.Second}, {'m', time.Millisecond}, {'u', time.Microsecond}, {'n', time.Nanosecond}}
	for _, u := range units {
		if s[len(s)-1] == u.letter {
			return min(time.Duration(n), MaxTimeout/u.unit+1) * u.unit, true
		}
	}
	return 0, false
}

// recovered turns a panic into an internal error. The panic's value is not logged: it may hold a part of the request.
func (d *door) recovered(ctx context.Context, w *recorder, in *inbound) {
	p := recover()
	if p == nil {
		return
	}
	if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
		panic(http.ErrAbortHandler) // the way to cut a connection; net/http expects it
	}
	if d.panicked != nil {
		d.panicked()
	}
	d.log.LogAttrs(ctx, slog.LevelError, "panic", slog.String("request_id", in.requestID),
		slog.String("type", fmt.Sprintf("%T", p)), slog.String("stack", string(debug.Stack())))
	if w.code != 0 {
		panic(http.ErrAbortHandler) // half an answer is out: the client must not take it for a whole one
	}
	for _, name := range []string{"ETag", "Content-Length", "Retry-After", "WWW-Authenticate"} {
		w.Header().Del(name)
	}
	w.Header().Set("Cache-Control", "no-store")
	d.fail(ctx, w, in, d.status(errInternal()).Err()) // as a status, since it is in the log already
}

// record writes the access log: never a query, a body, a header's value, or a path that is not one of ours.
func (d *door) record(ctx context.Context, w *recorder, r *http.Request, in *inbound, p *place, start time.Time) {
	level := slog.LevelDebug
	switch {
	case w.code >= http.StatusInternalServerError:
		level = slog.LevelError
	case w.code >= http.StatusBadRequest:
		level = slog.LevelInfo
	}
	if !d.log.Enabled(ctx, level) {
		return
	}
	path, verb := "unmatched", r.Method
	if p != nil {
		path = p.template
	}
	switch verb {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		verb = "other"
	}
	d.log.LogAttrs(ctx, level, "request", slog.String("method", verb), slog.String("path", path), slog.Int("status", w.code),
		slog.Int("bytes", w.bytes), slog.Duration("took", d.now().Sub(start)), slog.String("ip", in.ip.String()),
		slog.String("request_id", in.requestID), slog.String("trace_id", in.traceID()))
}
