// Package deploy tests what deploy/ ships and nobody can run here: the image's Dockerfile, the compose file with what it mounts, and
// the systemd unit.
package deploy

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/authsvc/authsvc/internal/app"
	"github.com/authsvc/authsvc/internal/config"
)

const root = "../.."

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// lacking ends a test for want of something that this machine has not: it is skipped, except where everything is required.
func lacking(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("AUTHSVC_TEST_REQUIRE") != "" {
		t.Fatalf("%s is not installed", what)
	}
	t.Skipf("%s is not installed", what)
}

// service is what the tests look at of one.
type service struct {
	Image     string
	User      string
	ReadOnly  bool     `yaml:"read_only"`
	Privilege bool     `yaml:"privileged"`
	CapDrop   []string `yaml:"cap_drop"`
	CapAdd    []string `yaml:"cap_add"`
	Security  []string `yaml:"security_opt"`
	Command   []string
	Environ   map[string]string `yaml:"environment"`
	Volumes   []string
	Tmpfs     []string
	Secrets   []string
	Ports     []string
	Build     struct{ Context, Dockerfile string }
	Networks  map[string]struct {
		Address string `yaml:"ipv4_address"`
	}
	DependsOn map[string]any          `yaml:"depends_on"`
	Health    struct{ Test []string } `yaml:"healthcheck"`
	Grace     time.Duration           `yaml:"stop_grace_period"`
	Restart   string
}

type composed struct {
	Services map[string]service
	Secrets  map[string]struct{ File string }
	Volumes  map[string]any
	Networks map[string]any
}

func compose(t *testing.T) composed {
	t.Helper()
	var c composed
	if err := yaml.Unmarshal([]byte(read(t, root+"/deploy/compose/compose.yaml")), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Services) < 5 {
		t.Fatalf("compose.yaml has %d services", len(c.Services))
	}
	return c
}

// secrets makes what deploy/compose/prepare makes.
func secrets(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		lacking(t, "openssl")
	}
	dir := filepath.Join(t.TempDir(), "secrets")
	if out, err := exec.Command(root+"/deploy/secrets.sh", dir, "auth.example.com").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return dir
}

var pinned = regexp.MustCompile(`^[a-z0-9./-]+:[0-9]+\.[0-9]+(\.[0-9]+)?[a-z0-9.-]*(@sha256:[0-9a-f]{64})?$`)

func TestComposeServicesHaveNoRightsTheyDoNotNeed(t *testing.T) {
	t.Parallel()
	for name, s := range compose(t).Services {
		ours := strings.HasPrefix(name, "authsvc-")
		if !ours && !pinned.MatchString(s.Image) {
			t.Errorf("%s: the image %q has no version", name, s.Image)
		}
		if !s.ReadOnly || s.Privilege || !slices.Equal(s.CapDrop, []string{"ALL"}) || len(s.CapAdd) > 0 || !slices.Contains(s.Security, "no-new-privileges:true") {
			t.Errorf("%s may do more than it needs: %+v", name, s)
		}
		if !strings.HasPrefix(s.User, "${RUN_AS_UID:?") {
			t.Errorf("%s runs as %q", name, s.User)
		}
		if len(s.Health.Test) == 0 || s.Restart == "" {
			t.Errorf("%s has no health check, or is not started again", name)
		}
		for variable, value := range s.Environ {
			if strings.Contains(variable, "PASSWORD") && !strings.HasPrefix(value, "/run/secrets/") {
				t.Errorf("%s: %s is no file of a secret", name, variable)
			}
		}
		for _, p := range s.Ports {
			if name != "nginx" || !strings.HasPrefix(p, "127.0.0.1:") {
				t.Errorf("%s publishes %s", name, p)
			}
		}
		if ours && s.Grace <= 15*time.Second {
			t.Errorf("%s is killed after %s; it drains for 15 s", name, s.Grace)
		}
	}
}

