package live

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// smallDisk gives a folder on a disk of its own. Mounting needs the right to.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
		lacking(t, "a small disk cannot be mounted: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// fill writes a file until the disk has no room.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 64 << 10; size > 0; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// TestD11R09R61AFullDiskStopsWhatWritesAlone fills the disk under a running server and frees it again.
func TestD11R09R61AFullDiskStopsWhatWritesAlone(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t, "16m")
	s := start(t, dir)
	var in []answer
	for range 20 {
		in = append(in, s.login(t))
	}
	revoke := func(token string) answer {
		return call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": token})
	}
	fill(t, filepath.Join(dir, "ballast"))
	away := func(a answer) bool {
		if a.code == http.StatusServiceUnavailable {
			return a.reason() == "STORE_UNAVAILABLE" && !strings.Contains(strings.ToLower(a.raw), "sqlite") && !strings.Contains(a.raw, "disk")
		}
		if a.code != http.StatusOK {
			t.Fatalf("on a full disk: %d %s", a.code, a.raw)
		}
		return false
	}
	await(t, "a login fails", func() bool {
		return away(s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password)))
	})
	token := in[0].text("refresh_token")
	await(t, "a refresh fails", func() bool {
		a := s.refresh(t, token)
		if a.code == http.StatusOK {
			token = a.text("refresh_token") // there was room for it still
		}
		return away(a)
	})
	acknowledged, refused := []answer{}, []answer{}
	for _, a := range in[1:] {
		if r := revoke(a.text("refresh_token")); away(r) {
			refused = append(refused, a)
		} else {
			acknowledged = append(acknowledged, a)
		}
	}
	if len(refused) == 0 {
		t.Error("R09: no revocation was refused: the disk is not full")
	}
	for _, a := range refused {
		if r := s.introspect(t, a.text("access_token")); r.json["active"] != true {
			t.Errorf("a revocation that was refused acts all the same, or introspection fails: %d %s", r.code, r.raw)
		}
	}
	if a := call(t, "GET", s.HTTP+"/.well-known/jwks.json", "", nil); a.code != http.StatusOK {
		t.Errorf("the key set on a full disk: %d %s", a.code, a.raw)
	}
	if a := call(t, "GET", s.HTTP+"/v1/sessions", "Bearer "+in[0].text("access_token"), nil); a.code != http.StatusOK {
		t.Errorf("what verifies and reads on a full disk: %d %s", a.code, a.raw)
	}
	if code := s.probe("/livez"); code != http.StatusOK {
		t.Errorf("/livez on a full disk: %d", code)
	}
	if err := os.Remove(filepath.Join(dir, "ballast")); err != nil {
		t.Fatal(err)
	}
	// The twin: with room again everything works, without a restart.
	if a := s.refresh(t, token); a.code != http.StatusOK {
		t.Errorf("the token of the refresh that failed answered %d %s", a.code, a.raw)
	}
	s.login(t)
	for _, a := range refused {
		if r := revoke(a.text("refresh_token")); r.code != http.StatusOK {
			t.Errorf("the revocation tried again answered %d %s", r.code, r.raw)
		}
	}
	for _, a := range append(acknowledged, refused...) {
		if r := s.introspect(t, a.text("access_token")); r.json["active"] != false {
			t.Errorf("R09: an acknowledged revocation is not in force: %s", r.raw)
		}
	}
	s.stop(t)
	if got := text(t, database(t, dir), `PRAGMA integrity_check`); got != "ok" {
		t.Errorf("the database after a full disk: %s", got)
	}
}

// TestD09D10ALockedDatabaseSignsNobodyOut holds the database's lock from another process, longer than a call may take.
func TestD09D10ALockedDatabaseSignsNobodyOut(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("waits for calls to give up")
	}
	dir := t.TempDir()
	s := start(t, dir)
	var in []answer
	for range 60 {
		in = append(in, s.login(t))
	}
	db := database(t, dir)
	run(t, db, `BEGIN IMMEDIATE`)
	var wg sync.WaitGroup
	var failed atomic.Int64
	for _, a := range in {
		wg.Go(func() {
			r, err := try(t.Context(), "POST", s.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": a.text("refresh_token"), "client_id": s.PublicClientID})
			if err != nil || r.code != http.StatusServiceUnavailable || r.reason() != "STORE_UNAVAILABLE" {
				t.Errorf("D09: a refresh on a locked database: %d %s %v", r.code, r.raw, err)
			}
			failed.Add(1)
		})
	}
	for failed.Load() < int64(len(in)) { // D10: what reads is served meanwhile, and the process is alive
		if a := s.introspect(t, in[0].text("access_token")); a.json["active"] != true {
			t.Errorf("introspection beside the lock: %d %s", a.code, a.raw)
		}
		if code := s.probe("/livez"); code != http.StatusOK {
			t.Errorf("D10: /livez: %d", code)
		}
	}
	wg.Wait() // D10: nobody hangs
	run(t, db, `COMMIT`)
	for i, a := range in {
		if r := s.refresh(t, a.text("refresh_token")); r.code != http.StatusOK {
			t.Errorf("D09: session %d did not outlive the lock: %d %s", i, r.code, r.raw)
		}
	}
	if n := text(t, db, `SELECT count(*) FROM sessions WHERE ended_at IS NOT NULL`); n != "0" {
		t.Errorf("D09: %s sessions were ended", n)
	}
}

