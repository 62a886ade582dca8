package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/store/redisstore"
)

// openRedis makes the client of Redis, if there is to be one. What can never work stops here; a Redis that is away does not.
func (a *App) openRedis(ctx context.Context) error {
	if len(a.cfg.Redis.Addresses) == 0 {
		return nil
	}
	o, err := redisOptions(a.cfg)
	if err != nil {
		return err
	}
	o.Logger, o.Called = a.log, a.meter.redisCalled
	for _, outcome := range redisstore.Outcomes() {
		a.meter.redisCalls.Add(ctx, 0, outcomeOf(outcome))
	}
	if a.redis, err = redisstore.New(o); err != nil {
		return err
	}
	return a.redis.Start(ctx)
}

// shared are the counters that all replicas share, if there are any.
func (a *App) shared() limit.Shared {
	if a.redis == nil {
		return nil
	}
	return a.redis
}

// announce tells the other replicas that the revocation log has grown.
func (a *App) announce() {
	if a.redis != nil {
		a.redis.Announce()
	}
}

// redisUp is 1 while Redis is asked.
func (a *App) redisUp() float64 {
	if a.redis.Up() {
		return 1
	}
	return 0
}

// checkRedis says what Redis itself finds wrong with the settings; that it is away is none of it.
func checkRedis(ctx context.Context, cfg config.Config) error {
	if len(cfg.Redis.Addresses) == 0 {
		return nil
	}
	o, err := redisOptions(cfg)
	if err != nil {
		return err
	}
	o.Logger = slog.New(slog.DiscardHandler)
	s, err := redisstore.New(o)
	if err != nil {
		return err
	}
	return errors.Join(s.Start(ctx), s.Close())
}

// redisOptions says where Redis is, with the passwords and certificates that stand in files.
func redisOptions(cfg config.Config) (redisstore.Options, error) {
	c := cfg.Redis
	o := redisstore.Options{Addresses: c.Addresses, Mode: c.Mode, MasterName: c.MasterName, Username: c.Username, SentinelUsername: c.SentinelUsername, Issuer: cfg.Issuer}
	for _, f := range []struct {
		setting, path string
		value         config.Secret
		into          *string
	}{{"redis.password", c.PasswordFile, c.Password, &o.Password},
		{"redis.sentinel_password", c.SentinelPasswordFile, c.SentinelPassword, &o.SentinelPassword}} {
		if f.path == "" && f.value == "" {
			continue
		}
		s := from(f.path, f.value, f.setting)
		text, err := s.read()
		if err != nil {
			return o, named(f.setting+"_file", err)
		}
		if *f.into = strings.TrimRight(string(text), "\r\n"); *f.into == "" {
			return o, fmt.Errorf("%s_file: %s is empty", f.setting, s.name)
		}
	}
	if !c.Secure() {
		return o, nil
	}
	o.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLS.CAFile != "" {
		text, err := os.ReadFile(c.TLS.CAFile)
		if err != nil {
			return o, named("redis.tls.ca_file", err)
		}
		if o.TLS.RootCAs = x509.NewCertPool(); !o.TLS.RootCAs.AppendCertsFromPEM(text) {
			return o, fmt.Errorf("redis.tls.ca_file: %s holds no certificate in PEM", c.TLS.CAFile)
		}
	}
	if c.TLS.CertFile != "" {
		o.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.TLS.CertFile, c.TLS.KeyFile)
			return &pair, err
		}
	}
	return o, nil
}
