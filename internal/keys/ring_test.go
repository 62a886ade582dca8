package keys_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/verify"
)

func ring(t *testing.T, store keys.Store, s *keys.Sealer, change func(*keys.Options)) *keys.Ring {
	t.Helper()
	o := keys.Options{Store: store, Sealer: s}
	if change != nil {
		change(&o)
	}
	r, err := keys.NewRing(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// started gives a store with the two first keys in it.
func started(t *testing.T, s *keys.Sealer) (*rows, *keys.Ring) {
	t.Helper()
	store := &rows{now: time.Now}
	r := ring(t, store, s, nil)
	if err := r.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	return store, r
}

func TestD14ThreeReplicasStartingTogetherMakeOneOfEach(t *testing.T) {
	t.Parallel()
	store := &rows{now: time.Now}
	var rings []*keys.Ring
	var wg sync.WaitGroup
	errs := make([]error, 3)
	for range errs {
		rings = append(rings, ring(t, store, sealer(t, "k"), nil))
	}
	for i := range errs {
		wg.Go(func() { errs[i] = rings[i].Bootstrap(t.Context()) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if a, p := count(store.set.Keys, keys.Active), count(store.set.Keys, keys.Pending); a != 1 || p != 1 || len(store.set.Keys) != 2 {
		t.Errorf("%d active, %d pending, %d in all", a, p, len(store.set.Keys))
	}
	for _, r := range rings[1:] {
		if diff := cmp.Diff(string(rings[0].JWKS()), string(r.JWKS())); diff != "" || r.ETag() != rings[0].ETag() {
			t.Errorf("replicas serve different sets:\n%s", diff)
		}
	}
	if len(store.journal) != 1 || len(store.journal[0].Audit) != 2 {
		t.Errorf("journal %+v", store.journal)
	}
}

func TestD18AKeyThatDoesNotOpenOrWasExchangedRefusesToStart(t *testing.T) {
	t.Parallel()
	store, _ := started(t, sealer(t, "k"))
	_, other, err := keys.Generate()
	if err != nil {
		t.Fatal(err)
	}
	good := slices.Clone(store.set.Keys)
	withPrivate := func(raw []byte) []byte {
		return []byte(strings.Replace(string(raw), `{"kty"`, `{"d":"AQAB","kty"`, 1))
	}
	cases := []struct {
		name   string
		sealer *keys.Sealer
		alter  func(k []keys.Key)
		says   string // empty: it starts
	}{
		{"untouched rows start", sealer(t, "k"), func([]keys.Key) {}, ""},
		{"the KEK is missing", sealer(t, "other"), func([]keys.Key) {}, `"k"`},
		{"the sealed halves of two rows are swapped", sealer(t, "k"), func(k []keys.Key) { k[0].Sealed, k[1].Sealed = k[1].Sealed, k[0].Sealed }, "seal does not open"},
		{"the public halves of two rows are swapped", sealer(t, "k"), func(k []keys.Key) { k[0].Public, k[1].Public = k[1].Public, k[0].Public }, "names another kid"},
		{"a public half is somebody else's under our kid", sealer(t, "k"), func(k []keys.Key) {
			k[0].Public = []byte(strings.Replace(string(other.Public), other.ID, k[0].ID, 1))
		}, "thumbprint differs"},
		{"a whole public row is somebody else's", sealer(t, "k"), func(k []keys.Key) { k[0].ID, k[0].Public = other.ID, other.Public }, "seal does not open"},
		{"a public half holds a private member", sealer(t, "k"), func(k []keys.Key) { k[0].Public = withPrivate(k[0].Public) }, "cannot be read"},
		{"a private half is gone", sealer(t, "k"), func(k []keys.Key) { k[0].Sealed = nil }, "no private half"},
		{"the active key has become pending", sealer(t, "k"), func(k []keys.Key) { k[0].State = keys.Pending }, "no signing key"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			altered := &rows{now: time.Now, set: keys.Set{Version: 1, Keys: slices.Clone(good)}}
			c.alter(altered.set.Keys)
			err := ring(t, altered, c.sealer, nil).Bootstrap(t.Context())
			if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want it to say %q", err, c.says)
			}
			if altered.set.Version != 1 {
				t.Error("it wrote to the store")
			}
		})
	}
}

func TestARowAlteredUnderARunningServerStopsItsReloads(t *testing.T) {
	t.Parallel()
	store, r := started(t, sealer(t, "k"))
	before := r.Status().Signer
	i := slices.IndexFunc(store.set.Keys, func(k keys.Key) bool { return k.State == keys.Active })
	sealed := store.set.Keys[i].Sealed
	store.set.Keys[i].Sealed = append(slices.Clone(sealed[:len(sealed)-1]), sealed[len(sealed)-1]^1)
	if err := r.Load(t.Context()); !errors.Is(err, keys.ErrSealBroken) {
		t.Errorf("an altered row loads: %v", err)
	}
	store.set.Keys[i].Sealed = sealed
	if err := r.Load(t.Context()); err != nil || r.Status().Signer != before {
		t.Errorf("the restored row: %v, signer %s", err, r.Status().Signer)
	}
}

func TestR30TheJWKSHoldsThePublicHalvesAndNothingElse(t *testing.T) {
	t.Parallel()
	store, r := started(t, sealer(t, "k"))
	var set struct {
		Keys []map[string]string `json:"keys"`
	}
	if err := json.Unmarshal(r.JWKS(), &set); err != nil {
		t.Fatal(err)
	}
	if len(set.Keys) != 2 {
		t.Fatalf("%d keys", len(set.Keys))
	}
	for _, k := range set.Keys {
		if diff := cmp.Diff([]string{"alg", "e", "kid", "kty", "n", "use"}, slices.Sorted(maps.Keys(k))); diff != "" {
			t.Errorf("members (-want +got):\n%s", diff)
		}
		if k["kty"] != "RSA" || k["alg"] != "RS256" || k["use"] != "sig" || k["e"] != "AQAB" {
			t.Errorf("%v", k)
		}
	}
	static, err := verify.NewStatic(r.JWKS())
	if err != nil || len(static.Dropped()) != 0 {
		t.Fatalf("verify reads it: %v, dropped %v", err, static.Dropped())
	}
	etag, first := r.ETag(), string(r.JWKS())
	mine, err := r.Key(t.Context(), r.Status().Signer)
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(store.set.Keys)
	if err := r.Load(t.Context()); err != nil || string(r.JWKS()) != first || r.ETag() != etag {
		t.Errorf("other order, other bytes: %v", err)
	}
	if err := apply(t, store, func(s keys.Set) (keys.Change, error) {
		return keys.PlanRotate(s, keys.DefaultConfig(), true, sealer(t, "k").Generate)
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.Load(t.Context()); err != nil || r.ETag() == etag {
		t.Errorf("after a rotation the ETag is the same (%v)", err)
	}
	if again, err := r.Key(t.Context(), mine.ID()); err != nil || again != mine {
		t.Errorf("a key that stays is another object: %v", err)
	}
	if _, err := r.Key(t.Context(), "nobody"); !errors.Is(err, verify.ErrKeyUnknown) {
		t.Errorf("an unknown kid: %v", err)
	}
}

func apply(t *testing.T, store *rows, plan func(keys.Set) (keys.Change, error)) error {
	t.Helper()
	set, err := store.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c, err := plan(set)
	if err != nil {
		t.Fatal(err)
	}
	store.mu.Lock()
	version := store.set.Version
	store.mu.Unlock()
	return store.Apply(t.Context(), version, c, noJournal)
}

func TestItSignsOnlyWhileTheSetIsFreshAndTheKeyUnrevoked(t *testing.T) {
	t.Parallel()
	base := time.Now()
	age := time.Duration(0)
	revoked := map[string]bool{}
	store := &rows{now: time.Now}
	r := ring(t, store, sealer(t, "k"), func(o *keys.Options) {
		o.Now = func() time.Time { return base.Add(age) }
		o.Revoked = func(kid string) bool { return revoked[kid] }
	})
	may := func(what string, want bool) {
		t.Helper()
		jws, err := r.Sign(t.Context(), []byte(`{}`))
		if want && (err != nil || strings.Count(jws, ".") != 2) {
			t.Errorf("%s: %v", what, err)
		}
		if f := fault.From(err); !want && (f.Kind != fault.Unavailable || f.Reason != fault.SigningUnavailable || jws != "") {
			t.Errorf("%s: it signed, or said %v", what, err)
		}
		if ready := r.Status().Ready == nil; ready != want {
			t.Errorf("%s: ready = %v", what, ready)
		}
	}
	if r.JWKS() != nil || r.ETag() != "" {
		t.Error("a ring that has loaded nothing publishes something")
	}
	if _, err := r.Key(t.Context(), "x"); !errors.Is(err, verify.ErrNotReady) {
		t.Errorf("a ring that has loaded nothing: %v", err)
	}
	may("before the first load", false)
	if err := r.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	may("at once", true)
	age = keys.FreshFor - 1
	may("just inside", true)
	age = keys.FreshFor
	may("at the limit", false)
	store.fail = errors.New("the store is away")
	if err := r.Load(t.Context()); err == nil || len(r.JWKS()) == 0 {
		t.Errorf("a failed load: %v; the key set must stay", err)
	}
	may("while the store is away", false)
	store.fail = nil
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	may("after a reload", true)

	old := r.Status().Signer
	revoked[old] = true
	may("with a revoked signer", false)
	if err := apply(t, store, func(s keys.Set) (keys.Change, error) {
		c, _, err := keys.PlanRevoke(s, old, sealer(t, "k").Generate)
		return c, err
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	may("once the next key has taken over", true)
	if r.Status().Signer == old || strings.Contains(string(r.JWKS()), old) {
		t.Error("the revoked key signs or is published")
	}
	for _, k := range r.Status().Set.Keys {
		revoked[k.ID] = true
	}
	if err := r.Load(t.Context()); err != nil || len(r.JWKS()) == 0 {
		t.Errorf("with every key revoked the set is empty (%v)", err)
	}
	may("with every key revoked", false)
}

func TestASignedTokenVerifiesThroughTheRing(t *testing.T) {
	t.Parallel()
	_, r := started(t, sealer(t, "k"))
	now := time.Now().Unix()
	payload := fmt.Sprintf(`{"iss":"https://issuer.example","sub":"s","aud":["api"],"exp":%d,"iat":%d,"nbf":%d,"jti":"j","client_id":"c","scope":"a","auth_time":%d}`,
		now+60, now, now, now)
	jws, err := r.Sign(t.Context(), []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.New(verify.Options{Issuer: "https://issuer.example", Audiences: []string{"api"}, Keys: r})
	if err != nil {
		t.Fatal(err)
	}
	if c, err := v.Verify(t.Context(), jws); err != nil || c.ID != "j" {
		t.Errorf("claims %+v, %v", c, err)
	}
	head, _, _ := strings.Cut(jws, ".")
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if want := `{"alg":"RS256","kid":"` + r.Status().Signer + `","typ":"at+jwt"}`; err != nil || string(raw) != want {
		t.Errorf("header %s, want %s", raw, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Sign(ctx, []byte(payload)); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
}

func TestR31TwoReplicasRotateForHoursAndNeverLoseTheSigner(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		store := &rows{now: time.Now}
		cfg := keys.Config{RotateEvery: 40 * time.Minute, Prepublish: 25 * time.Minute}
		var rings []*keys.Ring
		for range 2 {
			r := ring(t, store, sealer(t, "k"), func(o *keys.Options) { o.Config, o.ReloadEvery = cfg, 30*time.Second })
			if err := r.Bootstrap(ctx); err != nil {
				t.Fatal(err)
			}
			go r.Run(ctx)
			rings = append(rings, r)
		}
		published := map[string]time.Time{} // when each kid was first seen in a served set
		lastSigned := map[string]time.Time{}
		begin := time.Now()
		for time.Since(begin) < 3*time.Hour {
			for _, r := range rings {
				signer, jwks := r.Status().Signer, string(r.JWKS())
				if r.Status().Ready != nil || !strings.Contains(jwks, signer) {
					t.Fatalf("after %v: %v, signer published: %v", time.Since(begin), r.Status().Ready, strings.Contains(jwks, signer))
				}
				for _, k := range r.Status().Set.Keys {
					if _, ok := published[k.ID]; !ok {
						published[k.ID] = time.Now()
					}
				}
				if at := published[signer]; at.After(begin) && time.Since(at) < cfg.Prepublish-time.Minute {
					t.Fatalf("%s signs %v after it was first published", signer, time.Since(at))
				}
				lastSigned[signer] = time.Now()
			}
			for kid, at := range lastSigned {
				if time.Since(at) < 16*time.Minute {
					for _, r := range rings {
						if _, err := r.Key(ctx, kid); err != nil {
							t.Fatalf("%s is not published %v after it last signed", kid, time.Since(at))
						}
					}
				}
			}
			time.Sleep(time.Minute)
		}
		if len(lastSigned) < 4 || count(store.set.Keys, keys.Gone) < 2 || count(store.set.Keys, keys.Pending) != 1 {
			t.Errorf("%d signers, %d keys gone, %d pending", len(lastSigned), count(store.set.Keys, keys.Gone), count(store.set.Keys, keys.Pending))
		}
		store.mu.Lock()
		store.fail = errors.New("the store is away")
		store.mu.Unlock()
		time.Sleep(2 * time.Minute)
		if rings[0].Status().Ready == nil {
			t.Error("a replica signs although it has read nothing for two minutes")
		}
		store.mu.Lock()
		store.fail = nil
		store.mu.Unlock()
		rings[0].Nudge()
		synctest.Wait()
		if err := rings[0].Status().Ready; err != nil {
			t.Errorf("nudged after the store came back: %v", err)
		}
		cancel()
		synctest.Wait()
	})
}

func TestARingNeedsAStoreASealerAndASaneConfiguration(t *testing.T) {
	t.Parallel()
	s, store := sealer(t, "k"), &rows{now: time.Now}
	for name, o := range map[string]keys.Options{
		"no store":               {Sealer: s},
		"no sealer":              {Store: store},
		"prepublish too short":   {Store: store, Sealer: s, Config: keys.Config{RotateEvery: time.Hour, Prepublish: time.Minute}},
		"reloads slower than 60": {Store: store, Sealer: s, ReloadEvery: time.Minute},
	} {
		if _, err := keys.NewRing(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := keys.NewRing(keys.Options{Store: store, Sealer: s, MinPrepublish: time.Second,
		Config: keys.Config{RotateEvery: time.Minute, Prepublish: time.Second}}); err != nil {
		t.Errorf("a lower floor by Options: %v", err)
	}
}

var noJournal journal.Journal
