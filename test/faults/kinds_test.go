package faults

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/authsvc/authsvc/internal/store/pgtest"
)

// mend undoes a fault.
type mend func(context.Context) error

// kind is a kind of fault.
type kind struct {
	name     string
	lasts    time.Duration
	inject   func(context.Context, *trial, *rand.Rand) (mend, error)
	after    func(context.Context, *trial) error // what an operator does later, under load
	harmless bool                                // nobody may notice: it excuses nothing
}

// ordinary are the six of every run.
func ordinary() []kind {
	return []kind{
		{name: "D22 kill -9 of a replica", lasts: time.Second, inject: killReplica},
		{name: "SIGSTOP of a replica", lasts: 5 * time.Second, inject: stopReplica},
		{name: "D06 PostgreSQL restarted", lasts: time.Second, inject: restartPostgreSQL},
		{name: "D07 PostgreSQL failed over", lasts: time.Second, inject: failOver, after: newStandby},
		{name: "F17 connections cut and reset", lasts: 3 * time.Second, inject: cutConnections},
		{name: "D01 Redis killed", lasts: 3 * time.Second, inject: killRedis, harmless: true},
	}
}

// kinds are all of them.
func kinds() []kind {
	return append(ordinary(),
		kind{name: "D01 Redis slow", lasts: 5 * time.Second, inject: onRedis(func(l *link) { l.delay(2 * time.Second) }), harmless: true},
		kind{name: "D01 Redis does not answer", lasts: 5 * time.Second, inject: onRedis((*link).stall), harmless: true},
		kind{name: "D02 Redis flushed", inject: flushRedis, harmless: true},
		kind{name: "SIGSTOP of a verifying service", lasts: 5 * time.Second, inject: stopService, harmless: true},
		kind{name: "kill -9 of a verifying service", lasts: time.Second, inject: killService, harmless: true},
		kind{name: "PostgreSQL slow", lasts: 6 * time.Second, inject: slowPostgreSQL},
		kind{name: "D10 PostgreSQL out of connections", lasts: 5 * time.Second, inject: takeConnections},
		kind{name: "a replica cannot reach PostgreSQL", lasts: 6 * time.Second, inject: onADatabaseLink((*link).refuse)},
		kind{name: "a replica's PostgreSQL does not answer", lasts: 6 * time.Second, inject: onADatabaseLink((*link).stall)},
		kind{name: "a replica does not answer", lasts: 6 * time.Second, inject: onAReplicaLink((*link).stall)},
		kind{name: "a replica cannot be reached", lasts: 4 * time.Second, inject: onAReplicaLink((*link).refuse)},
		kind{name: "a replica's network slow", lasts: 5 * time.Second, inject: onAReplicaLink(func(l *link) { l.delay(300 * time.Millisecond) })},
		kind{name: "D16 a replica's clock +1 h", lasts: 6 * time.Second, inject: moveClock(time.Hour)},
		kind{name: "D16 a replica's clock -1 h", lasts: 6 * time.Second, inject: moveClock(-time.Hour)},
		kind{name: "D16 a replica's clock +1 y", lasts: 6 * time.Second, inject: moveClock(365 * 24 * time.Hour)},
		kind{name: "D11 disk full", lasts: 4 * time.Second, inject: fillDisk},
		kind{name: "D17 rolling upgrade and rollback", inject: roll, harmless: true},
		kind{name: "keys rotate -now", lasts: time.Second, inject: rotateKeys, harmless: true},
		kind{name: "keys revoke", lasts: time.Second, inject: revokeKey, harmless: true},
	)
}

func one[T any](rng *rand.Rand, of []T) T { return of[rng.IntN(len(of))] }

func killReplica(_ context.Context, x *trial, rng *rand.Rand) (mend, error) {
	r := one(rng, x.replicas)
	err := r.kill()
	r.leadNowhere()
	return func(ctx context.Context) error { return x.start(ctx, r) }, err
}

func stopReplica(_ context.Context, x *trial, rng *rand.Rand) (mend, error) {
	r := one(rng, x.replicas)
	return func(context.Context) error { return r.signal(syscall.SIGCONT) }, r.signal(syscall.SIGSTOP)
}

// apart is the service in a process of its own.
func (s *system) apart() *service { return s.services[len(s.services)-1] }

func stopService(_ context.Context, x *trial, _ *rand.Rand) (mend, error) {
	v := x.apart().child
	return func(context.Context) error { return v.signal(syscall.SIGCONT) }, v.signal(syscall.SIGSTOP)
}

