package faults

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authsvc/authsvc/internal/keys"
	"github.com/authsvc/authsvc/internal/store/pgtest"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
	"github.com/authsvc/authsvc/test/soak"
	"github.com/authsvc/authsvc/verify"
)

// driven is the clock of a database: functions that stand before PostgreSQL's own in the search path, and read a table.
const driven = `CREATE SCHEMA driven; CREATE TABLE driven.clock AS SELECT pg_catalog.now() AS at;
CREATE FUNCTION driven.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT at FROM driven.clock';
CREATE FUNCTION driven.clock_timestamp() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT at FROM driven.clock';
CREATE FUNCTION driven.now() RETURNS timestamptz STABLE LANGUAGE sql AS 'SELECT at FROM driven.clock'`

// rotations are three rings on one database whose time is ours, and those who verify what they sign.
type rotations struct {
	pg      *pgtest.Server
	clock   *pgx.Conn
	at      time.Time
	store   keys.Store
	rings   []*keys.Ring
	readers []*reader
	live    []minted
	turns   int
	rng     *rand.Rand
	signers map[string]bool
}

type minted struct {
	token string
	exp   time.Time
}

// reader verifies by the key set of one ring: at every moment, as the feed brings it, or as old as its max-age lets it be.
type reader struct {
	name      string
	ring      *keys.Ring
	polls     bool
	fetchedAt time.Time
	set       *verify.Static
	*verify.Verifier
}

// Key finds a key as the reader knows it.
func (r *reader) Key(ctx context.Context, kid string) (*verify.Key, error) {
	if r.polls {
		return r.set.Key(ctx, kid)
	}
	return r.ring.Key(ctx, kid)
}

func newRotations(t *testing.T) *rotations {
	t.Helper()
	pg, err := pgtest.Start(t.Context())
	if errors.Is(err, pgtest.ErrMissing) {
		lacking(t, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := pg.SQL(t.Context(), "postgres", driven); err != nil {
		t.Fatal(err)
	}
	x := &rotations{pg: pg, at: time.Now().Truncate(time.Second), signers: map[string]bool{}, rng: rand.New(rand.NewPCG(rand.Uint64(), 3))}
	if x.clock, err = connect(t.Context(), pg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.clock.Close(context.Background()) })
	x.advance(t, 0)
	x.store = x.open(t).Keys()
	// They read when they are told to: reading all the time would cost more than the whole test.
	sealer, err := keys.NewSealer([]keys.KEK{{ID: "1", Key: bytes.Repeat([]byte{7}, 32)}})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		ring, err := keys.NewRing(keys.Options{Store: x.open(t).Keys(), Sealer: sealer, ReloadEvery: 50 * time.Second,
			Config: rotating(), Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))})
		if err != nil {
			t.Fatal(err)
		}
		if err := ring.Bootstrap(t.Context()); err != nil {
			t.Fatal(err)
		}
		x.rings = append(x.rings, ring)
		for _, polls := range []bool{false, true} {
			r := &reader{name: fmt.Sprintf("reader of ring %d, polls: %v", n, polls), ring: ring, polls: polls}
			if r.Verifier, err = verify.New(verify.Options{Issuer: issuer, Audiences: []string{audience}, Keys: r, Now: func() time.Time { return x.at }}); err != nil {
				t.Fatal(err)
			}
			x.readers = append(x.readers, r)
		}
	}
	return x
}

