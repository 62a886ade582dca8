package live

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/authsvc/authsvc/test/soak"
	"github.com/authsvc/authsvc/verify"
)

// replicas are servers on one PostgreSQL.
type replicas struct {
	installed
	s []*server
}

// TestThreeReplicas has three real servers on one PostgreSQL, which begin on an empty database together: what is said to one of
// them holds at all.
func TestThreeReplicas(t *testing.T) {
	t.Parallel()
	r := replicas{installed: onPostgreSQL(t)}
	var said []*speech
	for range 3 {
		s, words := launch(t, r.config, r.dev)
		r.s, said = append(r.s, s), append(said, words)
	}
	for i, s := range r.s {
		s.serves(t, said[i], "http")
	}
	r.furnish(t, r.s...)
	t.Run("D14 they make one active key and one pending, and each signs for all", r.oneSetOfKeys)
	t.Run("each is listed, and counts all", r.listed)
	t.Run("F05 a hundred refreshes with one token, spread over them, are one rotation", r.oneRotation)
	t.Run("F08 once one has revoked, none refreshes", r.nothingRefreshes)
	t.Run("P01 what one revokes the others refuse, and so do the verifiers at each", r.refusedEverywhere)
	t.Run("a position that one gave holds at another", r.position)
	t.Run("who stops is gone from the list, and who is killed falls silent", r.leaving)
}

func (r replicas) oneSetOfKeys(t *testing.T) {
	var keys []struct {
		ID    string `json:"kid"`
		State string `json:"state"`
	}
	if err := json.Unmarshal([]byte(operate(t, "", "keys", "list", "-config", r.config, "-o", "json")), &keys); err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, k := range keys {
		states = append(states, k.State)
	}
	if slices.Sort(states); !slices.Equal(states, []string{"active", "pending"}) {
		t.Errorf("D14: the keys are %v", keys)
	}
	rows, err := r.pg.SQL(t.Context(), "authsvc", `SELECT (SELECT count(*) FROM installation) || ' ' || (SELECT count(*) FROM schema_version) || ' ' || (SELECT count(*) FROM signing_keys)`)
	if err != nil || rows != "1 1 2" {
		t.Errorf("D14: installations, schemas and keys: %s %v", rows, err)
	}
	first := call(t, "GET", r.s[0].HTTP+"/.well-known/jwks.json", "", nil).raw
	for _, s := range r.s {
		if set := call(t, "GET", s.HTTP+"/.well-known/jwks.json", "", nil).raw; set != first {
			t.Errorf("D14: one publishes %s, another %s", first, set)
		}
		token := s.login(t).text("access_token")
		for _, other := range r.s {
			if a := other.introspect(t, token); a.json["active"] != true {
				t.Errorf("D14: what one signed another introspects as %s", a.raw)
			}
		}
	}
}

// listing is a server as the command lists it.
type listing struct {
	ID     string `json:"instance_id"`
	Host   string `json:"host"`
	Live   bool   `json:"live"`
	Behind *int64 `json:"behind"`
}

