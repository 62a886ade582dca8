package faults

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/authsvc/authsvc/internal/store/machine"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/redistest"
	"github.com/authsvc/authsvc/test/soak"
)

// Who and what is in the installation.
const (
	issuer   = "https://auth.example"
	audience = "https://api.example"
	appID    = "app"
	password = "correct horse battery staple"
	people   = 8
)

// system is the whole installation.
type system struct {
	dir      string
	pg       [2]*pgtest.Server // by slot: of each replica's two links to databases, one leads to each
	primary  int               // the slot of the one that is written to
	disks    [2]string         // small ones of theirs; "" where there is none
	password string            // the file of the database's password
	redis    *redistest.Server
	operator [2]*link // an operator's way to the databases, which no fault is in
	config   string   // the operator's
	replicas []*replica
	nginx    *process
	rest     string // nginx's address, REST
	grpc     string // and gRPC

	serviceID, serviceSecret string
	services                 []*service
}

// replica is one of the three, and its links.
type replica struct {
	*process
	number     int
	binary     string
	config     string
	clock      string // the file that its clock is moved by
	ops        string
	http, grpc *link // to it
	db         [2]*link
	redis      *link
	log        *speech
	starts     int
}

func (r *replica) name() string { return fmt.Sprintf("replica %d", r.number) }

// settings of the databases: few connections, so that they can run out, and as much of the log kept as a standby needs that was away for a while.
var pgSettings = []string{"max_connections=70", "superuser_reserved_connections=3", "max_wal_senders=6", "max_wal_size=64MB", "wal_keep_size=128MB", "wal_retrieve_retry_interval=200ms"}

// newSystem starts everything, and stops it with the test.
func newSystem(t *testing.T) (*system, error) {
	t.Helper()
	ctx := t.Context()
	s := &system{dir: t.TempDir()}
	if _, err := exec.LookPath("nginx"); err != nil {
		lacking(t, err)
	}
	if err := errors.Join(s.startDatabases(t), s.startRedis(t)); err != nil {
		return nil, err
	}
	for i := range s.operator {
		l, err := newLink("")
		if err != nil {
			return nil, err
		}
		t.Cleanup(l.close)
		s.operator[i] = l
	}
	s.leadToDatabases()
	if err := s.writeSecrets(); err != nil {
		return nil, err
	}
	for n := range 3 {
		r, err := s.newReplica(t, n)
		if err != nil {
			return nil, err
		}
		s.replicas = append(s.replicas, r)
	}
	var err error
	if s.config, err = s.write("operator.yaml", s.settings(s.operator)); err != nil {
		return nil, err
	}
	for _, r := range s.replicas { // the first makes the schema and the keys
		if err := s.start(ctx, r); err != nil {
			return nil, err
		}
	}
	if err := s.register(ctx); err != nil {
		return nil, err
	}
	if err := s.balance(t); err != nil {
		return nil, err
	}
	return s, s.attach(t)
}

