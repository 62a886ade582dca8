// Package oauth owns the endpoints whose form the OAuth RFCs fix: the token endpoint (RFC 6749 §3.2) and the authorization
// server's metadata (RFC 8414). Its errors are those of RFC 6749 §5.2, not the google.rpc.Status of the REST door.
package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/url"
	"strings"

	"github.com/authsvc/authsvc/internal/service"
)

// Paths of the endpoints, under the issuer.
const (
	tokenPath    = "/oauth2/token"
	keySetPath   = "/.well-known/jwks.json"
	metadataPath = "/.well-known/oauth-authorization-server"
)

// tokens is what the token endpoint calls; service.Tokens is one.
type tokens interface {
	ClientCredentials(ctx context.Context, r service.ClientCredentialsRequest) (service.Issued, error)
}

// Options is what an OAuth door is made of. All are required.
type Options struct {
	// Issuer is the iss of our tokens: an absolute http or https URL without query, fragment or user; it is never taken from a
	// request. Config decides where http is allowed.
	Issuer string
	// Tokens issues.
	Tokens tokens
	// Caller says who sent a request, as far as the transport tells: address, user agent, request id.
	Caller func(r *http.Request) service.Caller
	// Logger gets the causes of internal errors.
	Logger *slog.Logger
}

// Door is the OAuth endpoints.
type Door struct {
	tokens   tokens
	caller   func(*http.Request) service.Caller
	log      *slog.Logger
	basePath string
	metadata []byte
}

// New makes an OAuth door.
func New(o Options) (*Door, error) {
	switch {
	case o.Tokens == nil:
		return nil, errors.New("oauth: Options.Tokens is required")
	case o.Caller == nil:
		return nil, errors.New("oauth: Options.Caller is required")
	case o.Logger == nil:
		return nil, errors.New("oauth: Options.Logger is required")
	}
	issuer, err := url.Parse(o.Issuer)
	if err != nil || issuer.Scheme != "https" && issuer.Scheme != "http" || issuer.Host == "" || issuer.User != nil ||
		issuer.RawQuery != "" || issuer.ForceQuery || strings.Contains(o.Issuer, "#") {
		return nil, errors.New("oauth: Options.Issuer is not an absolute http or https URL without user, query and fragment (RFC 8414 §2)")
	}
	d := &Door{tokens: o.Tokens, caller: o.Caller, log: o.Logger, basePath: strings.TrimSuffix(issuer.EscapedPath(), "/")}
	if d.metadata, err = metadata(o.Issuer); err != nil {
		return nil, err
	}
	return d, nil
}

// Routes gives the handlers by exact path. Where the issuer has a path, the token endpoint is served under it and at the
// root, for proxies that strip the prefix and for those that do not, and the metadata has the path behind its name
// (RFC 8414 §3).
func (d *Door) Routes() map[string]http.Handler {
	return map[string]http.Handler{
		tokenPath:                 http.HandlerFunc(d.serveToken),
		d.basePath + tokenPath:    http.HandlerFunc(d.serveToken),
		metadataPath + d.basePath: http.HandlerFunc(d.serveMetadata),
	}
}

// document is RFC 8414 §2, of which only what exists is said.
type document struct {
	Issuer            string   `json:"issuer"`
	TokenEndpoint     string   `json:"token_endpoint"`
	JWKSURI           string   `json:"jwks_uri"`
	ResponseTypes     []string `json:"response_types_supported"`
	GrantTypes        []string `json:"grant_types_supported"`
	TokenEndpointAuth []string `json:"token_endpoint_auth_methods_supported"`
}

func metadata(issuer string) ([]byte, error) {
	base := strings.TrimSuffix(issuer, "/")
	return json.Marshal(document{
		Issuer:            issuer,
		TokenEndpoint:     base + tokenPath,
		JWKSURI:           base + keySetPath,
		ResponseTypes:     []string{}, // required by the RFC; there is no authorization endpoint yet
		GrantTypes:        []string{grantClientCredentials},
		TokenEndpointAuth: []string{"client_secret_basic"},
	})
}

func (d *Door) serveMetadata(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("X-Content-Type-Options", "nosniff")
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		h.Set("Content-Type", "application/json")
		h.Set("Cache-Control", "public, max-age=300")
		_, _ = w.Write(d.metadata) // a client that has gone away is not our error
	case http.MethodOptions:
		preflight(h, "GET, HEAD, OPTIONS", "")
		w.WriteHeader(http.StatusNoContent)
	default:
		h.Set("Allow", "GET, HEAD, OPTIONS")
		refuse(w, problem{code: http.StatusMethodNotAllowed, word: invalidRequest, text: "the metadata is read by GET"})
	}
}

// preflight lets a page of any origin call, without credentials of the browser's own (R12): these endpoints have no
// cookies, and a page must already hold what it sends.
func preflight(h http.Header, methods, headers string) {
	h.Set("Allow", methods)
	h.Set("Access-Control-Allow-Methods", methods)
	if headers != "" {
		h.Set("Access-Control-Allow-Headers", headers)
	}
	h.Set("Access-Control-Max-Age", "600")
}
