package sqlstore

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
)

// oldest is the first major version of PostgreSQL that has everything the statements use.
const oldest = 13

// CheckURL says what is wrong with Options.URL, without connecting. Its errors do not hold a password.
func CheckURL(text string) error {
	c, err := parseURL(text)
	if err == nil && c.MaxConns < leastConns {
		return fmt.Errorf("pool_max_conns is %d: a server needs at least %d, since its loops and its callers would wait for each other", c.MaxConns, leastConns)
	}
	return err
}

// leastConns is the smallest pool by which a server serves: its loops hold one or two at a time.
const leastConns = 4

// connectFor is how long a host that does not answer is waited for, unless the URL says connect_timeout: a call has time left for
// the next host.
const connectFor = 2 * time.Second

// parseURL refuses what would be read by strangers on the way, and what may lead to a standby: its reads are old, and what
// was revoked a moment ago would be good.
func parseURL(text string) (*pgxpool.Config, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		return nil, errors.New("must be a URL such as postgres://authsvc@db.example.com/authsvc?sslmode=verify-full")
	}
	if _, has := u.User.Password(); has || u.Query().Has("password") {
		return nil, errors.New("holds a password, which does not belong into settings: put it into a file of its own, and name that by database.password_file")
	}
	if attrs := u.Query().Get("target_session_attrs"); attrs != "" && attrs != "read-write" && attrs != "primary" {
		return nil, errors.New("target_session_attrs must be read-write, which it is if left out: a standby does not know yet what was revoked")
	}
	c, err := pgxpool.ParseConfig(text)
	if err != nil {
		return nil, fmt.Errorf("cannot be used: %w", err)
	}
	verified := func(host string, conf *tls.Config) error {
		if local(host) || conf != nil && !conf.InsecureSkipVerify && conf.ServerName != "" {
			return nil
		}
		return fmt.Errorf("must say sslmode=verify-full, since %s is neither a loopback address nor a socket (with sslrootcert=FILE if its certificate is from a CA of your own)", host)
	}
	if err := verified(c.ConnConfig.Host, c.ConnConfig.TLSConfig); err != nil {
		return nil, err
	}
	for _, f := range c.ConnConfig.Fallbacks {
		if err := verified(f.Host, f.TLSConfig); err != nil {
			return nil, err
		}
	}
	if !u.Query().Has("connect_timeout") {
		c.ConnConfig.ConnectTimeout = connectFor
	}
	if !u.Query().Has("pool_max_conns") {
		c.MaxConns = int32(min(max(10, 4*runtime.GOMAXPROCS(0)), 100))
	}
	return c, nil
}

func local(host string) bool {
	if host == "localhost" || strings.HasPrefix(host, "/") || strings.HasPrefix(host, "@") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// poolConfig gives every connection its bounds. They are the server's to keep: a process that is stopped in the middle of a
// transaction holds its locks no longer than OpTimeout.
func poolConfig(o Options) (*pgxpool.Config, error) {
	c, err := parseURL(o.URL)
	if err != nil {
		return nil, fmt.Errorf("database.url: %w", err)
	}
	if o.Password != "" {
		c.ConnConfig.Password = o.Password
	}
	if c.ConnConfig.ConnectTimeout == 0 || c.ConnConfig.ConnectTimeout > o.OpTimeout {
		c.ConnConfig.ConnectTimeout = o.OpTimeout
	}
	c.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	bound := strconv.FormatInt(max(1, o.OpTimeout.Milliseconds()), 10)
	for _, name := range bounds() {
		c.ConnConfig.RuntimeParams[name] = bound
	}
	c.ConnConfig.RuntimeParams["default_transaction_isolation"] = isolation
	if c.ConnConfig.RuntimeParams["application_name"] == "" {
		c.ConnConfig.RuntimeParams["application_name"] = "authsvc"
	}
	// A caller who goes away costs a cancel request, and not a connection.
	c.ConnConfig.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: conn, DeadlineDelay: time.Second}
	}
	// 01000 in a commit is "canceling wait for synchronous replication", in the language of the server; nothing of ours
	// raises another.
	c.ConnConfig.OnNotice = func(conn *pgconn.PgConn, n *pgconn.Notice) {
		if n.SeverityUnlocalized == "WARNING" && n.Code == "01000" {
			conn.CustomData()[unreplicated] = true
		}
	}
	c.MaxConnIdleTime = c.MaxConnLifetime // idle connections are kept
	return c, nil
}

