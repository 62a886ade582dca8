package live

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/test/soak"
)

// person makes an account by the command line.
func person(t *testing.T, dir, username, password string) {
	t.Helper()
	operate(t, password+"\n", "account", "create", "-dir", dir, "--", username)
}

const phrase = "eleven wet umbrellas"

// shape is an answer as its receiver can compare it with another: the request's own id and the clock are left out, and a
// count of seconds is only whether there is one.
func (a answer) shape() map[string]any {
	h := maps.Clone(map[string][]string(a.header))
	delete(h, "X-Request-Id")
	delete(h, "Date")
	body := strings.ReplaceAll(a.raw, a.header.Get("X-Request-Id"), "ID")
	if a.code == http.StatusTooManyRequests {
		body = regexp.MustCompile(`[0-9]+ ?s`).ReplaceAllString(body, "N s")
		h["Retry-After"] = []string{"N"}
		delete(h, "Content-Length")
	}
	return map[string]any{"code": a.code, "header": h, "body": body}
}

// TestL01R49RefusedSignInsCannotBeToldApart compares all that a stranger sees, and counts the work behind it: each refusal
// is exactly one hash, by the same parameters (internal/password shows that), and a throttled one is none.
func TestL01R49RefusedSignInsCannotBeToldApart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	person(t, dir, "eve", phrase)
	operate(t, "", "account", "disable", "-dir", dir, "eve")
	c := from(t, "127.0.7.1")
	try := func(username, password string) (map[string]any, float64) {
		before := s.metric(t, "authsvc_hashing_done")
		a := s.say(t, c, "/v1/auth/login", s.credentials(username, password))
		return a.shape(), s.metric(t, "authsvc_hashing_done") - before
	}
	first, _ := try("nobody", phrase)
	if first["code"] != http.StatusUnauthorized {
		t.Errorf("an unknown name got %v", first)
	}
	for _, tt := range []struct{ name, username, password string }{
		{"L01 another unknown name", "nobody-else", phrase},
		{"L01 a wrong password", s.Username, phrase},
		{"L01 a disabled account with its right password", "eve", phrase},
		{"L01 a disabled account with a wrong one", "eve", phrase + "!"},
	} {
		got, hashes := try(tt.username, tt.password)
		if diff := cmp.Diff(first, got); diff != "" {
			t.Errorf("%s can be told from an unknown name (-unknown +this)\n%s", tt.name, diff)
		}
		if hashes != 1 {
			t.Errorf("%s cost %v hashes, want 1", tt.name, hashes)
		}
	}
	throttled := map[string]map[string]any{}
	for i, username := range []string{"nobody-there", s.Username, "eve"} {
		c = from(t, fmt.Sprintf("127.0.8%d.1", i)) // so that it is the account's count and not the network's
		for tries := range 15 {
			got, hashes := try(username, phrase+"?")
			if got["code"] == http.StatusUnauthorized && hashes == 1 {
				continue
			}
			if tries < 7 || hashes != 0 || got["code"] != http.StatusTooManyRequests {
				t.Fatalf("R50: after %d failures of %s: %v, %v hashes", tries, username, got, hashes)
			}
			throttled[username] = got
			break
		}
	}
	for username, got := range throttled {
		if diff := cmp.Diff(throttled["nobody-there"], got); diff != "" || len(throttled) != 3 {
			t.Errorf("L01: throttled, %s can be told from an unknown name (-unknown +this)\n%s", username, diff)
		}
	}
	await(t, "R50: the wait is over and the right password opens, the twin", func() bool {
		return s.say(t, c, "/v1/auth/login", s.credentials(s.Username, s.Password)).code == http.StatusOK
	})
}

