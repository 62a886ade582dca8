package verify_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/verify"
)

func TestGoodTokenGivesItsClaims(t *testing.T) {
	t.Parallel()
	got, err := newVerifier(t, nil).Verify(t.Context(), mint(t, header, payload))
	if err != nil {
		t.Fatal(err)
	}
	want := &verify.Claims{
		Issuer: issuer, Subject: "acct", ClientID: "web", SessionID: "sess", ID: "tok", Scope: "orders.read orders.write",
		Audience: []string{audience}, AMR: []string{"pwd"},
		ExpiresAt: time.Unix(expires, 0).UTC(), IssuedAt: time.Unix(issued, 0).UTC(), NotBefore: time.Unix(issued, 0).UTC(),
		AuthTime: time.Unix(1799990000, 0).UTC(), KeyID: "key-1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestScopesAreComparedWordByWord(t *testing.T) {
	t.Parallel()
	c := &verify.Claims{Scope: "orders.read  orders.write"}
	for scope, want := range map[string]bool{
		"orders.read": true, "orders.write": true, "orders": false, "orders.rea": false, "ORDERS.READ": false,
		"": false, " ": false, "orders.read orders.write": false, "orders.read ": false,
	} {
		if got := c.HasScope(scope); got != want {
			t.Errorf("HasScope(%q) = %v", scope, got)
		}
	}
}

func TestExpiryAtItsEdges(t *testing.T) {
	t.Parallel()
	token := mint(t, header, payload)
	for name, c := range map[string]struct {
		at   int64
		want error
	}{
		"J17 the last second within the skew is good":    {expires + 29, nil},
		"J17 the first second beyond the skew is not":    {expires + 30, verify.ErrExpired},
		"J19 30 s before nbf is good":                    {issued - 30, nil},
		"J19 31 s before nbf is not":                     {issued - 31, verify.ErrNotYetValid},
		"J19 long before: the clock of this host is bad": {issued - 86400, verify.ErrNotYetValid},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVerifier(t, func(o *verify.Options) { o.Now = func() time.Time { return time.Unix(c.at, 0) } })
			if _, err := v.Verify(t.Context(), token); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestOptionsOutOfBoundsAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*verify.Options)
		want   string
	}{
		"no issuer":                     {func(o *verify.Options) { o.Issuer = "" }, "Issuer"},
		"no keys":                       {func(o *verify.Options) { o.Keys = nil }, "Keys"},
		"J20 no audiences":              {func(o *verify.Options) { o.Audiences = nil }, "Audiences"},
		"J20 an empty audience":         {func(o *verify.Options) { o.Audiences = []string{""} }, "Audiences"},
		"any audience and one":          {func(o *verify.Options) { o.AnyAudience = true }, "AnyAudience"},
		"R28 a skew over 60 s":          {func(o *verify.Options) { o.Skew = 61 * time.Second }, "Skew"},
		"a negative skew":               {func(o *verify.Options) { o.Skew = -1 }, "Skew"},
		"R27 a lifetime over 15 min":    {func(o *verify.Options) { o.MaxLifetime = 16 * time.Minute }, "MaxLifetime"},
		"a negative lifetime":           {func(o *verify.Options) { o.MaxLifetime = -1 }, "MaxLifetime"},
		"R28 twin: a skew of 60 s":      {func(o *verify.Options) { o.Skew = 60 * time.Second }, ""},
		"R27 twin: 15 min":              {func(o *verify.Options) { o.MaxLifetime = 15 * time.Minute }, ""},
		"a foreign issuer may live 1 h": {func(o *verify.Options) { o.MaxLifetime, o.ForeignIssuer = time.Hour, true }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := verify.Options{Issuer: issuer, Audiences: []string{audience}, Keys: ourKeys(t)}
			c.change(&o)
			_, err := verify.New(o)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), "Options."+c.want)) {
				t.Errorf("got %v, want it to name %q", err, c.want)
			}
		})
	}
}

func TestForeignIssuerIsReadMoreLeniently(t *testing.T) {
	t.Parallel()
	foreign := newVerifier(t, func(o *verify.Options) { o.ForeignIssuer = true })
	ours := newVerifier(t, nil)
	body := func(old, replacement string) string { return mint(t, header, with(t, payload, old, replacement)) }
	for name, token := range map[string]string{
		"an unknown header member": mint(t, with(t, header, `,"kid"`, `,"x5t":"abc","kid"`), payload),
		"no nbf":                   body(`"nbf":1800000000,`, ""),
		"no scope":                 body(`"scope":"orders.read orders.write",`, ""),
		"no auth_time":             body(`"auth_time":1799990000,`, ""),
		"a fraction in exp":        body(`1800000300`, `1800000300.75`),
	} {
		if _, err := foreign.Verify(t.Context(), token); err != nil {
			t.Errorf("%s: refused for a foreign issuer: %v", name, err)
		}
		if _, err := ours.Verify(t.Context(), token); !errors.Is(err, verify.ErrMalformed) {
			t.Errorf("%s: for our issuer: %v", name, err)
		}
	}
	for _, member := range []string{`"crit":[]`, `"b64":true`, `"zip":"DEF"`, `"jwk":{}`, `"jku":"x"`, `"x5u":"x"`, `"x5c":[]`, `"Crit":[]`, `"KID":"x"`} {
		token := mint(t, with(t, header, `,"kid"`, `,`+member+`,"kid"`), payload)
		if _, err := foreign.Verify(t.Context(), token); !errors.Is(err, verify.ErrMalformed) {
			t.Errorf("%s: for a foreign issuer: %v", member, err)
		}
	}
}

