package keys

import (
	"errors"
	"fmt"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
)

// RetiredFor is how long a retired key stays published: the longest access token (15 min), the widest skew (60 s) and the
// max-age of the JWK Set (5 min), which also covers a replica that signs on from a set up to 60 s old.
const RetiredFor = 15*time.Minute + time.Minute + JWKSMaxAge

// JWKSMaxAge is how long a reader may keep the JWK Set: the max-age of its Cache-Control header.
const JWKSMaxAge = 5 * time.Minute

// MinPrepublish is the least time that a key is published before it signs: meshes poll every 20 min.
const MinPrepublish = 25 * time.Minute

// Config is the section "keys" of the configuration.
type Config struct {
	// RotateEvery is how long a key signs. Not shorter than Prepublish. Default 720h (30 days).
	RotateEvery time.Duration `yaml:"rotate_every"`
	// Prepublish is how long a key is published before it signs. At least 25m. Default 24h.
	Prepublish time.Duration `yaml:"prepublish"`
}

// DefaultConfig gives the values that hold where the configuration is silent.
func DefaultConfig() Config {
	return Config{RotateEvery: 30 * 24 * time.Hour, Prepublish: 24 * time.Hour}
}

// Validate says what is wrong with the section.
func (c Config) Validate() error { return c.validate(MinPrepublish) }

func (c Config) validate(floor time.Duration) error {
	if c.Prepublish < floor {
		return fmt.Errorf("prepublish is %v; it must be at least %v, since services poll the key set that rarely", c.Prepublish, floor)
	}
	if c.RotateEvery < c.Prepublish {
		return fmt.Errorf("rotate_every is %v; it must not be shorter than prepublish (%v)", c.RotateEvery, c.Prepublish)
	}
	return nil
}

// Generator makes a new key with ID, Public and Sealed set. (*Sealer).Generate is one.
type Generator func() (Key, error)

// Signer gives the key that signs now: the active one. A set without one, or with two, is Unavailable/SIGNING_UNAVAILABLE.
func Signer(set Set) (Key, error) {
	active := find(set, Active)
	if len(active) != 1 {
		return Key{}, &fault.Error{Kind: fault.Unavailable, Reason: fault.SigningUnavailable,
			Message: "no signing key is available", Err: fmt.Errorf("keys: %d active keys in version %d", len(active), set.Version)}
	}
	return active[0], nil
}

// PlanBootstrap gives an empty set its first keys: one active, exempt from pre-publication since no token exists that an
// older JWK Set would have to verify, and one pending. A set that is not empty is an error.
func PlanBootstrap(set Set, gen Generator) (Change, error) {
	if len(set.Keys) != 0 {
		return Change{}, errors.New("keys: the set is not empty")
	}
	return insert(Change{}, gen, Active, Pending)
}

// Plan gives the next automatic step, if one is due: it promotes a pending key once the active one has signed for
// RotateEvery and the pending one has been published for Prepublish, retires the old one and inserts the next pending key in
// the same change; it drops retired keys past their GoneAt; and it inserts a pending key where there is none. Where the active
// key was compromised and nothing took its place (a failover lost the change, and its revocation alone was appended again),
// the pending key signs at once, or else a new one, as when it is revoked.
func Plan(set Set, cfg Config, gen Generator) (Change, bool, error) {
	var c Change
	var add []State
	pending, active := find(set, Pending), find(set, Active)
	due := len(active) == 0 || !set.Now.Before(active[0].ActivatedAt.Add(cfg.RotateEvery))
	orphaned := len(active) == 0 && len(find(set, Compromised)) > 0
	if due && len(active) <= 1 && len(pending) > 0 && (orphaned || ready(set, pending[0], cfg)) {
		c = promote(c, active, pending[0])
		pending = pending[1:]
	} else if orphaned {
		add = append(add, Active)
	}
	for _, k := range find(set, Retired) {
		if !set.Now.Before(k.GoneAt) {
			c.Move = append(c.Move, Move{ID: k.ID, To: Gone})
		}
	}
	if len(pending) == 0 {
		add = append(add, Pending)
	}
	c, err := insert(c, gen, add...)
	return c, len(c.Move)+len(c.Insert) > 0, err
}

