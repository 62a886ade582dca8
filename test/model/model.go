// Package model owns the promise of the trust feed as a thing that can be tried: a log, the replicas that tail it, the feed
// between them and the verifiers, and verifiers, all under random schedules by the clock of a testing/synctest bubble. What is put
// to the test is a Subject; the parts of it that a package cannot reach are the plain ones of this package. The promise is: for
// every accept at time u with age a, no revocation that hits the token was committed before u − a, and a is at most Limit.
package model

import (
	"context"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/verify"
)

// Issuer is the iss of all tokens of the model.
const Issuer = "https://auth.example"

// Limit is the greatest age at which a verifier may let a token pass.
const Limit = 60 * time.Second

// Replica is one server: it tails its store and serves the feed.
type Replica interface {
	// Read does one tail read, which takes as long as the store takes.
	Read(ctx context.Context) error
	// Step hands what is new to all who watch, and after it, if beat, a heartbeat.
	Step(beat bool)
	// Watch serves one call, received now, until ctx ends or the caller is cut off. Send blocks while the socket is full.
	Watch(ctx context.Context, cursor string, send func(*authsvcv1.WatchTrustResponse) error) error
}

// Verifier is the client's side: it is told what comes and judges tokens by it.
type Verifier interface {
	// Begin sends a call, and says from which cursor.
	Begin() (cursor string)
	// Take takes the next message of the call that was begun last.
	Take(m *authsvcv1.WatchTrustResponse) error
	// End says that the call is over, and why.
	End(err error)
	// Check judges a token: nil, verify.ErrRevoked, or verify.ErrStale or ErrNotReady.
	Check(s *verify.Subject) error
	// Age is how old an answer of Check is now; negative where there is none.
	Age() time.Duration
	// Sweep forgets what has expired.
	Sweep()
}

// Subject is what is put to the test. Each function is called within the bubble.
type Subject struct {
	Replica  func(s *Store) Replica
	Verifier func(c *Clock) Verifier
	// EarlyPositions breaks the log: a row has its position when its transaction begins, and is seen when it commits.
	EarlyPositions bool
}

// Clock is a verifier's machine as it tells the time.
type Clock struct {
	begun  time.Time
	asleep time.Duration // in all, by now or by since
	since  time.Time     // when the machine was suspended; zero while it is awake
	wrong  time.Duration // of the wall clock
}

// Mono is the monotonic time, which stands still while the machine is suspended.
func (c *Clock) Mono() time.Duration {
	if !c.since.IsZero() {
		return c.since.Sub(c.begun) - c.asleep
	}
	return time.Since(c.begun) - c.asleep
}

// Boot is the time since the machine was started, suspension included.
func (c *Clock) Boot() time.Duration { return time.Since(c.begun) }

// Wall is the time of day as the machine shows it.
func (c *Clock) Wall() time.Time { return time.Now().Add(c.wrong) }

func (c *Clock) suspend(on bool) {
	switch {
	case on && c.since.IsZero():
		c.since = time.Now()
	case !on && !c.since.IsZero():
		c.asleep += time.Since(c.since)
		c.since = time.Time{}
	}
}

// Seen counts what came about in a run.
type Seen struct {
	Accepts, Old, Refusals, Unready int // verdicts; Old are accepts by knowledge older than 5 s
	Resumes, Broken                 int // calls with a cursor, messages that ended a call
}

// add adds what came about in another run.
func (s *Seen) add(o Seen) {
	s.Accepts, s.Old, s.Refusals, s.Unready = s.Accepts+o.Accepts, s.Old+o.Old, s.Refusals+o.Refusals, s.Unready+o.Unready
	s.Resumes, s.Broken = s.Resumes+o.Resumes, s.Broken+o.Broken
}