func TestComposeMountsWhatIsThere(t *testing.T) {
	t.Parallel()
	c := compose(t)
	dir := secrets(t)
	folder := root + "/deploy/compose"
	made := map[string]bool{}
	for name, s := range c.Secrets {
		if s.File != "secrets/"+name {
			t.Errorf("the secret %s is the file %s", name, s.File)
		}
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("prepare does not make %s as it should: %v %v", name, info, err)
		}
	}
	mentioned := regexp.MustCompile(`/run/secrets/([a-zA-Z0-9._-]+)`)
	for name, s := range c.Services {
		text := strings.Join(append(s.Command, s.Health.Test...), " ")
		for _, value := range s.Environ {
			text += " " + value
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if _, named := c.Volumes[from]; named {
				continue
			}
			if info, err := os.Stat(filepath.Join(folder, from)); err != nil || !info.Mode().IsRegular() || !strings.HasSuffix(v, ":ro") {
				t.Errorf("%s mounts %s: %v", name, v, err)
				continue
			}
			if !strings.HasSuffix(from, ".sql") {
				text += " " + read(t, filepath.Join(folder, from))
			}
		}
		needs := map[string]bool{}
		for _, m := range mentioned.FindAllStringSubmatch(text, -1) {
			needs[m[1]] = true
		}
		for _, secret := range s.Secrets {
			if _, ok := c.Secrets[secret]; !ok || !needs[secret] {
				t.Errorf("%s is given %s, which it does not use or is no secret", name, secret)
			}
			made[secret] = true
			delete(needs, secret)
		}
		if len(needs) > 0 {
			t.Errorf("%s is not given %v", name, needs)
		}
		for other := range s.DependsOn {
			if _, ok := c.Services[other]; !ok {
				t.Errorf("%s depends on %s", name, other)
			}
		}
		for network := range s.Networks {
			if _, ok := c.Networks[network]; !ok {
				t.Errorf("%s is in the network %s", name, network)
			}
		}
		if s.Build.Dockerfile != "" {
			if _, err := os.Stat(filepath.Join(folder, s.Build.Context, s.Build.Dockerfile)); err != nil {
				t.Error(err)
			}
		}
	}
	if len(made) != len(c.Secrets) {
		t.Errorf("of %d secrets %d are used", len(c.Secrets), len(made))
	}
}

