// Package oauth owns the endpoints whose form the OAuth RFCs fix: the token endpoint (RFC 6749 §3.2) and the authorization
// server's metadata (RFC 8414). Its errors are those of RFC 6749 §5.2, not the google.rpc.Status of the REST door.
package oauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"

	"github.com/authsvc/authsvc/internal/oauth2"
	"github.com/authsvc/authsvc/internal/service"
)

// Paths under the issuer.
const (
	tokenPath  = "/oauth2/token"
	keySetPath = "/.well-known/" + oauth2.JWKSName
)

// tokens is what the token endpoint calls; service.Tokens is one.
type tokens interface {
	ClientCredentials(ctx context.Context, r service.ClientCredentialsRequest) (service.Issued, error)
}

// Options is what an OAuth door is made of. All are required.
type Options struct {
	// Issuer is the iss of our tokens, as oauth2.CheckIssuer wants it; no name is ever taken from a request.
	Issuer string
	// Tokens issues.
	Tokens tokens
	// Caller says who sent a request, as far as the transport tells: address, user agent, request id.
	Caller func(r *http.Request) service.Caller
	// Logger gets the causes of what failed on our side.
	Logger *slog.Logger
}

// Door is the OAuth endpoints.
type Door struct {
	tokens       tokens
	caller       func(*http.Request) service.Caller
	log          *slog.Logger
	basePath     string // of the issuer; without a slash at its end
	metadataPath string
	metadata     []byte
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
	metadataPath, err := oauth2.WellKnownPath(o.Issuer, oauth2.MetadataName)
	if err != nil {
		return nil, fmt.Errorf("oauth: Options.Issuer: %w", err)
	}
	issuer, err := url.Parse(o.Issuer)
	if err != nil {
		return nil, fmt.Errorf("oauth: Options.Issuer: %w", err)
	}
	d := &Door{tokens: o.Tokens, caller: o.Caller, log: o.Logger, basePath: issuer.Path, metadataPath: metadataPath}
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
		tokenPath:              http.HandlerFunc(d.serveToken),
		d.basePath + tokenPath: http.HandlerFunc(d.serveToken),
		d.metadataPath:         http.HandlerFunc(d.serveMetadata),
	}
}

func metadata(issuer string) ([]byte, error) {
	return json.Marshal(oauth2.Metadata{
		Issuer:                   issuer,
		TokenEndpoint:            issuer + tokenPath,
		JWKSURI:                  issuer + keySetPath,
		ResponseTypesSupported:   []string{}, // there is no authorization endpoint yet
		GrantTypesSupported:      []string{oauth2.GrantClientCredentials},
		TokenEndpointAuthMethods: []string{oauth2.AuthBasic},
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
		refuse(w, problem{code: http.StatusMethodNotAllowed, word: oauth2.InvalidRequest, text: "the metadata is read by GET"})
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
