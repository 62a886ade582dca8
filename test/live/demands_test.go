package live

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// part decodes the header (0) or the claims (1) of a token.
func part(t *testing.T, token string, n int) (m map[string]any) {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[n])
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func keysOf(m map[string]any) []string { return slices.Sorted(maps.Keys(m)) }

// TestR27R30R11TokensAndKeysHoldWhatTheyMustAndNothingElse reads what the server hands out, as a stranger would.
func TestR27R30R11TokensAndKeysHoldWhatTheyMustAndNothingElse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	person(t, dir, "ada.lovelace", phrase)
	body := s.credentials("ada.lovelace", phrase)
	body["device_name"] = "Ada's phone"
	in := s.say(t, http.DefaultClient, "/v1/auth/login", body)
	access := in.text("access_token")
	head, claims := part(t, access, 0), part(t, access, 1)
	if diff := cmp.Diff([]string{"alg", "kid", "typ"}, keysOf(head)); diff != "" || head["alg"] != "RS256" || head["typ"] != "at+jwt" {
		t.Errorf("R27: the header is %v", head)
	}
	if diff := cmp.Diff([]string{"amr", "aud", "auth_time", "client_id", "exp", "iat", "iss", "jti", "nbf", "scope", "sid", "sub"}, keysOf(claims)); diff != "" {
		t.Errorf("R27: the claims (-want +got)\n%s", diff)
	}
	if claims["exp"].(float64)-claims["iat"].(float64) != 300 || claims["iss"] != s.Issuer || claims["sid"] != in.text("session_id") {
		t.Errorf("R27: the claims are %v", claims)
	}
	for _, personal := range []string{"ada", "phone", "127.0.0.1\"", "Go-http-client"} {
		if content := fmt.Sprint(claims); strings.Contains(content, personal) {
			t.Errorf("R27: the token tells %q: %s", personal, content)
		}
	}
	meta := call(t, "GET", s.HTTP+"/.well-known/oauth-authorization-server", "", nil)
	if meta.json["issuer"] != claims["iss"] {
		t.Errorf("R11: the metadata's issuer is %v, the token's %v", meta.json["issuer"], claims["iss"])
	}
	set := call(t, "GET", s.HTTP+"/.well-known/jwks.json", "", nil)
	var jwks struct{ Keys []map[string]any }
	if err := json.Unmarshal([]byte(set.raw), &jwks); err != nil || len(jwks.Keys) != 2 {
		t.Fatalf("the key set is %s", set.raw)
	}
	kids := map[any]bool{}
	for _, k := range jwks.Keys {
		if diff := cmp.Diff([]string{"alg", "e", "kid", "kty", "n", "use"}, keysOf(k)); diff != "" {
			t.Errorf("R30: a key of the set (-want +got)\n%s", diff)
		}
		thumb := sha256.Sum256(fmt.Appendf(nil, `{"e":%q,"kty":%q,"n":%q}`, k["e"], k["kty"], k["n"])) // RFC 7638 §3
		if k["kid"] != base64.RawURLEncoding.EncodeToString(thumb[:]) || k["e"] != "AQAB" || k["alg"] != "RS256" || k["use"] != "sig" {
			t.Errorf("R30: the key is %v", k)
		}
		if n, err := base64.RawURLEncoding.DecodeString(k["n"].(string)); err != nil || len(n) < 256 {
			t.Errorf("R30: a modulus of %d bytes", len(n))
		}
		kids[k["kid"]] = true
	}
	if !kids[head["kid"]] {
		t.Errorf("the token's kid %v is not in the set", head["kid"])
	}
}

