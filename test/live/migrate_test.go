package live

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// dumped reads the dump of the schema before this program's, and what its holders have.
func dumped(t *testing.T, engine string) (dump string, p past) {
	t.Helper()
	name := "../../internal/store/sqlstore/testdata/schema-0002." + engine
	text, err := os.ReadFile(name + ".sql")
	if err != nil {
		t.Fatal(err)
	}
	beside, err := os.ReadFile(name + ".json")
	if err == nil {
		err = json.Unmarshal(beside, &p)
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(text), p
}

// settle makes the folder that of the dump's installation; its configuration is written anew by the caller.
func (p past) settle(t *testing.T, dir string) dev {
	t.Helper()
	for name, text := range map[string][]byte{"kek.json": p.KEK, "refresh.json": p.RefreshKeys, "issuer": []byte(p.Issuer + "\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dev{Issuer: p.Issuer, PublicClientID: "app", Username: "ada", Password: phrase, ServiceClientID: p.ServiceID, ServiceClientSecret: p.Secret}
}

// served asks for what the holders of the dump's tokens must get, and gives what the honest ones have then.
func (p past) served(t *testing.T, s *server) (holding []string) {
	t.Helper()
	for _, token := range []string{p.Live, p.Rotated} {
		a := s.refresh(t, token)
		if a.code != http.StatusOK || s.introspect(t, a.text("access_token")).json["active"] != true {
			t.Errorf("D17: an honest refresh token of the version before got %d %s", a.code, a.raw)
		}
		holding = append(holding, a.text("refresh_token"))
	}
	for what, token := range map[string]string{"revoked": p.Revoked, "cut off": p.CutOff, "disabled": p.Disabled, "of a cut-off that is unfinished": p.Unfinished} {
		if a := s.refresh(t, token); a.code != http.StatusUnauthorized {
			t.Errorf("D17: one that was %s got %d %s", what, a.code, a.raw)
		}
	}
	return holding
}

type schemaState struct {
	Database int
	Steps    []struct {
		Name, State string
		Percent     int
	}
}

func migration(t *testing.T, config string) (s schemaState) {
	t.Helper()
	if err := json.Unmarshal([]byte(operate(t, "", "migrate", "status", "-config", config, "-o", "json")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestD17AServerMigratesItsSQLiteFileAndFillsInBesideTheCalls(t *testing.T) {
	t.Parallel()
	dump, p := dumped(t, "sqlite")
	dir := t.TempDir()
	d := p.settle(t, dir)
	loadSQLite(t, filepath.Join(dir, "authsvc.db"), dump)
	config := configure(t, dir, plain)
	if s := migration(t, config); s.Database != 2 {
		t.Fatalf("the dump has %+v", s)
	}
	s, _ := serveBy(t, config, d, "http")
	p.served(t, s)
	await(t, "nothing is left to be done", func() bool {
		now := migration(t, config)
		return now.Database == 3 && now.Steps[len(now.Steps)-1].State == "done"
	})
	if v := s.metric(t, "authsvc_schema_version"); v != 3 {
		t.Errorf("the server works by version %v", v)
	}
}

// TestD17ThreeReplicasServeThroughAMigration kills the first migrate up in the middle.
func TestD17ThreeReplicasServeThroughAMigration(t *testing.T) {
	t.Parallel()
	dump, p := dumped(t, "postgres")
	in := onPostgreSQL(t)
	d := p.settle(t, filepath.Dir(in.config))
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	_, settings, _ := strings.Cut(string(text), "\n")
	if err := os.WriteFile(in.config, []byte("issuer: "+p.Issuer+"\n"+settings), 0o600); err != nil {
		t.Fatal(err)
	}
	ask := func(query string) string {
		t.Helper()
		out, err := in.pg.SQL(t.Context(), "authsvc", query)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	ask("SET ROLE authsvc; " + dump)
	ask(`INSERT INTO revocations (kind, id, not_before, expires_at) SELECT 'jti', 'old' || n, 0, (extract(epoch FROM now()) * 1000000)::bigint + 900000000
		FROM generate_series(1, 6000) AS n`)
	// The rows come no further than to this one before the test lets them.
	_, err = in.pg.SQL(t.Context(), "authsvc", `CREATE TABLE held (); INSERT INTO held DEFAULT VALUES;
		CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$ BEGIN WHILE EXISTS (SELECT FROM held) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NEW; END $$;
		CREATE TRIGGER hold BEFORE UPDATE ON revocations FOR EACH ROW WHEN (OLD.id = 'old4000') EXECUTE FUNCTION hold()`)
	if err != nil {
		t.Fatal(err)
	}

	var replicas []*server
	for range 3 {
		s, said := serveBy(t, in.config, d, "http")
		if !strings.Contains(said.String(), "run authsvc migrate up") {
			t.Errorf("on the schema before it says %s", said)
		}
		if v := s.metric(t, "authsvc_schema_version"); v != 2 {
			t.Errorf("it works by version %v", v)
		}
		replicas = append(replicas, s)
	}
	holding := p.served(t, replicas[0])

	// People refresh at one replica after the other, and each service asks about every token.
	var people sync.WaitGroup
	over := make(chan struct{})
	for i := range holding {
		people.Go(func() {
			for turn := 0; ; turn++ {
				select {
				case <-over:
					return
				default:
				}
				s := replicas[(i+turn)%len(replicas)]
				a, err := try(t.Context(), "POST", s.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": holding[i], "client_id": "app"})
				if err != nil || a.code != http.StatusOK {
					t.Errorf("during the migration a refresh got %d %s, %v", a.code, a.raw, err)
					return
				}
				holding[i] = a.text("refresh_token")
				b, err := try(t.Context(), "POST", s.HTTP+"/v1/auth/introspect", s.basic(), map[string]any{"token": a.text("access_token")})
				if err != nil || b.json["active"] != true {
					t.Errorf("during the migration a token was introspected as %s, %v", b.raw, err)
					return
				}
			}
		})
	}
	up := process("migrate", "up", "-config", in.config)
	out, err := up.StdoutPipe()
	if err == nil {
		err = up.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	working := false
	for lines := bufio.NewScanner(out); !working && lines.Scan(); {
		working = strings.Contains(lines.Text(), "rows of revocations: ") && strings.HasSuffix(lines.Text(), "%")
	}
	if !working {
		t.Error("migrate up never came to the rows")
	}
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = up.Wait()
	half := migration(t, in.config)
	if last := half.Steps[len(half.Steps)-1]; half.Database != 3 || last.State == "done" || last.Percent == 0 {
		t.Errorf("kill -9 left %+v", half)
	}
	ask(`DELETE FROM held`)
	if said := operate(t, "", "migrate", "up", "-config", in.config); !strings.Contains(said, "rows of revocations: done") || strings.Contains(said, "index") {
		t.Errorf("the next one said %s", said)
	}
	for i, s := range replicas {
		await(t, fmt.Sprintf("replica %d notices", i), func() bool { return s.metric(t, "authsvc_schema_version") == 3 })
	}
	operate(t, "", "keys", "rotate", "-config", in.config, "-now")
	var set []struct{ KID, State string }
	if err := json.Unmarshal([]byte(operate(t, "", "keys", "list", "-o", "json", "-config", in.config)), &set); err != nil {
		t.Fatal(err)
	}
	close(over)
	people.Wait()
	for _, k := range set {
		if k.State == "retired" {
			operate(t, "", "keys", "revoke", k.KID, "-config", in.config)
		}
	}
	if left := ask(`SELECT count(*) FILTER (WHERE committed_at = 0) || ' of ' || (count(*) > 6000) FROM revocations`); left != "0 of true" {
		t.Errorf("without the time of their commit: %s", left)
	}
	for i, token := range holding {
		var a answer
		await(t, "the replica has read which key signs in the place of the one that was revoked", func() bool {
			a = replicas[2].refresh(t, token)
			return a.code != http.StatusServiceUnavailable
		})
		if a.code != http.StatusOK {
			t.Errorf("after it all session %d got %d %s", i, a.code, a.raw)
		}
	}
}
