package keys

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/verify"
)

// FreshFor is how old the loaded set may be for this replica to sign with it.
const FreshFor = 60 * time.Second

// Events of the audit log that this package writes by itself.
const (
	EventBootstrap = "key.bootstrap" // an empty database got its first keys
	EventRotate    = "key.rotate"    // the automatic rotation took a step
)

// Options of a Ring.
type Options struct {
	Store  Store   // required
	Sealer *Sealer // required
	Config Config  // zero: DefaultConfig

	// MinPrepublish replaces the compiled floor of Config.Prepublish, for tests. Zero: MinPrepublish.
	MinPrepublish time.Duration
	// ReloadEvery is how often Run reads the set; what an operator changes by the CLI acts within that. Zero: 500 ms.
	ReloadEvery time.Duration
	// Revoked reports whether the revocation list of this process holds the kid. Nil: none is.
	Revoked func(kid string) bool
	// Now is the clock for freshness; it must carry a monotonic reading. Nil: time.Now.
	Now func() time.Time
	// Log gets what Run cannot answer to anybody. Nil: discarded.
	Log *slog.Logger
}

// Ring is the key set as this process holds it: it signs, it serves the JWK Set, and it takes the steps of rotation. All
// replicas run the same rules against the same rows, and the store's compare-and-swap picks whose step counts.
type Ring struct {
	o      Options
	mu     sync.Mutex // one load at a time, so that an older read never replaces a newer one
	now    atomic.Pointer[view]
	nudged chan struct{}
	// signing bounds the signatures under way to one for each core. A signature holds its core for most of a millisecond:
	// with a crowd of them runnable, whoever comes back from the disk, as the store's writer does, would wait behind them all.
	signing chan struct{}
}

// view is one loaded set; it is never changed, only replaced.
type view struct {
	set     Set
	begun   time.Time // before the read began
	opened  map[string]opened
	kid     string // of the signer
	header  string // encoded JOSE header
	signer  crypto.Signer
	jwks    []byte
	etag    string
	trusted map[string]*verify.Key // what the local verifier believes: the keys of jwks
	ahead   time.Duration          // of Options.Now before set.Now
}

// opened is a private half in memory, with the sealed bytes that it came from: a row that changes is opened anew.
type opened struct {
	sealed [32]byte
	key    *rsa.PrivateKey
}