func TestAnyAudienceLeavesTheComparisonToTheCaller(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, func(o *verify.Options) { o.Audiences, o.AnyAudience = nil, true })
	c, err := v.Verify(t.Context(), mint(t, header, with(t, payload, audience, "https://other.example")))
	if err != nil || c.Audience[0] != "https://other.example" {
		t.Errorf("got %v, %v", c, err)
	}
}

// J29: nothing that can change is taken from the cache.
func TestCachedVerdicts(t *testing.T) {
	t.Parallel()
	token := mint(t, header, payload)
	t.Run("J29 a token revoked after it was cached is refused", func(t *testing.T) {
		t.Parallel()
		list := readyList(t)
		v := newVerifier(t, func(o *verify.Options) { o.Revocations = list })
		mustBeCached(t, v, token)
		list.Apply(verify.NewRevocation(issuer, verify.KindToken, "tok", time.Time{}, time.Time{}))
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, verify.ErrRevoked) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("J29 a token cached for one audience is refused for another", func(t *testing.T) {
		t.Parallel()
		mustBeCached(t, newVerifier(t, nil), token)
		other := newVerifier(t, func(o *verify.Options) { o.Audiences = []string{"https://other.example"} })
		for range 2 {
			if _, err := other.Verify(t.Context(), token); !errors.Is(err, verify.ErrAudience) {
				t.Errorf("got %v", err)
			}
		}
		if other.Cached(token) {
			t.Error("a refused token was admitted")
		}
	})
	t.Run("J29 a cached token dies with its exp", func(t *testing.T) {
		t.Parallel()
		var at atomic.Int64
		at.Store(issued)
		v := newVerifier(t, func(o *verify.Options) { o.Now = func() time.Time { return time.Unix(at.Load(), 0) } })
		mustBeCached(t, v, token)
		at.Store(expires + 30)
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, verify.ErrExpired) {
			t.Errorf("got %v", err)
		}
		if v.Cached(token) {
			t.Error("the expired token is still held")
		}
	})
	t.Run("J30 a token that shares all but its last character with a cached one is refused", func(t *testing.T) {
		t.Parallel()
		v := newVerifier(t, nil)
		mustBeCached(t, v, token)
		if _, err := v.Verify(t.Context(), token[:len(token)-2]+"AA"); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("J30 a token that shares its whole signature with a cached one is refused", func(t *testing.T) {
		t.Parallel()
		v := newVerifier(t, nil)
		mustBeCached(t, v, token)
		forged := encode(header) + "." + encode(with(t, payload, `"sub":"acct"`, `"sub":"root"`)) + token[strings.LastIndexByte(token, '.'):]
		for range 2 {
			if _, err := v.Verify(t.Context(), forged); !errors.Is(err, verify.ErrSignature) || v.Cached(forged) {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("J29 a list that is not ready any more stops cached tokens too", func(t *testing.T) {
		t.Parallel()
		list := readyList(t)
		v := newVerifier(t, func(o *verify.Options) { o.Revocations = list })
		mustBeCached(t, v, token)
		list.SetReady(false)
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, verify.ErrNotReady) {
			t.Errorf("got %v", err)
		}
	})
}

func readyList(t testing.TB) *verify.List {
	t.Helper()
	list, err := verify.NewList(verify.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	list.SetReady(true)
	return list
}

func mustBeCached(t testing.TB, v *verify.Verifier, token string) {
	t.Helper()
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	if !v.Cached(token) {
		t.Fatal("the token was not admitted")
	}
}

// switchable is a source whose answer changes.
type switchable struct{ now atomic.Pointer[verify.Static] }

func (s *switchable) Key(ctx context.Context, kid string) (*verify.Key, error) {
	return s.now.Load().Key(ctx, kid)
}

func TestKeyThatLeavesItsSource(t *testing.T) {
	t.Parallel()
	token := mint(t, header, payload)
	sets := map[string]struct {
		set  []byte
		want error
	}{
		"J28 a withdrawn key ends cached verdicts":       {jwks(jwk("key-2", &otherKey().PublicKey)), verify.ErrKeyUnknown},
		"J28 another key under the same kid does so too": {jwks(jwk("key-1", &otherKey().PublicKey)), verify.ErrSignature},
		"J28 twin: the same key, read anew, does not":    {jwks(jwk("key-1", &ourKey().PublicKey)), nil},
	}
	for name, c := range sets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := &switchable{}
			source.now.Store(ourKeys(t))
			v := newVerifier(t, func(o *verify.Options) { o.Keys = source })
			mustBeCached(t, v, token)
			next, err := verify.NewStatic(c.set)
			if err != nil {
				t.Fatal(err)
			}
			source.now.Store(next)
			if _, err := v.Verify(t.Context(), token); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if v.Cached(token) != (c.want == nil) {
				t.Error("the cache holds what it should not, or lacks what it should")
			}
		})
	}
}

type failing struct{ err error }

func (f failing) Key(context.Context, string) (*verify.Key, error) { return nil, f.err }
func (f failing) Check(*verify.Subject) error                      { return f.err }

func TestFailureOfASourceIsNoVerdict(t *testing.T) {
	t.Parallel()
	token, broken := mint(t, header, payload), errors.New("the disk is on fire")
	for name, change := range map[string]func(*verify.Options){
		"R61 keys":        func(o *verify.Options) { o.Keys = failing{broken} },
		"R61 revocations": func(o *verify.Options) { o.Revocations = failing{broken} },
	} {
		_, err := newVerifier(t, change).Verify(t.Context(), token)
		if !errors.Is(err, verify.ErrNotReady) || !errors.Is(err, broken) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	claims, err := newVerifier(t, func(o *verify.Options) { o.Keys = failing{verify.ErrStale} }).Verify(t.Context(), token)
	if claims != nil || !errors.Is(err, verify.ErrNotReady) || errors.Is(err, verify.ErrStale) {
		t.Errorf("R61 keys that are too old: got %v %v", claims, err)
	}
	_, err = newVerifier(t, func(o *verify.Options) { o.Keys = failing{nil} }).Verify(t.Context(), token)
	if !errors.Is(err, verify.ErrKeyUnknown) {
		t.Errorf("neither key nor error: got %v", err)
	}
}

func TestCacheStaysInItsBound(t *testing.T) {
	t.Parallel()
	const bound = 64 << 10
	v := newVerifier(t, func(o *verify.Options) { o.CacheBytes = bound })
	var last string
	for i := range 60 {
		last = mint(t, header, with(t, payload, `"jti":"tok"`, numbered(`"jti":"tok%d"`, i)))
		if _, err := v.Verify(t.Context(), last); err != nil {
			t.Fatal(err)
		}
	}
	bytes, tokens, limit := v.CacheUse()
	if bytes > limit || limit > bound || tokens < 10 || tokens > 30 {
		t.Errorf("%d bytes for %d tokens, bound %d", bytes, tokens, limit)
	}
	if !v.Cached(last) {
		t.Error("the newest token was not admitted")
	}
}

func TestTokensOfAnyLengthAreCached(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, nil)
	for n := 0; n <= 600; n += 7 { // from well under 1 KiB to well over
		token := mint(t, header, with(t, payload, `{"iss"`, `{"pad":"`+strings.Repeat("x", n)+`","iss"`))
		mustBeCached(t, v, token)
		if v.Cached(token[:len(token)-1]) || v.Cached(token+"A") {
			t.Fatalf("a token of %d bytes is found by less or more than its text", len(token))
		}
	}
}

func TestErrorsCarryNothingOfTheToken(t *testing.T) {
	t.Parallel()
	v := newVerifier(t, nil)
	for _, token := range []string{
		mint(t, header, with(t, payload, "acct", "canary\x01")), mint(t, with(t, header, "key-1", "canary"), payload),
		"canary", mint(t, header, with(t, payload, `"scope":"orders.read`, `"Scope":"canary`)),
		mint(t, header, with(t, payload, `"https://auth.example"`, `"canary"`)),
	} {
		if _, err := v.Verify(t.Context(), token); err == nil || strings.Contains(err.Error(), "canary") {
			t.Errorf("A07: got %v", err)
		}
	}
}

// Allocations are counted, so nothing may run beside.
func TestSeenTokenCostsNoAllocation(t *testing.T) { //nolint:paralleltest // AllocsPerRun
	list := readyList(t)
	list.Apply(verify.NewRevocation(issuer, verify.KindToken, "another", time.Time{}, time.Time{}))
	v := newVerifier(t, func(o *verify.Options) { o.Revocations = list })
	token := mint(t, header, payload)
	mustBeCached(t, v, token)
	ctx := t.Context()
	if n := testing.AllocsPerRun(100, func() { _, _ = v.Verify(ctx, token) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	cold := newVerifier(t, func(o *verify.Options) { o.Revocations, o.CacheBytes = list, -1 })
	if n := testing.AllocsPerRun(100, func() { _, _ = cold.Verify(ctx, token) }); n > 110 {
		t.Errorf("%v allocations for a token not seen before", n)
	}
}
