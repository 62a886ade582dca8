package keys_test

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
)

// rows is a keys.Store in memory that keeps the contract: compare-and-swap, moves before inserts, one active key, times
// of its own clock.
type rows struct {
	mu      sync.Mutex
	now     func() time.Time
	set     keys.Set
	journal []journal.Journal
	fail    error
}

func (r *rows) Load(context.Context) (keys.Set, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return keys.Set{}, r.fail
	}
	out := keys.Set{Version: r.set.Version, Now: r.now()}
	for _, k := range r.set.Keys {
		if k.State != keys.Gone {
			out.Keys = append(out.Keys, k)
		}
	}
	return out, nil
}

func (r *rows) Apply(_ context.Context, version int64, c keys.Change, j journal.Journal) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	if version != r.set.Version {
		return fault.New(fault.Conflict, fault.VersionConflict, "the set has changed")
	}
	next := slices.Clone(r.set.Keys)
	now := r.now()
	for _, m := range c.Move {
		i := slices.IndexFunc(next, func(k keys.Key) bool { return k.ID == m.ID })
		if i < 0 {
			return fault.New(fault.NotFound, fault.KeyNotFound, "no such key")
		}
		next[i].State = m.To
		switch m.To {
		case keys.Active:
			next[i].ActivatedAt = now
		case keys.Retired:
			next[i].RetiredAt, next[i].GoneAt = now, now.Add(m.GoneIn)
		case keys.Gone, keys.Compromised:
			next[i].Sealed = nil
		}
	}
	for _, k := range c.Insert {
		k.CreatedAt, k.PublishedAt = now, now
		if k.State == keys.Active {
			k.ActivatedAt = now
		}
		next = append(next, k)
	}
	for i := range next {
		if sealed, ok := c.Reseal[next[i].ID]; ok {
			next[i].Sealed = sealed
		}
	}
	if n := count(next, keys.Active); n != 1 {
		return fmt.Errorf("%d active keys after the change", n)
	}
	r.set.Keys, r.set.Version, r.journal = next, version+1, append(r.journal, j)
	return nil
}

func count(all []keys.Key, s keys.State) (n int) {
	for _, k := range all {
		if k.State == s {
			n++
		}
	}
	return n
}

