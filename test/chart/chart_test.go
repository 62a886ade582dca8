// Package chart asks the program itself about what the Helm chart renders. .ci/chart renders it, and holds testdata to it.
package chart

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

// nobody is the user and group of the chart's pods.
const nobody = 65532

// renderings are the files of testdata.
func renderings() []string { return []string{"least.yaml", "everything.yaml", "gateway.yaml"} }

// objects gives what a rendering has of a kind.
func objects(t *testing.T, file, kind string) (all []map[string]any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	for part := range strings.SplitSeq(string(text), "\n---\n") {
		var o map[string]any
		if err := yaml.Unmarshal([]byte(part), &o); err != nil {
			t.Fatalf("%s: %v\n%s", file, err, part)
		}
		if o["kind"] == kind {
			all = append(all, o)
		}
	}
	return all
}

// in follows names and numbers into an object.
func in(o any, path ...any) any {
	for _, p := range path {
		switch key := p.(type) {
		case string:
			m, _ := o.(map[string]any)
			o = m[key]
		case int:
			l, _ := o.([]any)
			if key >= len(l) {
				return nil
			}
			o = l[key]
		}
	}
	return o
}

// build makes the program in a folder that other users may enter.
func build(t *testing.T) (program, dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "authsvc-chart-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "authsvc")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, "../../cmd/authsvc").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program, dir
}

