package rest

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/authsvc/authsvc/internal/fault"
)

// preflightSeconds is how long a browser may remember a preflight.
const preflightSeconds = "600"

// origins checks the configured origins: each in the one spelling that a browser sends, so that comparing is exact.
func origins(list []string) (map[string]bool, error) {
	set := make(map[string]bool, len(list))
	for _, o := range list {
		u, err := url.Parse(o)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || o != u.Scheme+"://"+strings.ToLower(u.Host) {
			return nil, fmt.Errorf("rest: CORS origin %q: want scheme://host or scheme://host:port, lower case, nothing behind it", o)
		}
		if u.Scheme == "http" && u.Port() == "80" || u.Scheme == "https" && u.Port() == "443" {
			return nil, fmt.Errorf("rest: CORS origin %q: a browser leaves out the scheme's own port", o)
		}
		set[o] = true
	}
	return set, nil
}

// cors sets the headers that let a page of a listed origin read the answer. There is never Allow-Credentials: this API
// has no cookies. allowed is false for an origin that is not listed, which is served without these headers, as a program is.
func (d *door) cors(h http.Header, r *http.Request) (allowed bool) {
	if len(d.origins) > 0 {
		h.Add("Vary", "Origin")
	}
	origin := r.Header["Origin"]
	if len(origin) != 1 || !d.origins[origin[0]] {
		return false
	}
	h.Set("Access-Control-Allow-Origin", origin[0])
	h.Set("Access-Control-Expose-Headers", "Authsvc-Device, Retry-After, WWW-Authenticate, X-Request-Id")
	return true
}

// options answers OPTIONS at a place of the API: a preflight of a listed origin, or the plain list of methods.
func (d *door) options(w http.ResponseWriter, r *http.Request, in *inbound, p *place, allowed bool) {
	h := w.Header()
	h.Set("Allow", p.allow())
	if r.Header.Get("Origin") != "" && !allowed {
		d.fail(r.Context(), w, in, fault.New(fault.Denied, fault.PermissionDenied, "this origin may not call"))
		return
	}
	if verb := r.Header.Get("Access-Control-Request-Method"); allowed && verb != "" {
		h.Set("Access-Control-Allow-Methods", p.allow())
		h.Set("Access-Control-Allow-Headers", "Authorization, Authsvc-Device, Content-Type, Traceparent")
		h.Set("Access-Control-Max-Age", preflightSeconds)
		h.Add("Vary", "Access-Control-Request-Method, Access-Control-Request-Headers")
	}
	w.WriteHeader(http.StatusNoContent)
}
