package token_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/token"
	"github.com/authsvc/authsvc/verify"
)

const issuer = "https://issuer.example"

// twoKeys is a keys.Store that holds what was first written to it.
type twoKeys struct{ set keys.Set }

func (s *twoKeys) Load(context.Context) (keys.Set, error) { return s.set, nil }

func (s *twoKeys) Apply(_ context.Context, _ int64, c keys.Change, _ journal.Journal) error {
	s.set = keys.Set{Version: 1, Now: time.Now(), Keys: c.Insert}
	return nil
}

func minter(t *testing.T) (*token.Minter, *keys.Ring) {
	t.Helper()
	sealer, err := keys.NewSealer([]keys.KEK{{ID: "k", Key: bytes.Repeat([]byte{1}, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	ring, err := keys.NewRing(keys.Options{Store: &twoKeys{}, Sealer: sealer})
	if err != nil {
		t.Fatal(err)
	}
	if err := ring.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	m, err := token.New(token.Options{Keys: ring, Issuer: issuer})
	if err != nil {
		t.Fatal(err)
	}
	return m, ring
}

func grant(now time.Time) token.Grant {
	return token.Grant{Subject: "subject", Audience: []string{"api", "other"}, Client: "client", Session: "session", Scope: "read write",
		AuthTime: now.Add(-time.Hour), AMR: []string{"pwd"}, IssuedAt: now, TTL: 5 * time.Minute}
}

func TestR27AnAccessTokenHasExactlyTheClaimsOfItsGrant(t *testing.T) {
	t.Parallel()
	m, ring := minter(t)
	now := time.Now()
	minted, err := m.Mint(t.Context(), grant(now))
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.New(verify.Options{Issuer: issuer, Audiences: []string{"api"}, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	got, err := v.Verify(t.Context(), minted.Token)
	if err != nil {
		t.Fatal(err)
	}
	second := func(x time.Time) time.Time { return time.Unix(x.Unix(), 0).UTC() }
	want := verify.Claims{Issuer: issuer, Subject: "subject", ClientID: "client", SessionID: "session", ID: string(minted.ID), Scope: "read write",
		Audience: []string{"api", "other"}, AMR: []string{"pwd"}, ExpiresAt: second(now.Add(5 * time.Minute)), IssuedAt: second(now),
		NotBefore: second(now), AuthTime: second(now.Add(-time.Hour))}
	if want.KeyID = got.KeyID; want.KeyID == "" {
		t.Error("the claims do not say which key signed")
	}
	equalTime := cmp.Comparer(func(a, b time.Time) bool { return a.Equal(b) })
	if diff := cmp.Diff(want, *got, equalTime); diff != "" {
		t.Errorf("claims (-want +got):\n%s", diff)
	}
	if !minted.ExpiresAt.Equal(want.ExpiresAt) || !minted.IssuedAt.Equal(want.IssuedAt) {
		t.Errorf("minted says %v to %v", minted.IssuedAt, minted.ExpiresAt)
	}
	again, err := m.Mint(t.Context(), grant(now))
	if err != nil || again.ID == minted.ID || again.Token == minted.Token {
		t.Errorf("two tokens have one jti (%v)", err)
	}
}

func members(t *testing.T, text string) map[string]any {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(text, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var out map[string]any
	if err := json.Unmarshal(raw, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAServiceTokenHasNoSessionAndNoAMR(t *testing.T) {
	t.Parallel()
	m, _ := minter(t)
	g := grant(time.Now())
	g.Session, g.AMR, g.Subject = "", nil, "client"
	g.Audience = g.Audience[:1]
	minted, err := m.Mint(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	got := members(t, minted.Token)
	want := []string{"aud", "auth_time", "client_id", "exp", "iat", "iss", "jti", "nbf", "scope", "sub"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(got))); diff != "" {
		t.Errorf("members (-want +got):\n%s", diff)
	}
	if _, ok := got["aud"].([]any); !ok {
		t.Errorf("one audience is no array: %v", got["aud"])
	}
}

func TestTheTimesAreThoseOfTheTransaction(t *testing.T) {
	t.Parallel()
	m, ring := minter(t)
	long := time.Now().Add(-time.Hour)
	minted, err := m.Mint(t.Context(), grant(long)) // the signer was stopped for an hour
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.New(verify.Options{Issuer: issuer, Audiences: []string{"api"}, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Verify(t.Context(), minted.Token); !errors.Is(err, verify.ErrExpired) {
		t.Errorf("a token authorised an hour ago: %v", err)
	}
	now := time.Unix(1_800_000_000, 999_999_999)
	cases := []struct {
		name   string
		change func(*token.Grant)
		ttl    int64        // exp − iat; 0 with a reason
		reason fault.Reason // empty: minted
	}{
		{"the TTL rules", func(*token.Grant) {}, 300, ""},
		{"the most that there is", func(g *token.Grant) { g.TTL = token.MaxTTL }, 900, ""},
		{"a nanosecond more is our mistake", func(g *token.Grant) { g.TTL = token.MaxTTL + 1 }, 0, fault.InternalError},
		{"the session's end comes first", func(g *token.Grant) { g.NotAfter = now.Add(10 * time.Second) }, 10, ""},
		{"the session's end is rounded down", func(g *token.Grant) { g.NotAfter = time.Unix(1_800_000_002, 500) }, 2, ""},
		{"the session's end comes later", func(g *token.Grant) { g.NotAfter = now.Add(time.Hour) }, 300, ""},
		{"the session ends in this second", func(g *token.Grant) { g.NotAfter = now }, 0, fault.RefreshExpired},
		{"the session has ended", func(g *token.Grant) { g.NotAfter = now.Add(-time.Hour) }, 0, fault.RefreshExpired},
		{"no audience is our mistake", func(g *token.Grant) { g.Audience = nil }, 0, fault.InternalError},
		{"no subject is our mistake", func(g *token.Grant) { g.Subject = "" }, 0, fault.InternalError},
		{"no auth_time is our mistake", func(g *token.Grant) { g.AuthTime = time.Time{} }, 0, fault.InternalError},
		{"no time of issue is our mistake", func(g *token.Grant) { g.IssuedAt = time.Time{} }, 0, fault.InternalError},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			g := grant(now)
			c.change(&g)
			minted, err := m.Mint(t.Context(), g)
			if c.reason != "" {
				if fault.From(err).Reason != c.reason {
					t.Errorf("got %v, want %s", err, c.reason)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := minted.ExpiresAt.Unix() - minted.IssuedAt.Unix(); got != c.ttl || minted.IssuedAt.Unix() != now.Unix() {
				t.Errorf("lives %d s from %v, want %d", got, minted.IssuedAt, c.ttl)
			}
		})
	}
}

func TestAMinterRefusesNonsense(t *testing.T) {
	t.Parallel()
	_, ring := minter(t)
	if _, err := token.New(token.Options{Issuer: issuer}); err == nil {
		t.Error("no keys: accepted")
	}
	if _, err := token.New(token.Options{Keys: ring}); err == nil {
		t.Error("no issuer: accepted")
	}
}

func TestATokenWithoutScopesIsAToken(t *testing.T) {
	t.Parallel()
	m, ring := minter(t)
	g := grant(time.Now())
	g.Scope = ""
	minted, err := m.Mint(t.Context(), g)
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.New(verify.Options{Issuer: issuer, Audiences: []string{"api"}, Keys: ring})
	if err != nil {
		t.Fatal(err)
	}
	if claims, err := v.Verify(t.Context(), minted.Token); err != nil || claims.Scope != "" {
		t.Errorf("got %v, %v; verify asks for the member, so an empty scope must be in the token", claims, err)
	}
}
