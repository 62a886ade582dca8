package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

// DevOptions are the flags of serve -dev.
type DevOptions struct {
	Dir    string // holds everything; made if missing
	HTTP   string // addresses; port 0 takes any free one
	GRPC   string
	Ops    string
	Issuer string // empty: the HTTP URL of the first start
}

// files of a dev folder.
const (
	devDatabase = "authsvc.db"
	devKEK      = "kek.json"
	devRefresh  = "refresh.json"
	devIssuer   = "issuer"
	devDemo     = "demo.json"
	devReady    = "dev.json"
	devSocket   = "admin.sock"
)

// demoAudience is the API of the demo clients.
const demoAudience = "https://demo-api.example"

// demo is the account and the clients of a dev folder, kept in demo.json so that every start can say them again.
type demo struct {
	Username            string     `json:"username"`
	Password            string     `json:"password"`
	PublicClientID      ids.Client `json:"public_client_id"`
	ServiceClientID     ids.Client `json:"service_client_id"`
	ServiceClientSecret string     `json:"service_client_secret"`
	Audience            string     `json:"audience"`
}

// ready is dev.json: where the doors are, and the demo.
type ready struct {
	HTTP   string `json:"http"`
	GRPC   string `json:"grpc"`
	Ops    string `json:"ops"`
	Issuer string `json:"issuer"`
	demo
}

