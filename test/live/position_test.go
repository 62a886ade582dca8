package live

import (
	"net/http"
	"testing"
)

// TestAPositionHoldsAtAnotherProcess revokes at one process and asks another on the same database at once: with the
// position of the revocation the answer is never from before it, and without it the other knows within moments.
func TestAPositionHoldsAtAnotherProcess(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	here, _ := serve(t, dir, d, plain, "http")
	there, _ := serve(t, dir, d, plain, "http")
	ask := func(token, position string) answer {
		return call(t, "POST", there.HTTP+"/v1/auth/introspect", there.basic(), map[string]any{"token": token, "min_position": position})
	}
	position := ""
	for round := range 30 {
		in := here.login(t)
		if a := ask(in.text("access_token"), position); a.json["active"] != true { // the twin
			t.Fatalf("round %d: before the revocation: %d %s", round, a.code, a.raw)
		}
		kind := []string{"access_token", "refresh_token"}[round%2]
		revoked := call(t, "POST", here.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text(kind)})
		if position = revoked.text("position"); revoked.code != http.StatusOK || position == "" {
			t.Fatalf("revoke: %d %s", revoked.code, revoked.raw)
		}
		if a := ask(in.text("access_token"), position); a.raw != `{"active":false}` && a.raw != `{"active": false}` {
			t.Errorf("round %d: with the position of the revocation of the %s: %d %s", round, kind, a.code, a.raw)
		}
	}
	in := here.login(t)
	call(t, "POST", here.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("access_token")})
	await(t, "the other process knows by itself", func() bool { return ask(in.text("access_token"), "").json["active"] == false })
	if a := there.refresh(t, in.text("refresh_token")); a.code != http.StatusOK {
		t.Errorf("an access token's revocation ended its session: %d %s", a.code, a.raw)
	}
}
