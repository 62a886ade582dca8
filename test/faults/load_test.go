package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/authsvc/authsvc/guard"
)

// How many of each there are. Two busy cores carry them with room to spare.
const (
	honestHolders = 12
	leavers       = 2 // sign in, and out again
	thieves       = 1
)

// patience is how long a client waits for one answer.
const patience = 5 * time.Second

// load is everybody who uses the system, and what they saw.
type load struct {
	sys     *system
	history *history
	seed    uint64
	kept    *http.Client // over connections that are kept
	fresh   *http.Client // each call over one of its own

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex
	honest []*holder
	ended  []ended
}

// ended is what was told to be over: a session, or one token.
type ended struct {
	refresh string // "" where only the token ended
	token   access
}

func newLoad(sys *system, seed uint64) *load {
	l := &load{sys: sys, history: &history{}, seed: seed}
	l.kept = &http.Client{Timeout: patience, Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute}}
	l.fresh = &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// begin lets everybody in, and returns when all honest holders have signed in.
func (l *load) begin() error {
	for n := range honestHolders {
		c := l.caller("holder", n)
		h, out := l.signInAtLast(c)
		if out != outOK {
			return fmt.Errorf("holder %d cannot sign in: %s", n, out)
		}
		l.honest = append(l.honest, h)
		l.running.Go(func() { l.stay(h) })
	}
	for n := range leavers {
		l.running.Go(func() { l.leave(l.caller("leaver", n)) })
	}
	for n := range thieves {
		l.running.Go(func() { l.steal(l.caller("owner", n), l.caller("thief", n)) })
	}
	l.running.Go(func() { l.guess(l.caller("guesser", 0)) })
	l.running.Go(l.watch)
	return nil
}

// How often the machine is looked at, and how late a look is where it stood still.
const (
	lookEvery = 100 * time.Millisecond
	stillFor  = 500 * time.Millisecond
)

// watch notes when the machine stood still.
func (l *load) watch() {
	for at := now(); pause(l.ctx, lookEvery); {
		next := now()
		if next-at > int64(lookEvery+stillFor) {
			l.history.add(event{Op: opStill, Begin: at, End: next})
		}
		at = next
	}
}

func (l *load) end() {
	l.stop()
	l.running.Wait()
	l.kept.CloseIdleConnections()
}

// caller is one client on one device.
type caller struct {
	ip, agent, person string
	rng               *rand.Rand
}

func (l *load) caller(what string, n int) *caller {
	id := uint64(len(what))<<8 | uint64(n)
	return &caller{ip: fmt.Sprintf("10.%d.%d.7", len(what), n), agent: fmt.Sprintf("%s/%d", what, n), person: person(n % (people - 1)), rng: rand.New(rand.NewPCG(l.seed, id))}
}

// between waits for a random time, and says whether the load goes on.
func (l *load) between(c *caller, least, most time.Duration) bool {
	return pause(l.ctx, least+time.Duration(c.rng.Int64N(int64(most-least))))
}

// answer is what came back over HTTP.
type answer struct {
	out    outcome
	reason string
	fields map[string]any
}

func (a answer) text(name string) string { v, _ := a.fields[name].(string); return v }

// request is one HTTP request, which may be sent again.
type request struct {
	method, url string
	body        map[string]any
	basic       [2]string
	bearer      string
}