func (x *rotations) open(t *testing.T) *sqlstore.DB {
	t.Helper()
	db, err := sqlstore.Open(t.Context(), sqlstore.Options{URL: x.pg.URL("postgres", "search_path=driven,pg_catalog", "pool_max_conns=3"), Password: pgtest.Password, OpTimeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// advance sets the database's clock forward.
func (x *rotations) advance(t *testing.T, by time.Duration) {
	t.Helper()
	x.at = x.at.Add(by)
	if _, err := x.clock.Exec(t.Context(), `UPDATE driven.clock SET at = $1`, x.at); err != nil {
		t.Fatal(err)
	}
}

// mint has rings sign a token each, of the longest life there is.
func (x *rotations) mint(t *testing.T, rings ...*keys.Ring) {
	t.Helper()
	for n, ring := range rings {
		exp := x.at.Add(15 * time.Minute)
		payload, err := json.Marshal(map[string]any{"iss": issuer, "sub": "a", "aud": []string{audience}, "client_id": "c", "sid": "AAAAAAAAAAAAAAAAAAAAAA", "jti": "AAAAAAAAAAAAAAAAAAAAAA",
			"scope": "", "iat": x.at.Unix(), "nbf": x.at.Unix(), "exp": exp.Unix(), "auth_time": x.at.Unix(), "amr": []string{"pwd"}})
		if err != nil {
			t.Fatal(err)
		}
		token, err := ring.Sign(t.Context(), payload)
		if err != nil {
			t.Fatalf("ring %d does not sign: %v", n, err)
		}
		x.live = append(x.live, minted{token, exp})
		status := ring.Status()
		if x.signers[accessToken(token).kid] = true; !strings.Contains(string(ring.JWKS()), status.Signer) || status.Signer == "" {
			t.Errorf("ring %d publishes a set without its signer %s: %s", n, status.Signer, ring.JWKS())
		}
	}
}

// look has everybody verify every token that lives.
func (x *rotations) look(t *testing.T) {
	t.Helper()
	kept := x.live[:0]
	for _, m := range x.live {
		if m.exp.After(x.at) {
			kept = append(kept, m)
		}
	}
	x.live = kept
	for _, r := range x.readers {
		if r.polls && (r.set == nil || x.at.Sub(r.fetchedAt) >= keys.JWKSMaxAge) {
			set, err := verify.NewStatic(r.ring.JWKS())
			if err != nil {
				t.Fatal(err)
			}
			r.set, r.fetchedAt = set, x.at
		}
		for _, m := range x.live {
			if _, err := r.Verify(t.Context(), m.token); err != nil {
				t.Fatalf("after %d rotations a %s says of a token of %v ago: %v", len(x.signers), r.name, x.at.Sub(m.exp)+15*time.Minute, err)
			}
		}
	}
}

// turn has every ring see the time: mostly one before the others, so that it alone makes a key, and sometimes all at once.
func (x *rotations) turn(t *testing.T) {
	t.Helper()
	first := x.rng.IntN(len(x.rings))
	for n := range x.rings {
		ring := x.rings[(first+n)%len(x.rings)]
		if x.turns%8 == 0 {
			for _, r := range x.rings {
				r.Nudge()
			}
		}
		ring.Nudge()
		for deadline := time.Now().Add(3 * time.Minute); ring.Status().Set.Now.Before(x.at); {
			if !pause(t.Context(), time.Millisecond) || time.Now().After(deadline) {
				t.Fatalf("ring %d does not see the time", n)
			}
		}
	}
	x.settle(t)
	x.turns++
}

// settle waits until no step is due and every ring holds what the others do: no replica signs by a set that it read more than a minute ago,
// and here the next minutes pass at once.
func (x *rotations) settle(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; {
		set, err := x.store.Load(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, due, err := keys.Plan(set, rotating(), func() (keys.Key, error) { return keys.Key{}, nil })
		if err != nil {
			t.Fatal(err)
		}
		if !due && !slices.ContainsFunc(x.rings, func(r *keys.Ring) bool { return r.Status().Set.Version != set.Version }) {
			return
		}
		for _, r := range x.rings {
			r.Nudge()
		}
		if !pause(t.Context(), time.Millisecond) || time.Now().After(deadline) {
			t.Fatal("the rings do not agree")
		}
	}
}

// rotating is the fastest rotation there is.
func rotating() keys.Config {
	return keys.Config{RotateEvery: keys.MinPrepublish, Prepublish: keys.MinPrepublish}
}

// TestNoVerificationFailsThroughARotation: 1,000 rotations by the database's time in a soak, and 100 in every run.
func TestNoVerificationFailsThroughARotation(t *testing.T) {
	if testing.Short() {
		t.Skip("it makes hundreds of keys")
	}
	t.Parallel()
	x := newRotations(t)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for _, ring := range x.rings {
		running.Go(func() { _ = ring.Run(ctx) })
	}
	var looks atomic.Int64
	running.Go(func() { // whatever moment it looks at
		for ; pause(ctx, 10*time.Millisecond); looks.Add(1) {
			set, err := x.store.Load(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			if _, err := keys.Signer(set); err != nil {
				t.Errorf("not one key signs: %v", err)
			}
		}
	})
	want := soak.Count(100, 1000)
	for len(x.signers) <= want {
		x.mint(t, one(x.rng, x.rings)) // by what it knows from before
		x.advance(t, time.Duration(100+x.rng.IntN(400))*time.Second)
		x.mint(t, one(x.rng, x.rings))
		x.look(t)
		x.turn(t)
		x.mint(t, x.rings...)
		x.look(t)
	}
	t.Logf("%d rotations, %d looks at the store", len(x.signers)-1, looks.Load())
}
