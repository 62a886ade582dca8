package guard

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	requestLimit  = 10 * time.Second // for one request to the server, its answer included
	storableFor   = 20 * time.Second // after this long since the request an answer is not kept: the server remembers for 30 s
	renewalLimit  = 25 * time.Second // then nobody waits for a renewal any more, and another may begin
	usableLeft    = 5 * time.Second  // of a token's life, or a tenth of it if that is less: then callers wait for the next
	longestLife   = 15 * time.Minute // no access token of authsvc lives longer
	refusedYoung  = 10 * time.Second // a token that is refused is renewed at this age at the soonest
	firstPause    = 100 * time.Millisecond
	lastPause     = 10 * time.Second
	longestPause  = time.Minute // however long the server says
	refreshPrefix = "REFRESH_"  // of the reasons that speak of the refresh token
)

// ErrTokenRefused says that the server will not give an access token: the client or its secret is wrong, it may not have what it
// asks for, or the session has ended. The error's text names the server's reason, such as invalid_client (RFC 6749 §5.2) or
// REFRESH_REUSED.
var ErrTokenRefused = errors.New("guard: the server refuses an access token")

var errSlowRenewal = errors.New("no answer in time")

// TokenSource gets the access tokens with which a service calls other services, by its own client credentials (RFC 6749 §4.4) or
// with a session's refresh token, and keeps the newest in memory. It is a grpc credentials.PerRPCCredentials, and Transport puts
// it into HTTP requests.
//
// One renewal runs for all callers, whatever becomes of them. It begins when a caller comes at a random moment between 60 % and
// 80 % of the token's life or later, behind the callers' backs; once less than 5 s (or a tenth of the life) are left they wait for
// it. After a failure the next begins after a random pause that grows from 0.1 s to 10 s, or as long as the server asks for, up to
// a minute; until then callers get the token if it is still good, or the last error at once.
type TokenSource struct {
	o         TokenSourceOptions                   // without ClientSecret
	url       string                               // without a slash at its end
	secret    func() (plain, authorization string) // both empty without a secret; a func, for fmt prints whatever is a string
	transport http.RoundTripper
	clock     *clock

	held atomic.Pointer[heldToken] // the newest; nil before the first

	mu      sync.Mutex
	run     *renewal          // that is under way, or nil
	fault   error             // of the last renewal, if it failed
	step    time.Duration     // of the pauses
	next    time.Duration     // by the clock: no renewal begins before
	storing int               // calls of Swap that have not returned; until then no renewal begins, whose refresh token theirs could overwrite
	dead    [sha256.Size]byte // hash of a refresh token that was refused for good ...
	deadFor error             // ... and how
}

// heldToken is an access token, with times by the source's clock.
type heldToken struct {
	value string
	sent  time.Duration // when it was asked for
	early time.Duration // when to begin to ask for the next
	until time.Duration // when it is no longer handed out
}

// renewal is one, for all who wait for it; token and err are set when done is closed.
type renewal struct {
	done  chan struct{}
	token string
	err   error
}

// NewTokenSource makes a source, or says which option is missing or unsafe. It asks for nothing before it is asked.
func NewTokenSource(o TokenSourceOptions) (*TokenSource, error) {
	s := &TokenSource{clock: systemClock()}
	if err := s.connectBy(o); err != nil {
		return nil, err
	}
	return s, nil
}

