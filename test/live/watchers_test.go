package live

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	adminv1 "github.com/authsvc/authsvc/gen/authsvc/admin/v1"
	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// again signs in, as soon as the server has a key to sign with.
func (s *server) again(t *testing.T) answer {
	t.Helper()
	var in answer
	await(t, "somebody can sign in", func() bool {
		in = s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password))
		return in.code == http.StatusOK
	})
	return in
}

// TestP01WhatTheOperatorRevokesIsRefusedAtOnce runs every command that revokes, beside a server that runs, and asks a verifier on
// its feed. It prints how long each took; what it may take is measured by the benchmarks.
func TestP01WhatTheOperatorRevokesIsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	w := watch(t, s, nil)
	w.ready(t)
	claim := func(in answer, n int, name string) string {
		v, _ := part(t, in.text("access_token"), n)[name].(string)
		return v
	}
	for _, tt := range []struct {
		name    string
		command func(in answer) []string
		spares  bool // another session's token
	}{
		{"session revoke", func(in answer) []string {
			return []string{"session", "revoke", "-dir", dir, "--", in.text("session_id")}
		}, true},
		{"revoke -sid", func(in answer) []string { return []string{"revoke", "-dir", dir, "-sid=" + in.text("session_id")} }, true},
		{"revoke -jti", func(in answer) []string { return []string{"revoke", "-dir", dir, "-jti=" + claim(in, 1, "jti")} }, true},
		{"revoke -sub", func(answer) []string { return []string{"revoke", "-dir", dir, "-sub", s.Username} }, false},
		{"revoke -client", func(answer) []string { return []string{"revoke", "-dir", dir, "-client=" + s.PublicClientID} }, false},
		{"revoke -everything", func(answer) []string { return []string{"revoke", "-dir", dir, "-everything"} }, false},
		{"account disable", func(answer) []string { return []string{"account", "disable", "-dir", dir, s.Username} }, false},
		{"keys revoke KID", func(in answer) []string { return []string{"keys", "revoke", "-dir", dir, "--", claim(in, 0, "kid")} }, false},
		{"keys revoke -all", func(answer) []string { return []string{"keys", "revoke", "-dir", dir, "-all"} }, false},
	} {
		hit, other := s.again(t), s.again(t)
		for _, in := range []answer{hit, other} {
			await(t, "the twin: before "+tt.name+" a token is good", func() bool { return w.says(t, in.text("access_token")) == nil })
		}
		began := time.Now()
		operate(t, "", tt.command(hit)...)
		ended := time.Now()
		await(t, "after "+tt.name+" the token is refused", func() bool { return w.says(t, hit.text("access_token")) != nil })
		t.Logf("%-18s refused %4d ms after the command began, %3d ms after it ended", tt.name, time.Since(began).Milliseconds(), time.Since(ended).Milliseconds())
		if err := w.says(t, hit.text("access_token")); !errors.Is(err, verify.ErrRevoked) && !(strings.HasPrefix(tt.name, "keys") && errors.Is(err, verify.ErrKeyUnknown)) {
			t.Errorf("after %s: %v", tt.name, err)
		}
		if tt.spares {
			if err := w.says(t, other.text("access_token")); err != nil {
				t.Errorf("the twin: another session's token after %s: %v", tt.name, err)
			}
		} else {
			await(t, "after "+tt.name+" the other token is refused", func() bool { return w.says(t, other.text("access_token")) != nil })
		}
		if tt.name == "account disable" {
			operate(t, "", "account", "enable", "-dir", dir, s.Username)
		}
	}
	next := s.again(t).text("access_token")
	await(t, "after all of it a new token is good", func() bool { return w.says(t, next) == nil })
}

// watching is one row of authsvc watchers.
type watching struct {
	Address  string   `json:"address"`
	Client   string   `json:"client_id"`
	Position *int64   `json:"position"`
	Age      string   `json:"age"`
	Kids     []string `json:"kids"`
}

