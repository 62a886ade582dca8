package guard_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/guard"
)

// vault is storage that outlives a process, and that can fail.
type vault struct {
	guard.RefreshStore
	loads, swaps error
	before       func() // what happens before a swap
}

func (v *vault) Load(ctx context.Context) (string, error) {
	if v.loads != nil {
		return "", v.loads
	}
	return v.RefreshStore.Load(ctx)
}

func (v *vault) Swap(ctx context.Context, presented, next string) (bool, error) {
	if v.before != nil {
		v.before()
	}
	if v.swaps != nil {
		return false, v.swaps
	}
	return v.RefreshStore.Swap(ctx, presented, next)
}

// TestRefreshTokensAreKeptByTheRules looks at what is presented, and at what the storage holds after it.
func TestRefreshTokensAreKeptByTheRules(t *testing.T) {
	t.Parallel()
	refused := func(reason string) func(int, string) (int, string, error) {
		return func(int, string) (int, string, error) { return http.StatusUnauthorized, statusOf(reason), nil }
	}
	put := func(v *vault, token string) {
		old, _ := v.RefreshStore.Load(context.Background())
		_, _ = v.RefreshStore.Swap(context.Background(), old, token)
	}
	for name, c := range map[string]struct {
		first     func(v *vault) func(n int, presented string) (int, string, error) // the answers but the good ones; code 0: a good one
		want      []string                                                          // what four callers get, a second apart, the third after a renewal is due
		presented []string
		kept      string
	}{
		"one after the other": {func(*vault) func(int, string) (int, string, error) { return nil },
			[]string{"at-1", "at-1", "at-2", "at-2"}, []string{"rt-0", "rt-1"}, "rt-2"},
		"F17 an answer that was lost": {func(*vault) func(int, string) (int, string, error) {
			return func(n int, _ string) (int, string, error) {
				if n == 1 {
					return 0, "", io.ErrUnexpectedEOF
				}
				return 0, "", nil
			}
		}, []string{"unavailable", "at-2", "at-3", "at-3"}, []string{"rt-0", "rt-0", "rt-2"}, "rt-3"},
		"superseded, and the storage has the next": {func(v *vault) func(int, string) (int, string, error) {
			return func(n int, _ string) (int, string, error) {
				if n == 1 {
					put(v, "rt-other")
					return refused("REFRESH_SUPERSEDED")(n, "")
				}
				return 0, "", nil
			}
		}, []string{"at-2", "at-2", "at-3", "at-3"}, []string{"rt-0", "rt-other", "rt-2"}, "rt-3"},
		"superseded, and the storage has it later": {func(v *vault) func(int, string) (int, string, error) {
			return func(n int, _ string) (int, string, error) {
				if n == 1 {
					return refused("REFRESH_SUPERSEDED")(n, "")
				}
				return 0, "", nil
			}
		}, []string{"unavailable", "at-2", "at-3", "at-3"}, []string{"rt-0", "rt-0", "rt-2"}, "rt-3"},
		"superseded twice": {func(v *vault) func(int, string) (int, string, error) {
			return func(n int, _ string) (int, string, error) {
				put(v, "rt-other-"+strconv.Itoa(n))
				return refused("REFRESH_SUPERSEDED")(n, "")
			}
		}, []string{"unavailable", "unavailable", "unavailable", "unavailable"},
			[]string{"rt-0", "rt-other-1", "rt-other-2", "rt-other-3", "rt-other-4", "rt-other-5", "rt-other-6", "rt-other-7"}, "rt-other-8"},
		"another process was first": {func(v *vault) func(int, string) (int, string, error) {
			v.before = func() { v.before = nil; put(v, "rt-other") }
			return nil
		}, []string{"at-1", "at-1", "at-2", "at-2"}, []string{"rt-0", "rt-other"}, "rt-2"},
		"the session has ended": {func(*vault) func(int, string) (int, string, error) { return refused("REFRESH_REUSED") },
			[]string{"REFRESH_REUSED", "REFRESH_REUSED", "REFRESH_REUSED", "REFRESH_REUSED"}, []string{"rt-0"}, "rt-0"},
		"the session has ended, and a new one is stored": {func(v *vault) func(int, string) (int, string, error) {
			return func(n int, _ string) (int, string, error) {
				if n == 1 {
					put(v, "rt-new")
					return refused("REFRESH_EXPIRED")(n, "")
				}
				return 0, "", nil
			}
		}, []string{"REFRESH_EXPIRED", "at-2", "at-3", "at-3"}, []string{"rt-0", "rt-new", "rt-2"}, "rt-3"},
		"the twin: a secret may be mended": {func(*vault) func(int, string) (int, string, error) {
			return func(n int, _ string) (int, string, error) {
				if n == 1 {
					return refused("CLIENT_INVALID")(n, "")
				}
				return 0, "", nil
			}
		}, []string{"CLIENT_INVALID", "at-2", "at-3", "at-3"}, []string{"rt-0", "rt-0", "rt-2"}, "rt-3"},
		"storage that does not read": {func(v *vault) func(int, string) (int, string, error) {
			v.loads = errors.New("disk")
			return nil
		}, []string{"unavailable", "unavailable", "unavailable", "unavailable"}, nil, "rt-0"},
		"storage that is empty": {func(v *vault) func(int, string) (int, string, error) { put(v, ""); return nil },
			[]string{"unavailable", "unavailable", "unavailable", "unavailable"}, nil, ""},
		"F02 storage that does not write": {func(v *vault) func(int, string) (int, string, error) {
			v.swaps = errors.New("disk")
			return nil
		}, []string{"at-1", "at-1", "at-2", "at-2"}, []string{"rt-0", "rt-0"}, "rt-0"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				v := &vault{RefreshStore: guard.NewRefreshToken("rt-0")}
				first, good := c.first(v), numbered(300).answer
				var presented []string
				a := &authority{answer: func(n int, token string) (int, string, error) {
					presented = append(presented, token)
					if first != nil {
						if code, body, err := first(n, token); code != 0 || err != nil {
							return code, body, err
						}
					}
					return good(n, token)
				}}
				s := sourceBy(t, a, v)
				var got []string
				for i := range 4 {
					token, err := s.Token(t.Context())
					if err != nil {
						token = reasonOf(t, err)
					}
					got = append(got, token)
					if time.Sleep(time.Second); i == 1 {
						time.Sleep(295 * time.Second)
					}
				}
				kept, _ := v.RefreshStore.Load(t.Context())
				if diff := cmp.Diff([]any{c.want, c.presented, c.kept}, []any{got, presented, kept}); diff != "" {
					t.Errorf("tokens, presented, kept: (-want +got)\n%s", diff)
				}
				again := sourceBy(t, a, v) // a restart: the storage has outlived it
				if token, err := again.Token(t.Context()); (err == nil) != (len(c.kept) == 4 && name != "the session has ended" && v.loads == nil) {
					t.Errorf("after a restart: %q %v", token, err)
				}
			})
		})
	}
}