// volume lays files out as the kubelet does those of a secret: each a link through ..data into a folder that an update replaces.
func volume(t *testing.T, dir string, mode os.FileMode, files map[string][]byte) {
	t.Helper()
	inner := filepath.Join(dir, "..2026_11_21_23_00_00.1")
	if err := os.MkdirAll(inner, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Base(inner), filepath.Join(dir, "..data")); err != nil {
		t.Fatal(err)
	}
	for name, content := range files {
		path := filepath.Join(inner, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if os.Geteuid() == 0 {
			if err := os.Chown(path, 0, nobody); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func key(t *testing.T) string {
	t.Helper()
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// pair is a certificate for id.example.
func pair(t *testing.T) map[string][]byte {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"id.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return map[string][]byte{"tls.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})}
}

// pod is a pod's view of the file system, in a folder: /run/secrets and /run/authsvc.
func pod(t *testing.T, dir string, mode os.FileMode) {
	t.Helper()
	certificate := pair(t)
	volume(t, filepath.Join(dir, "secrets/keys"), mode, map[string][]byte{
		"kek.json":     fmt.Appendf(nil, `{"keys": [{"id": "1", "key": %q}]}`, key(t)),
		"refresh.json": fmt.Appendf(nil, `{"keys": [{"id": 1, "key": %q}]}`, key(t)),
	})
	volume(t, filepath.Join(dir, "secrets/tls"), mode, certificate)
	volume(t, filepath.Join(dir, "secrets/database"), mode, map[string][]byte{"password": []byte("geheim\n")})
	for _, of := range []string{"redis", "sentinel"} {
		volume(t, filepath.Join(dir, "secrets", of), mode, map[string][]byte{"password": []byte("geheim " + of + "\n")})
	}
	volume(t, filepath.Join(dir, "secrets/ca"), mode, map[string][]byte{"ca.crt": certificate["tls.crt"]})
	run := filepath.Join(dir, "authsvc") // an emptyDir: root's, of the pod's group, for everybody
	if err := os.MkdirAll(run, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(run, 0, nobody); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(run, 0o777|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
}

// check runs "authsvc config check" as the pod's user, where we may become that.
func check(t *testing.T, program, dir, config string) (string, error) {
	t.Helper()
	path := filepath.Join(dir, "authsvc.yaml")
	if err := os.WriteFile(path, []byte(strings.NewReplacer("/run/secrets/", filepath.Join(dir, "secrets")+"/", "/run/authsvc/", filepath.Join(dir, "authsvc")+"/").Replace(config)), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), program, "config", "check", "-offline", "-config", path)
	cmd.Env = []string{"HOME=/nonexistent"}
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// configurations gives authsvc.yaml of each ConfigMap.
func configurations(t *testing.T, file string) (all []string) {
	t.Helper()
	for _, o := range objects(t, file, "ConfigMap") {
		text, _ := in(o, "data", "authsvc.yaml").(string)
		all = append(all, text)
	}
	return all
}

// TestTheProgramTakesWhatTheChartRenders lays out a pod's volumes as the kubelet does, and has the program check each configuration there as
// the pod's user: a secret's files are root's and, by fsGroup, of mode 0440.
func TestTheProgramTakesWhatTheChartRenders(t *testing.T) {
	t.Parallel()
	program, dir := build(t)
	mode := os.FileMode(0o440)
	if os.Geteuid() != 0 {
		mode = 0o400 // nobody but root can make root's files
	}
	pod(t, filepath.Join(dir, "pod"), mode)
	for _, file := range renderings() {
		all := configurations(t, file)
		if want := 2 - strings.Count(file, "gateway"); len(all) != want {
			t.Errorf("%s has %d configurations, want %d", file, len(all), want)
		}
		for _, config := range all {
			if out, err := check(t, program, filepath.Join(dir, "pod"), config); err != nil {
				t.Errorf("%s: %v\n%s\n%s", file, err, out, config)
			}
			for wrong, why := range map[string]string{config + "\nisuer: x\n": "is not a setting", strings.Replace(config, "exposed: true", "exposed: false", 1): "ops.address: must be a loopback address"} { // the twins
				if out, err := check(t, program, filepath.Join(dir, "pod"), wrong); err == nil || !strings.Contains(out, why) {
					t.Errorf("%s: %q was wanted, it said %v\n%s", file, why, err, out)
				}
			}
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	for mode, taken := range map[os.FileMode]bool{0o440: true, 0o640: true, 0o444: false, 0o460: false} {
		d := filepath.Join(dir, fmt.Sprintf("pod-%o", mode))
		pod(t, d, mode)
		if out, err := check(t, program, d, configurations(t, "least.yaml")[0]); (err == nil) != taken || !taken && !strings.Contains(out, "secrets.key_encryption_keys_file") {
			t.Errorf("a secret of mode %04o: %v\n%s", mode, err, out)
		}
	}
}

// TestPodsAreLockedDownAndDrain reads what Kubernetes's schemas do not judge.
func TestPodsAreLockedDownAndDrain(t *testing.T) {
	t.Parallel()
	for _, file := range renderings() {
		workloads := append(objects(t, file, "Deployment"), objects(t, file, "Job")...)
		if len(objects(t, file, "Deployment")) != 1 || len(objects(t, file, "PodDisruptionBudget")) != 1 {
			t.Fatalf("%s: %d workloads", file, len(workloads))
		}
		for _, w := range workloads {
			spec := in(w, "spec", "template", "spec")
			for _, want := range []struct {
				is   any
				path []any
			}{
				{true, []any{"securityContext", "runAsNonRoot"}},
				{"65532", []any{"securityContext", "runAsUser"}},
				{"65532", []any{"securityContext", "fsGroup"}},
				{"RuntimeDefault", []any{"securityContext", "seccompProfile", "type"}},
				{false, []any{"automountServiceAccountToken"}},
				{false, []any{"enableServiceLinks"}},
				{true, []any{"containers", 0, "securityContext", "readOnlyRootFilesystem"}},
				{false, []any{"containers", 0, "securityContext", "allowPrivilegeEscalation"}},
				{"ALL", []any{"containers", 0, "securityContext", "capabilities", "drop", 0}},
			} {
				if got := in(spec, want.path...); fmt.Sprint(got) != fmt.Sprint(want.is) {
					t.Errorf("%s, %s: %v is %v, want %v", file, w["kind"], want.path, got, want.is)
				}
			}
			if in(spec, "containers", 0, "resources", "limits", "memory") == nil {
				t.Errorf("%s, %s: no limit of memory, by which the program sets Go's", file, w["kind"])
			}
			volumes, _ := in(spec, "volumes").([]any)
			for _, v := range volumes {
				if in(v, "secret") != nil && fmt.Sprint(in(v, "secret", "defaultMode")) != "256" {
					t.Errorf("%s, %s: the secret %v has mode %v, not 0400", file, w["kind"], in(v, "name"), in(v, "secret", "defaultMode"))
				}
			}
		}
		d := in(objects(t, file, "Deployment")[0], "spec")
		pause, _ := in(d, "template", "spec", "containers", 0, "lifecycle", "preStop", "sleep", "seconds").(uint64)
		grace, _ := in(d, "template", "spec", "terminationGracePeriodSeconds").(uint64)
		if pause < 1 || grace <= 15+pause {
			t.Errorf("%s: of %d s to end, %d s are the pause, and a drain takes 15 s", file, grace, pause)
		}
		if fmt.Sprint(in(d, "strategy", "rollingUpdate", "maxUnavailable")) != "0" {
			t.Errorf("%s: an upgrade takes replicas away before there are others", file)
		}
	}
	for _, o := range append(objects(t, "everything.yaml", "Ingress"), objects(t, "gateway.yaml", "HTTPRoute")...) {
		if text := fmt.Sprint(o); strings.Contains(text, "ops") || strings.Contains(text, "9091") {
			t.Errorf("%s leads to the operators' door: %s", o["kind"], text)
		}
	}
	for _, file := range renderings() { // no secret stands in what the chart makes
		if all := objects(t, file, "Secret"); len(all) != 0 {
			t.Errorf("%s makes %d secrets", file, len(all))
		}
	}
}

func TestWhatPrometheussOperatorGets(t *testing.T) {
	t.Parallel()
	rules := objects(t, "everything.yaml", "PrometheusRule")
	monitors := objects(t, "everything.yaml", "ServiceMonitor")
	if len(rules) != 1 || len(monitors) != 1 {
		t.Fatalf("%d rules, %d monitors", len(rules), len(monitors))
	}
	var source map[string]any
	text, err := os.ReadFile("../../deploy/prometheus/alerts.yaml")
	if err == nil {
		err = yaml.Unmarshal(text, &source)
	}
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(source, in(rules[0], "spec")); diff != "" {
		t.Errorf("(-deploy/prometheus/alerts.yaml +the chart's)\n%s", diff)
	}
	// The monitor finds the Service for metrics, and no other.
	var found []string
	want, _ := in(monitors[0], "spec", "selector", "matchLabels").(map[string]any)
	for _, s := range objects(t, "everything.yaml", "Service") {
		labels, _ := in(s, "metadata", "labels").(map[string]any)
		if !slices.ContainsFunc(slices.Collect(maps.Keys(want)), func(k string) bool { return labels[k] != want[k] }) {
			found = append(found, fmt.Sprint(in(s, "metadata", "name"), " ", in(s, "spec", "ports", 0, "name")))
		}
	}
	if diff := cmp.Diff([]string{"authsvc-ops ops"}, found); diff != "" || in(monitors[0], "spec", "endpoints", 0, "port") != "ops" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// TestTheSchemaKnowsEverySetting holds values.schema.json to docs/config.md, which is generated.
func TestTheSchemaKnowsEverySetting(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	own := []string{"http.address", "http.tls.cert_file", "http.tls.key_file", "grpc.address", "grpc.tls.cert_file", "grpc.tls.key_file", "ops.address", "ops.pprof", "ops.exposed",
		"admin.socket", "database.path", "database.password_file", "redis.password_file", "redis.sentinel_password_file", "secrets.key_encryption_keys_file", "secrets.refresh_keys_file"}
	var want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| `AUTHSVC").FindAllStringSubmatch(string(page), -1) {
		if !slices.Contains(own, m[1]) {
			want = append(want, m[1])
		}
	}
	var schema map[string]any
	text, err := os.ReadFile("../../deploy/helm/authsvc/values.schema.json")
	if err == nil {
		err = json.Unmarshal(text, &schema)
	}
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	var walk func(prefix string, o any)
	walk = func(prefix string, o any) {
		properties, _ := in(o, "properties").(map[string]any)
		if properties == nil {
			got = append(got, prefix)
			return
		}
		if in(o, "additionalProperties") != false {
			t.Errorf("%s takes anything", prefix)
		}
		for name, inner := range properties {
			walk(strings.TrimPrefix(prefix+"."+name, "."), inner)
		}
	}
	walk("", in(schema, "properties", "config"))
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings and values.schema.json (-docs/config.md +schema)\n%s", diff)
	}
}
