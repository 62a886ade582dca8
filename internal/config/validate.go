package config

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// problems collects what is wrong; each names its setting and says what to do.
type problems []error

func (p *problems) add(setting, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%s: "+format, append([]any{setting}, args...)...))
}

func (p *problems) nested(section string, err error) {
	if err != nil {
		*p = append(*p, fmt.Errorf("%s: %w", section, err))
	}
}

// fields adds what the settings of a section say, each with a name of its own.
func (p *problems) fields(section string, err error) {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, err := range joined.Unwrap() {
			*p = append(*p, fmt.Errorf("%s.%w", section, err))
		}
	}
}

// Validate checks everything that a server needs before it starts, the files that the settings name included, and reports
// all problems together.
func (c Config) Validate() error {
	var p problems
	p.issuer(c.Issuer)
	p.listener("http", c.HTTP)
	p.listener("grpc", c.GRPC.Listener)
	p.ops(c.Ops)
	p.distinct(c)
	p.admin(c.Admin)
	p.database(c.Database)
	p.redis(c)
	p.secret("secrets.key_encryption_keys", c.Secrets.KeyEncryptionKeysFile, c.Secrets.KeyEncryptionKeys)
	p.secret("secrets.refresh_keys", c.Secrets.RefreshKeysFile, c.Secrets.RefreshKeys)
	if f := c.Secrets.RefreshKeysFile; f != "" && f == c.Secrets.KeyEncryptionKeysFile {
		p.add("secrets.refresh_keys_file", "must not be the file of the key-encryption keys: give each its own")
	}
	p.gateway(c.Gateway)
	p.nested("forward_auth", c.ForwardAuth.Validate())
	p.nested("keys", c.Keys.Validate())
	p.nested("password", c.Password.Validate())
	p.fields("limits", c.Limits.Validate())
	if n := c.Session.MaxPerAccount; n < 1 || n > 10_000 {
		p.add("session.max_per_account", "is %d; it must be 1 to 10000", n)
	}
	p.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	p.oneOf("log.format", c.Log.Format, "auto", "json", "text")
	p.telemetry(c.Telemetry)
	return errors.Join(p...)
}

func (p *problems) telemetry(c Telemetry) {
	if c.Endpoint != "" {
		host, ok := p.hostPort("telemetry.endpoint", c.Endpoint)
		switch {
		case ok && (host == "" || strings.ContainsAny(host, "/ @")):
			p.add("telemetry.endpoint", "must begin with the collector's name or address, without a scheme: otel.example.com:4317")
		case ok && c.Insecure && !loopback(host):
			p.add("telemetry.insecure", "would send traces in the clear to %s: only a loopback address may", host)
		}
	} else if c.Insecure {
		p.add("telemetry.insecure", "says how to reach telemetry.endpoint, which is not set")
	}
	if c.SampleRatio < 0 || c.SampleRatio > 1 {
		p.add("telemetry.sample_ratio", "is %v; it must be 0 to 1", c.SampleRatio)
	}
}

// CheckIssuer says what is wrong with an issuer: it is an absolute https URL with nothing behind its path and no slash at
// its end (RFC 8414 §2), written the one way that a comparison byte for byte can rely on. Plain http is for loopback alone.
func CheckIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	switch {
	case issuer == "":
		return errors.New("is required: the https URL under which clients reach this service, such as https://auth.example.com")
	case err != nil || u.Opaque != "" || u.Hostname() == "" || !u.IsAbs():
		return errors.New("must be an absolute URL such as https://auth.example.com")
	case len(issuer) > 256:
		return errors.New("must be at most 256 bytes")
	case u.Scheme != "https" && u.Scheme != "http":
		return errors.New("must begin with https://")
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return errors.New("must begin with https://; http is for loopback addresses only")
	case u.User != nil:
		return errors.New("must not hold a user name or password")
	case strings.ContainsAny(issuer, "?#"):
		return errors.New("must not have a query or a fragment: remove everything from ? or # on")
	case strings.HasSuffix(issuer, "/"):
		return errors.New("must not end with a slash: remove it")
	case u.Host != strings.ToLower(u.Host) || !strings.HasPrefix(issuer, u.Scheme+"://"):
		return errors.New("must be in lower case up to its path, since issuers are compared byte for byte")
	case u.Scheme == "https" && u.Port() == "443" || u.Scheme == "http" && u.Port() == "80" || strings.HasSuffix(u.Host, ":"):
		return errors.New("must not name the port that its scheme has anyway: remove it")
	case strings.Contains(issuer, "%") || u.String() != issuer || strings.Contains(u.Path, "//") || strings.Contains(u.Path+"/", "/./") || strings.Contains(u.Path+"/", "/../"):
		return errors.New("is not in its normal form: write it without escapes and empty or dotted path segments")
	}
	return nil
}

