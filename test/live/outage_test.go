package live

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/test/soak"
	"github.com/authsvc/authsvc/verify"
)

// stage is authsvc, the way to it, and a guarded service at the way's other end.
type stage struct {
	*server
	dir string
	way *way
	v   *service

	during *session // ends during the outage

	breaks  float64 // of the feed, before its database is withheld
	release func()
}

func newStage(t *testing.T, s *server, dir string) *stage {
	t.Helper()
	p := newWay(t, s.GRPC)
	return &stage{server: s, dir: dir, way: p, v: startService(t, s, p.address()), release: func() {}}
}

// An outage is a fault between a revocation and those who must know of it.
type outage struct {
	begin, end func(t *testing.T, x *stage)
	// first: it befalls authsvc, so that the session is revoked before and not during it, when nobody can.
	first bool
	// reaches: the feed says something all the same.
	reaches bool
	// timed outages end by the clock, the others when the feed's knowledge is so old.
	timed bool
}

// held is how long outages last: 4 s in every run, and in a soak beyond each limit as well.
func held(long ...time.Duration) []time.Duration {
	if soak.On() {
		return append([]time.Duration{4 * time.Second}, long...)
	}
	return []time.Duration{4 * time.Second}
}

// TestP01P02P12AServiceThroughOutages keeps a guarded service from authsvc, and authsvc from its database, while sessions end. The
// service and its streams go on as the rules say, no answer breaks the promise, and all is well again by itself.
func TestP01P02P12AServiceThroughOutages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, dir)
	all := map[string]func(t *testing.T){}
	play := func(name string, o outage, held ...time.Duration) {
		for _, d := range held {
			all[name+" for "+d.String()] = func(t *testing.T) {
				if o.first { // it befalls authsvc itself
					dir := t.TempDir()
					o.befalls(t, newStage(t, startHere(t, dir), dir), d)
					return
				}
				o.befalls(t, newStage(t, s, dir), d)
			}
		}
	}
	mend := func(_ *testing.T, x *stage) { x.way.mend() }
	play("P02 the feed is cut off", outage{begin: func(_ *testing.T, x *stage) { x.way.cut() }, end: mend}, held(65*time.Second, 10*time.Minute)...)
	play("P02 the feed stalls", outage{begin: func(_ *testing.T, x *stage) { x.way.stall() }, end: mend}, held(65*time.Second)...)
	play("P02 the feed is late", outage{begin: func(_ *testing.T, x *stage) { x.way.delay(1500 * time.Millisecond) }, end: mend, reaches: true, timed: true},
		held(time.Minute)...)
	play("P02 the feed's connection is reset", outage{begin: func(_ *testing.T, x *stage) { x.way.tear(true) }, end: mend, reaches: true, timed: true}, held()...)
	play("P02 the service is stopped", outage{begin: halt, end: resume, timed: true}, held(2*time.Minute)...)
	play("P02 the service is stopped, with heartbeats in its socket, and the feed stalls", outage{
		begin: func(t *testing.T, x *stage) {
			halt(t, x)
			<-time.After(2500 * time.Millisecond) // for heartbeats
			x.way.stall()
		},
		end: func(t *testing.T, x *stage) {
			resume(t, x)
			// All that it can read now is older than the revocation, and than what a sensitive call goes by.
			if a := x.v.ask(t.Context(), sensitive, x.during.token()); a.said != guard.ReasonReplicaStale {
				t.Errorf("a sensitive call right after the stop: %s", x.during.tell("is no refusal for old knowledge", a))
			}
			x.way.mend()
		},
		timed: true,
	}, held()...)
	play("P02 authsvc is killed", outage{
		begin: func(t *testing.T, x *stage) { x.kill(t) },
		end:   func(t *testing.T, x *stage) { x.server = start(t, x.dir, "-grpc", x.GRPC) },
		first: true,
	}, held(65*time.Second)...)
	play("P02 the database is gone", outage{
		begin: func(t *testing.T, x *stage) {
			x.breaks = x.v.metric(t, "authsvc_guard_feed_breaks_total")
			x.release = withhold(t, x.dir)
		},
		end: func(t *testing.T, x *stage) {
			await(t, "authsvc says how old its own knowledge is", func() bool { return x.v.metric(t, "authsvc_guard_feed_lag_seconds") > 3 })
			if n := x.v.metric(t, "authsvc_guard_feed_breaks_total"); n != x.breaks {
				t.Errorf("the feed broke %v times: its heart did not beat on", n-x.breaks)
			}
			x.release()
		},
		first: true,
	}, held(65*time.Second)...)
	together(t, all)
}

