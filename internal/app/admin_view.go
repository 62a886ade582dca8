package app

import (
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/session"
)

// Account is an account as the command line shows it; its password hash is never shown.
type Account struct {
	ID        string    `json:"account_id"` // the sub of its tokens
	Username  string    `json:"username"`
	State     string    `json:"state"`
	NotBefore time.Time `json:"not_before,omitzero"` // what began before it is dead
	CreatedAt time.Time `json:"create_time"`
	UpdatedAt time.Time `json:"update_time"`
}

// Client is a client as the command line shows it. Durations are text such as "5m0s".
type Client struct {
	ID               string         `json:"client_id"`
	Name             string         `json:"name,omitempty"`
	Kind             string         `json:"kind"`
	Secret           string         `json:"client_secret,omitempty"` // right after it was made, and never again
	Secrets          []ClientSecret `json:"secrets,omitempty"`
	Audiences        []string       `json:"audiences"`
	DefaultAudiences []string       `json:"default_audiences"`
	Scopes           []string       `json:"scopes"`
	DefaultScopes    []string       `json:"default_scopes"`
	AccessTTL        string         `json:"access_ttl"`
	SessionIdleTTL   string         `json:"session_idle_ttl"`
	SessionTTL       string         `json:"session_ttl"`
	ReuseWindow      string         `json:"reuse_window"`
	NotBefore        time.Time      `json:"not_before,omitzero"`
	CreatedAt        time.Time      `json:"create_time"`
	UpdatedAt        time.Time      `json:"update_time"`
}

// ClientSecret says since when a secret is valid, and until when.
type ClientSecret struct {
	CreatedAt time.Time `json:"create_time"`
	ExpiresAt time.Time `json:"expire_time,omitzero"`
}

// NewClient is what client create asks for. An empty ID is generated, a zero duration gets its default.
type NewClient struct {
	ID               string
	Name             string
	Kind             string
	Audiences        []string
	DefaultAudiences []string
	Scopes           []string
	DefaultScopes    []string
	AccessTTL        time.Duration
	SessionIdleTTL   time.Duration
	SessionTTL       time.Duration
	ReuseWindow      time.Duration
}

// Session is a session as the command line shows it.
type Session struct {
	ID         string    `json:"session_id"`
	Account    string    `json:"account_id"`
	Client     string    `json:"client_id"`
	DeviceName string    `json:"device_name,omitempty"`
	IP         string    `json:"ip_address,omitempty"`
	UserAgent  string    `json:"user_agent,omitempty"`
	Scope      string    `json:"scope,omitempty"`
	Audiences  []string  `json:"audiences"`
	CreatedAt  time.Time `json:"create_time"`
	LastUsedAt time.Time `json:"last_used_time"`
	ExpiresAt  time.Time `json:"expire_time"` // the earlier of its idle and its absolute end
}

// Key is a signing key as the command line shows it; its private half is never shown.
type Key struct {
	ID          string    `json:"kid"`
	State       string    `json:"state"`
	SealCurrent bool      `json:"seal_current"` // sealed by the first key-encryption key
	CreatedAt   time.Time `json:"create_time"`
	PublishedAt time.Time `json:"publish_time"`
	ActivatedAt time.Time `json:"activate_time,omitzero"`
	RetiredAt   time.Time `json:"retire_time,omitzero"`
	GoneAt      time.Time `json:"gone_time,omitzero"`
	Holding     *Holding  `json:"feed,omitempty"` // of a pending key: who has it already
}

// AuditRecord is one record of the audit log.
type AuditRecord struct {
	ID        int64     `json:"id"`
	Time      time.Time `json:"time"`
	Event     string    `json:"event"`
	Outcome   string    `json:"outcome"`
	Reason    string    `json:"reason,omitempty"`
	Actor     string    `json:"actor,omitempty"`
	Subject   string    `json:"subject,omitempty"`
	Client    string    `json:"client_id,omitempty"`
	Session   string    `json:"session_id,omitempty"`
	IP        string    `json:"ip_address,omitempty"`
	UserAgent string    `json:"user_agent,omitempty"`
	RequestID string    `json:"request_id,omitempty"`
}

// AuditFilter selects audit records; the zero filter selects all. Subject is the id of anything, or a username; Before is an
// id, exclusive.
type AuditFilter struct {
	Event   string
	Subject string
	Since   time.Time
	Before  int64
}

func viewAccount(a account.Account) Account {
	return Account{ID: string(a.ID), Username: a.Username, State: string(a.State), NotBefore: utc(a.NotBefore),
		CreatedAt: utc(a.CreatedAt), UpdatedAt: utc(a.UpdatedAt)}
}

func viewClient(c client.Client, secret string) Client {
	v := Client{ID: string(c.ID), Name: c.Name, Kind: string(c.Kind), Secret: secret,
		Audiences: list(c.Audiences), DefaultAudiences: list(c.DefaultAudiences), Scopes: list(c.Scopes), DefaultScopes: list(c.DefaultScopes),
		AccessTTL: c.AccessTTL.String(), SessionIdleTTL: c.SessionIdleTTL.String(), SessionTTL: c.SessionTTL.String(),
		ReuseWindow: c.ReuseWindow.String(), NotBefore: utc(c.NotBefore), CreatedAt: utc(c.CreatedAt), UpdatedAt: utc(c.UpdatedAt)}
	for _, s := range c.Secrets {
		v.Secrets = append(v.Secrets, ClientSecret{CreatedAt: utc(s.CreatedAt), ExpiresAt: utc(s.ExpiresAt)})
	}
	return v
}

// list keeps an empty list from being null in JSON.
func list(all []string) []string {
	if all == nil {
		return []string{}
	}
	return all
}

func viewSession(s session.Session) Session {
	ends := s.EndsAt
	if s.IdleEndsAt.Before(ends) {
		ends = s.IdleEndsAt
	}
	return Session{ID: string(s.ID), Account: string(s.Account), Client: string(s.Client), DeviceName: s.DeviceName, IP: s.IP,
		UserAgent: s.UserAgent, Scope: s.Scope, Audiences: list(s.Audiences), CreatedAt: utc(s.CreatedAt), LastUsedAt: utc(s.LastUsedAt),
		ExpiresAt: utc(ends)}
}

func viewKey(k keys.Key, current bool) Key {
	return Key{ID: k.ID, State: string(k.State), SealCurrent: current, CreatedAt: utc(k.CreatedAt), PublishedAt: utc(k.PublishedAt),
		ActivatedAt: utc(k.ActivatedAt), RetiredAt: utc(k.RetiredAt), GoneAt: utc(k.GoneAt)}
}

func viewRecord(r audit.Record) AuditRecord {
	return AuditRecord{ID: r.ID, Time: utc(r.Time), Event: r.Event, Outcome: r.Outcome, Reason: r.Reason, Actor: r.Actor,
		Subject: r.Subject, Client: string(r.Client), Session: string(r.Session), IP: r.IP, UserAgent: r.UserAgent, RequestID: r.RequestID}
}

func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}
