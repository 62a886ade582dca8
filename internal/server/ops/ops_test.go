package ops_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/server/ops"
)

func TestEndpoints(t *testing.T) {
	t.Parallel()
	fine := func(context.Context) error { return nil }
	metrics := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("up 1")) })
	tests := []struct {
		name, verb, path string
		options          ops.Options
		code             int
		body             string
	}{
		{"alive", "GET", "/livez", ops.Options{Ready: fine}, 200, `{"status":"ok"}`},
		{"D10 alive while not ready", "GET", "/livez", ops.Options{Ready: func(context.Context) error { return ops.NotReady{"store"} }}, 200, `{"status":"ok"}`},
		{"ready", "GET", "/readyz", ops.Options{Ready: fine}, 200, `{"status":"ok"}`},
		{"not ready, with the names", "GET", "/readyz", ops.Options{Ready: func(context.Context) error {
			return fmt.Errorf("probe: %w", ops.NotReady{"store", "keys"})
		}}, 503, `{"status":"unavailable","failing":["store","keys"]}`},
		{"R59 not ready, without the inside", "GET", "/readyz", ops.Options{Ready: func(context.Context) error {
			return errors.New("dial tcp db.internal:5432")
		}}, 503, `{"status":"unavailable"}`},
		{"a probe that has a time", "GET", "/readyz", ops.Options{Ready: func(ctx context.Context) error {
			if _, ok := ctx.Deadline(); !ok {
				return ops.NotReady{"deadline"}
			}
			return nil
		}}, 200, `{"status":"ok"}`},
		{"metrics", "GET", "/metrics", ops.Options{Ready: fine, Metrics: metrics}, 200, "up 1"},
		{"metrics that are not configured", "GET", "/metrics", ops.Options{Ready: fine}, 404, ""},
		{"profiles", "GET", "/debug/pprof/cmdline", ops.Options{Ready: fine, PProf: true}, 200, ""},
		{"G14 profiles that are not configured", "GET", "/debug/pprof/cmdline", ops.Options{Ready: fine}, 404, ""},
		{"another method", "POST", "/readyz", ops.Options{Ready: fine}, 405, ""},
		{"another path", "GET", "/readyz/x", ops.Options{Ready: fine}, 404, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			h, err := ops.New(tt.options)
			if err != nil {
				t.Fatal(err)
			}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(tt.verb, tt.path, nil))
			if w.Code != tt.code || tt.body != "" && strings.TrimSpace(w.Body.String()) != tt.body {
				t.Errorf("answered %d %s, want %d %s", w.Code, w.Body, tt.code, tt.body)
			}
		})
	}
	if _, err := ops.New(ops.Options{}); err == nil {
		t.Error("a door that is always ready was made")
	}
}