// TestL02L13AStormOfSignInsIsShed sends far more sign-ins than can be hashed. Every refusal by password took exactly one
// hash and every shed call none, whether the name is known or not; other calls go on, and memory stays within its bound.
func TestL02L13AStormOfSignInsIsShed(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	in := s.login(t)
	idle, hashes := s.memory(t), s.metric(t, "authsvc_hashing_done")
	var mu sync.Mutex
	seen := map[string][]answer{}
	var wg sync.WaitGroup
	for i := range 60 {
		c := from(t, fmt.Sprintf("127.1.%d.1", i))
		wg.Go(func() {
			for try := range soak.Count(3, 30) {
				username := s.Username
				if i%2 == 0 { // always another name, which no failure before has throttled
					username = fmt.Sprintf("nobody-%d-%d", i, try)
				}
				body, _ := json.Marshal(s.credentials(username, phrase))
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.HTTP+"/v1/auth/login", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("Content-Type", "application/json")
				a, err := do(c, r)
				if err != nil {
					t.Error(err)
					return
				}
				key := fmt.Sprint(a.code, " ", a.reason(), " known: ", username == s.Username)
				mu.Lock()
				seen[key] = append(seen[key], a)
				mu.Unlock()
			}
		})
	}
	for range 20 { // the twin: what needs no hash is served at once
		if a := s.introspect(t, in.text("access_token")); a.json["active"] != true {
			t.Errorf("introspection beside the storm answered %d %s", a.code, a.raw)
		}
	}
	wg.Wait()
	hashed := len(seen["401 INVALID_CREDENTIALS known: true"]) + len(seen["401 INVALID_CREDENTIALS known: false"])
	if got := s.metric(t, "authsvc_hashing_done") - hashes; int(got) != hashed {
		t.Errorf("L02: %v hashes for %d answers that took one", got, hashed)
	}
	for key := range seen {
		if !strings.HasPrefix(key, "401 INVALID_CREDENTIALS") && !strings.HasPrefix(key, "429 OVERLOADED") && key != "429 RATE_LIMITED known: true" {
			t.Errorf("%d sign-ins got %s", len(seen[key]), key)
		}
	}
	known, unknown := seen["429 OVERLOADED known: true"], seen["429 OVERLOADED known: false"]
	if len(known) == 0 || len(unknown) == 0 {
		t.Fatalf("L13: nobody was shed: %v", slices.Collect(maps.Keys(seen)))
	}
	if diff := cmp.Diff(unknown[0].shape(), known[0].shape()); diff != "" {
		t.Errorf("L02: shed, a known name can be told from an unknown one (-unknown +known)\n%s", diff)
	}
	if a := known[0]; a.header.Get("Retry-After") == "" || !strings.Contains(a.raw, "RetryInfo") {
		t.Errorf("L13: a shed call is not told when to come again: %v %s", a.header, a.raw)
	}
	if now := s.memory(t); now > idle+2*19+64 {
		t.Errorf("L13: memory grew from %d to %d MiB", idle, now)
	}
	await(t, "L13: a sign-in within capacity, the twin, is served", func() bool {
		return s.say(t, from(t, "127.1.99.1"), "/v1/auth/login", s.credentials(s.Username, s.Password)).code == http.StatusOK
	})
}

func TestL03L05PasswordsAtTheDoor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	long := strings.Repeat("sixteen letters.", 4)
	const composed, decomposed = "cr\u00e8me br\u00fbl\u00e9e \u00e9toile", "cre\u0300me bru\u0302le\u0301e e\u0301toile"
	person(t, dir, "long", long)
	person(t, dir, "chef", composed)
	person(t, dir, "plain", "abcdefghijklmnopq rstu")
	for _, tt := range []struct {
		name, username, password string
		code                     int
		hashes                   float64
	}{
		{"L03 1 MB", s.Username, strings.Repeat("a", 1<<20), 413, 0},
		{"L03 257 code points", s.Username, strings.Repeat("é", 257), 400, 0},
		{"L03 257 code points for an unknown name", "nobody", strings.Repeat("é", 257), 400, 0},
		{"L03 more than 1 KiB", s.Username, strings.Repeat("\U0001f600", 257), 400, 0},
		{"L03 twin: 64 code points", "long", long, 200, 1},
		{"L03 R47 the first 63 of 64", "long", long[:63], 401, 1},
		{"L05 twin: the form it was set in", "chef", composed, 200, 1},
		{"L05 the decomposed form", "chef", decomposed, 200, 1},
		{"L05 full width", "plain", "\uff41bcdefghijklmnopq rstu", 401, 1},
		{"L05 R47 another case", "plain", "Abcdefghijklmnopq rstu", 401, 1},
	} {
		before := s.metric(t, "authsvc_hashing_done")
		a := s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(tt.username, tt.password))
		if hashes := s.metric(t, "authsvc_hashing_done") - before; a.code != tt.code || hashes != tt.hashes {
			t.Errorf("%s: %d %s after %v hashes, want %d after %v", tt.name, a.code, a.raw, hashes, tt.code, tt.hashes)
		}
	}
}

