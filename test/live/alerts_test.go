//go:build soak

package live

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/store/redistest"
)

// caused is an installation with everything that alerts are about, watched by a real Prometheus with the alerts that we ship.
type caused struct {
	replicas
	redis      *redistest.Server
	prometheus string
	report     []string
}

// TestAlertsAreCausedAndFollowed causes one alert after the other by its fault, runs what the runbook has its reader run, heals as the runbook
// says, and waits until Prometheus has taken the alert back. The alerts are those of deploy/prometheus but for their patience: every
// "for" is 4 s, and rates are taken over 30 s.
func TestAlertsAreCausedAndFollowed(t *testing.T) {
	c := &caused{replicas: replicas{installed: onPostgreSQL(t, "fsync=on", "full_page_writes=on")}}
	dir := filepath.Dir(c.config)
	cert, key, _ := certificateFor(t, dir, 90*24*time.Hour)
	c.reword(t, `grpc: {address: "127.0.0.1:0"}`, fmt.Sprintf(`grpc: {address: "127.0.0.1:0", tls: {cert_file: %q, key_file: %q}}`, cert, key))
	var lines string
	c.redis, lines = c.onRedis(t)
	c.withRedis(t, lines+"gateway: {trusted_proxies: [127.0.0.1/32]}\n")
	for range 3 {
		s, _ := serveBy(t, c.config, c.dev, "http")
		c.s = append(c.s, s)
	}
	c.furnish(t, c.s...)
	c.watch(t)

	c.cause(t, "PostgreSQL is killed", []string{"AuthsvcNotReady", "AuthsvcRevocationLag"}, c.pg.Kill, func(t *testing.T) {
		c.doctor(t, 1, "database", "problem")
		if out, err := c.pg.SQL(t.Context(), "postgres", "SELECT pg_is_in_recovery()"); err == nil {
			t.Errorf("psql answers %s", out)
		}
	}, func() error { return c.pg.Run(t.Context()) })
	c.cause(t, "a replica is stopped (SIGSTOP)", []string{"AuthsvcReplicaDown"}, func() error { return c.s[0].cmd.Process.Signal(syscall.SIGSTOP) }, func(t *testing.T) {
		eventually(t, "authsvc instances says that it is silent", func() bool {
			silent := 0
			for _, i := range c.instances(t) {
				if !i.Live {
					silent++
				}
			}
			return silent == 1
		})
		c.doctor(t, 0, "servers", "warning", "was last heard of")
	}, func() error { return c.s[0].cmd.Process.Signal(syscall.SIGCONT) })
	c.cause(t, "two of three replicas are stopped", []string{"AuthsvcTooFewReplicas"}, c.signal(syscall.SIGSTOP, 0, 1), func(t *testing.T) {
		operate(t, "", "config", "check", "-config", c.config) // the configuration is not the reason
		c.doctor(t, either, "database", "ok")                  // who was stopped has not read the log for as long, which may be a problem or has passed
	}, c.signal(syscall.SIGCONT, 0, 1))
	c.cause(t, "Redis is killed", []string{"AuthsvcRedisAway"}, c.redis.Kill, func(t *testing.T) {
		c.doctor(t, 0, "redis", "warning", "Redis is away", "start it")
		operate(t, "", "config", "check", "-config", c.config) // the settings are not the reason
		c.s[1].login(t)                                        // nobody notices
	}, func() error { return c.redis.Run(t.Context()) })
	good, err := os.ReadFile(c.config)
	if err != nil {
		t.Fatal(err)
	}
	hangup := c.signal(syscall.SIGHUP, 0, 1, 2)
	rewrite := func(text string) func() error {
		return func() error {
			if err := os.WriteFile(c.config, []byte(text), 0o600); err != nil {
				return err
			}
			return hangup()
		}
	}
	c.cause(t, "a broken configuration is read", []string{"AuthsvcConfigRefused"}, rewrite(string(good)+"limits: {acount_failures: 3}\n"), func(t *testing.T) {
		if out, err := command("", "config", "check", "-config", c.config); err == nil || !strings.Contains(out, "limits.acount_failures: is not a setting") {
			t.Errorf("config check says %v: %s", err, out)
		}
	}, rewrite(string(good)))
	c.cause(t, "a certificate with an hour left", []string{"AuthsvcCertificateExpires"}, func() error { certificateFor(t, dir, time.Hour); return nil }, func(t *testing.T) {
		c.doctor(t, 1, "certificates", "problem", "grpc.tls")
	}, func() error { certificateFor(t, dir, 90*24*time.Hour); return nil })
	f := &guesser{c: c}
	c.cause(t, "a flood of sign-ins", []string{"AuthsvcLoginsShed"}, f.begin, func(t *testing.T) {
		if out := operate(t, "", "audit", "list", "-config", c.config, "-event", "login", "-since", "10m", "-limit", "200"); strings.Count(out, "denied") < 5 {
			t.Errorf("the audit log says\n%s", out)
		}
	}, f.end)
	c.cause(t, "refresh tokens are used twice", []string{"AuthsvcRefreshReuse"}, func() error { c.steal(t, 16); return nil }, func(t *testing.T) {
		if out := operate(t, "", "audit", "list", "-config", c.config, "-event", "refresh.reuse", "-since", "1h"); strings.Count(out, "refresh.reuse") < 16 {
			t.Errorf("the audit log says\n%s", out)
		}
		operate(t, "", "revoke", "-config", c.config, "-sub", "ada")
	}, func() error { return nil })
	t.Logf("%d faults were caused, followed by the runbook and healed:\n%s", len(c.report), strings.Join(c.report, "\n"))
}

