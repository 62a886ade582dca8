package verify_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/verify"
)

const setURL = "https://auth.example/.well-known/jwks.json"

// endpoint answers in the place of a network, inside a bubble.
type endpoint struct {
	mu    sync.Mutex
	calls []string
	reply func(*http.Request) (*http.Response, error)
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	e.mu.Lock()
	e.calls = append(e.calls, r.URL.String())
	reply := e.reply
	e.mu.Unlock()
	return reply(r)
}

func (e *endpoint) becomes(reply func(*http.Request) (*http.Response, error)) {
	e.mu.Lock()
	e.reply = reply
	e.mu.Unlock()
}

func (e *endpoint) count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.calls)
}

func answer(status int, body []byte) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader(body)), Request: r}, nil
	}
}

func redirect(to string) func(*http.Request) (*http.Response, error) {
	return func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: http.StatusFound, Header: http.Header{"Location": {to}}, Body: http.NoBody, Request: r}, nil
	}
}

// start runs a source in the bubble until the test ends.
func start(t *testing.T, e *endpoint, change func(*verify.JWKSOptions)) *verify.JWKS {
	t.Helper()
	o := verify.JWKSOptions{URL: setURL, HTTPClient: &http.Client{Transport: e}, Logger: slog.New(slog.DiscardHandler)}
	if change != nil {
		change(&o)
	}
	j, err := verify.NewJWKS(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run gave %v", err)
		}
	})
	return j
}

func ours() []byte { return jwks(jwk("key-1", &ourKey().PublicKey)) }

// both is what the issuer publishes after a rotation.
func both() []byte {
	return jwks(jwk("key-1", &ourKey().PublicKey), jwk("key-2", &otherKey().PublicKey))
}

// bubble runs the test in its own time; the keys are made outside, since making them takes real time.
func bubble(t *testing.T, test func(*testing.T)) {
	t.Helper()
	t.Parallel()
	ourKey()
	otherKey()
	synctest.Test(t, test)
}

func wantKey(t *testing.T, j *verify.JWKS, kid string, want error) {
	t.Helper()
	if _, err := j.Key(context.Background(), kid); !errors.Is(err, want) {
		t.Errorf("%s: got %v, want %v", kid, err, want)
	}
}

func TestR32NothingIsVerifiedBeforeTheFirstSet(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: answer(503, nil)}
		j := start(t, e, nil)
		synctest.Wait()
		wantKey(t, j, "key-1", verify.ErrNotReady)
		e.becomes(answer(200, ours()))
		<-j.Ready()
		wantKey(t, j, "key-1", nil)
		if s := j.Stats(); s.Failures != 1 || s.Fetches != 2 || s.FetchedAt.IsZero() {
			t.Errorf("stats %+v", s)
		}
	})
}

func TestJ27BadAnswersLeaveTheLastGoodSet(t *testing.T) {
	late := func(r *http.Request) (*http.Response, error) {
		select {
		case <-time.After(30 * time.Second):
			return answer(200, both())(r)
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
	}
	for name, bad := range map[string]func(*http.Request) (*http.Response, error){
		"J27 500":                      answer(500, []byte("oops")),
		"J27 500 with a set":           answer(500, jwks(jwk("key-2", &otherKey().PublicKey))),
		"J27 30 s late":                late,
		"J27 10 MB":                    answer(200, append(ours(), bytes.Repeat([]byte(" "), 10<<20)...)),
		"J27 just over 1 MiB":          answer(200, append(ours(), bytes.Repeat([]byte(" "), 1<<20)...)),
		"J27 HTML":                     answer(200, []byte("<html></html>")),
		"J27 empty set":                answer(200, []byte(`{"keys":[]}`)),
		"J27 redirect to 10.0.0.1":     redirect("http://10.0.0.1/jwks"),
		"J27 redirect to another host": redirect("https://evil.example/jwks"),
		"J27 redirect to http":         redirect("http://auth.example/jwks"),
		"J27 redirect to another port": redirect("https://auth.example:8443/jwks"),
		"J27 redirects without end":    redirect(setURL),
		"J27 connection refused":       func(*http.Request) (*http.Response, error) { return nil, errors.New("refused") },
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				e := &endpoint{reply: answer(200, ours())}
				j := start(t, e, nil)
				<-j.Ready()
				e.becomes(bad)
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				wantKey(t, j, "key-1", nil)
				for _, u := range e.calls {
					if u != setURL {
						t.Errorf("R64: %s was called", u)
					}
				}
				if s := j.Stats(); s.Failures == 0 || s.Failures > 30 {
					t.Errorf("%d failures in ten minutes", s.Failures)
				}
				e.becomes(answer(200, both()))
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				wantKey(t, j, "key-2", nil)
			})
		})
	}
}

func TestARedirectOnTheSameHostIsFollowed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: func(r *http.Request) (*http.Response, error) {
			if strings.HasSuffix(r.URL.Path, "/moved") {
				return answer(200, ours())(r)
			}
			return redirect("/moved")(r)
		}}
		<-start(t, e, nil).Ready()
	})
}

func TestASetThatIsTooOldIsGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: answer(200, ours())}
		j := start(t, e, func(o *verify.JWKSOptions) { o.MaxStale = time.Hour })
		<-j.Ready()
		e.becomes(answer(500, nil))
		time.Sleep(50 * time.Minute)
		synctest.Wait()
		wantKey(t, j, "key-1", nil)
		time.Sleep(15 * time.Minute)
		synctest.Wait()
		wantKey(t, j, "key-1", verify.ErrNotReady)
		e.becomes(answer(200, ours()))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		wantKey(t, j, "key-1", nil)
	})
}

func TestJ28AWithdrawnKeyFailsWithinOneRefresh(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: answer(200, both())}
		j := start(t, e, nil)
		<-j.Ready()
		v := newVerifier(t, func(o *verify.Options) { o.Keys = j })
		token := mint(t, header, payload)
		mustBeCached(t, v, token)
		e.becomes(answer(200, jwks(jwk("key-2", &otherKey().PublicKey))))
		time.Sleep(5*time.Minute + 30*time.Second)
		synctest.Wait()
		if _, err := v.Verify(t.Context(), token); !errors.Is(err, verify.ErrKeyUnknown) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAKeyThatStaysKeepsItsIdentity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: answer(200, ours())}
		j := start(t, e, nil)
		<-j.Ready()
		before, _ := j.Key(t.Context(), "key-1")
		e.becomes(answer(200, both()))
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if after, err := j.Key(t.Context(), "key-1"); err != nil || after != before {
			t.Errorf("the key was replaced: %v", err)
		}
	})
}

func TestAnUnknownKeyIsFetchedAtOnceAndThenFound(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: answer(200, ours())}
		j := start(t, e, nil)
		<-j.Ready()
		e.becomes(answer(200, both()))
		began := time.Now()
		wantKey(t, j, "key-2", nil)
		if waited := time.Since(began); waited > time.Second || e.count() != 2 {
			t.Errorf("it took %s and %d fetches", waited, e.count())
		}
	})
}

func TestJ26RandomKidsFetchAtMostOnceIn30Seconds(t *testing.T) {
	const each = 10_000 // a second
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: answer(200, ours())}
		j := start(t, e, func(o *verify.JWKSOptions) { o.RefreshEvery = time.Hour })
		<-j.Ready()
		for second := range 60 {
			for i := range each {
				wantKey(t, j, numbered("random-%d", each*second+i), verify.ErrKeyUnknown)
			}
			wantKey(t, j, "key-1", nil)
			time.Sleep(time.Second)
		}
		if n := e.count(); n != 3 {
			t.Errorf("%d fetches in a minute: one to begin with, two for the unknown were due", n)
		}
	})
}

func TestJ26FewWaitForTheFetchAndTheOthersAreAnswered(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: answer(200, ours())}
		j := start(t, e, nil)
		<-j.Ready()
		e.becomes(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		var wg sync.WaitGroup
		var mu sync.Mutex
		atOnce := 0
		for range 1000 {
			wg.Go(func() {
				began := time.Now()
				wantKey(t, j, "unknown", verify.ErrKeyUnknown)
				if time.Since(began) == 0 {
					mu.Lock()
					atOnce++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		if atOnce < 1000-64 {
			t.Errorf("only %d of 1000 were answered at once", atOnce)
		}
	})
}

func TestACallerThatLeavesDoesNotWait(t *testing.T) {
	bubble(t, func(t *testing.T) {
		e := &endpoint{reply: answer(200, ours())}
		j := start(t, e, nil)
		<-j.Ready()
		e.becomes(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		v := newVerifier(t, func(o *verify.Options) { o.Keys = j })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := v.Verify(ctx, mint(t, with(t, header, "key-1", "key-9"), payload)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

func TestJ25DroppedKeysAreTold(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var log bytes.Buffer
		e := &endpoint{reply: answer(200, jwks(jwk("key-1", &ourKey().PublicKey), jwk("bad", &ourKey().PublicKey, `"use":"enc"`)))}
		j := start(t, e, func(o *verify.JWKSOptions) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		<-j.Ready()
		synctest.Wait()
		if s := j.Stats(); s.Dropped != 1 || !strings.Contains(log.String(), "a key of the set was dropped") {
			t.Errorf("stats %+v, log %s", s, log.String())
		}
	})
}

func TestJWKSOptionsOutOfBoundsAreRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		o  verify.JWKSOptions
		ok bool
	}{
		"no URL":                      {verify.JWKSOptions{}, false},
		"R64 http":                    {verify.JWKSOptions{URL: "http://auth.example/jwks"}, false},
		"R64 a file":                  {verify.JWKSOptions{URL: "file:///etc/passwd"}, false},
		"R64 a password in the URL":   {verify.JWKSOptions{URL: "https://a:b@auth.example/jwks"}, false},
		"a negative duration":         {verify.JWKSOptions{URL: setURL, RefreshEvery: -1}, false},
		"R64 a host that looks local": {verify.JWKSOptions{URL: "http://localhost.evil.example/jwks"}, false},
		"twin: https":                 {verify.JWKSOptions{URL: setURL}, true},
		"twin: http on loopback":      {verify.JWKSOptions{URL: "http://127.0.0.1:8080/jwks"}, true},
		"twin: http, asked for":       {verify.JWKSOptions{URL: "http://auth:8080/jwks", PlainHTTP: true}, true},
	} {
		if _, err := verify.NewJWKS(c.o); (err == nil) != c.ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