// instances asks the command.
func (r replicas) instances(t *testing.T) (all []listing) {
	t.Helper()
	if err := json.Unmarshal([]byte(operate(t, "", "instances", "-config", r.config, "-o", "json")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

func (r replicas) listed(t *testing.T) {
	await(t, "all three are listed", func() bool { return len(r.instances(t)) == 3 })
	var all []listing
	await(t, "each is live, and says how far it has read", func() bool { // a busy machine's may be silent for a while
		all = r.instances(t)
		return len(all) == 3 && !slices.ContainsFunc(all, func(i listing) bool { return !i.Live || i.Behind == nil })
	})
	for _, i := range all {
		if i.Host == "" {
			t.Errorf("one that runs is listed as %+v", i)
		}
	}
	for _, s := range r.s {
		await(t, "it counts three", func() bool { return s.metric(t, "authsvc_instances") == 3 })
	}
}

// head is the newest generation of a session.
func (r replicas) head(t *testing.T, session string) string {
	t.Helper()
	head, err := r.pg.SQL(t.Context(), "authsvc", `SELECT head FROM sessions WHERE ended_at IS NULL AND id = '`+session+`'`)
	if err != nil {
		t.Fatal(err)
	}
	return head
}

func (r replicas) oneRotation(t *testing.T) {
	in := r.s[0].login(t)
	token := in.text("refresh_token")
	for _, head := range []string{"2", "3", "4"} { // each round is the twin of the one before: another token is another rotation
		var mu sync.Mutex
		refresh, access := map[string]int{}, map[string]bool{}
		var wg sync.WaitGroup
		for n := range 100 {
			s := r.s[n%3]
			wg.Go(func() {
				a, err := try(t.Context(), "POST", s.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": token, "client_id": s.PublicClientID})
				if err != nil || a.code != http.StatusOK {
					t.Errorf("F05: %d %s %v", a.code, a.raw, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				refresh[a.text("refresh_token")]++
				access[a.text("access_token")] = true
			})
		}
		wg.Wait()
		if len(refresh) != 1 || len(access) != 100 {
			t.Fatalf("F05: %d different refresh tokens and %d access tokens", len(refresh), len(access))
		}
		if got := r.head(t, in.text("session_id")); got != head {
			t.Errorf("F05: a hundred refreshes brought the session to generation %q, want %s", got, head)
		}
		for next := range refresh {
			if token == next {
				t.Error("F05: the successor is the token itself")
			}
			token = next
		}
		for minted := range access {
			if a := r.s[1].introspect(t, minted); a.json["active"] != true {
				t.Fatalf("F05: a refreshed token is introspected as %s", a.raw)
			}
			break
		}
	}
}

// race refreshes at one replica while another revokes, and goes on until it is refused.
func (r replicas) race(t *testing.T, n int) {
	ctx := t.Context()
	here, there, third := r.s[n%3], r.s[(n+1)%3], r.s[(n+2)%3]
	in, err := third.enter(ctx)
	if err != nil || in.code != http.StatusOK {
		t.Errorf("login: %d %s %v", in.code, in.raw, err)
		return
	}
	refresh := func(token string) (answer, error) {
		return try(ctx, "POST", there.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": token, "client_id": there.PublicClientID})
	}
	first, err := refresh(in.text("refresh_token"))
	if err != nil || first.code != http.StatusOK {
		t.Errorf("F08: the twin, a refresh before the revocation: %d %s %v", first.code, first.raw, err)
		return
	}
	minted := []string{in.text("access_token"), first.text("access_token")}
	var revoked atomic.Bool
	position := make(chan string, 1)
	go func() {
		a, err := again(ctx, answer.undecided, func() (answer, error) {
			return once(ctx, "POST", here.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")})
		})
		if err != nil || a.code != http.StatusOK {
			t.Errorf("revoke: %d %s %v", a.code, a.raw, err)
		}
		revoked.Store(true)
		position <- a.text("position")
	}()
	for token, over := first.text("refresh_token"), false; !over; {
		over = revoked.Load() // before the call is made
		a, err := refresh(token)
		switch {
		case err != nil || a.code != http.StatusOK && a.code != http.StatusUnauthorized:
			t.Errorf("F08: %d %s %v", a.code, a.raw, err)
			return
		case a.code == http.StatusOK && over:
			t.Error("F08: after the revocation was answered another replica refreshed")
		case a.code == http.StatusOK:
			token = a.text("refresh_token")
			minted = append(minted, a.text("access_token"))
		}
	}
	at := <-position
	for _, token := range minted {
		a, err := try(ctx, "POST", there.HTTP+"/v1/auth/introspect", there.basic(), map[string]any{"token": token, "min_position": at})
		if err != nil || a.code != http.StatusOK || a.json["active"] != false {
			t.Errorf("F08: a token of the revoked session is introspected as %s %v", a.raw, err)
		}
	}
}

// nothingRefreshes does a hundredth of the count of F08, a tenth in soak: each round is a login, and so a password's hash.
func (r replicas) nothingRefreshes(t *testing.T) {
	rounds := 100
	if soak.On() {
		rounds = 1000
	}
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for n := next.Add(1); n <= int64(rounds) && !t.Failed(); n = next.Add(1) {
				r.race(t, int(n))
			}
		})
	}
	wg.Wait()
}

func (r replicas) refusedEverywhere(t *testing.T) {
	var verifiers []*watcher
	for _, s := range r.s {
		w := watch(t, s, nil)
		w.ready(t)
		verifiers = append(verifiers, w)
	}
	heard := r.s[1].metric(t, "authsvc_revocation_hints_total")
	stays := r.s[1].login(t).text("access_token")
	for _, kind := range []string{"access_token", "refresh_token"} {
		in := r.s[2].login(t)
		token := in.text("access_token")
		for i, w := range verifiers {
			if err := w.says(t, token); err != nil || r.s[i].introspect(t, token).json["active"] != true {
				t.Errorf("P01: the twin, before it is revoked: %v", err)
			}
		}
		if a := call(t, "POST", r.s[0].HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text(kind)}); a.code != http.StatusOK {
			t.Fatal(a.raw)
		}
		if a := r.s[0].introspect(t, token); a.json["active"] != false {
			t.Errorf("where it was revoked it is introspected as %s", a.raw)
		}
		for i, w := range verifiers {
			await(t, "P01: the other replicas refuse it, and so do the verifiers", func() bool {
				return errors.Is(w.says(t, token), verify.ErrRevoked) && r.s[i].introspect(t, token).json["active"] == false
			})
		}
	}
	for i, w := range verifiers {
		if err := w.says(t, stays); err != nil || r.s[i].introspect(t, stays).json["active"] != true {
			t.Errorf("P01: the twin, a session that nobody ended: %v", err)
		}
	}
	await(t, "of two revocations elsewhere it has got two hints", func() bool { // which may come after the clock's own look
		return r.s[1].metric(t, "authsvc_revocation_hints_total") >= heard+2
	})
}

func (r replicas) position(t *testing.T) {
	ask := func(s *server, token, position string) answer {
		return call(t, "POST", s.HTTP+"/v1/auth/introspect", s.basic(), map[string]any{"token": token, "min_position": position})
	}
	position := ""
	for round := range 30 {
		in := r.s[round%3].login(t)
		there := r.s[1+round%2]
		if a := ask(there, in.text("access_token"), position); a.json["active"] != true { // the twin
			t.Fatalf("round %d: before the revocation: %d %s", round, a.code, a.raw)
		}
		revoked := call(t, "POST", r.s[0].HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text([]string{"access_token", "refresh_token"}[round%2])})
		if position = revoked.text("position"); revoked.code != http.StatusOK || position == "" {
			t.Fatalf("revoke: %d %s", revoked.code, revoked.raw)
		}
		if a := ask(there, in.text("access_token"), position); a.json["active"] != false {
			t.Errorf("round %d: with the position of the revocation: %d %s", round, a.code, a.raw)
		}
	}
}

func (r replicas) leaving(t *testing.T) {
	r.s[2].stop(t)
	if left := r.instances(t); len(left) != 2 {
		t.Errorf("after one has stopped there are %+v", left)
	}
	await(t, "the others count two", func() bool {
		return r.s[0].metric(t, "authsvc_instances") == 2 && r.s[1].metric(t, "authsvc_instances") == 2
	})
	r.s[1].kill(t)
	if a := call(t, "POST", r.s[0].HTTP+"/v1/auth/revoke", "", map[string]any{"token": r.s[0].login(t).text("access_token")}); a.code != http.StatusOK {
		t.Fatal(a.raw)
	}
	behind := false
	for _, i := range r.instances(t) {
		behind = behind || i.Behind != nil && *i.Behind > 0
	}
	if !behind {
		t.Error("one that was killed has read what was revoked since")
	}
	// How far it is in another history cannot be said.
	if _, err := r.pg.SQL(t.Context(), "authsvc", `UPDATE instances SET epoch = decode(repeat('00', 16), 'hex') WHERE position < (SELECT MAX(position) FROM revocations)`); err != nil {
		t.Fatal(err)
	}
	if all := r.instances(t); !slices.ContainsFunc(all, func(i listing) bool { return i.Behind == nil }) {
		t.Errorf("of one that reads another history it is said how far it is: %+v", all)
	}
	if testing.Short() {
		t.Skip("waits until it is silent")
	}
	silence := func() (silent int) {
		for _, i := range r.instances(t) {
			if !i.Live {
				silent++
			}
		}
		return silent
	}
	if len(r.instances(t)) != 2 {
		t.Error("one that was killed is gone from the list at once")
	}
	await(t, "who was killed is silent", func() bool { return silence() == 1 })
	await(t, "the table shows one that is silent and one that is live", func() bool {
		table := operate(t, "", "instances", "-config", r.config)
		return strings.Count(table, " silent ") == 1 && strings.Count(table, " live ") == 1
	})
	await(t, "the last one counts itself", func() bool { return r.s[0].metric(t, "authsvc_instances") == 1 })
}
