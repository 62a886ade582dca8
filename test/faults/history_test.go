package faults

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// now is a clock that all processes of this machine share and nobody sets, in nanoseconds.
func now() int64 {
	var at unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &at); err != nil {
		panic(err)
	}
	return at.Nano()
}

// op is what was done.
type op string

const (
	opLogin      op = "login"
	opWrong      op = "login with a wrong password"
	opRefresh    op = "refresh"
	opRevoke     op = "revoke"     // of Session, or of the one Token where Session is empty
	opIntrospect op = "introspect" // of an access token
	opCall       op = "call"       // of a verifying service
	opShare      op = "share"      // from here on Session has two holders
	opKeyRotate  op = "keys rotate"
	opKeyRevoke  op = "keys revoke" // of Kid
	opFault      op = "fault"       // from Begin; End is when it was healed
	opChange     op = "change"      // what is not to be noticed: no fault, and no excuse
	opStill      op = "stood still" // the machine, or it had no time for the harness: then nobody is served in time, whatever the system does
)

// outcome is how it ended.
type outcome string

const (
	outOK      outcome = "ok"      // answered, accepted, active
	outRefused outcome = "refused" // a verdict: Reason says which
	outShed    outcome = "shed"    // told to come later
	outAway    outcome = "away"    // no answer, or one that decides nothing
)

// event is one thing that was done, and what came of it. Begin and End are those of now, as its doer saw them.
type event struct {
	Op         op
	Begin, End int64
	Via        string // "balancer", "replica 1", or the name of a service or fault
	Out        outcome
	Reason     string

	Session   string
	Gen, Next uint32 // of the refresh token that was presented, and of its successor
	Token     string // jti of the access token that was got, or presented
	Kid       string // its key
	Exp       int64  // its exp, in Unix seconds
	Sent      int64  // the wall clock at Begin, in Unix milliseconds

	Sensitive   bool  // the service's rule
	Least, Most int64 // dates of the service's knowledge before and after the verdict, by now
	Last        bool  // the client did not try once more
}

func (e event) String() string {
	text := fmt.Sprintf("%.3f–%.3f %s at %s", seconds(e.Begin), seconds(e.End), e.Op, e.Via)
	if e.Session != "" {
		text += " session " + e.Session
	}
	if e.Gen != 0 || e.Next != 0 {
		text += fmt.Sprintf(" generation %d→%d", e.Gen, e.Next)
	}
	if e.Token != "" {
		text += fmt.Sprintf(" token %s (key %.8s)", e.Token, e.Kid)
	}
	if e.Op == opCall && e.Least != 0 {
		text += fmt.Sprintf(" sensitive=%v by knowledge of %.3f–%.3f", e.Sensitive, seconds(e.Least), seconds(e.Most))
	}
	return strings.TrimSpace(fmt.Sprintf("%s: %s %s", text, e.Out, e.Reason))
}

func seconds(at int64) float64 { return float64(at) / 1e9 }

// history is what happened, in the order in which it ended. Nothing is ever taken out.
type history struct {
	mu     sync.Mutex
	events []event
}

func (h *history) add(e event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
}

// all is what happened so far.
func (h *history) all() []event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.events[:len(h.events):len(h.events)]
}

// refreshToken gives the session and the generation that a refresh token is of.
func refreshToken(token string) (session string, generation uint32) {
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, "rt1."))
	if err != nil || len(raw) < 21 {
		return "", 0
	}
	return base64.RawURLEncoding.EncodeToString(raw[1:17]), binary.BigEndian.Uint32(raw[17:21])
}

// access is what stands in an access token, believed without a look at its signature: it came from the issuer.
type access struct {
	text    string
	id, kid string
	exp     int64
	got     time.Time
}

func accessToken(text string) (a access) {
	a.text, a.got = text, time.Now()
	var header struct {
		Kid string `json:"kid"`
	}
	var payload struct {
		ID  string `json:"jti"`
		Exp int64  `json:"exp"`
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return a
	}
	for i, into := range []any{&header, &payload} {
		raw, _ := base64.RawURLEncoding.DecodeString(parts[i])
		_ = json.Unmarshal(raw, into)
	}
	a.id, a.kid, a.exp = payload.ID, header.Kid, payload.Exp
	return a
}