// TestD17ReleasesAndKeysOneBehindSignNobodyOut rolls the schema, the refresh keys and the signing key forward and back.
func TestD17ReleasesAndKeysOneBehindSignNobodyOut(t *testing.T) {
	t.Parallel()
	dir, _ := stopped(t)
	db := database(t, dir)
	run(t, db, `UPDATE schema_version SET version = version + 100`)
	if out, err := command("", "serve", "-config", configure(t, dir, plain)); err == nil || !strings.Contains(out, "schema") {
		t.Errorf("D17: this release starts on a newer release's database: %v %s", err, out)
	}
	run(t, db, `UPDATE schema_version SET version = version - 100`)

	in := onPostgreSQL(t)
	// A rolling change of the refresh keys: the replica of the release before does not have the new one.
	refreshKeys := filepath.Join(filepath.Dir(in.config), "refresh.json")
	old, err := os.ReadFile(refreshKeys)
	if err != nil {
		t.Fatal(err)
	}
	behind, _ := serveBy(t, in.config, in.dev, "http")
	second := `{"id": 2, "key": "` + strings.Repeat("r", 42) + `A"}`
	both := strings.Replace(string(old), `{"keys": [`, `{"keys": [`+second+`, `, 1)
	if err := os.WriteFile(refreshKeys, []byte(both), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := serveBy(t, in.config, in.dev, "http")
	in.furnish(t, behind, s)
	operate(t, "", "client", "create", "-config", in.config, "-kind", "public", "-id", "own", "-audience", "https://api.example", "-audience", s.Issuer,
		"-default-audience", "https://api.example", "-default-audience", s.Issuer)
	for _, s := range []*server{behind, s} {
		s.PublicClientID = "own"
		await(t, "the client is known", func() bool {
			return s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password)).code == http.StatusOK
		})
	}
	before, after := behind.login(t), s.login(t)
	if a := behind.refresh(t, after.text("refresh_token")); a.code != http.StatusServiceUnavailable || a.reason() != "REFRESH_KEY_UNKNOWN" {
		t.Errorf("D17: a refresh token of an unknown key must be tried elsewhere, not die: %d %s", a.code, a.raw)
	}
	if a := s.refresh(t, before.text("refresh_token")); a.code != http.StatusOK {
		t.Errorf("D17: a session from before the new key: %d %s", a.code, a.raw)
	} else if a := behind.refresh(t, a.text("refresh_token")); a.code != http.StatusOK {
		t.Errorf("D17: a session of the old key at the replica behind: %d %s", a.code, a.raw)
	}
	behind.stop(t)
	if a := s.refresh(t, after.text("refresh_token")); a.code != http.StatusOK {
		t.Errorf("D17: the twin, a replica that has the key: %d %s", a.code, a.raw)
	}
	// A new kid: what was signed before goes on, and so does the session.
	kid := func(a answer) string { head, _, _ := strings.Cut(a.text("access_token"), "."); return head }
	operate(t, "", "keys", "rotate", "-now", "-config", in.config)
	var next answer
	await(t, "the new key signs", func() bool { next = s.login(t); return kid(next) != kid(after) })
	for _, a := range []answer{after, next} {
		if r := s.introspect(t, a.text("access_token")); r.json["active"] != true {
			t.Errorf("R31 D17: across a change of signing keys a token is %s", r.raw)
		}
	}
	if a := call(t, "GET", s.HTTP+"/v1/sessions", "Bearer "+after.text("access_token"), nil); a.code != http.StatusOK {
		t.Errorf("R31: the old key's token at our own door: %d %s", a.code, a.raw)
	}
}