func (p *problems) issuer(issuer string) { p.nested("issuer", CheckIssuer(issuer)) }

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// address checks host:port and gives the host; ok is false where there was something to say.
func (p *problems) address(setting, address string) (host string, ok bool) {
	if host, ok = p.hostPort(setting, address); !ok {
		return "", false
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" && host != "localhost" {
		p.add(setting, "the host must be an IP address, localhost, or empty for all interfaces")
		return "", false
	}
	return host, true
}

// hostPort checks the same, of a host that may have a name.
func (p *problems) hostPort(setting, address string) (host string, ok bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		p.add(setting, "must be host:port, such as 127.0.0.1:8080")
		return "", false
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || strconv.FormatUint(n, 10) != port {
		p.add(setting, "the port must be a number from 0 to 65535")
		return "", false
	}
	return host, true
}

func (p *problems) listener(name string, l Listener) {
	host, ok := p.address(name+".address", l.Address)
	cert, key := l.TLS.CertFile, l.TLS.KeyFile
	switch {
	case cert == "" && key == "":
		if ok && !loopback(host) {
			p.add(name+".tls", "is required, since %s is not a loopback address: set cert_file and key_file, or listen on 127.0.0.1", name+".address")
		}
		return
	case cert == "":
		p.add(name+".tls.cert_file", "is required beside key_file")
		return
	case key == "":
		p.add(name+".tls.key_file", "is required beside cert_file")
		return
	}
	if !p.keyFile(name+".tls.key_file", key) {
		return
	}
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		p.add(name+".tls", "cert_file and key_file are not a readable PEM pair: %w", err)
	}
}

func (p *problems) ops(o Ops) {
	host, ok := p.address("ops.address", o.Address)
	if !ok || loopback(host) {
		return
	}
	if !o.Exposed {
		p.add("ops.address", "must be a loopback address such as 127.0.0.1:9091: the operators' listener has no authentication; where the network keeps everybody else away, ops.exposed: true allows another")
	}
	if o.PProf {
		p.add("ops.pprof", "is for a loopback address alone: profiles show what is in memory")
	}
}

// Cautions says what is allowed, and what whoever runs the service should know of before it starts. Each begins with its setting; none is a
// problem of Validate's.
func (c Config) Cautions() (all []string) {
	host, _, err := net.SplitHostPort(c.Ops.Address)
	if err == nil && c.Ops.Exposed && !loopback(host) {
		all = append(all, fmt.Sprintf("ops.exposed: whoever reaches ops.address (%s) may read the metrics (/metrics) and the probes (/livez, /readyz), without authentication; "+
			"profiles (pprof) are never there. A network of operators, or a firewall, must keep everybody else away", c.Ops.Address))
	}
	return all
}

// distinct refuses two listeners on one address; port 0 is never the same twice.
func (p *problems) distinct(c Config) {
	all := []struct{ name, address string }{{"http.address", c.HTTP.Address}, {"grpc.address", c.GRPC.Address}, {"ops.address", c.Ops.Address}}
	for i, a := range all {
		for _, b := range all[:i] {
			if a.address == b.address && a.address != "" && !strings.HasSuffix(a.address, ":0") {
				p.add(a.name, "is the same as %s: give each listener its own port", b.name)
			}
		}
	}
}