// RunDev serves from a folder that it fills on the first start, until ctx ends.
func RunDev(ctx context.Context, o DevOptions, stdout, stderr io.Writer) (err error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	path := func(name string) string { return filepath.Join(o.Dir, name) }
	cfg := devConfig(o.Dir)
	cfg.HTTP.Address, cfg.GRPC.Address, cfg.Ops.Address = o.HTTP, o.GRPC, o.Ops
	doors, err := Listen(cfg)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%w: does another server run? -http, -grpc and -ops take other addresses; port 0 takes any free one", err)
	}
	if err != nil {
		return err
	}
	defer doors.Close() //nolint:errcheck // Run closes them; this is for the early ways out
	lock, err := alone(cfg.Database, o.HTTP, doors.HTTP.Addr().String())
	if err != nil {
		return err
	}
	defer lock.Close() // the process ends, and the lock with it
	// Only now: a second start by mistake, which finds the doors or the folder taken, leaves the file of the server that runs.
	if err := os.Remove(path(devReady)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	first, err := devSecrets(o.Dir)
	if err != nil {
		return err
	}
	if cfg.Issuer, err = devIssuerOf(path(devIssuer), o.Issuer, strings.TrimSuffix("http://"+doors.HTTP.Addr().String(), ":80")); err != nil {
		return err
	}
	unheard := doors.listenAdmin(cfg.Admin)
	a, err := New(ctx, cfg, doors, stderr)
	if err != nil {
		return err
	}
	if unheard != nil { // as where the folder's name is too long for a socket; nothing but a command or two needs it
		a.log.Warn("this server cannot be asked who watches", "error", unheard)
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	d, err := a.demo(ctx, path(devDemo))
	if err != nil {
		return err
	}
	r := ready{HTTP: "http://" + doors.HTTP.Addr().String(), GRPC: doors.GRPC.Addr().String(), Ops: "http://" + doors.Ops.Addr().String(),
		Issuer: cfg.Issuer, demo: d}
	return a.Run(ctx, func() error {
		content, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		if err := writeWhole(path(devReady), append(content, '\n')); err != nil {
			return err
		}
		return r.print(stdout, first, path(devReady))
	})
}

// devConfig is the configuration of a dev folder, without its issuer.
func devConfig(dir string) config.Config {
	cfg := config.Default()
	cfg.GRPC.Reflection = true
	cfg.ForwardAuth.Audiences = []string{demoAudience}
	cfg.Database.Path = filepath.Join(dir, devDatabase)
	cfg.Admin.Socket = filepath.Join(dir, devSocket)
	cfg.Secrets = config.Secrets{KeyEncryptionKeysFile: filepath.Join(dir, devKEK), RefreshKeysFile: filepath.Join(dir, devRefresh)}
	return cfg
}

// devAddresses puts the doors of the last start into cfg, which serve -dev takes from its flags. Where that is not known the
// defaults stand; no command needs them.
func devAddresses(path string, cfg *config.Config) {
	var r ready
	if text, err := os.ReadFile(path); err != nil || json.Unmarshal(text, &r) != nil {
		return
	}
	cfg.HTTP.Address, cfg.GRPC.Address, cfg.Ops.Address = strings.TrimPrefix(r.HTTP, "http://"), r.GRPC, strings.TrimPrefix(r.Ops, "http://")
}

// devSecrets makes the two key files where there is no database yet. Where there is one, a missing key file is an error:
// new keys could open nothing that it holds.
func devSecrets(dir string) (first bool, err error) {
	_, err = os.Stat(filepath.Join(dir, devDatabase))
	first = errors.Is(err, fs.ErrNotExist)
	if err != nil && !first {
		return false, err
	}
	for name, id := range map[string]string{devKEK: `"dev-1"`, devRefresh: `1`} {
		p := filepath.Join(dir, name)
		_, err := os.Stat(p)
		switch {
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			return false, err
		case !first:
			return false, fmt.Errorf("%s is missing, and %s was made with it: put it back, or remove the whole folder to begin anew", p, devDatabase)
		default:
			if err := writeWhole(p, fmt.Appendf(nil, "{\"keys\": [{\"id\": %s, \"key\": %q}]}\n", id, newKey())); err != nil {
				return false, err
			}
		}
	}
	return first, nil
}

// devIssuerOf keeps the issuer of the first start, since every token carries it.
func devIssuerOf(path, asked, url string) (string, error) {
	kept, err := os.ReadFile(path)
	if err == nil {
		issuer := strings.TrimSpace(string(kept))
		if asked != "" && asked != issuer {
			return "", fmt.Errorf("this folder's issuer is %s: every token and key in it carries that name; use another -dir for %s", issuer, asked)
		}
		return issuer, config.CheckIssuer(issuer)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if asked == "" {
		asked = url
	}
	if err := config.CheckIssuer(asked); err != nil {
		return "", fmt.Errorf("the issuer %s %w; -issuer gives another", asked, err)
	}
	return asked, writeWhole(path, []byte(asked+"\n"))
}

// demo makes the demo account and clients, or what a crash left out of them.
func (a *App) demo(ctx context.Context, path string) (demo, error) {
	var d demo
	err := readSecret(path, &d)
	if errors.Is(err, fs.ErrNotExist) {
		d = demo{Username: "demo", Password: ids.Secret()[:24], PublicClientID: ids.New[ids.Client](), ServiceClientID: ids.New[ids.Client](),
			ServiceClientSecret: ids.Secret(), Audience: demoAudience}
		var content []byte
		if content, err = json.MarshalIndent(d, "", "  "); err == nil { //nolint:gosec // the demo's password is what this file is for
			err = writeWhole(path, append(content, '\n'))
		}
	}
	if err != nil {
		return d, err
	}
	return d, a.ensureDemo(ctx, d)
}

func (a *App) ensureDemo(ctx context.Context, d demo) error {
	exists := func(err error) bool { return err != nil && fault.From(err).Kind == fault.Exists }
	record := func(event, subject string) journal.Journal {
		return journal.Journal{Audit: []journal.Record{{Event: event, Outcome: "ok", Actor: "dev", Subject: subject}}}
	}
	if _, err := a.db.Accounts().ByUsername(ctx, d.Username); err != nil {
		if fault.From(err).Kind != fault.NotFound {
			return err
		}
		hash, err := a.hasher.Hash(ctx, d.Password)
		if err != nil {
			return err
		}
		acc := account.Account{ID: ids.New[ids.Account](), Username: d.Username, PasswordHash: hash, State: account.Active}
		if err := a.db.Accounts().Create(ctx, acc, record("account.create", string(acc.ID))); err != nil && !exists(err) {
			return err
		}
	}
	scopes := []string{"demo.read", "demo.write"}
	public := client.Client{ID: d.PublicClientID, Name: "demo app", Kind: client.Public, Scopes: scopes, DefaultScopes: scopes,
		Audiences: []string{d.Audience, a.cfg.Issuer}, DefaultAudiences: []string{d.Audience, a.cfg.Issuer}}
	service := client.Client{ID: d.ServiceClientID, Name: "demo service", Kind: client.Confidential,
		Secrets: []client.Secret{{Hash: ids.HashSecret(d.ServiceClientSecret), CreatedAt: a.now()}},
		Scopes:  append([]string{"authsvc.introspect"}, scopes...), DefaultScopes: scopes, Audiences: []string{d.Audience}, DefaultAudiences: []string{d.Audience}}
	for _, c := range []client.Client{public, service} {
		c = c.Defaults()
		if err := c.Validate(a.cfg.Issuer); err != nil {
			return err
		}
		if _, err := a.db.Clients().Get(ctx, c.ID); err == nil {
			continue
		} else if fault.From(err).Kind != fault.NotFound {
			return err
		}
		if err := a.db.Clients().Create(ctx, c, record("client.create", string(c.ID))); err != nil && !exists(err) {
			return err
		}
	}
	return a.clients.Refresh(ctx)
}

// print says where the doors are; on the first start it says how to use them, with the secrets, once.
func (r ready) print(w io.Writer, first bool, path string) error {
	if !first {
		_, err := fmt.Fprintf(w, "authsvc -dev is ready\n  REST  %s\n  gRPC  %s\n  ops   %s\n  the demo account and clients are in %s\n", r.HTTP, r.GRPC, r.Ops, path)
		return err
	}
	_, err := fmt.Fprintf(w, `authsvc -dev is ready
  REST  %[1]s    OpenAPI %[1]s/openapi.json    keys %[1]s/.well-known/jwks.json
  gRPC  %[2]s
  ops   %[3]s/readyz
  account          %[4]s   password %[5]s
  public client    %[6]s
  service client   %[7]s   secret %[8]s
These secrets are printed once; they are also in %[10]s (mode 0600).

Sign in:
  curl -s %[1]s/v1/auth/login -H 'Content-Type: application/json' -d '{"username":"%[4]s","password":"%[5]s","client_id":"%[6]s"}'
or
  grpcurl -plaintext -d '{"username":"%[4]s","password":"%[5]s","client_id":"%[6]s"}' %[2]s authsvc.v1.AuthService/Login

Ask whether a token is good (put the access_token in place of TOKEN):
  curl -s %[1]s/v1/auth/introspect -u '%[7]s:%[8]s' -H 'Content-Type: application/json' -d '{"token":"TOKEN"}'

Get a service's own token:
  curl -s %[1]s/oauth2/token -u '%[7]s:%[8]s' -d grant_type=client_credentials

`, r.HTTP, r.GRPC, r.Ops, r.Username, r.Password, r.PublicClientID, r.ServiceClientID, r.ServiceClientSecret, r.Audience, path)
	return err
}