// TestR36R45R55WhatTheDatabaseHoldsOpensNothing reads the database's files as a thief would.
func TestR36R45R55WhatTheDatabaseHoldsOpensNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	in := s.login(t)
	next := s.refresh(t, in.text("refresh_token"))
	sids := map[string]bool{}
	for range 20 {
		sid := s.login(t).text("session_id")
		if raw, err := base64.RawURLEncoding.DecodeString(sid); err != nil || len(raw) != 16 {
			t.Errorf("R36: the session id %q is not 16 bytes", sid)
		}
		sids[sid] = true
	}
	if len(sids) != 20 {
		t.Errorf("R36: 20 logins made %d sessions", len(sids))
	}
	secret, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(in.text("refresh_token"), "rt1."))
	if err != nil || len(secret) != 1+16+4+16+16 {
		t.Fatalf("the refresh token has %d bytes: %v", len(secret), err)
	}
	files := ""
	for _, name := range []string{"authsvc.db", "authsvc.db-wal"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files += string(content)
	}
	if !strings.Contains(files, in.text("session_id")) {
		t.Fatal("the session's id is not in the files: they are not what they are taken for")
	}
	for name, value := range map[string]string{"R36 a refresh token": in.text("refresh_token"), "R36 its successor": next.text("refresh_token"),
		"R36 the session's secret": string(secret[21:37]), "an access token": in.text("access_token"), "R45 the password": s.Password,
		"R55 a client's secret": s.ServiceClientSecret} {
		if strings.Contains(files, value) {
			t.Errorf("%s is in the database", name)
		}
	}
	db := database(t, dir)
	if phc := text(t, db, `SELECT password_hash FROM accounts`); !strings.HasPrefix(phc, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("R45: the password's hash begins with %.40s", phc)
	}
	sum := sha256.Sum256([]byte(s.ServiceClientSecret))
	if stored := text(t, db, `SELECT secrets FROM clients WHERE id = ?`, s.ServiceClientID); !strings.Contains(stored, base64.RawURLEncoding.EncodeToString(sum[:])) &&
		!strings.Contains(stored, base64.StdEncoding.EncodeToString(sum[:])) && !strings.Contains(stored, fmt.Sprintf("%x", sum)) {
		t.Errorf("R55: the client's secret is stored as %s", stored)
	}
	if a := call(t, "POST", s.HTTP+"/v1/auth/introspect", s.basic(), map[string]any{"token": next.text("access_token")}); a.json["active"] != true {
		t.Errorf("the twin, the secret as it was shown, answered %d %s", a.code, a.raw)
	}
}

// TestR55ANewInstallationHasNobodyInIt starts by a configuration on an empty folder: no account and no client is there.
func TestR55ANewInstallationHasNobodyInIt(t *testing.T) {
	t.Parallel()
	donor, d := stopped(t)
	dir := t.TempDir()
	for _, name := range []string{"kek.json", "refresh.json", "issuer"} {
		content, err := os.ReadFile(filepath.Join(donor, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, said := serve(t, dir, d, plain, "http")
	db := database(t, dir)
	if n := text(t, db, `SELECT (SELECT count(*) FROM accounts) + (SELECT count(*) FROM clients)`); n != "0" {
		t.Errorf("a new installation has %s accounts and clients", n)
	}
	for _, secret := range []string{"secret ", "password "} {
		if strings.Contains(said.String(), secret) {
			t.Errorf("a start by configuration says %s", said)
		}
	}
	config := filepath.Join(dir, "authsvc.yaml")
	operate(t, "", "client", "create", "-config", config, "-kind", "public", "-id", "app", "-audience", "https://api.example", "-default-audience", "https://api.example")
	operate(t, phrase+"\n", "account", "create", "-config", config, "first")
	await(t, "the twin: who was created can sign in", func() bool {
		return s.say(t, http.DefaultClient, "/v1/auth/login", map[string]any{"username": "first", "password": phrase, "client_id": "app"}).code == http.StatusOK
	})
}

// TestR45AHashIsMadeAnewWhenItsCostGrows raises the cost by configuration; a login brings its own hash up to it, once.
func TestR45AHashIsMadeAnewWhenItsCostGrows(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	db := database(t, dir)
	old := text(t, db, `SELECT password_hash FROM accounts`)
	s, _ := serve(t, dir, d, plain+"password: {memory_kib: 20480, time: 3}\n", "http")
	if a := s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, phrase)); a.code != http.StatusUnauthorized || text(t, db, `SELECT password_hash FROM accounts`) != old {
		t.Errorf("a wrong password answered %d and changed the hash", a.code)
	}
	s.login(t)
	grown := text(t, db, `SELECT password_hash FROM accounts`)
	if grown == old || !strings.HasPrefix(grown, "$argon2id$v=19$m=20480,t=3,p=1$") {
		t.Errorf("after a login the hash begins with %.40s", grown)
	}
	s.login(t) // the twin: a hash of today's cost stays
	if text(t, db, `SELECT password_hash FROM accounts`) != grown {
		t.Error("a hash of today's cost was made anew")
	}
	run(t, db, `UPDATE accounts SET password_hash = replace(password_hash, 'm=20480', 'm=4000000')`)
	before := s.memory(t)
	if a := s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password)); a.code == http.StatusOK || s.memory(t) > before+64 {
		t.Errorf("a planted hash of 4 GB answered %d; memory %d to %d MiB", a.code, before, s.memory(t))
	}
}