// PlanRotate promotes the pending key on an operator's word. Before it has been published for Prepublish this is
// Precondition/KEY_NOT_READY, whose message and ready_at say when it will be; force promotes at once, and then services that
// poll the JWK Set may refuse tokens for up to JWKSMaxAge.
func PlanRotate(set Set, cfg Config, force bool, gen Generator) (Change, error) {
	pending, active := find(set, Pending), find(set, Active)
	switch {
	case len(pending) == 0 && !force:
		return Change{}, fault.New(fault.Precondition, fault.KeyNotReady, "there is no pending key yet; one is made within a minute")
	case len(pending) == 0:
		return insert(promote(Change{}, active, Key{}), gen, Active, Pending)
	case !force && !ready(set, pending[0], cfg):
		at := pending[0].PublishedAt.Add(cfg.Prepublish).UTC().Format(time.RFC3339)
		f := fault.New(fault.Precondition, fault.KeyNotReady, "the pending key has not been published long enough; it may sign from "+at)
		f.Meta = map[string]string{"kid": pending[0].ID, "ready_at": at}
		return Change{}, f
	}
	c := promote(Change{}, active, pending[0])
	if len(pending) > 1 {
		return c, nil
	}
	return insert(c, gen, Pending)
}

// PlanRevoke makes one key compromised and puts its kid in the journal. Where it was the active one, the pending key, which
// services already have, takes its place at once; there is a pending key afterwards in any case. A key that is compromised
// already gets its revocation again. An unknown kid is NotFound/KEY_NOT_FOUND.
func PlanRevoke(set Set, kid string, gen Generator) (Change, journal.Journal, error) {
	var hit *Key
	for i := range set.Keys {
		if set.Keys[i].ID == kid {
			hit = &set.Keys[i]
		}
	}
	if hit == nil || hit.State == Gone {
		return Change{}, journal.Journal{}, fault.New(fault.NotFound, fault.KeyNotFound, "there is no such signing key")
	}
	j := journal.Journal{Revokes: []journal.Revocation{{Kind: journal.KindKey, ID: kid}}}
	if hit.State == Compromised {
		return Change{}, j, nil
	}
	c := Change{Move: []Move{{ID: kid, To: Compromised}}}
	var pending []Key
	for _, k := range find(set, Pending) {
		if k.ID != kid {
			pending = append(pending, k)
		}
	}
	var add []State
	if hit.State == Active && len(pending) > 0 {
		c.Move = append(c.Move, Move{ID: pending[0].ID, To: Active})
		pending = pending[1:]
	} else if hit.State == Active {
		add = append(add, Active)
	}
	if len(pending) == 0 {
		add = append(add, Pending)
	}
	c, err := insert(c, gen, add...)
	return c, j, err
}

// PlanRevokeAll makes every key compromised and gives the set a new active and a new pending key in the same change: the
// table or the KEK has leaked, so a key that was published before cannot be trusted either.
func PlanRevokeAll(set Set, gen Generator) (Change, journal.Journal, error) {
	var c Change
	var j journal.Journal
	for _, k := range set.Keys {
		if k.State == Gone {
			continue
		}
		j.Revokes = append(j.Revokes, journal.Revocation{Kind: journal.KindKey, ID: k.ID})
		if k.State != Compromised {
			c.Move = append(c.Move, Move{ID: k.ID, To: Compromised})
		}
	}
	c, err := insert(c, gen, Active, Pending)
	return c, j, err
}

// PlanRewrap re-seals with the first KEK every private half that another one sealed; false where there is none. A private
// half that does not open is an error, and nothing is changed.
func PlanRewrap(set Set, sealer *Sealer) (Change, bool, error) {
	c := Change{Reseal: map[string][]byte{}}
	for _, k := range set.Keys {
		if len(k.Sealed) == 0 || sealer.Current(k.Sealed) {
			continue
		}
		der, err := sealer.Open(k.ID, k.Sealed)
		if err != nil {
			return Change{}, false, err
		}
		c.Reseal[k.ID] = sealer.Seal(k.ID, der)
	}
	return c, len(c.Reseal) > 0, nil
}

// find gives the keys of a state, the longest published first; ties go by ID, so that every replica plans the same.
func find(set Set, state State) []Key {
	var out []Key
	for _, k := range set.Keys {
		if k.State == state {
			out = append(out, k)
		}
	}
	sortKeys(out)
	return out
}

func ready(set Set, k Key, cfg Config) bool {
	return !set.Now.Before(k.PublishedAt.Add(cfg.Prepublish))
}

// promote retires the active keys and makes next the active one; the zero next leaves that to an insert.
func promote(c Change, active []Key, next Key) Change {
	for _, k := range active {
		c.Move = append(c.Move, Move{ID: k.ID, To: Retired, GoneIn: RetiredFor})
	}
	if next.ID != "" {
		c.Move = append(c.Move, Move{ID: next.ID, To: Active})
	}
	return c
}

func insert(c Change, gen Generator, states ...State) (Change, error) {
	for _, state := range states {
		k, err := gen()
		if err != nil {
			return Change{}, err
		}
		k.State = state
		c.Insert = append(c.Insert, k)
	}
	return c, nil
}