func sealer(t *testing.T, ids ...string) *keys.Sealer {
	t.Helper()
	var keks []keys.KEK
	for _, id := range ids {
		keks = append(keks, keys.KEK{ID: id, Key: bytes.Repeat([]byte(id[:1]), 32)})
	}
	s, err := keys.NewSealer(keks)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestASealOpensOnlyForItsOwnRowAndKey(t *testing.T) {
	t.Parallel()
	der := []byte("the private half")
	sealed := sealer(t, "new", "old").Seal("kid-1", der)
	wrong, err := keys.NewSealer([]keys.KEK{{ID: "new", Key: make([]byte, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	flip := func(i int) []byte {
		b := bytes.Clone(sealed)
		b[i] ^= 1
		return b
	}
	cases := []struct {
		name   string
		opener *keys.Sealer
		kid    string
		sealed []byte
		want   error
		says   string
	}{
		{"the sealer itself opens", sealer(t, "new"), "kid-1", sealed, nil, ""},
		{"a KEK later in the list opens too", sealer(t, "zzz", "new"), "kid-1", sealed, nil, ""},
		{"D18 a missing KEK is named", sealer(t, "old"), "kid-1", sealed, keys.ErrKEKUnknown, `"new"`},
		{"D18 a wrong KEK under the same id is named", wrong, "kid-1", sealed, keys.ErrSealBroken, `"new"`},
		{"D18 a seal moved to another row", sealer(t, "new"), "kid-2", sealed, keys.ErrSealBroken, "kid-2"},
		{"D18 a flipped bit in the ciphertext", sealer(t, "new"), "kid-1", flip(len(sealed) - 20), keys.ErrSealBroken, "kid-1"},
		{"D18 a flipped bit in the nonce", sealer(t, "new"), "kid-1", flip(6), keys.ErrSealBroken, "kid-1"},
		{"another version", sealer(t, "new"), "kid-1", flip(0), keys.ErrSealBroken, "kid-1"},
		{"cut off inside the KEK id", sealer(t, "new"), "kid-1", sealed[:3], keys.ErrSealBroken, "kid-1"},
		{"cut off inside the nonce", sealer(t, "new"), "kid-1", sealed[:9], keys.ErrSealBroken, "kid-1"},
		{"nothing at all", sealer(t, "new"), "kid-1", nil, keys.ErrSealBroken, "kid-1"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, err := c.opener.Open(c.kid, c.sealed)
			if !errors.Is(err, c.want) {
				t.Fatalf("error %v, want %v", err, c.want)
			}
			if err == nil && !bytes.Equal(got, der) {
				t.Fatalf("opened %q", got)
			}
			if err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%q does not name %s", err, c.says)
			}
		})
	}
}

func TestASealerRefusesDoubtfulKEKs(t *testing.T) {
	t.Parallel()
	good := keys.KEK{ID: "a", Key: make([]byte, 32)}
	for name, list := range map[string][]keys.KEK{
		"an empty list":     nil,
		"an empty id":       {{Key: good.Key}},
		"a space in an id":  {{ID: "a b", Key: good.Key}},
		"an id of 65 bytes": {{ID: strings.Repeat("a", 65), Key: good.Key}},
		"a key of 16 bytes": {{ID: "a", Key: make([]byte, 16)}},
		"an id twice":       {good, good},
	} {
		if _, err := keys.NewSealer(list); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
	if _, err := keys.NewSealer([]keys.KEK{good}); err != nil {
		t.Errorf("a good list is refused: %v", err)
	}
	secret := keys.KEK{ID: "a", Key: []byte("TOPSECRETTOPSECRETTOPSECRETTOPSE")}
	for _, text := range []string{fmt.Sprint(secret), fmt.Sprintf("%+v", secret), fmt.Sprintf("%#v", secret), fmt.Sprintf("%v", []keys.KEK{secret})} {
		if strings.Contains(text, "TOPSECRET") || strings.Contains(text, "84 79 80") || !strings.Contains(text, "redacted") {
			t.Errorf("a KEK prints as %s", text)
		}
	}
}

func TestR30AGeneratedKeyIsRSA2048WithItsThumbprintAsKid(t *testing.T) {
	t.Parallel()
	private, k, err := keys.Generate()
	if err != nil {
		t.Fatal(err)
	}
	if private.N.BitLen() != 2048 || private.E != 65537 {
		t.Errorf("%d bits, e = %d", private.N.BitLen(), private.E)
	}
	s := sealer(t, "k")
	made, err := s.Generate()
	if err != nil {
		t.Fatal(err)
	}
	der, err := s.Open(made.ID, made.Sealed)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := parsed.(*rsa.PrivateKey); !ok || made.ID == k.ID {
		t.Errorf("%T, kid %s", parsed, made.ID)
	}
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// generator makes keys that only have a name, for the rules that look no further.
func generator() keys.Generator {
	n := 0
	return func() (keys.Key, error) {
		n++
		return keys.Key{ID: fmt.Sprintf("new-%d", n)}, nil
	}
}

func key(id string, s keys.State, published, activated, gone time.Duration) keys.Key {
	k := keys.Key{ID: id, State: s, PublishedAt: start.Add(published)}
	if s == keys.Active {
		k.ActivatedAt = start.Add(activated)
	}
	if s == keys.Retired {
		k.GoneAt = start.Add(gone)
	}
	return k
}

const day = 24 * time.Hour

func TestTheAutomaticRotationTakesEachStepWhenItIsDue(t *testing.T) {
	t.Parallel()
	cfg := keys.DefaultConfig()
	active := key("a", keys.Active, 0, 0, 0)
	retire := keys.Move{ID: "a", To: keys.Retired, GoneIn: 21 * time.Minute}
	pending := keys.Key{ID: "new-1", State: keys.Pending}
	cases := []struct {
		name string
		now  time.Duration
		keys []keys.Key
		want keys.Change
	}{
		{"a second before rotate_every nothing moves", 30*day - time.Second, []keys.Key{active, key("p", keys.Pending, day, 0, 0)}, keys.Change{}},
		{"at rotate_every the pending key takes over and a next one is made", 30 * day, []keys.Key{active, key("p", keys.Pending, day, 0, 0)},
			keys.Change{Move: []keys.Move{retire, {ID: "p", To: keys.Active}}, Insert: []keys.Key{pending}}},
		{"R31 a pending key published a second too short waits", 31 * day, []keys.Key{active, key("p", keys.Pending, 30*day+time.Second, 0, 0)}, keys.Change{}},
		{"R31 a pending key published exactly long enough takes over", 31 * day, []keys.Key{active, key("p", keys.Pending, 30*day, 0, 0)},
			keys.Change{Move: []keys.Move{retire, {ID: "p", To: keys.Active}}, Insert: []keys.Key{pending}}},
		{"of two pending keys the longer published takes over and none is made", 40 * day, []keys.Key{active, key("q", keys.Pending, 2*day, 0, 0), key("p", keys.Pending, day, 0, 0)},
			keys.Change{Move: []keys.Move{retire, {ID: "p", To: keys.Active}}}},
		{"a missing pending key is made", time.Hour, []keys.Key{active}, keys.Change{Insert: []keys.Key{pending}}},
		{"a retired key stays until its time", time.Hour, []keys.Key{active, key("p", keys.Pending, 0, 0, 0), key("r", keys.Retired, 0, 0, time.Hour+time.Second)}, keys.Change{}},
		{"a retired key goes at its time", time.Hour, []keys.Key{active, key("p", keys.Pending, 0, 0, 0), key("r", keys.Retired, 0, 0, time.Hour)},
			keys.Change{Move: []keys.Move{{ID: "r", To: keys.Gone}}}},
		{"a compromised key is left alone", time.Hour, []keys.Key{active, key("p", keys.Pending, 0, 0, 0), key("c", keys.Compromised, 0, 0, 0)}, keys.Change{}},
		{"a set without an active key promotes what is ready", 2 * day, []keys.Key{key("p", keys.Pending, 0, 0, 0)},
			keys.Change{Move: []keys.Move{{ID: "p", To: keys.Active}}, Insert: []keys.Key{pending}}},
		{"the twin: one that lost none waits until its pending key is ready", 0, []keys.Key{key("p", keys.Pending, 0, 0, 0)}, keys.Change{}},
		{"D07 where the signer was revoked the pending key takes over at once", 0, []keys.Key{key("c", keys.Compromised, 0, 0, 0), key("p", keys.Pending, 0, 0, 0)},
			keys.Change{Move: []keys.Move{{ID: "p", To: keys.Active}}, Insert: []keys.Key{pending}}},
		{"D07 where all were revoked there are new ones", 0, []keys.Key{key("c", keys.Compromised, 0, 0, 0)},
			keys.Change{Insert: []keys.Key{{ID: "new-1", State: keys.Active}, {ID: "new-2", State: keys.Pending}}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, due, err := keys.Plan(keys.Set{Now: start.Add(c.now), Keys: c.keys}, cfg, generator())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("change (-want +got):\n%s", diff)
			}
			if want := len(c.want.Move)+len(c.want.Insert) > 0; due != want {
				t.Errorf("due = %v, want %v", due, want)
			}
		})
	}
}

func TestAnOperatorRotatesWhenTheNextKeyIsKnownOrByForce(t *testing.T) {
	t.Parallel()
	cfg := keys.DefaultConfig()
	set := keys.Set{Now: start.Add(time.Hour), Keys: []keys.Key{key("a", keys.Active, 0, 0, 0), key("p", keys.Pending, 0, 0, 0)}}
	_, err := keys.PlanRotate(set, cfg, false, generator())
	var f *fault.Error
	if !errors.As(err, &f) || f.Kind != fault.Precondition || f.Reason != fault.KeyNotReady || f.Meta["ready_at"] != "2026-03-02T12:00:00Z" ||
		!strings.Contains(f.Message, "2026-03-02T12:00:00Z") {
		t.Errorf("too early: %v", err)
	}
	want := keys.Change{Move: []keys.Move{{ID: "a", To: keys.Retired, GoneIn: keys.RetiredFor}, {ID: "p", To: keys.Active}},
		Insert: []keys.Key{{ID: "new-1", State: keys.Pending}}}
	got, err := keys.PlanRotate(set, cfg, true, generator())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("by force: %v\n%s", err, diff)
	}
	set.Now = start.Add(day)
	got, err = keys.PlanRotate(set, cfg, false, generator())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("in time: %v\n%s", err, diff)
	}
	set.Keys = set.Keys[:1]
	if _, err = keys.PlanRotate(set, cfg, false, generator()); !errors.As(err, &f) || f.Reason != fault.KeyNotReady {
		t.Errorf("without a pending key: %v", err)
	}
	got, err = keys.PlanRotate(set, cfg, true, generator())
	want = keys.Change{Move: want.Move[:1], Insert: []keys.Key{{ID: "new-1", State: keys.Active}, {ID: "new-2", State: keys.Pending}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("by force without a pending key: %v\n%s", err, diff)
	}
}

func TestRevokingAKeyLeavesASignerAndANextKey(t *testing.T) {
	t.Parallel()
	all := []keys.Key{key("a", keys.Active, 0, 0, 0), key("p", keys.Pending, 0, 0, 0), key("r", keys.Retired, 0, 0, day), key("c", keys.Compromised, 0, 0, 0)}
	newPending := keys.Key{ID: "new-1", State: keys.Pending}
	hit := func(id string) keys.Move { return keys.Move{ID: id, To: keys.Compromised} }
	cases := []struct {
		name, kid string
		keys      []keys.Key
		want      keys.Change
	}{
		{"the active one: the pending key that services know takes its place", "a", all,
			keys.Change{Move: []keys.Move{hit("a"), {ID: "p", To: keys.Active}}, Insert: []keys.Key{newPending}}},
		{"the active one without a pending key: two new ones", "a", all[:1],
			keys.Change{Move: []keys.Move{hit("a")}, Insert: []keys.Key{{ID: "new-1", State: keys.Active}, {ID: "new-2", State: keys.Pending}}}},
		{"the pending one: another is made", "p", all, keys.Change{Move: []keys.Move{hit("p")}, Insert: []keys.Key{newPending}}},
		{"a retired one: nothing is made", "r", all, keys.Change{Move: []keys.Move{hit("r")}}},
		{"a compromised one: only its revocation again", "c", all, keys.Change{}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			got, j, err := keys.PlanRevoke(keys.Set{Now: start, Keys: c.keys}, c.kid, generator())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("change (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindKey, ID: c.kid}}}, j); diff != "" {
				t.Errorf("journal (-want +got):\n%s", diff)
			}
		})
	}
	if _, _, err := keys.PlanRevoke(keys.Set{Keys: all}, "nobody", generator()); fault.From(err).Reason != fault.KeyNotFound {
		t.Errorf("an unknown kid: %v", err)
	}
	got, j, err := keys.PlanRevokeAll(keys.Set{Now: start, Keys: all}, generator())
	want := keys.Change{Move: []keys.Move{hit("a"), hit("p"), hit("r")}, Insert: []keys.Key{{ID: "new-1", State: keys.Active}, {ID: "new-2", State: keys.Pending}}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil || len(j.Revokes) != 4 {
		t.Errorf("all: %v, %d revocations\n%s", err, len(j.Revokes), diff)
	}
}

func TestRewrapSealsWithTheFirstKEKWhatAnotherSealed(t *testing.T) {
	t.Parallel()
	old, both := sealer(t, "old"), sealer(t, "new", "old")
	set := keys.Set{Keys: []keys.Key{{ID: "1", Sealed: old.Seal("1", []byte("one"))}, {ID: "2", Sealed: both.Seal("2", []byte("two"))}, {ID: "3"}}}
	c, due, err := keys.PlanRewrap(set, both)
	if err != nil || !due || len(c.Reseal) != 1 {
		t.Fatalf("due %v, %d seals, %v", due, len(c.Reseal), err)
	}
	if der, err := sealer(t, "new").Open("1", c.Reseal["1"]); err != nil || string(der) != "one" {
		t.Errorf("%q, %v", der, err)
	}
	set.Keys[0].Sealed = c.Reseal["1"]
	if _, due, err = keys.PlanRewrap(set, both); due || err != nil {
		t.Errorf("a second time: due %v, %v", due, err)
	}
	if _, _, err = keys.PlanRewrap(set, sealer(t, "third")); !errors.Is(err, keys.ErrKEKUnknown) {
		t.Errorf("with a KEK missing: %v", err)
	}
}

func TestAConfigurationThatWouldBreakVerifiersIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		cfg  keys.Config
		ok   bool
	}{
		{"the default", keys.DefaultConfig(), true},
		{"prepublish at the floor", keys.Config{RotateEvery: time.Hour, Prepublish: 25 * time.Minute}, true},
		{"prepublish under the floor", keys.Config{RotateEvery: time.Hour, Prepublish: 25*time.Minute - 1}, false},
		{"rotate_every equal to prepublish", keys.Config{RotateEvery: time.Hour, Prepublish: time.Hour}, true},
		{"rotate_every shorter than prepublish", keys.Config{RotateEvery: time.Hour - 1, Prepublish: time.Hour}, false},
	} {
		if err := c.cfg.Validate(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
