package service_test

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

func sealer(t *testing.T, kekIDs ...string) *keys.Sealer {
	t.Helper()
	var keks []keys.KEK
	for _, id := range kekIDs {
		keks = append(keks, keys.KEK{ID: id, Key: bytes.Repeat([]byte(id[:1]), 32)})
	}
	s, err := keys.NewSealer(keks)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// keyed gives a database with an active and a pending key.
func keyed(t *testing.T) *sqlstore.DB {
	t.Helper()
	db := memory(t)
	ring, err := keys.NewRing(keys.Options{Store: db.Keys(), Sealer: sealer(t, "a")})
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return db
}

func keyAdmin(t *testing.T, store keys.Store, s *keys.Sealer) *service.Keys {
	t.Helper()
	k, err := service.NewKeys(service.KeysOptions{Store: store, Sealer: s, Config: keys.DefaultConfig(), Tail: caughtUp{}})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// inState gives the kids in a state.
func inState(t *testing.T, db *sqlstore.DB, state keys.State) []string {
	t.Helper()
	set, err := db.Keys().Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var kids []string
	for _, k := range set.Keys {
		if k.State == state {
			kids = append(kids, k.ID)
		}
	}
	return kids
}

// slow is a store of keys that takes a while for each answer.
type slow struct {
	keys.Store
	takes time.Duration
}

func (s slow) wait(ctx context.Context) error {
	select {
	case <-time.After(s.takes):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s slow) Load(ctx context.Context) (keys.Set, error) {
	if err := s.wait(ctx); err != nil {
		return keys.Set{}, err
	}
	return s.Store.Load(ctx)
}

func (s slow) Apply(ctx context.Context, version int64, c keys.Change, j journal.Journal) error {
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.Store.Apply(ctx, version, c, j)
}

// TestTheTimeBeforeAnAnswerIsNotTakenFromTheNext: what passes before the store is asked again, as while keys are made on a busy machine, is none
// of the store's.
func TestTheTimeBeforeAnAnswerIsNotTakenFromTheNext(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		takes time.Duration
		done  bool
	}{
		"two answers of four seconds":       {4 * time.Second, true},
		"the twin: one answer that is late": {6 * time.Second, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				db := keyed(t)
				_, err := keyAdmin(t, slow{db.Keys(), tt.takes}, sealer(t, "a")).RevokeAll(t.Context(), service.Operator(1000))
				if (err == nil) != tt.done || len(inState(t, db, keys.Compromised)) == 2 != tt.done {
					t.Errorf("RevokeAll: %v; compromised are %v", err, inState(t, db, keys.Compromised))
				}
			})
		})
	}
}

func TestR31AKeyThatNobodyKnowsYetSignsOnlyAtTheOperatorsWord(t *testing.T) {
	t.Parallel()
	db := keyed(t)
	k := keyAdmin(t, db.Keys(), sealer(t, "a"))
	pending := inState(t, db, keys.Pending)[0]
	_, err := k.Rotate(t.Context(), service.Operator(1000), false)
	wantReason(t, err, fault.KeyNotReady)
	signer, err := k.Rotate(t.Context(), service.Operator(1000), true)
	if err != nil || signer != pending {
		t.Fatalf("Rotate: %q, %v, want %q", signer, err, pending)
	}
	if got := inState(t, db, keys.Active); !slices.Equal(got, []string{pending}) {
		t.Errorf("active: %v, want %s", got, pending)
	}
	if len(inState(t, db, keys.Pending)) != 1 || len(inState(t, db, keys.Retired)) != 1 {
		t.Error("there must be one retired and one new pending key")
	}
	if got := strings.Join(events(t, db), "\n"); !strings.Contains(got, "key.rotate_now "+pending) {
		t.Errorf("audit log:\n%s", got)
	}
}

