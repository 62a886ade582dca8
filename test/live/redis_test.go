package live

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/store/redistest"
)

// tap stands between the servers and Redis, and counts what they send at a time, by what is in it.
type tap struct {
	address         string
	counts, notices atomic.Int64
}

func tapped(t *testing.T, target string) *tap {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &tap{address: l.Addr().String()}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { w.pass(ctx, from, target) })
		}
	})
	return w
}

func (w *tap) pass(ctx context.Context, from net.Conn, target string) {
	defer from.Close()
	to, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer to.Close()
	stop := context.AfterFunc(ctx, func() { _ = from.Close(); _ = to.Close() })
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() { relay(to, from, w.look) })
	wg.Go(func() { relay(from, to, func([]byte) {}) })
	wg.Wait()
}

func relay(to, from net.Conn, look func([]byte)) {
	defer to.Close()
	chunk := make([]byte, 64<<10)
	for {
		n, err := from.Read(chunk)
		if err != nil {
			return
		}
		look(chunk[:n])
		if _, err := to.Write(chunk[:n]); err != nil {
			return
		}
	}
}

func (w *tap) look(sent []byte) {
	switch sent = bytes.ToLower(sent); {
	case bytes.Contains(sent, []byte("eval")):
		w.counts.Add(1)
	case bytes.Contains(sent, []byte("publish")):
		w.notices.Add(1)
	}
}

// shared are three servers on one PostgreSQL and one Redis.
type shared struct {
	replicas
	r *redistest.Server
	w *tap
}