// signal gives a fault: these replicas get a signal.
func (c *caused) signal(sig syscall.Signal, which ...int) func() error {
	return func() error {
		for _, i := range which {
			if err := c.s[i].cmd.Process.Signal(sig); err != nil {
				return err
			}
		}
		return nil
	}
}

// either is no code of the doctor's: whether there is a problem is not what is asked.
const either = -1

// doctor runs it as the runbook says.
func (c *caused) doctor(t *testing.T, code int, check, level string, words ...string) {
	t.Helper()
	d := examine(t, "-config", c.config)
	if code != either && d.code != code {
		t.Errorf("the doctor ends with %d, not %d\n%s", d.code, code, d.text)
	}
	d.says(t, check, level, words...)
}

// watch starts Prometheus.
func (c *caused) watch(t *testing.T) {
	t.Helper()
	path, err := exec.LookPath("prometheus")
	if err != nil {
		lacking(t, "prometheus is not installed (Debian: prometheus)")
	}
	dir := t.TempDir()
	rules, err := os.ReadFile("../../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	rules = regexp.MustCompile(`(?m)^(\s+for:) .*$`).ReplaceAll(rules, []byte("$1 4s"))
	rules = regexp.MustCompile(`\[\d+m\]`).ReplaceAll(rules, []byte("[30s]"))
	var targets []string
	for _, s := range c.s {
		targets = append(targets, strconv.Quote(strings.TrimPrefix(s.Ops, "http://")))
	}
	settings := "global: {scrape_interval: 2s, scrape_timeout: 2s, evaluation_interval: 1s}\nrule_files: [alerts.yaml]\nscrape_configs:\n" +
		"  - job_name: authsvc\n    static_configs: [{targets: [" + strings.Join(targets, ", ") + "]}]\n"
	for name, text := range map[string][]byte{"alerts.yaml": rules, "prometheus.yaml": []byte(settings)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	said := &speech{}
	cmd := exec.Command(path, "--config.file="+filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	cmd.Stdout, cmd.Stderr, cmd.Dir = said, said, dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c.prometheus = "http://" + address
	eventually(t, "Prometheus has looked at all three", func() bool {
		a, err := try(t.Context(), "GET", c.prometheus+"/api/v1/query?query=count(authsvc_ready)", "", nil)
		return err == nil && strings.Contains(a.raw, `"12"`)
	})
	eventually(t, "nothing is wrong at first", func() bool { return len(c.alerts(t)) == 0 })
}

// alerts is what Prometheus says of each: pending or firing.
func (c *caused) alerts(t *testing.T) map[string]string {
	t.Helper()
	a := call(t, "GET", c.prometheus+"/api/v1/alerts", "", nil)
	var said struct {
		Data struct {
			Alerts []struct {
				Labels map[string]string
				State  string
			}
		}
	}
	if err := json.Unmarshal([]byte(a.raw), &said); err != nil {
		t.Fatalf("%v: %s", err, a.raw)
	}
	all := map[string]string{}
	for _, alert := range said.Data.Alerts {
		if name := alert.Labels["alertname"]; all[name] != "firing" {
			all[name] = alert.State
		}
	}
	return all
}

// cause does one fault from its beginning to its end.
func (c *caused) cause(t *testing.T, what string, names []string, fault func() error, follow func(*testing.T), heal func() error) {
	t.Helper()
	began := time.Now()
	seconds := func() float64 { return time.Since(began).Seconds() }
	if err := fault(); err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("  %-36s", what)
	for _, name := range names {
		eventually(t, name+" fires, since "+what, func() bool { return c.alerts(t)[name] == "firing" })
		line += fmt.Sprintf(" %s fires after %.0f s,", name, seconds())
	}
	follow(t)
	line += fmt.Sprintf(" the runbook is followed by %.0f s", seconds())
	began = time.Now()
	if err := heal(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is well again after "+what, func() bool { return len(c.alerts(t)) == 0 })
	c.report = append(c.report, line+fmt.Sprintf("; healed, all is quiet after %.0f s", seconds()))
	t.Log(c.report[len(c.report)-1])
}

// eventually waits longer than await, and asks less often: Prometheus looks every other second.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	late := time.NewTimer(2 * time.Minute)
	defer late.Stop()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-late.C:
			t.Fatalf("waited in vain until %s", what)
		case <-tick.C:
		}
	}
}

// steal has two parties hold the refresh tokens of n sessions.
func (c *caused) steal(t *testing.T, n int) {
	t.Helper()
	for range n {
		in := c.s[0].login(t)
		first := c.s[1].refresh(t, in.text("refresh_token"))
		c.s[2].refresh(t, first.text("refresh_token"))
		a := c.s[0].say(t, http.DefaultClient, "/v1/auth/refresh", map[string]any{"refresh_token": in.text("refresh_token"), "client_id": "app"}, "User-Agent", "somebody else's")
		if a.code != http.StatusUnauthorized || a.reason() != "REFRESH_REUSED" {
			t.Fatalf("a refresh token of before its successor's successor, from elsewhere, answered %d %s", a.code, a.raw)
		}
	}
}

// guesser tries names that nobody has, each from another network, as fast as it is answered.
type guesser struct {
	c    *caused
	n    atomic.Int64
	stop chan struct{}
	wg   sync.WaitGroup
}

func (g *guesser) begin() error {
	g.stop = make(chan struct{})
	for i := range 150 {
		s := g.c.s[i%3]
		g.wg.Go(func() {
			for {
				select {
				case <-g.stop:
					return
				default:
				}
				n := g.n.Add(1)
				body := fmt.Sprintf(`{"username":"guess-%d","password":"not the right one","client_id":"app"}`, n)
				r, err := http.NewRequest(http.MethodPost, s.HTTP+"/v1/auth/login", strings.NewReader(body))
				if err != nil {
					return
				}
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("X-Forwarded-For", fmt.Sprintf("%d.%d.%d.7", 20+n>>16, n>>8&255, n&255))
				if _, err := do(http.DefaultClient, r); err != nil {
					return
				}
			}
		})
	}
	return nil
}

func (g *guesser) end() error {
	close(g.stop)
	g.wg.Wait()
	return nil
}