func TestARevokedKeyIsListedAndReplaced(t *testing.T) {
	t.Parallel()
	db := keyed(t)
	k := keyAdmin(t, db.Keys(), sealer(t, "a"))
	active := inState(t, db, keys.Active)[0]
	if err := k.Revoke(t.Context(), service.Operator(1000), active); err != nil {
		t.Fatal(err)
	}
	signer, err := k.RevokeAll(t.Context(), service.Operator(1000))
	if err != nil {
		t.Fatal(err)
	}
	if got := inState(t, db, keys.Active); !slices.Equal(got, []string{signer}) {
		t.Errorf("active: %v, want %s", got, signer)
	}
	page, err := db.Revocations().Tail(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for _, e := range page.Entries {
		if e.Kind == journal.KindKey {
			listed[e.ID] = true
		}
	}
	for _, kid := range inState(t, db, keys.Compromised) {
		if !listed[kid] {
			t.Errorf("compromised %s is not in the revocation log", kid)
		}
	}
	if len(listed) != 3 || listed[signer] {
		t.Errorf("listed %v; want the three old keys and not %s", listed, signer)
	}
	wantReason(t, k.Revoke(t.Context(), service.Operator(1000), "none"), fault.KeyNotFound)
}

func TestD18NoKeyIsMadeUnderAWrongKeyEncryptionKey(t *testing.T) {
	t.Parallel()
	db := keyed(t)
	before, err := db.Keys().Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wrong := keyAdmin(t, db.Keys(), sealer(t, "b"))
	_, err = wrong.Rotate(t.Context(), service.Operator(1000), true)
	wantReason(t, err, fault.SigningUnavailable)
	wantReason(t, wrong.Revoke(t.Context(), service.Operator(1000), before.Keys[0].ID), fault.SigningUnavailable)
	if _, err := wrong.Rewrap(t.Context(), service.Operator(1000)); err == nil {
		t.Error("Rewrap took keys that do not open")
	}
	after, err := db.Keys().Load(t.Context())
	if err != nil || after.Version != before.Version {
		t.Errorf("the set went from version %d to %d, %v", before.Version, after.Version, err)
	}
}

func TestRewrapSealsAnewAndChangesNoKey(t *testing.T) {
	t.Parallel()
	db := keyed(t)
	active := inState(t, db, keys.Active)[0]
	k := keyAdmin(t, db.Keys(), sealer(t, "b", "a"))
	if n, err := k.Rewrap(t.Context(), service.Operator(1000)); n != 2 || err != nil {
		t.Fatalf("Rewrap: %d, %v, want 2", n, err)
	}
	if n, err := k.Rewrap(t.Context(), service.Operator(1000)); n != 0 || err != nil {
		t.Errorf("Rewrap again: %d, %v, want 0", n, err)
	}
	ring, err := keys.NewRing(keys.Options{Store: db.Keys(), Sealer: sealer(t, "b")})
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Load(t.Context()); err != nil {
		t.Fatalf("the new key-encryption key alone does not open the keys: %v", err)
	}
	if got := ring.Status().Signer; got != active {
		t.Errorf("%s signs, want %s", got, active)
	}
}

// raced lets somebody else change the set before the first few changes.
type raced struct {
	keys.Store
	mu    sync.Mutex
	times int
}

func (r *raced) Apply(ctx context.Context, version int64, c keys.Change, j journal.Journal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.times > 0 {
		r.times--
		if err := r.Store.Apply(ctx, version, keys.Change{}, journal.Journal{}); err != nil {
			return err
		}
	}
	return r.Store.Apply(ctx, version, c, j)
}

func TestALostRaceIsPlannedAgain(t *testing.T) {
	t.Parallel()
	db := keyed(t)
	k := keyAdmin(t, &raced{Store: db.Keys(), times: 2}, sealer(t, "a"))
	if _, err := k.Rotate(t.Context(), service.Operator(1000), true); err != nil {
		t.Fatal(err)
	}
	k = keyAdmin(t, &raced{Store: db.Keys(), times: 1000}, sealer(t, "a"))
	_, err := k.Rotate(t.Context(), service.Operator(1000), true)
	wantReason(t, err, fault.VersionConflict)
}
