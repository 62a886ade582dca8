package redisstore_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"
)

// listen counts the hints that a Store hears.
func listen(t *testing.T, s interface {
	Listen(ctx context.Context, hint func()) error
}) *atomic.Int64 {
	t.Helper()
	var n atomic.Int64
	run(t, func(ctx context.Context) error { return s.Listen(ctx, func() { n.Add(1) }) })
	await(t, "the subscription is there, which is a hint", func() bool { return n.Load() > 0 })
	return &n
}

func TestWhatOneReplicaAnnouncesAllHear(t *testing.T) {
	t.Parallel()
	r := server(t)
	a, b := up(t, options(r.Address())), up(t, options(r.Address()))
	o := options(r.Address())
	o.Issuer = "https://other.example.com"
	other := listen(t, up(t, o))
	own, there := listen(t, a), listen(t, b)
	for range 3 {
		own0, there0 := own.Load(), there.Load()
		await(t, "an announcement is heard", func() bool { a.Announce(); return there.Load() > there0 && own.Load() > own0 })
	}
	if n := other.Load(); n != 1 {
		t.Errorf("another installation heard %d hints; its subscription is one", n)
	}
	for range 1000 {
		a.Announce() // never waits
	}
	if err := r.Kill(); err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		a.Announce()
	}
	heard := there.Load()
	if err := r.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "whoever subscribed again looks", func() bool { return there.Load() > heard })
	await(t, "Redis is up", b.Up)
	heard = own.Load()
	await(t, "announcements are heard again", func() bool { b.Announce(); return own.Load() > heard+1 })
}

func TestASubscriptionThatHasGoneSilentIsGivenUp(t *testing.T) {
	t.Parallel()
	r := server(t)
	p := between(t, r.Address())
	n := listen(t, up(t, options(p.address)))
	p.delay.Store(int64(time.Hour)) // nothing is heard, and nothing is closed
	taken := p.taken.Load()
	await(t, "another connection is tried", func() bool { return p.taken.Load() > taken })
	heard := n.Load()
	p.delay.Store(0)
	await(t, "there is a subscription again", func() bool { return n.Load() > heard })
}

func TestASubscriptionLeavesAFlood(t *testing.T) {
	t.Parallel()
	r := server(t)
	p := between(t, r.Address())
	o := options(p.address)
	o.Issuer = "https://flooded.example.com"
	s := made(t, o) // without Run there is no other connection
	n := listen(t, s)
	channel := cli(t, r, "PUBSUB", "CHANNELS")
	taken := p.taken.Load()
	for p.taken.Load() == taken {
		cli(t, r, "EVAL", "for i = 1, 30000 do redis.call('PUBLISH', ARGV[1], '') end", "0", channel)
	}
	heard := n.Load()
	await(t, "there is a subscription again", func() bool {
		cli(t, r, "PUBLISH", channel, "")
		return n.Load() > heard
	})
}
