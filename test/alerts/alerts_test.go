// Package alerts holds what operators are given together: the alerts, their unit tests, the dashboard, the copy that the Helm chart ships,
// and the runbook. That the metrics exist is for test/live, which asks a real server.
package alerts

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

const (
	folder  = "../../deploy/prometheus"
	runbook = "../../docs/runbook.md"
)

type rules struct {
	Groups []struct {
		Rules []struct {
			Alert, Expr, For    string
			Labels, Annotations map[string]string
		}
	}
}

func load(t *testing.T, path string) (r rules) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, path)), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// promtool runs Prometheus's own checker in a folder.
func promtool(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("AUTHSVC_TEST_REQUIRE") != "" {
			t.Fatal("promtool is not installed (Debian: prometheus)")
		}
		t.Skip("promtool is not installed (Debian: prometheus)")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestPrometheusAcceptsTheAlertsAndTheyDoWhatTheirTestsSay(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"check", "config", "prometheus.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		if out, err := promtool(t, folder, args...); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	// The unsafe twin: a rule that asks for something else fails its tests.
	dir := t.TempDir()
	broken := strings.Replace(read(t, folder+"/alerts.yaml"), "authsvc_revocation_lag_seconds > 1", "authsvc_revocation_lag_seconds > 100", 1)
	for name, text := range map[string]string{"alerts.yaml": broken, "alerts_test.yaml": read(t, folder+"/alerts_test.yaml")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := promtool(t, dir, "test", "rules", "alerts_test.yaml"); err == nil {
		t.Errorf("another threshold passes the tests\n%s", out)
	}
}

func TestEveryAlertIsWholeAndTested(t *testing.T) {
	t.Parallel()
	tests := read(t, folder+"/alerts_test.yaml")
	for _, g := range load(t, folder+"/alerts.yaml").Groups {
		for _, r := range g.Rules {
			for what, value := range map[string]string{"for": r.For, "a summary": r.Annotations["summary"], "a description": r.Annotations["description"]} {
				if value == "" {
					t.Errorf("%s has no %q", r.Alert, what)
				}
			}
			if s := r.Labels["severity"]; s != "page" && s != "ticket" {
				t.Errorf("%s: severity is %q", r.Alert, s)
			}
			if want := "docs/runbook.md#" + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
				t.Errorf("%s: runbook_url is %q, want %q", r.Alert, r.Annotations["runbook_url"], want)
			}
			// One that fires, and its twin that does not, name the alert alone and with what is expected.
			named := regexp.MustCompile(`alertname: `+r.Alert+`(\b.*)?\n(\s+exp_alerts)?`).FindAllString(tests, -1)
			fires := slices.ContainsFunc(named, func(s string) bool { return strings.Contains(s, "exp_alerts") })
			if !fires {
				t.Errorf("%s: no unit test makes it fire", r.Alert)
			}
		}
	}
}

func TestEveryAlertHasItsChapterAndEveryChapterItsAlert(t *testing.T) {
	t.Parallel()
	var alerts, chapters []string
	for _, g := range load(t, folder+"/alerts.yaml").Groups {
		for _, r := range g.Rules {
			alerts = append(alerts, r.Alert)
		}
	}
	text := read(t, runbook)
	for _, part := range strings.Split(text, "\n## ")[1:] {
		title, body, _ := strings.Cut(part, "\n")
		if !strings.HasPrefix(title, "Authsvc") {
			continue
		}
		chapters = append(chapters, title)
		for _, section := range []string{"**It means**", "**Users notice**", "**Do**", "**Do not**"} {
			if !strings.Contains(body, section) {
				t.Errorf("the chapter %s does not say %s", title, section)
			}
		}
	}
	slices.Sort(alerts)
	slices.Sort(chapters)
	if diff := cmp.Diff(alerts, chapters); diff != "" {
		t.Errorf("alerts and chapters of docs/runbook.md (-alerts +chapters)\n%s", diff)
	}
}

// TestTheRunbooksCommandsExist asks the program for the help of each command that the runbook has its reader type.
func TestTheRunbooksCommandsExist(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "authsvc")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/authsvc").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var missing []string
	check := func(line string) bool {
		words := strings.Fields(line)
		end := slices.IndexFunc(words, func(w string) bool { return !regexp.MustCompile(`^[a-z][a-z-]*$`).MatchString(w) })
		if end < 0 {
			end = len(words)
		}
		out, err := exec.CommandContext(t.Context(), program, append(slices.Clone(words[:min(end, 2)]), "-h")...).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "-config") {
			return false
		}
		for _, flag := range regexp.MustCompile(` (-[a-z][a-z-]*)`).FindAllStringSubmatch(line, -1) {
			if !regexp.MustCompile(`(?m)^\s+` + flag[1] + `\b`).Match(out) {
				return false
			}
		}
		return true
	}
	found := regexp.MustCompile(`(?m)^authsvc ([^#|\n]*)`).FindAllStringSubmatch(read(t, runbook), -1)
	for _, m := range found {
		if !check(m[1]) {
			missing = append(missing, m[0])
		}
	}
	if len(found) < 10 || len(missing) > 0 {
		t.Errorf("of %d commands the program does not know %q", len(found), missing)
	}
	for _, wrong := range []string{"keys rotte -now", "doctor -confg x"} { // the unsafe twin
		if check(wrong) {
			t.Errorf("the check takes authsvc %s", wrong)
		}
	}
}

func TestTheChartShipsTheSameAlerts(t *testing.T) {
	t.Parallel()
	if diff := cmp.Diff(read(t, folder+"/alerts.yaml"), read(t, "../../deploy/helm/authsvc/files/alerts.yaml")); diff != "" {
		t.Errorf("copy deploy/prometheus/alerts.yaml to deploy/helm/authsvc/files (-want +got)\n%s", diff)
	}
}

func TestTheDashboardIsSoundAndPrometheusUnderstandsIt(t *testing.T) {
	t.Parallel()
	var d struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(read(t, "../../deploy/grafana/authsvc.json")), &d); err != nil {
		t.Fatal(err)
	}
	ids := map[int]bool{}
	var text strings.Builder
	text.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	n := 0
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d %q: its id, title or place", p.ID, p.Title)
		}
		ids[p.ID] = true
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for _, q := range p.Targets {
			n++
			fmt.Fprintf(&text, "      - record: panel:%d\n        expr: %q\n", n, strings.NewReplacer("$__rate_interval", "1m", "$job", "authsvc").Replace(q.Expr))
		}
	}
	path := filepath.Join(t.TempDir(), "dashboard.yaml")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := promtool(t, ".", "check", "rules", path); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
