package verify

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	maxKeySet         = 1 << 20          // bytes of a JWK Set
	unknownEvery      = 30 * time.Second // at most one fetch in this time because of kids that are not known
	maxWaiting        = 64               // calls that may wait for such a fetch at once; the others are answered
	maxRedirects      = 3
	firstRetry        = time.Second
	lastRetry         = time.Minute
	defaultRefresh    = 5 * time.Minute
	defaultMaxStale   = 24 * time.Hour
	defaultFetchLimit = 5 * time.Second
)

// JWKSOptions say where keys come from and how often.
type JWKSOptions struct {
	// URL of the JWK Set, https (or http on a loopback address). Required.
	URL string
	// HTTPClient makes the requests; nil means one with http.DefaultTransport. Whatever it says, a redirect to another host,
	// port or scheme is not followed.
	HTTPClient *http.Client
	// PlainHTTP allows http to other hosts than loopback. Whoever can answer in the server's place then owns this verifier.
	PlainHTTP bool
	// RefreshEvery is the time between fetches, give or take a tenth. A key that the issuer withdraws is believed that long. 0
	// means 5 min.
	RefreshEvery time.Duration
	// MaxStale is how long the last good set serves while fetches fail; then nothing is verified. 0 means 24 h.
	MaxStale time.Duration
	// FetchTimeout bounds one fetch, body included. 0 means 5 s.
	FetchTimeout time.Duration
	// Logger gets a warning for each failed fetch and each key that was dropped; nil means slog.Default().
	Logger *slog.Logger
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// JWKS is a KeySource that keeps an issuer's published keys in memory. Run fetches; Key never does, so a stumbling issuer
// costs a verifier nothing: the last good set goes on serving.
type JWKS struct {
	url    string
	client *http.Client
	o      JWKSOptions

	set   atomic.Pointer[keySet] // nil: not ready
	ready chan struct{}          // closed with the first set
	wake  chan struct{}          // asks Run for a fetch, capacity 1

	mu          sync.Mutex
	pending     chan struct{} // closed when the fetch asked for by an unknown kid is over; nil if none is
	waiting     int
	lastUnknown time.Time
	fetchedAt   time.Time
	stats       JWKSStats
}

// JWKSStats count what happened since NewJWKS.
type JWKSStats struct {
	Fetches   uint64    // requests for the set
	Failures  uint64    // those that gave no usable set
	Dropped   int       // keys of the newest set that were not taken
	FetchedAt time.Time // the newest good fetch; zero before the first
}

// NewJWKS makes the source. It is not ready, and every Verify answers ErrNotReady, until Run has fetched the first set.
func NewJWKS(o JWKSOptions) (*JWKS, error) {
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return nil, errors.New("verify: JWKSOptions.URL is not a plain absolute URL")
	case u.Scheme != "https" && !(u.Scheme == "http" && (o.PlainHTTP || loopback(u.Hostname()))):
		return nil, errors.New("verify: JWKSOptions.URL is not https")
	case o.RefreshEvery < 0 || o.MaxStale < 0 || o.FetchTimeout < 0:
		return nil, errors.New("verify: a duration of JWKSOptions is negative")
	}
	if o.RefreshEvery == 0 {
		o.RefreshEvery = defaultRefresh
	}
	if o.MaxStale == 0 {
		o.MaxStale = defaultMaxStale
	}
	if o.FetchTimeout == 0 {
		o.FetchTimeout = defaultFetchLimit
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	client := &http.Client{}
	if o.HTTPClient != nil {
		*client = *o.HTTPClient
	}
	client.Jar = nil
	client.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects || r.URL.Host != u.Host || r.URL.Scheme != u.Scheme {
			return errors.New("a redirect to another place")
		}
		return nil
	}
	return &JWKS{
		url: o.URL, client: client, o: o, ready: make(chan struct{}), wake: make(chan struct{}, 1),
	}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Ready is closed once there are keys.
func (j *JWKS) Ready() <-chan struct{} { return j.ready }

// Stats says how fetching goes.
func (j *JWKS) Stats() JWKSStats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.FetchedAt = j.fetchedAt
	return s
}

