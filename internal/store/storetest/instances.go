package storetest

import (
	"fmt"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/instance"
)

func (s *suite) beat(i instance.Instance) int {
	s.Helper()
	live, err := s.Instances.Beat(s.ctx(), i)
	s.ok(err)
	return live
}

func (s *suite) instances() []instance.Instance {
	s.Helper()
	all, now, err := s.Instances.List(s.ctx())
	s.ok(err)
	s.equal("the store's time", now, s.Clock.Now())
	return all
}

// names gives the ids of those that are listed.
func (s *suite) names() string {
	s.Helper()
	var all []string
	for _, i := range s.instances() {
		all = append(all, i.ID)
	}
	return fmt.Sprint(all)
}

var instanceCases = []testCase{
	{"a beat is kept, and the next one moves it on", func(s *suite) {
		s.equal("before", s.names(), "[]")
		began := s.Clock.Now()
		i := instance.Instance{ID: "a", Host: "host-1", Version: "v1.2.3", Clock: began.Add(time.Hour),
			State: instance.State{Epoch: [16]byte{0, 1, 255}, Position: 7, Lag: 20 * time.Millisecond}}
		s.equal("live", s.beat(i), 1)
		s.Clock.Advance(5 * time.Second)
		i.Clock, i.Epoch, i.Position, i.Lag = began.Add(-time.Hour), [16]byte{2}, 9, time.Duration(1<<63-1).Truncate(time.Microsecond)
		s.equal("live", s.beat(i), 1)
		i.StartedAt, i.SeenAt = began, s.Clock.Now()
		if diff := cmp.Diff([]instance.Instance{i}, s.instances()); diff != "" {
			s.Errorf("(-want +got)\n%s", diff)
		}
	}},
	{"who was seen within fifteen seconds is live", func(s *suite) {
		for n, id := range []string{"a", "b", "c"} {
			s.equal("live", s.beat(instance.Instance{ID: id}), n+1)
			s.Clock.Advance(time.Second)
		}
		s.Clock.Advance(11 * time.Second) // a was seen 14 s ago
		s.equal("all", s.beat(instance.Instance{ID: "c"}), 3)
		s.Clock.Advance(time.Second)
		s.equal("without a", s.beat(instance.Instance{ID: "c"}), 2)
		s.equal("listed still", s.names(), "[a b c]")
		s.equal("a is back", s.beat(instance.Instance{ID: "a"}), 3)
	}},
	{"who leaves is gone, and may come back", func(s *suite) {
		s.beat(instance.Instance{ID: "a"})
		s.beat(instance.Instance{ID: "b"})
		s.ok(s.Instances.Leave(s.ctx(), "a"))
		s.ok(s.Instances.Leave(s.ctx(), "a"))
		s.equal("listed", s.names(), "[b]")
		s.equal("live", s.beat(instance.Instance{ID: "b"}), 1)
		s.equal("back", s.beat(instance.Instance{ID: "a"}), 2)
	}},
	{"who is silent for an hour is forgotten, a few at a time", func(s *suite) {
		for n := range 5 {
			s.beat(instance.Instance{ID: fmt.Sprint("old-", n)})
		}
		s.Clock.Advance(time.Hour - time.Second)
		s.beat(instance.Instance{ID: "new"})
		sweep := func() int {
			n, err := s.Instances.Sweep(s.ctx(), 3)
			s.ok(err)
			return n
		}
		s.equal("too early", sweep(), 0)
		s.Clock.Advance(time.Second)
		s.equal("listed", s.names(), "[new]")
		s.equal("first", sweep(), 3)
		s.equal("then", sweep(), 2)
		s.equal("last", sweep(), 0)
		s.equal("listed", s.names(), "[new]")
	}},
	{"many beat at once, and the last counts all", func(s *suite) {
		together(16, func(n int) {
			for range 5 {
				live, err := s.Instances.Beat(s.ctx(), instance.Instance{ID: fmt.Sprint("i", n)})
				if err != nil || live < 1 || live > 16 {
					s.Errorf("%d live: %v", live, err)
				}
			}
		})
		s.equal("live", s.beat(instance.Instance{ID: "i0"}), 16)
	}},
	{"text that engines would not give back is refused", func(s *suite) {
		for _, i := range []instance.Instance{{ID: "a\x00"}, {ID: "a", Host: "\xff"}, {ID: "a", Version: "\x00"}} {
			_, err := s.Instances.Beat(s.ctx(), i)
			s.refused(err, fault.Invalid, fault.FieldInvalid)
		}
		s.equal("the twin", s.beat(instance.Instance{ID: "a", Host: "höst"}), 1)
	}},
}
