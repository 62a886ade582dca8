package live

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// reloads gives how often the server has read its configuration again, with an outcome.
func (s *server) reloads(t *testing.T, outcome string) int {
	t.Helper()
	a := call(t, "GET", s.Ops+"/metrics", "", nil)
	m := regexp.MustCompile(`(?m)^authsvc_config_reloads_total\{outcome="` + outcome + `"\} (\d+)$`).FindStringSubmatch(a.raw)
	if m == nil {
		t.Fatalf("no count of reloads that were %s:\n%s", outcome, a.raw)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// free gives how many failures of a name pass before it must wait. On a machine that takes as long for an attempt as the first wait is, that says
// nothing: another name is tried then.
func (s *server) free(t *testing.T, name string) (n int) {
	t.Helper()
	try := 0
	await(t, "the attempts come one upon the other", func() bool {
		try++
		last := time.Now() // before the newest failure
		for n = range 20 {
			sent := time.Now()
			a := call(t, "POST", s.HTTP+"/v1/auth/login", "", map[string]any{"username": fmt.Sprint(name, "-", try), "password": "not the right one", "client_id": s.PublicClientID})
			switch {
			case time.Since(last) >= time.Second: // the shortest wait
				return false
			case a.code == http.StatusTooManyRequests && a.reason() == "RATE_LIMITED":
				return true
			case a.code != http.StatusUnauthorized:
				t.Fatalf("a failed login is answered by %d %s", a.code, a.raw)
			}
			last = sent
		}
		return true
	})
	return n
}

// TestAHangupReadsTheConfigurationAgain changes the file of a running server, well and badly.
func TestAHangupReadsTheConfigurationAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := start(t, dir)
	first.stop(t)
	s, said := serve(t, dir, first.dev, plain+"log: {level: info}\n", "http")
	change := func(settings, outcome string) {
		t.Helper()
		n := s.reloads(t, outcome)
		configure(t, dir, plain+settings)
		if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		await(t, "the file is read again: "+outcome, func() bool { return s.reloads(t, outcome) == n+1 })
	}
	heard := func(words string) {
		t.Helper()
		await(t, "the log says "+words, func() bool { return strings.Contains(said.String(), words) })
	}
	if n := s.free(t, "nobody-1"); n != 10 {
		t.Fatalf("%d failures are free, before anything was changed", n)
	}
	change("limits: {account_failures: 3}\nlog: {level: info}\n", "ok")
	heard(`"applied":["limits.account_failures"]`)
	if n := s.free(t, "nobody-2"); n != 3 {
		t.Errorf("%d failures are free, where 3 are configured", n)
	}

	change("limits: {account_failures: 0}\nsession: {max_per_account: 0}\nlog: {level: error}\n", "refused")
	heard("limits.account_failures: is 0")
	heard("session.max_per_account: is 0")
	change("limits:\n  acount_failures: 5\n", "refused")
	heard("limits.acount_failures: is not a setting")
	if n := s.free(t, "nobody-3"); n != 3 {
		t.Errorf("%d failures are free after a broken file, where 3 held", n)
	}

	change("limits: {account_failures: 4}\nsession: {max_per_account: 7}\nlog: {level: info}\n", "restart_needed")
	heard("needs a restart: session.max_per_account")
	if n := s.free(t, "nobody-4"); n != 4 {
		t.Errorf("%d failures are free, where 4 are configured beside what needs a restart", n)
	}
	change("session: {max_per_account: 7}\nlog: {level: error}\n", "restart_needed") // it still does
	await(t, "that is said, too", func() bool { return strings.Count(said.String(), "needs a restart: session.max_per_account") == 2 })
	before := said.String()
	change("session: {max_per_account: 7}\nlog: {level: error}\n", "restart_needed")
	change("log: {level: info}\n", "ok") // the twin
	heard(`"applied":["log.level"]`)
	if first, _, _ := strings.Cut(strings.TrimPrefix(said.String(), before), "\n"); !strings.Contains(first, `"applied":["log.level"]`) {
		t.Errorf("at level error it says %s", first)
	}
	s.stop(t)
	heard("draining")
}

// TestTwoServersOnOneFile starts a second server by a configuration of its own, which names the file by a link.
func TestTwoServersOnOneFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first := start(t, dir)
	link := filepath.Join(t.TempDir(), "other.db")
	if err := os.Symlink(filepath.Join(dir, "authsvc.db"), link); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "second.yaml")
	text := fmt.Sprintf("issuer: %s\ndatabase: {path: %q}\nsecrets: {key_encryption_keys_file: %q, refresh_keys_file: %q}\n%s",
		first.Issuer, link, filepath.Join(dir, "kek.json"), filepath.Join(dir, "refresh.json"), plain)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := fmt.Sprintf("database.path: another server, process %d, serves %s: SQLite is for one server", first.cmd.Process.Pid, link)
	for _, args := range [][]string{{"serve"}, {"config", "check"}} {
		out, err := process(append(args, "-config", path)...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), refused) {
			t.Errorf("%s beside a server: %v\n%s", args, err, out)
		}
	}
	operate(t, "", "account", "list", "-config", path) // a command is no server
	first.login(t)
	first.kill(t)
	operate(t, "", "config", "check", "-config", path) // the twin: a server that was killed holds nothing
	serveBy(t, path, first.dev, "http")
}
