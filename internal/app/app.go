// Package app is the composition root: it opens the store, builds the core on it and the doors on the core, runs their
// loops, and takes them down in an order that leaves nothing half-done. It holds no rule.
package app

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/authsvc/authsvc/gen/openapi"
	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/instance"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/server/oauth"
	"github.com/authsvc/authsvc/internal/server/ops"
	"github.com/authsvc/authsvc/internal/server/rest"
	"github.com/authsvc/authsvc/internal/server/rpc"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/redisstore"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/token"
	"github.com/authsvc/authsvc/verify"
)

// Doors are the open listeners. They are opened before anything else, so that an address in use is the first thing that
// is said, and port 0 is known.
type Doors struct {
	HTTP, GRPC, Ops net.Listener
	admin           *socket // nil where there is none
}

// Listen opens the three listeners, or none.
func Listen(cfg config.Config) (d *Doors, err error) {
	d = &Doors{}
	for _, l := range []struct {
		name    string
		into    *net.Listener
		address string
	}{{"http", &d.HTTP, cfg.HTTP.Address}, {"grpc", &d.GRPC, cfg.GRPC.Address}, {"ops", &d.Ops, cfg.Ops.Address}} {
		if *l.into, err = net.Listen("tcp", l.address); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", l.name, err), d.Close())
		}
	}
	return d, nil
}

// listenAdmin opens the operators' socket, if there is to be one.
func (d *Doors) listenAdmin(c config.Admin) (err error) {
	if c.Socket != "" {
		d.admin, err = listenSocket(c.Socket)
	}
	return named("admin.socket", err)
}

// Close closes what is open; a listener that a server has closed already is no error.
func (d *Doors) Close() (err error) {
	if d.admin != nil {
		err = d.admin.Close()
	}
	for _, l := range []net.Listener{d.HTTP, d.GRPC, d.Ops} {
		if l != nil {
			if e := l.Close(); e != nil && !errors.Is(e, net.ErrClosed) {
				err = errors.Join(err, e)
			}
		}
	}
	return err
}

// App is the assembled service.
type App struct {
	cfg       config.Config
	log       *slog.Logger
	level     *slog.LevelVar
	reload    Reload // its Signals are nil where there is none
	doors     *Doors
	now       func() time.Time
	db        *sqlstore.DB
	redis     *redisstore.Store // nil where there is none
	meter     *metrics
	telemetry *telemetry
	ring      *keys.Ring
	list      *verify.List
	tail      *revocation.Log
	register  *instance.Register
	hasher    *password.Hasher
	thr       *limit.Throttle
	pulse     *service.Pulse

	refreshKeys *session.RefreshKeys
	clients     *service.Clients
	signIn      *service.SignIn
	tokens      *service.Tokens
	sessions    *service.Sessions
	accounts    *service.Accounts

	feed   *rpc.Hub
	grpc   *grpc.Server
	health *healthServer
	http   *http.Server
	ops    *http.Server
	admin  *grpc.Server           // nil without a socket
	state  atomic.Int32           // starting, serving, draining
	shown  map[string]*tls.Config // of the listeners that have a certificate
}

const (
	starting int32 = iota
	serving
	draining
)

// New assembles the service in numbered steps; nothing runs before Run.
func New(ctx context.Context, cfg config.Config, doors *Doors, stderr io.Writer) (_ *App, err error) {
	limitMemory()
	a := &App{cfg: cfg, doors: doors, now: clock, level: new(slog.LevelVar), shown: map[string]*tls.Config{}}
	a.log = logger(cfg.Log, a.level, stderr)
	defer func() {
		if err != nil && a.db != nil {
			err = errors.Join(err, a.db.Close())
		}
		if err != nil && a.redis != nil {
			err = errors.Join(err, a.redis.Close())
		}
	}()
	for _, step := range []func(context.Context) error{
		a.openTelemetry, // 1. so that everything after can count
		a.openRedis,     // 2. what is lost without harm
		a.openStore,     // 3. the authority
		a.openSecrets,   // 4. key files; wrong ones stop here
		a.buildTail,     // 5. the revocation log and the list in memory
		a.buildRegister, // 6. which servers there are
		a.buildKeys,     // 7. the ring; an empty database gets its keys
		a.buildCore,     // 8. the use cases
		a.buildGRPC,     // 9. the gRPC door
		a.buildHTTP,     // 10. REST, OAuth, and what proxies ask
		a.buildOps,      // 11. health and metrics
		a.buildAdmin,    // 12. who watches, for operators
		a.buildGauges,   // 13. figures read when somebody looks
		a.buildStates,   // 14. what is as it should be, for alerts
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return a, nil
}

func (a *App) openTelemetry(ctx context.Context) (err error) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { a.log.Warn("telemetry is not delivered", "error", err) }))
	if a.telemetry, err = newTelemetry(ctx, a.cfg.Telemetry); err != nil {
		return err
	}
	a.meter, err = newMetrics(a.telemetry.readers...)
	return err
}