// Token gives the newest access token. It takes no lock while that is young. Its errors are ctx's own, ErrTokenRefused, and
// others, which mean that the server or the storage cannot be reached or does not do its part at the moment.
func (s *TokenSource) Token(ctx context.Context) (string, error) {
	if h := s.held.Load(); h != nil && s.clock.passed() < h.early {
		return h.value, nil
	}
	s.mu.Lock()
	h, now := s.held.Load(), s.clock.passed()
	if h != nil && now < h.early {
		s.mu.Unlock()
		return h.value, nil
	}
	if s.run == nil && now >= s.next && s.storing == 0 {
		s.run = &renewal{done: make(chan struct{})}
		go s.renew(s.run) //nolint:gosec // G118: it outlives this caller on purpose; it ends within renewalLimit
	}
	run, fault := s.run, s.fault
	s.mu.Unlock()
	switch {
	case h != nil && now < h.until:
		return h.value, nil
	case run == nil:
		return "", fault
	}
	select {
	case <-run.done:
		return run.token, run.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// Refused tells that a service did not take the token (401, UNAUTHENTICATED), as after its revocation. If it is the newest still,
// a renewal begins with the next call that asks for a token, or once this one is 10 s old; so a service that refuses everything
// makes no storm. Until the next token has come this one is handed out, so that the service takes it away from nobody.
func (s *TokenSource) Refused(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.held.Load()
	if h == nil || h.value != token {
		return
	}
	sooner := *h
	sooner.early = min(h.early, max(s.clock.passed(), h.sent+refusedYoung))
	s.held.Store(&sooner)
}

// renew is the goroutine of a renewal. It belongs to no Run, for a source that nobody asks has nothing to do; and it ends by its own
// limits, not by any caller's.
func (s *TokenSource) renew(run *renewal) {
	ctx, cancel := context.WithTimeout(context.Background(), renewalLimit)
	defer cancel()
	// Storage that does not look at its context must not hold the callers.
	stop := context.AfterFunc(ctx, func() { s.settle(run, nil, unavailable(errSlowRenewal)) })
	defer stop()
	var h *heldToken
	var lost, err error
	if s.o.RefreshToken == nil {
		h, err = s.byCredentials(ctx)
	} else {
		h, lost, err = s.byRefreshToken(ctx)
	}
	s.settle(run, h, err)
	if lost != nil { // said now, for a log that goes out with this source's token must not wait for it
		s.o.Logger.Warn("the next refresh token could not be stored", "url", s.url, "error", lost)
	}
}

// settle ends a renewal for those who wait. One that was given up before changes nothing any more.
func (s *TokenSource) settle(run *renewal, h *heldToken, err error) {
	if err := s.settled(run, h, err); err != nil {
		s.o.Logger.Warn("no new access token", "url", s.url, "error", err)
	}
}

// settled gives the error of a renewal that failed.
func (s *TokenSource) settled(run *renewal, h *heldToken, err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.run != run {
		return nil
	}
	now := s.clock.passed()
	if err == nil && now >= h.until {
		err = unavailable(errors.New("the token had expired when it came"))
	}
	s.run, run.err = nil, err
	if err == nil {
		s.held.Store(h)
		s.fault, s.step, s.next = nil, 0, 0
		run.token = h.value
	} else {
		s.fault, s.next = err, now+s.pause(err)
	}
	close(run.done)
	return err
}

// pause gives the time until the next try, and lengthens the one after.
func (s *TokenSource) pause(err error) time.Duration {
	s.step = min(max(2*s.step, firstPause), lastPause)
	pause := s.step/2 + rand.N(s.step/2)
	var f *tokenFault
	if errors.As(err, &f) && f.retry > 0 {
		pause = max(pause, f.retry+rand.N(f.retry/10+1))
	}
	return pause
}

func (s *TokenSource) byCredentials(ctx context.Context) (*heldToken, error) {
	got, err := s.exchange(ctx, s.credentialsRequest())
	if err != nil {
		return nil, err
	}
	return got.held(), nil
}

// byRefreshToken also says why the next refresh token was lost, if it was.
func (s *TokenSource) byRefreshToken(ctx context.Context) (h *heldToken, lost, err error) {
	presented, got, err := s.redeem(ctx)
	if err != nil {
		return nil, nil, err
	}
	// Who finds another token there was overtaken by another process, whose token stands. The access token is good all the same;
	// it is too where the storage fails, and the token that is there is presented again.
	s.store(1)
	defer s.store(-1)
	_, lost = s.o.RefreshToken.Swap(ctx, presented, got.refresh)
	return got.held(), lost, nil
}

// store counts the calls of Swap.
func (s *TokenSource) store(by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.storing += by
}

// redeem presents the stored refresh token; once more, if the server says that it was overtaken and the storage has another by now.
func (s *TokenSource) redeem(ctx context.Context) (presented string, got *answer, err error) {
	if presented, err = s.load(ctx); err != nil {
		return "", nil, err
	}
	for again := false; ; again = true {
		if err := s.refusedForGood(presented); err != nil {
			return "", nil, err
		}
		got, err = s.exchange(ctx, s.refreshRequest(presented))
		var f *tokenFault
		if err == nil || !errors.As(err, &f) {
			return presented, got, err
		}
		if f.reason == reasonSuperseded && !again {
			next, lerr := s.load(ctx)
			if lerr != nil {
				return "", nil, lerr
			}
			if next != presented {
				presented = next
				continue
			}
		}
		if f.final() {
			s.mu.Lock()
			s.dead, s.deadFor = sha256.Sum256([]byte(presented)), err
			s.mu.Unlock()
		}
		return "", nil, err
	}
}

// refusedForGood is the answer to a refresh token that was presented before: it will not change.
func (s *TokenSource) refusedForGood(token string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.deadFor != nil && s.dead == sha256.Sum256([]byte(token)) {
		return s.deadFor
	}
	return nil
}

func (s *TokenSource) load(ctx context.Context) (string, error) {
	token, err := s.o.RefreshToken.Load(ctx)
	if err != nil {
		return "", unavailable(fmt.Errorf("the refresh token cannot be read: %w", err))
	}
	if token == "" {
		return "", unavailable(errors.New("there is no refresh token"))
	}
	return token, nil
}

// RefreshStore keeps the newest refresh token of one session. It may be shared: with other processes, and with other TokenSources.
// Storage that outlives the process keeps the session across a restart.
type RefreshStore interface {
	// Load gives the token that is stored.
	Load(ctx context.Context) (string, error)
	// Swap puts next in the place of presented, as one atomic step, and only if presented is what is stored; otherwise it changes
	// nothing and gives false. When it has given true, next is stored for good; when it has given an error, next is stored by then
	// or never. It ends with ctx: until it has returned, no other renewal begins.
	Swap(ctx context.Context, presented, next string) (swapped bool, err error)
}

// NewRefreshToken is a RefreshStore in memory that begins with a token. What it holds dies with the process, and the token that
// it began with is worth nothing by then: a service that is to keep its session across a restart needs storage of its own.
func NewRefreshToken(token string) RefreshStore { return &refreshMemory{token: token} }

type refreshMemory struct {
	mu    sync.Mutex
	token string
}

func (m *refreshMemory) Load(context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.token, nil
}

func (m *refreshMemory) Swap(_ context.Context, presented, next string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.token != presented {
		return false, nil
	}
	m.token = next
	return true, nil
}

// discard is where a source without a logger writes.
func discard(log *slog.Logger) *slog.Logger {
	if log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return log
}
