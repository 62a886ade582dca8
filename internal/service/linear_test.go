package service_test

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/client"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/service"
	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/storetest"
	"github.com/authsvc/authsvc/test/soak"
)

// family is one session, with every token that anybody was given of it.
type family struct {
	number  int
	storage atomic.Pointer[string] // what the tabs of one device share
	mu      sync.Mutex
	refresh map[uint32]string // by generation
	access  []string
	copied  string // the token that a thief keeps
}

// crowd plays one history: people with tabs, a thief, an operator who revokes and a server that asks.
type crowd struct {
	t        *testing.T
	replicas []*core
	keys     *session.RefreshKeys
	families []*family
	pauses   atomic.Int32
	history  storetest.History
	outcomes *[6]atomic.Int64 // how many refreshes had each verdict, so that the test knows what it has seen
}

func caller(network, agent byte) service.Caller {
	return service.Caller{IP: netip.AddrFrom4([4]byte{192, 0, 2 + network, 1}), UserAgent: "agent " + string('0'+agent), RequestID: "r"}
}

// given keeps what an answer gave, and gives the generation of its refresh token. The successor is computed, so one
// generation must be the same text whoever got it.
func (p *crowd) given(f *family, in service.Issued) uint32 {
	parsed := must(p.keys.Parse(in.RefreshToken))(p.t)
	f.mu.Lock()
	defer f.mu.Unlock()
	if text, known := f.refresh[parsed.Generation]; known && text != in.RefreshToken {
		p.t.Errorf("generation %d has two texts", parsed.Generation)
	}
	f.refresh[parsed.Generation] = in.RefreshToken
	if len(f.access) < 64 {
		f.access = append(f.access, in.AccessToken)
	}
	return parsed.Generation
}

// known gives a refresh token of the family: one of the last few, and seldom one of long ago.
func (f *family) known(r *rand.Rand) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	newest := uint32(0)
	for g := range f.refresh {
		newest = max(newest, g)
	}
	for {
		if text, ok := f.refresh[newest-min(newest, uint32(r.ExpFloat64()*1.5))]; ok {
			return text
		}
	}
}

func (p *crowd) refresh(who int, c *core, f *family, token string, network, agent byte) (service.Issued, bool) {
	call := storetest.Call{Kind: storetest.Refresh, Session: f.number, Network: network, Agent: agent, Generation: must(p.keys.Parse(token))(p.t).Generation}
	var in service.Issued
	a := p.history.Do(who, call, func() storetest.Answer {
		var err error
		in, err = c.tokens.Refresh(p.t.Context(), service.RefreshRequest{RefreshToken: token, ClientID: "app", Caller: caller(network, agent)})
		switch reason := fault.From(err).Reason; {
		case err == nil:
			return storetest.Answer{Verdict: session.Issue, Head: p.given(f, in)}
		case reason == fault.RefreshSuperseded:
			return storetest.Answer{Verdict: session.Superseded}
		case reason == fault.RefreshReused:
			return storetest.Answer{Verdict: session.Reused}
		case reason == fault.RefreshInvalid:
			return storetest.Answer{Verdict: session.Invalid}
		case fault.From(err).Kind == fault.Unavailable:
			return storetest.Answer{Lost: true}
		}
		p.t.Errorf("a refresh answered %v", err)
		return storetest.Answer{}
	})
	p.outcomes[a.Verdict].Add(1)
	return in, a.Verdict == session.Issue && !a.Lost
}

// tab refreshes as honest clients do: it stores an answer only where storage still holds what it presented.
func (p *crowd) tab(who int, c *core, f *family, network byte) {
	held := f.storage.Load()
	if in, ok := p.refresh(who, c, f, *held, network, 0); ok {
		f.storage.CompareAndSwap(held, &in.RefreshToken)
	}
}

