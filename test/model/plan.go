package model

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/authsvc/authsvc/verify"
)

// Plan is one schedule.
type Plan struct {
	Replicas, Verifiers int
	Ops                 []Op
}

// Op is one step of a schedule. What its numbers mean is up to its kind.
type Op struct {
	Kind          string
	V, R, N       int
	Delay, Second time.Duration
	Fault         string
}

// String tells the step.
func (o Op) String() string {
	return fmt.Sprintf("%s v%d r%d n%d %v %v %s", o.Kind, o.V, o.R, o.N, o.Delay, o.Second, o.Fault)
}

// The kinds of steps. A replica is R, a verifier V.
const (
	wait    = "wait"    // Delay
	commit  = "commit"  // a revocation, N says which
	late    = "late"    // a transaction begins that revokes, and commits 10 s later
	read    = "read"    // a tail read begins at R; it sees the log after Delay and ends Second later
	step    = "step"    // R hands out what is new
	beat    = "beat"    // and a heartbeat, N times
	tell    = "tell"    // a revocation, N says which, that R hears and hands out at once
	miss    = "miss"    // a revocation, N says which, during a read of R that has seen the log already
	pulse   = "pulse"   // a second in which all goes well but for what is away or stopped
	away    = "away"    // R loses its database
	back    = "back"    // and has it again
	restore = "restore" // the database is restored, without its last N rows: another epoch, in which positions come again
	connect = "connect" // V calls R, which hears of it after Delay; Fault befalls the message that follows the first N
	deliver = "deliver" // V takes N messages
	stop    = "stop"    // V takes no messages, but is asked
	doze    = "doze"    // V is suspended with its machine
	resume  = "resume"  // and goes on
	restart = "restart" // V begins with nothing
	cut     = "cut"     // V takes N messages and loses its connection, with all that was in the socket
	drop    = "drop"    // the next message for V is lost
	twice   = "twice"   // comes twice
	swap    = "swap"    // comes after its successor
	clock   = "clock"   // V's wall clock is set wrong by Delay, and it sweeps
)

// kinds has each as often as it shall be drawn.
var kinds = []string{
	wait, wait, wait, wait, commit, commit, commit, commit, commit, commit, late, tell, tell, tell, tell, miss, miss,
	read, read, read, step, step, beat, beat, beat, beat,
	pulse, pulse, pulse, pulse, pulse, away, back, restore, connect, connect, connect, deliver, deliver, deliver, stop, doze, resume, resume, resume,
	restart, cut, cut, cut, drop, twice, swap, clock,
}

// Draw draws a schedule.
func Draw(t *rapid.T) Plan {
	p := Plan{Replicas: rapid.IntRange(1, 3).Draw(t, "replicas"), Verifiers: rapid.IntRange(1, 3).Draw(t, "verifiers")}
	p.Ops = rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Op {
		o := Op{Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), V: rapid.IntRange(0, p.Verifiers-1).Draw(t, "verifier"),
			R: rapid.IntRange(0, p.Replicas-1).Draw(t, "replica")}
		span := func(label string, of ...time.Duration) time.Duration { return rapid.SampledFrom(of).Draw(t, label) }
		switch o.Kind {
		case wait:
			o.Delay = span("for", 10*time.Millisecond, 100*time.Millisecond, time.Second, time.Second, 3*time.Second,
				15*time.Second, 65*time.Second, 6*time.Minute)
		case read:
			o.Delay = span("before", 0, 0, 300*time.Millisecond)
			o.Second = span("after", 0, 0, 300*time.Millisecond, 1500*time.Millisecond)
		case connect:
			o.Delay = span("after", 0, 0, 200*time.Millisecond, 2*time.Second)
			o.Fault = rapid.SampledFrom([]string{"", "", drop, twice, swap}).Draw(t, "fault")
			o.N = rapid.IntRange(0, 3).Draw(t, "messages")
		case clock:
			o.Delay = span("by", -time.Hour, time.Hour, time.Hour, 0)
		case commit, late, tell, miss:
			o.N = rapid.IntRange(0, 99).Draw(t, "what")
		case cut:
			o.N = rapid.IntRange(0, 3).Draw(t, "count")
		case beat:
			o.N = rapid.IntRange(1, 8).Draw(t, "count")
		case restore, deliver:
			o.N = rapid.IntRange(1, 4).Draw(t, "count")
		}
		return o
	}), 10, 70).Draw(t, "steps")
	return p
}

// tokens is how many tokens there are: two of each session, four of each account and of each key, one half older than any cut-off.
const tokens = 12

func subject(i int, begun time.Time) verify.Subject {
	of := func(kind verify.Kind, id string) verify.Target { return verify.TargetOf(Issuer, kind, id) }
	s := verify.Subject{
		Token: of(verify.KindToken, fmt.Sprint(i)), Session: of(verify.KindSession, fmt.Sprint(i/2)), HasSession: true,
		Account: of(verify.KindAccount, fmt.Sprint(i/4)), Client: of(verify.KindClient, "app"), Key: of(verify.KindKey, keyOf(i)),
		All: of(verify.KindAll, ""), AuthTime: begun.Unix() - 60,
	}
	if i%2 == 1 {
		s.AuthTime = begun.Unix() + 120
	}
	return s
}

// keyOf says which key signed a token.
func keyOf(i int) string { return fmt.Sprintf("key-%d", i%3+1) }

// revokes says what a number revokes: mostly one token.
func revokes(n int) (kind verify.Kind, id string) {
	switch {
	case n < 72:
		return verify.KindToken, fmt.Sprint(n % tokens)
	case n < 86:
		return verify.KindSession, fmt.Sprint(n % (tokens / 2))
	case n < 95:
		return verify.KindAccount, fmt.Sprint(n % (tokens / 4))
	case n < 98:
		return verify.KindKey, keyOf(n)
	default:
		return verify.KindAll, ""
	}
}