func (p *problems) database(d Database) {
	const setting = "database.path"
	if d.PasswordFile != "" || d.Password != "" {
		if d.URL == "" {
			p.add("database.password_file", "is for database.url, which is not set, as is %s", Variable("database.password"))
		} else {
			p.secret("database.password", d.PasswordFile, d.Password)
		}
	}
	switch {
	case d.Path == "" && d.URL == "":
		p.add(setting, "is required: the SQLite file, in a folder of the service's own; or database.url, for PostgreSQL")
		return
	case d.Path != "" && d.URL != "":
		p.add("database.url", "stands beside database.path: the database is either PostgreSQL or SQLite, remove one of them")
		return
	case d.URL != "":
		p.nested("database.url", sqlstore.CheckURL(d.URL))
		return
	}
	p.folder(setting, filepath.Dir(d.Path))
	if file, err := os.Stat(d.Path); err == nil && !file.Mode().IsRegular() {
		p.add(setting, "%s is not a regular file", d.Path)
	}
}

func (p *problems) admin(a Admin) {
	const setting = "admin.socket"
	if a.Socket == "" {
		return
	}
	dir := filepath.Dir(a.Socket)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		if above, err := os.Stat(filepath.Dir(dir)); err == nil && above.IsDir() {
			return // the server makes it
		}
	}
	p.folder(setting, dir)
	if file, err := os.Lstat(a.Socket); err == nil && file.Mode().Type() != fs.ModeSocket {
		p.add(setting, "%s is there and is not a socket", a.Socket)
	}
}

// folder checks one in which the service alone may make files.
func (p *problems) folder(setting, path string) {
	dir, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.add(setting, "the folder %s does not exist: create it with mode 0700", path)
	case err != nil:
		p.add(setting, "%w", err)
	case !dir.IsDir():
		p.add(setting, "%s is not a folder", path)
	case dir.Mode().Perm()&0o022 != 0:
		p.add(setting, "others may write to the folder %s (mode %04o): name a file in a folder of the service's own, with mode 0700", path, dir.Mode().Perm())
	}
}

// secret checks where a secret comes from: a file, or a variable of the environment.
func (p *problems) secret(setting, path string, value Secret) {
	switch {
	case value == "" && path == "":
		p.add(setting+"_file", "is required, or %s in the environment", Variable(setting))
	case value == "":
		p.keyFile(setting+"_file", path)
	case path != "":
		p.add(setting+"_file", "stands beside %s: give one of them", Variable(setting))
	}
}

// keyFile checks a file that holds secrets, and reports whether there was nothing to say.
func (p *problems) keyFile(setting, path string) bool {
	if path == "" {
		p.add(setting, "is required")
		return false
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		p.add(setting, "%s does not exist", path)
	case err != nil:
		p.add(setting, "%w", err)
	case !info.Mode().IsRegular():
		p.add(setting, "%s is not a regular file", path)
	case info.Mode().Perm() != 0o600 && info.Mode().Perm() != 0o400 && !HandedOver(info):
		p.add(setting, "%s has mode %04o: make it 0600 or 0400, so that its owner alone may read it", path, info.Mode().Perm())
	default:
		return true
	}
	return false
}

// HandedOver reports a file of root's that one group may read, for a server that is not root: systemd's credentials and the secrets
// of Kubernetes come so, as 0440. It is the rule of PostgreSQL's clients, too.
func HandedOver(info fs.FileInfo) bool {
	of, ok := info.Sys().(*syscall.Stat_t)
	mode := info.Mode().Perm()
	return ok && of.Uid == 0 && os.Geteuid() != 0 && (mode == 0o440 || mode == 0o640)
}

func (p *problems) gateway(g Gateway) {
	for _, n := range g.TrustedProxies {
		switch {
		case !n.IsValid() || n != n.Masked():
			p.add("gateway.trusted_proxies", "%s is not a network: its host bits must be zero", n)
		case n.Bits() == 0:
			p.add("gateway.trusted_proxies", "%s would let every caller choose its own address: name the proxies' networks", n)
		}
	}
	for _, o := range g.CORSOrigins {
		u, err := url.Parse(o)
		switch {
		case err != nil || u.Hostname() == "" || u.Scheme+"://"+u.Host != o || o != strings.ToLower(o) || strings.Contains(o, "*"):
			p.add("gateway.cors_origins", "%q is not an exact origin in lower case such as https://app.example.com, without path and slash", o)
		case u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())):
			p.add("gateway.cors_origins", "%q must begin with https://; http is for loopback addresses only", o)
		}
	}
}

func (p *problems) oneOf(setting, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.add(setting, "is %q; it must be one of %s", value, strings.Join(allowed, ", "))
	}
}
