package oauth2

import (
	"errors"
	"net/netip"
	"net/url"
	"strings"
)

// Metadata describes an authorization server (RFC 8414 §2). Only what exists is named.
type Metadata struct {
	Issuer                           string   `json:"issuer"`
	TokenEndpoint                    string   `json:"token_endpoint,omitempty"`
	JWKSURI                          string   `json:"jwks_uri,omitempty"`
	ScopesSupported                  []string `json:"scopes_supported,omitempty"`
	ResponseTypesSupported           []string `json:"response_types_supported"` // required; empty without an authorization endpoint
	GrantTypesSupported              []string `json:"grant_types_supported,omitempty"`
	TokenEndpointAuthMethods         []string `json:"token_endpoint_auth_methods_supported,omitempty"`
	RevocationEndpoint               string   `json:"revocation_endpoint,omitempty"`
	RevocationEndpointAuthMethods    []string `json:"revocation_endpoint_auth_methods_supported,omitempty"`
	IntrospectionEndpoint            string   `json:"introspection_endpoint,omitempty"`
	IntrospectionEndpointAuthMethods []string `json:"introspection_endpoint_auth_methods_supported,omitempty"`
	ServiceDocumentation             string   `json:"service_documentation,omitempty"`
}

// The well-known names.
const (
	MetadataName = "oauth-authorization-server" // RFC 8414 §3
	JWKSName     = "jwks.json"
)

// ErrIssuer is what CheckIssuer answers.
var ErrIssuer = errors.New("oauth2: an issuer is an https URL without query, fragment, user or trailing slash (http on loopback only)")

// maxIssuer is the longest issuer, in bytes.
const maxIssuer = 256

// CheckIssuer says whether s can be an issuer (RFC 8414 §2). Issuers are compared byte for byte (§3.3), so one that a reader
// might spell in another way is refused: a trailing slash, dot segments, upper case in the host, a default port.
func CheckIssuer(s string) error {
	u, err := url.Parse(s)
	if err != nil || len(s) > maxIssuer || u.Host == "" || u.Hostname() == "" || u.User != nil || u.Opaque != "" ||
		strings.ContainsAny(s, "?#%") || strings.HasSuffix(s, "/") || strings.HasSuffix(u.Host, ":") || u.Host != strings.ToLower(u.Host) || u.String() != s {
		return ErrIssuer
	}
	for segment := range strings.SplitSeq(strings.TrimPrefix(u.Path, "/"), "/") {
		if segment == "." || segment == ".." || segment == "" && u.Path != "" {
			return ErrIssuer
		}
	}
	switch {
	case u.Scheme == "https" && u.Port() != "443":
		return nil
	case u.Scheme == "http" && u.Port() != "80" && loopback(u.Hostname()):
		return nil
	}
	return ErrIssuer
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// WellKnownPath gives the path at which an issuer's document of that name is served: the well-known part stands between
// host and path of the issuer (RFC 8414 §3.1).
func WellKnownPath(issuer, name string) (string, error) {
	if err := CheckIssuer(issuer); err != nil {
		return "", err
	}
	u, err := url.Parse(issuer)
	if err != nil {
		return "", ErrIssuer
	}
	return "/.well-known/" + name + u.EscapedPath(), nil
}
