package instance_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/instance"
)

// registry is a store that a test counts in, breaks and holds up.
type registry struct {
	instance.Store // what a Register never calls

	mu    sync.Mutex
	beats []time.Time
	last  instance.Instance
	live  int
	away  error
	hangs bool
	left  []string
}

func (s *registry) Beat(ctx context.Context, i instance.Instance) (int, error) {
	s.mu.Lock()
	s.beats, s.last = append(s.beats, time.Now()), i
	live, err, hangs := s.live, s.away, s.hangs
	s.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return live, err
}

func (s *registry) Leave(ctx context.Context, id string) error {
	s.mu.Lock()
	s.left = append(s.left, id)
	err, hangs := s.away, s.hangs
	s.mu.Unlock()
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	return err
}

func (s *registry) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

// heard gives what came so far.
func (s *registry) heard() (beats []time.Time, last instance.Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.beats), s.last
}

// begin runs a register over a registry; end stops it and waits.
func begin(t *testing.T) (r *instance.Register, s *registry, said *bytes.Buffer, end func()) {
	t.Helper()
	s, said = &registry{live: 3}, &bytes.Buffer{}
	r, err := instance.New(instance.Options{Store: s, Host: "one", Version: "v1", Logger: slog.New(slog.NewTextHandler(said, nil)),
		State: func() instance.State { return instance.State{Epoch: [16]byte{7}, Position: 42, Lag: time.Millisecond} }})
	if err != nil {
		t.Fatal(err)
	}
	if r.Live() != 1 {
		t.Errorf("before it has asked there are %d", r.Live())
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	synctest.Wait()
	return r, s, said, func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestAServerSaysEveryFewSecondsThatItRunsAndThenLeaves(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, s, said, end := begin(t)
		want := instance.Instance{ID: r.ID(), Host: "one", Version: "v1", Clock: time.Now(), State: instance.State{Epoch: [16]byte{7}, Position: 42, Lag: time.Millisecond}}
		if beats, last := s.heard(); len(beats) != 1 || last != want || r.Live() != 3 {
			t.Errorf("at once it said %+v, and knows of %d", last, r.Live())
		}
		<-time.After(time.Hour)
		synctest.Wait()
		between := map[time.Duration]bool{}
		beats, _ := s.heard()
		for i, at := range beats[1:] {
			d := at.Sub(beats[i])
			if between[d] = true; d < 4500*time.Millisecond || d > 5500*time.Millisecond {
				t.Errorf("%v between two beats", d)
			}
		}
		if len(beats) < 650 || len(between) < 100 {
			t.Errorf("%d beats in an hour, with %d different pauses", len(beats), len(between))
		}
		end()
		if len(s.left) != 1 || s.left[0] != r.ID() || said.Len() != 0 {
			t.Errorf("it left as %v and said %q", s.left, said)
		}
	})
}

func TestAStoreThatIsAwayIsSaidOnceAndTheOthersStillCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, s, said, end := begin(t)
		for _, broken := range []func(){func() { s.away = errors.New("away") }, func() { s.away, s.hangs = nil, true }} {
			s.set(broken)
			from, _ := s.heard()
			<-time.After(10 * time.Minute)
			synctest.Wait()
			to, _ := s.heard()
			if n := len(to) - len(from); r.Live() != 3 || n < 60 {
				t.Errorf("after %d beats without an answer it counts %d", n, r.Live())
			}
		}
		if n := strings.Count(said.String(), "level=WARN"); n != 1 {
			t.Errorf("%d warnings: %s", n, said)
		}
		s.set(func() { s.hangs, s.live = false, 0 })
		<-time.After(15 * time.Second) // the beat that hangs ends, and one that is answered follows
		synctest.Wait()
		if r.Live() != 1 || strings.Count(said.String(), "level=INFO") != 1 {
			t.Errorf("it counts %d, and said %s", r.Live(), said)
		}
		s.set(func() { s.hangs = true })
		began := time.Now()
		end()
		if took := time.Since(began); took > time.Second {
			t.Errorf("a store that hangs held the end up for %v", took)
		}
	})
}

func TestARegisterNeedsItsOptions(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]instance.Options{
		"no store": {State: func() instance.State { return instance.State{} }},
		"no state": {Store: &registry{}},
	} {
		if _, err := instance.New(o); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestAServerIsLiveForFifteenSeconds(t *testing.T) {
	t.Parallel()
	at := time.Unix(1_800_000_000, 0)
	i := instance.Instance{SeenAt: at}
	if !i.Live(at.Add(15*time.Second-1)) || i.Live(at.Add(15*time.Second)) {
		t.Error("it is not")
	}
}