// step is one thing that somebody does.
func (p *crowd) step(who int, r *rand.Rand) {
	c, f := p.replicas[r.IntN(len(p.replicas))], p.families[r.IntN(len(p.families))]
	switch n := r.IntN(200); {
	case n < 100:
		p.tab(who, c, f, 0)
	case n < 122: // the device is on another network for a moment
		p.tab(who, c, f, 1)
	case n < 130:
		p.refresh(who, c, f, f.known(r), 0, 0)
	case n < 133: // a thief with a storage of his own
		f.mu.Lock()
		stolen := f.copied
		f.mu.Unlock()
		if in, ok := p.refresh(who, c, f, stolen, 1, 1); ok {
			f.mu.Lock()
			f.copied = in.RefreshToken
			f.mu.Unlock()
		}
	case n < 155:
		p.introspect(who, c, f, r)
	case n < 175:
		token := f.known(r)
		call := storetest.Call{Kind: storetest.Current, Session: f.number, Generation: must(p.keys.Parse(token))(p.t).Generation}
		p.history.Do(who, call, func() storetest.Answer { return storetest.Answer{Active: c.seen(p.t, "app", token).Active} })
	case n < 177:
		p.revoke(who, c, f, storetest.Call{Kind: storetest.End, Session: f.number}, f.known(r))
	case n < 183:
		f.mu.Lock()
		i := r.IntN(len(f.access))
		token := f.access[i]
		f.mu.Unlock()
		p.revoke(who, c, f, storetest.Call{Kind: storetest.Kill, Session: f.number, Token: uint(i)}, token)
	case n < 190 && p.pauses.Add(1) <= 3: // so that no access token expires
		p.history.Do(who, storetest.Call{Kind: storetest.Pause}, func() (a storetest.Answer) {
			c.clock.advance(client.DefaultReuseWindow + time.Second)
			return a
		})
	}
}

// introspect asks about an access token. One replica knows of another's revocation within a second, unless it is asked for
// a position; so among several the answers are those of memory, and have no place in this history.
func (p *crowd) introspect(who int, c *core, f *family, r *rand.Rand) {
	if len(p.replicas) > 1 {
		return
	}
	f.mu.Lock()
	i := r.IntN(len(f.access))
	token := f.access[i]
	f.mu.Unlock()
	p.history.Do(who, storetest.Call{Kind: storetest.Access, Session: f.number, Token: uint(i)}, func() storetest.Answer {
		return storetest.Answer{Active: c.seen(p.t, "app", token).Active}
	})
}

func (p *crowd) revoke(who int, c *core, f *family, call storetest.Call, token string) {
	p.history.Do(who, call, func() (a storetest.Answer) {
		must(c.tokens.Revoke(p.t.Context(), service.RevokeRequest{Token: token, Caller: phone()}))(p.t)
		return a
	})
}

// play lets eight callers act at once, each fifteen times, upon two sessions.
func play(t *testing.T, replicas []*core, seed uint64, outcomes *[6]atomic.Int64) {
	t.Helper()
	p := &crowd{t: t, replicas: replicas, outcomes: outcomes}
	p.keys = must(session.NewRefreshKeys(adminIssuer, []session.RefreshKey{{ID: 1, Key: bytes.Repeat([]byte{7}, 32)}}))(t)
	for number := range 2 {
		in := must(replicas[0].signIn.Login(t.Context(), service.LoginRequest{Username: "ada", Password: secretly, ClientID: "app", Caller: caller(0, 0)}))(t)
		f := &family{number: number, refresh: map[uint32]string{}, copied: in.RefreshToken}
		f.storage.Store(&in.RefreshToken)
		p.given(f, in)
		p.families = append(p.families, f)
	}
	var all sync.WaitGroup
	for who := range 8 {
		r := rand.New(rand.NewPCG(seed, uint64(who)))
		all.Go(func() {
			for range 15 {
				p.step(who, r)
			}
		})
	}
	all.Wait()
	if ok, story := p.history.Linearizable(t); !ok {
		t.Errorf("history %d: no order of these calls has these answers:\n%s", seed, story)
	}
}

func TestF05F08ConcurrentCallsHaveAnOrderInWhichTheSixRulesGiveEveryAnswer(t *testing.T) {
	t.Parallel()
	for name, n := range map[string]int{"one process": 1, "three replicas": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCore(t)
			replicas := []*core{c}
			for len(replicas) < n {
				replicas = append(replicas, replica(t, c.db, c.clock))
			}
			c.clock.hold() // time passes by pauses alone, which the history knows of
			var outcomes [6]atomic.Int64
			for seed := range uint64(soak.Count(10, 500)) {
				play(t, replicas, seed, &outcomes)
			}
			for _, v := range []session.Verdict{session.Issue, session.Superseded, session.Reused, session.Invalid} {
				if outcomes[v].Load() == 0 {
					t.Errorf("no refresh had the verdict %d: the histories show too little", v)
				}
			}
			t.Logf("invalid %d, issued %d, superseded %d, reused %d", outcomes[session.Invalid].Load(), outcomes[session.Issue].Load(),
				outcomes[session.Superseded].Load(), outcomes[session.Reused].Load())
		})
	}
}