// Key finds a key in memory. A kid that is not there makes Run fetch the set, at most once in 30 s whatever is asked; a few
// callers wait for that fetch, all others are answered ErrKeyUnknown at once. Nothing is remembered about unknown kids.
func (j *JWKS) Key(ctx context.Context, kid string) (*Key, error) {
	set := j.set.Load()
	if set == nil {
		return nil, ErrNotReady
	}
	if k, ok := set.keys[kid]; ok {
		return k, nil
	}
	fetched := j.askFor()
	if fetched == nil {
		return nil, ErrKeyUnknown
	}
	defer j.stopWaiting()
	select {
	case <-fetched:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if set = j.set.Load(); set == nil {
		return nil, ErrNotReady
	}
	return set.key(kid)
}

// askFor gives the channel that closes when the fetch for unknown kids is over, or nil where there is none to wait for.
func (j *JWKS) askFor() <-chan struct{} {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pending == nil {
		now := j.o.Now()
		if !j.lastUnknown.IsZero() && now.Sub(j.lastUnknown) < unknownEvery {
			return nil
		}
		j.lastUnknown = now
		j.pending = make(chan struct{})
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
	if j.waiting == maxWaiting {
		return nil
	}
	j.waiting++
	return j.pending
}

func (j *JWKS) stopWaiting() {
	j.mu.Lock()
	j.waiting--
	j.mu.Unlock()
}

// Run keeps the set fresh until ctx ends, and gives ctx's error. A failed fetch is tried again after 1 s, then twice as long up
// to a minute; all waits are jittered so that many verifiers do not ask at once.
func (j *JWKS) Run(ctx context.Context) error {
	defer j.settle(nil)
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := firstRetry
	for {
		var asked bool
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		case <-j.wake:
			asked = true
		}
		err := j.fetch(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var pause time.Duration
		if err != nil {
			j.failed(ctx, err)
			pause, retry = min(retry, j.o.RefreshEvery), min(2*retry, lastRetry)
		} else {
			pause, retry = j.o.RefreshEvery, firstRetry
		}
		j.settle(&asked)
		timer.Reset(pause - pause/10 + rand.N(pause/5+1))
	}
}

// settle lets those go who wait for a fetch. A fetch that was begun before they asked may have come too early for their key, so
// only one that was asked for counts; at the end of Run (asked is nil) there will be none.
func (j *JWKS) settle(asked *bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.pending != nil && (asked == nil || *asked) {
		close(j.pending)
		j.pending = nil
	}
}

// failed counts a fetch that gave nothing, and gives up the set once it is too old to be believed.
func (j *JWKS) failed(ctx context.Context, err error) {
	j.mu.Lock()
	j.stats.Failures++
	age := j.o.Now().Sub(j.fetchedAt)
	j.mu.Unlock()
	if j.set.Load() != nil && age > j.o.MaxStale {
		j.set.Store(nil)
		j.o.Logger.ErrorContext(ctx, "the key set is too old and is no longer used", "url", j.url, "age", age)
	}
	j.o.Logger.WarnContext(ctx, "the key set could not be fetched", "url", j.url, "error", err)
}

func (j *JWKS) fetch(ctx context.Context) error {
	j.mu.Lock()
	j.stats.Fetches++
	j.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, j.o.FetchTimeout)
	defer cancel()
	began := j.o.Now()
	data, err := j.get(ctx)
	if err != nil {
		return err
	}
	old := j.set.Load()
	set, err := readKeySet(data, old)
	if err != nil {
		return err
	}
	for _, dropped := range set.dropped {
		j.o.Logger.WarnContext(ctx, "a key of the set was dropped", "url", j.url, "error", dropped)
	}
	j.set.Store(set)
	j.mu.Lock()
	first := j.fetchedAt.IsZero()
	j.fetchedAt, j.stats.Dropped = began, len(set.dropped)
	j.mu.Unlock()
	if first {
		close(j.ready)
	}
	return nil
}

func (j *JWKS) get(ctx context.Context) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, j.url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/jwk-set+json, application/json")
	response, err := j.client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", response.StatusCode)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxKeySet+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxKeySet {
		return nil, errors.New("the answer is over 1 MiB")
	}
	return data, nil
}
