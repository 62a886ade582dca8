package service_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/audit"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

const adminIssuer = "https://auth.example.com"

// caughtUp is a tail for use cases whose process keeps no list.
type caughtUp struct{}

func (caughtUp) CatchUp(context.Context) error       { return nil }
func (caughtUp) Fresh(context.Context) error         { return nil }
func (caughtUp) Await(context.Context, string) error { return nil }
func (caughtUp) Position() string                    { return "" }

func memory(t *testing.T) *sqlstore.DB {
	t.Helper()
	db, err := sqlstore.Open(t.Context(), sqlstore.Options{Path: sqlstore.Memory, OpTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func clientAdmin(t *testing.T, db *sqlstore.DB) *service.ClientAdmin {
	t.Helper()
	s, err := service.NewClientAdmin(db.Clients(), adminIssuer, caughtUp{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func wantReason(t *testing.T, err error, want fault.Reason) {
	t.Helper()
	var f *fault.Error
	if !errors.As(err, &f) || f.Reason != want {
		t.Errorf("got %v, want a fault with reason %s", err, want)
	}
}

// events gives the audit log's events, oldest first, as "event subject", and checks who is named.
func events(t *testing.T, db *sqlstore.DB) []string {
	t.Helper()
	records, err := db.Audit().List(t.Context(), audit.Filter{}, 0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for i := len(records) - 1; i >= 0; i-- {
		r := records[i]
		if r.Actor != "operator:1000" && r.Actor != "system" {
			t.Errorf("%s names the actor %q", r.Event, r.Actor)
		}
		out = append(out, r.Event+" "+r.Subject)
	}
	return out
}

func TestR55AConfidentialClientsSecretIsGivenOnceAndStoredHashed(t *testing.T) {
	t.Parallel()
	db := memory(t)
	s := clientAdmin(t, db)
	c, secret, err := s.Create(t.Context(), service.Operator(1000), client.Client{Kind: client.Confidential, Audiences: []string{"https://api.example.com"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ids.Bytes(c.ID); err != nil {
		t.Errorf("the id %q is not one of ours", c.ID)
	}
	if c.AccessTTL != client.DefaultAccessTTL || c.SessionTTL != client.DefaultSessionTTL || c.ReuseWindow != client.DefaultReuseWindow {
		t.Errorf("the lifetimes are not the defaults: %+v", c)
	}
	if len(secret) != 43 || !c.Authentic(secret, time.Now()) {
		t.Error("the secret does not authenticate the client")
	}
	if c.Authentic(secret+"x", time.Now()) {
		t.Error("another secret does")
	}
	if len(c.Secrets) != 1 || c.Secrets[0].Hash != ids.HashSecret(secret) {
		t.Error("the store holds something else than the secret's hash")
	}
	rotated, err := s.RotateSecret(t.Context(), service.Operator(1000), c.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	c, err = s.Get(t.Context(), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	if !c.Authentic(secret, time.Now()) || !c.Authentic(rotated, time.Now()) {
		t.Error("during the overlap both secrets must work")
	}
	if c.Authentic(secret, time.Now().Add(2*time.Hour)) {
		t.Error("after the overlap the old secret works still")
	}
	last, err := s.RotateSecret(t.Context(), service.Operator(1000), c.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = s.Get(t.Context(), c.ID); err != nil {
		t.Fatal(err)
	}
	if c.Authentic(secret, time.Now()) || c.Authentic(rotated, time.Now()) || !c.Authentic(last, time.Now()) {
		t.Error("without an overlap the new secret alone must work")
	}
	if err := s.Delete(t.Context(), service.Operator(1000), c.ID); err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(t.Context(), c.ID)
	wantReason(t, err, fault.ClientNotFound)
	got := strings.Join(events(t, db), "\n")
	id := " " + string(c.ID)
	if want := "client.create" + id + "\nclient.rotate_secret" + id + "\nclient.rotate_secret" + id + "\nclient.delete" + id; got != want {
		t.Errorf("audit log:\n%s\nwant\n%s", got, want)
	}
}

func TestABadClientIsNotCreated(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		c    client.Client
	}{
		{"of no kind", client.Client{}},
		{"with an id that a header would encode", client.Client{ID: "a b", Kind: client.Public}},
		{"D20 with a NUL in its id", client.Client{ID: "a\x00b", Kind: client.Public}},
		{"with an id beyond 128 bytes", client.Client{ID: ids.Client(strings.Repeat("a", 129)), Kind: client.Public}},
		{"D20 with a control character in its name", client.Client{Name: "a\x1b[2J", Kind: client.Public}},
		{"D20 with a name that is not UTF-8", client.Client{Name: "\xff", Kind: client.Public}},
		{"with an audience that has a space", client.Client{Kind: client.Public, Audiences: []string{"a b"}}},
		{"with a default beyond its audiences", client.Client{Kind: client.Public, DefaultAudiences: []string{"a"}}},
		{"with the issuer as a service's default", client.Client{Kind: client.Confidential, Audiences: []string{adminIssuer}, DefaultAudiences: []string{adminIssuer}}},
		{"with tokens that live too long", client.Client{Kind: client.Public, Audiences: []string{"a"}, AccessTTL: time.Hour}},
		{"public and without an audience", client.Client{Kind: client.Public}},
		{"confidential and without an audience", client.Client{Kind: client.Confidential, Scopes: []string{"read"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := memory(t)
			_, secret, err := clientAdmin(t, db).Create(t.Context(), service.Operator(1000), tt.c)
			wantReason(t, err, fault.FieldInvalid)
			if secret != "" {
				t.Error("a secret came with the refusal")
			}
			if all, err := db.Clients().List(t.Context(), "", 10); err != nil || len(all) != 0 {
				t.Errorf("the store holds %v, %v", all, err)
			}
			if got := events(t, db); len(got) != 0 {
				t.Errorf("the audit log holds %v", got)
			}
		})
	}
}

func TestAClientWithoutAudienceMayAskForTheIssuerByItsScope(t *testing.T) {
	t.Parallel()
	want := client.Client{Kind: client.Confidential, Scopes: []string{"authsvc.introspect"}}
	if _, _, err := clientAdmin(t, memory(t)).Create(t.Context(), service.Operator(1000), want); err != nil {
		t.Fatal(err)
	}
}

func TestASecretIsRotatedOnlyWhereThereIsOne(t *testing.T) {
	t.Parallel()
	db := memory(t)
	s := clientAdmin(t, db)
	app := client.Client{ID: "app", Kind: client.Public, Audiences: []string{"https://api.example.com"}}
	if _, secret, err := s.Create(t.Context(), service.Operator(1000), app); err != nil || secret != "" {
		t.Fatalf("a public client: secret %q, %v", secret, err)
	}
	_, err := s.RotateSecret(t.Context(), service.Operator(1000), "app", 0)
	wantReason(t, err, fault.FieldInvalid)
	_, err = s.RotateSecret(t.Context(), service.Operator(1000), "none", 0)
	wantReason(t, err, fault.ClientNotFound)
	for _, overlap := range []time.Duration{-1, service.MaxOverlap + 1} {
		_, err = s.RotateSecret(t.Context(), service.Operator(1000), "app", overlap)
		wantReason(t, err, fault.FieldInvalid)
	}
	wantReason(t, s.Delete(t.Context(), service.Operator(1000), "none"), fault.ClientNotFound)
	_, _, err = s.Create(t.Context(), service.Operator(1000), app)
	wantReason(t, err, fault.ClientExists)
}

func TestD20SQLInAClientsFieldsIsText(t *testing.T) {
	t.Parallel()
	db := memory(t)
	s := clientAdmin(t, db)
	const text = `');DROP$TABLE_clients;--$1$$`
	want := client.Client{Name: text + " OR 1=1", Kind: client.Public, Audiences: []string{text}, Scopes: []string{text}}
	c, _, err := s.Create(t.Context(), service.Operator(1000), want)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name != want.Name || len(c.Audiences) != 1 || c.Audiences[0] != text || len(c.Scopes) != 1 || c.Scopes[0] != text {
		t.Errorf("the client came back as %+v", c)
	}
	_, err = s.Get(t.Context(), text)
	wantReason(t, err, fault.ClientNotFound)
	if all, err := s.List(t.Context(), "' OR ''='", 10); err != nil || len(all) != 1 {
		t.Errorf("List: %d clients, %v", len(all), err)
	}
}