func (s *system) startDatabases(t *testing.T) error {
	for slot := range s.disks {
		if err := s.smallDisk(t, slot); err != nil {
			return err
		}
	}
	primary, err := pgtest.StartIn(t.Context(), s.disks[0], pgSettings...)
	if errors.Is(err, pgtest.ErrMissing) {
		lacking(t, err)
	}
	if err != nil {
		return err
	}
	t.Cleanup(func() {
		for _, pg := range s.pg {
			if pg == nil {
				continue
			}
			if err := pg.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	s.pg[0] = primary
	for _, q := range []string{`CREATE ROLE authsvc LOGIN PASSWORD 'horse battery'`, `CREATE DATABASE authsvc OWNER authsvc`} {
		if _, err := primary.SQL(t.Context(), "postgres", q); err != nil {
			return err
		}
	}
	s.pg[1], err = s.standby(t.Context(), 1)
	return err
}

func (s *system) startRedis(t *testing.T) (err error) {
	s.redis, err = redistest.Start(t.Context())
	if errors.Is(err, redistest.ErrMissing) {
		lacking(t, err)
	}
	if err == nil {
		t.Cleanup(func() {
			if err := s.redis.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return err
}

// standby makes one for the primary, on the disk of a slot.
func (s *system) standby(ctx context.Context, slot int) (*pgtest.Server, error) {
	return s.pg[1-slot].StandbyIn(ctx, s.disks[slot])
}

// smallDisk mounts a disk in memory that can be filled, where a soak may: as root, on a machine that lets root mount.
func (s *system) smallDisk(t *testing.T, slot int) error {
	if !soak.On() || os.Geteuid() != 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "authsvc-disk-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=400m,mode=755"); err != nil {
		t.Logf("no small disk can be mounted, so none is filled: %v", err)
		return os.Remove(dir)
	}
	s.disks[slot] = dir
	t.Cleanup(func() {
		if err := errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)); err != nil {
			t.Error(err)
		}
	})
	return nil
}

// leadToDatabases points every link of a slot to the server that is there.
func (s *system) leadToDatabases() {
	for slot, pg := range s.pg {
		address := fmt.Sprintf("127.0.0.1:%d", pg.Port)
		s.operator[slot].lead(address)
		for _, r := range s.replicas {
			r.db[slot].lead(address)
		}
	}
}

func (s *system) write(name, text string) (string, error) {
	path := filepath.Join(s.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

func (s *system) writeSecrets() (err error) {
	var keys [2][32]byte
	for i := range keys {
		_, _ = rand.Read(keys[i][:]) // it never fails
	}
	for name, text := range map[string]string{
		"kek.json":     fmt.Sprintf(`{"keys":[{"id":"1","key":%q}]}`, base64.RawURLEncoding.EncodeToString(keys[0][:])),
		"refresh.json": fmt.Sprintf(`{"keys":[{"id":1,"key":%q}]}`, base64.RawURLEncoding.EncodeToString(keys[1][:])),
	} {
		if _, err := s.write(name, text); err != nil {
			return err
		}
	}
	s.password, err = s.write("password", "horse battery")
	return err
}

// settings is a configuration whose database is at the other end of two links.
func (s *system) settings(db [2]*link) string {
	return fmt.Sprintf(`issuer: %s
database: {url: "postgres://authsvc@%s,%s/authsvc?sslmode=disable&pool_max_conns=12", password_file: %q}
secrets: {key_encryption_keys_file: %q, refresh_keys_file: %q}
http: {address: "127.0.0.1:0"}
grpc: {address: "127.0.0.1:0"}
ops: {address: "127.0.0.1:0"}
gateway: {trusted_proxies: [127.0.0.1/32]}
session: {max_per_account: 10000}
password: {memory_kib: 19456, time: 2, memory_budget_mib: 64}
log: {format: json}
`, issuer, db[0].address(), db[1].address(), s.password, filepath.Join(s.dir, "kek.json"), filepath.Join(s.dir, "refresh.json"))
}

func (s *system) newReplica(t *testing.T, n int) (*replica, error) {
	r := &replica{number: n, log: &speech{}, binary: program, clock: filepath.Join(s.dir, fmt.Sprintf("clock-%d", n))}
	for _, l := range []**link{&r.http, &r.grpc, &r.db[0], &r.db[1], &r.redis} {
		var err error
		if *l, err = newLink(""); err != nil {
			return nil, err
		}
		t.Cleanup((*l).close)
	}
	r.redis.lead(s.redis.Address())
	for slot, pg := range s.pg {
		r.db[slot].lead(fmt.Sprintf("127.0.0.1:%d", pg.Port))
	}
	t.Cleanup(func() {
		if r.process != nil {
			_ = r.kill()
		}
	})
	var err error
	r.config, err = s.write(fmt.Sprintf("replica-%d.yaml", n), s.settings(r.db)+fmt.Sprintf("redis: {addresses: [%q]}\n", r.redis.address()))
	return r, err
}

// start runs a replica and waits until it is ready.
func (s *system) start(ctx context.Context, r *replica) error {
	cmd := exec.Command(r.binary, "serve", "-config", r.config)
	cmd.Env = environment("FAULTCLOCK_FILE="+r.clock, "GOMAXPROCS=2")
	r.starts++
	mark := fmt.Sprintf("--- start %d ---\n", r.starts)
	_, _ = r.log.Write([]byte(mark))
	p, err := launch(cmd, r.log)
	if err != nil {
		return err
	}
	r.process = p
	return errors.Join(await(ctx, r.name()+" is ready", func() bool {
		if !p.running() {
			return true
		}
		_, text, _ := strings.Cut(p.said.String(), mark)
		for line := range strings.Lines(text) {
			var l struct{ Msg, HTTP, GRPC, Ops string }
			if json.Unmarshal([]byte(line), &l) == nil && l.Msg == "serving" {
				r.http.lead(l.HTTP)
				r.grpc.lead(l.GRPC)
				r.ops = "http://" + l.Ops
				return r.ready(ctx)
			}
		}
		return false
	}), r.ended())
}

// leadNowhere is for a replica that has ended: somebody else may get its ports before it is started again, at others.
func (r *replica) leadNowhere() {
	r.http.lead(nowhere)
	r.grpc.lead(nowhere)
}

// nowhere refuses connections.
const nowhere = "127.0.0.1:1"

func (r *replica) ended() error {
	if r.running() {
		return nil
	}
	said := r.said.String()
	return fmt.Errorf("%s has ended: %w\n%s", r.name(), r.err, said[max(0, len(said)-4000):])
}

func (r *replica) ready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.ops+"/readyz", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// operate runs a command of an operator.
func (s *system) operate(ctx context.Context, stdin, group, verb string, args ...string) (string, error) {
	return authsvc(ctx, program, stdin, append([]string{group, verb, "-config", s.config}, args...)...)
}

func person(n int) string { return fmt.Sprintf("person-%d", n) }

// register makes the clients and the accounts.
func (s *system) register(ctx context.Context) error {
	if _, err := s.operate(ctx, "", "client", "create", "-kind", "public", "-id", appID, "-reuse-window", reuseWindow.String(), "-audience", audience,
		"-audience", issuer, "-default-audience", audience, "-default-audience", issuer); err != nil {
		return err
	}
	made, err := s.operate(ctx, "", "client", "create", "-o", "json", "-kind", "confidential", "-audience", audience, "-default-audience", audience,
		"-audience", issuer)
	if err != nil {
		return err
	}
	var c struct {
		ID     string `json:"client_id"`
		Secret string `json:"client_secret"`
	}
	if err := json.Unmarshal([]byte(made), &c); err != nil {
		return err
	}
	s.serviceID, s.serviceSecret = c.ID, c.Secret
	for n := range people {
		if _, err := s.operate(ctx, password+"\n", "account", "create", person(n)); err != nil {
			return err
		}
	}
	return nil
}

// balance runs nginx in front of the replicas. It tries another one only where nothing was sent, which is its default for POST.
func (s *system) balance(t *testing.T) error {
	dir, err := os.MkdirTemp("", "ngx")
	if err != nil {
		return err
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var rest, grpc []string
	for _, r := range s.replicas {
		rest = append(rest, "server "+r.http.address()+" max_fails=1 fail_timeout=1s;")
		grpc = append(grpc, "server "+r.grpc.address()+" max_fails=1 fail_timeout=1s;")
	}
	ports := make([]string, 2)
	for i := range ports {
		port, err := machine.FreePort()
		if err != nil {
			return err
		}
		ports[i] = fmt.Sprint("127.0.0.1:", port)
	}
	s.rest, s.grpc = "http://"+ports[0], ports[1]
	conf := fmt.Sprintf(`daemon off; master_process off; pid %[1]s/pid; error_log stderr warn;
events { worker_connections 2048; }
http {
  access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  upstream rest { %[2]s keepalive 32; }
  upstream grpc { %[3]s keepalive 32; }
  server { listen %[4]s;
    location / {
      proxy_pass http://rest; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_connect_timeout 1s; proxy_read_timeout 3s; proxy_next_upstream error timeout;
    } }
  server { listen %[5]s http2;
    location / { grpc_pass grpc://grpc; grpc_connect_timeout 1s; grpc_read_timeout 30s; grpc_next_upstream error timeout; } }
}
`, dir, strings.Join(rest, " "), strings.Join(grpc, " "), ports[0], ports[1])
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return err
	}
	if s.nginx, err = launch(exec.Command("nginx", "-p", dir, "-e", "stderr", "-c", path), &speech{}); err != nil {
		return err
	}
	t.Cleanup(func() { _ = s.nginx.kill() })
	err = await(t.Context(), "nginx listens", func() bool {
		conn, err := net.Dial("tcp", ports[0])
		if err == nil {
			_ = conn.Close()
		}
		return err == nil || !s.nginx.running()
	})
	if err == nil && !s.nginx.running() {
		err = fmt.Errorf("nginx has ended: %w\n%s", s.nginx.err, s.nginx.said)
	}
	return err
}
