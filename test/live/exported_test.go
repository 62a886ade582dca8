package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/authsvc/authsvc/internal/store/redistest"
)

// selection is a metric that an alert or the dashboard asks for, with the labels that it asks by.
type selection struct {
	name   string
	labels map[string]string // and what they are to match
}

var (
	metricName = regexp.MustCompile(`\b((?:authsvc|rpc|process|go)_[a-z0-9_]+)\s*(\{[^}]*\})?`)
	matcher    = regexp.MustCompile(`([a-z_]+)\s*(=~|!=|!~|=)\s*"([^"]*)"`)
	grouping   = regexp.MustCompile(`\bby\s*\(([^)]*)\)`)
	legend     = regexp.MustCompile(`\{\{\s*(?:\$labels\.)?([a-z_]+)\s*\}\}`)
)

// selections finds what a query asks for. What it groups by, and what its words name, belongs to each of its metrics.
func selections(query, words string) (all []selection) {
	var more []string
	for _, g := range grouping.FindAllStringSubmatch(query, -1) {
		for name := range strings.SplitSeq(g[1], ",") {
			more = append(more, strings.TrimSpace(name))
		}
	}
	for _, l := range legend.FindAllStringSubmatch(words, -1) {
		more = append(more, l[1])
	}
	query = grouping.ReplaceAllString(query, "")
	for _, m := range metricName.FindAllStringSubmatch(query, -1) {
		s := selection{name: m[1], labels: map[string]string{}}
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			s.labels[l[1]] = ""
			if l[2] == "=" || l[2] == "=~" {
				s.labels[l[1]] = l[3]
			}
		}
		for _, name := range more {
			if _, there := s.labels[name]; !there {
				s.labels[name] = ""
			}
		}
		all = append(all, s)
	}
	return all
}

// asked is all that alerts.yaml and the dashboard ask for.
func asked(t *testing.T) (all []selection) {
	t.Helper()
	text, err := os.ReadFile("../../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for rule := range strings.SplitSeq(string(text), "- alert: ") {
		_, expr, found := strings.Cut(rule, "expr:")
		if !found {
			continue
		}
		expr, words, _ := strings.Cut(expr, "for:")
		all = append(all, selections(expr, words)...)
	}
	var d struct {
		Panels []struct {
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if text, err = os.ReadFile("../../deploy/grafana/authsvc.json"); err == nil {
		err = json.Unmarshal(text, &d)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range d.Panels {
		for _, q := range p.Targets {
			all = append(all, selections(q.Expr, q.LegendFormat)...)
		}
	}
	return all
}

// exported is each series of /metrics: name, and its labels.
func (s *server) exported(t *testing.T) map[string][]map[string]string {
	t.Helper()
	all := map[string][]map[string]string{}
	for line := range strings.Lines(call(t, "GET", s.Ops+"/metrics", "", nil).raw) {
		m := regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? `).FindStringSubmatch(line)
		if m == nil {
			continue
		}
		labels := map[string]string{"job": "authsvc", "instance": "a"} // Prometheus's own
		for _, l := range matcher.FindAllStringSubmatch(m[2], -1) {
			labels[l[1]] = l[3]
		}
		all[m[1]] = append(all[m[1]], labels)
	}
	return all
}

// lacks says what no series gives; "$job" stands for any.
func lacks(all map[string][]map[string]string, s selection) string {
	series := all[s.name]
	if len(series) == 0 {
		return s.name + " is not exported"
	}
	for name, want := range s.labels {
		if name == "le" || strings.HasPrefix(want, "$") {
			continue
		}
		for value := range strings.SplitSeq(want, "|") {
			if !slices.ContainsFunc(series, func(l map[string]string) bool {
				got, there := l[name]
				return there && (want == "" || got == value || name == "rpc_response_status_code")
			}) {
				return s.name + " has no label " + name + "=" + value
			}
		}
	}
	return ""
}

// reword changes a word of the configuration.
func (in installed) reword(t *testing.T, from, to string) {
	t.Helper()
	text, err := os.ReadFile(in.config)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(text), from) != 1 {
		t.Fatalf("the configuration has not one %q:\n%s", from, text)
	}
	if err := os.WriteFile(in.config, []byte(strings.Replace(string(text), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// onRedis starts one, and gives the lines of the configuration.
func (in installed) onRedis(t *testing.T) (*redistest.Server, string) {
	t.Helper()
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
	file := in.password + "-redis"
	if err := os.WriteFile(file, []byte("horse-battery-staple\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return r, fmt.Sprintf("redis: {addresses: [%q], username: authsvc, password_file: %q}\n", r.Address(), file)
}

// TestWhatAlertsAndTheDashboardNameIsExported asks a real server on PostgreSQL and Redis, with TLS, for every metric and label.
func TestWhatAlertsAndTheDashboardNameIsExported(t *testing.T) {
	t.Parallel()
	in := onPostgreSQL(t)
	cert, key, _ := certificate(t, filepath.Dir(in.config))
	in.reword(t, `grpc: {address: "127.0.0.1:0"}`, fmt.Sprintf(`grpc: {address: "127.0.0.1:0", tls: {cert_file: %q, key_file: %q}}`, cert, key))
	_, lines := in.onRedis(t)
	in.withRedis(t, lines)
	s, _ := serveBy(t, in.config, in.dev, "http")
	in.furnish(t, s)
	a := s.login(t)
	s.refresh(t, a.text("refresh_token"))
	s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials("nobody", "not the right one"))
	wanted := asked(t)
	if len(wanted) < 50 {
		t.Fatalf("only %d metrics were found in the alerts and the dashboard", len(wanted))
	}
	var all map[string][]map[string]string
	for _, w := range wanted {
		await(t, fmt.Sprintf("%s is exported, with the labels %v", w.name, w.labels), func() bool { // what the database says of itself comes when it answers in time
			if all == nil || lacks(all, w) != "" {
				all = s.exported(t)
			}
			return lacks(all, w) == ""
		})
	}
	// The unsafe twins.
	for _, wrong := range []string{`authsvc_login_total`, `authsvc_logins_total{result="ok"}`, `authsvc_logins_total{outcome="fine"}`, `sum by (replica) (authsvc_ready)`} {
		if found := selections(wrong, ""); len(found) != 1 || lacks(all, found[0]) == "" {
			t.Errorf("%s passes for exported", wrong)
		}
	}
}
