package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// isolation is what every transaction is begun with.
const isolation = "read committed"

// bounds are the settings by which a server lets go of what a stopped process holds.
func bounds() []string {
	return []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"}
}

// manners asks a connection what it is like. The bounds that it gives are those that are not set, or longer than they should be.
const manners = `SELECT current_setting('server_version_num')::int, current_schema()::text, current_setting('server_encoding'),
	current_setting('synchronous_commit'), current_setting('default_transaction_isolation'), pg_backend_pid(), current_user::text,
	COALESCE(has_schema_privilege(current_schema(), 'CREATE'), false),
	(SELECT COALESCE(string_agg(name, ', ' ORDER BY name), '') FROM pg_settings
		WHERE name = ANY ($1) AND setting::bigint NOT BETWEEN 1 AND $2)`

// sound refuses a database, and a way to it, that would break the promises quietly.
func (p *pool) sound(ctx context.Context, conn *pgx.Conn) error {
	var version int
	var backend uint32
	var schema *string
	var encoding, commit, isolated, unbound string
	// By no prepared statement: a pooler may not know them, and is to be named as what is wrong.
	err := conn.QueryRow(ctx, manners, pgx.QueryExecModeExec, bounds(), p.timeout.Milliseconds()).
		Scan(&version, &schema, &encoding, &commit, &isolated, &backend, &p.user, &p.creates, &unbound)
	switch {
	case err != nil:
		return fmt.Errorf("database.url: %w", err)
	case version < oldest*10_000:
		return fmt.Errorf("database.url: the server is PostgreSQL %d; it must be %d or later", version/10_000, oldest)
	case schema == nil:
		return errors.New("database.url: there is no schema to work in: create the one that search_path names, or let the user use schema public")
	case encoding != "UTF8":
		return fmt.Errorf("database.url: the database's encoding is %s: create it with ENCODING 'UTF8'", encoding)
	case commit == "off":
		return errors.New("database.url: synchronous_commit is off, so that a crash would bring back what was revoked: set it to on for this database or user")
	case commit == "local":
		return errors.New("database.url: synchronous_commit is local, which waits for no standby, so that a failover would bring back what was revoked: set it to on for this database or user")
	}
	p.schema = *schema
	if conn.PgConn().PID() != backend { // the number by which the server lets statements be cancelled is another's
		if err := pinned(ctx, conn); err != nil {
			return err
		}
	}
	if unbound != "" {
		return fmt.Errorf("database.url: %s did not arrive at PostgreSQL, so that a server that is stopped would keep its locks: name PostgreSQL itself, or, behind a pooler, "+
			"ALTER ROLE %s SET each of them = '%v'", unbound, pgx.Identifier{p.user}.Sanitize(), p.timeout)
	}
	if isolated != isolation {
		return fmt.Errorf("database.url: transactions are %s: name PostgreSQL itself, or, behind a pooler, ALTER ROLE %s SET default_transaction_isolation = '%s'",
			isolated, pgx.Identifier{p.user}.Sanitize(), isolation)
	}
	return nil
}

// pinned refuses a pooler that gives a connection's statements to whatever process of PostgreSQL is free: what is set, locked and
// listened to by a connection would be another's, and a connection would outlive the server that it was made to. Where a transaction of
// another connection holds the process that was just answered from, the next answer comes from elsewhere.
func pinned(ctx context.Context, conn *pgx.Conn) error {
	other, err := pgx.ConnectConfig(ctx, conn.Config())
	if err != nil {
		return connectProblem(err, conn.Config())
	}
	defer func() { _ = other.Close(ctx) }()
	answers := func(c *pgx.Conn) (pid int64, err error) {
		err = c.QueryRow(ctx, `SELECT pg_backend_pid()`, pgx.QueryExecModeExec).Scan(&pid)
		return pid, err
	}
	var before, meanwhile, after int64
	for range 3 {
		if before, err = answers(conn); err == nil {
			_, err = other.Exec(ctx, `BEGIN`, pgx.QueryExecModeExec)
		}
		if err == nil {
			meanwhile, err = answers(other)
		}
		if err == nil {
			after, err = answers(conn)
		}
		if err == nil {
			_, err = other.Exec(ctx, `ROLLBACK`, pgx.QueryExecModeExec)
		}
		if err != nil || before != after || before == meanwhile {
			return errors.Join(errUnpinned, err)
		}
	}
	return nil
}

var errUnpinned = errors.New("database.url: a pooler is in between that lends a connection of PostgreSQL for a transaction or a statement at a time, by which locks, time limits and " +
	"failovers would go unnoticed: name PostgreSQL itself, or let the pooler lend it for a session (PgBouncer: pool_mode = session)")

// mayMake says what keeps the user from making the tables.
func (c *pgConn) mayMake() error {
	if c.p.creates {
		return nil
	}
	schema, user := pgx.Identifier{c.p.schema}.Sanitize(), pgx.Identifier{c.p.user}.Sanitize()
	return fmt.Errorf("database.url: schema %s is empty, and user %s may not make tables in it: GRANT CREATE ON SCHEMA %[1]s TO %[2]s, or run authsvc migrate up as a user who may", schema, user)
}

// barred names the right that the user lacks, where that is what the database said.
func (p *pool) barred(err error) error {
	var said *pgconn.PgError
	if !errors.As(err, &said) || said.Code != "42501" || strings.HasPrefix(err.Error(), "database.url: ") {
		return err
	}
	schema, user := pgx.Identifier{p.schema}.Sanitize(), pgx.Identifier{p.user}.Sanitize()
	return fmt.Errorf("database.url: user %s may not use the tables: let their owner GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA %s TO %[1]s: %[3]w", user, schema, err)
}
