package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// demoAudience is the API of the demo clients.
const demoAudience = "https://demo-api.example"

// demo is demo.json: where the doors are, and who may try them. Its names are those of serve -dev's dev.json.
type demo struct {
	HTTP                string `json:"http"`
	GRPC                string `json:"grpc"`
	Issuer              string `json:"issuer"`
	CAFile              string `json:"ca_file"`
	Username            string `json:"username"`
	Password            string `json:"password"`
	PublicClientID      string `json:"public_client_id"`
	ServiceClientID     string `json:"service_client_id"`
	ServiceClientSecret string `json:"service_client_secret"`
	Audience            string `json:"audience"`
}

func (c *cluster) makeSecrets(ctx context.Context) error {
	_, err := command(ctx, nil, c.dir, "", environ(), filepath.Join(c.shipped, "secrets.sh"), c.path("secrets"))
	return err
}

func (c *cluster) startRedis(ctx context.Context) error {
	redis, err := program("redis-server")
	if err != nil {
		return err
	}
	text, err := c.rendered("compose/redis.conf", "tls-port 6379", "bind 127.0.0.1\ntls-port "+strconv.Itoa(c.port(redisPort)),
		"/run/secrets/", c.path("secrets")+"/", "dir /tmp", "dir "+c.path("redis"))
	if err != nil {
		return err
	}
	conf := c.path("redis", "redis.conf")
	if err := os.WriteFile(conf, text, 0o600); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.group.run(ctx, spec{name: "Redis", args: []string{redis, conf}, dir: c.path("redis"), env: environ(), log: c.path("log", "redis.log"), pid: c.path("pid", "redis"),
		signal: syscall.SIGTERM}, func(ctx context.Context) error {
		conn, err := (&tls.Dialer{Config: client.Transport.(*http.Transport).TLSClientConfig}).DialContext(ctx, "tcp", c.address(redisPort))
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// startReplicas configures the replicas and starts them together.
func (c *cluster) startReplicas(ctx context.Context) error {
	issuer, err := c.issuer()
	if err != nil {
		return err
	}
	for n := 1; n <= replicas; n++ {
		if err := os.MkdirAll(c.replicaDir(n), 0o700); err != nil {
			return err
		}
		text, err := c.rendered("compose/authsvc.yaml",
			"https://localhost:8443", issuer,
			`":8080"`, strconv.Quote(c.address(10*n)), `":9090"`, strconv.Quote(c.address(10*n+1))+"\n  reflection: true", `"127.0.0.1:9091"`, strconv.Quote(c.address(10*n+2)),
			"@postgres:5432/", "@"+c.address(primaryPort)+","+c.address(standbyPort)+"/",
			"authsvc?sslmode=", "authsvc?connect_timeout=5&sslmode=", // all of it starts at once on one machine, and a primary that is slow is there
			"redis:6379", c.address(redisPort), "172.30.77.10/32", "127.0.0.1/32",
			"/run/secrets/", c.path("secrets")+"/", "/run/authsvc/", c.replicaDir(n)+"/")
		if err != nil {
			return err
		}
		if err := os.WriteFile(c.config(n), text, 0o600); err != nil {
			return err
		}
		if _, err := c.operate(ctx, "", "config", "check", "-config", c.config(n)); err != nil {
			return err
		}
	}
	started := make(chan error, replicas)
	for n := 1; n <= replicas; n++ {
		s := spec{name: "replica " + strconv.Itoa(n), args: []string{c.authsvc, "serve", "-config", c.config(n)}, dir: c.replicaDir(n), env: environ(),
			log: c.path("log", filepath.Base(c.replicaDir(n))+".log"), pid: c.path("pid", filepath.Base(c.replicaDir(n))), signal: syscall.SIGTERM}
		ready := "http://" + c.address(10*n+2) + "/readyz"
		go func() {
			started <- c.group.run(ctx, s, func(ctx context.Context) error { return get(ctx, http.DefaultClient, ready) })
		}()
	}
	for range replicas {
		err = errors.Join(err, <-started)
	}
	if err != nil {
		return err
	}
	_, err = c.operate(ctx, "", "migrate", "up", "-config", c.config(1)) // what an older program left here; it holds up nobody
	return err
}

func (c *cluster) config(n int) string { return filepath.Join(c.replicaDir(n), "authsvc.yaml") }

// issuer is that of the first start, since every token carries it.
func (c *cluster) issuer() (string, error) {
	kept, err := os.ReadFile(c.path("issuer"))
	if errors.Is(err, fs.ErrNotExist) {
		issuer := "https://localhost:" + strconv.Itoa(c.port(restPort))
		return issuer, os.WriteFile(c.path("issuer"), []byte(issuer+"\n"), 0o600)
	}
	return strings.TrimSpace(string(kept)), err
}

// operate runs a command of authsvc's.
func (c *cluster) operate(ctx context.Context, stdin string, args ...string) (string, error) {
	return command(ctx, nil, c.dir, stdin, environ(), append([]string{c.authsvc}, args...)...)
}

// makeDemo makes the account and the clients, and writes demo.json once all of them are there. Its addresses are those of this start.
func (c *cluster) makeDemo(ctx context.Context) error {
	issuer, err := c.issuer()
	if err != nil {
		return err
	}
	text, err := os.ReadFile(c.path("demo.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if c.demo, err = c.newDemo(ctx, issuer); err != nil {
			return err
		}
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(text, &c.demo); err != nil {
			return fmt.Errorf("%s: %w", c.path("demo.json"), err)
		}
	}
	c.demo.HTTP, c.demo.GRPC = "https://localhost:"+strconv.Itoa(c.port(restPort)), "localhost:"+strconv.Itoa(c.port(grpcPort))
	c.demo.Issuer, c.demo.CAFile = issuer, c.secret("ca.crt")
	if text, err = json.MarshalIndent(c.demo, "", "  "); err != nil { //nolint:gosec // the demo's password is what this file is for
		return err
	}
	begun := c.path("demo.json.new")
	if err := os.WriteFile(begun, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(begun, c.path("demo.json"))
}

func (c *cluster) newDemo(ctx context.Context, issuer string) (d demo, err error) {
	d = demo{Username: "demo", Audience: demoAudience}
	if d.Password, err = command(ctx, nil, c.dir, "", environ(), "openssl", "rand", "-hex", "12"); err != nil {
		return d, err
	}
	config := c.config(1)
	create := "create"
	if _, err := c.operate(ctx, "", "account", "show", "-config", config, d.Username); err == nil {
		create = "set-password" // a start before this one got no further
	}
	if _, err := c.operate(ctx, d.Password+"\n", "account", create, "-config", config, d.Username); err != nil {
		return d, err
	}
	scopes := []string{"-scope", "demo.read", "-scope", "demo.write", "-default-scope", "demo.read", "-default-scope", "demo.write",
		"-audience", demoAudience, "-default-audience", demoAudience}
	make := func(args ...string) (id, secret string, err error) {
		out, err := c.operate(ctx, "", append(append([]string{"client", "create", "-config", config, "-o", "json"}, args...), scopes...)...)
		if err != nil {
			return "", "", err
		}
		var made struct {
			ID     string `json:"client_id"`
			Secret string `json:"client_secret"`
		}
		err = json.Unmarshal([]byte(out), &made)
		return made.ID, made.Secret, err
	}
	if d.PublicClientID, _, err = make("-kind", "public", "-name", "demo app", "-audience", issuer, "-default-audience", issuer); err != nil {
		return d, err
	}
	d.ServiceClientID, d.ServiceClientSecret, err = make("-kind", "confidential", "-name", "demo service", "-scope", "authsvc.introspect", "-scope", "authsvc.trust")
	return d, err
}

func (c *cluster) startNginx(ctx context.Context) error {
	nginx, err := program("nginx")
	if err != nil {
		return err
	}
	words := []string{"listen 8443 ", "listen " + c.address(restPort) + " ", "listen 9443 ", "listen " + c.address(grpcPort) + " ",
		"/run/secrets/", c.path("secrets") + "/", "/tmp/", c.path("nginx") + "/"}
	for n := 1; n <= replicas; n++ {
		words = append(words, fmt.Sprintf("authsvc-%d:8080", n), c.address(10*n), fmt.Sprintf("authsvc-%d:9090", n), c.address(10*n+1))
	}
	text, err := c.rendered("compose/nginx.conf", words...)
	if err != nil {
		return err
	}
	conf := c.path("nginx", "nginx.conf")
	if err := os.WriteFile(conf, text, 0o600); err != nil {
		return err
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	return c.group.run(ctx, spec{name: "nginx", args: []string{nginx, "-p", c.path("nginx"), "-e", "stderr", "-c", conf, "-g", "daemon off;"}, dir: c.path("nginx"), env: environ(),
		log: c.path("log", "nginx.log"), pid: c.path("pid", "nginx"), signal: syscall.SIGTERM}, func(ctx context.Context) error {
		return get(ctx, client, c.demo.HTTP+"/.well-known/jwks.json")
	})
}

// client trusts our own authority alone.
func (c *cluster) client() (*http.Client, error) {
	ca, err := os.ReadFile(c.secret("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s holds no certificate", c.secret("ca.crt"))
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}, nil
}

// get wants 200.
func get(ctx context.Context, client *http.Client, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	return nil
}
