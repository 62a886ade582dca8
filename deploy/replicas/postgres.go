package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// postgres is a primary and the standby that confirms its commits. Its folder belongs to the user that it runs as: ourselves, or the
// user postgres where we are root, as which it refuses to run.
type postgres struct {
	bin, dir string
	as       *syscall.Credential
	env      []string // of its clients, as the superuser
}

func (c *cluster) startPostgres(ctx context.Context) (err error) {
	if c.db, err = c.preparePostgres(ctx); err != nil {
		return err
	}
	if err := c.makePrimary(ctx); err != nil {
		return err
	}
	if err := c.runPostgres(ctx, "primary", primaryPort); err != nil {
		return err
	}
	if err := c.makeStandby(ctx); err != nil {
		return err
	}
	if err := c.runPostgres(ctx, "standby", standbyPort, "primary_conninfo="+c.replication("passfile="+c.db.path("passfile")), "hot_standby=on"); err != nil {
		return err
	}
	return c.openDatabase(ctx)
}

func (p *postgres) path(names ...string) string {
	return filepath.Join(append([]string{p.dir}, names...)...)
}

// preparePostgres makes the folder, with what the servers need of the secrets as files of their own user.
func (c *cluster) preparePostgres(ctx context.Context) (*postgres, error) {
	p := &postgres{dir: c.path("postgres")}
	var err error
	if p.bin, err = installedPostgres(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 {
		if p.as, err = credential("postgres"); err != nil {
			return nil, err
		}
		if err := os.Chown(p.dir, int(p.as.Uid), int(p.as.Gid)); err != nil {
			return nil, err
		}
	}
	// In our own folder, since another user's program may be unable to stand in it.
	if _, err := command(ctx, p.as, "/", "", environ(), "/bin/ls", p.dir); err != nil {
		return nil, fmt.Errorf("the user postgres, as which PostgreSQL runs where we are root, cannot reach %s: take a folder that it can, such as make replicas DIR=/var/tmp/replicas", p.dir)
	}
	password, err := os.ReadFile(c.secret("postgres-password"))
	if err != nil {
		return nil, err
	}
	replication, err := os.ReadFile(c.secret("replication-password"))
	if err != nil {
		return nil, err
	}
	p.env = p.environ("PGPASSWORD="+strings.TrimSpace(string(password)), "PGHOST=127.0.0.1", "PGUSER=postgres", "PGDATABASE=postgres",
		"PGSSLMODE=verify-full", "PGSSLROOTCERT="+c.secret("ca.crt"), "PGCONNECT_TIMEOUT=5")
	for name, from := range map[string]string{"postgres.key": c.secret("postgres.key"), "postgres.crt": c.secret("postgres.crt"), "ca.crt": c.secret("ca.crt"),
		"password": c.secret("postgres-password"), "pg_hba.conf": filepath.Join(c.shipped, "postgresql", "pg_hba.conf")} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = p.put(name, text)
		}
		if err != nil {
			return nil, err
		}
	}
	return p, p.put("passfile", fmt.Appendf(nil, "*:*:*:replication:%s", replication))
}

// environ keeps PostgreSQL's programs from what somebody has in a home.
func (p *postgres) environ(more ...string) []string {
	return environ(append([]string{"LC_ALL=C", "HOME=" + p.dir}, more...)...)
}

// put makes a file that the servers' user alone may read.
func (p *postgres) put(name string, text []byte) error {
	path := p.path(name)
	if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chmod(path, 0o600)); err != nil || p.as == nil { //nolint:gosec // its owner names the folder
		return err
	}
	return os.Chown(path, int(p.as.Uid), int(p.as.Gid))
}

// makePrimary makes the database cluster, whole or not at all.
func (c *cluster) makePrimary(ctx context.Context) error {
	data, begun := c.db.path("primary"), c.db.path("primary.new")
	if _, err := os.Stat(data); err == nil {
		return nil
	}
	if err := os.RemoveAll(begun); err != nil {
		return err
	}
	if _, err := command(ctx, c.db.as, c.db.dir, "", c.db.environ(), filepath.Join(c.db.bin, "initdb"), "-D", begun, "-U", "postgres", "-A", "scram-sha-256",
		"-E", "UTF8", "--locale=C.UTF-8", "--pwfile", c.db.path("password")); err != nil {
		return err
	}
	return os.Rename(begun, data)
}