// TestR46R48NewPasswords changes a password at the door to what may not be one, and then to what may.
func TestR46R48NewPasswords(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	in := s.login(t)
	change := func(next string) answer {
		return call(t, "POST", s.HTTP+"/v1/account/password", "Bearer "+in.text("access_token"), map[string]any{"old_password": s.Password, "new_password": next})
	}
	for name, next := range map[string]string{
		"R46 14 code points":            "fourteen chars",
		"R46 14 code points of 4 bytes": strings.Repeat("\U0001f600", 14),
		"R46 257 code points":           strings.Repeat("e", 257),
		"R46 empty":                     "",
		"R48 the username in a row":     "demodemodemodemo",
		"R48 one of the common ones":    "passwordpassword",
	} {
		if a := change(next); a.code != http.StatusBadRequest || strings.Contains(a.raw, "fourteen") {
			t.Errorf("%s: %d %s", name, a.code, a.raw)
		}
	}
	if a := change("fifteen lowerca"); a.code != http.StatusOK { // the twin: 15 of one sort
		t.Errorf("R46: the shortest allowed password answered %d %s", a.code, a.raw)
	}
	if a := s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, "fifteen lowerca")); a.code != http.StatusOK {
		t.Errorf("the new password answered %d %s", a.code, a.raw)
	}
}

// TestR43R54R10WhatEndsSessions ends sessions in every way there is, and asks every way in whether they are over.
func TestR43R54R10WhatEndsSessions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	type persons struct{ first, second answer } // two sessions of one account
	bearer := func(a answer) string { return "Bearer " + a.text("access_token") }
	for i, tt := range []struct {
		name        string
		end         func(name string, p persons)
		spares      bool // the session that asked
		returns     bool // the account may sign in afterwards
		newPassword string
	}{
		{"R54 R43 the account is disabled", func(name string, _ persons) { operate(t, "", "account", "disable", "-dir", dir, name) }, false, false, ""},
		{"R54 disabled and enabled again: what was ended stays ended", func(name string, _ persons) {
			operate(t, "", "account", "disable", "-dir", dir, name)
			operate(t, "", "account", "enable", "-dir", dir, name)
		}, false, true, ""},
		{"R43 an operator sets a password", func(name string, _ persons) {
			operate(t, phrase+" anew\n", "account", "set-password", "-dir", dir, name)
		}, false, true, phrase + " anew"},
		{"R43 the account is deleted", func(name string, _ persons) { operate(t, "", "account", "delete", "-dir", dir, name) }, false, false, ""},
		{"R43 a person changes the password", func(_ string, p persons) {
			if a := call(t, "POST", s.HTTP+"/v1/account/password", bearer(p.first), map[string]any{"old_password": phrase, "new_password": phrase + " mine"}); a.code != 200 {
				t.Errorf("change: %d %s", a.code, a.raw)
			}
		}, true, true, phrase + " mine"},
		{"R43 a person ends all others", func(_ string, p persons) {
			if a := call(t, "POST", s.HTTP+"/v1/sessions:revokeAll", bearer(p.first), map[string]any{"except_current": true}); a.code != 200 {
				t.Errorf("revokeAll: %d %s", a.code, a.raw)
			}
		}, true, true, ""},
		{"R43 a person ends another of their own", func(_ string, p persons) {
			if a := call(t, "DELETE", s.HTTP+"/v1/sessions/"+p.second.text("session_id"), bearer(p.first), nil); a.code != 200 {
				t.Errorf("revoke: %d %s", a.code, a.raw)
			}
		}, true, true, ""},
	} {
		name := fmt.Sprintf("person-%d", i)
		person(t, dir, name, phrase)
		c := from(t, fmt.Sprintf("127.4.%d.1", i))
		p := persons{s.say(t, c, "/v1/auth/login", s.credentials(name, phrase)), s.say(t, c, "/v1/auth/login", s.credentials(name, phrase))}
		tt.end(name, p)
		for _, a := range []answer{p.first, p.second} {
			live := tt.spares && a.text("session_id") == p.first.text("session_id")
			await(t, "R10: "+tt.name+": introspection knows it", func() bool {
				return s.introspect(t, a.text("access_token")).json["active"] == live
			})
			if r := s.refresh(t, a.text("refresh_token")); (r.code == http.StatusOK) != live {
				t.Errorf("%s: a refresh answered %d %s", tt.name, r.code, r.raw)
			}
			if r := call(t, "GET", s.HTTP+"/v1/sessions", bearer(a), nil); (r.code == http.StatusOK) != live {
				t.Errorf("%s: the person's own door answered %d %s", tt.name, r.code, r.raw)
			}
		}
		password := phrase
		if tt.newPassword != "" {
			password = tt.newPassword
			if r := s.say(t, c, "/v1/auth/login", s.credentials(name, phrase)); r.code != http.StatusUnauthorized {
				t.Errorf("%s: the old password answered %d", tt.name, r.code)
			}
		}
		if r := s.say(t, c, "/v1/auth/login", s.credentials(name, password)); (r.code == http.StatusOK) != tt.returns {
			t.Errorf("%s: a login answered %d %s", tt.name, r.code, r.raw)
		}
	}
}

