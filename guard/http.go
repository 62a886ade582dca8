package guard

import (
	"encoding/json"
	"net/http"
	"net/url"
	"path"
	"strings"
)

// Middleware guards an http.Handler. The rule is looked for by exact match, in this order: "METHOD /path", "/path", and, where
// the middleware stands behind a ServeMux, the pattern that the mux found (such as "GET /orders/{id}"); the path is the one that
// was sent, escapes kept. Where none is found, Options.Default answers.
//
// Neither Default nor a wider pattern lets through what the table names otherwise: a path in another spelling ("/%61dmin", "//admin" or
// "/x/../admin" where "/admin" has a rule), or HEAD where GET has one. A mux further in may lead those to the same handler, so nobody
// may call them.
//
// A token is read from the Authorization field only, never from the query or the body
// (RFC 9700 §4.3.2). Refusals are those of RFC 6750 §3 with a google.rpc.Status as JSON: 401, 403, or 503 with Retry-After.
func (g *Guard) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, rule := g.httpRule(r)
		ctx, no := g.decide(r.Context(), key, rule, r.Header["Authorization"])
		if no != nil {
			g.refuseHTTP(w, no)
			return
		}
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

func (g *Guard) httpRule(r *http.Request) (string, Rule) {
	sent := r.URL.EscapedPath()
	for _, key := range []string{r.Method + " " + sent, sent} {
		if rule, ok := g.rules[key]; ok {
			return key, rule
		}
	}
	key := r.Pattern
	rule, ok := g.rules[key]
	if !ok {
		key, rule = "", g.fallback
	}
	if !rule.denies() && g.respelled(r, key) {
		return "", Rule{}
	}
	return key, rule
}

// respelled says whether a request that no rule names as it was sent is another spelling of what a rule names, other than the one of
// the key.
func (g *Guard) respelled(r *http.Request, key string) bool {
	plain := plainPath(r.URL.Path)
	candidates := []string{r.Method + " " + plain, plain}
	if r.Method == http.MethodHead {
		candidates = []string{r.Method + " " + plain, http.MethodGet + " " + plain, plain}
	}
	for _, c := range candidates {
		if g.spelled[c] {
			return key == "" || spelling(key) != c
		}
	}
	return false
}

// spelling is a rule's key with its path in the plain spelling.
func spelling(key string) string {
	method, sent := key[:strings.Index(key, "/")], key[strings.Index(key, "/"):]
	if plain, err := url.PathUnescape(sent); err == nil {
		sent = plain
	}
	return method + plainPath(sent)
}

// plainPath is a path without escapes in the spelling to which http.ServeMux redirects.
func plainPath(p string) string {
	plain := path.Clean("/" + p)
	if strings.HasSuffix(p, "/") && plain != "/" {
		plain += "/"
	}
	return plain
}

func (g *Guard) refuseHTTP(w http.ResponseWriter, no *refusal) {
	code := http.StatusUnauthorized
	switch no.reason {
	case ReasonPermissionDenied, ReasonScopeInsufficient:
		code = http.StatusForbidden
	case ReasonReplicaStale:
		code = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	}
	if challenge := g.challenge(no); challenge != "" {
		w.Header().Set("WWW-Authenticate", challenge)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	body, err := json.Marshal(newHTTPStatus(no))
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.WriteHeader(code)
	_, _ = w.Write(append(body, '\n')) // the caller has gone if this fails
}

// challenge is the WWW-Authenticate field of RFC 6750 §3. Without credentials it has no error code (§3.1).
func (g *Guard) challenge(no *refusal) string {
	var parameters []string
	if g.realm != "" {
		parameters = append(parameters, `realm="`+g.realm+`"`)
	}
	switch no.reason {
	case ReasonTokenInvalid, ReasonTokenExpired, ReasonTokenRevoked:
		if !no.bare {
			parameters = append(parameters, `error="invalid_token"`, `error_description="`+no.message+`"`)
		}
	case ReasonScopeInsufficient:
		parameters = append(parameters, `error="insufficient_scope"`, `scope="`+strings.Join(no.scopes, " ")+`"`)
	default:
		return ""
	}
	if len(parameters) == 0 {
		return "Bearer"
	}
	return "Bearer " + strings.Join(parameters, ", ")
}

// httpStatus is google.rpc.Status in JSON, with one google.rpc.ErrorInfo.
type httpStatus struct {
	Code    uint32       `json:"code"`
	Message string       `json:"message"`
	Details []httpDetail `json:"details"`
}

type httpDetail struct {
	Type   string `json:"@type"`
	Reason string `json:"reason"`
	Domain string `json:"domain"`
}

func newHTTPStatus(no *refusal) httpStatus {
	return httpStatus{
		Code: uint32(no.code()), Message: no.message,
		Details: []httpDetail{{Type: "type.googleapis.com/google.rpc.ErrorInfo", Reason: no.reason, Domain: Domain}},
	}
}
