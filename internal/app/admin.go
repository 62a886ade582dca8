package app

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// AdminOptions say which installation to work on: exactly one of ConfigFile and Dir. LoadConfig takes neither, too.
type AdminOptions struct {
	ConfigFile string   // of serve -config
	Dir        string   // of serve -dev
	Environ    []string // overrides the configuration file, as for serve
}

// Admin is the core for a command beside a running server: the same use cases on the same store, without doors and loops.
// The server learns what it changes by reading the store.
type Admin struct {
	cfg         config.Config
	db          *sqlstore.DB
	caller      service.Caller
	accounts    *service.Accounts
	clients     *service.ClientAdmin
	revocations *service.Revocations
}

// OpenAdmin opens the store of an installation. It creates and migrates nothing, and refuses a file that belongs to
// another user, and a database with another schema.
func OpenAdmin(ctx context.Context, o AdminOptions) (_ *Admin, err error) {
	a := &Admin{caller: service.Operator(os.Getuid())}
	if a.cfg, err = adminConfig(o); err != nil {
		return nil, err
	}
	database, err := databaseOptions(a.cfg.Database)
	if err != nil {
		return nil, err
	}
	if a.db, err = sqlstore.OpenExisting(ctx, database); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.db.Close())
		}
	}()
	hasher, err := password.New(password.Options{Config: a.cfg.Password})
	if err != nil {
		return nil, err
	}
	if a.accounts, err = service.NewAccounts(a.db.Accounts(), a.db.Revocations(), hasher, password.NewPolicy(), unthrottled{}, committed{}); err != nil {
		return nil, err
	}
	if a.clients, err = service.NewClientAdmin(a.db.Clients(), a.cfg.Issuer, committed{}); err != nil {
		return nil, err
	}
	a.revocations, err = service.NewRevocations(a.db.Sessions(), a.db.Clients(), a.db.Revocations(), committed{})
	return a, err
}

// adminConfig reads what a command needs of a configuration: not the listeners, whose files the operator may not see.
func adminConfig(o AdminOptions) (cfg config.Config, err error) {
	if (o.ConfigFile == "") == (o.Dir == "") {
		return cfg, errors.New("give either -dir FOLDER or -config FILE")
	}
	if cfg, err = LoadConfig(o); err != nil {
		return cfg, err
	}
	if (cfg.Database.Path == "") == (cfg.Database.URL == "") {
		return cfg, errors.New("database.path: is required, or database.url, and not both")
	}
	if err := config.CheckIssuer(cfg.Issuer); err != nil {
		return cfg, fmt.Errorf("issuer: %w", err)
	}
	return cfg, nil
}

// LoadConfig reads the configuration of an installation, unchecked: of serve -dev by its folder, otherwise from the file, if
// any, and the environment.
func LoadConfig(o AdminOptions) (config.Config, error) {
	if o.Dir == "" {
		return config.Load(o.ConfigFile, o.Environ)
	}
	issuer, err := os.ReadFile(filepath.Join(o.Dir, devIssuer))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return config.Config{}, fmt.Errorf("%s is not the folder of a server: start it once with serve -dev -dir %[1]s, or name the file of serve -config by -config: %w", o.Dir, err)
	case err != nil:
		return config.Config{}, err
	}
	cfg := devConfig(o.Dir)
	cfg.Issuer = strings.TrimSpace(string(issuer))
	devAddresses(filepath.Join(o.Dir, devReady), &cfg)
	return cfg, nil
}

// Close closes the store.
func (a *Admin) Close() error { return a.db.Close() }

// named says which setting an error is about.
func named(setting string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", setting, err)
}

// Explain gives an error in words for the operator: a fault's own sentence, and its cause where the sentence alone does
// not help.
func Explain(err error) string {
	var f *fault.Error
	if !errors.As(err, &f) {
		return err.Error()
	}
	if f.Err != nil {
		return f.Message + ": " + f.Err.Error()
	}
	return f.Message
}

// Violation gives the field that an error is about, and what is wrong with it, where it is about one field.
func Violation(err error) (field, problem string, ok bool) {
	var f *fault.Error
	if !errors.As(err, &f) || len(f.Violations) != 1 {
		return "", "", false
	}
	return f.Violations[0].Field, f.Violations[0].Description, true
}

