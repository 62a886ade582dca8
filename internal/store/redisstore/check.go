package redisstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// SettingError is about a setting by which Redis can never work, whoever waits.
type SettingError struct {
	// Setting is its name, such as redis.password_file.
	Setting string
	// Problem says what is wrong and what to do.
	Problem string
	// Err is what Redis or the connection said, if anything.
	Err error
}

// Error names the setting first.
func (e *SettingError) Error() string {
	if e.Err == nil {
		return e.Setting + ": " + e.Problem
	}
	return e.Setting + ": " + e.Problem + ": " + e.Err.Error()
}

// Unwrap gives what Redis or the connection said.
func (e *SettingError) Unwrap() error { return e.Err }

// startTimeout is how long the start of a server waits for Redis.
const startTimeout = 3 * time.Second

// Start checks once, before Run. It gives a SettingError alone; whatever else is wrong with Redis is told to the Logger, and gets better by
// itself.
func (s *Store) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	err := s.Check(ctx)
	var setting *SettingError
	if errors.As(err, &setting) {
		return err
	}
	if err != nil && !s.breaker.told.Swap(true) {
		s.breaker.away(err)
	}
	return nil
}

// Check says what is wrong with Redis, in words for the operator: a SettingError where the configuration is, another error
// where Redis is. It tries all that the service does, and leaves nothing behind.
func (s *Store) Check(ctx context.Context) error {
	if err := s.checkServers(ctx); err != nil {
		return err
	}
	if err := s.checkRights(ctx); err != nil {
		return explain(err)
	}
	if c, ok := s.client.(*redis.ClusterClient); ok {
		return checkSlots(ctx, c)
	}
	return nil
}

// checkServers asks each address what it is. One that answers is enough: the others may be away.
func (s *Store) checkServers(ctx context.Context) error {
	var away error
	answered := false
	for _, address := range s.o.Addresses {
		mode, err := s.hello(ctx, address)
		if err != nil && !refused(err) {
			err = errors.Join(s.checkTLS(ctx, address), err)
		}
		var setting *SettingError
		if err = explain(err); errors.As(err, &setting) {
			return err
		}
		if err != nil {
			away = errors.Join(away, err)
			continue
		}
		answered = true
		if is := map[string]Mode{"standalone": Single, "sentinel": Sentinel, "cluster": Cluster}[mode]; mode != s.o.Mode.hello() {
			return &SettingError{Setting: "redis.mode", Problem: fmt.Sprintf("is %s, and %s is %s: set the mode %[3]s, or name other addresses",
				s.o.Mode, address, map[bool]string{true: string(is), false: "something else"}[is != ""])}
		}
	}
	if !answered {
		return fmt.Errorf("redis.addresses: no server answers: %w", away)
	}
	return nil
}

// hello is what a server of the mode says that it is.
func (m Mode) hello() string {
	if m == Single {
		return "standalone"
	}
	return string(m)
}

// unknown gives the command that a server says not to know, in an error that may quote all that was sent with it.
func unknown(err error) string {
	if !refused(err) {
		return ""
	}
	name, said := strings.CutPrefix(err.Error(), "ERR unknown command ")
	if !said {
		return ""
	}
	name, _, _ = strings.Cut(name, ",")
	return strings.ToUpper(strings.Trim(name, "'`\" "))
}

// hello gives what the server at an address says that it is.
func (s *Store) hello(ctx context.Context, address string) (mode string, err error) {
	o := &redis.Options{Addr: address, Username: s.o.Username, Password: s.o.Password, TLSConfig: s.o.TLS, Dialer: dial(s.o.TLS, dialTimeout, &s.strange), MaxRetries: -1,
		DialTimeout: dialTimeout, DialerRetries: 1, ReadTimeout: replyTimeout, ContextTimeoutEnabled: true, DisableIdentity: true, PipelinePoolSize: -1, PoolSize: 1}
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	if s.o.Mode == Sentinel {
		return s.helloSentinel(ctx, o)
	}
	c := redis.NewClient(o)
	defer c.Close() //nolint:errcheck // it was for one question
	said, err := c.Do(ctx, "HELLO").Result()
	if unknown(err) != "" { // a proxy that speaks RESP2 alone: what is behind it shows when it is used
		return s.o.Mode.hello(), c.Ping(ctx).Err()
	}
	if err != nil {
		return "", err
	}
	switch all := said.(type) {
	case map[any]any:
		mode, _ = all["mode"].(string)
	case []any: // RESP2
		for i := 0; i+1 < len(all); i += 2 {
			if all[i] == "mode" {
				mode, _ = all[i+1].(string)
			}
		}
	}
	return mode, nil
}

// helloSentinel asks a Sentinel for the master.
func (s *Store) helloSentinel(ctx context.Context, o *redis.Options) (mode string, err error) {
	o.Username, o.Password = s.o.SentinelUsername, s.o.SentinelPassword
	c := redis.NewSentinelClient(o)
	defer c.Close() //nolint:errcheck // it was for one question
	_, err = c.GetMasterAddrByName(ctx, s.o.MasterName).Result()
	switch {
	case err == nil:
		return "sentinel", nil
	case errors.Is(err, redis.Nil):
		return "", &SettingError{Setting: "redis.master_name", Problem: fmt.Sprintf("the Sentinel %s watches nothing called %q", o.Addr, s.o.MasterName)}
	case strings.HasPrefix(err.Error(), "ERR unknown command"):
		return "", &SettingError{Setting: "redis.mode", Problem: fmt.Sprintf("is sentinel, and %s is no Sentinel: set single or cluster, or name the Sentinels", o.Addr)}
	case strings.HasPrefix(err.Error(), "WRONGPASS"), strings.HasPrefix(err.Error(), "NOAUTH"):
		return "", &SettingError{Setting: "redis.sentinel_password_file", Problem: "the Sentinel " + o.Addr + " does not let this user in", Err: err}
	}
	return "", err
}