// TestR56EveryMethodByEveryCaller calls the whole surface with nothing, with what a person has, and with what services have.
func TestR56EveryMethodByEveryCaller(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	out := operate(t, "", "client", "create", "-dir", dir, "-kind", "confidential", "-id", "asker", "-audience", s.Issuer, "-scope", "authsvc.introspect", "-scope", "demo.read", "-o", "json")
	var made map[string]any
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	secret, _ := made["client_secret"].(string)
	basic := func(id, secret string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(id+":"+secret))
	}
	var scoped, unscoped answer
	await(t, "the new client gets tokens", func() bool {
		get := func(scope string) answer {
			r, err := http.NewRequest(http.MethodPost, s.HTTP+"/oauth2/token", strings.NewReader("grant_type=client_credentials&resource="+s.Issuer+"&scope="+scope))
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			r.Header.Set("Authorization", basic("asker", secret))
			a, err := do(http.DefaultClient, r)
			if err != nil {
				t.Fatal(err)
			}
			return a
		}
		scoped, unscoped = get("authsvc.introspect"), get("demo.read")
		return scoped.code == 200 && unscoped.code == 200
	})
	callers := []struct{ name, authorization string }{
		{"nobody", ""}, {"a person", "Bearer " + s.login(t).text("access_token")}, {"a service by its scope", "Bearer " + scoped.text("access_token")},
		{"a service without the scope", "Bearer " + unscoped.text("access_token")}, {"a service by its secret", s.basic()}, {"a wrong secret", basic(s.ServiceClientID, "wrong")},
	}
	denied := s.say(t, http.DefaultClient, "/v1/auth/introspect", map[string]any{"token": "x"}, "Authorization", "Bearer "+unscoped.text("access_token"))
	if www := denied.header.Get("Www-Authenticate"); denied.code != http.StatusForbidden || !strings.Contains(www, `error="insufficient_scope"`) {
		t.Errorf("R08: a token without the scope is answered %d with %q", denied.code, www)
	}
	const open, no401, no403 = codes.OK, codes.Unauthenticated, codes.PermissionDenied
	conn := wire(t, s.GRPC)
	for method, want := range map[string][]codes.Code{ // OK stands for "let in": what the empty request gets then is another matter
		"AuthService/Login":             {open, open, open, open, open, open},
		"AuthService/Refresh":           {open, open, open, open, open, open},
		"AuthService/Revoke":            {open, open, open, open, open, open},
		"AuthService/Introspect":        {no401, no403, open, no403, open, no401},
		"AuthService/BatchIntrospect":   {no401, no403, open, no403, open, no401},
		"SessionService/ListSessions":   {no401, open, no403, no403, no401, no401},
		"SessionService/RevokeSession":  {no401, open, no403, no403, no401, no401},
		"AccountService/ChangePassword": {no401, open, no403, no403, no401, no401},
		"TrustService/GetKeySet":        {open, open, open, open, open, open},
		"AdminService/DeleteEverything": {codes.Unimplemented, codes.Unimplemented, codes.Unimplemented, codes.Unimplemented, codes.Unimplemented, codes.Unimplemented},
	} {
		for i, c := range callers {
			ctx := t.Context()
			if c.authorization != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", c.authorization)
			}
			err := conn.Invoke(ctx, "/authsvc.v1."+method, &emptypb.Empty{}, &emptypb.Empty{})
			got := status.Code(err)
			if want[i] == open && (got == codes.InvalidArgument || got == codes.Unauthenticated && strings.Contains(err.Error(), "client")) {
				got = codes.OK // it was let in, and then the empty request was found wanting
			}
			if got != want[i] {
				t.Errorf("R56: %s by %s: %v, want %v", method, c.name, err, want[i])
			}
		}
	}
}

