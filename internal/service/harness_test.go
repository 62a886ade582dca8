package service_test

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/revocation"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/internal/token"
	"github.com/authsvc/authsvc/verify"
)

// Who and what every core of these tests has.
const (
	api      = "https://api.example.com"
	wiki     = "https://wiki.example.com"
	secretly = "correct horse battery staple"
)

// wall is a clock that a test can move on, and stop; it keeps the monotonic reading.
type wall struct {
	ahead atomic.Int64
	held  atomic.Pointer[time.Time] // where it stands
}

func (w *wall) now() time.Time {
	at := w.held.Load()
	if at == nil {
		now := time.Now()
		at = &now
	}
	return at.Add(time.Duration(w.ahead.Load()))
}

// hold stops it: from then on time passes by advance alone, and not because the machine was busy.
func (w *wall) hold() {
	now := time.Now()
	w.held.Store(&now)
}

func (w *wall) advance(d time.Duration) { w.ahead.Add(int64(d)) }

// tally counts what the core says that it did.
type tally struct {
	mu     sync.Mutex
	logins map[string]int
}

func (y *tally) Login(outcome string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.logins == nil {
		y.logins = map[string]int{}
	}
	y.logins[outcome]++
}

func (*tally) Refresh(string)         {}
func (*tally) Revoke(string)          {}
func (*tally) Introspect(string, int) {}

// counted gives the logins until now, by outcome.
func (y *tally) counted() map[string]int {
	y.mu.Lock()
	defer y.mu.Unlock()
	return maps.Clone(y.logins)
}

// core is the use cases over a real store in memory, wired as the program wires them.
type core struct {
	db       *sqlstore.DB
	clock    *wall
	ring     *keys.Ring
	tail     *revocation.Log
	clients  *service.Clients
	admin    *service.ClientAdmin
	signIn   *service.SignIn
	tokens   *service.Tokens
	sessions *service.Sessions
	accounts *service.Accounts
	verifier *verify.Verifier
	secrets  map[ids.Client]string
	events   *tally
	options  service.SignInOptions // of signIn, for a test that wants another one

	tokenOptions service.TokensOptions // likewise
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

// newCore gives a core with the accounts ada and bob and four clients: the public app and game, for people, the confidential
// web, for people too, and the resource servers rs (of api) and wiki.
func newCore(t *testing.T) *core {
	t.Helper()
	clock := &wall{}
	db := must(sqlstore.Open(t.Context(), sqlstore.Options{Path: sqlstore.Memory, Now: clock.now, OpTimeout: time.Minute}))(t)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	c := replica(t, db, clock)
	c.secrets = map[ids.Client]string{}
	both, read := []string{"read", "write"}, []string{"read"}
	for _, cl := range []client.Client{
		{ID: "app", Kind: client.Public, Audiences: []string{api, wiki, adminIssuer}, DefaultAudiences: []string{api, adminIssuer}, Scopes: both, DefaultScopes: both},
		{ID: "game", Kind: client.Public, Audiences: []string{api}, DefaultAudiences: []string{api}, Scopes: read, DefaultScopes: read},
		{ID: "web", Kind: client.Confidential, Audiences: []string{api}, DefaultAudiences: []string{api}, Scopes: both, DefaultScopes: read},
		{ID: "rs", Kind: client.Confidential, Audiences: []string{api, adminIssuer}, DefaultAudiences: []string{api}, Scopes: []string{"authsvc.introspect", "read"}, DefaultScopes: read},
		{ID: "wiki", Kind: client.Confidential, Audiences: []string{wiki}, Scopes: read},
	} {
		_, secret, err := c.admin.Create(t.Context(), service.Operator(1000), cl)
		if err != nil {
			t.Fatal(err)
		}
		c.secrets[cl.ID] = secret
	}
	for _, name := range []string{"ada", "bob"} {
		must(c.accounts.Create(t.Context(), service.Operator(1000), name, secretly))(t)
	}
	return c
}

// replica gives another process's use cases over the same store.
func replica(t *testing.T, db *sqlstore.DB, clock *wall) *core {
	t.Helper()
	c := &core{db: db, clock: clock, events: &tally{}}
	log := slog.New(slog.DiscardHandler)
	list := must(verify.NewList(verify.ListOptions{}))(t)
	c.tail = must(revocation.New(revocation.Options{Store: db.Revocations(), Issuer: adminIssuer, List: list, Now: clock.now}))(t)
	if err := c.tail.CatchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.ring = must(keys.NewRing(keys.Options{Store: db.Keys(), Sealer: sealer(t, "a"), Revoked: c.tail.KeyRevoked}))(t)
	if err := c.ring.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- c.ring.Run(ctx) }()
	t.Cleanup(func() { stop(); <-ended })
	hasher := must(password.New(password.Options{Config: password.Config{MemoryKiB: 8, Time: 1, Threads: 1, MemoryBudgetMiB: 1}, Weak: true,
		Queue: 100, QueueWait: time.Minute}))(t)
	throttle := must(limit.New(limit.Options{Now: clock.now}))(t)
	refreshKeys := must(session.NewRefreshKeys(adminIssuer, testRefreshKeys()))(t)
	minter := must(token.New(token.Options{Keys: c.ring, Issuer: adminIssuer}))(t)
	c.verifier = must(verify.New(verify.Options{Issuer: adminIssuer, AnyAudience: true, Keys: c.ring, Revocations: list, Now: clock.now}))(t)
	c.clients = must(service.NewClients(db.Clients(), adminIssuer, clock.now))(t)
	c.admin = must(service.NewClientAdmin(db.Clients(), adminIssuer, c.tail))(t)
	c.options = service.SignInOptions{Issuer: adminIssuer, Accounts: db.Accounts(), Clients: c.clients, Sessions: db.Sessions(),
		Hasher: hasher, Throttle: throttle, RefreshKeys: refreshKeys, Minter: minter, MaxSessions: 50, Events: c.events, Logger: log}
	c.signIn = must(service.NewSignIn(c.options))(t)
	c.tokenOptions = service.TokensOptions{Issuer: adminIssuer, Accounts: db.Accounts(), Clients: c.clients, Sessions: db.Sessions(),
		Log: db.Revocations(), RefreshKeys: refreshKeys, Minter: minter, Verifier: c.verifier, Tail: c.tail,
		Pulse: service.NewPulse(func() time.Duration { return 0 }), Events: c.events, Logger: log, Now: clock.now}
	c.tokens = must(service.NewTokens(c.tokenOptions))(t)
	c.sessions = must(service.NewSessions(db.Sessions(), c.tail))(t)
	c.accounts = must(service.NewAccounts(db.Accounts(), db.Revocations(), hasher, password.NewPolicy(), throttle, c.tail))(t)
	return c
}

