// Package verify answers one question about an access token (RFC 9068): is it good, now? It owns the strict reading of
// the token, the check of its signature, issuer, audience and times, the sources of keys, and the list of what has been
// revoked. It needs no call to the issuer per token: keys come from a JWK Set that is refreshed behind the caller's back,
// revocations from a list in memory.
//
// A Verifier is made once and shared:
//
//	keys, err := verify.NewJWKS(verify.JWKSOptions{URL: "https://auth.example/.well-known/jwks.json"})
//	go keys.Run(ctx)
//	v, err := verify.New(verify.Options{Issuer: "https://auth.example", Audiences: []string{"https://api.example"}, Keys: keys})
//	claims, err := v.Verify(ctx, token)
//
// What it accepts is narrow on purpose: compact JWS only, RS256 only, typ at+jwt only, the canonical spelling only, so that
// one token has one text. Every refusal is one of the errors below; none of them carries any part of the token.
package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The limits that no option can lift.
const (
	maxToken        = 8 << 10 // bytes of a token, checked before anything is decoded
	maxSkew         = 60 * time.Second
	maxIssuedAhead  = 60 // seconds that iat may lie in the future
	maxOwnLifetime  = 15 * time.Minute
	defaultSkew     = 30 * time.Second
	defaultCache    = 32 << 20
	accessTokenType = "at+jwt" // RFC 9068 §2.1
)

// The outcomes of Verify other than a good token. ErrExpired, ErrNotYetValid and ErrRevoked are given only after the signature
// was found good. ErrNotReady says nothing about the token: the verifier cannot judge it at the moment.
var (
	ErrMalformed   = errors.New("verify: the token is malformed")
	ErrSignature   = errors.New("verify: the signature is not good")
	ErrKeyUnknown  = errors.New("verify: the token's key is not known")
	ErrIssuer      = errors.New("verify: the token is from another issuer")
	ErrAudience    = errors.New("verify: the token is for another audience")
	ErrExpired     = errors.New("verify: the token has expired")
	ErrNotYetValid = errors.New("verify: the token is not valid yet")
	ErrRevoked     = errors.New("verify: the token has been revoked")
	ErrNotReady    = errors.New("verify: keys or revocations are not available")
	// ErrStale is an ErrNotReady: the revocations are known, none of them hits the token, but they are too old to go by.
	ErrStale error = &refusal{ErrNotReady, "the revocations are too old"}
)

// Options are what a Verifier is made of.
type Options struct {
	// Issuer is compared with iss byte for byte. Required.
	Issuer string
	// Audiences are this service's names: a token must have one of them in aud. Required, unless AnyAudience.
	Audiences []string
	// AnyAudience accepts whatever aud says. It is for an introspection endpoint, which judges tokens of other services and
	// compares Claims.Audience itself; it excludes Audiences.
	AnyAudience bool
	// Keys finds the issuer's public keys: a JWKS, a Static, or your own. Required.
	Keys KeySource
	// Revocations is asked on every call, for tokens seen before too. Nil means that tokens live until they expire.
	Revocations RevocationSource
	// Skew is how far the issuer's clock may be from ours, for exp and nbf. 0 means 30 s; more than 60 s is refused.
	Skew time.Duration
	// MaxLifetime is the most that exp − iat may be. 0 means 15 min, which is also the most unless ForeignIssuer.
	MaxLifetime time.Duration
	// ForeignIssuer is for an RFC 9068 issuer other than authsvc: unknown header members are ignored (but never crit, b64, zip,
	// jwk, jku, x5u, x5c), nbf, scope and auth_time may be absent (RFC 9068 §2.2), NumericDates may have a fraction, and
	// MaxLifetime may be longer.
	ForeignIssuer bool
	// CacheBytes bounds the memory for tokens that were found good before, 2 to 3 KiB each. 0 means 32 MiB; negative turns
	// the cache off.
	CacheBytes int
	// Now is the clock; nil means time.Now. A clock that is set back revives expired tokens, so a service on the trust feed gives
	// the feed's (guard.Feed.Now), which never is.
	Now func() time.Time
}