func (a *App) openStore(ctx context.Context) (err error) {
	o, err := databaseOptions(a.cfg.Database)
	if err != nil {
		return err
	}
	o.Now, o.Appended = a.now, a.announce
	if a.db, err = sqlstore.Open(ctx, o); err != nil {
		return err
	}
	if a.db.Renewed() {
		a.log.Warn("the database has another history than when a server last ran on it, as after a failover or a restore: what it lacks of the newest revocations comes back only if another server still runs; " +
			"docs/backup.md says what to do if none does")
	}
	if all := sqlstore.Leftovers(a.cfg.Database.Path); a.cfg.Database.URL == "" && len(all) > 0 { // none is under way: this server has the database
		a.log.Warn("a restore that was killed has left a copy of its backup, and the database is as it was before: restore again, which removes these files, or remove them", "files", all)
	}
	return a.sayOutdated(ctx)
}

func (a *App) openSecrets(ctx context.Context) (err error) {
	if a.refreshKeys, err = loadRefreshKeys(a.cfg.Secrets, a.cfg.Issuer); err != nil {
		return err
	}
	return fitting(ctx, a.db, a.refreshKeys, a.cfg.Secrets)
}

func (a *App) buildTail(ctx context.Context) (err error) {
	if a.list, err = verify.NewList(verify.ListOptions{}); err != nil {
		return err
	}
	var hints []revocation.Hints
	if h := a.db.Hints(); h != nil {
		hints = append(hints, h)
	}
	if a.redis != nil {
		hints = append(hints, a.redis)
	}
	if a.tail, err = revocation.New(revocation.Options{Store: a.db.Revocations(), Every: a.db.TailEvery(), Hints: hints, Issuer: a.cfg.Issuer, List: a.list, Now: a.storeNow, Logger: a.log,
		KeyRevoked: func() {
			if a.ring != nil { // nil while New still builds; Bootstrap reads the set then
				a.ring.Nudge()
			}
		}}); err != nil {
		return err
	}
	return a.tail.CatchUp(ctx)
}

func (a *App) buildRegister(context.Context) (err error) {
	host, err := os.Hostname()
	if err != nil {
		a.log.Warn("this machine has no name for the list of servers", "error", err)
	}
	a.register, err = instance.New(instance.Options{Store: a.db.Instances(), Host: strings.ToValidUTF8(host, "?"), Version: Version(), Now: a.now, Logger: a.log,
		State: func() instance.State {
			c := a.tail.View().Cursor
			return instance.State{Epoch: c.Epoch, Position: c.Row, Lag: a.tail.Lag()}
		}})
	return err
}

func (a *App) buildKeys(ctx context.Context) error {
	sealer, err := loadSealer(a.cfg.Secrets)
	if err != nil {
		return err
	}
	a.ring, err = keys.NewRing(keys.Options{Store: a.db.Keys(), Sealer: sealer, Config: a.cfg.Keys, Revoked: a.tail.KeyRevoked, Now: a.now, Log: a.log})
	if err != nil {
		return err
	}
	return a.ring.Bootstrap(ctx)
}