// watchers asks the command.
func watchers(t *testing.T, dir string) (all []watching) {
	t.Helper()
	if err := json.Unmarshal([]byte(operate(t, "", "watchers", "-dir", dir, "-o", "json")), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestP02TheOperatorSeesWhoWatchesAndWhoLacksAKey has one verifier on the feed, and one that has stopped reading it in the middle
// of its snapshot.
func TestP02TheOperatorSeesWhoWatchesAndWhoLacksAKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	operate(t, "", "revoke", "-dir", dir, "-jti="+part(t, s.login(t).text("access_token"), 1)["jti"].(string))
	run(t, database(t, dir), `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
		INSERT INTO revocations (kind, id, not_before, expires_at) SELECT kind, id || i, not_before, expires_at FROM revocations, n`)
	await(t, "the server has read the log", func() bool { return s.metric(t, "authsvc_revocation_live") > 30_000 })
	w := watch(t, s, nil)
	w.ready(t)
	var one []watching
	await(t, "the verifier is seen", func() bool { one = watchers(t, dir); return len(one) == 1 && one[0].Age != "" })
	age, err := time.ParseDuration(one[0].Age)
	if one[0].Address != "127.0.0.1" || one[0].Client != s.ServiceClientID || one[0].Position == nil || *one[0].Position != 30_001 || len(one[0].Kids) != 2 || err != nil || age < 0 {
		t.Errorf("it is seen as %+v", one[0])
	}
	table := strings.Split(operate(t, "", "watchers", "-dir", dir), "\n")
	if head, row := strings.Fields(table[0]), strings.Fields(table[1]); strings.Join(head, " ") != "ADDRESS CLIENT SINCE POSITION AGE KIDS" ||
		len(row) != 7 || row[0] != "127.0.0.1" || row[1] != s.ServiceClientID || row[3] != "30001" {
		t.Errorf("the table is %q", table)
	}
	if out := operate(t, "", "keys", "list", "-dir", dir); !strings.Contains(out, "is held by 1 of 1 watchers; watchers of other servers and services that poll the key set are not counted") {
		t.Errorf("the twin: all hold the pending key: %s", out)
	}

	stalled, err := authsvcv1.NewTrustServiceClient(wire(t, s.GRPC, grpc.WithStaticStreamWindowSize(64<<10))).WatchTrust(
		metadata.AppendToOutgoingContext(t.Context(), "authorization", s.basic()), &authsvcv1.WatchTrustRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := stalled.Recv(); err != nil || m.GetSnapshot() == nil || m.GetSnapshot().GetCursor() != "" {
		t.Fatalf("the first part of the snapshot: %v %v", m.GetSnapshot().GetCursor(), err)
	}
	all := watchers(t, dir)
	if len(all) != 2 || all[0].Position == nil || all[1].Position != nil || all[1].Age != "" || len(all[1].Kids) != 0 {
		t.Errorf("both are seen as %+v", all)
	}
	lacks := "127.0.0.1 lacks it: client " + s.ServiceClientID + ", since 20"
	if out := operate(t, "", "keys", "list", "-dir", dir); !strings.Contains(out, "is held by 1 of 2 watchers; ") || strings.Count(out, lacks) != 1 {
		t.Errorf("who lacks the pending key: %s", out)
	}
	var keys []struct {
		State string
		Feed  *struct {
			Watchers, Holding int
			Lacking           []watching
		}
	}
	if err := json.Unmarshal([]byte(operate(t, "", "keys", "list", "-dir", dir, "-o", "json")), &keys); err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if pending := k.State == "pending"; (k.Feed != nil) != pending || pending && (k.Feed.Watchers != 2 || k.Feed.Holding != 1 || len(k.Feed.Lacking) != 1) {
			t.Errorf("a key that is %s: %+v", k.State, k.Feed)
		}
	}
	if out := operate(t, "", "keys", "rotate", "-now", "-dir", dir); !strings.Contains(out, "authsvc: warning: "+lacks) || !strings.Contains(out, " is the signer") {
		t.Errorf("the next key signs at once: %s", out)
	}
	next := s.login(t).text("access_token")
	await(t, "the verifier on the feed takes its tokens", func() bool { return w.says(t, next) == nil })
}

// TestA01A04TheAdminSocket looks at it from outside: where it stands, who has it, and that nothing of it is on a port.
func TestA01A04TheAdminSocket(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	socket := filepath.Join(dir, "admin.sock")
	if info, err := os.Lstat(socket); err != nil || info.Mode() != fs.ModeSocket|0o600 {
		t.Errorf("it stands as %v: %v", info, err)
	}
	_, err := adminv1.NewWatcherServiceClient(wire(t, s.GRPC)).ListWatchers(metadata.AppendToOutgoingContext(t.Context(), "authorization", s.basic()),
		&adminv1.ListWatchersRequest{})
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("A01 its service at the public port: %v", err)
	}
	conn := wire(t, "unix:"+socket)
	if _, err := authsvcv1.NewTrustServiceClient(conn).GetKeySet(t.Context(), &authsvcv1.GetKeySetRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("A01 a public service at the socket: %v", err)
	}
	if _, err := adminv1.NewWatcherServiceClient(conn).ListWatchers(t.Context(), &adminv1.ListWatchersRequest{}); err != nil {
		t.Errorf("the twin: its service at the socket: %v", err)
	}
	operate(t, "", "watchers", "-dir", dir)

	second := process("serve", "-config", configure(t, dir, plain+"admin: {socket: \""+socket+"\"}\n"))
	if out, err := second.CombinedOutput(); err == nil || !strings.Contains(string(out), "admin.socket: "+socket+": another authsvc serves there") {
		t.Errorf("a second server by the same socket: %v\n%s", err, out)
	}
	third := process("serve", "-dev", "-dir", dir, "-http", "127.0.0.1:0", "-grpc", "127.0.0.1:0", "-ops", "127.0.0.1:0")
	if out, err := third.CombinedOutput(); err == nil || !strings.Contains(string(out), fmt.Sprintf("database.path: another server, process %d, serves", s.cmd.Process.Pid)) {
		t.Errorf("a second server for a trial by the same file: %v\n%s", err, out)
	}
	operate(t, "", "watchers", "-dir", dir) // and the first goes on
	s.kill(t)
	if _, err := os.Lstat(socket); err != nil {
		t.Fatalf("what a killed server leaves: %v", err)
	}
	if out, err := command("", "watchers", "-dir", dir); err == nil || !strings.Contains(out, "no server answers at the admin socket "+socket) {
		t.Errorf("with no server: %v %s", err, out)
	}
	s = start(t, dir)
	operate(t, "", "watchers", "-dir", dir)
	s.stop(t)
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a server that was stopped leaves %v", err)
	}
	serve(t, dir, s.dev, plain+"admin: {socket: \""+socket+"\"}\n", "http")
	operate(t, "", "watchers", "-config", filepath.Join(dir, "authsvc.yaml"))
}

