// Package config owns the one Config of the service, composed of each package's section: its fields and defaults, how
// it is read from YAML and the environment, and how it is printed without its secrets. Decoding is strict: an unknown key
// is an error that names it. No secret has a default, and none stands in the file itself: it names the files that hold them, or
// they come from the environment.
package config

import (
	"net/netip"

	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/server/extauthz"
	"github.com/authsvc/authsvc/internal/store/redisstore"
)

// Config is everything that `authsvc serve` is told.
type Config struct {
	// Issuer is the https URL that tokens carry as iss, byte for byte; also authsvc's own audience. Required.
	Issuer string `yaml:"issuer"`
	// HTTP is the listener of the REST and OAuth endpoints.
	HTTP Listener `yaml:"http"`
	// GRPC is the listener of the gRPC services.
	GRPC GRPC `yaml:"grpc"`
	// Ops is the listener of health, readiness and metrics; never to be public.
	Ops Ops `yaml:"ops"`
	// Admin is the operators' socket.
	Admin Admin `yaml:"admin"`
	// Database is where accounts, clients, sessions, keys and the revocation log live.
	Database Database `yaml:"database"`
	// Redis counts failed sign-ins for all servers on one PostgreSQL, and tells them of revocations; see redis.md.
	Redis Redis `yaml:"redis"`
	// Secrets names the files that hold the key-encryption keys and the refresh keys.
	Secrets Secrets `yaml:"secrets"`
	// Gateway is what the HTTP listener trusts.
	Gateway Gateway `yaml:"gateway"`
	// ForwardAuth is what reverse proxies may ask.
	ForwardAuth extauthz.Config `yaml:"forward_auth"`
	// Keys says how signing keys rotate.
	Keys keys.Config `yaml:"keys"`
	// Password says what a password hash costs and how many run at once.
	Password password.Config `yaml:"password"`
	// Limits says how many failed sign-ins there may be.
	Limits limit.Config `yaml:"limits"`
	// Session bounds sessions.
	Session Session `yaml:"session"`
	// Log says what is logged, and how.
	Log Log `yaml:"log"`
	// Telemetry says where traces and metrics are sent, beside /metrics.
	Telemetry Telemetry `yaml:"telemetry"`
}

// Listener is one address and its TLS.
type Listener struct {
	// Address is host:port; port 0 takes any free one.
	Address string `yaml:"address"`
	// TLS is required unless the address is loopback.
	TLS TLS `yaml:"tls"`
}

// TLS names the certificate; both files are read again when they change.
type TLS struct {
	// CertFile is the PEM chain.
	CertFile string `yaml:"cert_file"`
	// KeyFile is the PEM private key.
	KeyFile string `yaml:"key_file"`
}

// GRPC is the gRPC listener.
type GRPC struct {
	Listener `yaml:",inline"`
	// Reflection serves gRPC server reflection, so that grpcurl needs no protos.
	Reflection bool `yaml:"reflection"`
}

// Ops is the operators' listener.
type Ops struct {
	// Address is host:port; port 0 takes any free one.
	Address string `yaml:"address"`
	// PProf serves /debug/pprof; at a loopback address alone.
	PProf bool `yaml:"pprof"`
	// Exposed allows an address beyond loopback, for probes and Prometheus on other machines. The listener has no authentication: a network of
	// their own, or a firewall, must keep everybody else away.
	Exposed bool `yaml:"exposed"`
}

// Admin is what the server tells operators on its own machine, such as who follows the trust feed.
type Admin struct {
	// Socket is a Unix socket that the server makes, for its own user and root alone, in a folder of the service's own,
	// which is made if the one above it is there. Each server has its own. There is none if empty.
	Socket string `yaml:"socket"`
}

// Database is the store: either path or url is required.
type Database struct {
	// Path is the SQLite file; its folder must exist and be the service's own.
	Path string `yaml:"path"`
	// URL is a PostgreSQL database (13 or later), without a password: postgres://authsvc@db.example.com/authsvc?sslmode=verify-full.
	// Several hosts may be named, with commas; the primary is taken. sslmode=verify-full is required unless the host is a loopback
	// address or a socket's folder. Parameters: sslrootcert, sslcert, sslkey, search_path, pool_max_conns (four per core; two more
	// follow the revocation log), connect_timeout (2 s for each host).
	URL string `yaml:"url"`
	// PasswordFile holds the password of the URL's user, as text, mode 0600 or 0400; none if the server asks for none.
	PasswordFile string `yaml:"password_file"`
	// Password is the same as a value; for those whose platform hands secrets over so.
	Password Secret `env:"password"`
}

// Secrets names key files: JSON, mode 0600 or 0400, {"keys": [{"id": "1", "key": "<32 bytes, base64url>"}, …]}. The first
// key serves new data, all open what exists. A refresh key has a number from 0 to 255 as id, and may be marked "gone": true. A file
// of root's may be 0640 or 0440 where the server is not root, as systemd and Kubernetes hand it over.
type Secrets struct {
	// KeyEncryptionKeysFile seals the private signing keys in the database. Required.
	KeyEncryptionKeysFile string `yaml:"key_encryption_keys_file"`
	// RefreshKeysFile authenticates refresh tokens. Required.
	RefreshKeysFile string `yaml:"refresh_keys_file"`
	// KeyEncryptionKeys is the content of such a file.
	KeyEncryptionKeys Secret `env:"key_encryption_keys"`
	// RefreshKeys is the content of such a file.
	RefreshKeys Secret `env:"refresh_keys"`
}

// Gateway is what the HTTP listener trusts.
type Gateway struct {
	// TrustedProxies are the networks whose X-Forwarded-For is believed; the right-most address outside them is the client.
	TrustedProxies []netip.Prefix `yaml:"trusted_proxies"`
	// CORSOrigins are the exact origins of browsers' pages that may call, such as https://app.example.com.
	CORSOrigins []string `yaml:"cors_origins"`
}

// Session bounds sessions.
type Session struct {
	// MaxPerAccount is how many live sessions an account may have; beyond it the oldest is ended.
	MaxPerAccount int `yaml:"max_per_account"`
}

// Log says what is logged, and how.
type Log struct {
	// Level is debug, info, warn or error.
	Level string `yaml:"level"`
	// Format is json, text, or auto: text on a terminal, else json.
	Format string `yaml:"format"`
}

// Telemetry says where traces and metrics are sent by OTLP over gRPC.
type Telemetry struct {
	// Endpoint is the collector's host:port; nothing is sent if empty.
	Endpoint string `yaml:"endpoint"`
	// Insecure sends without TLS; only to a loopback address.
	Insecure bool `yaml:"insecure"`
	// SampleRatio is the share of traces that begin here, from 0 to 1; a caller's own decision is followed.
	SampleRatio float64 `yaml:"sample_ratio"`
}

// Default is the configuration before the file is read.
func Default() Config {
	return Config{
		HTTP:        Listener{Address: "127.0.0.1:8080"},
		GRPC:        GRPC{Listener: Listener{Address: "127.0.0.1:9090"}},
		Ops:         Ops{Address: "127.0.0.1:9091"},
		ForwardAuth: extauthz.DefaultConfig(),
		Keys:        keys.DefaultConfig(),
		Password:    password.DefaultConfig(),
		Redis:       Redis{Mode: redisstore.Single},
		Limits:      limit.DefaultConfig(),
		Session:     Session{MaxPerAccount: 100},
		Log:         Log{Level: "info", Format: "auto"},
		Telemetry:   Telemetry{SampleRatio: 0.01},
	}
}
