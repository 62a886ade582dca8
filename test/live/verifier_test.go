package live

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// TestR32J28AVerifierBesideTheRealServer verifies as another service does, by the published keys alone, while keys are
// withdrawn and while the server is away.
func TestR32J28AVerifierBesideTheRealServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	keys, err := verify.NewJWKS(verify.JWKSOptions{URL: s.HTTP + "/.well-known/jwks.json", RefreshEvery: time.Second, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	v, err := verify.New(verify.Options{Issuer: s.Issuer, Audiences: []string{s.Audience}, Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	old := s.login(t).text("access_token")
	if _, err := v.Verify(t.Context(), old); !errors.Is(err, verify.ErrNotReady) {
		t.Errorf("R32: before the first set: %v", err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { _ = keys.Run(ctx); close(ended) }()
	t.Cleanup(func() { stop(); <-ended })
	<-keys.Ready()
	if claims, err := v.Verify(t.Context(), old); err != nil || claims.SessionID != part(t, old, 1)["sid"] {
		t.Errorf("the twin: a token of a known key: %v", err)
	}
	if _, err := v.Verify(t.Context(), old[:len(old)-5]+"AAAAA"); !errors.Is(err, verify.ErrSignature) && !errors.Is(err, verify.ErrMalformed) {
		t.Errorf("a changed signature: %v", err)
	}
	operate(t, "", "keys", "revoke", "-dir", dir, "-all")
	await(t, "J28: a withdrawn key's token is refused", func() bool {
		_, err := v.Verify(t.Context(), old)
		return errors.Is(err, verify.ErrKeyUnknown)
	})
	var next answer
	await(t, "the new key signs", func() bool {
		next = s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password))
		return next.code == http.StatusOK
	})
	await(t, "the new key is known", func() bool {
		_, err := v.Verify(t.Context(), next.text("access_token"))
		return err == nil
	})
	s.kill(t)
	failures := keys.Stats().Failures
	await(t, "fetches fail", func() bool { return keys.Stats().Failures > failures+1 })
	if _, err := v.Verify(t.Context(), next.text("access_token")); err != nil {
		t.Errorf("R32: the last good set is not kept: %v", err)
	}
	unknown := strings.Replace(next.text("access_token"), ".", "AA.", 1)
	if _, err := v.Verify(t.Context(), unknown); err == nil {
		t.Error("a token with another header is taken")
	}
}
