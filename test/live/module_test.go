package live

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/authsvc/authsvc/guard"
)

// scratchMain is a service around the lines of the README. They stand where %s does.
const scratchMain = `package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	ctx, issuer, id, secret := context.Background(), os.Args[1], os.Args[2], os.Args[3]
%s
	if err != nil {
		log.Fatal(err)
	}
	grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(l.Addr())
	log.Fatal(s.Serve(l))
}
`

// readmeService builds a service in a module of its own, outside the tree, from the lines of the README and what the module cache
// has. Their address, audience and method are changed as a reader would.
func readmeService(t *testing.T, s *server) (program string) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	lines := regexp.MustCompile(`(?m)^    feed, err := guard\.NewFeed.*\n(    .*\n)*    s := grpc\.NewServer.*\n`).FindString(read("README.md"))
	for old, change := range map[string]string{
		"127.0.0.1:9090": s.GRPC, "https://demo-api.example": s.Audience,
		`"/pkg.Service/Method": {Scopes: []string{"demo.read"}}`: `"/grpc.health.v1.Health/Check": {Scopes: []string{"demo.read"}}, "/grpc.health.v1.Health/Watch": {Scopes: []string{"demo.read"}}`,
	} {
		if !strings.Contains(lines, old) {
			t.Fatalf("the README's lines have no %s:\n%s", old, lines)
		}
		lines = strings.ReplaceAll(lines, old, change)
	}
	dir := t.TempDir()
	for name, content := range map[string]string{
		"main.go": fmt.Sprintf(scratchMain, lines), "go.sum": read("go.sum"),
		"go.mod": fmt.Sprintf("module example.com/scratch\n\n%s\n\nrequire github.com/authsvc/authsvc v0.0.0\n\nreplace github.com/authsvc/authsvc => %s\n",
			regexp.MustCompile(`(?m)^go .*$`).FindString(read("go.mod")), root),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", "scratch", ".")
	build.Dir, build.Env = dir, append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("the README's lines do not build: %v\n%s", err, out)
	}
	return filepath.Join(dir, "scratch")
}

// TestP01P12TheLinesOfTheREADMEAreAService runs what somebody has who read nothing but them: it refuses a token as soon as it was
// revoked, over the wire or by the operator, ends its open stream, and goes on without authsvc.
func TestP01P12TheLinesOfTheREADMEAreAService(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	v := &service{server: &server{cmd: exec.Command(readmeService(t, s), s.Issuer, s.ServiceClientID, s.ServiceClientSecret), exited: make(chan error, 1)}}
	out, err := v.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.kill(t) })
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() { v.exited <- v.cmd.Wait() }()
	if err != nil {
		t.Fatal(err)
	}
	client := grpc_health_v1.NewHealthClient(wire(t, strings.TrimSpace(line)))
	says := func(in *session) string {
		_, err := client.Check(bearing(t.Context(), in.token()), &grpc_health_v1.HealthCheckRequest{})
		return said(err)
	}
	first, second, third := s.signIn(t, "first"), s.signIn(t, "second"), s.signIn(t, "third")
	for _, in := range []*session{first, second, third} {
		await(t, "a good token is let in", func() bool { return says(in) == accepted })
	}
	stream, err := client.Watch(bearing(t.Context(), first.token()), &grpc_health_v1.HealthCheckRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.revoke(t, first)
	revoked := now()
	if _, err := stream.Recv(); said(err) != guard.ReasonTokenRevoked {
		t.Errorf("P12 the open stream ended with %v", err)
	}
	ended := now()
	await(t, "P01 a revoked session is refused", func() bool { return says(first) == guard.ReasonTokenRevoked })
	t.Logf("after the revocation was answered the open stream ended within %s, and the next call was refused within %s",
		time.Duration(ended-revoked), time.Duration(now()-revoked))
	operate(t, "", "session", "revoke", "-dir", dir, second.text("session_id"))
	await(t, "P01 a session that the operator ended is refused", func() bool { return says(second) == guard.ReasonTokenRevoked })
	s.kill(t)
	if got := says(third); got != accepted {
		t.Errorf("the twin: a good token, without authsvc: %s", got)
	}
	if got := says(first); got != guard.ReasonTokenRevoked {
		t.Errorf("a revoked one, without authsvc: %s", got)
	}
}
