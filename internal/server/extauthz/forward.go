package extauthz

import (
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/authsvc/authsvc/internal/fault"
)

// forwardPath is where nginx, Traefik and Caddy ask.
const forwardPath = "/forward-auth"

// Routes gives the handlers by exact path.
func (d *Door) Routes() map[string]http.Handler {
	return map[string]http.Handler{forwardPath: http.HandlerFunc(d.serve)}
}

// serve decides on the request that a proxy holds, by any method: 200 with every identity header, empty where the token has it
// not, so that a proxy which copies what is there leaves none of the client's own in place; 401 and 403 as RFC 6750 §3 has them;
// 400 where the query is not understood; 503 where nothing could be decided. Whatever is not 2xx, proxies take for a no. Of the
// request only its Authorization and its query count, and the query is the proxy's own.
func (d *Door) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	n, err := d.asked(r.URL.RawQuery)
	if err != nil {
		refuse(w, d.misconfigured(err), "")
		return
	}
	claims, no, err := d.judge(r.Context(), n, r.Header["Authorization"])
	if err != nil {
		d.failed(w, r, err)
		return
	}
	if no != nil {
		refuse(w, no.Status, no.Challenge)
		return
	}
	for _, id := range d.headers {
		v, err := id.valueOf(claims)
		if err != nil {
			d.failed(w, r, err)
			return
		}
		h[id.name] = []string{v}
	}
	w.WriteHeader(http.StatusOK)
}

// asked reads the query.
func (d *Door) asked(query string) (need, error) {
	var parameters []parameter
	if query != "" {
		for pair := range strings.SplitSeq(query, "&") {
			name, text, _ := strings.Cut(pair, "=")
			value, err := url.QueryUnescape(text)
			if err != nil {
				return need{}, fault.Field(clip(name), "is malformed")
			}
			parameters = append(parameters, parameter{name, value})
		}
	}
	return d.need(parameters)
}

// failed says that there is no verdict, and logs why once.
func (d *Door) failed(w http.ResponseWriter, r *http.Request, err error) {
	level := slog.LevelError
	if r.Context().Err() != nil { // nobody waits for it any longer
		level = slog.LevelDebug
	}
	for _, id := range d.headers {
		w.Header().Del(id.name)
	}
	d.log.LogAttrs(r.Context(), level, "a proxied request could not be judged", slog.String("request_id", w.Header().Get("X-Request-Id")), slog.Any("error", err))
	refuse(w, d.status(err), "")
}

func refuse(w http.ResponseWriter, s *status.Status, challenge string) {
	text, h := body(s), w.Header()
	if challenge != "" {
		h.Set("WWW-Authenticate", challenge)
	}
	code := httpCode(s.Code())
	if code == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(code)
	_, _ = w.Write(text) // a proxy that has gone away is not our error
}

// httpCode maps what a question can end with.
func httpCode(c codes.Code) int {
	switch c {
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}
