package redisstore_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/limit"
	"github.com/authsvc/authsvc/internal/limit/limittest"
	"github.com/authsvc/authsvc/internal/store/machine"
	"github.com/authsvc/authsvc/internal/store/redisstore"
	"github.com/authsvc/authsvc/internal/store/redistest"
)

// soaking skips a test that needs ten servers, outside of make soak.
func soaking(t *testing.T) {
	t.Helper()
	if os.Getenv("AUTHSVC_SOAK") == "" {
		t.Skip("make soak runs it")
	}
}

// warm gives a Store that has its connections: a dozen handshakes at once take a busy machine longer than a call has.
func warm(t *testing.T, o redisstore.Options) *redisstore.Store {
	t.Helper()
	s := up(t, o)
	for range 10 {
		var wg sync.WaitGroup
		for i := range 30 {
			wg.Go(func() { // the first ones may come too late
				_, _ = s.Settle(t.Context(), []limit.Count{network(fmt.Sprint(i))}, limit.Released)
			})
		}
		wg.Wait()
		await(t, "Redis is up", s.Up)
	}
	return s
}

// insist counts a failure until there is an answer in time; what had none may have been counted, too.
func insist(t *testing.T, s *redisstore.Store, c limit.Count) (wait time.Duration) {
	t.Helper()
	await(t, "a failure is counted", func() bool {
		waits, err := s.Settle(t.Context(), []limit.Count{c}, limit.Failed)
		if err == nil {
			wait = waits[0]
		}
		return err == nil
	})
	return wait
}

// survives loses a master, and wants the counters back, by its replica, within the minute that await waits.
func survives(t *testing.T, s *redisstore.Store, harm func() error) {
	t.Helper()
	for i := range 50 {
		for range 3 {
			insist(t, s, network(fmt.Sprint(i)))
		}
	}
	if err := harm(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var clock machine.Pulse
	run(t, clock.Run)
	slowest, failed, away := time.Duration(0), 0, 0
	await(t, "all counters answer", func() bool {
		all := true
		for i := range 50 {
			asked := clock.Now()
			_, err := s.Settle(t.Context(), []limit.Count{network(fmt.Sprint(i)), account(fmt.Sprint(i))}, limit.Released)
			slowest = max(slowest, clock.Now()-asked)
			switch {
			case err == nil:
				continue
			case errors.Is(err, redisstore.ErrAway):
				away++
			default:
				failed++
			}
			all = false
		}
		return all && (failed > 0 || time.Since(began) > 10*time.Second)
	})
	t.Logf("back after %v; %d calls failed, the slowest in %v, %d were not made", time.Since(began), failed, slowest, away)
	if slowest > swift {
		t.Errorf("a call took %v", slowest)
	}
	for i := range 50 {
		if insist(t, s, network(fmt.Sprint(i))) == 0 {
			t.Errorf("the failures of network %d are lost, which its replica had", i)
		}
	}
}

func TestACluster(t *testing.T) {
	t.Parallel()
	soaking(t)
	cert, err := redistest.NewCertificates(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c, err := redistest.StartCluster(t.Context(), cert, user(t))
	kept(t, c, err)
	o := signedIn(options(c.Addresses()...))
	o.Mode, o.TLS = redisstore.Cluster, cert.Client()
	approved(t, o)
	a, b := warm(t, o), warm(t, o)
	lost := 0
	t.Run("counters", func(t *testing.T) {
		c, d := warm(t, redisstore.Patient(o)), warm(t, redisstore.Patient(o))
		limittest.Run(t, func(*testing.T) [2]limit.Shared { return [2]limit.Shared{c, d} })
	})
	t.Run("hints and a failover", func(t *testing.T) {
		heard := listen(t, b)
		before := heard.Load()
		await(t, "an announcement is heard", func() bool { a.Announce(); return heard.Load() > before })
		survives(t, a, func() error {
			lost = slices.IndexFunc(c.Nodes, func(n *redistest.Server) bool {
				return strings.HasPrefix(cli(t, n, "ROLE"), "master") && cli(t, n, "DBSIZE") != "0"
			})
			return c.Nodes[lost].Kill()
		})
		before = heard.Load()
		await(t, "announcements are heard again", func() bool { a.Announce(); return heard.Load() > before })
		if err := made(t, o).Start(t.Context()); err != nil {
			t.Errorf("a start with a node away is refused: %v", err)
		}
	})
	nodes, addresses := slices.Delete(slices.Clone(c.Nodes), lost, lost+1), slices.Delete(slices.Clone(o.Addresses), lost, lost+1)
	for _, n := range nodes {
		if said := cli(t, n, "ACL", "LOG"); said != "" {
			t.Errorf("something was tried in vain:\n%s", said)
		}
	}
	t.Run("the rights", func(t *testing.T) {
		for _, n := range nodes {
			cli(t, n, "ACL", "SETUSER", "authsvc", "-cluster|slots")
		}
		o := o
		o.Addresses = addresses
		refused(t, o, "redis.username", "cluster|slots")
	})
}

func TestSentinels(t *testing.T) {
	t.Parallel()
	soaking(t)
	g, err := redistest.StartSentinel(t.Context(), user(t, "+command", "+cluster|slots"))
	kept(t, g, err)
	o := signedIn(options(g.Addresses()...))
	o.Mode, o.MasterName = redisstore.Sentinel, "main"
	wrong := o
	wrong.MasterName = "other"
	refused(t, wrong, "redis.master_name", "other")
	wrong = o
	wrong.Mode, wrong.Addresses = redisstore.Single, wrong.Addresses[:1]
	wrong.Username, wrong.Password = "", ""
	refused(t, wrong, "redis.mode", "sentinel")
	approved(t, o)
	a, b := warm(t, o), warm(t, o)
	t.Run("counters", func(t *testing.T) {
		c, d := warm(t, redisstore.Patient(o)), warm(t, redisstore.Patient(o))
		limittest.Run(t, func(*testing.T) [2]limit.Shared { return [2]limit.Shared{c, d} })
	})
	t.Run("hints and a failover", func(t *testing.T) {
		heard := listen(t, b)
		survives(t, a, g.Master.Kill)
		before := heard.Load()
		await(t, "announcements are heard again", func() bool { a.Announce(); return heard.Load() > before })
	})
	for _, s := range g.Sentinels {
		cli(t, s, "ACL", "SETUSER", "default", "resetpass", ">"+secret)
	}
	refused(t, o, "redis.sentinel_password_file")
	o.SentinelPassword = secret
	approved(t, o)
}