// openPool connects, makes sure that this is a database that can be relied on, and brings the schema up to date or checks it.
func (db *DB) openPool(ctx context.Context, o Options, migrating bool) error {
	c, err := poolConfig(o)
	if err != nil {
		return err
	}
	db.pg = &pool{words: db.words, timeout: o.OpTimeout, driven: o.driven, appending: make(chan struct{}, max(1, c.MaxConns/2))}
	c.ConnConfig.ValidateConnect = db.pg.meet
	c.PrepareConn, c.ShouldPing = db.pg.admit, idled
	if o.configure != nil {
		o.configure(c)
	}
	if err := db.pg.connect(ctx, &db.pg.source, c); err != nil {
		return err
	}
	following := c.Copy()
	following.MaxConns, following.MinConns, following.MinIdleConns, following.PrepareConn = 1, 0, 0, nil
	following.ConnConfig.ValidateConnect = db.pg.meetFirst
	if err := db.pg.connect(ctx, &db.pg.tail, following); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, max(o.OpTimeout, time.Minute)) // a migration may take longer than a call
	defer cancel()
	conn, err := db.pg.source.Acquire(ctx)
	if err != nil {
		return connectProblem(err, c.ConnConfig)
	}
	defer conn.Release()
	if err := db.pg.sound(ctx, conn.Conn()); err != nil {
		return err
	}
	m := &pgConn{ctx: ctx, conn: conn.Conn(), p: db.pg}
	if err := db.settle(ctx, m, migrating); err != nil {
		return db.pg.barred(err)
	}
	if db.epoch, db.renewed, err = m.inherited(); err != nil {
		return fmt.Errorf("sqlstore: read the installation's row: %w", err)
	}
	db.pg.settle(m.server().name)
	return nil
}

// connect makes one of the pools; connections of the other may be made at the same time.
func (p *pool) connect(ctx context.Context, to **pgxpool.Pool, c *pgxpool.Config) error {
	made, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return fmt.Errorf("database.url: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	*to = made
	return nil
}

// connectProblem says which setting is wrong. It quotes neither the password nor the server's words about it.
func connectProblem(err error, c *pgx.ConnConfig) error {
	var said *pgconn.PgError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var certificate *tls.CertificateVerificationError
	where := net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
	switch {
	case errors.As(err, &said) && (said.Code == "28P01" || said.Code == "28000"):
		return fmt.Errorf("database.password_file: %s does not let user %q in: wrong password or user, or pg_hba.conf has no line for them", where, c.User)
	case errors.As(err, &said) && said.Code == "3D000":
		return fmt.Errorf("database.url: there is no database %q at %s: create it", c.Database, where)
	case errors.As(err, &said) && said.Code == "53300":
		return fmt.Errorf("database.url: %s has no connections left: lower pool_max_conns, or raise its max_connections", where)
	case errors.Is(err, pgconn.ErrReadOnlyConnection) && len(hosts(c)) > 1:
		return fmt.Errorf("database.url: none of %s takes writes, and at least one is a standby: start the primary, or promote a standby once the primary is certainly down", strings.Join(hosts(c), ", "))
	case errors.Is(err, pgconn.ErrReadOnlyConnection):
		return fmt.Errorf("database.url: %s is a standby, or read-only: name the primary (several hosts may be named, with commas)", where)
	case errors.As(err, &unknown):
		return fmt.Errorf("database.url: the certificate of %s is from a CA that is not trusted here: name the CA's file by sslrootcert", where)
	case errors.As(err, &name):
		return fmt.Errorf("database.url: the certificate of %s is for other names: %w", where, name)
	case errors.As(err, &certificate):
		return fmt.Errorf("database.url: the certificate of %s is not good: %w", where, certificate.Err)
	case errors.As(err, &said) && strings.HasPrefix(said.Message, "unsupported startup parameter"): // PgBouncer
		return fmt.Errorf("database.url: %s is a pooler that does not pass on what connections are to have (%s): name PostgreSQL itself; docs/deploy.md says what a pooler has to do", where, said.Message)
	case errors.As(err, &said):
		return fmt.Errorf("database.url: %s refused the connection: %s", where, said.Message)
	default:
		return fmt.Errorf("database.url: cannot reach %s: %w", where, err)
	}
}

// hosts are those that the URL names, once each.
func hosts(c *pgx.ConnConfig) []string {
	all := []string{net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))}
	for _, f := range c.Fallbacks {
		if next := net.JoinHostPort(f.Host, strconv.Itoa(int(f.Port))); !slices.Contains(all, next) {
			all = append(all, next)
		}
	}
	return all
}

// unreachable reports whether the database, or the way to it, failed, and not the statement.
func unreachable(err error) bool {
	var said *pgconn.PgError
	if errors.As(err, &said) {
		switch said.Code {
		case "55P03", "25P03", "25P04", "25006", "40001", "40P01", "55006":
			return true
		}
		switch said.Code[:min(2, len(said.Code))] {
		case "08", "53", "57", "58":
			return true
		}
		return false
	}
	var broken net.Error
	var refused *pgconn.ConnectError
	var gone *lostError
	return errors.As(err, &broken) || errors.As(err, &refused) || errors.As(err, &gone) || pgconn.Timeout(err) || pgconn.SafeToRetry(err)
}

// collided reports that the database chose an operation to give way to another, which may be tried again from its start.
func collided(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && (said.Code == "40001" || said.Code == "40P01")
}

// readOnly reports that the server takes no writes (any more).
func readOnly(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == "25006"
}

// illegible reports that a text was none that PostgreSQL keeps: NUL, or not UTF-8.
func illegible(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == "22021"
}

func duplicate(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == "23505"
}