// together runs tests at one time, however few may run in parallel: they wait for clocks and not for processors.
func together(t *testing.T, tests map[string]func(t *testing.T)) {
	t.Helper()
	var all sync.WaitGroup
	for name, test := range tests {
		all.Go(func() { t.Run(name, test) })
	}
	all.Wait()
}

// halt stops the service's process, and waits until the last of its threads has stopped.
func halt(t *testing.T, x *stage) {
	t.Helper()
	pid := x.v.cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	await(t, "the service has stopped", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("the threads of the service: %v", err)
		}
		return !slices.ContainsFunc(threads, func(path string) bool {
			content, err := os.ReadFile(path)
			return err == nil && !bytes.Contains(content, []byte(") T ")) // proc(5): the state stands behind the name
		})
	})
}

func resume(t *testing.T, x *stage) {
	t.Helper()
	if err := syscall.Kill(x.v.cmd.Process.Pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// withhold takes the locks without which nobody reads a SQLite database in WAL mode: those of the read marks, bytes 123 to 127 of
// its index. No process but this one's kernel has to agree, and nothing in the file changes.
func withhold(t *testing.T, dir string) (release func()) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "authsvc.db-shm"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	await(t, "the database is idle for a moment", func() bool {
		lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 123, Len: 5}
		return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock) == nil
	})
	return func() { _ = f.Close() }
}

// befalls plays the outage against a service: one session ends before it, one during it, one after it and one never.
func (o outage) befalls(t *testing.T, x *stage, held time.Duration) {
	alive, early, during := x.signIn(t, "alive"), x.signIn(t, "early"), x.signIn(t, "during")
	await(t, "the feed is whole", func() bool { return x.v.status(t).Ready && x.v.status(t).Age < time.Second })
	x.during = during
	streams := map[*session]*openStream{}
	for _, in := range []*session{alive, early, during} {
		streams[in] = x.v.open(t, in.token())
	}
	x.revoke(t, early)
	await(t, "P12 the stream of a session ends with it", func() bool { return streams[early].over() == guard.ReasonTokenRevoked })
	w := x.v.watched(t, alive, early, during)
	await(t, "the good are let in and the revoked are not", func() bool {
		return w.says(alive, accepted, accepted, accepted) && w.says(during, accepted, accepted, accepted) &&
			w.says(early, guard.ReasonTokenRevoked, guard.ReasonTokenRevoked, guard.ReasonTokenRevoked)
	})

	if o.first {
		x.revoke(t, during)
	}
	o.begin(t, x)
	if !o.first {
		x.revoke(t, during)
	}
	if o.timed {
		<-time.After(held) // it is what the test is about
	} else {
		await(t, "the knowledge gets older", func() bool { return x.v.status(t).Age > 2*time.Second })
		<-time.After(held - x.v.status(t).Age) // and older
		await(t, "the knowledge is that old", func() bool { return x.v.status(t).Age >= held })
		o.during(t, x, w, alive, held)
	}
	outlived := !time.Now().Before(alive.expires.Add(-skew)) // no token lives so long
	if !outlived && !o.reaches && !o.first && streams[during].over() != "" {
		t.Errorf("P12 a stream whose end nobody can know of ended: %s", streams[during].over())
	}
	if over := streams[alive].over(); !outlived && over != "" {
		t.Errorf("P12 a good stream ended during the outage: %s", over)
	}
	o.end(t, x)

	if outlived {
		for _, in := range []*session{alive, during} {
			if over := streams[in].over(); over != guard.ReasonTokenExpired {
				t.Errorf("P12 the stream of %s, whose token has expired, ended with %q", in.name, over)
			}
		}
		w.stop()
		w.running.Wait()
		alive = x.signIn(t, "another")
		w = x.v.watched(t, alive)
		await(t, "a new token is let in", func() bool { return w.says(alive, accepted, accepted, accepted) })
		streams[alive] = x.v.open(t, alive.token())
	} else {
		await(t, "P12 the stream of a session that ended during the outage ends", func() bool { return streams[during].over() != "" })
		if over := streams[during].over(); over != guard.ReasonTokenRevoked {
			t.Errorf("P12 the stream of a session that ended during the outage ended with %s", over)
		}
		await(t, "P01 its token is refused, and the good one is let in", func() bool {
			return w.says(during, guard.ReasonTokenRevoked, guard.ReasonTokenRevoked, guard.ReasonTokenRevoked) && w.says(alive, accepted, accepted, accepted)
		})
	}
	o.after(t, x, w, alive, streams[alive])
}