// committed stands for the revocation log in a process that answers for no token: what is committed is done.
type committed struct{}

// CatchUp has nothing to wait for.
func (committed) CatchUp(context.Context) error { return nil }

// Fresh is always so.
func (committed) Fresh(context.Context) error { return nil }

// Await has nothing to wait for.
func (committed) Await(context.Context, string) error { return nil }

// Position is unknown here.
func (committed) Position() string { return "" }

// unthrottled lets the operator work: nothing here guesses a password.
type unthrottled struct{}

// Allow allows.
func (unthrottled) Allow(limit.Attempt) error { return nil }

// Settle counts nothing.
func (unthrottled) Settle(context.Context, limit.Attempt, limit.Outcome) error { return nil }

// CreateAccount makes an active account.
func (a *Admin) CreateAccount(ctx context.Context, username, password string) (Account, error) {
	made, err := a.accounts.Create(ctx, a.caller, username, password)
	return viewAccount(made), err
}

// UsernameFree says what keeps a new account from having this name, before anybody is asked for its password.
func (a *Admin) UsernameFree(ctx context.Context, username string) error {
	name, err := account.Canonical(username)
	if err != nil {
		return err
	}
	_, err = a.db.Accounts().ByUsername(ctx, name)
	switch {
	case err == nil:
		return fault.New(fault.Exists, fault.UsernameTaken, "the username is taken")
	case fault.From(err).Kind == fault.NotFound:
		return nil
	}
	return err
}

// Account reads one account, by its id or its username, as every method that takes a who.
func (a *Admin) Account(ctx context.Context, who string) (Account, error) {
	found, err := a.accounts.Find(ctx, who)
	return viewAccount(found), err
}

// Accounts lists accounts by name, at most limit (all if zero); more says that there are others.
func (a *Admin) Accounts(ctx context.Context, limit int) ([]Account, bool, error) {
	return paged(limit, viewAccount, func(last *account.Account, n int) ([]account.Account, error) {
		after := ""
		if last != nil {
			after = last.Username
		}
		return a.accounts.List(ctx, after, n)
	})
}

// EnableAccount lets an account act again.
func (a *Admin) EnableAccount(ctx context.Context, who string) (Account, error) {
	return a.setState(ctx, who, account.Active)
}

// DisableAccount ends every session of an account and lets it begin none.
func (a *Admin) DisableAccount(ctx context.Context, who string) (Account, error) {
	return a.setState(ctx, who, account.Disabled)
}

func (a *Admin) setState(ctx context.Context, who string, state account.State) (Account, error) {
	if err := a.accounts.SetState(ctx, a.caller, who, state); err != nil {
		return Account{}, err
	}
	return a.Account(ctx, who)
}

// SetPassword replaces an account's password and ends its sessions.
func (a *Admin) SetPassword(ctx context.Context, who, password string) (Account, error) {
	if err := a.accounts.SetPassword(ctx, a.caller, who, password); err != nil {
		return Account{}, err
	}
	return a.Account(ctx, who)
}

// DeleteAccount removes an account and ends its sessions; it gives what the account was.
func (a *Admin) DeleteAccount(ctx context.Context, who string) (Account, error) {
	found, err := a.Account(ctx, who)
	if err != nil {
		return Account{}, err
	}
	return found, a.accounts.Delete(ctx, a.caller, found.ID)
}

// CreateClient registers a client; the answer holds its secret, once.
func (a *Admin) CreateClient(ctx context.Context, n NewClient) (Client, error) {
	made, secret, err := a.clients.Create(ctx, a.caller, client.Client{ID: ids.Client(n.ID), Name: n.Name, Kind: client.Kind(n.Kind),
		Audiences: n.Audiences, DefaultAudiences: n.DefaultAudiences, Scopes: n.Scopes, DefaultScopes: n.DefaultScopes,
		AccessTTL: n.AccessTTL, SessionIdleTTL: n.SessionIdleTTL, SessionTTL: n.SessionTTL, ReuseWindow: n.ReuseWindow})
	return viewClient(made, secret), err
}