func (a *App) buildCore(ctx context.Context) (err error) {
	a.pulse = service.NewPulse(bootTime)
	if a.hasher, err = password.New(password.Options{Config: a.cfg.Password}); err != nil {
		return err
	}
	if a.thr, err = limit.New(limit.Options{Config: a.cfg.Limits, Shared: a.shared(), Replicas: a.register.Live, Decided: a.meter.decided, Now: a.storeNow}); err != nil {
		return err
	}
	if a.clients, err = service.NewClients(a.db.Clients(), a.cfg.Issuer, a.now); err != nil {
		return err
	}
	if err := a.clients.Refresh(ctx); err != nil {
		return err
	}
	minter, err := token.New(token.Options{Keys: a.ring, Issuer: a.cfg.Issuer})
	if err != nil {
		return err
	}
	anyAudience, err := verify.New(verify.Options{Issuer: a.cfg.Issuer, AnyAudience: true, Keys: a.ring, Revocations: a.list, Now: a.storeNow})
	if err != nil {
		return err
	}
	a.signIn, err = service.NewSignIn(service.SignInOptions{Issuer: a.cfg.Issuer, Accounts: a.db.Accounts(), Clients: a.clients, Sessions: a.db.Sessions(),
		Hasher: a.hasher, Throttle: a.thr, RefreshKeys: a.refreshKeys, Minter: minter, MaxSessions: a.cfg.Session.MaxPerAccount,
		Events: a.meter, Logger: a.log})
	if err != nil {
		return err
	}
	a.tokens, err = service.NewTokens(service.TokensOptions{Issuer: a.cfg.Issuer, Accounts: a.db.Accounts(), Clients: a.clients, Sessions: a.db.Sessions(),
		Log: a.db.Revocations(), RefreshKeys: a.refreshKeys, Minter: minter, Verifier: anyAudience, Tail: a.tail, Pulse: a.pulse, Events: a.meter,
		Logger: a.log, Now: a.now})
	if err != nil {
		return err
	}
	if a.sessions, err = service.NewSessions(a.db.Sessions(), a.tail); err != nil {
		return err
	}
	a.accounts, err = service.NewAccounts(a.db.Accounts(), a.db.Revocations(), a.hasher, password.NewPolicy(), a.thr, a.tail)
	return err
}

// storeNow is the store's time. What expires does so by that, on every replica at once, though a machine's clock is wrong; a revocation
// at a replica whose clock runs ahead would else find the token expired, and write nothing.
func (a *App) storeNow() time.Time {
	if a.clients == nil { // New still builds
		return a.now()
	}
	return a.clients.Now()
}

// bootTime counts the time that the machine slept, too.
func bootTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}

func (a *App) buildGRPC(context.Context) error {
	conf, err := tlsConfig(a.cfg.GRPC.TLS, a.log)
	if err != nil {
		return err
	}
	var creds credentials.TransportCredentials
	if conf != nil {
		a.shown["grpc"] = conf
		creds = credentials.NewTLS(conf)
	}
	a.grpc = rpc.NewServer(creds)
	a.health = newHealth()
	a.health.SetServingStatus("", healthv1.HealthCheckResponse_NOT_SERVING)
	healthv1.RegisterHealthServer(a.grpc, a.health)
	if a.cfg.GRPC.Reflection {
		reflection.Register(a.grpc)
	}
	return nil
}