// TestTheComposedReplicasHaveASoundConfiguration puts the folders of a container where a test can make them.
func TestTheComposedReplicasHaveASoundConfiguration(t *testing.T) {
	t.Parallel()
	c, dir, own := compose(t), secrets(t), t.TempDir()
	if err := os.Chmod(own, 0o700); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("/run/secrets/", dir+"/", "/run/authsvc/", own+"/").Replace(read(t, root+"/deploy/compose/authsvc.yaml"))
	path := filepath.Join(own, "authsvc.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var environ []string
	for name, value := range c.Services["authsvc-1"].Environ {
		environ = append(environ, name+"="+strings.TrimSuffix(value[strings.Index(value, ":-")+2:], "}"))
	}
	cfg, err := config.Load(path, environ)
	if err != nil {
		t.Fatal(err)
	}
	if err := app.CheckConfig(cfg); err != nil {
		t.Error(err)
	}
	nginx := read(t, root+"/deploy/compose/nginx.conf")
	for name := range c.Services {
		if !strings.HasPrefix(name, "authsvc-") {
			continue
		}
		for _, address := range []string{cfg.HTTP.Address, cfg.GRPC.Address} {
			if !strings.Contains(nginx, "server "+name+address+" ") {
				t.Errorf("nginx does not know %s%s", name, address)
			}
		}
	}
	trusted := cfg.Gateway.TrustedProxies
	if len(trusted) != 1 || trusted[0].String() != c.Services["nginx"].Networks["inside"].Address+"/32" {
		t.Errorf("the replicas trust %v, nginx is %s", trusted, c.Services["nginx"].Networks["inside"].Address)
	}
	// The twin of what would be refused: the same beyond loopback without certificates.
	for _, off := range []string{"AUTHSVC_HTTP_TLS_CERT_FILE=", "AUTHSVC_DATABASE_URL=postgres://authsvc@postgres/authsvc?sslmode=require"} {
		cfg, err := config.Load(path, append(environ, off))
		if err == nil {
			err = app.CheckConfig(cfg)
		}
		if err == nil {
			t.Errorf("with %s it is found sound", off)
		}
	}
}

// TestASecondRunKeepsSecrets also looks at what they are.
func TestASecondRunKeepsSecrets(t *testing.T) {
	t.Parallel()
	dir := secrets(t)
	before := map[string]string{}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		before[f.Name()] = read(t, filepath.Join(dir, f.Name()))
	}
	lost := "nginx.crt"
	if err := os.Remove(filepath.Join(dir, lost)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(root+"/deploy/secrets.sh", dir, "auth.example.com").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for name, text := range before {
		if now := read(t, filepath.Join(dir, name)); (now == text) == (name == lost) {
			t.Errorf("%s changed: %v", name, now != text)
		}
	}
	out, err := exec.Command("openssl", "verify", "-CAfile", filepath.Join(dir, "ca.crt"), "-verify_hostname", "auth.example.com", filepath.Join(dir, lost)).CombinedOutput()
	if err != nil {
		t.Errorf("%v %s", err, out)
	}
	out, err = exec.Command("openssl", "verify", "-CAfile", filepath.Join(dir, "ca.crt"), "-verify_hostname", "auth.example.com", filepath.Join(dir, "postgres.crt")).CombinedOutput()
	if err == nil {
		t.Errorf("PostgreSQL's certificate is good for the balancer's name: %s", out)
	}
}

func TestTheDockerfileKeepsItsRules(t *testing.T) {
	t.Parallel()
	text := strings.ReplaceAll(read(t, root+"/deploy/docker/Dockerfile"), "\\\n", " ")
	stages, last := map[string]bool{}, map[string]string{}
	for line := range strings.Lines(text) {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		fields := strings.Fields(rest)
		switch word {
		case "FROM":
			last = map[string]string{"FROM": fields[len(fields)-1]}
			fields = slices.DeleteFunc(fields, func(f string) bool { return strings.HasPrefix(f, "--") })
			if fields[0] != "scratch" && !pinned.MatchString(fields[0]) {
				t.Errorf("the base %s has no version", fields[0])
			}
			if len(fields) == 3 && fields[1] == "AS" {
				stages[fields[2]] = true
			}
		case "ADD":
			t.Errorf("ADD fetches and unpacks: %s", line)
		case "COPY":
			from := ""
			for len(fields) > 0 && strings.HasPrefix(fields[0], "--") {
				from = strings.TrimPrefix(fields[0], "--from=")
				fields = fields[1:]
			}
			if from != "" && !stages[from] {
				t.Errorf("%s copies from %s", line, from)
			}
			for _, f := range fields[:len(fields)-1] {
				if _, err := os.Stat(filepath.Join(root, f)); from == "" && err != nil {
					t.Error(err)
				}
			}
		case "":
		default:
			last[word] = rest
		}
	}
	uid, err := strconv.Atoi(strings.Split(last["USER"], ":")[0])
	if err != nil || uid < 1000 {
		t.Errorf("it runs as %q", last["USER"])
	}
	if last["FROM"] != "scratch" || last["RUN"] != "" {
		t.Errorf("the image itself begins from %s and runs %q", last["FROM"], last["RUN"])
	}
	for _, exec := range []string{"ENTRYPOINT", "CMD"} {
		if !strings.HasPrefix(last[exec], "[") {
			t.Errorf("%s needs a shell: %s", exec, last[exec])
		}
	}
	if !strings.Contains(last["HEALTHCHECK"], `CMD ["/usr/local/bin/authsvc", "health"`) {
		t.Errorf("HEALTHCHECK %s", last["HEALTHCHECK"])
	}
	if !strings.Contains(text, "CGO_ENABLED=0") || !strings.Contains(text, "-trimpath") {
		t.Error("the program is not built static, or with paths of the builder")
	}
}

// TestTheImageIsBuiltFromAllItNeeds reads .dockerignore as Docker does where each line is a name.
func TestTheImageIsBuiltFromAllItNeeds(t *testing.T) {
	t.Parallel()
	allowed := map[string]bool{}
	for line := range strings.Lines(read(t, root+"/.dockerignore")) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "!"); ok {
			allowed[name] = true
		}
	}
	cmd := exec.Command("go", "list", "-deps", "-f", "{{if .Module}}{{if .Module.Main}}{{range .GoFiles}}{{$.Dir}}/{{.}}\n{{end}}{{range .EmbedFiles}}{{$.Dir}}/{{.}}\n{{end}}{{end}}{{end}}", "./cmd/authsvc")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	top, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{"go.mod": true, "go.sum": true}
	for file := range strings.Lines(string(out)) {
		if file = strings.TrimSpace(file); file == "" {
			continue
		}
		rel, err := filepath.Rel(top, file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(rel, "/testdata/") || strings.HasSuffix(rel, "_test.go") {
			t.Errorf(".dockerignore leaves out %s", rel)
		}
		used[strings.Split(rel, "/")[0]] = true
	}
	for name := range used {
		if !allowed[name] {
			t.Errorf(".dockerignore leaves out %s", name)
		}
	}
	for name := range allowed {
		if !used[name] {
			t.Errorf(".dockerignore lets %s in, which the program does not need", name)
		}
	}
}