// NewRing makes an empty ring; Bootstrap or Load fills it.
func NewRing(o Options) (*Ring, error) {
	if o.Store == nil || o.Sealer == nil {
		return nil, errors.New("keys: Options.Store and Options.Sealer are required")
	}
	if o.Config == (Config{}) {
		o.Config = DefaultConfig()
	}
	if o.MinPrepublish == 0 {
		o.MinPrepublish = MinPrepublish
	}
	if err := o.Config.validate(o.MinPrepublish); err != nil {
		return nil, fmt.Errorf("keys: %w", err)
	}
	if o.ReloadEvery == 0 {
		o.ReloadEvery = 500 * time.Millisecond
	}
	if o.ReloadEvery < 0 || o.ReloadEvery >= FreshFor {
		return nil, fmt.Errorf("keys: ReloadEvery is %v; it must lie between 0 and %v", o.ReloadEvery, FreshFor)
	}
	if o.Revoked == nil {
		o.Revoked = func(string) bool { return false }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Ring{o: o, nudged: make(chan struct{}, 1), signing: make(chan struct{}, runtime.GOMAXPROCS(0))}, nil
}

// Bootstrap loads the set, and gives an empty one its first keys. Replicas that start together on an empty database agree by
// compare-and-swap: one wins, the others load what it wrote. A set whose private halves do not open, or that has no active
// key, is an error and is left alone.
func (r *Ring) Bootstrap(ctx context.Context) error {
	set, err := r.o.Store.Load(ctx)
	if err != nil {
		return fmt.Errorf("keys: load: %w", err)
	}
	if len(set.Keys) == 0 {
		c, err := PlanBootstrap(set, r.o.Sealer.Generate)
		if err != nil {
			return err
		}
		err = r.o.Store.Apply(ctx, set.Version, c, audited(EventBootstrap, c))
		if err != nil && !lostRace(err) {
			return fmt.Errorf("keys: bootstrap: %w", err)
		}
	}
	if err := r.Load(ctx); err != nil {
		return err
	}
	_, err = Signer(r.now.Load().set)
	return err
}

// Load reads the set and makes it the one that signs. On an error the ring keeps what it had, and stops signing once that
// is FreshFor old.
func (r *Ring) Load(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	begun := r.o.Now()
	set, err := r.o.Store.Load(ctx)
	if err != nil {
		return fmt.Errorf("keys: load: %w", err)
	}
	took := r.o.Now().Sub(begun)
	next, err := r.look(set, begun, r.now.Load())
	if err != nil {
		return err
	}
	next.ahead = begun.Add(took / 2).Sub(set.Now)
	r.now.Store(next)
	return nil
}

// look turns a set into a view, opening only what old has not opened from the same bytes.
func (r *Ring) look(set Set, begun time.Time, old *view) (*view, error) {
	if old == nil {
		old = &view{}
	}
	keys := slices.Clone(set.Keys)
	sortKeys(keys)
	v := &view{set: set, begun: begun, opened: map[string]opened{}}
	var ids []string
	var publics []*rsa.PublicKey
	for _, k := range keys {
		if k.State == Gone || k.State == Compromised {
			continue
		}
		public, err := parsePublic(k.ID, k.Public)
		if err != nil {
			return nil, err
		}
		if k.State == Pending || k.State == Active {
			if err := r.open(v, old, k, public); err != nil {
				return nil, err
			}
		}
		if published(k, set.Now) && !r.o.Revoked(k.ID) {
			ids, publics = append(ids, k.ID), append(publics, public)
		}
	}
	if signer, err := Signer(set); err == nil {
		v.kid = signer.ID
		v.signer = v.opened[signer.ID].key
		v.header = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"` + Algorithm + `","kid":"` + signer.ID + `","typ":"at+jwt"}`))
	}
	return v, r.publish(v, old, ids, publics)
}

func (r *Ring) open(v, old *view, k Key, public *rsa.PublicKey) error {
	sum := sha256.Sum256(k.Sealed)
	if o, ok := old.opened[k.ID]; ok && o.sealed == sum {
		v.opened[k.ID] = o
		return nil
	}
	private, err := r.o.Sealer.private(k, public)
	if err != nil {
		return err
	}
	v.opened[k.ID] = opened{sealed: sum, key: private}
	return nil
}

// publish renders the JWK Set of a view. It is never empty: where every key is revoked, and the rows that replace them have
// not been read yet, the last one stays; the revocation list refuses its keys.
func (r *Ring) publish(v, old *view, ids []string, publics []*rsa.PublicKey) error {
	if len(ids) == 0 && old.jwks == nil {
		return errors.New("keys: no signing key may be published")
	}
	jwks := old.jwks
	if len(ids) > 0 {
		var err error
		if jwks, err = renderJWKS(ids, publics); err != nil {
			return err
		}
	}
	if bytes.Equal(jwks, old.jwks) {
		v.jwks, v.etag, v.trusted = old.jwks, old.etag, old.trusted
		return nil
	}
	sum := sha256.Sum256(jwks)
	v.jwks, v.etag = jwks, `"`+base64.RawURLEncoding.EncodeToString(sum[:16])+`"`
	v.trusted = make(map[string]*verify.Key, len(ids))
	for i, id := range ids {
		if v.trusted[id] = old.trusted[id]; v.trusted[id] != nil {
			continue // the same object, so that verdicts which stand on it stay
		}
		k, err := verify.NewKey(id, publics[i])
		if err != nil {
			return fmt.Errorf("keys: publish: %w", err)
		}
		v.trusted[id] = k
	}
	return nil
}

// Run reloads the set every ReloadEvery, and at once when nudged, and takes the steps of rotation that are due, until ctx is
// done; then it gives nil.
func (r *Ring) Run(ctx context.Context) error {
	timer := time.NewTimer(r.o.ReloadEvery)
	defer timer.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-r.nudged:
		}
		err := r.step(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			r.o.Log.ErrorContext(ctx, "the signing keys cannot be read or rotated", "error", err)
		} else if err == nil && failing {
			r.o.Log.InfoContext(ctx, "the signing keys can be read again")
		}
		failing = err != nil
		timer.Reset(r.o.ReloadEvery/2 + rand.N(r.o.ReloadEvery/2+1)) // replicas that lost a race part ways
	}
}

// storeFor bounds what one turn of Run waits for the store, so that one that hangs shows as an old set and not as a stuck loop. The making of
// a key is not bounded: a busy machine takes seconds for it.
const storeFor = 5 * time.Second

// step is one turn of Run.
func (r *Ring) step(ctx context.Context) error {
	if err := r.loadSoon(ctx); err != nil {
		return err
	}
	set := r.now.Load().set
	c, due, err := Plan(set, r.o.Config, r.o.Sealer.Generate)
	if err != nil || !due {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, storeFor)
	defer cancel()
	err = r.o.Store.Apply(bounded, set.Version, c, audited(EventRotate, c))
	if lostRace(err) {
		return r.loadSoon(ctx) // another replica took the step
	}
	if err != nil {
		return fmt.Errorf("keys: rotate: %w", err)
	}
	r.o.Log.InfoContext(ctx, "the signing keys took a step of rotation", "moved", len(c.Move), "inserted", len(c.Insert))
	return r.loadSoon(ctx)
}

// loadSoon is Load with a bound.
func (r *Ring) loadSoon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeFor)
	defer cancel()
	return r.Load(ctx)
}

// Nudge makes Run reload soon, without waiting for it: for whoever learns that the keys have changed.
func (r *Ring) Nudge() {
	select {
	case r.nudged <- struct{}{}:
	default:
	}
}

// Sign gives the compact JWS (RFC 7515 §7.1) of an access token's claims, with the header {"alg":"RS256","kid":…,
// "typ":"at+jwt"} (RFC 9068 §2.1). It signs only while the loaded set is fresher than FreshFor, and never with a kid that the
// revocation list holds; otherwise it is Unavailable/SIGNING_UNAVAILABLE.
func (r *Ring) Sign(ctx context.Context, payload []byte) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("keys: sign: %w", err)
	}
	select {
	case r.signing <- struct{}{}:
		defer func() { <-r.signing }()
	case <-ctx.Done():
		return "", fmt.Errorf("keys: sign: %w", ctx.Err())
	}
	v := r.now.Load()
	if err := r.maySign(v); err != nil {
		r.Nudge()
		return "", &fault.Error{Kind: fault.Unavailable, Reason: fault.SigningUnavailable,
			Message: "tokens cannot be signed now", RetryAfter: time.Second, Err: err}
	}
	var b strings.Builder
	b.Grow(len(v.header) + base64.RawURLEncoding.EncodedLen(len(payload)) + 350)
	b.WriteString(v.header)
	b.WriteByte('.')
	b.WriteString(base64.RawURLEncoding.EncodeToString(payload))
	digest := sha256.Sum256([]byte(b.String()))
	signature, err := v.signer.Sign(nil, digest[:], crypto.SHA256) // PKCS #1 v1.5 is deterministic: no randomness needed
	if err != nil {
		return "", fmt.Errorf("keys: sign with %s: %w", v.kid, err)
	}
	b.WriteByte('.')
	b.WriteString(base64.RawURLEncoding.EncodeToString(signature))
	return b.String(), nil
}

func (r *Ring) maySign(v *view) error {
	switch {
	case v == nil:
		return errors.New("keys: no set is loaded")
	case v.signer == nil:
		return errors.New("keys: the set has no active key")
	case r.o.Now().Sub(v.begun) >= FreshFor:
		return fmt.Errorf("keys: the loaded set is %v old", r.o.Now().Sub(v.begun).Round(time.Second))
	case r.o.Revoked(v.kid):
		return fmt.Errorf("keys: the active key %s is revoked", v.kid)
	}
	return nil
}

// JWKS gives the JWK Set (RFC 7517 §5) of all published keys: pending, active and retired, public halves only. The same set
// gives the same bytes, on every replica. It is nil before the first Load, and must not be changed.
func (r *Ring) JWKS() []byte {
	if v := r.now.Load(); v != nil {
		return v.jwks
	}
	return nil
}

// ETag gives the strong entity tag of JWKS, in its quotes (RFC 9110 §8.8.3); empty before the first Load.
func (r *Ring) ETag() string {
	if v := r.now.Load(); v != nil {
		return v.etag
	}
	return ""
}

// Key makes the Ring the verify.KeySource of this process: it trusts exactly what JWKS publishes, under verify's own
// conditions, and never waits.
func (r *Ring) Key(_ context.Context, kid string) (*verify.Key, error) {
	v := r.now.Load()
	if v == nil {
		return nil, verify.ErrNotReady
	}
	if k := v.trusted[kid]; k != nil {
		return k, nil
	}
	return nil, verify.ErrKeyUnknown
}

// Status is what metrics and readiness need to know of a Ring.
type Status struct {
	Set    Set           // as loaded; its private halves are sealed; must not be changed
	Age    time.Duration // of the loaded set
	Signer string        // kid of the signer; empty where there is none
	Ready  error         // nil if Sign would sign now, else why not
	Ahead  time.Duration // how far Options.Now was ahead of the store's time when the set was loaded, to within half of what that took
}

// Status gives the present state.
func (r *Ring) Status() Status {
	v := r.now.Load()
	s := Status{Ready: r.maySign(v)}
	if v != nil {
		s.Set, s.Age, s.Signer, s.Ahead = v.set, r.o.Now().Sub(v.begun), v.kid, v.ahead
	}
	return s
}

func published(k Key, now time.Time) bool {
	switch k.State {
	case Pending, Active:
		return true
	case Retired:
		return now.Before(k.GoneAt)
	default:
		return false
	}
}

func sortKeys(keys []Key) {
	slices.SortFunc(keys, func(a, b Key) int {
		if c := a.PublishedAt.Compare(b.PublishedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
}

func lostRace(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Kind == fault.Conflict
}

// audited gives one audit record for each key that a step of our own touches.
func audited(event string, c Change) journal.Journal {
	var j journal.Journal
	record := func(kid string, to State) {
		j.Audit = append(j.Audit, journal.Record{Event: event, Outcome: "ok", Reason: string(to), Actor: "system", Subject: kid})
	}
	for _, m := range c.Move {
		record(m.ID, m.To)
	}
	for _, k := range c.Insert {
		record(k.ID, k.State)
	}
	return j
}