func (a *App) buildHTTP(context.Context) error {
	own, err := verify.New(verify.Options{Issuer: a.cfg.Issuer, Audiences: []string{a.cfg.Issuer}, Keys: a.ring, Revocations: a.list, Now: a.storeNow})
	if err != nil {
		return err
	}
	if a.feed, err = rpc.NewHub(rpc.HubOptions{Log: a.tail, Issuer: a.cfg.Issuer, KeySet: a.ring.JWKS, Now: a.storeNow}); err != nil {
		return err
	}
	door, err := rpc.New(rpc.Options{SignIn: a.signIn, Tokens: a.tokens, Clients: a.clients, Sessions: a.sessions, Accounts: a.accounts, Feed: a.feed,
		KeySet: a.ring.JWKS, Verifier: own, Fresh: a.tail.Fresh, Logger: a.log, Panics: a.meter.panicked,
		Tracer: a.telemetry.tracer, Meter: a.meter.provider, TrustedProxies: a.cfg.Gateway.TrustedProxies})
	if err != nil {
		return err
	}
	door.Register(a.grpc)
	for name := range a.grpc.GetServiceInfo() { // a probe may ask for one by its exact name, too
		if strings.HasPrefix(name, "authsvc.") {
			a.health.SetServingStatus(name, healthv1.HealthCheckResponse_NOT_SERVING)
		}
	}
	channel := rest.NewChannel()
	door.Register(channel)
	issuer, err := url.Parse(a.cfg.Issuer)
	if err != nil {
		return err
	}
	extra, err := oauth.New(oauth.Options{Issuer: a.cfg.Issuer, Tokens: a.tokens, Caller: callerOf, Logger: a.log})
	if err != nil {
		return err
	}
	routes := extra.Routes()
	if err := a.openToProxies(door, routes); err != nil {
		return err
	}
	handler, err := rest.New(rest.Options{Channel: channel, Status: rpc.StatusOf, Admit: door.Admit, TrustedProxies: a.cfg.Gateway.TrustedProxies,
		CORSOrigins: a.cfg.Gateway.CORSOrigins, KeySet: a.keySet, Extra: routes, BasePath: strings.TrimSuffix(issuer.Path, "/"),
		OpenAPI: openapi.Document(), Logger: a.log, Panicked: a.meter.panicked})
	if err != nil {
		return err
	}
	conf, err := tlsConfig(a.cfg.HTTP.TLS, a.log)
	if err != nil {
		return err
	}
	if conf != nil {
		a.shown["http"] = conf
	}
	a.http = rest.NewServer(handler, conf)
	a.http.ErrorLog = errorLog(a.log)
	return nil
}

// callerOf is who sent an HTTP request, by the REST door's address rule.
func callerOf(r *http.Request) service.Caller {
	c, _ := rest.ClientFrom(r.Context())
	return service.Caller{IP: c.IP, UserAgent: service.Clip(c.UserAgent, service.MaxUserAgent), RequestID: c.RequestID}
}

func (a *App) keySet(context.Context) (body []byte, etag string, err error) {
	return a.ring.JWKS(), a.ring.ETag(), nil
}

func (a *App) buildOps(context.Context) error {
	handler, err := ops.New(ops.Options{Ready: a.ready, Metrics: a.meter.handler, PProf: a.cfg.Ops.PProf})
	if err != nil {
		return err
	}
	a.ops = &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 16 << 10, ErrorLog: errorLog(a.log)}
	return nil
}

func (a *App) buildAdmin(context.Context) error {
	if a.doors.admin == nil {
		return nil
	}
	door, err := rpc.NewAdmin(rpc.AdminOptions{Feed: a.feed, Logger: a.log, Panics: a.meter.panicked, Tracer: a.telemetry.tracer, Meter: a.meter.provider})
	if err != nil {
		return err
	}
	a.doors.admin.refused = func(uid int) {
		a.log.Warn("a stranger asked at the admin socket, whose mode others may have widened", "uid", uid)
	}
	a.admin = rpc.NewAdminServer()
	door.Register(a.admin)
	return nil
}

// RunConfig serves by a configuration until ctx ends; it refuses to start on anything missing or doubtful. It reads the configuration again
// when it is told to.
func RunConfig(ctx context.Context, cfg config.Config, again Reload, stderr io.Writer) (err error) {
	if err := CheckConfig(cfg); err != nil {
		return err
	}
	doors, err := Listen(cfg)
	if err != nil {
		return err
	}
	defer doors.Close() //nolint:errcheck // Run closes them; this is for the early ways out
	if err := doors.listenAdmin(cfg.Admin); err != nil {
		return err
	}
	lock, err := alone(cfg.Database, cfg.HTTP.Address, doors.HTTP.Addr().String())
	if err != nil {
		return err
	}
	defer lock.Close() // the process ends, and the lock with it
	a, err := New(ctx, cfg, doors, stderr)
	if err != nil {
		return err
	}
	a.reload = again
	defer func() { err = errors.Join(err, a.Close()) }()
	return a.Run(ctx, func() error {
		context.AfterFunc(ctx, func() { a.tell("STOPPING=1") })
		a.tell("READY=1")
		return nil
	})
}

// Close closes the store. Run has ended by then, or never began.
func (a *App) Close() error {
	if err := a.telemetry.close(a.meter); err != nil {
		a.log.Warn("the last telemetry was not delivered", "error", err)
	}
	var cache error
	if a.redis != nil {
		cache = a.redis.Close()
	}
	return errors.Join(a.doors.Close(), a.db.Close(), cache)
}
