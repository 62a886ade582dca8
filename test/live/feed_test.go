package live

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// watcher is a verifier on the feed of a server, as another service has it.
type watcher struct {
	*guard.Feed
	*verify.Verifier
}

// watch follows the feed of whatever answers at the server's address, until the test ends.
func watch(t *testing.T, s *server, log *slog.Logger) *watcher {
	t.Helper()
	feed, err := guard.NewFeed(guard.FeedOptions{
		Target: s.GRPC, Issuer: s.Issuer, ClientID: s.ServiceClientID, ClientSecret: s.ServiceClientSecret, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	return follow(t, feed, s)
}

// follow runs the feed until the test ends.
func follow(t *testing.T, feed *guard.Feed, s *server) *watcher {
	t.Helper()
	v, err := verify.New(verify.Options{Issuer: s.Issuer, Audiences: []string{s.Audience}, Keys: feed, Revocations: feed, Now: feed.Now})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { _ = feed.Run(ctx); close(ended) }()
	t.Cleanup(func() { stop(); <-ended })
	return &watcher{feed, v}
}

// ready waits for the feed.
func (w *watcher) ready(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.Ready(ctx); err != nil {
		t.Fatal(err)
	}
}

// says is what the verifier answers.
func (w *watcher) says(t *testing.T, token string) error {
	t.Helper()
	_, err := w.Verify(t.Context(), token)
	return err
}

// TestJ28J29AVerifierOnTheFeed follows the real server: what is revoked over the wire or by the operator dies here without a
// call, new keys come and revoked ones go.
func TestJ28J29AVerifierOnTheFeed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	w := watch(t, s, nil)
	first, second, third := s.login(t), s.login(t), s.login(t)
	w.ready(t)
	for _, in := range []answer{first, second, third} {
		if err := w.says(t, in.text("access_token")); err != nil {
			t.Errorf("a good token: %v", err)
		}
	}
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": first.text("refresh_token")}); a.code != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.code, a.raw)
	}
	await(t, "J29 a revoked session's token is refused", func() bool { return errors.Is(w.says(t, first.text("access_token")), verify.ErrRevoked) })
	operate(t, "", "session", "revoke", "-dir", dir, second.text("session_id"))
	await(t, "J29 a session that the operator ended is refused", func() bool { return errors.Is(w.says(t, second.text("access_token")), verify.ErrRevoked) })
	if err := w.says(t, third.text("access_token")); err != nil {
		t.Errorf("the twin: a session that nobody ended: %v", err)
	}
	operate(t, "", "keys", "revoke", "-dir", dir, "-all")
	await(t, "J28 a revoked key's token is refused", func() bool { return w.says(t, third.text("access_token")) != nil })
	if err := w.says(t, third.text("access_token")); !errors.Is(err, verify.ErrRevoked) && !errors.Is(err, verify.ErrKeyUnknown) {
		t.Errorf("J28 a revoked key's token: %v", err)
	}
	var next answer
	await(t, "the new key signs", func() bool {
		next = s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password))
		return next.code == http.StatusOK
	})
	await(t, "the new key is known", func() bool { return w.says(t, next.text("access_token")) == nil })
}

