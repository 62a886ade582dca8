package live

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/authsvc/authsvc/test/soak"
)

func TestF17AConnectionCutAfterTheRequestLogsNobodyOut(t *testing.T) {
	t.Parallel()
	s := start(t, t.TempDir())
	in := s.login(t)
	token := in.text("refresh_token")
	rounds := soak.Count(100, 1000)
	if testing.Short() {
		rounds = 5
	}
	for round := range rounds {
		body := fmt.Sprintf(`{"refresh_token":%q,"client_id":%q}`, token, s.PublicClientID)
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.HTTP, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "POST /v1/auth/refresh HTTP/1.1\r\nHost: x\r\nUser-Agent: Go-http-client/1.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(); err != nil { // the answer, if there is one, is lost
			t.Fatal(err)
		}
		retry := s.refresh(t, token)
		if retry.code != http.StatusOK {
			t.Fatalf("round %d: the retry answered %d %s", round, retry.code, retry.raw)
		}
		token = retry.text("refresh_token")
	}
}

func TestD22AStopInMidCallLeavesNothingHalfDone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	var mu sync.Mutex
	var answered []answer
	var wg sync.WaitGroup
	first := make(chan struct{})
	var once sync.Once
	for range 4 {
		wg.Go(func() {
			for range 40 {
				a, err := try(t.Context(), "POST", s.HTTP+"/v1/auth/login", "", map[string]any{"username": s.Username, "password": s.Password, "client_id": s.PublicClientID})
				switch {
				case err != nil:
					return // the door is closed
				case a.code == http.StatusOK:
					mu.Lock()
					answered = append(answered, a)
					mu.Unlock()
					once.Do(func() { close(first) })
				case a.code != http.StatusServiceUnavailable && a.code != http.StatusTooManyRequests:
					t.Errorf("a login in mid-stop answered %d %s", a.code, a.raw)
				}
			}
		})
	}
	<-first // the others are in the middle of theirs
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	err := <-s.exited
	s.exited <- err
	wg.Wait()
	if err != nil {
		t.Fatalf("after SIGTERM: %v\n%s", err, s.out)
	}
	s = start(t, dir)
	for _, a := range answered {
		if r := s.refresh(t, a.text("refresh_token")); r.code != http.StatusOK {
			t.Errorf("a session that was answered is lost: %d %s", r.code, r.raw)
		}
	}
}
