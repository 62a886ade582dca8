package app

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/authsvc/authsvc/internal/config"
)

// certificate serves a key pair from files, and reads them again when they change.
type certificate struct {
	c   config.TLS
	log *slog.Logger
	mu  sync.Mutex
	at  [2]time.Time
	on  time.Time
	kp  *tls.Certificate
}

// lookEvery is how often a handshake looks at the files' times.
const lookEvery = 5 * time.Second

// tlsConfig gives nil where no certificate is configured.
func tlsConfig(c config.TLS, log *slog.Logger) (*tls.Config, error) {
	if c.CertFile == "" {
		return nil, nil //nolint:nilnil // no TLS is a valid answer
	}
	cert := &certificate{c: c, log: log}
	if err := cert.load(); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get, NextProtos: []string{"h2", "http/1.1"}}, nil
}

// get keeps the last good pair where a new one does not load: half-written files must not end the service. It says so each
// time that it looked, since the pair in use is the one that will expire.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.on) >= lookEvery {
		c.on = time.Now()
		at, err := c.times()
		if err == nil && at != c.at {
			err = c.load()
		}
		if err != nil {
			c.log.Error("the certificate cannot be read again; the one from before is still served", "error", err)
		}
	}
	return c.kp, nil
}

func (c *certificate) load() error {
	at, err := c.times()
	if err != nil {
		return err
	}
	kp, err := tls.LoadX509KeyPair(c.c.CertFile, c.c.KeyFile)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", c.c.CertFile, c.c.KeyFile, err)
	}
	c.at, c.kp, c.on = at, &kp, time.Now()
	return nil
}

func (c *certificate) times() (at [2]time.Time, err error) {
	for i, name := range []string{c.c.CertFile, c.c.KeyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return at, err
		}
		at[i] = info.ModTime()
	}
	return at, nil
}