// TestR62EveryEventLeavesItsRecord does what is to be recorded and reads the records by the command line.
func TestR62EveryEventLeavesItsRecord(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	in := s.login(t)
	refused := s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, phrase))
	stolen := s.login(t)
	second := s.refresh(t, stolen.text("refresh_token")).text("refresh_token")
	s.refresh(t, second)
	theft := s.say(t, http.DefaultClient, "/v1/auth/refresh", map[string]any{"refresh_token": stolen.text("refresh_token"), "client_id": s.PublicClientID}, "User-Agent", "thief/1")
	if theft.reason() != "REFRESH_REUSED" {
		t.Fatalf("the theft answered %d %s", theft.code, theft.raw)
	}
	call(t, "POST", s.HTTP+"/v1/account/password", "Bearer "+in.text("access_token"), map[string]any{"old_password": s.Password, "new_password": phrase})
	call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")})
	operate(t, "", "account", "disable", "-dir", dir, s.Username)
	operate(t, "", "keys", "rotate", "-now", "-dir", dir)
	var records []map[string]any
	if err := json.Unmarshal([]byte(operate(t, "", "audit", "list", "-dir", dir, "-o", "json", "-limit", "0")), &records); err != nil {
		t.Fatal(err)
	}
	find := func(want map[string]any) bool {
		return slices.ContainsFunc(records, func(r map[string]any) bool {
			for k, v := range want {
				if r[k] != v {
					return false
				}
			}
			return r["time"] != "" && strings.HasSuffix(fmt.Sprint(r["time"]), "Z")
		})
	}
	sub := part(t, in.text("access_token"), 1)["sub"]
	for name, want := range map[string]map[string]any{
		"a login": {"event": "login", "outcome": "ok", "subject": sub, "actor": sub, "client_id": s.PublicClientID, "session_id": in.text("session_id"),
			"ip_address": "127.0.0.1", "user_agent": "Go-http-client/1.1", "request_id": in.header.Get("X-Request-Id")},
		"a refused login": {"event": "login", "outcome": "denied", "reason": "INVALID_CREDENTIALS", "subject": sub, "request_id": refused.header.Get("X-Request-Id")},
		"a theft": {"event": "refresh.reuse", "subject": sub, "session_id": stolen.text("session_id"), "user_agent": "thief/1",
			"request_id": theft.header.Get("X-Request-Id")},
		"a new password":     {"event": "password.change", "outcome": "ok", "subject": sub, "actor": sub},
		"a revocation":       {"event": "revoke", "session_id": in.text("session_id")},
		"a disabled account": {"event": "account.disable", "outcome": "ok", "subject": sub},
		"a rotated key":      {"event": "key.rotate_now", "outcome": "ok"},
	} {
		if !find(want) {
			t.Errorf("R62: no record of %s: want %v in\n%s", name, want, operate(t, "", "audit", "list", "-dir", dir, "-o", "json", "-limit", "0"))
		}
	}
	for _, r := range records { // an ordinary refresh is counted, not recorded
		if r["event"] == "refresh" {
			t.Errorf("R62: an ordinary refresh was recorded: %v", r)
		}
	}
}

// TestF05R60AHundredCallersWithOneToken refreshes with one token from a hundred callers at once.
func TestF05R60AHundredCallersWithOneToken(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	token := s.login(t).text("refresh_token")
	var mu sync.Mutex
	refresh, access := map[string]int{}, map[string]int{}
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			a, err := try(t.Context(), "POST", s.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": token, "client_id": s.PublicClientID})
			if err != nil || a.code != http.StatusOK {
				t.Errorf("F05: %d %s %v", a.code, a.raw, err)
				return
			}
			mu.Lock()
			refresh[a.text("refresh_token")]++
			access[a.text("access_token")]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if len(refresh) != 1 || len(access) != 100 {
		t.Errorf("F05: %d different refresh tokens and %d access tokens", len(refresh), len(access))
	}
	for next := range refresh {
		if a := s.refresh(t, next); a.code != http.StatusOK {
			t.Errorf("R60: the one successor answered %d %s", a.code, a.raw)
		}
	}
}
