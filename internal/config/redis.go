package config

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"slices"
	"strconv"

	"github.com/authsvc/authsvc/internal/store/redisstore"
)

// Redis is what the servers on one PostgreSQL share beside it. It needs database.url.
type Redis struct {
	// Addresses are host:port: of the server, of the Sentinels, or of some nodes of the Cluster. There is no Redis if empty.
	Addresses []string `yaml:"addresses"`
	// Mode is single, sentinel or cluster.
	Mode redisstore.Mode `yaml:"mode"`
	// MasterName is what the Sentinels call the server; for the mode sentinel alone.
	MasterName string `yaml:"master_name"`
	// Username is the ACL user; Redis's default user if empty.
	Username string `yaml:"username"`
	// PasswordFile holds the user's password, as text, mode 0600 or 0400; none if Redis asks for none.
	PasswordFile string `yaml:"password_file"`
	// Password is the same as a value; for those whose platform hands secrets over so.
	Password Secret `env:"password"`
	// SentinelUsername is the user at the Sentinels themselves; their default user if empty.
	SentinelUsername string `yaml:"sentinel_username"`
	// SentinelPasswordFile holds that user's password, like password_file; none if the Sentinels ask for none.
	SentinelPasswordFile string `yaml:"sentinel_password_file"`
	// SentinelPassword is the same as a value.
	SentinelPassword Secret `env:"sentinel_password"`
	// TLS is always used unless all addresses are loopback ones; there it is used if a file is named.
	TLS RedisTLS `yaml:"tls"`
}

// RedisTLS names files of PEM.
type RedisTLS struct {
	// CAFile holds the authorities that may vouch for Redis; the machine's if empty.
	CAFile string `yaml:"ca_file"`
	// CertFile is the chain that is shown to Redis, if it asks; read again for each connection.
	CertFile string `yaml:"cert_file"`
	// KeyFile is its private key, mode 0600 or 0400.
	KeyFile string `yaml:"key_file"`
}

// Secure reports whether connections are to use TLS.
func (r Redis) Secure() bool {
	return r.TLS != (RedisTLS{}) || slices.ContainsFunc(r.Addresses, func(a string) bool {
		host, _, err := net.SplitHostPort(a)
		return err != nil || !loopback(host)
	})
}

// redis checks what can be known without Redis.
func (p *problems) redis(c Config) {
	r := c.Redis
	if len(r.Addresses) == 0 {
		for _, s := range []struct{ name, value string }{{"master_name", r.MasterName}, {"username", r.Username}, {"password_file", r.PasswordFile + string(r.Password)},
			{"sentinel_username", r.SentinelUsername}, {"sentinel_password_file", r.SentinelPasswordFile + string(r.SentinelPassword)}, {"tls.ca_file", r.TLS.CAFile},
			{"tls.cert_file", r.TLS.CertFile}, {"tls.key_file", r.TLS.KeyFile}} {
			if s.value != "" {
				p.add("redis."+s.name, "is for redis.addresses, which is not set")
			}
		}
		return
	}
	if c.Database.Path != "" {
		p.add("redis.addresses", "Redis is for servers that share a PostgreSQL (database.url); with SQLite there is one server, which needs none: remove it")
	}
	for _, a := range r.Addresses {
		host, port, err := net.SplitHostPort(a)
		if n, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || n == 0 || host == "" {
			p.add("redis.addresses", "%q must be host:port, such as redis.internal:6379", clip(a))
		}
	}
	p.redisMode(r)
	p.redisUser("redis.username", r.Username, "redis.password", r.PasswordFile, r.Password)
	p.redisUser("redis.sentinel_username", r.SentinelUsername, "redis.sentinel_password", r.SentinelPasswordFile, r.SentinelPassword)
	p.redisTLS(r.TLS)
}

func (p *problems) redisMode(r Redis) {
	p.oneOf("redis.mode", string(r.Mode), string(redisstore.Single), string(redisstore.Sentinel), string(redisstore.Cluster))
	if r.Mode == redisstore.Single && len(r.Addresses) > 1 {
		p.add("redis.addresses", "names %d servers, and the mode single is for one: set redis.mode to sentinel or cluster", len(r.Addresses))
	}
	if r.Mode == redisstore.Sentinel {
		if r.MasterName == "" {
			p.add("redis.master_name", "is required for the mode sentinel: what the Sentinels call the server, such as mymaster")
		}
		return
	}
	for _, s := range []struct{ name, value string }{{"redis.master_name", r.MasterName}, {"redis.sentinel_username", r.SentinelUsername},
		{"redis.sentinel_password_file", r.SentinelPasswordFile + string(r.SentinelPassword)}} {
		if s.value != "" {
			p.add(s.name, "is for the mode sentinel alone, and redis.mode is %s", r.Mode)
		}
	}
}

// redisUser checks a name and where its password stands: without one nobody signs in.
func (p *problems) redisUser(setting, name, password, file string, value Secret) {
	switch {
	case file != "" || value != "":
		p.secret(password, file, value)
	case name != "":
		p.add(password+"_file", "is required beside %s", setting)
	}
}

func (p *problems) redisTLS(t RedisTLS) {
	if t.CAFile != "" {
		text, err := os.ReadFile(t.CAFile)
		if err != nil {
			p.add("redis.tls.ca_file", "%w", err)
		} else if !x509.NewCertPool().AppendCertsFromPEM(text) {
			p.add("redis.tls.ca_file", "%s holds no certificate in PEM", t.CAFile)
		}
	}
	switch {
	case t.CertFile == "" && t.KeyFile == "":
	case t.CertFile == "":
		p.add("redis.tls.cert_file", "is required beside key_file")
	case t.KeyFile == "":
		p.add("redis.tls.key_file", "is required beside cert_file")
	case p.keyFile("redis.tls.key_file", t.KeyFile):
		if _, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile); err != nil {
			p.add("redis.tls", "cert_file and key_file are not a readable PEM pair: %w", err)
		}
	}
}