// checkTLS says whether a server that did not understand us would have understood the other way, with TLS or without: it does not tell. Nothing
// but a PING is said to a server that is not known.
func (s *Store) checkTLS(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d interface {
		DialContext(ctx context.Context, network, address string) (net.Conn, error)
	} = &net.Dialer{}
	problem := "is set, and the server does not speak TLS at this port"
	if s.o.TLS == nil {
		d = &tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // it is told nothing
		problem = "is required: the server speaks TLS at this port"
	}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil //nolint:nilerr // the error of the real attempt is told
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	var first [1]byte
	if _, err := io.WriteString(c, "PING\r\n"); err != nil {
		return nil //nolint:nilerr // see above
	}
	if _, err := c.Read(first[:]); err != nil || first[0] != '+' && first[0] != '-' {
		return nil //nolint:nilerr // see above
	}
	return &SettingError{Setting: "redis.tls.ca_file", Problem: problem}
}

// checkRights does once whatever the service does.
func (s *Store) checkRights(ctx context.Context) error {
	if err := s.probe(ctx); err != nil {
		return err
	}
	// The probe needs +eval where Redis does not know the script alone. Without keys it does nothing.
	if err := s.script.Eval(ctx, s.client, nil).Err(); err != nil {
		return err
	}
	if err := s.client.Publish(ctx, s.channel(), "").Err(); err != nil {
		return err
	}
	sub := s.client.Subscribe(ctx, s.channel())
	defer sub.Close() //nolint:errcheck // it was for one question
	for _, ask := range []func() error{func() error { return nil }, func() error { return sub.Ping(ctx) }} {
		if err := ask(); err != nil {
			return err
		}
		if _, err := sub.ReceiveTimeout(ctx, replyTimeout); err != nil {
			return err
		}
	}
	return nil
}

// allSlots is how many a Cluster has.
const allSlots = 16384

// checkSlots says which slots nobody serves.
func checkSlots(ctx context.Context, c *redis.ClusterClient) error {
	ranges, err := c.ClusterSlots(ctx).Result() //nolint:staticcheck // CLUSTER SHARDS came with Redis 7, and the client itself asks for the slots
	if err != nil {
		return explain(err)
	}
	served := make([]bool, allSlots)
	for _, r := range ranges {
		for i := max(0, r.Start); i <= r.End && i < allSlots && len(r.Nodes) > 0; i++ {
			served[i] = true
		}
	}
	missing, first := 0, -1
	for i, ok := range served {
		if !ok {
			if missing++; first < 0 {
				first = i
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("redis.addresses: %d of the Cluster's %d slots, from %d on, are served by no node: bring its node back, or run redis-cli --cluster fix", missing, allSlots, first)
	}
	return nil
}

// explain names the setting that an error is about, where it is about one.
func explain(err error) error {
	var (
		setting     *SettingError
		certificate *tls.CertificateVerificationError
		authority   x509.UnknownAuthorityError
		alert       tls.AlertError
	)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &setting):
		return setting
	}
	text := err.Error()
	said := func(setting, problem string) error {
		return &SettingError{Setting: setting, Problem: problem, Err: err}
	}
	switch {
	case strings.HasPrefix(text, "WRONGPASS"):
		return said("redis.password_file", "Redis knows no user with redis.username and this password")
	case strings.HasPrefix(text, "NOAUTH"):
		return said("redis.password_file", "Redis asks for a password, and none is set")
	case strings.HasPrefix(text, "NOPERM"):
		return said("redis.username", "the user lacks a right; docs/redis.md has the line that gives all of them")
	case strings.Contains(text, "ACL failure in script"), strings.Contains(text, "user executing the script can't"): // it does not say which
		return said("redis.username", "the user lacks one of the rights +get, +set, +del and +time; docs/redis.md has the line that gives all of them")
	case unknown(err) != "":
		return &SettingError{Setting: "redis.addresses", Problem: "the server has no command " + unknown(err) + ", which is needed: take back what renames it, or name Redis itself where this is a proxy"}
	case strings.HasPrefix(text, "OOM"):
		return fmt.Errorf("redis.addresses: Redis is full, and evicts nothing: raise its maxmemory, or set maxmemory-policy volatile-ttl or allkeys-lru: %w", err)
	case strings.Contains(text, "cluster support disabled"):
		return said("redis.mode", "is cluster, and the server is none: set the mode single")
	case errors.As(err, &certificate), errors.As(err, &authority):
		return said("redis.tls.ca_file", "the server's certificate is refused")
	case errors.As(err, &alert), strings.Contains(text, "remote error: tls:"):
		return said("redis.tls.cert_file", "the server refuses this certificate, or that there is none")
	case strings.HasPrefix(text, "CLUSTERDOWN"):
		return fmt.Errorf("redis.addresses: the Cluster does not serve all of its slots: bring its nodes back, or run redis-cli --cluster fix: %w", err)
	case strings.HasPrefix(text, "LOADING"):
		return fmt.Errorf("redis.addresses: Redis is still loading its data: %w", err)
	case strings.HasPrefix(text, "READONLY"):
		return fmt.Errorf("redis.addresses: the server is a replica, which counts nothing: name the master, or set the mode sentinel: %w", err)
	}
	return err
}