// greeted reports whether the server speaks to who connects at the socket.
func greeted(socket string) (bool, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return false, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return false, err
	}
	if _, err := c.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		return false, err
	} else if err != nil {
		return false, nil //nolint:nilerr // it is closed, as for one who is not let in
	}
	return true, nil
}

// TestA04AStrangerIsTurnedAwayEvenWhereTheSocketIsWidened connects as another user, on a thread of its own.
func TestA04AStrangerIsTurnedAwayEvenWhereTheSocketIsWidened(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		lacking(t, "only root can be another user")
	}
	const nobody = 65534
	dir := t.TempDir()
	s := start(t, dir)
	socket := filepath.Join(dir, "admin.sock")
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chmod(dir, 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	type answer struct {
		in  bool
		err error
	}
	stranger := make(chan answer, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, nobody, nobody, nobody); errno != 0 {
			stranger <- answer{err: errno}
			return
		}
		first, err := greeted(socket)
		again, twice := greeted(socket) // of which the log says nothing more
		stranger <- answer{first || again, errors.Join(err, twice)}
	}()
	if a := <-stranger; a.in || a.err != nil {
		t.Errorf("a stranger is let in: %v %v", a.in, a.err)
	}
	if in, err := greeted(socket); !in || err != nil {
		t.Errorf("the twin: the server's own user: %v %v", in, err)
	}
	s.stop(t)
	if out := s.out.String(); strings.Count(out, "a stranger asked at the admin socket") != 1 || !strings.Contains(out, "65534") {
		t.Errorf("the log says %s", out)
	}
}
