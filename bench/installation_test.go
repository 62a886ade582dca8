package bench

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

const (
	issuer   = "https://auth.bench.example"
	audience = "https://api.bench.example"
	username = "bench"
	password = "a password of some length"
	app      = "bench-app"
	crowd    = 10 // accounts beside that one, so that none reaches its limit of sessions in a measurement of logins
)

// member is the name of one of the crowd's accounts.
func member(i int) string { return fmt.Sprintf("member-%d", i%crowd) }

// installation is a server as it is run for real: a configuration file, SQLite beside it or a PostgreSQL, metrics on, traces
// sampled at 1 % and sent by OTLP to a collector in this process.
type installation struct {
	*process
	dir            string
	http, rpc, ops string // host:port
	collector      string
	basic          string // the service client's authorization
	conn           *grpc.ClientConn
	auth           authsvcv1.AuthServiceClient
}

// install makes an installation on SQLite with an account, an app and a service, and starts it.
func install(b testing.TB) *installation {
	b.Helper()
	in := arrange(b, "", nil)
	in.furnish(b)
	return in
}

// arrange writes the files of an installation; settings say where its data is, and are empty for SQLite. Another replica of
// an installation has that one's secrets.
func arrange(b testing.TB, settings string, of *installation) *installation {
	b.Helper()
	in := &installation{dir: b.TempDir(), http: freePort(), rpc: freePort(), ops: freePort()}
	if of == nil {
		in.collector = collect(b)
	} else {
		in.collector, in.basic = of.collector, of.basic
	}
	for name, id := range map[string]any{"kek.json": "1", "refresh.json": 1} {
		var content []byte
		if of == nil {
			key := make([]byte, 32)
			_, _ = rand.Read(key) // never fails
			content = must(json.Marshal(map[string]any{"keys": []any{map[string]any{"id": id, "key": base64.RawURLEncoding.EncodeToString(key)}}}))
		} else {
			content = must(os.ReadFile(of.path(name)))
		}
		if err := os.WriteFile(in.path(name), content, 0o600); err != nil {
			b.Fatal(err)
		}
	}
	if settings == "" {
		settings = fmt.Sprintf("database: {path: %s}", in.path("authsvc.db"))
	}
	config := fmt.Sprintf(`
issuer: %s
http: {address: %s}
grpc: {address: %s}
ops: {address: %s, pprof: true}
%s
secrets: {key_encryption_keys_file: %s, refresh_keys_file: %s}
forward_auth: {audiences: [%s]}
telemetry: {endpoint: %s, insecure: true, sample_ratio: 0.01}
`, issuer, in.http, in.rpc, in.ops, settings, in.path("kek.json"), in.path("refresh.json"), audience, in.collector)
	if err := os.WriteFile(in.path("config.yaml"), []byte(config), 0o600); err != nil {
		b.Fatal(err)
	}
	return in
}

// furnish starts the server and makes the accounts and the clients.
func (in *installation) furnish(b testing.TB) {
	b.Helper()
	in.cli(b, "config", "check")
	in.start(b) // the CLI works on a database that a server has made
	in.cliWith(b, password+"\n", "account", "create", username)
	for i := range crowd {
		in.cliWith(b, password+"\n", "account", "create", member(i))
	}
	in.cli(b, "client", "create", "-id", app, "-kind", "public", "-name", "app", "-access-ttl", "15m", "-audience", audience,
		"-default-audience", audience)
	out := in.cli(b, "client", "create", "-o", "json", "-id", "bench-service", "-kind", "confidential", "-name", "service", "-audience", audience,
		"-default-audience", audience)
	secret := parse[struct {
		Secret string `json:"client_secret"`
	}](b, out).Secret
	r, _ := http.NewRequest(http.MethodGet, "http://127.0.0.1", nil)
	r.SetBasicAuth("bench-service", secret)
	in.basic = r.Header.Get("Authorization")
}

func (in *installation) path(name string) string { return filepath.Join(in.dir, name) }

func (in *installation) cli(b testing.TB, args ...string) []byte {
	b.Helper()
	return in.cliWith(b, "", args...)
}

func (in *installation) cliWith(b testing.TB, stdin string, args ...string) []byte {
	b.Helper()
	words := append([]string{args[0]}, args[1])
	cmd := exec.Command(authsvc, append(append(words, "-config", in.path("config.yaml")), args[2:]...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("authsvc %s: %v\n%s", strings.Join(args, " "), err, &errs)
	}
	return out
}

// start starts the server and gives how long it took until /readyz said yes.
func (in *installation) start(b testing.TB) time.Duration {
	b.Helper()
	cmd := exec.Command(authsvc, "serve", "-config", in.path("config.yaml"))
	cmd.Stdout = must(os.Create(in.path("log")))
	begun := time.Now()
	in.process = launch(b, cmd)
	took := ready(b, in.ops, begun)
	if in.conn == nil {
		in.conn = must(grpc.NewClient(in.rpc, grpc.WithTransportCredentials(insecure.NewCredentials())))
		in.auth = authsvcv1.NewAuthServiceClient(in.conn)
		b.Cleanup(func() { _ = in.conn.Close() })
	}
	return took
}

// ready waits for /readyz.
func ready(b testing.TB, ops string, begun time.Time) time.Duration {
	b.Helper()
	for time.Since(begun) < 30*time.Second {
		resp, err := http.Get("http://" + ops + "/readyz")
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return time.Since(begun)
			}
		}
		time.Sleep(time.Millisecond / 2)
	}
	b.Fatal("not ready within 30 s")
	return 0
}

// login gives a new session's tokens.
func (in *installation) login(b testing.TB) *authsvcv1.LoginResponse {
	b.Helper()
	out, err := in.auth.Login(b.Context(), &authsvcv1.LoginRequest{Username: username, Password: password, ClientId: app}, grpc.WaitForReady(true))
	if err != nil {
		b.Fatal(err)
	}
	return out
}

// tokens gives n distinct access tokens of one session.
func (in *installation) tokens(b testing.TB, n int) []string {
	b.Helper()
	refresh, all := in.login(b).GetRefreshToken(), make([]string, n)
	for i := range all {
		out, err := in.auth.Refresh(b.Context(), &authsvcv1.RefreshRequest{RefreshToken: refresh, ClientId: app})
		if err != nil {
			b.Fatal(err)
		}
		refresh, all[i] = out.GetRefreshToken(), out.GetAccessToken()
	}
	return all
}

// asService authenticates a call as the service client.
func (in *installation) asService(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", in.basic)
}

func freePort() string {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	defer l.Close()
	return l.Addr().String()
}

// collect takes what OTLP brings and answers that it did.
func collect(b testing.TB) string {
	b.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	s := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		return stream.SendMsg(&emptypb.Empty{})
	}))
	go func() { _ = s.Serve(l) }()
	b.Cleanup(s.Stop)
	return l.Addr().String()
}
