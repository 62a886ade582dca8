package config_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/store/redisstore"
)

// onPostgreSQL is a sound configuration with a single Redis on loopback.
func onPostgreSQL(t *testing.T) (config.Config, string) {
	t.Helper()
	c, dir := sound(t)
	c.Database = config.Database{URL: "postgres://authsvc@127.0.0.1/authsvc"}
	c.Redis.Addresses = []string{"127.0.0.1:6379"}
	return c, dir
}

func TestRedisIsValidated(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, c *config.Config, dir string)
		want   string // nothing where it is accepted
	}{
		{"a single server", func(*testing.T, *config.Config, string) {}, ""},
		{"none", func(_ *testing.T, c *config.Config, _ string) { c.Redis = config.Default().Redis }, ""},
		{"none, and its password", func(_ *testing.T, c *config.Config, _ string) {
			c.Redis = config.Redis{Mode: redisstore.Single, PasswordFile: "x"}
		}, "redis.password_file: is for redis.addresses, which is not set"},
		{"none, and its authority", func(_ *testing.T, c *config.Config, _ string) {
			c.Redis = config.Redis{Mode: redisstore.Single, TLS: config.RedisTLS{CAFile: "x"}}
		}, "redis.tls.ca_file: is for redis.addresses"},
		{"beside SQLite", func(_ *testing.T, c *config.Config, dir string) { c.Database = config.Database{Path: dir + "/a.db"} },
			"redis.addresses: Redis is for servers that share a PostgreSQL (database.url); with SQLite there is one server, which needs none: remove it"},
		{"an address without a port", func(_ *testing.T, c *config.Config, _ string) { c.Redis.Addresses = []string{"redis"} }, `redis.addresses: "redis" must be host:port`},
		{"an address of port 0", func(_ *testing.T, c *config.Config, _ string) { c.Redis.Addresses = []string{"redis:0"} }, "redis.addresses"},
		{"a URL", func(_ *testing.T, c *config.Config, _ string) { c.Redis.Addresses = []string{"redis://redis:6379"} }, "redis.addresses"},
		{"an unknown mode", func(_ *testing.T, c *config.Config, _ string) { c.Redis.Mode = "ring" }, `redis.mode: is "ring"; it must be one of single, sentinel, cluster`},
		{"a single server of two", func(_ *testing.T, c *config.Config, _ string) { c.Redis.Addresses = []string{"a:1", "b:1"} }, "redis.addresses: names 2 servers"},
		{"a Cluster", func(_ *testing.T, c *config.Config, _ string) {
			c.Redis.Addresses, c.Redis.Mode = []string{"a:1", "b:1"}, redisstore.Cluster
		}, ""},
		{"a Cluster with a master's name", func(_ *testing.T, c *config.Config, _ string) {
			c.Redis.MasterName, c.Redis.Mode = "main", redisstore.Cluster
		}, "redis.master_name: is for the mode sentinel alone"},
		{"Sentinels with a password of their own", func(t *testing.T, c *config.Config, dir string) {
			c.Redis.MasterName, c.Redis.Mode = "main", redisstore.Sentinel
			c.Redis.SentinelUsername, c.Redis.SentinelPasswordFile = "watcher", write(t, filepath.Join(dir, "sentinel"), "geheim", 0o600)
		}, ""},
		{"Sentinels without a name", func(_ *testing.T, c *config.Config, _ string) { c.Redis.Mode = redisstore.Sentinel }, "redis.master_name: is required"},
		{"a Sentinel's password for a single server", func(t *testing.T, c *config.Config, dir string) {
			c.Redis.SentinelPasswordFile = write(t, filepath.Join(dir, "sentinel"), "geheim", 0o600)
		}, "redis.sentinel_password_file: is for the mode sentinel alone"},
		{"a user with a password", func(t *testing.T, c *config.Config, dir string) {
			c.Redis.Username, c.Redis.PasswordFile = "authsvc", write(t, filepath.Join(dir, "redis"), "geheim", 0o400)
		}, ""},
		{"a user without one", func(_ *testing.T, c *config.Config, _ string) { c.Redis.Username = "authsvc" }, "redis.password_file: is required beside redis.username"},
		{"a password in the environment", func(_ *testing.T, c *config.Config, _ string) {
			c.Redis.Username, c.Redis.Password = "authsvc", "geheim"
		}, ""},
		{"a password in two places", func(t *testing.T, c *config.Config, dir string) {
			c.Redis.Password, c.Redis.PasswordFile = "geheim", write(t, filepath.Join(dir, "redis"), "geheim", 0o400)
		}, "redis.password_file: stands beside AUTHSVC_REDIS_PASSWORD"},
		{"a password that others may read", func(t *testing.T, c *config.Config, dir string) {
			c.Redis.PasswordFile = write(t, filepath.Join(dir, "redis"), "geheim", 0o644)
		}, "redis.password_file: "},
		{"a pair and its authority", func(t *testing.T, c *config.Config, dir string) {
			pair := certificate(t, dir)
			c.Redis.TLS = config.RedisTLS{CAFile: pair.CertFile, CertFile: pair.CertFile, KeyFile: pair.KeyFile}
		}, ""},
		{"an authority that is none", func(t *testing.T, c *config.Config, dir string) {
			c.Redis.TLS.CAFile = write(t, filepath.Join(dir, "ca"), "no", 0o644)
		}, "redis.tls.ca_file: "},
		{"an authority that is not there", func(_ *testing.T, c *config.Config, dir string) { c.Redis.TLS.CAFile = dir + "/none" }, "redis.tls.ca_file: "},
		{"a certificate without its key", func(t *testing.T, c *config.Config, dir string) {
			c.Redis.TLS.CertFile = certificate(t, dir).CertFile
		}, "redis.tls.key_file: is required"},
		{"a key without its certificate", func(t *testing.T, c *config.Config, dir string) { c.Redis.TLS.KeyFile = certificate(t, dir).KeyFile }, "redis.tls.cert_file: is required"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c, dir := onPostgreSQL(t)
			tt.change(t, &c, dir)
			err := c.Validate()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("Validate: %v, want %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "geheim") {
				t.Errorf("a password is in %v", err)
			}
		})
	}
}

func TestBeyondLoopbackRedisIsReachedByTLS(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		redis  config.Redis
		secure bool
	}{
		{config.Redis{Addresses: []string{"127.0.0.1:1", "[::1]:1", "localhost:1"}}, false},
		{config.Redis{Addresses: []string{"127.0.0.1:1"}, TLS: config.RedisTLS{CAFile: "ca"}}, true},
		{config.Redis{Addresses: []string{"127.0.0.1:1", "10.0.0.1:1"}}, true},
		{config.Redis{Addresses: []string{"redis.internal:6379"}}, true},
		{config.Redis{Addresses: []string{"broken"}}, true},
	} {
		if got := tt.redis.Secure(); got != tt.secure {
			t.Errorf("%v with %+v: TLS is %v", tt.redis.Addresses, tt.redis.TLS, got)
		}
	}
}