// Client reads one client.
func (a *Admin) Client(ctx context.Context, id string) (Client, error) {
	c, err := a.clients.Get(ctx, ids.Client(id))
	return viewClient(c, ""), err
}

// Clients lists clients by id, at most limit (all if zero); more says that there are others.
func (a *Admin) Clients(ctx context.Context, limit int) ([]Client, bool, error) {
	view := func(c client.Client) Client { return viewClient(c, "") }
	return paged(limit, view, func(last *client.Client, n int) ([]client.Client, error) {
		var after ids.Client
		if last != nil {
			after = last.ID
		}
		return a.clients.List(ctx, after, n)
	})
}

// RotateClientSecret gives a client a new secret, which is in the answer, once; the old one lives for overlap.
func (a *Admin) RotateClientSecret(ctx context.Context, id string, overlap time.Duration) (Client, error) {
	secret, err := a.clients.RotateSecret(ctx, a.caller, ids.Client(id), overlap)
	if err != nil {
		return Client{}, err
	}
	c, err := a.clients.Get(ctx, ids.Client(id))
	return viewClient(c, secret), err
}

// DeleteClient removes a client and ends its sessions and tokens.
func (a *Admin) DeleteClient(ctx context.Context, id string) error {
	return a.clients.Delete(ctx, a.caller, ids.Client(id))
}

// Sessions lists live sessions, newest first, of one account or of all, at most limit (all if zero).
func (a *Admin) Sessions(ctx context.Context, who string, limit int) ([]Session, bool, error) {
	var of ids.Account
	if who != "" {
		found, err := a.accounts.Find(ctx, who)
		if err != nil {
			return nil, false, err
		}
		of = found.ID
	}
	return paged(limit, viewSession, func(last *session.Session, n int) ([]session.Session, error) {
		var after session.Cursor
		if last != nil {
			after = session.Cursor{CreatedAt: last.CreatedAt, ID: last.ID}
		}
		return a.db.Sessions().List(ctx, of, after, n)
	})
}

// RevokeSession ends a session; known is false where there is no row of it, and its tokens were revoked all the same.
func (a *Admin) RevokeSession(ctx context.Context, id string) (known bool, err error) {
	return a.revocations.Session(ctx, a.caller, ids.Session(id))
}

// RevokeSubject cuts an account off, and gives its id and how many sessions that ended. An id is cut off even if no account
// has it: tokens of one that was deleted may live elsewhere.
func (a *Admin) RevokeSubject(ctx context.Context, who string) (id string, sessions int, err error) {
	found, err := a.accounts.Find(ctx, who)
	if _, malformed := ids.Bytes(ids.Account(who)); err != nil && (malformed != nil || fault.From(err).Kind != fault.NotFound) {
		return "", 0, err
	}
	if err != nil {
		found.ID = ids.Account(who)
	}
	n, err := a.revocations.Subject(ctx, a.caller, found.ID)
	return string(found.ID), n, err
}

// RevokeClient cuts a client off, and gives how many sessions that ended.
func (a *Admin) RevokeClient(ctx context.Context, id string) (int, error) {
	return a.revocations.Client(ctx, a.caller, ids.Client(id))
}

// RevokeToken ends one access token, by its jti.
func (a *Admin) RevokeToken(ctx context.Context, id string) error {
	return a.revocations.Token(ctx, a.caller, ids.Token(id))
}

// RevokeEverything cuts everything off, and gives how many sessions that ended.
func (a *Admin) RevokeEverything(ctx context.Context) (int, error) {
	return a.revocations.Everything(ctx, a.caller)
}

// keys opens the key-encryption keys, which only commands on signing keys need.
func (a *Admin) keys() (*service.Keys, error) {
	sealer, err := loadSealer(a.cfg.Secrets)
	if err != nil {
		return nil, err
	}
	return service.NewKeys(service.KeysOptions{Store: a.db.Keys(), Sealer: sealer, Config: a.cfg.Keys, Tail: committed{}})
}