func killService(_ context.Context, x *trial, _ *rand.Rand) (mend, error) {
	v := x.apart()
	return func(context.Context) error { return v.run(x.system) }, v.stop()
}

func restartPostgreSQL(_ context.Context, x *trial, _ *rand.Rand) (mend, error) {
	pg := x.pg[x.primary]
	return func(ctx context.Context) error {
		if err := pg.Run(ctx); err != nil {
			return err
		}
		return confirmed(ctx, pg)
	}, pg.Kill()
}

// confirmed waits until a standby confirms commits again: until then the database is away for whoever writes, and the fault lasts.
func confirmed(ctx context.Context, pg *pgtest.Server) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	for {
		n, err := pg.SQL(ctx, "postgres", `SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'quorum'`)
		if err != nil || n != "0" {
			return err
		}
		if !pause(ctx, 20*time.Millisecond) {
			return errors.New("no standby came back")
		}
	}
}

// failOver kills the primary and promotes the standby.
func failOver(_ context.Context, x *trial, _ *rand.Rand) (mend, error) {
	old := x.primary
	return func(ctx context.Context) error {
		x.primary = 1 - old
		return x.pg[x.primary].Promote(ctx)
	}, x.pg[old].Kill()
}

// newStandby puts a new standby in the place of a primary that was lost.
func newStandby(ctx context.Context, x *trial) error {
	slot := 1 - x.primary
	if err := x.pg[slot].Close(); err != nil {
		return err
	}
	x.pg[slot] = nil
	standby, err := x.standby(ctx, slot)
	if err != nil {
		return err
	}
	x.pg[slot] = standby
	x.leadToDatabases()
	return nil
}

// links are all of the network.
func (s *system) links() (all []*link) {
	for _, r := range s.replicas {
		all = append(all, r.http, r.grpc, r.db[0], r.db[1], r.redis)
	}
	return all
}

// cutConnections ends connections all over the network, again and again, by a reset or as if the other side had closed them.
func cutConnections(_ context.Context, x *trial, rng *rand.Rand) (mend, error) {
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	seed := rng.Uint64()
	running.Go(func() {
		rng := rand.New(rand.NewPCG(seed, 2))
		for pause(ctx, time.Duration(20+rng.IntN(100))*time.Millisecond) {
			for range 3 {
				one(rng, x.links()).tear(rng.IntN(2) == 0)
			}
		}
	})
	return func(context.Context) error {
		stop()
		running.Wait()
		return nil
	}, nil
}

func mendAll(links ...*link) mend {
	return func(context.Context) error {
		for _, l := range links {
			l.mend()
		}
		return nil
	}
}

func slowPostgreSQL(_ context.Context, x *trial, _ *rand.Rand) (mend, error) {
	var all []*link
	for _, r := range x.replicas {
		all = append(all, r.db[0], r.db[1])
	}
	for _, l := range all {
		l.delay(100 * time.Millisecond)
	}
	return mendAll(all...), nil
}

func killRedis(_ context.Context, x *trial, _ *rand.Rand) (mend, error) {
	return x.redis.Run, x.redis.Kill()
}

func flushRedis(ctx context.Context, x *trial, _ *rand.Rand) (mend, error) {
	_, err := x.redis.CLI(ctx, "FLUSHALL")
	return func(context.Context) error { return nil }, err
}

func onRedis(spoil func(*link)) func(context.Context, *trial, *rand.Rand) (mend, error) {
	return func(_ context.Context, x *trial, _ *rand.Rand) (mend, error) {
		var all []*link
		for _, r := range x.replicas {
			spoil(r.redis)
			all = append(all, r.redis)
		}
		return mendAll(all...), nil
	}
}

func onADatabaseLink(spoil func(*link)) func(context.Context, *trial, *rand.Rand) (mend, error) {
	return func(_ context.Context, x *trial, rng *rand.Rand) (mend, error) {
		r := one(rng, x.replicas)
		spoil(r.db[0])
		spoil(r.db[1])
		return mendAll(r.db[0], r.db[1]), nil
	}
}

func onAReplicaLink(spoil func(*link)) func(context.Context, *trial, *rand.Rand) (mend, error) {
	return func(_ context.Context, x *trial, rng *rand.Rand) (mend, error) {
		r := one(rng, x.replicas)
		spoil(r.http)
		spoil(r.grpc)
		return mendAll(r.http, r.grpc), nil
	}
}