// TestD18ChangedKeyRowsRefuseToStart changes the rows of the signing keys as somebody with the file could.
func TestD18ChangedKeyRowsRefuseToStart(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	db := database(t, dir)
	run(t, db, `CREATE TABLE kept AS SELECT * FROM signing_keys`)
	if n := text(t, db, `SELECT count(*) FROM kept WHERE state IN ('active', 'pending')`); n != "2" {
		t.Fatalf("%s keys", n)
	}
	const active, pending = `state = 'active'`, `state = 'pending'`
	for name, change := range map[string]string{
		"D18 two rows' sealed keys swapped": `UPDATE signing_keys SET sealed = (SELECT sealed FROM kept WHERE kept.id <> signing_keys.id)`,
		"D18 two rows' public keys swapped": `UPDATE signing_keys SET public = (SELECT public FROM kept WHERE kept.id <> signing_keys.id)`,
		"D18 a sealed key cut short":        `UPDATE signing_keys SET sealed = substr(sealed, 1, length(sealed) - 1) WHERE ` + active,
		"D18 a sealed key emptied":          `UPDATE signing_keys SET sealed = x'' WHERE ` + active,
		"D18 a sealed key's last byte":      `UPDATE signing_keys SET sealed = CAST(substr(sealed, 1, length(sealed) - 1) || x'00' AS BLOB) WHERE ` + active,
		"D18 one key's row under two names": `UPDATE signing_keys SET sealed = (SELECT sealed FROM kept WHERE ` + active + `), public = (SELECT public FROM kept WHERE ` + active + `) WHERE ` + pending,
	} {
		run(t, db, change)
		if out, err := command("", "serve", "-config", configure(t, dir, plain)); err == nil || strings.Contains(out, `"serving"`) {
			t.Errorf("%s: it started: %s", name, out)
		}
		if n := text(t, db, `SELECT count(*) FROM signing_keys WHERE id NOT IN (SELECT id FROM kept)`); n != "0" {
			t.Errorf("%s: new keys were made silently", name)
		}
		run(t, db, `DELETE FROM signing_keys`)
		run(t, db, `INSERT INTO signing_keys SELECT * FROM kept`)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ := serve(t, dir, d, plain, "http") // the twin: the rows as they were
	s.login(t)
}

// TestD20TextIsTextInEveryField sends what means something to a database through every field of every call.
func TestD20TextIsTextInEveryField(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	db := database(t, dir)
	in := s.login(t)
	bearer := "Bearer " + in.text("access_token")
	count := func() string {
		return text(t, db, `SELECT (SELECT count(*) FROM accounts) || ' ' || (SELECT count(*) FROM clients) || ' ' || (SELECT count(*) FROM sessions WHERE ended_at IS NULL)`)
	}
	before := count()
	nasty := []string{`x'; DROP TABLE accounts; --`, `' OR '1'='1`, `$1`, `$$; DELETE FROM sessions; $$`, `%`, `_`, `\`, `"`, "a\x00b", "\x00", `?`, `:id`, `@p`, "x\u2028y", `demo' --`}
	for _, v := range nasty {
		for name, send := range map[string]func() answer{
			"username": func() answer { return s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(v, "x")) },
			"password": func() answer {
				return s.say(t, from(t, "127.2.0.1"), "/v1/auth/login", s.credentials("somebody-else", v))
			},
			"client_id": func() answer {
				return s.say(t, http.DefaultClient, "/v1/auth/login", map[string]any{"username": s.Username, "password": s.Password, "client_id": v})
			},
			"scope": func() answer {
				return s.say(t, http.DefaultClient, "/v1/auth/refresh", map[string]any{"refresh_token": in.text("refresh_token"), "client_id": s.PublicClientID, "scope": v})
			},
			"audience": func() answer {
				return s.say(t, http.DefaultClient, "/v1/auth/login", map[string]any{"username": s.Username, "password": s.Password, "client_id": s.PublicClientID, "audience": []string{v}})
			},
			"refresh_token": func() answer { return s.refresh(t, v) },
			"token": func() answer {
				return call(t, "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": v, "token_type_hint": v})
			},
			"min_position": func() answer {
				return call(t, "POST", s.HTTP+"/v1/auth/introspect", s.basic(), map[string]any{"token": in.text("access_token"), "min_position": v})
			},
			"page_token": func() answer {
				return call(t, "GET", s.HTTP+"/v1/sessions?page_token="+strings.NewReplacer("%", "%25", " ", "+", "\x00", "%00", "\\", "%5C", `"`, "%22", "\u2028", "%E2%80%A8", ";", "%3B", "?", "%3F").Replace(v), bearer, nil)
			},
			"old_password": func() answer {
				return call(t, "POST", s.HTTP+"/v1/account/password", bearer, map[string]any{"old_password": v, "new_password": phrase})
			},
			"basic": func() answer {
				r, err := http.NewRequest("POST", s.HTTP+"/v1/auth/introspect", strings.NewReader(`{"token":"x"}`))
				if err != nil {
					t.Fatal(err)
				}
				r.SetBasicAuth(v, v)
				r.Header.Set("Content-Type", "application/json")
				a, err := do(http.DefaultClient, r)
				if err != nil {
					t.Fatal(err)
				}
				return a
			},
		} {
			// An unknown token is revoked with 200 (RFC 7009); everything else is refused, and nothing is a fault of ours.
			a := send()
			if a.code >= 500 || a.code < 400 && name != "token" {
				t.Errorf("D20: %q as %s answered %d %s", v, name, a.code, a.raw)
			}
			if a.code >= 400 && (a.reason() == "" || !strings.Contains(a.raw, a.header.Get("X-Request-Id"))) {
				t.Errorf("R59: an error without its reason or its request's id: %s", a.raw)
			}
			for _, inside := range []string{"sqlite", "constraint", "syntax", "goroutine", ".go:", dir} {
				if strings.Contains(strings.ToLower(a.raw), inside) {
					t.Errorf("R59: %q as %s shows the inside: %s", v, name, a.raw)
				}
			}
		}
	}
	if after := count(); after != before {
		t.Errorf("D20: accounts, clients and live sessions were %s and are %s", before, after)
	}
	// The twin: the same sort of text where any text may stand is kept as it is.
	for _, name := range []string{`o'hara;--`, `$1$$`, `100%_`} {
		person(t, dir, name, phrase+` '; DROP TABLE accounts; --`)
		body := s.credentials(name, phrase+` '; DROP TABLE accounts; --`)
		body["device_name"] = `Robert'); DROP TABLE sessions;-- $1`
		a := s.say(t, from(t, "127.2.1.1"), "/v1/auth/login", body)
		if a.code != http.StatusOK {
			t.Fatalf("%s cannot sign in: %d %s", name, a.code, a.raw)
		}
		list := call(t, "GET", s.HTTP+"/v1/sessions", "Bearer "+a.text("access_token"), nil)
		if !strings.Contains(list.raw, `Robert'); DROP TABLE sessions;-- $1`) {
			t.Errorf("the device's name is not what it was: %s", list.raw)
		}
	}
}