// TestF01TwoSourcesOfOneSession share their storage, with a server that answers a token again with the same successor, and ends
// the session of any other.
func TestF01TwoSourcesOfOneSession(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		base, head := "", "rt-0"
		var mu sync.Mutex
		a := &authority{answer: func(n int, presented string) (int, string, error) {
			time.Sleep(time.Duration(n%3) * 100 * time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			switch presented {
			case head:
				base, head = head, "rt-"+strconv.Itoa(n)
			case base:
			default:
				return http.StatusUnauthorized, statusOf("REFRESH_REUSED"), nil
			}
			return http.StatusOK, granted("at-"+strconv.Itoa(n), 300, head), nil
		}}
		store := guard.NewRefreshToken("rt-0")
		sources := []*guard.TokenSource{sourceBy(t, a, store), sourceBy(t, a, store)}
		for round := range 50 {
			var callers sync.WaitGroup
			for _, s := range sources {
				callers.Go(func() {
					if _, err := s.Token(t.Context()); err != nil {
						t.Errorf("round %d: %v", round, err)
					}
				})
			}
			callers.Wait()
			time.Sleep(time.Minute)
		}
		if kept, _ := store.Load(t.Context()); kept != head {
			t.Errorf("the storage holds %q, the server %q", kept, head)
		}
		if a.count() < 20 {
			t.Errorf("%d requests", a.count())
		}
	})
}