// makeStandby copies the primary.
func (c *cluster) makeStandby(ctx context.Context) error {
	data, begun := c.db.path("standby"), c.db.path("standby.new")
	if _, err := os.Stat(data); err == nil {
		if _, err := os.Stat(filepath.Join(data, "standby.signal")); err != nil {
			return fmt.Errorf("%s has been promoted and is a primary of its own: remove the one that you give up, or all of it (make replicas-clean)", data)
		}
		return nil
	}
	password, err := os.ReadFile(c.secret("replication-password"))
	if err != nil {
		return err
	}
	role := `SELECT 'CREATE ROLE replication LOGIN REPLICATION' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'replication') \gexec
ALTER ROLE replication PASSWORD '` + strings.TrimSpace(string(password)) + `';`
	if _, err := c.psql(ctx, role); err != nil {
		return err
	}
	if err := os.RemoveAll(begun); err != nil {
		return err
	}
	if _, err := command(ctx, c.db.as, c.db.dir, "", c.db.environ(), filepath.Join(c.db.bin, "pg_basebackup"), "-d", c.replication("passfile="+c.db.path("passfile")),
		"-D", begun, "-X", "stream", "-c", "fast"); err != nil {
		return err
	}
	signal := filepath.Join(begun, "standby.signal")
	if err := os.WriteFile(signal, nil, 0o600); err != nil {
		return err
	}
	if c.db.as != nil {
		if err := os.Chown(signal, int(c.db.as.Uid), int(c.db.as.Gid)); err != nil {
			return err
		}
	}
	return os.Rename(begun, data)
}

// replication says how the standby reaches the primary.
func (c *cluster) replication(more string) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=replication application_name=standby sslmode=verify-full sslrootcert=%s %s",
		c.port(primaryPort), c.db.path("ca.crt"), more)
}

// runPostgres runs a server on loopback, with TLS, and with no socket that another program could take for a cluster of Debian's.
func (c *cluster) runPostgres(ctx context.Context, name string, port int, settings ...string) error {
	args := []string{filepath.Join(c.db.bin, "postgres"), "-D", c.db.path(name), "-p", strconv.Itoa(c.port(port))}
	for _, s := range append([]string{"listen_addresses=127.0.0.1", "unix_socket_directories=", "hba_file=" + c.db.path("pg_hba.conf"), "ssl=on",
		"ssl_cert_file=" + c.db.path("postgres.crt"), "ssl_key_file=" + c.db.path("postgres.key"), "password_encryption=scram-sha-256",
		"max_connections=200", "wal_keep_size=256MB", "log_min_messages=warning", "lc_messages=C"}, settings...) {
		args = append(args, "-c", s)
	}
	return c.group.run(ctx, spec{name: "PostgreSQL (" + name + ")", args: args, dir: c.db.dir, env: c.db.environ(), as: c.db.as, log: c.path("log", name+".log"),
		pid: c.path("pid", name), signal: syscall.SIGINT}, func(ctx context.Context) error {
		_, err := command(ctx, nil, "/", "", c.db.env, filepath.Join(c.db.bin, "psql"), "-X", "-q", "-p", strconv.Itoa(c.port(port)), "-c", "SELECT 1")
		return err
	})
}

// openDatabase makes commits wait for the standby, and then the role and the database of authsvc.
func (c *cluster) openDatabase(ctx context.Context) error {
	const names = "ANY 1 (standby)"
	if set, err := c.psql(ctx, "SHOW synchronous_standby_names"); err != nil {
		return err
	} else if set != names {
		if _, err := c.psql(ctx, "ALTER SYSTEM SET synchronous_standby_names = '"+names+"';\nSELECT FROM pg_reload_conf();"); err != nil {
			return err
		}
	}
	if err := until(ctx, "the standby confirms commits", func(ctx context.Context) error {
		state, err := c.psql(ctx, "SELECT sync_state FROM pg_stat_replication")
		if err == nil && state != "quorum" {
			err = fmt.Errorf("it is %q", state)
		}
		return err
	}, nil); err != nil {
		return err
	}
	role, err := os.ReadFile(filepath.Join(c.shipped, "postgresql", "role.sql"))
	if err != nil {
		return err
	}
	_, err = c.psql(ctx, string(role))
	return err
}

// psql runs a script at the primary as the superuser.
func (c *cluster) psql(ctx context.Context, script string) (string, error) {
	return command(ctx, nil, "/", script, append(c.db.env, "AUTHSVC_PASSWORD_FILE="+c.secret("database-password")), filepath.Join(c.db.bin, "psql"),
		"-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-p", strconv.Itoa(c.port(primaryPort)), "-f", "-")
}

// installedPostgres finds the newest server's programs: Debian keeps them out of PATH.
func installedPostgres() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	newest, bin := -1, ""
	for _, path := range found {
		dir := filepath.Dir(path)
		if n, err := strconv.Atoi(filepath.Base(filepath.Dir(dir))); err == nil && n > newest {
			newest, bin = n, dir
		}
	}
	if err != nil || bin != "" {
		return bin, err
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		return "", errors.New("PostgreSQL is not installed: deploy/replicas/install says how")
	}
	return filepath.Dir(path), nil
}

func credential(name string) (*syscall.Credential, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}