// TestD21FiftyCreationsOfOneUsername runs fifty commands at once beside the server.
func TestD21FiftyCreationsOfOneUsername(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	start(t, dir)
	var mu sync.Mutex
	answers := map[string]int{}
	made := 0
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			out, err := command(fmt.Sprintf("%s %d\n", phrase, i), "account", "create", "-dir", dir, []string{"twin", "Twin", "TWIN"}[i%3])
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
				return
			}
			answers[out]++
		})
	}
	wg.Wait()
	if made != 1 || len(answers) != 1 {
		t.Errorf("D21: %d creations succeeded, the others said %v", made, answers)
	}
	if n := text(t, database(t, dir), `SELECT count(*) FROM accounts WHERE username LIKE 'twin'`); n != "1" {
		t.Errorf("D21: %s accounts of one name", n)
	}
}

// TestD22AStopInMidRotationIsDrained stops the server while sessions rotate over both doors.
func TestD22AStopInMidRotationIsDrained(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	f := flood(t, s.GRPC, nil, true)
	newest := make([]string, 16)
	var rotated atomic.Int64
	var wg sync.WaitGroup
	for i := range newest {
		newest[i] = s.login(t).text("refresh_token")
		wg.Go(func() {
			for {
				a, err := try(t.Context(), "POST", s.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": newest[i], "client_id": s.PublicClientID})
				if err != nil {
					return // the door is closed
				}
				if a.code != http.StatusOK {
					if a.code != http.StatusServiceUnavailable {
						t.Errorf("D22: a refresh in mid-stop answered %d %s", a.code, a.raw)
					}
					return
				}
				newest[i] = a.text("refresh_token")
				rotated.Add(1)
			}
		})
	}
	await(t, "sessions rotate", func() bool { return rotated.Load() > 50 })
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := <-s.exited
	s.exited <- err
	wg.Wait()
	if err != nil {
		t.Errorf("D22: after SIGTERM: %v\n%s", err, s.out)
	}
	f.wantClosed(t)
	if !f.goneAway.Load() {
		t.Error("D22: the gRPC door closed without GOAWAY")
	}
	if got := text(t, database(t, dir), `PRAGMA integrity_check`); got != "ok" {
		t.Errorf("D22: the database is %s", got)
	}
	s = start(t, dir)
	for i, token := range newest {
		if a := s.refresh(t, token); a.code != http.StatusOK {
			t.Errorf("D22: session %d is lost: %d %s", i, a.code, a.raw)
		}
	}
}