func (c *caller) send(client *http.Client, r request) answer {
	body, err := json.Marshal(r.body)
	if err != nil {
		return answer{out: outAway, reason: err.Error()}
	}
	var content io.Reader
	if r.body != nil {
		content = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(context.Background(), r.method, r.url, content) // it is answered though the load ends
	if err != nil {
		return answer{out: outAway, reason: err.Error()}
	}
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("X-Forwarded-For", c.ip)
	req.Header.Set("User-Agent", c.agent)
	if r.basic[0] != "" {
		req.SetBasicAuth(r.basic[0], r.basic[1])
	}
	if r.bearer != "" {
		req.Header.Set("Authorization", "Bearer "+r.bearer)
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{out: outAway, reason: err.Error()}
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{out: outAway, reason: err.Error()}
	}
	var a answer
	_ = json.Unmarshal(raw, &a.fields)
	a.reason = fmt.Sprint(resp.StatusCode)
	if details, _ := a.fields["details"].([]any); len(details) > 0 {
		for _, d := range details {
			if d, _ := d.(map[string]any); d["reason"] != nil {
				a.reason = fmt.Sprint(d["reason"])
			}
		}
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		a.out, a.reason = outOK, ""
	case resp.StatusCode == http.StatusTooManyRequests:
		a.out = outShed
	case resp.StatusCode >= 500:
		a.out = outAway
	default:
		a.out = outRefused
	}
	return a
}

// do sends a request through the balancer, and where it is not answered once more over another connection; or to one place alone.
// Each try goes into the history; fill adds what an answer says.
func (l *load) do(c *caller, e event, r request, fill func(*event, answer)) (a answer) {
	path := r.url
	if e.Via == "" {
		e.Via, r.url = balancer, l.sys.rest+path
	}
	for _, client := range []*http.Client{l.kept, l.fresh} {
		try := e
		try.Begin, try.Sent = now(), time.Now().UnixMilli()
		a = c.send(client, r)
		try.End = now()
		try.Out, try.Reason = a.out, a.reason
		try.Last = a.out != outAway || client == l.fresh
		if a.out == outOK && fill != nil {
			fill(&try, a)
			a.out, a.reason = try.Out, try.Reason
		}
		l.history.add(try)
		if try.Last {
			return a
		}
	}
	return a
}

// holder is somebody who is signed in: what a client keeps of a session.
type holder struct {
	*caller
	session string
	refresh string
	token   access // the newest
	old     access // an older one
}

func (h *holder) keep(a answer) {
	h.refresh = a.text("refresh_token")
	next := accessToken(a.text("access_token"))
	if h.old.text == "" || time.Until(time.Unix(h.old.exp, 0)) < -40*time.Second {
		h.old = next
	}
	h.token = next
}

func noteTokens(e *event, a answer) {
	t := accessToken(a.text("access_token"))
	e.Token, e.Kid, e.Exp = t.id, t.kid, t.exp
	e.Session, e.Next = refreshToken(a.text("refresh_token"))
}

func (l *load) signIn(c *caller) (*holder, answer) {
	a := l.do(c, event{Op: opLogin}, request{method: "POST", url: "/v1/auth/login",
		body: map[string]any{"username": c.person, "password": password, "client_id": appID}}, noteTokens)
	if a.out != outOK {
		return nil, a
	}
	h := &holder{caller: c, session: a.text("session_id")}
	h.keep(a)
	return h, a
}

// signInAtLast tries until it is let in, told otherwise, or the load ends.
func (l *load) signInAtLast(c *caller) (*holder, outcome) {
	for {
		h, a := l.signIn(c)
		if a.out == outOK || a.out == outRefused || !l.between(c, 100*time.Millisecond, 400*time.Millisecond) {
			return h, a.out
		}
	}
}

// renew redeems the refresh token once. Where there is no answer, the same token is for the next try.
func (l *load) renew(h *holder) answer {
	_, gen := refreshToken(h.refresh)
	a := l.do(h.caller, event{Op: opRefresh, Session: h.session, Gen: gen}, request{method: "POST", url: "/v1/auth/refresh",
		body: map[string]any{"refresh_token": h.refresh, "client_id": appID}}, noteTokens)
	if a.out == outOK {
		h.keep(a)
	}
	return a
}

// stay is an honest holder's life.
func (l *load) stay(h *holder) {
	for l.ctx.Err() == nil {
		a := l.renew(h)
		for range 3 {
			token := h.token
			if h.rng.IntN(4) == 0 {
				token = h.old
			}
			l.call(h.session, token, l.sys.services[h.rng.IntN(len(l.sys.services))], h.rng.IntN(3) == 0)
			if !l.between(h.caller, 50*time.Millisecond, 250*time.Millisecond) {
				return
			}
		}
		if h.rng.IntN(3) == 0 {
			l.introspect(h.caller, h.session, h.token, l.sys.replicas[h.rng.IntN(len(l.sys.replicas))])
		}
		if a.out == outRefused && !l.between(h.caller, time.Second, 2*time.Second) { // told, and found by the checker
			return
		}
	}
}

// call asks a service, and gives what it said, or nothing.
func (l *load) call(session string, token access, v *service, sensitive bool) outcome {
	e := event{Op: opCall, Via: v.name, Session: session, Token: token.id, Kid: token.kid, Exp: token.exp, Sensitive: sensitive, Begin: now(),
		Sent: time.Now().UnixMilli(), Last: true}
	verdict := v.ask(context.Background(), token.text, sensitive)
	if e.End = now(); verdict.Began != 0 {
		e.Begin, e.End, e.Least, e.Most = verdict.Began, verdict.Ended, verdict.Least, verdict.Most
	}
	switch {
	case verdict.Away != "":
		e.Out, e.Reason = outAway, verdict.Away
	case verdict.Reason == "":
		e.Out = outOK
	case undecided(verdict.Reason):
		e.Out, e.Reason = outAway, verdict.Reason
	default:
		e.Out, e.Reason = outRefused, verdict.Reason
	}
	l.history.add(e)
	return e.Out
}

// introspect asks one replica about an access token.
func (l *load) introspect(c *caller, session string, token access, r *replica) outcome {
	a := l.do(c, event{Op: opIntrospect, Via: r.name(), Session: session, Token: token.id, Kid: token.kid, Exp: token.exp},
		request{method: "POST", url: "http://" + r.http.address() + "/v1/auth/introspect", body: map[string]any{"token": token.text},
			basic: [2]string{l.sys.serviceID, l.sys.serviceSecret}}, noteActive)
	return a.out
}

func noteActive(e *event, a answer) {
	if a.fields["active"] != true {
		e.Out, e.Reason = outRefused, "inactive"
	}
}

// leave signs in and out again, in all the ways there are, and watches how the news spreads.
func (l *load) leave(c *caller) {
	for l.ctx.Err() == nil {
		h, out := l.signInAtLast(c)
		if out != outOK {
			continue
		}
		for range c.rng.IntN(3) {
			l.renew(h)
		}
		for _, v := range l.sys.services {
			l.call(h.session, h.token, v, false)
		}
		if c.rng.IntN(3) == 0 {
			l.over(h, l.endToken(h), ended{token: h.token})
			l.renew(h)
		}
		l.over(h, l.endSession(h), ended{refresh: h.refresh, token: h.token})
		if !l.between(c, 100*time.Millisecond, 600*time.Millisecond) {
			return
		}
	}
}

// somewhere is the balancer, or one of the replicas.
func (l *load) somewhere(c *caller, path string) (via, url string) {
	if i := c.rng.IntN(2 * len(l.sys.replicas)); i < len(l.sys.replicas) {
		r := l.sys.replicas[i]
		return r.name(), "http://" + r.http.address() + path
	}
	return "", path
}

func (l *load) endToken(h *holder) outcome {
	via, url := l.somewhere(h.caller, "/v1/auth/revoke")
	return l.do(h.caller, event{Op: opRevoke, Via: via, Token: h.token.id}, request{method: "POST", url: url, body: map[string]any{"token": h.token.text}}, nil).out
}

// endSession ends it by the session's name or by its refresh token. Who is not answered tries again.
func (l *load) endSession(h *holder) outcome {
	if h.rng.IntN(2) == 0 {
		via, url := l.somewhere(h.caller, "/v1/sessions/"+h.session)
		a := l.do(h.caller, event{Op: opRevoke, Via: via, Session: h.session}, request{method: "DELETE", url: url, bearer: h.token.text}, nil)
		if a.out == outOK {
			return outOK
		}
	}
	for {
		via, url := l.somewhere(h.caller, "/v1/auth/revoke")
		a := l.do(h.caller, event{Op: opRevoke, Via: via, Session: h.session}, request{method: "POST", url: url, body: map[string]any{"token": h.refresh}}, nil)
		if a.out == outOK || a.out == outRefused || !l.between(h.caller, 100*time.Millisecond, 400*time.Millisecond) {
			return a.out
		}
	}
}

// over asks every service until it refuses, or for a while, and keeps what was told to be over for the end.
func (l *load) over(h *holder, out outcome, what ended) {
	if out != outOK {
		return
	}
	l.mu.Lock()
	l.ended = append(l.ended, what)
	l.mu.Unlock()
	session := h.session
	ctx, cancel := context.WithTimeout(l.ctx, 3*time.Second)
	defer cancel()
	var all sync.WaitGroup
	for _, v := range l.sys.services {
		all.Go(func() {
			for wait := 2 * time.Millisecond; l.call(session, what.token, v, false) != outRefused && pause(ctx, wait); wait = min(wait*5/4, 100*time.Millisecond) {
			}
		})
	}
	all.Wait()
	l.introspect(h.caller, session, what.token, l.sys.replicas[h.rng.IntN(len(l.sys.replicas))])
}

// steal has two who refresh by copies of one token, each for himself.
func (l *load) steal(owner, thief *caller) {
	for l.ctx.Err() == nil {
		h, out := l.signInAtLast(owner)
		if out != outOK {
			continue
		}
		stolen := *h
		stolen.caller = thief
		l.history.add(event{Op: opShare, Begin: now(), End: now(), Session: h.session, Out: outOK})
		for both := []*holder{h, &stolen}; l.ctx.Err() == nil; {
			who := both[owner.rng.IntN(2)]
			a := l.renew(who)
			if a.out == outRefused && a.reason != "REFRESH_SUPERSEDED" {
				break
			}
			l.call(h.session, who.token, l.sys.services[owner.rng.IntN(len(l.sys.services))], false)
			if !l.between(owner, 200*time.Millisecond, 700*time.Millisecond) {
				return
			}
		}
		if !l.between(owner, 100*time.Millisecond, 600*time.Millisecond) {
			return
		}
	}
}

// guess tries passwords.
func (l *load) guess(c *caller) {
	for n := 0; l.between(c, time.Second, 3*time.Second); n++ {
		c.ip = fmt.Sprintf("10.99.%d.%d", n%250, n/250%250)
		l.do(c, event{Op: opWrong}, request{method: "POST", url: "/v1/auth/login",
			body: map[string]any{"username": person(people - 1), "password": fmt.Sprintf("not the password %d", n), "client_id": appID}}, nil)
	}
}

// final asks about everything once more, when all is well: what was told to be over still is, everywhere, and who was honest goes on.
func (x *trial) final(ctx context.Context) (all []violation) {
	c := x.caller("examiner", 0)
	silent := map[string]bool{} // who did not answer once is not waited for again
	patient := func(whom string, ask func() outcome) (out outcome) {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if silent[whom] {
			return outAway
		}
		if err := await(ctx, "there is a verdict", func() bool { out = ask(); return out == outOK || out == outRefused }); err != nil {
			silent[whom] = true
			return outAway
		}
		return out
	}
	pause(ctx, introspectLag+500*time.Millisecond)
	for n, h := range x.honest {
		if out := patient(balancer, func() outcome { return x.renew(h).out }); out != outOK {
			all = append(all, violation{ruleLasting, fmt.Sprintf("honest session %d, %s, is gone: %s", n, h.session, out), nil})
		}
	}
	for _, e := range x.ended {
		for _, r := range x.replicas {
			if out := patient(r.name(), func() outcome { return x.introspect(c, "", e.token, r) }); out != outRefused {
				all = append(all, violation{ruleLasting, fmt.Sprintf("%s introspects %s as %s, whose end was answered", r.name(), e.token.id, out), nil})
			}
		}
		for _, v := range x.services {
			if out := patient(v.name, func() outcome { return x.call("", e.token, v, false) }); out != outRefused {
				all = append(all, violation{ruleLasting, fmt.Sprintf("the service %s says %s of %s, whose end was answered", v.name, out, e.token.id), nil})
			}
		}
		if e.refresh == "" {
			continue
		}
		session, gen := refreshToken(e.refresh)
		r := request{method: "POST", url: "/v1/auth/refresh", body: map[string]any{"refresh_token": e.refresh, "client_id": appID}}
		if out := patient(balancer, func() outcome { return x.do(c, event{Op: opRefresh, Session: session, Gen: gen}, r, noteTokens).out }); out != outRefused {
			all = append(all, violation{ruleLasting, fmt.Sprintf("session %s, whose end was answered, is refreshed: %s", session, out), nil})
		}
	}
	return all
}

// undecided says whether a service's reason is no verdict.
func undecided(reason string) bool {
	return reason == guard.ReasonReplicaStale || strings.Contains(reason, ": ") // a code of gRPC's with its words
}