// TestP02AVerifierOutlivesTheServer kills the server. The verifier goes on by what it knows, and follows the next process from
// where it stood.
func TestP02AVerifierOutlivesTheServer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startHere(t, dir)
	var log speech
	w := watch(t, s, slog.New(slog.NewTextHandler(&log, nil)))
	dead, alive := s.login(t), s.login(t)
	w.ready(t)
	if a := call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": dead.text("refresh_token")}); a.code != http.StatusOK {
		t.Fatalf("revoke: %d %s", a.code, a.raw)
	}
	await(t, "the revocation has come", func() bool { return errors.Is(w.says(t, dead.text("access_token")), verify.ErrRevoked) })
	s.kill(t)
	age := w.Status().Age
	await(t, "the knowledge gets older", func() bool { return w.Status().Age > age+2*time.Second })
	if err := w.says(t, alive.text("access_token")); err != nil {
		t.Errorf("R32 the last good keys: %v", err)
	}
	if err := w.says(t, dead.text("access_token")); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("a revoked token while the server is away: %v", err)
	}
	applied := w.Status().Applied
	s = start(t, dir, "-grpc", s.GRPC)
	operate(t, "", "session", "revoke", "-dir", dir, alive.text("session_id"))
	await(t, "the feed goes on", func() bool { return errors.Is(w.says(t, alive.text("access_token")), verify.ErrRevoked) })
	if err := w.says(t, s.login(t).text("access_token")); err != nil {
		t.Errorf("the twin: a new session: %v", err)
	}
	if n := w.Status().Applied - applied; n != 1 {
		t.Errorf("after the restart %d entries came, not the one that was missing\n%s", n, log.String())
	}
}

// TestR32AFeedThatIsRefused asks with a secret that is wrong.
func TestR32AFeedThatIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	right := s.ServiceClientSecret
	s.ServiceClientSecret = "wrong"
	var log speech
	w := watch(t, s, slog.New(slog.NewTextHandler(&log, nil)))
	token := s.login(t).text("access_token")
	await(t, "the refusal is known", func() bool { return log.String() != "" })
	if err := w.says(t, token); !errors.Is(err, verify.ErrNotReady) {
		t.Errorf("R32 without a feed: %v", err)
	}
	s.ServiceClientSecret = right
	w = watch(t, s, nil)
	w.ready(t)
	if err := w.says(t, token); err != nil {
		t.Errorf("the twin: %v", err)
	}
}

// TestJ21AFeedOfAnotherInstallation has the keys of one server and the issuer of another.
func TestJ21AFeedOfAnotherInstallation(t *testing.T) {
	t.Parallel()
	ours, theirs := start(t, t.TempDir()), start(t, t.TempDir())
	mixed := *theirs
	mixed.Issuer, mixed.Audience = ours.Issuer, ours.Audience
	var log speech
	w := watch(t, &mixed, slog.New(slog.NewTextHandler(&log, nil)))
	await(t, "the feed says whose it is", func() bool { return strings.Contains(log.String(), theirs.Issuer) })
	token := theirs.login(t).text("access_token")
	for whose, token := range map[string]string{"ours": ours.login(t).text("access_token"), "theirs": token} {
		if err := w.says(t, token); !errors.Is(err, verify.ErrNotReady) {
			t.Errorf("J21 a token of %s: %v", whose, err)
		}
	}
	w = watch(t, theirs, nil)
	w.ready(t)
	if err := w.says(t, token); err != nil {
		t.Errorf("the twin: %v", err)
	}
}

// TestTheFeedGoesOverTLS asks a server with TLS, by a root that we trust and without it.
func TestTheFeedGoesOverTLS(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	s, trust := secure(t, dir, d)
	for name, c := range map[string]struct {
		tls  *tls.Config
		good bool
	}{
		"the twin: a root that we trust":        {trust, true},
		"a certificate that nobody vouches for": {&tls.Config{MinVersion: tls.VersionTLS12}, false},
		"no TLS":                                {nil, false}, // the address is a loopback one, so that it is tried
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var log speech
			feed, err := guard.NewFeed(guard.FeedOptions{
				Target: s.GRPC, Issuer: s.Issuer, ClientID: s.ServiceClientID, ClientSecret: s.ServiceClientSecret, TLS: c.tls,
				Logger: slog.New(slog.NewTextHandler(&log, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			w := follow(t, feed, s)
			if c.good {
				w.ready(t)
				return
			}
			await(t, "the failure is logged", func() bool { return strings.Contains(log.String(), "the trust feed broke") })
			if _, err := w.Key(t.Context(), "any"); !errors.Is(err, verify.ErrNotReady) {
				t.Errorf("R32 without a feed: %v", err)
			}
		})
	}
}
