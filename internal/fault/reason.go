package fault

// Reason is the stable word for one cause; it travels as google.rpc.ErrorInfo.reason with the domain "authsvc".
type Reason string

// The reasons. docs/errors.md is generated from this block.
const (
	// InvalidCredentials: username unknown, password wrong or account disabled; one answer for all of them.
	InvalidCredentials Reason = "INVALID_CREDENTIALS"
	// TokenInvalid: the bearer token is missing, malformed, not ours, or for another audience.
	TokenInvalid Reason = "TOKEN_INVALID"
	// TokenExpired: the signature is good, the time is over.
	TokenExpired Reason = "TOKEN_EXPIRED"
	// TokenRevoked: the signature is good, something has ended the token.
	TokenRevoked Reason = "TOKEN_REVOKED"
	// RefreshInvalid: the refresh token is malformed, its session has ended, or it is another client's.
	RefreshInvalid Reason = "REFRESH_INVALID"
	// RefreshExpired: the session's idle or absolute time is over.
	RefreshExpired Reason = "REFRESH_EXPIRED"
	// RefreshReused: an old refresh token came back; the session has been ended.
	RefreshReused Reason = "REFRESH_REUSED"
	// RefreshSuperseded: a late duplicate; read the newest token from storage and try once more.
	RefreshSuperseded Reason = "REFRESH_SUPERSEDED"
	// ClientInvalid: client authentication is missing or wrong, or the client_id is unknown.
	ClientInvalid Reason = "CLIENT_INVALID"
	// InvalidTarget: an audience that the client or the grant does not have.
	InvalidTarget Reason = "INVALID_TARGET"
	// InvalidScope: a scope that the client or the grant does not have, or malformed.
	InvalidScope Reason = "INVALID_SCOPE"
	// FieldInvalid: a malformed field; BadRequest details name it.
	FieldInvalid Reason = "FIELD_INVALID"
	// PermissionDenied: the caller is known and may not do this.
	PermissionDenied Reason = "PERMISSION_DENIED"
	// ScopeInsufficient: the token lacks a scope that this method needs.
	ScopeInsufficient Reason = "SCOPE_INSUFFICIENT"
	// SessionNotFound: no such live session of the caller.
	SessionNotFound Reason = "SESSION_NOT_FOUND"
	// AccountNotFound: no such account.
	AccountNotFound Reason = "ACCOUNT_NOT_FOUND"
	// ClientNotFound: no such client.
	ClientNotFound Reason = "CLIENT_NOT_FOUND"
	// KeyNotFound: no such signing key.
	KeyNotFound Reason = "KEY_NOT_FOUND"
	// UsernameTaken: the username, in its canonical form, is in use.
	UsernameTaken Reason = "USERNAME_TAKEN"
	// ClientExists: the client id is in use.
	ClientExists Reason = "CLIENT_EXISTS"
	// PasswordRejected: the new password is too short, too long or too common.
	PasswordRejected Reason = "PASSWORD_REJECTED"
	// VersionConflict: the row changed since it was read.
	VersionConflict Reason = "VERSION_CONFLICT"
	// KeyNotReady: the next key has not been published long enough to sign.
	KeyNotReady Reason = "KEY_NOT_READY"
	// RateLimited: too many failures; RetryInfo says when to try again.
	RateLimited Reason = "RATE_LIMITED"
	// Overloaded: shed under load before anything was done; RetryInfo says when to try again.
	Overloaded Reason = "OVERLOADED"
	// StoreUnavailable: the database did not answer in time; nothing was decided.
	StoreUnavailable Reason = "STORE_UNAVAILABLE"
	// ReplicaStale: this replica cannot prove that its view is fresh; another may.
	ReplicaStale Reason = "REPLICA_STALE"
	// FeedLagging: the watcher does not take what the feed sends; it begins anew from its last cursor.
	FeedLagging Reason = "FEED_LAGGING"
	// Draining: this replica is being stopped; another takes the call.
	Draining Reason = "DRAINING"
	// RefreshKeyUnknown: this replica does not have the refresh key that made the token; another may.
	RefreshKeyUnknown Reason = "REFRESH_KEY_UNKNOWN"
	// SigningUnavailable: no signing key is loaded and fresh.
	SigningUnavailable Reason = "SIGNING_UNAVAILABLE"
	// RouteNotFound: nothing is at this HTTP path.
	RouteNotFound Reason = "ROUTE_NOT_FOUND"
	// MethodNotAllowed: the HTTP path is there, the method is not; the Allow header lists those that are.
	MethodNotAllowed Reason = "METHOD_NOT_ALLOWED"
	// ContentTypeUnsupported: the HTTP body is not declared as plain application/json.
	ContentTypeUnsupported Reason = "CONTENT_TYPE_UNSUPPORTED"
	// BodyTooLarge: the HTTP body is over the limit of its method.
	BodyTooLarge Reason = "BODY_TOO_LARGE"
	// InternalError: anything else; the request id finds the cause in the log.
	InternalError Reason = "INTERNAL"
)
