package app_test

import (
	"net/http"
	"net/http/httptest"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/app"
	"github.com/authsvc/authsvc/internal/config"
)

func TestProbeSaysWhatTheServerWaitsFor(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		code int
		body string
		live bool
		want string
	}{
		{"a server that is ready", http.StatusOK, `{"status":"ok"}`, false, ""},
		{"D10 one that waits for its store", http.StatusServiceUnavailable, `{"status":"unavailable","failing":["store","keys"]}`, false, "the server is not ready: store, keys"},
		{"D10 the same is alive", http.StatusOK, `{"status":"ok"}`, true, ""},
		{"another program at the address", http.StatusNotFound, `no such page`, false, "the server answers 404 Not Found"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			asked := make(chan string, 1)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked <- r.URL.Path
				w.WriteHeader(tt.code)
				_, _ = w.Write([]byte(tt.body))
			}))
			defer s.Close()
			cfg := config.Default()
			cfg.Ops.Address = strings.TrimPrefix(s.URL, "http://")
			err := app.Probe(t.Context(), cfg, tt.live)
			if got := message(err); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			want := "/readyz"
			if tt.live {
				want = "/livez"
			}
			if path := <-asked; path != want {
				t.Errorf("asked %s, want %s", path, want)
			}
		})
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestTheVersionIsWhatTheBuildKnows(t *testing.T) {
	t.Parallel()
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef0123"}
	tests := []struct {
		name string
		info debug.BuildInfo
		want string
	}{
		{"a module fetched by its version", debug.BuildInfo{Main: debug.Module{Version: "v1.2.3"}}, "v1.2.3"},
		{"a clone", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{commit}}, "devel-0123456789ab"},
		{"a clone with changes", debug.BuildInfo{Settings: []debug.BuildSetting{commit, {Key: "vcs.modified", Value: "true"}}}, "devel-0123456789ab-changed"},
		{"a folder without its history", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "devel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := app.VersionOf(&tt.info); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
