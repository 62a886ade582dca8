package live

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/verify"
)

// withStandby gives the database a standby, which the configuration names beside it.
func (in installed) withStandby(t *testing.T) *pgtest.Server {
	t.Helper()
	standby, err := in.pg.Standby(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Close(); err != nil {
			t.Error(err)
		}
	})
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	primary := fmt.Sprintf("127.0.0.1:%d", in.pg.Port)
	both := strings.Replace(string(text), primary, fmt.Sprintf("%s,127.0.0.1:%d", primary, standby.Port), 1)
	if both == string(text) {
		t.Fatalf("the configuration does not name %s", primary)
	}
	if err := os.WriteFile(in.config, []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	return standby
}

// TestD07AFailoverThatLostTheRevocationBringsNobodyBack has two servers whose database fails over to a standby which never had the
// end of a session. A thief presents that session's token to both, without a pause.
func TestD07AFailoverThatLostTheRevocationBringsNobodyBack(t *testing.T) {
	t.Parallel()
	in := onPostgreSQL(t)
	standby := in.withStandby(t)
	r := replicas{installed: in}
	for range 2 {
		s, _ := serveBy(t, in.config, in.dev, "http")
		r.s = append(r.s, s)
	}
	r.furnish(t, r.s...)
	here, there := r.s[0], r.s[1]
	w := watch(t, there, nil)
	w.ready(t)
	stolen, honest := here.signIn(t, "stolen"), here.signIn(t, "honest")
	live := func(at *pgtest.Server) string {
		n, err := at.SQL(t.Context(), "authsvc", `SELECT count(*) FROM sessions WHERE ended_at IS NULL`)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := in.pg.Leave(t.Context(), standby); err != nil {
		t.Fatal(err)
	}
	next := there.refresh(t, honest.text("refresh_token"))
	if next.code != http.StatusOK {
		t.Fatalf("a refresh: %d %s", next.code, next.raw)
	}
	here.revoke(t, stolen)
	await(t, "the verifier knows", func() bool { return errors.Is(w.says(t, stolen.token()), verify.ErrRevoked) })
	cursor, left := w.Status().Cursor, live(in.pg)

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var refused [2]atomic.Int64
	for i, s := range r.s {
		wg.Go(func() {
			for ctx.Err() == nil {
				a, err := try(ctx, "POST", s.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": stolen.text("refresh_token"), "client_id": s.PublicClientID})
				switch {
				case err != nil || a.code == http.StatusServiceUnavailable || a.code == http.StatusTooManyRequests:
				case a.code == http.StatusUnauthorized:
					refused[i].Add(1)
				default:
					t.Errorf("D07: the session that was ended got %d %s", a.code, a.raw)
					return
				}
			}
		})
	}
	await(t, "the thief is refused", func() bool { return refused[0].Load() > 0 && refused[1].Load() > 0 })
	if err := in.pg.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range refused {
		from := refused[i].Load()
		await(t, "the new server decides", func() bool { return refused[i].Load() > from+10 })
	}
	stop()
	wg.Wait()

	for _, s := range r.s {
		if a := s.introspect(t, stolen.token()); a.json["active"] != false {
			t.Errorf("D07: the token that was revoked is introspected as %s", a.raw)
		}
	}
	await(t, "P04 the verifier goes on in the new history", func() bool { return w.Status().Cursor != cursor })
	if err := w.says(t, stolen.token()); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("P04: of the token that was revoked the verifier says %v", err)
	}
	if here.metric(t, "authsvc_revocation_reappended_total")+there.metric(t, "authsvc_revocation_reappended_total") == 0 {
		t.Error("nothing is counted as appended again")
	}
	for _, s := range r.s {
		if n := s.metric(t, "authsvc_revocation_histories_total"); n != 1 {
			t.Errorf("a replica counts %v other histories", n)
		}
	}
	if n := live(standby); n != left {
		t.Errorf("D07: %s sessions live, and %s did", n, left)
	}
	// The twin: who was not ended goes on, with the token that the new database has never given.
	if a := here.refresh(t, next.text("refresh_token")); a.code != http.StatusOK {
		t.Errorf("F18: an honest refresh got %d %s", a.code, a.raw)
	} else if err := w.says(t, a.text("access_token")); err != nil {
		t.Errorf("the twin: %v", err)
	}
	operate(t, "", "keys", "list", "-config", in.config) // a command finds the new server, too
}