// TestTheUnitIsSoundAndNarrow asks systemd itself.
func TestTheUnitIsSoundAndNarrow(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		lacking(t, "systemd-analyze (Debian: systemd)")
	}
	dir := t.TempDir()
	program := filepath.Join(dir, "authsvc")
	if err := os.WriteFile(program, []byte("#!/bin/true\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := read(t, root+"/deploy/systemd/authsvc.service")
	unit := filepath.Join(dir, "authsvc.service")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(unit, []byte(strings.ReplaceAll(text, "/usr/local/bin/authsvc", program)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	verify := func() (string, error) {
		out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), err
	}
	dropIn := filepath.Join(dir, "authsvc.service.d")
	if err := os.Mkdir(dropIn, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"postgresql.conf", "redis.conf"} {
		if err := os.WriteFile(filepath.Join(dropIn, name), []byte(read(t, root+"/deploy/systemd/"+name)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(text)
	if out, err := verify(); err != nil || strings.Contains(out, unit) {
		t.Errorf("%v %s", err, out)
	}
	if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=15", unit).CombinedOutput(); err != nil {
		t.Errorf("the unit may do more than 1.5 of 10: %v %s", err, out)
	}
	// The unsafe twins are noticed.
	write(strings.Replace(text, "ProtectSystem=strict", "ProtectSystem=strictly", 1))
	if out, err := verify(); err == nil && !strings.Contains(out, unit) {
		t.Errorf("a word that systemd does not know is not noticed: %s", out)
	}
	write(strings.NewReplacer("CapabilityBoundingSet=\n", "\n", "NoNewPrivileges=yes", "", "ProtectSystem=strict", "").Replace(text))
	if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=15", unit).CombinedOutput(); err == nil {
		t.Errorf("a unit with all capabilities is found narrow: %s", out)
	}
	if stop := regexp.MustCompile(`TimeoutStopSec=(\d+)s`).FindStringSubmatch(text); stop == nil || len(stop[1]) < 2 || stop[1] <= "15" {
		t.Errorf("it is killed while it drains: %v", stop)
	}
}