// TestL11R57AForgedAddressOpensNoFreshCounter spends a network's hundred failures under ever new forged addresses.
func TestL11R57AForgedAddressOpensNoFreshCounter(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	c := from(t, "127.0.20.1")
	forged := func(i int) []string {
		return [][]string{{"X-Forwarded-For", fmt.Sprintf("198.51.%d.7", i)}, {"X-Forwarded-For", "a"}, {"X-Real-Ip", fmt.Sprintf("198.51.%d.7", i)},
			{"Forwarded", fmt.Sprintf("for=198.51.%d.7", i)}, {"Grpc-Metadata-X-Forwarded-For", fmt.Sprintf("198.51.%d.7", i)}}[i%5]
	}
	for i := range 100 {
		if a := s.say(t, c, "/v1/auth/login", s.credentials(fmt.Sprintf("nobody-%d", i), phrase), forged(i)...); a.code != http.StatusUnauthorized {
			t.Fatalf("failure %d answered %d %s", i, a.code, a.raw)
		}
	}
	for i := range 5 {
		if a := s.say(t, c, "/v1/auth/login", s.credentials("nobody", phrase), forged(200+i)...); a.code != http.StatusTooManyRequests {
			t.Errorf("L11: with %v the spent network got %d %s", forged(200+i), a.code, a.raw)
		}
	}
	if a := s.say(t, from(t, "127.0.20.200"), "/v1/auth/login", s.credentials("nobody", phrase)); a.code != http.StatusTooManyRequests {
		t.Errorf("R50: a neighbour in the same /24 got %d %s", a.code, a.raw)
	}
	if a := s.say(t, from(t, "127.0.21.1"), "/v1/auth/login", s.credentials(s.Username, s.Password)); a.code != http.StatusOK {
		t.Errorf("the twin from another network got %d %s", a.code, a.raw)
	}
}

// TestR57L11ATrustedProxyIsBelieved is the other half: with a list of proxies the right-most address outside it counts.
func TestR57L11ATrustedProxyIsBelieved(t *testing.T) {
	t.Parallel()
	dir, d := stopped(t)
	s, _ := serve(t, dir, d, plain+"gateway: {trusted_proxies: [\"127.0.0.0/16\"]}\n", "http")
	for _, tt := range []struct{ name, from, forwarded, want string }{
		{"L11 twin: a trusted proxy's word", "127.0.0.1", "198.51.100.7", "198.51.100.7"},
		{"L11 the client's own word left of the proxy's", "127.0.0.1", "203.0.113.5, 198.51.100.7", "198.51.100.7"},
		{"L11 a hop that is not an address", "127.0.0.1", "198.51.100.7, a", "127.0.0.1"},
		{"L11 nothing that is an address", "127.0.0.1", "a", "127.0.0.1"},
		{"L11 the word of somebody who is no proxy", "127.9.0.1", "198.51.100.7", "127.9.0.1"},
	} {
		in := s.say(t, from(t, tt.from), "/v1/auth/login", s.credentials(s.Username, s.Password), "X-Forwarded-For", tt.forwarded)
		if got := s.address(t, in); got != tt.want {
			t.Errorf("%s: the session began at %q, want %q", tt.name, got, tt.want)
		}
	}
}

// address is where a login's session began, as its owner sees it.
func (s *server) address(t *testing.T, in answer) string {
	t.Helper()
	list := call(t, "GET", s.HTTP+"/v1/sessions", "Bearer "+in.text("access_token"), nil)
	ip, ok := current(list.raw)["ip_address"].(string)
	if !ok {
		t.Fatalf("login answered %s, sessions are %s", in.raw, list.raw)
	}
	return ip
}

// current is the caller's own session in a list of them, or nothing.
func current(list string) map[string]any {
	var l struct{ Sessions []map[string]any }
	if json.Unmarshal([]byte(list), &l) == nil {
		for _, m := range l.Sessions {
			if m["current"] == true {
				return m
			}
		}
	}
	return nil
}

// TestL14ClientsThatLeaveDuringHashingLeaveNothingBehind cuts connections in mid-login.
func TestL14ClientsThatLeaveDuringHashingLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	s.login(t)
	quiet := s.metric(t, "go_goroutines")
	body, err := json.Marshal(s.credentials(s.Username, s.Password))
	if err != nil {
		t.Fatal(err)
	}
	before := s.metric(t, "authsvc_hashing_done")
	for range soak.Count(1000, 10_000) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.HTTP, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST /v1/auth/login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	await(t, "every slot is free again", func() bool {
		return s.metric(t, "authsvc_hashing_running")+s.metric(t, "authsvc_hashing_queued") == 0
	})
	await(t, "no goroutine is left behind", func() bool { return s.metric(t, "go_goroutines") <= quiet+10 })
	if done := s.metric(t, "authsvc_hashing_done") - before; done < 1 {
		t.Error("no hash ran to its end: the test cut too early to show anything")
	}
	await(t, "the twin, a client that waits, signs in", func() bool {
		return s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password)).code == http.StatusOK
	})
}
