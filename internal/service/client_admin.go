package service

import (
	"context"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
)

// MaxOverlap is the longest that a rotated secret stays valid beside its successor.
const MaxOverlap = 30 * 24 * time.Hour

// ClientAdmin holds what an operator does to clients.
type ClientAdmin struct {
	store  client.Store
	issuer string
	tail   tail
}

// NewClientAdmin makes the use cases.
func NewClientAdmin(store client.Store, issuer string, t tail) (*ClientAdmin, error) {
	if store == nil || issuer == "" || t == nil {
		return nil, missing("client store, issuer or tail")
	}
	return &ClientAdmin{store: store, issuer: issuer, tail: t}, nil
}

// Create registers a client. An empty ID is generated, lifetimes that are zero get their defaults, and a confidential
// client gets a secret, which is given here and never again.
func (s *ClientAdmin) Create(ctx context.Context, caller Caller, c client.Client) (created client.Client, secret string, err error) {
	if c.ID == "" {
		c.ID = ids.New[ids.Client]()
	}
	if strings.ContainsFunc(string(c.ID), func(r rune) bool { return !idRune(r) }) {
		return client.Client{}, "", fault.Field("client_id", "must be letters, digits and . _ ~ - only")
	}
	if !utf8.ValidString(c.Name) || strings.ContainsFunc(c.Name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return client.Client{}, "", fault.Field("name", "must be printable text")
	}
	c = c.Defaults()
	c.Secrets = nil
	if c.Kind == client.Confidential {
		secret = ids.Secret()
		c.Secrets = []client.Secret{{Hash: ids.HashSecret(secret)}}
	}
	if err := c.Validate(s.issuer); err != nil {
		return client.Client{}, "", err
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := s.store.Create(ctx, c, changed(caller, "client.create", c.ID)); err != nil {
		return client.Client{}, "", err
	}
	created, err = s.store.Get(ctx, c.ID)
	return created, secret, err
}

// idRune reports the unreserved characters of RFC 3986 §2.3, which a Basic header carries unencoded.
func idRune(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._~-", r)
}

// Get reads one client.
func (s *ClientAdmin) Get(ctx context.Context, id ids.Client) (client.Client, error) {
	return s.store.Get(ctx, id)
}

// List gives clients ordered by id, after the given one, at most limit.
func (s *ClientAdmin) List(ctx context.Context, after ids.Client, limit int) ([]client.Client, error) {
	return s.store.List(ctx, after, limit)
}

// RotateSecret gives a confidential client a new secret; the old one stays valid for overlap, zero ends it at once.
func (s *ClientAdmin) RotateSecret(ctx context.Context, caller Caller, id ids.Client, overlap time.Duration) (secret string, err error) {
	if overlap < 0 || overlap > MaxOverlap {
		return "", fault.Field("overlap", "must be 0 to 720h")
	}
	c, err := s.store.Get(ctx, id)
	if err != nil {
		return "", err
	}
	if c.Kind != client.Confidential {
		return "", fault.Field("client_id", "is a public client, which has no secret")
	}
	secret = ids.Secret()
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := s.store.RotateSecret(ctx, id, c.Version, ids.HashSecret(secret), overlap, changed(caller, "client.rotate_secret", id)); err != nil {
		return "", err
	}
	return secret, nil
}

// Delete removes a client, ends its sessions and cuts its tokens off.
func (s *ClientAdmin) Delete(ctx context.Context, caller Caller, id ids.Client) error {
	c, err := s.store.Get(ctx, id)
	if err != nil {
		return err
	}
	j := changed(caller, "client.delete", id)
	j.Ends = []journal.End{{Client: id, Reason: journal.EndedByClient}}
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := s.store.Delete(ctx, id, c.Version, j); err != nil {
		return err
	}
	return s.tail.CatchUp(ctx)
}

func changed(caller Caller, event string, id ids.Client) journal.Journal {
	r := caller.record(event, "ok", "", string(id))
	r.Client = id
	return journal.Journal{Audit: []journal.Record{r}}
}
