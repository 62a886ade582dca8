package rpc_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/test/bufconn"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/server/rpc"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/token"
	"github.com/authsvc/authsvc/verify"
)

const (
	issuer = "https://auth.example.com"
	api    = "https://api.example.com"
	// The passwords are canaries: no log and no error may hold them.
	oldPassword = "canary-one horse battery staple"
	newPassword = "canary-two horse battery staple"
)

// quiet counts nothing.
type quiet struct{}

func (quiet) Login(string)           {}
func (quiet) Refresh(string)         {}
func (quiet) Revoke(string)          {}
func (quiet) Introspect(string, int) {}

// buffer is a log that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// served is the door over a real core, on a real server.
type served struct {
	conn   *grpc.ClientConn
	door   *rpc.Door
	db     *sqlstore.DB
	tokens *service.Tokens
	secret string // of the client "rs"
	log    *buffer
	feed   *rpc.Hub
	tail   *revocation.Log
	admin  *service.ClientAdmin
	ahead  atomic.Int64 // how far the clock of the door's verifier is ahead, in nanoseconds
	panics atomic.Int64
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// serve gives the door with the account ada, the public client app and the confidential client rs.
func serve(t *testing.T, change func(*rpc.Options)) *served {
	t.Helper()
	s := &served{log: &buffer{}}
	log := slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.db = must(sqlstore.Open(t.Context(), sqlstore.Options{Path: sqlstore.Memory}))(t)
	t.Cleanup(func() { s.db.Close() })
	o := s.build(t, log)
	if change != nil {
		change(&o)
	}
	s.feed = o.Feed
	s.door = must(rpc.New(o))(t)
	server := rpc.NewServer(nil)
	s.door.Register(server)
	l := bufconn.Listen(1 << 20)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	s.conn = must(grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) })))(t)
	t.Cleanup(func() { s.conn.Close() })
	return s
}

func (s *served) build(t *testing.T, log *slog.Logger) rpc.Options {
	t.Helper()
	list := must(verify.NewList(verify.ListOptions{}))(t)
	tail := must(revocation.New(revocation.Options{Store: s.db.Revocations(), Issuer: issuer, List: list, Logger: log}))(t)
	sealer := must(keys.NewSealer([]keys.KEK{{ID: "a", Key: bytes.Repeat([]byte{1}, 32)}}))(t)
	ring := must(keys.NewRing(keys.Options{Store: s.db.Keys(), Sealer: sealer, Revoked: tail.KeyRevoked, Log: log}))(t)
	if err := errors.Join(tail.CatchUp(t.Context()), ring.Bootstrap(t.Context())); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- ring.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	hasher := must(password.New(password.Options{Config: password.Config{MemoryKiB: 8, Time: 1, Threads: 1, MemoryBudgetMiB: 1}, Weak: true,
		Queue: 100, QueueWait: time.Minute}))(t)
	throttle := must(limit.New(limit.Options{}))(t)
	refresh := must(session.NewRefreshKeys(issuer, []session.RefreshKey{{ID: 1, Key: bytes.Repeat([]byte{7}, 32)}}))(t)
	minter := must(token.New(token.Options{Keys: ring, Issuer: issuer}))(t)
	verifier := must(verify.New(verify.Options{Issuer: issuer, AnyAudience: true, Keys: ring, Revocations: list}))(t)
	own := must(verify.New(verify.Options{Issuer: issuer, Audiences: []string{issuer}, Keys: ring, Revocations: list,
		Now: func() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }}))(t)
	clients := must(service.NewClients(s.db.Clients(), issuer, time.Now))(t)
	signIn := must(service.NewSignIn(service.SignInOptions{Issuer: issuer, Accounts: s.db.Accounts(), Clients: clients, Sessions: s.db.Sessions(),
		Hasher: hasher, Throttle: throttle, RefreshKeys: refresh, Minter: minter, MaxSessions: 200, Events: quiet{}, Logger: log}))(t)
	s.tokens = must(service.NewTokens(service.TokensOptions{Issuer: issuer, Accounts: s.db.Accounts(), Clients: clients, Sessions: s.db.Sessions(),
		Log: s.db.Revocations(), RefreshKeys: refresh, Minter: minter, Verifier: verifier, Tail: tail,
		Pulse: service.NewPulse(func() time.Duration { return 0 }), Events: quiet{}, Logger: log, Now: time.Now}))(t)
	sessions := must(service.NewSessions(s.db.Sessions(), tail))(t)
	accounts := must(service.NewAccounts(s.db.Accounts(), s.db.Revocations(), hasher, password.NewPolicy(), throttle, tail))(t)
	must(accounts.Create(t.Context(), service.Operator(1000), "ada", oldPassword))(t)
	admin := must(service.NewClientAdmin(s.db.Clients(), issuer, tail))(t)
	s.admin = admin
	for _, c := range []client.Client{
		{ID: "app", Kind: client.Public, Audiences: []string{api, issuer}, DefaultAudiences: []string{api, issuer}, Scopes: []string{"read"}, DefaultScopes: []string{"read"}},
		{ID: "rs", Kind: client.Confidential, Audiences: []string{api}, DefaultAudiences: []string{api}, Scopes: []string{"authsvc.introspect", "authsvc.trust", "read"}},
	} {
		_, secret, err := admin.Create(t.Context(), service.Operator(1000), c)
		if err != nil {
			t.Fatal(err)
		}
		if c.ID == "rs" {
			s.secret = secret
		}
	}
	s.tail = tail
	hub := must(rpc.NewHub(rpc.HubOptions{Log: tail, Issuer: "https://auth.example", KeySet: ring.JWKS}))(t)
	return rpc.Options{SignIn: signIn, Tokens: s.tokens, Clients: clients, Sessions: sessions, Accounts: accounts, Feed: hub, KeySet: ring.JWKS, Verifier: own,
		Fresh: tail.Fresh, Logger: log, Panics: func() { s.panics.Add(1) }, Tracer: tracenoop.NewTracerProvider(), Meter: metricnoop.NewMeterProvider()}
}

func (s *served) login(t *testing.T, audience ...string) *authsvcv1.LoginResponse {
	t.Helper()
	return must(authsvcv1.NewAuthServiceClient(s.conn).Login(t.Context(), &authsvcv1.LoginRequest{Username: "ada", Password: oldPassword, ClientId: "app",
		Audience: audience}))(t)
}

// service gives rs a token of its own for the issuer.
func (s *served) service(t *testing.T, scope string) string {
	t.Helper()
	return must(s.tokens.ClientCredentials(t.Context(), service.ClientCredentialsRequest{ClientID: "rs", Secret: s.secret,
		Resources: []string{issuer}, Scope: scope}))(t).AccessToken
}

func basicOf(id ids.Client, secret string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(string(id)+":"+secret))
}

// with gives a context that sends authorization values.
func with(t *testing.T, values ...string) context.Context {
	t.Helper()
	ctx := t.Context()
	for _, v := range values {
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", v)
	}
	return ctx
}
