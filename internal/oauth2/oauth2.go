// Package oauth2 owns the words of the OAuth 2 protocol and its pure rules: scopes, client authentication by HTTP
// Basic, error codes and server metadata. It does no I/O and knows nothing of clients or tokens.
package oauth2

// ErrorCode is the error of an OAuth error response (RFC 6749 §5.2).
type ErrorCode string

// The error codes of the token endpoint.
const (
	InvalidRequest         ErrorCode = "invalid_request"
	InvalidClient          ErrorCode = "invalid_client"
	UnauthorizedClient     ErrorCode = "unauthorized_client"
	UnsupportedGrantType   ErrorCode = "unsupported_grant_type"
	InvalidScope           ErrorCode = "invalid_scope"
	InvalidTarget          ErrorCode = "invalid_target"          // RFC 8707 §2
	ServerError            ErrorCode = "server_error"            // RFC 6749 §4.1.2.1, used where the fault is ours
	TemporarilyUnavailable ErrorCode = "temporarily_unavailable" // RFC 6749 §4.1.2.1, with 429 or 503
)

// ErrorResponse is the body of an error (RFC 6749 §5.2).
type ErrorResponse struct {
	Error       ErrorCode `json:"error"`
	Description string    `json:"error_description,omitempty"`
}

// GrantClientCredentials is the grant_type of RFC 6749 §4.4.
const GrantClientCredentials = "client_credentials"

// TokenTypeBearer is the token_type of RFC 6750.
const TokenTypeBearer = "Bearer"

// AuthBasic is the client authentication method of RFC 6749 §2.3.1, by its name in RFC 8414 §2.
const AuthBasic = "client_secret_basic"
