package live

import (
	"context"
	"database/sql"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	_ "modernc.org/sqlite" // to look at the file that a killed process leaves behind

	"github.com/authsvc/authsvc/test/soak"
)

// How many callers a kill meets. The account has at most 100 sessions.
const (
	honestCallers = 60 // refresh without end, so that there are always 50 calls in flight
	doomedCallers = 20 // refresh for a while, and then revoke
)

// massacre is the callers of one process and what they were told.
type massacre struct {
	*server
	honest   []string // the newest refresh token of each
	inFlight atomic.Int64
	answers  atomic.Int64
	killAt   int64
	reached  chan struct{}
	once     sync.Once
	mu       sync.Mutex
	revoked  []answer // acknowledged: the last answer before it, whose tokens must be dead
	left     []string // sessions whose revocation nobody acknowledged
}

// ask sends one call and counts it, and sends it again where nothing was decided. The last one to be answered before the kill says so.
func (m *massacre) ask(ctx context.Context, path string, body map[string]any) (answer, bool) {
	m.inFlight.Add(1)
	a, err := again(ctx, answer.undecided, func() (answer, error) { return once(ctx, "POST", m.HTTP+path, "", body) })
	m.inFlight.Add(-1)
	if m.answers.Add(1) >= m.killAt {
		m.once.Do(func() { close(m.reached) })
	}
	return a, err == nil && a.code == 200
}

func (m *massacre) renew(ctx context.Context, token string) (answer, bool) {
	return m.ask(ctx, "/v1/auth/refresh", map[string]any{"refresh_token": token, "client_id": m.PublicClientID})
}

// live is one honest caller: it refreshes until the process dies.
func (m *massacre) live(ctx context.Context, i int) {
	for {
		a, ok := m.renew(ctx, m.honest[i])
		if !ok {
			return
		}
		m.honest[i] = a.text("refresh_token")
	}
}

// die is one doomed caller: it refreshes a few times and then ends its session.
func (m *massacre) die(ctx context.Context, in answer, refreshes int) {
	for range refreshes {
		a, ok := m.renew(ctx, in.text("refresh_token"))
		if !ok {
			break
		}
		in = a
	}
	_, ok := m.ask(ctx, "/v1/auth/revoke", map[string]any{"token": in.text("refresh_token")})
	m.mu.Lock()
	defer m.mu.Unlock()
	if ok {
		m.revoked = append(m.revoked, in)
	} else {
		m.left = append(m.left, in.text("refresh_token"))
	}
}

// enough waits until the moment of the kill has come, and gives how many calls are then in flight: an honest caller is
// between two calls for a moment only.
func (m *massacre) enough(t *testing.T, gone <-chan struct{}) int64 {
	t.Helper()
	select {
	case <-m.reached:
	case <-gone:
	}
	for {
		if n := m.inFlight.Load(); n >= 50 {
			return n
		}
		select {
		case <-gone:
			t.Fatalf("the process answers nobody before it is killed\n%s", m.out)
		default:
			runtime.Gosched()
		}
	}
}

// TestKillInFlight kills the real process with at least 50 calls in flight: the database is whole, every revocation that
// was acknowledged is in force after the restart, and every session whose end nobody asked for lives. The honest sessions
// are the same from the first kill to the last.
func TestKillInFlight(t *testing.T) {
	t.Parallel()
	rounds := soak.Count(10, 200)
	if testing.Short() {
		rounds = 1
	}
	dir := t.TempDir()
	s := start(t, dir)
	honest := make([]string, honestCallers)
	for i := range honest {
		honest[i] = s.login(t).text("refresh_token")
	}
	acknowledged, fewest := 0, int64(honestCallers+doomedCallers)
	for round := range rounds {
		m := &massacre{server: s, honest: honest, killAt: 1 + rand.Int64N(300), reached: make(chan struct{})}
		doomed := make([]answer, doomedCallers)
		for i := range doomed {
			doomed[i] = s.login(t)
		}
		var all sync.WaitGroup
		for i := range honest {
			all.Go(func() { m.live(t.Context(), i) })
		}
		for _, in := range doomed {
			refreshes := rand.IntN(6)
			all.Go(func() { m.die(t.Context(), in, refreshes) })
		}
		gone := make(chan struct{})
		go func() { all.Wait(); close(gone) }()
		fewest = min(fewest, m.enough(t, gone))
		s.kill(t)
		<-gone
		s = start(t, dir)
		whole(t, dir)
		m.server = s
		m.judge(t, round)
		acknowledged += len(m.revoked)
	}
	t.Logf("%d kills, each with at least %d calls in flight; %d revocations were acknowledged before one", rounds, fewest, acknowledged)
	if fewest < 50 || rounds > 1 && acknowledged == 0 {
		t.Error("the kills meet too few calls, or no revocation at all")
	}
}

// judge asks the restarted process about everything that was promised before the kill.
func (m *massacre) judge(t *testing.T, round int) {
	t.Helper()
	for _, in := range m.revoked {
		if a := m.introspect(t, in.text("access_token")); a.json["active"] != false {
			t.Errorf("D12 round %d: an acknowledged revocation is lost for the access token: %s", round, a.raw)
		}
		if a := m.refresh(t, in.text("refresh_token")); a.code != 401 {
			t.Errorf("D12 round %d: an acknowledged revocation is lost for the refresh token: %d %s", round, a.code, a.raw)
		}
	}
	for i, token := range m.honest {
		a := m.refresh(t, token)
		if a.code != 200 {
			t.Fatalf("D12 round %d: honest session %d is lost: %d %s", round, i, a.code, a.raw)
		}
		m.honest[i] = a.text("refresh_token")
	}
	for _, token := range m.left { // or else the account would have too many sessions
		if a := call(t, "POST", m.HTTP+"/v1/auth/revoke", "", map[string]any{"token": token}); a.code != 200 {
			t.Errorf("round %d: revoke answered %d %s", round, a.code, a.raw)
		}
	}
}

// whole checks the database's file by the engine's own means.
func whole(t *testing.T, dir string) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(dir, "authsvc.db")+"?mode=ro")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var said string
	if err := db.QueryRowContext(t.Context(), "PRAGMA integrity_check").Scan(&said); err != nil || said != "ok" {
		t.Errorf("D12: the database is not whole: %s %v", said, err)
	}
}
