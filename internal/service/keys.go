package service

import (
	"context"
	"maps"
	"slices"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/keys"
)

// Keys holds what an operator does to the signing keys. The rules are keys.PlanRotate, PlanRevoke, PlanRevokeAll and
// PlanRewrap; a running server takes its own steps beside them, and whoever loses the race plans again.
type Keys struct {
	o KeysOptions
}

// KeysOptions are what NewKeys needs; all fields are required.
type KeysOptions struct {
	Store  keys.Store
	Sealer *keys.Sealer
	Config keys.Config
	Tail   tail
}

// NewKeys makes the use cases.
func NewKeys(o KeysOptions) (*Keys, error) {
	if o.Store == nil || o.Sealer == nil || o.Config == (keys.Config{}) || o.Tail == nil {
		return nil, missing("a keys option")
	}
	return &Keys{o: o}, nil
}

// List gives the keys that are not gone.
func (s *Keys) List(ctx context.Context) ([]keys.Key, error) {
	set, err := s.o.Store.Load(ctx)
	return set.Keys, err
}

// Current reports whether the first key-encryption key has sealed the key, so that a rewrap would leave it alone.
func (s *Keys) Current(k keys.Key) bool { return len(k.Sealed) == 0 || s.o.Sealer.Current(k.Sealed) }

// Rotate promotes the pending key and gives the kid of the one that signs now. Before prepublish has passed it is
// Precondition/KEY_NOT_READY, unless atOnce: then readers of the JWK Set may refuse tokens for up to keys.JWKSMaxAge.
func (s *Keys) Rotate(ctx context.Context, caller Caller, atOnce bool) (string, error) {
	event := "key.rotate"
	if atOnce {
		event = "key.rotate_now"
	}
	var signer string
	err := s.apply(ctx, caller, event, true, func(set keys.Set) (keys.Change, journal.Journal, error) {
		c, err := keys.PlanRotate(set, s.o.Config, atOnce, s.o.Sealer.Generate)
		signer = activeAfter(c)
		return c, journal.Journal{}, err
	})
	return signer, err
}

// Revoke makes one key compromised: everything that it signed is dead as soon as verifiers hear of it.
func (s *Keys) Revoke(ctx context.Context, caller Caller, kid string) error {
	return s.apply(ctx, caller, "key.revoke", true, func(set keys.Set) (keys.Change, journal.Journal, error) {
		return keys.PlanRevoke(set, kid, s.o.Sealer.Generate)
	})
}

// RevokeAll makes every key compromised and gives the set a new active and a new pending one. It does not ask whether the
// old ones open: it is also the way out when their key-encryption key is lost.
func (s *Keys) RevokeAll(ctx context.Context, caller Caller) (string, error) {
	var signer string
	err := s.apply(ctx, caller, "key.revoke", false, func(set keys.Set) (keys.Change, journal.Journal, error) {
		c, j, err := keys.PlanRevokeAll(set, s.o.Sealer.Generate)
		signer = activeAfter(c)
		return c, j, err
	})
	return signer, err
}

// Rewrap seals every private half anew with the first key-encryption key, and gives how many were sealed by another.
func (s *Keys) Rewrap(ctx context.Context, caller Caller) (int, error) {
	n := 0
	err := s.apply(ctx, caller, "key.rewrap", false, func(set keys.Set) (keys.Change, journal.Journal, error) {
		c, _, err := keys.PlanRewrap(set, s.o.Sealer)
		n = len(c.Reseal)
		return c, journal.Journal{}, err
	})
	return n, err
}

// races is how often a plan is made again because a server took a step in between.
const races = 5

// apply plans and commits. Where opening is set, every private half must open first: keys made under a wrong
// key-encryption key would be ones that no server can use. The store alone is given a time: a busy machine takes seconds to make a key.
func (s *Keys) apply(ctx context.Context, caller Caller, event string, opening bool, plan func(keys.Set) (keys.Change, journal.Journal, error)) error {
	for try := 1; ; try++ {
		set, err := s.load(ctx)
		if err != nil {
			return err
		}
		if opening {
			if err := s.opens(set); err != nil {
				return err
			}
		}
		c, j, err := plan(set)
		if err != nil {
			return err
		}
		if len(c.Move)+len(c.Insert)+len(c.Reseal)+len(j.Revokes) == 0 {
			return nil
		}
		j.Audit = append(j.Audit, keyRecords(caller, event, c, j.Revokes)...)
		err = s.commit(ctx, set.Version, c, j)
		if err != nil && fault.From(err).Kind == fault.Conflict && try < races {
			continue
		}
		return err
	}
}

func (s *Keys) load(ctx context.Context) (keys.Set, error) {
	ctx, cancel := detached(ctx)
	defer cancel()
	return s.o.Store.Load(ctx)
}

func (s *Keys) commit(ctx context.Context, version int64, c keys.Change, j journal.Journal) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := s.o.Store.Apply(ctx, version, c, j); err != nil {
		return err
	}
	return s.o.Tail.CatchUp(ctx)
}

func (s *Keys) opens(set keys.Set) error {
	for _, k := range set.Keys {
		if len(k.Sealed) == 0 {
			continue
		}
		if _, err := s.o.Sealer.Open(k.ID, k.Sealed); err != nil {
			return fault.Wrap(err, fault.Precondition, fault.SigningUnavailable, "the key-encryption keys do not open the signing keys; nothing was changed")
		}
	}
	return nil
}

// keyRecords gives one audit record for each key that a change touches.
func keyRecords(caller Caller, event string, c keys.Change, revokes []journal.Revocation) []journal.Record {
	states := map[string]string{}
	for _, r := range revokes {
		states[r.ID] = string(keys.Compromised) // one that was compromised already is only listed again
	}
	for _, m := range c.Move {
		states[m.ID] = string(m.To)
	}
	for _, k := range c.Insert {
		states[k.ID] = string(k.State)
	}
	for kid := range c.Reseal {
		states[kid] = "resealed"
	}
	var records []journal.Record
	for _, kid := range slices.Sorted(maps.Keys(states)) {
		records = append(records, caller.record(event, "ok", states[kid], kid))
	}
	return records
}

func activeAfter(c keys.Change) string {
	for _, m := range c.Move {
		if m.To == keys.Active {
			return m.ID
		}
	}
	for _, k := range c.Insert {
		if k.State == keys.Active {
			return k.ID
		}
	}
	return ""
}
