// Package ops owns the operators' listener: liveness, readiness, metrics and, if configured, profiles. It has no
// authentication, so it belongs on an address that only operators reach; nothing of it is on the public listeners.
package ops

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"
)

// readyTimeout bounds one readiness probe; a check that takes longer has failed.
const readyTimeout = 2 * time.Second

// Options is what the operators' door shows.
type Options struct {
	// Ready says whether this replica should get traffic: nil if so. A NotReady error names what is missing; of any other error
	// nothing is shown. Required.
	Ready func(ctx context.Context) error
	// Metrics serves the metrics; nil for none.
	Metrics http.Handler
	// PProf serves Go's profiles at /debug/pprof/.
	PProf bool
}

// NotReady is the names of the checks that failed, in words of our own: "store", "keys". It is an error for Options.Ready.
type NotReady []string

// Error lists the checks.
func (n NotReady) Error() string { return "not ready: " + strings.Join(n, ", ") }

// New makes the handler of the operators' listener.
func New(o Options) (http.Handler, error) {
	if o.Ready == nil {
		return nil, errors.New("ops: Options.Ready is required")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", live)
	mux.Handle("GET /readyz", ready(o.Ready))
	if o.Metrics != nil {
		mux.Handle("GET /metrics", o.Metrics)
	}
	if o.PProf {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux, nil
}

// health is the answer of both probes.
type health struct {
	Status  string   `json:"status"`
	Failing []string `json:"failing,omitempty"`
}

// live says that the process answers. It asks nothing else: a database that is away is no reason to restart.
func live(w http.ResponseWriter, _ *http.Request) { answer(w, http.StatusOK, health{Status: "ok"}) }

func ready(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		err := check(ctx)
		if err == nil {
			answer(w, http.StatusOK, health{Status: "ok"})
			return
		}
		h := health{Status: "unavailable"}
		var failing NotReady
		if errors.As(err, &failing) {
			h.Failing = failing
		}
		answer(w, http.StatusServiceUnavailable, h)
	}
}

func answer(w http.ResponseWriter, code int, h health) {
	data, err := json.Marshal(h)
	if err != nil { // strings always marshal
		code, data = http.StatusInternalServerError, nil
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(data) // a prober that has gone away is not our error
}
