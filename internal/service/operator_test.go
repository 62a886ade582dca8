package service_test

import (
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/account"
	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

func revocations(t *testing.T, db *sqlstore.DB) *service.Revocations {
	t.Helper()
	r, err := service.NewRevocations(db.Sessions(), db.Clients(), db.Revocations(), caughtUp{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// signedIn gives a database with an account, the client "app" and one session.
func signedIn(t *testing.T) (*sqlstore.DB, session.Session) {
	t.Helper()
	db := memory(t)
	if _, _, err := clientAdmin(t, db).Create(t.Context(), service.Operator(1000), client.Client{ID: "app", Kind: client.Public, Audiences: []string{"https://api.example.com"}}); err != nil {
		t.Fatal(err)
	}
	a := account.Account{ID: ids.New[ids.Account](), Username: "alice", PasswordHash: "x", State: account.Active}
	if err := db.Accounts().Create(t.Context(), a, journal.Journal{}); err != nil {
		t.Fatal(err)
	}
	a, err := db.Accounts().Get(t.Context(), a.ID)
	if err != nil {
		t.Fatal(err)
	}
	s, _, err := db.Sessions().Create(t.Context(), session.Create{TTL: time.Hour, AccountVersion: a.Version, MaxPerAccount: 10,
		Session: session.Session{ID: ids.New[ids.Session](), Account: a.ID, Client: "app", IdleTTL: time.Hour}}, journal.Journal{})
	if err != nil {
		t.Fatal(err)
	}
	return db, s
}

func TestR43R62AnOperatorsRevocationEndsTheSessionAndIsRecorded(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		revoke func(*testing.T, *service.Revocations, session.Session) (int, error)
		kind   journal.Kind
		id     func(session.Session) string
		event  string
	}{
		{"by its id", func(t *testing.T, r *service.Revocations, s session.Session) (int, error) {
			known, err := r.Session(t.Context(), service.Operator(1000), s.ID)
			if !known {
				t.Error("the session is not known")
			}
			return 1, err
		}, journal.KindSession, func(s session.Session) string { return string(s.ID) }, "revoke.session"},
		{"by its account", func(t *testing.T, r *service.Revocations, s session.Session) (int, error) {
			return r.Subject(t.Context(), service.Operator(1000), s.Account)
		}, journal.KindSubject, func(s session.Session) string { return string(s.Account) }, "revoke.subject"},
		{"by its client", func(t *testing.T, r *service.Revocations, _ session.Session) (int, error) {
			return r.Client(t.Context(), service.Operator(1000), "app")
		}, journal.KindClient, func(session.Session) string { return "app" }, "revoke.client"},
		{"with everything", func(t *testing.T, r *service.Revocations, _ session.Session) (int, error) {
			return r.Everything(t.Context(), service.Operator(1000))
		}, journal.KindAll, func(session.Session) string { return "" }, "revoke.everything"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db, s := signedIn(t)
			if n, err := tt.revoke(t, revocations(t, db), s); n != 1 || err != nil {
				t.Fatalf("ended %d, %v, want 1", n, err)
			}
			if _, alive, _, err := db.Sessions().Get(t.Context(), s.ID); alive || err != nil {
				t.Errorf("the session is alive: %v, %v", alive, err)
			}
			wantListed(t, db, tt.kind, tt.id(s))
			all := events(t, db)
			if last := all[len(all)-1]; last != tt.event+" "+tt.id(s) {
				t.Errorf("the last audit record is %q", last)
			}
		})
	}
}

func wantListed(t *testing.T, db *sqlstore.DB, kind journal.Kind, id string) {
	t.Helper()
	page, err := db.Revocations().Tail(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range page.Entries {
		if e.Kind == kind && e.ID == id {
			return
		}
	}
	t.Errorf("the revocation log lacks %s %q: %v", kind, id, page.Entries)
}

func TestWhatHasNoRowIsRevokedAllTheSame(t *testing.T) {
	t.Parallel()
	db := memory(t)
	r := revocations(t, db)
	id := ids.New[ids.Session]()
	if known, err := r.Session(t.Context(), service.Operator(1000), id); known || err != nil {
		t.Fatalf("known %v, %v", known, err)
	}
	wantListed(t, db, journal.KindSession, string(id))
	if err := r.Token(t.Context(), service.Operator(1000), ids.Token(id)); err != nil {
		t.Fatal(err)
	}
	wantListed(t, db, journal.KindToken, string(id))
	if _, err := r.Subject(t.Context(), service.Operator(1000), ids.Account(id)); err != nil {
		t.Fatal(err)
	}
	wantListed(t, db, journal.KindSubject, string(id))
	if _, err := r.Client(t.Context(), service.Operator(1000), ids.Client(id)); err != nil {
		t.Fatal(err)
	}
	wantListed(t, db, journal.KindClient, string(id))
}

func TestAMalformedIDRevokesNothing(t *testing.T) {
	t.Parallel()
	db := memory(t)
	r := revocations(t, db)
	for _, id := range []string{"", "alice", "AAAAAAAAAAAAAAAAAAAAAB", "AAAAAAAAAAAAAAAAAAAAAA\x00"} {
		_, err := r.Session(t.Context(), service.Operator(1000), ids.Session(id))
		wantReason(t, err, fault.FieldInvalid)
		_, err = r.Subject(t.Context(), service.Operator(1000), ids.Account(id))
		wantReason(t, err, fault.FieldInvalid)
		wantReason(t, r.Token(t.Context(), service.Operator(1000), ids.Token(id)), fault.FieldInvalid)
		_, err = r.Client(t.Context(), service.Operator(1000), ids.Client(id))
		wantReason(t, err, fault.ClientNotFound)
	}
	if page, err := db.Revocations().Tail(t.Context(), 0); err != nil || len(page.Entries) != 0 {
		t.Errorf("the log holds %v, %v", page.Entries, err)
	}
}
