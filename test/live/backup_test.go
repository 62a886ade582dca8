package live

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/authsvc/authsvc/verify"
)

// TestD07ARestoredBackupBringsBackNothingThatWasRevoked takes a backup of a server under load, ends a session, rotates another's
// token, and restores. A verifier that was on the feed before meets the restored server; and so do the tokens.
func TestD07ARestoredBackupBringsBackNothingThatWasRevoked(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name                  string
		flags                 []string
		keepKeys, keepSession bool
	}{
		{"unless told otherwise", nil, false, false},
		{"the twin that keeps keys", []string{"-keep-keys"}, true, false},
		{"the twin that keeps sessions", []string{"-keep-sessions"}, false, true},
		{"the twin that keeps both", []string{"-keep-keys", "-keep-sessions"}, true, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := startHere(t, dir)
			var earlier []answer
			for range 5 {
				earlier = append(earlier, s.login(t))
			}
			w := watch(t, s, nil)
			w.ready(t)
			backup := filepath.Join(dir, "backup.db")
			rest := load(t, s)
			operate(t, "", "backup", "-dir", dir, backup)
			rest()
			holdsAll(t, backup, earlier)
			revoked, rotated := earlier[0], earlier[1]
			since := s.login(t)
			if a := s.refresh(t, rotated.text("refresh_token")); a.code != http.StatusOK {
				t.Fatalf("refresh: %d %s", a.code, a.raw)
			} else {
				rotated = a
			}
			operate(t, "", "session", "revoke", "-dir", dir, "--", revoked.text("session_id"))
			await(t, "the verifier knows what was revoked", func() bool { return errors.Is(w.says(t, revoked.text("access_token")), verify.ErrRevoked) })
			args := append([]string{"restore", "-dir", dir, "-yes", "-replace"}, append(tt.flags, backup)...)
			if out, err := command("", args...); err == nil || !strings.Contains(out, "the database is in use: stop the server") {
				t.Fatalf("beside a running server it said %q, %v", out, err)
			}
			s.stop(t)
			before := w.Status().Cursor
			operate(t, "", args...)
			s = start(t, dir, "-grpc", s.GRPC)

			next := s.login(t)
			await(t, "the verifier follows the restored server", func() bool {
				now := w.Status().Cursor // of another history
				return now != "" && now != before && w.says(t, next.text("access_token")) == nil
			})
			// What the verifier knew as revoked stays so, whatever the backup says.
			if err := w.says(t, revoked.text("access_token")); err == nil {
				t.Error("a token that was revoked before the restore is good")
			}
			lives := tt.keepKeys && tt.keepSession
			for _, token := range []string{rotated.text("access_token"), earlier[2].text("access_token")} {
				if err := w.says(t, token); (err == nil) != lives {
					t.Errorf("the verifier says of an older token: %v", err)
				}
				if a := s.introspect(t, token); (a.json["active"] == true) != lives {
					t.Errorf("the server says of an older token: %s", a.raw)
				}
			}
			if err := w.says(t, since.text("access_token")); err == nil && !lives {
				t.Error("a token of a session that began since is good")
			}
			for name, token := range map[string]string{"of the backup": earlier[3].text("refresh_token"), "redeemed since": rotated.text("refresh_token")} {
				want := http.StatusUnauthorized
				if tt.keepSession {
					want = http.StatusOK
				}
				a := s.refresh(t, token)
				if a.code != want {
					t.Errorf("a refresh token %s answered %d %s, want %d", name, a.code, a.raw, want)
				}
				if a.code == http.StatusOK {
					await(t, "the refreshed token is good", func() bool { return w.says(t, a.text("access_token")) == nil })
				}
			}
			if a := s.refresh(t, since.text("refresh_token")); a.code != http.StatusUnauthorized {
				t.Errorf("a refresh token of a session that the backup does not have answered %d %s", a.code, a.raw)
			}
		})
	}
}

// load logs in and refreshes until the function that it gives is called.
func load(t *testing.T, s *server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	begun := make(chan struct{}, 2)
	for range 2 {
		in := s.login(t)
		callers.Go(func() {
			for i := 0; ; i++ {
				if i == 1 {
					begun <- struct{}{}
				}
				a, err := try(ctx, http.MethodPost, s.HTTP+"/v1/auth/refresh", "", map[string]any{"refresh_token": in.text("refresh_token"), "client_id": s.PublicClientID})
				if ctx.Err() != nil {
					return
				}
				if err != nil || a.code != http.StatusOK {
					t.Errorf("beside a backup a refresh answered %d %s, %v", a.code, a.raw, err)
					return
				}
				in = a
			}
		})
	}
	for range 2 {
		<-begun
	}
	return func() {
		cancel()
		callers.Wait()
	}
}

