package rest_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/server/rest"
)

// TestG11OnlyRequestsTakenBackAtOnceAreAFlood sends a line as many requests as its streams allow, each taken back after a
// while. A proxy in front of a service that has become slow does so for all its callers whose patience ends, and its line
// serves the others, too.
func TestG11OnlyRequestsTakenBackAtOnceAreAFlood(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		after time.Duration
		lives bool
	}{
		{"the twin: the callers of a proxy give up after a tenth of a second, for ten seconds", 100 * time.Millisecond, true},
		{"G11 rapid reset: each is taken back within a millisecond", time.Millisecond, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				ours, theirs := net.Pipe()
				defer theirs.Close()
				cut := make(chan struct{})
				go func() {
					_, _ = io.Copy(io.Discard, theirs)
					close(cut)
				}()
				server := rest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), nil)
				line := server.ConnContext(t.Context(), ours)
				for start := time.Now(); time.Since(start) < 10*time.Second; {
					for range 128 {
						ctx, stop := context.WithTimeout(line, tt.after)
						defer stop()
						r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/auth/login", nil)
						r.ProtoMajor = 2
						go server.Handler.ServeHTTP(httptest.NewRecorder(), r)
					}
					<-time.After(tt.after)
					synctest.Wait()
					select {
					case <-cut:
						if tt.lives {
							t.Errorf("cut after %v", time.Since(start))
						}
						return
					default:
					}
				}
				if !tt.lives {
					t.Error("not cut within ten seconds")
				}
				ours.Close()
				<-cut
			})
		})
	}
}

// offered is a body that never comes, and notes how much room it was offered.
type offered struct{ room int }

func (o *offered) Read(p []byte) (int, error) {
	o.room = max(o.room, len(p))
	return 0, io.ErrUnexpectedEOF
}

func (*offered) Close() error { return nil }

// TestR58ABodyTakesNoMemoryBeforeItComes: a length that a stranger announces is not yet a body.
func TestR58ABodyTakesNoMemoryBeforeItComes(t *testing.T) {
	t.Parallel()
	body := &offered{}
	r := request(func(r *http.Request) { r.Body, r.ContentLength = body, rest.DefaultMaxBody })
	if resp := open(t, nil).do(r); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a body that ends early is answered %d", resp.StatusCode)
	}
	if body.room == 0 || body.room > 4<<10 {
		t.Errorf("%d bytes were set aside for a body of which nothing had come", body.room)
	}
}