// withRedis adds settings to the configuration of an installation.
func (in installed) withRedis(t *testing.T, settings string) {
	t.Helper()
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(in.config, append(text, settings...), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestThreeReplicasOnOneRedis(t *testing.T) {
	t.Parallel()
	r, err := redistest.Start(t.Context(), "user authsvc on >horse-battery-staple ~authsvc:* &authsvc:* -@all +eval +evalsha +get +set +del +time +publish +subscribe +ping")
	if errors.Is(err, redistest.ErrMissing) {
		lacking(t, "%v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	s := shared{replicas: replicas{installed: onPostgreSQL(t)}, r: r, w: tapped(t, r.Address())}
	file := s.password + "-redis"
	if err := os.WriteFile(file, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.withRedis(t, fmt.Sprintf("redis: {addresses: [%q], username: authsvc, password_file: %q}\nlimits: {network_failures: 20, total_failures: 150}\ngateway: {trusted_proxies: [127.0.0.1/32]}\n", s.w.address, file))
	s.refusesToStart(t, "redis.password_file")
	if out, err := command("", "config", "check", "-config", s.config); err == nil || !strings.Contains(out, "redis.password_file") {
		t.Errorf("the check of this configuration ends with %v: %s", err, out)
	}
	if err := os.WriteFile(file, []byte("horse-battery-staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		one, _ := serveBy(t, s.config, s.dev, "http")
		s.s = append(s.s, one)
	}
	s.furnish(t, s.s...)
	s.up(t, 1)
	t.Run("each listens", s.listens)
	t.Run("a login is one round trip, a refresh and an introspection are none", s.roundTrips)
	t.Run("L09 L11 failures of one network are counted over all", s.oneNetwork)
	t.Run("L10 failures of one account are counted over all", s.oneAccount)
	t.Run("D01 without Redis nobody honest is refused and nothing fails", s.without)
	t.Run("L09 L10 a known device does not wait for guesses elsewhere", s.knownDevice)
}

// refusesToStart wants the start refused, with the setting's name.
func (s shared) refusesToStart(t *testing.T, setting string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := process("serve", "-config", s.config)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	if err := cmd.Wait(); err == nil || !strings.Contains(said.String(), setting) || strings.Contains(said.String(), "staple") {
		t.Errorf("a start that names %s was wanted, it ended with %v: %s", setting, err, said.String())
	}
}

// up waits until each server takes Redis for there, or for away.
func (s shared) up(t *testing.T, want float64) {
	t.Helper()
	for _, one := range s.s {
		await(t, fmt.Sprintf("authsvc_redis_up is %v", want), func() bool { return one.metric(t, "authsvc_redis_up") == want })
	}
}

func (s shared) cli(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.r.CLI(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (s shared) listens(t *testing.T) {
	in := s.s[0].login(t)
	await(t, "three listen", func() bool {
		channels := strings.Fields(s.cli(t, "PUBSUB", "CHANNELS", "authsvc:*"))
		return len(channels) == 1 && strings.HasSuffix(s.cli(t, "PUBSUB", "NUMSUB", channels[0]), "3")
	})
	before := s.w.notices.Load()
	if a := call(t, "POST", s.s[0].HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")}); a.code != http.StatusOK {
		t.Fatal(a.raw)
	}
	await(t, "a revocation is announced", func() bool { return s.w.notices.Load() > before })
	for _, one := range s.s {
		await(t, "what was revoked is refused", func() bool { return one.introspect(t, in.text("access_token")).json["active"] == false })
	}
}

// roundTrips takes the least of several times: a replica of which nobody asked anything for a while asks Redis whether it is there, and where
// the machine is busy Redis may be late.
func (s shared) roundTrips(t *testing.T) {
	counted := func(want int64, what string, do func()) {
		t.Helper()
		await(t, fmt.Sprintf("%s takes %d round trips to Redis and no notice", what, want), func() bool {
			s.up(t, 1)
			before, notices := s.w.counts.Load(), s.w.notices.Load()
			do()
			return s.w.counts.Load()-before == want && s.w.notices.Load() == notices
		})
	}
	for _, one := range s.s {
		var in answer
		counted(1, "a login", func() { in = one.login(t) })
		counted(0, "a refresh", func() { in = one.refresh(t, in.text("refresh_token")) })
		counted(0, "an introspection", func() { one.introspect(t, in.text("access_token")) })
		counted(1, "a failed login", func() { s.attempt(t, one, "nobody", "wrong password", "192.0.2.1") })
	}
}

// attempt signs in from an address that a trusted proxy tells, and gives the code.
func (s shared) attempt(t *testing.T, one *server, name, password, from string) int {
	t.Helper()
	a, err := again(t.Context(), answer.undecided, func() (answer, error) {
		return one.say(t, http.DefaultClient, "/v1/auth/login", one.credentials(name, password), "X-Forwarded-For", from), nil
	})
	if err != nil || a.code >= 500 {
		t.Errorf("a login as %s is answered with %d %s", name, a.code, a.raw)
	}
	return a.code
}

// ruled is an attempt, and whether Redis was there for it: on a busy machine its answer may be late, and then the replica decides alone, and
// nobody knows what Redis has counted.
func (s shared) ruled(t *testing.T, one *server, name, password, from string) (code int, ruled bool) {
	t.Helper()
	missed := func() float64 {
		return one.metric(t, "authsvc_redis_calls_total", `outcome="failed"`) + one.metric(t, "authsvc_redis_calls_total", `outcome="away"`)
	}
	s.up(t, 1)
	before := missed()
	code = s.attempt(t, one, name, password, from)
	return code, missed() == before
}

func (s shared) oneNetwork(t *testing.T) {
	third := 0
	await(t, "twenty failures of a network are counted", func() bool { // of another one, where it is not known how many were
		third++
		for i := range 20 {
			code, ruled := s.ruled(t, s.s[i%3], fmt.Sprint("nobody-", third, "-", i), "wrong password", fmt.Sprintf("203.0.%d.%d", third, i))
			switch {
			case !ruled:
				return false
			case code != http.StatusUnauthorized:
				t.Fatalf("failure %d of a network is answered with %d", i+1, code)
			}
		}
		return true
	})
	spent := fmt.Sprintf("203.0.%d.", third)
	for i, one := range s.s {
		for _, from := range []string{spent + "200", "198.51.100.7, " + spent + "9", "a, " + spent + "9"} { // L11: its own words do not help
			await(t, "Redis decides", func() bool {
				code, ruled := s.ruled(t, one, "ada", phrase, from)
				if ruled && code != http.StatusTooManyRequests {
					t.Errorf("L09: beyond twenty failures replica %d answers %q with %d", i, from, code)
				}
				return ruled
			})
		}
		if code := s.attempt(t, one, "ada", phrase, "198.51.100.7"); code != http.StatusOK {
			t.Errorf("the twin from another network is answered with %d", code)
		}
	}
}

func (s shared) oneAccount(t *testing.T) {
	name := ""
	await(t, "thirty failures of an account are counted", func() bool { // of another one, where it is not known how many were
		name += "eve"
		operate(t, phrase+"\n", "account", "create", "-config", s.config, name)
		refused, passed := 0, 0
		for i := range 30 { // each by itself would let ten pass
			code, ruled := s.ruled(t, s.s[i%3], name, "wrong password", fmt.Sprintf("10.%d.%d.1", len(name), i))
			switch {
			case !ruled:
				return false
			case code == http.StatusUnauthorized:
				passed++
			case code == http.StatusTooManyRequests:
				refused++
			default:
				t.Errorf("failure %d is answered with %d", i+1, code)
			}
		}
		if refused < 10 || passed < 10 {
			t.Errorf("of 30 failures of one account %d passed and %d were refused", passed, refused)
		}
		return true
	})
	await(t, "its owner is let in after the wait", func() bool { return s.attempt(t, s.s[0], name, phrase, "10.2.0.1") == http.StatusOK })
}

func (s shared) without(t *testing.T) {
	for name, f := range map[string]struct{ harm, mend func() error }{
		"killed":      {s.r.Kill, func() error { return s.r.Run(t.Context()) }},
		"black-holed": {s.r.Pause, s.r.Resume},
	} {
		if err := f.harm(); err != nil {
			t.Fatal(err)
		}
		for i := range 9 {
			if code := s.attempt(t, s.s[i%3], "ada", phrase, "198.51.100.7"); code != http.StatusOK {
				t.Errorf("D01: %s: a login is answered with %d", name, code)
			}
		}
		s.up(t, 0)
		if code := s.attempt(t, s.s[0], "nobody-"+name, "wrong password", "192.0.2.1"); code != http.StatusUnauthorized {
			t.Errorf("D01: %s: a failed login is answered with %d", name, code)
		}
		late, _ := serveBy(t, s.config, s.s[0].dev, "http") // starts without Redis
		if code := s.attempt(t, late, "ada", phrase, "198.51.100.7"); code != http.StatusOK || late.metric(t, "authsvc_redis_up") != 0 {
			t.Errorf("D01: %s: one that starts now answers a login with %d", name, code)
		}
		if err := f.mend(); err != nil {
			t.Fatal(err)
		}
		s.up(t, 1)
		late.stop(t)
	}
}

// fromDevice signs ada in with a device token, from an address that the trusted proxy tells, and gives the code and the next token.
func (s shared) fromDevice(t *testing.T, one *server, device, from string) (int, string) {
	t.Helper()
	a, err := again(t.Context(), answer.undecided, func() (answer, error) {
		return one.say(t, http.DefaultClient, "/v1/auth/login", one.credentials("ada", phrase), "X-Forwarded-For", from, "Authsvc-Device", device), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return a.code, a.header.Get("Authsvc-Device")
}

func (s shared) knownDevice(t *testing.T) {
	s.up(t, 1)
	code, device := s.fromDevice(t, s.s[0], "", "10.3.0.1")
	if code != http.StatusOK || device == "" {
		t.Fatalf("a login is answered with %d, and the device token %q", code, device)
	}
	for i := 0; s.attempt(t, s.s[i%3], "ada", "wrong password", fmt.Sprintf("10.4.%d.1", i)) != http.StatusTooManyRequests; i++ {
		if i == 100 {
			t.Fatal("a hundred failures are free")
		}
	}
	for i, one := range s.s {
		if code, _ := s.fromDevice(t, one, device, "10.4.0.1"); code != http.StatusOK {
			t.Errorf("at replica %d the known device is answered with %d", i, code)
		}
	}
	await(t, "the twin: eve is let in", func() bool { return s.attempt(t, s.s[0], "eve", phrase, "10.6.0.1") == http.StatusOK })
	guesses := 0
	for i, one := range s.s { // L09: everybody's names are guessed at, from everywhere, one each
		await(t, "devices that nobody knows are refused", func() bool {
			guesses++
			s.attempt(t, s.s[guesses%3], fmt.Sprint("anybody-", guesses), "wrong password", fmt.Sprintf("10.5.%d.1", guesses%256))
			return s.attempt(t, one, "eve", phrase, "10.6.0.1") == http.StatusTooManyRequests
		})
		if code, _ := s.fromDevice(t, one, device, "10.6.0.1"); code != http.StatusOK {
			t.Errorf("L09: at replica %d the known device is answered with %d", i, code)
		}
	}
}