// during looks at what the service says while its knowledge is so old.
func (o outage) during(t *testing.T, x *stage, w *witness, alive *session, held time.Duration) {
	t.Helper()
	anyRule, ready := accepted, 1.0
	if held > guard.MaxAge {
		anyRule, ready = guard.ReasonReplicaStale, 0
	}
	honour := accepted
	if time.Now().After(alive.expires.Add(skew)) {
		anyRule, honour = guard.ReasonTokenExpired, guard.ReasonTokenExpired
		await(t, "an expired token is refused by every rule", func() bool { return w.says(alive, anyRule, anyRule, honour) })
	} else {
		await(t, "each rule holds its limit", func() bool { return w.says(alive, anyRule, guard.ReasonReplicaStale, honour) })
	}
	if age, got := x.v.metric(t, "authsvc_guard_feed_age_seconds"), x.v.metric(t, "authsvc_guard_feed_ready"); age < held.Seconds() || got != ready {
		t.Errorf("the metrics say that the feed is %v s old, and ready is %v", age, got)
	}
	if n := x.v.metric(t, "authsvc_guard_calls_total", `outcome="REPLICA_STALE"`); n == 0 {
		t.Error("the metrics have no refusal for old knowledge")
	}
	if n := x.v.metric(t, "authsvc_guard_calls_total", `outcome="accepted_stale"`); held > guard.StaleAge && n == 0 {
		t.Error("the metrics have no accept by old knowledge")
	}
}

// after shows that all is as before the outage: what ends from now on is known at once, and until then goes on.
func (o outage) after(t *testing.T, x *stage, w *witness, alive *session, stream *openStream) {
	t.Helper()
	await(t, "the knowledge is young", func() bool { s := x.v.status(t); return s.Ready && s.Age < guard.MaxAgeSensitive })
	late := x.signIn(t, "late")
	if a := x.v.ask(t.Context(), anyCall, late.token()); a.said != accepted {
		t.Errorf("a session that began after the outage: %s", a.said)
	}
	x.revoke(t, late)
	await(t, "P01 a session that ends after the outage is refused", func() bool {
		a := x.v.ask(t.Context(), sensitive, late.token())
		if fault := late.broken(sensitive, a); fault != "" {
			t.Fatalf("late: %s", late.tell(fault, a))
		}
		return a.said == guard.ReasonTokenRevoked
	})
	if over := stream.over(); over != "" {
		t.Errorf("P12 a good stream ended: %s", over)
	}
	x.revoke(t, alive)
	await(t, "P12 the good stream ends with its session", func() bool { return stream.over() == guard.ReasonTokenRevoked })
	await(t, "P01 so do its calls", func() bool {
		return w.says(alive, guard.ReasonTokenRevoked, guard.ReasonTokenRevoked, guard.ReasonTokenRevoked)
	})
	w.stop()
	w.running.Wait()
	for method := range limits() {
		if w.count(alive, method, accepted) == 0 {
			t.Errorf("%s let nobody in", method)
		}
	}
}

// TestP08AnOlderDatabaseIsPutBack has the log begin again where an older copy stood, so that its places come twice. A verifier that
// comes with a place of the history that was lost, before the new one has grown past it, keeps what it knew and misses nothing.
func TestP08AnOlderDatabaseIsPutBack(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startHere(t, dir)
	lost, next, alive := s.signIn(t, "lost"), s.signIn(t, "next"), s.signIn(t, "alive")
	s.stop(t)
	path := filepath.Join(dir, "authsvc.db")
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s = start(t, dir, "-grpc", s.GRPC)
	w := watch(t, s, nil)
	w.ready(t)
	s.revoke(t, lost)
	await(t, "the revocation has come", func() bool { return errors.Is(w.says(t, lost.token()), verify.ErrRevoked) })
	head := func() string {
		db := database(t, dir)
		defer db.Close() // or else the server would not be the last to close the file, and leave its log behind
		return text(t, db, `SELECT MAX(position) FROM revocations`)
	}
	place := head()
	s.stop(t)
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	before := w.Status().Cursor
	s = start(t, dir, "-grpc", s.GRPC)
	await(t, "the feed goes on in the new history", func() bool { return w.Status().Cursor != before && w.Status().Age < time.Second })
	s.revoke(t, next)
	if got := head(); got != place {
		t.Fatalf("the new history's place is %s, and the lost one's was %s", got, place)
	}
	await(t, "P08 what has the place of another is refused", func() bool { return errors.Is(w.says(t, next.token()), verify.ErrRevoked) })
	if err := w.says(t, lost.token()); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("P08 what the database has lost: %v", err)
	}
	if err := w.says(t, alive.token()); err != nil {
		t.Errorf("the twin: %v", err)
	}
}
