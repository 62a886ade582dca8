// Package redisstore owns what the service keeps in Redis: the counters of failed sign-ins that all replicas share, and the
// hint that something was revoked. It is never the only copy of anything, and no call fails for its sake: one gets at
// most 50 ms, and while Redis is away it gets none.
package redisstore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Mode is how the servers that the addresses name stand to each other.
type Mode string

// The modes.
const (
	Single   Mode = "single"   // one server, or something that looks like one
	Sentinel Mode = "sentinel" // Sentinels, which know the server
	Cluster  Mode = "cluster"  // some nodes of a Redis Cluster
)

// Options of a Store.
type Options struct {
	// Addresses are host:port, at least one; of the servers, or of the Sentinels. A Single has one.
	Addresses []string
	// Mode is how they are to be understood. Required.
	Mode Mode
	// MasterName is what Sentinels call the server.
	MasterName string
	// Username and Password sign in at the servers, and SentinelUsername and SentinelPassword at the Sentinels. Without a password nobody
	// signs in.
	Username, Password, SentinelUsername, SentinelPassword string
	// TLS is how connections are secured. Nil: not at all.
	TLS *tls.Config
	// Issuer tells installations on one Redis apart. Required.
	Issuer string
	// Logger is told when Redis goes away and when it is back. Nil: slog.Default.
	Logger *slog.Logger
	// Called is told how every call ended, if it is there: one of Outcomes.
	Called func(outcome string)

	within time.Duration // tests: instead of callTimeout
	reply  time.Duration // tests: instead of replyTimeout and dialTimeout
}

// The outcomes of a call. None of them tells what was counted.
const (
	Answered = "answered" // in time
	Failed   = "failed"   // not in time, or by an error
	Away     = "away"     // not made, since Redis was away
)

// Outcomes are all of them.
func Outcomes() []string { return []string{Answered, Failed, Away} }

// Store is a client of Redis. Its counters and hints work while Run does.
type Store struct {
	o       Options
	client  redis.UniversalClient
	script  *redis.Script
	prefix  string // of every key and of the channel; it puts them into one slot of a Cluster
	serial  atomic.Uint64
	strange atomic.Int64 // answers that were to something else
	breaker *breaker
	news    chan struct{} // Announce was called
}

// What go-redis waits for. A call of the service has callTimeout in all; a connection that it did not live to see is there for
// the next one.
const (
	dialTimeout  = time.Second
	replyTimeout = time.Second
	connections  = 8 // to a server: a count takes less than a millisecond, and a handshake more than many counts
)

// New makes a Store; it connects to nothing yet.
func New(o Options) (*Store, error) {
	switch {
	case len(o.Addresses) == 0:
		return nil, errors.New("redisstore: no address")
	case o.Mode != Single && o.Mode != Sentinel && o.Mode != Cluster:
		return nil, fmt.Errorf("redisstore: the mode %q is unknown", o.Mode)
	case o.Mode == Single && len(o.Addresses) > 1:
		return nil, errors.New("redisstore: a single server has one address")
	case o.Mode == Sentinel && o.MasterName == "":
		return nil, errors.New("redisstore: Sentinels need the master's name")
	case o.Issuer == "":
		return nil, errors.New("redisstore: no issuer")
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Called == nil {
		o.Called = func(string) {}
	}
	logging.Disable() // go-redis writes addresses to stderr, for the whole process; what matters comes back as an error
	sum := sha256.Sum256([]byte(o.Issuer))
	s := &Store{o: o, script: redis.NewScript(settle), prefix: "authsvc:{" + hex.EncodeToString(sum[:8]) + "}:", news: make(chan struct{}, 1)}
	s.client = s.connect()
	s.breaker = newBreaker(cmp.Or(o.within, callTimeout), s.probe, func(err error) {
		o.Logger.Warn("Redis is away: every server counts failed sign-ins by itself, and hears of revocations by the database alone", "error", explain(err))
	}, func() { o.Logger.Info("Redis is back: failed sign-ins are counted for all servers") })
	return s, nil
}

// connect gives the client for the mode. It retries nothing by itself: there is no time for it, and a counted failure would
// count twice.
func (s *Store) connect() redis.UniversalClient {
	reply := cmp.Or(s.o.reply, replyTimeout)
	u := &redis.UniversalOptions{Addrs: s.o.Addresses, MasterName: s.o.MasterName, Username: s.o.Username, Password: s.o.Password,
		SentinelUsername: s.o.SentinelUsername, SentinelPassword: s.o.SentinelPassword, TLSConfig: s.o.TLS, Dialer: dial(s.o.TLS, cmp.Or(s.o.reply, dialTimeout), &s.strange),
		MaxRetries: -1, DialTimeout: cmp.Or(s.o.reply, dialTimeout), DialerRetries: 1, DialerRetryTimeout: 10 * time.Millisecond,
		ReadTimeout: reply, WriteTimeout: reply, PoolTimeout: reply, ContextTimeoutEnabled: true,
		PoolSize: connections, PipelinePoolSize: -1, ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}}
	switch s.o.Mode {
	case Cluster:
		o := u.Cluster()
		o.ClusterStateReloadInterval = time.Second // a minute otherwise, in which a dead master would be asked on
		return redis.NewClusterClient(o)
	case Sentinel:
		return redis.NewFailoverClient(u.Failover())
	default:
		return redis.NewClient(u.Simple())
	}
}

// Run looks after the connection and publishes what is announced, until ctx ends.
func (s *Store) Run(ctx context.Context) error {
	published := make(chan struct{})
	go func() {
		defer close(published)
		s.publish(ctx)
	}()
	s.breaker.run(ctx)
	<-published
	return nil
}

// Up reports whether Redis is asked at the moment.
func (s *Store) Up() bool { return s.breaker.up() }

// Close closes the connections. Run and Listen have ended by then.
func (s *Store) Close() error { return s.client.Close() }

// call makes one call, unless Redis is away, and counts how it ended.
func (s *Store) call(ctx context.Context, make func(context.Context) error) error {
	err := s.breaker.call(ctx, make)
	switch {
	case err == nil:
		s.o.Called(Answered)
	case errors.Is(err, errAway):
		s.o.Called(Away)
	default:
		s.o.Called(Failed)
	}
	return err
}
