package live

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/authsvc/authsvc/guard"
)

// session is somebody who is signed in, and what this test knows of the session's end. Times are those of now.
type session struct {
	answer
	name     string
	expires  time.Time    // by the wall clock
	asked    atomic.Int64 // when its end was asked for; 0: not yet
	answered atomic.Int64 // when it was answered: it had been committed before
}

// signIn begins a session, in its turn where many do at once.
func (s *server) signIn(t *testing.T, name string) *session {
	t.Helper()
	var in answer
	await(t, "a sign-in's turn comes", func() bool {
		in = s.say(t, http.DefaultClient, "/v1/auth/login", s.credentials(s.Username, s.Password))
		return in.code != http.StatusTooManyRequests && !in.undecided()
	})
	if in.code != http.StatusOK {
		t.Fatalf("login: %d %s", in.code, in.raw)
	}
	return &session{answer: in, name: name, expires: time.Now().Add(time.Duration(in.json["expires_in"].(float64)) * time.Second)}
}

func (in *session) token() string { return in.text("access_token") }

// revoke ends a session over the wire.
func (s *server) revoke(t *testing.T, in *session) {
	t.Helper()
	in.asked.Store(now())
	a, err := again(t.Context(), answer.undecided, func() (answer, error) {
		return once(t.Context(), "POST", s.HTTP+"/v1/auth/revoke", "", map[string]any{"token": in.text("refresh_token")})
	})
	if err != nil || a.code != http.StatusOK {
		t.Fatalf("revoke: %d %s %v", a.code, a.raw, err)
	}
	in.answered.Store(now())
}

// verdict is one answer of a guarded service, with the times of its trailer.
type verdict struct {
	said                      string
	began, ended, least, most int64
	sent, came                time.Time
}

// ask makes one call.
func (v *service) ask(ctx context.Context, method, token string) (a verdict) {
	var trailer metadata.MD
	a.sent = time.Now()
	err := v.conn.Invoke(bearing(ctx, token), method, &emptypb.Empty{}, &emptypb.Empty{}, grpc.Trailer(&trailer))
	a.came = time.Now()
	for name, to := range map[string]*int64{"began": &a.began, "ended": &a.ended, "least": &a.least, "most": &a.most} {
		for _, text := range trailer.Get(name) {
			*to, _ = strconv.ParseInt(text, 10, 64)
		}
	}
	if a.said = said(err); a.began == 0 {
		a.said = fmt.Sprintf("no verdict: %v", err)
	}
	return a
}

// limits are the greatest ages of what a method's verdicts are by, in nanoseconds.
func limits() map[string]int64 {
	return map[string]int64{anyCall: int64(guard.MaxAge), sensitive: int64(guard.MaxAgeSensitive), honourExp: int64(24 * time.Hour)}
}

const skew = 30 * time.Second // of verify.Options

// broken says what about a verdict breaks the promise, or refuses what it need not; "" where nothing does. For an accept at u with
// the age a, which is at most the method's limit, no revocation that hits the token was committed before u - a.
func (in *session) broken(method string, a verdict) string {
	limit, asked, answered := limits()[method], in.asked.Load(), in.answered.Load()
	known := answered != 0 && a.least >= answered // the verdict was by knowledge that has the revocation
	switch {
	case a.said == accepted && known:
		return "a revoked token is accepted by knowledge that has its revocation"
	case a.said == accepted && answered != 0 && a.began-limit > answered:
		return "a token is accepted that was revoked longer ago than the method's limit"
	case a.said == accepted && a.began-a.most > limit:
		return "a token is accepted by knowledge older than the method's limit"
	case a.said == accepted && a.sent.After(in.expires.Add(skew+time.Second)):
		return "an expired token is accepted"
	case a.said == guard.ReasonTokenRevoked && (asked == 0 || a.ended < asked):
		return "a live token is refused as revoked"
	case a.said == guard.ReasonReplicaStale && known:
		return "what is known to be revoked is refused as stale"
	case a.said == guard.ReasonReplicaStale && a.ended-a.least <= limit:
		return "within the method's limit a token is refused as stale"
	case a.said == guard.ReasonTokenExpired && a.came.Before(in.expires.Add(-time.Second)):
		return "a token is refused as expired before its time"
	case a.said != accepted && a.said != guard.ReasonTokenRevoked && a.said != guard.ReasonReplicaStale && a.said != guard.ReasonTokenExpired:
		return "an answer that no rule gives"
	}
	return ""
}

// tell words what is broken, with the times that it is judged by.
func (in *session) tell(fault string, a verdict) string {
	text := fmt.Sprintf("%s: %s, by knowledge %s to %s old", fault, a.said, time.Duration(a.began-a.most), time.Duration(a.ended-a.least))
	if answered := in.answered.Load(); answered != 0 {
		text += fmt.Sprintf(", %s after its revocation", time.Duration(a.began-answered))
	}
	return text
}

