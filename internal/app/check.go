package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// CheckConfig says everything that would keep a server from starting by this configuration, the content of its key files
// included, but for what stands outside this machine's files.
func CheckConfig(cfg config.Config) error { return errors.Join(checkFiles(cfg)...) }

// CheckFor bounds what CheckSetup waits for.
const CheckFor = 20 * time.Second

// CheckSetup says everything that is wrong with a setup before a server starts by it, each problem in a line that begins with its setting:
// what CheckConfig says, certificates that clients will refuse, another server on the same SQLite file, and, unless it is offline,
// a database that cannot be reached or used, or whose keys and sessions the key files do not open, and a Redis that the settings do not fit. It changes nothing. A database
// that is empty, or of an older schema, is none of it.
func CheckSetup(ctx context.Context, cfg config.Config, offline bool) error {
	problems := checkFiles(cfg)
	problems = append(problems, checkCertificates(cfg, time.Now())...)
	if !offline && !about(problems, "issuer", "database") {
		ctx, cancel := context.WithTimeout(ctx, CheckFor)
		defer cancel()
		problems = append(problems, checkAlone(cfg), checkDatabase(ctx, cfg, problems))
		if !about(problems, "redis") {
			problems = append(problems, checkRedis(ctx, cfg))
		}
	}
	return errors.Join(problems...)
}

// checkFiles looks at the settings and the files that they name.
func checkFiles(cfg config.Config) []error {
	var problems []error
	if err := cfg.Validate(); err != nil {
		problems = split(err)
	}
	sound := true
	for _, file := range []struct {
		setting string
		load    func() error
	}{
		{"secrets.key_encryption_keys_file", func() error { _, err := loadSealer(cfg.Secrets); return err }},
		{"secrets.refresh_keys_file", func() error { _, err := loadRefreshKeys(cfg.Secrets, cfg.Issuer); return err }},
	} {
		if about(problems, file.setting) || about(problems, "issuer") {
			sound = false
		} else if err := file.load(); err != nil {
			problems, sound = append(problems, named(file.setting, err)), false
		}
	}
	if sound {
		if err := distinctSecrets(cfg.Secrets); err != nil {
			problems = append(problems, named("secrets.refresh_keys_file", err))
		}
	}
	if _, err := redisOptions(cfg); err != nil && !about(problems, "redis") {
		problems = append(problems, err)
	}
	return problems
}

// split gives the errors that were joined into one.
func split(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// about reports whether one of the problems is about a setting, or one of a section.
func about(problems []error, settings ...string) bool {
	return slices.ContainsFunc(problems, func(err error) bool {
		return err != nil && slices.ContainsFunc(settings, func(s string) bool {
			return strings.HasPrefix(err.Error(), s+":") || strings.HasPrefix(err.Error(), s+".")
		})
	})
}

// checkCertificates looks at what clients will look at. Behind a proxy of its own the HTTP listener may go by another name than the
// issuer's.
func checkCertificates(cfg config.Config, now time.Time) (problems []error) {
	for _, l := range []struct {
		name string
		tls  config.TLS
	}{{"http", cfg.HTTP.TLS}, {"grpc", cfg.GRPC.TLS}} {
		pair, err := tls.LoadX509KeyPair(l.tls.CertFile, l.tls.KeyFile)
		if err != nil || pair.Leaf == nil {
			continue // there is none, or Validate has said so
		}
		setting := l.name + ".tls.cert_file"
		switch {
		case now.After(pair.Leaf.NotAfter):
			problems = append(problems, fmt.Errorf("%s: the certificate expired on %s: get a new one", setting, pair.Leaf.NotAfter.UTC().Format(time.RFC3339)))
		case now.Before(pair.Leaf.NotBefore):
			problems = append(problems, fmt.Errorf("%s: the certificate is good from %s on only: is this machine's clock right?", setting, pair.Leaf.NotBefore.UTC().Format(time.RFC3339)))
		}
		if err := misnamed(cfg, pair.Leaf); err != nil && l.name == "http" {
			problems = append(problems, fmt.Errorf("%s: %w; %s", setting, err, misnamedDo))
		}
	}
	return problems
}

// misnamed says whether clients will take the HTTP listener for another than the issuer.
func misnamed(cfg config.Config, leaf *x509.Certificate) error {
	issuer, err := url.Parse(cfg.Issuer)
	if err != nil || issuer.Hostname() == "" || len(cfg.Gateway.TrustedProxies) > 0 {
		return nil
	}
	if err := leaf.VerifyHostname(issuer.Hostname()); err != nil {
		return fmt.Errorf("the certificate is not for the issuer's name: %w", err)
	}
	return nil
}

const misnamedDo = "where a proxy stands before this listener, name it in gateway.trusted_proxies"

// checkDatabase asks the database whether a server can work with it.
func checkDatabase(ctx context.Context, cfg config.Config, problems []error) error {
	o, err := databaseOptions(cfg.Database)
	if err != nil {
		return err
	}
	db, err := sqlstore.OpenExisting(ctx, o)
	switch {
	case errors.Is(err, sqlstore.ErrNoDatabase) || errors.Is(err, sqlstore.ErrSchemaOlder):
		return nil // the server makes it, or brings it up to date
	case err != nil:
		return ofDatabase(o, err)
	}
	var found []error
	if !about(problems, "secrets.key_encryption_keys_file") {
		found = append(found, named("secrets.key_encryption_keys_file", checkKEK(ctx, db, cfg)))
	}
	if !about(problems, "secrets.refresh_keys_file") {
		found = append(found, named("secrets.refresh_keys_file", checkRefreshKeys(ctx, db, cfg)))
	}
	return errors.Join(append(found, db.Close())...)
}

// ofDatabase makes an error name the setting, if it does not.
func ofDatabase(o sqlstore.Options, err error) error {
	switch {
	case about([]error{err}, "database"):
		return err
	case o.Path != "":
		return named("database.path", err)
	}
	return named("database.url", err)
}

// checkKEK opens every signing key that a server would.
func checkKEK(ctx context.Context, db *sqlstore.DB, cfg config.Config) error {
	sealer, err := loadSealer(cfg.Secrets)
	if err != nil {
		return err
	}
	set, err := db.Keys().Load(ctx)
	if err != nil || len(set.Keys) == 0 {
		return err
	}
	ring, err := keys.NewRing(keys.Options{Store: db.Keys(), Sealer: sealer})
	if err != nil {
		return err
	}
	return ring.Load(ctx)
}

func checkRefreshKeys(ctx context.Context, db *sqlstore.DB, cfg config.Config) error {
	known, err := loadRefreshKeys(cfg.Secrets, cfg.Issuer)
	if err != nil {
		return err
	}
	return fitting(ctx, db, known, cfg.Secrets)
}

// fitting refuses refresh keys that cannot be this database's: every refresh would be refused, for good.
func fitting(ctx context.Context, db *sqlstore.DB, known *session.RefreshKeys, c config.Secrets) error {
	newest, err := db.Sessions().List(ctx, "", session.Cursor{}, 1)
	if err != nil {
		return err
	}
	if len(newest) > 0 && !known.Lists(newest[0].KeyID) {
		return fmt.Errorf(`%s: the newest session was made with refresh key %d, which is not in it: put it back, or give it up by {"id": %[2]d, "gone": true}`,
			refreshSource(c).name, newest[0].KeyID)
	}
	return nil
}