// holdsAll looks for sessions whose login was answered before a copy was asked for.
func holdsAll(t *testing.T, path string, all []answer) {
	t.Helper()
	// Moved to a folder of its own, and back: a look at it with SQLite leaves files beside.
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "authsvc.db"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	db := database(t, dir)
	if got := text(t, db, `PRAGMA integrity_check`); got != "ok" {
		t.Errorf("the backup: %s", got)
	}
	for _, a := range all {
		if n := text(t, db, `SELECT COUNT(*) FROM sessions WHERE id = ? AND ended_at IS NULL`, a.text("session_id")); n != "1" {
			t.Errorf("the backup lacks session %s", a.text("session_id"))
		}
	}
}

// TestD11ABackupToAFullDiskFailsAlone has room for nothing.
func TestD11ABackupToAFullDiskFailsAlone(t *testing.T) {
	t.Parallel()
	dir, disk := t.TempDir(), smallDisk(t, "128k")
	s := start(t, dir)
	fill(t, filepath.Join(disk, "filler"))
	out, err := command("", "backup", "-dir", dir, filepath.Join(disk, "backup.db"))
	if err == nil || !strings.Contains(out, "no backup was made") || !strings.Contains(out, "full") && !strings.Contains(out, "no space") {
		t.Errorf("it said %q, %v", out, err)
	}
	if names, err := os.ReadDir(disk); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	s.login(t)
	if err := os.Remove(filepath.Join(disk, "filler")); err != nil {
		t.Fatal(err)
	}
	wide := smallDisk(t, "16m")
	operate(t, "", "backup", "-dir", dir, filepath.Join(wide, "backup.db")) // the twin
	if err := syscall.Mount("", wide, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if out, err := command("", "backup", "-dir", dir, filepath.Join(wide, "again.db")); err == nil || !strings.Contains(out, "read-only file system") {
		t.Errorf("onto a disk that is read alone it said %q, %v", out, err)
	}
}

// TestARestoreFindsAServerEvenOfAWreck destroys the file under a server that still runs.
func TestARestoreFindsAServerEvenOfAWreck(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	backup := filepath.Join(dir, "backup.db")
	operate(t, "", "backup", "-dir", dir, backup)
	f, err := os.OpenFile(filepath.Join(dir, "authsvc.db"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("no database any more"); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	args := []string{"restore", "-dir", dir, "-yes", "-replace", backup}
	if out, err := command("", args...); err == nil || !strings.Contains(out, "the database is in use") {
		t.Fatalf("beside a running server it said %q, %v", out, err)
	}
	s.kill(t)
	operate(t, "", args...)
	start(t, dir).login(t)
}

// TestD12ARestoreThatIsKilledLeavesTheOldDatabaseOrTheNew kills it at one moment after the other.
func TestD12ARestoreThatIsKilledLeavesTheOldDatabaseOrTheNew(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	s.login(t)
	s.stop(t)
	backup := filepath.Join(dir, "backup.db")
	operate(t, "", "backup", "-dir", dir, backup)
	begun := time.Now()
	operate(t, "", "restore", "-dir", dir, "-yes", "-replace", "-keep-sessions", backup)
	took := time.Since(begun)
	forget := func() { // the database is an old one again, and the disabled account tells it from a new one
		operate(t, "", "account", "disable", "-dir", dir, s.Username)
		db := database(t, dir)
		run(t, db, `DELETE FROM audit WHERE event = 'restore'`)
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
	forget()
	restored, killed := 0, 0
	for i := range 24 {
		cmd := process("restore", "-dir", dir, "-yes", "-replace", backup)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		death := time.AfterFunc(took*time.Duration(i+2)/10, func() { _ = cmd.Process.Kill() })
		err := cmd.Wait()
		death.Stop()
		whole := strings.Contains(operate(t, "", "audit", "list", "-dir", dir, "-event", "restore"), "kept nothing")
		account := operate(t, "", "account", "show", "-dir", dir, s.Username)
		if disabled := strings.Contains(account, "disabled"); whole == disabled {
			t.Fatalf("killed after %v it left something between: %s", took*time.Duration(i+2)/10, account)
		}
		if err == nil && !whole {
			t.Error("it succeeded and restored nothing")
		}
		if err != nil {
			killed++
		}
		if whole {
			restored++
			forget()
		}
	}
	t.Logf("of 24 restores %d were killed, and %d took place", killed, restored)
	operate(t, "", "restore", "-dir", dir, "-yes", "-replace", backup)
	if left, err := filepath.Glob(filepath.Join(dir, "authsvc.db.restoring*")); err != nil || len(left) > 0 {
		t.Errorf("there is left %q, %v", left, err)
	}
	start(t, dir).login(t)
}