// TestWhatASourceLogs counts the warnings: of each renewal that fails, and of storage that does not write.
func TestWhatASourceLogs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		v := &vault{RefreshStore: guard.NewRefreshToken(sourceRefresh)}
		s, err := guard.NewTokenSource(guard.TokenSourceOptions{URL: "http://127.0.0.1:1", ClientID: "svc", ClientSecret: sourceSecret,
			RefreshToken: v, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		a := &authority{answer: func(int, string) (int, string, error) { return http.StatusServiceUnavailable, "canary", nil }}
		s.AskBy(a)
		for range 3 {
			expectToken(t, s, "the server is away", "unavailable")
			time.Sleep(time.Second)
		}
		a.answer, v.swaps = numbered(300).answer, errors.New("disk")
		expectToken(t, s, "the storage is away", "at-4")
		synctest.Wait()
		got := log.String()
		if strings.Count(got, "no new access token") != 3 || strings.Count(got, "could not be stored") != 1 || strings.Count(got, "\n") != 4 {
			t.Errorf("logged:\n%s", got)
		}
		if strings.Contains(got, "canary") || strings.Contains(got, "at-4") || strings.Contains(got, "rt-4") {
			t.Errorf("R63 the log tells a secret:\n%s", got)
		}
	})
}

// TestStorageThatHangsLetsNoOlderRefreshTokenOverANewer has a swap that does not heed its context. Where others were begun meanwhile,
// it would store a token that the server has forgotten, and that ends the session.
func TestStorageThatHangsLetsNoOlderRefreshTokenOverANewer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		proceed := make(chan struct{})
		v := &vault{RefreshStore: guard.NewRefreshToken("rt-0")}
		v.before = func() { <-proceed }
		a := numbered(300)
		s := sourceBy(t, a, v)
		began := time.Now()
		expectToken(t, s, "who waits", "unavailable")
		if waited := time.Since(began); waited != 25*time.Second {
			t.Errorf("waited %s", waited)
		}
		for range 10 {
			time.Sleep(time.Minute)
			began = time.Now()
			expectToken(t, s, "the storage hangs still", "unavailable")
			if time.Since(began) != 0 {
				t.Error("a caller had to wait")
			}
		}
		if a.count() != 1 {
			t.Errorf("%d requests, and the storage has answered none", a.count())
		}
		close(proceed)
		synctest.Wait()
		expectToken(t, s, "the twin: it goes on", "at-2")
		if kept, _ := v.RefreshStore.Load(t.Context()); kept != "rt-2" {
			t.Errorf("the storage holds %q", kept)
		}
	})
}

// asking is a log that goes out with the source's own token, while the one who logs waits.
type asking struct {
	slog.Handler
	source *guard.TokenSource
	got    []string
}

func (a *asking) Handle(ctx context.Context, _ slog.Record) error {
	token, err := a.source.Token(ctx)
	if err != nil {
		token = "none"
	}
	a.got = append(a.got, token)
	return nil
}

// TestALogMayAskTheSource for the token that it goes out with.
func TestALogMayAskTheSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := &asking{Handler: slog.NewTextHandler(io.Discard, nil)}
		s, err := guard.NewTokenSource(guard.TokenSourceOptions{URL: "http://127.0.0.1:1", ClientID: "svc", ClientSecret: sourceSecret,
			RefreshToken: &vault{RefreshStore: guard.NewRefreshToken("rt-0"), swaps: errors.New("disk")}, Logger: slog.New(log)})
		if err != nil {
			t.Fatal(err)
		}
		log.source = s
		a := &authority{answer: func(int, string) (int, string, error) { return http.StatusServiceUnavailable, "", nil }}
		s.AskBy(a)
		expectToken(t, s, "the server is away", "unavailable")
		synctest.Wait()
		time.Sleep(time.Second)
		a.answer = numbered(300).answer
		began := time.Now()
		expectToken(t, s, "the storage is away", "at-2")
		synctest.Wait()
		if diff := cmp.Diff([]string{"none", "at-2"}, log.got); diff != "" || time.Since(began) != 0 {
			t.Errorf("the log went out with, after %s (-want +got)\n%s", time.Since(began), diff)
		}
	})
}
