package rest

import (
	"bytes"
	"net/http"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
)

// keySetPath is where verifiers find the keys.
const keySetPath = "/.well-known/jwks.json"

// documents are the two things at fixed paths that anybody may read, from any origin, without credentials.
func (d *door) documents() map[string]http.HandlerFunc {
	docs := map[string]http.HandlerFunc{d.basePath + keySetPath: d.serveKeySet, keySetPath: d.serveKeySet}
	if len(d.openAPI) > 0 {
		docs["/openapi.json"] = d.serveOpenAPI
	}
	return docs
}

func (d *door) serveKeySet(w http.ResponseWriter, r *http.Request) {
	if !d.readable(w, r) {
		return
	}
	data, etag, err := d.keySet(r.Context())
	if err != nil {
		d.fail(r.Context(), w, inboundFrom(r.Context()), err)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/jwk-set+json")
	h.Set("Cache-Control", "public, max-age=300, stale-if-error=86400")
	h.Set("ETag", etag)
	// ServeContent answers If-None-Match (RFC 9110 §13.1.2) and HEAD.
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

func (d *door) serveOpenAPI(w http.ResponseWriter, r *http.Request) {
	if !d.readable(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(d.openAPI))
}

// readable lets GET and HEAD through, and answers everything else.
func (d *door) readable(w http.ResponseWriter, r *http.Request) bool {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		return true
	case http.MethodOptions:
		h.Set("Allow", "GET, HEAD, OPTIONS")
		h.Set("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS")
		h.Set("Access-Control-Allow-Headers", "If-None-Match")
		h.Set("Access-Control-Max-Age", preflightSeconds)
		w.WriteHeader(http.StatusNoContent)
	default:
		h.Set("Allow", "GET, HEAD, OPTIONS")
		d.failAs(r.Context(), w, inboundFrom(r.Context()), errMethod(), http.StatusMethodNotAllowed)
	}
	return false
}

func errMethod() error {
	return fault.New(fault.Invalid, fault.MethodNotAllowed, "this path does not take this method; the Allow header lists those it takes")
}