// witness asks a service again and again about some sessions, by every method, and judges each answer.
type witness struct {
	stop    context.CancelFunc
	running sync.WaitGroup
	mu      sync.Mutex
	last    map[string]string // of a session at a method
	seen    map[string]int    // how often an answer was given
}

func (v *service) watched(t *testing.T, sessions ...*session) *witness {
	ctx, cancel := context.WithCancel(t.Context())
	w := &witness{stop: cancel, last: map[string]string{}, seen: map[string]int{}}
	t.Cleanup(func() { cancel(); w.running.Wait() })
	for _, in := range sessions {
		for method := range limits() {
			w.running.Go(func() { w.watch(ctx, t, v, in, method) })
		}
	}
	return w
}

func (w *witness) watch(ctx context.Context, t *testing.T, v *service, in *session, method string) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for faults := 0; faults < 3; {
		a := v.ask(ctx, method, in.token())
		if ctx.Err() != nil {
			return
		}
		if fault := in.broken(method, a); fault != "" {
			t.Errorf("%s, %s: %s", in.name, method, in.tell(fault, a))
			faults++
		}
		w.mu.Lock()
		w.last[in.name+method] = a.said
		w.seen[in.name+method+a.said]++
		w.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// says reports whether the last answers about a session were these: by any rule, by a sensitive one, by one that honours exp. An
// empty one is not looked at.
func (w *witness) says(in *session, anyRule, sensitiveRule, honourRule string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for method, want := range map[string]string{anyCall: anyRule, sensitive: sensitiveRule, honourExp: honourRule} {
		if want != "" && w.last[in.name+method] != want {
			return false
		}
	}
	return true
}

// count is how often a session was answered so at a method.
func (w *witness) count(in *session, method, said string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seen[in.name+method+said]
}

// TestTheJudgeOfVerdicts: what the tests of outages rely on finds each break of the promise, and nothing else.
func TestTheJudgeOfVerdicts(t *testing.T) {
	t.Parallel()
	const s = int64(time.Second)
	in := &session{expires: time.Now().Add(time.Hour)}
	in.asked.Store(100 * s)
	in.answered.Store(100*s + 1)
	gone := &session{expires: time.Now().Add(-time.Hour)}
	at := func(said string, began, least, most int64) verdict {
		return verdict{said: said, began: began, ended: began + 1, least: least, most: most, sent: time.Now(), came: time.Now()}
	}
	for name, c := range map[string]struct {
		of     *session
		method string
		a      verdict
		broken bool
	}{
		"P01 accepted by what has the revocation":            {in, anyCall, at(accepted, 102*s, 101*s, 101*s), true},
		"the twin: by what has not":                          {in, anyCall, at(accepted, 102*s, 100*s, 101*s), false},
		"P02 accepted later than a date that lies":           {in, sensitive, at(accepted, 103*s, 100*s, 102*s), true},
		"the twin: by a method that may":                     {in, anyCall, at(accepted, 103*s, 100*s, 102*s), false},
		"P02 accepted beyond the limit":                      {gone, sensitive, at(accepted, 103*s, 99*s, 100*s), true},
		"P02 accepted after exp":                             {gone, honourExp, at(accepted, 103*s, 103*s, 103*s), true},
		"the twin: refused after exp":                        {gone, honourExp, at(guard.ReasonTokenExpired, 103*s, 103*s, 103*s), false},
		"expired before its time":                            {in, anyCall, at(guard.ReasonTokenExpired, 103*s, 103*s, 103*s), true},
		"refused as revoked before its end was asked for":    {in, anyCall, at(guard.ReasonTokenRevoked, 99*s, 98*s, 98*s), true},
		"the twin: after it":                                 {in, anyCall, at(guard.ReasonTokenRevoked, 101*s, 98*s, 98*s), false},
		"refused as stale within the limit":                  {in, sensitive, at(guard.ReasonReplicaStale, 99*s, 98*s, 98*s), true},
		"the twin: beyond it":                                {in, sensitive, at(guard.ReasonReplicaStale, 101*s, 98*s, 98*s), false},
		"refused as stale by what has the revocation":        {in, sensitive, at(guard.ReasonReplicaStale, 104*s, 101*s, 101*s), true},
		"a refusal that is no verdict":                       {in, sensitive, at("Unavailable: reset", 99*s, 98*s, 98*s), true},
		"an accept before the end of the session, while cut": {in, honourExp, at(accepted, 90*s, 1*s, 1*s), false},
	} {
		if got := c.of.broken(c.method, c.a); (got != "") != c.broken {
			t.Errorf("%s: %q", name, got)
		}
	}
}