func testRefreshKeys() []session.RefreshKey {
	return []session.RefreshKey{{ID: 1, Key: bytes.Repeat([]byte{7}, 32)}}
}

// phone is where requests come from unless a test says otherwise.
func phone() service.Caller {
	return service.Caller{IP: netip.MustParseAddr("192.0.2.1"), UserAgent: "phone/1", RequestID: "r"}
}

// as is a person's caller with the session of what a login issued.
func (c *core) as(t *testing.T, in service.Issued) service.Caller {
	t.Helper()
	claims := must(c.verifier.Verify(t.Context(), in.AccessToken))(t)
	who := phone()
	who.Subject, who.Client, who.Session = ids.Account(claims.Subject), ids.Client(claims.ClientID), ids.Session(claims.SessionID)
	return who
}

func (c *core) login(t *testing.T, username string) service.Issued {
	t.Helper()
	return must(c.signIn.Login(t.Context(), service.LoginRequest{Username: username, Password: secretly, ClientID: "app", Caller: phone()}))(t)
}

func (c *core) refresh(ctx context.Context, tok string) (service.Issued, error) {
	return c.tokens.Refresh(ctx, service.RefreshRequest{RefreshToken: tok, ClientID: "app", Caller: phone()})
}

// proof is a confidential client's authentication.
func (c *core) proof(id ids.Client) service.ClientAuth {
	return service.ClientAuth{Presented: true, ID: id, Secret: c.secrets[id]}
}

// tokensWith is the core's tokens in a process whose clock is apart from the store's.
func (c *core) tokensWith(t *testing.T, clients *service.Clients, apart time.Duration) *service.Tokens {
	t.Helper()
	o := c.tokenOptions
	o.Clients, o.Now = clients, func() time.Time { return c.clock.now().Add(apart) }
	return must(service.NewTokens(o))(t)
}

// seen is what a client is told of a token.
func (c *core) seen(t *testing.T, id ids.Client, tok string) service.Introspection {
	t.Helper()
	by := must(c.clients.Get(t.Context(), id))(t)
	return must(c.tokens.Introspect(t.Context(), by, tok, ""))(t)
}