// Verifier judges access tokens of one issuer. It is safe for concurrent use and never changes.
type Verifier struct {
	issuer      string
	audiences   []string
	anyAudience bool
	foreign     bool
	keys        KeySource
	revocations RevocationSource
	skew        int64 // seconds
	lifetime    int64 // seconds
	now         func() time.Time
	signature   signature
	cache       *cache
}

// New makes a Verifier, or says which option is missing or out of bounds.
func New(o Options) (*Verifier, error) {
	v := &Verifier{
		issuer: o.Issuer, audiences: slices.Clone(o.Audiences), anyAudience: o.AnyAudience, foreign: o.ForeignIssuer,
		keys: o.Keys, revocations: o.Revocations, now: o.Now,
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	if v.now == nil {
		v.now = time.Now
	}
	skew, lifetime := o.Skew, o.MaxLifetime
	if skew == 0 {
		skew = defaultSkew
	}
	if lifetime == 0 {
		lifetime = maxOwnLifetime
	}
	v.skew, v.lifetime = int64(skew/time.Second), int64(lifetime/time.Second)
	var err error
	if v.signature, err = newSignature(); err != nil {
		return nil, err
	}
	switch {
	case o.CacheBytes == 0:
		v.cache = newCache(defaultCache)
	case o.CacheBytes > 0:
		v.cache = newCache(o.CacheBytes)
	}
	return v, nil
}

func (o *Options) check() error {
	switch {
	case o.Issuer == "":
		return errors.New("verify: Options.Issuer is required")
	case o.Keys == nil:
		return errors.New("verify: Options.Keys is required")
	case len(o.Audiences) == 0 && !o.AnyAudience:
		return errors.New("verify: Options.Audiences is required")
	case len(o.Audiences) > 0 && o.AnyAudience:
		return errors.New("verify: Options.AnyAudience excludes Options.Audiences")
	case slices.Contains(o.Audiences, ""):
		return errors.New("verify: Options.Audiences has an empty name")
	case o.Skew < 0 || o.Skew > maxSkew:
		return fmt.Errorf("verify: Options.Skew is outside 0 to %s", maxSkew)
	case o.MaxLifetime < 0:
		return errors.New("verify: Options.MaxLifetime is negative")
	case o.MaxLifetime > maxOwnLifetime && !o.ForeignIssuer:
		return fmt.Errorf("verify: Options.MaxLifetime is over %s", maxOwnLifetime)
	}
	return nil
}

// Verify judges the token. The Claims of a good one are shared by all who present the same text: read them, never write.
// Errors match one of the package's with errors.Is; where ctx ends while a key is being fetched, its error. With ErrStale, and no
// other error, come the claims of a token that is good but for that, for whoever would rather go on than know.
func (v *Verifier) Verify(ctx context.Context, token string) (*Claims, error) {
	if len(token) > maxToken {
		return nil, malformed("longer than 8 KiB")
	}
	var hash uint64
	if v.cache != nil {
		hash = v.cache.hash(token)
		if t := v.cache.get(hash, token); t != nil {
			if known, err := v.keyStillServed(ctx, t); err != nil {
				return nil, err
			} else if known {
				return v.judge(t)
			}
			v.cache.drop(t)
		}
	}
	t, err := v.open(ctx, token)
	if err != nil {
		return nil, err
	}
	claims, err := v.judge(t)
	if v.cache != nil && claims != nil {
		v.cache.put(hash, token, t, v.now().Unix()-v.skew)
	}
	return claims, err
}

// Revocations is what Options.Revocations was.
func (v *Verifier) Revocations() RevocationSource { return v.revocations }

// Now is the time by Options.Now.
func (v *Verifier) Now() time.Time { return v.now() }

// verified is a token whose signature was found good, with all that later calls need, computed once.
// What every call reads stands together at the front.
type verified struct {
	exp, nbf, iat int64
	key           *Key
	slot          cacheSlot
	subject       Subject
	claims        Claims
	auth          int64 // auth_time, where there is one
}

// open reads the token, checks its signature, and then what no later call can change. Nothing that the token says is believed
// before its signature is.
func (v *Verifier) open(ctx context.Context, token string) (*verified, error) {
	parts, err := split(token)
	if err != nil {
		return nil, err
	}
	kid, err := readHeader(parts.header, v.foreign)
	if err != nil {
		return nil, err
	}
	key, err := v.key(ctx, kid)
	if err != nil {
		return nil, err
	}
	if !v.signature.good(parts.signed, parts.signature, key) {
		return nil, ErrSignature
	}
	t := &verified{key: key}
	if err := readClaims(t, parts.payload, v.foreign); err != nil {
		return nil, err
	}
	// The cache is this verifier's own, and neither its issuer nor its audiences ever change: once is enough.
	if t.claims.Issuer != v.issuer {
		return nil, ErrIssuer
	}
	if !v.anyAudience && !v.addressed(t.claims.Audience) {
		return nil, ErrAudience
	}
	t.claims.KeyID = key.id
	if v.revocations != nil {
		t.subject = v.Subject(&t.claims)
		t.subject.keeps = true
	}
	return t, nil
}

// key asks the source; what is neither a key nor a clear no is "not ready", never a verdict on the token.
func (v *Verifier) key(ctx context.Context, kid string) (*Key, error) {
	key, err := v.keys.Key(ctx, kid)
	switch {
	case err == nil && key != nil:
		return key, nil
	case err == nil:
		return nil, ErrKeyUnknown
	case errors.Is(err, ErrStale): // of keys; as ours it would say that the token is good but for the revocations
		return nil, fmt.Errorf("%w: the keys are too old", ErrNotReady)
	case errors.Is(err, ErrKeyUnknown), errors.Is(err, ErrNotReady), errors.Is(err, ctx.Err()):
		return nil, err
	default:
		return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
	}
}

// keyStillServed says whether a verdict from the cache still stands on a key that the source serves. False means that the
// kid now names another key; an error is the source's.
func (v *Verifier) keyStillServed(ctx context.Context, t *verified) (bool, error) {
	key, err := v.key(ctx, t.key.id)
	if err != nil {
		if errors.Is(err, ErrKeyUnknown) {
			v.cache.drop(t)
		}
		return false, err
	}
	return key == t.key || key.equal(t.key), nil
}

// judge checks all that may change between two calls. The claims are nil but for a good token and ErrStale.
func (v *Verifier) judge(t *verified) (*Claims, error) {
	now := v.now().Unix()
	switch {
	case now >= t.exp+v.skew:
		if v.cache != nil {
			v.cache.drop(t)
		}
		return nil, ErrExpired
	case t.nbf > now+v.skew:
		return nil, ErrNotYetValid
	case t.iat > now+maxIssuedAhead:
		return nil, ErrNotYetValid
	case t.exp-t.iat > v.lifetime:
		return nil, malformed("lives longer than allowed")
	}
	if v.revocations != nil {
		if err := v.revocations.Check(&t.subject); err != nil {
			switch {
			case errors.Is(err, ErrStale):
				return &t.claims, err
			case errors.Is(err, ErrRevoked), errors.Is(err, ErrNotReady):
				return nil, err
			}
			return nil, fmt.Errorf("%w: %w", ErrNotReady, err)
		}
	}
	return &t.claims, nil
}

func (v *Verifier) addressed(audience []string) bool {
	for _, a := range audience {
		for _, ours := range v.audiences {
			if a == ours {
				return true
			}
		}
	}
	return false
}

// refusal is one of the sentinels with a fixed word on why.
type refusal struct {
	kind   error
	detail string
}

func (r *refusal) Error() string { return r.kind.Error() + ": " + r.detail }
func (r *refusal) Unwrap() error { return r.kind }

func malformed(detail string) error { return &refusal{ErrMalformed, detail} }