// takeConnections takes every connection that the database gives, and resets those that the replicas have, so that they want new ones.
func takeConnections(ctx context.Context, x *trial, _ *rand.Rand) (mend, error) {
	var taken []*pgx.Conn
	release := func(ctx context.Context) (err error) {
		for _, conn := range taken {
			err = errors.Join(err, conn.Close(ctx))
		}
		return err
	}
	for range 3 { // what is closed at one moment is taken at the next
		for _, r := range x.replicas {
			r.db[x.primary].tear(true)
		}
		for range 100 {
			conn, err := connect(ctx, x.pg[x.primary])
			if err != nil {
				break
			}
			taken = append(taken, conn)
		}
	}
	if len(taken) == 0 {
		return nil, errors.New("no connection could be taken")
	}
	return release, nil
}

// connect is a connection of the database's superuser.
func connect(ctx context.Context, pg *pgtest.Server) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig(pg.URL("postgres"))
	if err != nil {
		return nil, err
	}
	c.Password = pgtest.Password
	return pgx.ConnectConfig(ctx, c)
}

func moveClock(by time.Duration) func(context.Context, *trial, *rand.Rand) (mend, error) {
	return func(_ context.Context, x *trial, rng *rand.Rand) (mend, error) {
		r := one(rng, x.replicas)
		return func(context.Context) error { return os.WriteFile(r.clock, []byte("0s"), 0o600) }, os.WriteFile(r.clock, []byte(by.String()), 0o600)
	}
}

// fillDisk leaves no room on the primary's disk, and has it want some.
func fillDisk(ctx context.Context, x *trial, _ *rand.Rand) (mend, error) {
	disk := x.disks[x.primary]
	if disk == "" {
		return func(context.Context) error { return nil }, nil // the machine lets nobody make a small disk; see smallDisk
	}
	ballast := filepath.Join(disk, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for block := make([]byte, 1<<20); err == nil; {
		_, err = f.Write(block)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		return nil, err
	}
	pg := x.pg[x.primary]
	for range 6 { // beyond the segments that are kept to be written again
		if _, err := pg.SQL(ctx, "postgres", `SELECT pg_switch_wal(); CREATE TABLE full_disk AS SELECT generate_series(1, 100000)`); err != nil {
			break
		}
	}
	return func(ctx context.Context) error {
		if err := os.Remove(ballast); err != nil {
			return err
		}
		if err := pg.Kill(); err != nil {
			return err
		}
		if err := pg.Run(ctx); err != nil {
			return err
		}
		if err := confirmed(ctx, pg); err != nil {
			return err
		}
		_, err := pg.SQL(ctx, "postgres", `DROP TABLE IF EXISTS full_disk`)
		return err
	}, nil
}

// roll replaces all replicas, one after the other, by another binary, and then back.
func roll(ctx context.Context, x *trial, _ *rand.Rand) (mend, error) {
	other, err := x.otherBinary()
	if err != nil {
		return nil, err
	}
	for _, to := range []string{other, program} {
		for _, r := range x.replicas {
			if err := r.drain(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", r.name(), err)
			}
			r.leadNowhere()
			r.binary = to
			if err := x.start(ctx, r); err != nil {
				return nil, err
			}
			pause(ctx, time.Second) // as an operator looks whether it is well
		}
	}
	return func(context.Context) error { return nil }, nil
}

// otherBinary builds another version, once.
func (s *system) otherBinary() (string, error) {
	path := filepath.Join(s.dir, "authsvc-next")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	return build(s.dir, "authsvc-next")
}

func rotateKeys(ctx context.Context, x *trial, _ *rand.Rand) (mend, error) {
	e := event{Op: opKeyRotate, Begin: now(), Out: outOK}
	_, err := x.operate(ctx, "", "keys", "rotate", "-now")
	e.End = now()
	x.history.add(e)
	return func(context.Context) error { return nil }, err
}

// revokeKey revokes the key that signs.
func revokeKey(ctx context.Context, x *trial, _ *rand.Rand) (mend, error) {
	out, err := x.operate(ctx, "", "keys", "list", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list []struct {
		Kid   string `json:"kid"`
		State string `json:"state"`
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	for _, k := range list {
		if k.State == "active" {
			e := event{Op: opKeyRevoke, Begin: now(), Kid: k.Kid, Out: outOK}
			if _, err := x.operate(ctx, "", "keys", "revoke", k.Kid); err != nil {
				return nil, err
			}
			e.End = now()
			x.history.add(e)
			return func(context.Context) error { return nil }, nil
		}
	}
	return nil, fmt.Errorf("no key signs: %s", out)
}