// Keys lists the signing keys that are not gone. Of a pending one it says which watchers of the running server hold it.
func (a *Admin) Keys(ctx context.Context) ([]Key, error) {
	k, err := a.keys()
	if err != nil {
		return nil, err
	}
	all, err := k.List(ctx)
	views := make([]Key, 0, len(all))
	for _, one := range all {
		v := viewKey(one, k.Current(one))
		if one.State == keys.Pending {
			watchers, unknown := askWatchers(ctx, a.cfg)
			v.Holding = holding(one.ID, watchers, unknown)
		}
		views = append(views, v)
	}
	return views, err
}

// RotateKeys promotes the pending key, atOnce even before it has been published long enough, and gives the signer's kid; of one
// that was promoted at once also which watchers of the running server held it before.
func (a *Admin) RotateKeys(ctx context.Context, atOnce bool) (kid string, held *Holding, err error) {
	k, err := a.keys()
	if err != nil {
		return "", nil, err
	}
	if !atOnce {
		kid, err = k.Rotate(ctx, a.caller, false)
		return kid, nil, err
	}
	watchers, unknown := askWatchers(ctx, a.cfg)
	kid, err = k.Rotate(ctx, a.caller, true)
	return kid, holding(kid, watchers, unknown), err
}

// RevokeKey makes one key compromised.
func (a *Admin) RevokeKey(ctx context.Context, kid string) error {
	k, err := a.keys()
	if err != nil {
		return err
	}
	return k.Revoke(ctx, a.caller, kid)
}

// RevokeAllKeys makes every key compromised and gives the kid of the new signer.
func (a *Admin) RevokeAllKeys(ctx context.Context) (string, error) {
	k, err := a.keys()
	if err != nil {
		return "", err
	}
	return k.RevokeAll(ctx, a.caller)
}

// RewrapKeys seals the private halves with the first key-encryption key, and gives how many another had sealed.
func (a *Admin) RewrapKeys(ctx context.Context) (int, error) {
	k, err := a.keys()
	if err != nil {
		return 0, err
	}
	return k.Rewrap(ctx, a.caller)
}

// Audit lists audit records, newest first, at most limit (all if zero).
func (a *Admin) Audit(ctx context.Context, f AuditFilter, limit int) ([]AuditRecord, bool, error) {
	subjects, err := a.subjects(ctx, f.Subject)
	if err != nil {
		return nil, false, err
	}
	filter := audit.Filter{Event: f.Event, Subjects: subjects, Since: f.Since}
	return paged(limit, viewRecord, func(last *audit.Record, n int) ([]audit.Record, error) {
		before := f.Before
		if last != nil {
			before = last.ID
		}
		return a.db.Audit().List(ctx, filter, before, n)
	})
}

// subjects gives the ids under which the audit log knows something: its own, and that of the account with this username.
// What nothing has ever been is an error, so that a slip of the pen does not look like an empty log.
func (a *Admin) subjects(ctx context.Context, text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	found, err := a.accounts.Find(ctx, text)
	switch kind := fault.From(err).Kind; {
	case err == nil && string(found.ID) != text:
		return []string{text, string(found.ID)}, nil
	case err == nil:
		return []string{text}, nil
	case kind != fault.NotFound && kind != fault.Invalid:
		return nil, err
	}
	if _, err := a.clients.Get(ctx, ids.Client(text)); err == nil || fault.From(err).Kind != fault.NotFound {
		return []string{text}, err
	}
	records, err := a.db.Audit().List(ctx, audit.Filter{Subjects: []string{text}}, 0, 1)
	if err == nil && len(records) == 0 {
		err = fmt.Errorf("no account or client is called %q, and no record is about it; what was deleted is found by its id", text)
	}
	return []string{text}, err
}

// adminPage is how many rows one read takes.
const adminPage = 500

// paged reads page after page up to limit rows, zero meaning all; more says that there is at least one beyond.
func paged[T, V any](limit int, view func(T) V, next func(last *T, n int) ([]T, error)) (views []V, more bool, err error) {
	views = []V{}
	var last *T
	for {
		n := adminPage
		if limit > 0 {
			n = min(n, limit-len(views)+1)
		}
		page, err := next(last, n)
		if err != nil {
			return nil, false, err
		}
		for i := range page {
			if limit > 0 && len(views) == limit {
				return views, true, nil
			}
			views = append(views, view(page[i]))
			last = &page[i]
		}
		if len(page) < n {
			return views, false, nil
		}
	}
}
