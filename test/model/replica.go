package model

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// Flaws break a plain replica.
type Flaws struct {
	ByPositionAlone bool // a cursor of another epoch is gone on from
	BeatsAhead      bool // a heartbeat tells of reads whose rows still wait to be sent
	LagFromTheEnd   bool // of a read, not from its start
}

// NewReplica makes a plain replica: the server's side of the feed in few lines, with three rows to a message.
func NewReplica(keySet []byte, flaws Flaws) func(*Store) Replica {
	return func(s *Store) Replica {
		return &replica{store: s, keySet: keySet, flaws: flaws, reading: make(chan struct{}, 1), joined: map[*watcher]bool{}}
	}
}

type replica struct {
	store   *Store
	keySet  []byte
	flaws   Flaws
	reading chan struct{} // holds one while a read goes on

	mu      sync.Mutex
	tailed  standing
	at      standing // what has been handed to all who joined
	joined  map[*watcher]bool
	started bool
}

// standing is a place in the log with all that came up to it.
type standing struct {
	epoch byte
	row   int64
	known time.Time
	live  []Row
}

type watcher struct {
	queue  chan queued
	cancel context.CancelFunc
}

type queued struct {
	messages []*authsvcv1.WatchTrustResponse
	beat     *standing
}

func (s *standing) cursor() string { return fmt.Sprintf("%d.%d", s.epoch, s.row) }

func (s *standing) after(epoch byte, row int64, flaws Flaws) []Row {
	if !flaws.ByPositionAlone && (epoch != s.epoch || row > s.row) {
		return s.live
	}
	for i := range s.live {
		if s.live[i].Position > row {
			return s.live[i:]
		}
	}
	return nil
}

// Read implements Replica.
func (r *replica) Read(ctx context.Context) error {
	r.reading <- struct{}{}
	defer func() { <-r.reading }()
	began := time.Now()
	r.mu.Lock()
	t := r.tailed
	r.mu.Unlock()
	p, err := r.store.Tail(ctx, t.row)
	if err == nil && r.started && (p.Epoch != t.epoch || p.Head < t.row) {
		if p, err = r.store.Tail(ctx, 0); err == nil {
			held := make([]Row, 0, len(t.live))
			for _, old := range t.live {
				old.Position = 0
				held = append(held, old)
			}
			t.live = held
		}
	}
	if err != nil {
		return err
	}
	if r.flaws.LagFromTheEnd {
		began = time.Now()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = true
	r.tailed = standing{epoch: p.Epoch, row: p.Head, known: began, live: append(t.live[:len(t.live):len(t.live)], p.Rows...)}
	return nil
}

// Step implements Replica.
func (r *replica) Step(beat bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	if at := r.at; beat {
		r.hand(queued{beat: &at})
	}
}

func (r *replica) advance() {
	if messages := r.deltas(&r.at, &r.tailed); len(messages) > 0 {
		r.hand(queued{messages: messages})
	}
	r.at = r.tailed
}

func (r *replica) hand(q queued) {
	for w := range r.joined {
		select {
		case w.queue <- q:
		default:
			delete(r.joined, w)
			w.cancel()
		}
	}
}

// Watch implements Replica.
func (r *replica) Watch(ctx context.Context, cursor string, send func(*authsvcv1.WatchTrustResponse) error) error {
	received := time.Now()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var epoch byte
	var row int64
	if _, err := fmt.Sscanf(cursor, "%d.%d", &epoch, &row); err != nil && cursor != "" {
		return err
	}
	at := r.now(nil)
	if at.epoch == epoch && at.row < row {
		if err := r.Read(ctx); err != nil {
			return err
		}
		at = r.now(nil)
	}
	if at.known.IsZero() {
		return errors.New("the log was not read yet")
	}
	all := parts(at.after(epoch, row, r.flaws), func(rows []Row, part uint32, last bool) *authsvcv1.WatchTrustResponse {
		m := &authsvcv1.TrustSnapshot{Revocations: wire(rows), Part: part}
		if part == 0 {
			m.Jwks = r.keySet
		}
		if last {
			m.Cursor = at.cursor()
		}
		return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Snapshot{Snapshot: m}}
	})
	for _, m := range all {
		if err := send(m); err != nil {
			return err
		}
	}
	w := &watcher{queue: make(chan queued, 16), cancel: cancel}
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.joined, w)
	}()
	joined := r.now(w)
	for q := (queued{messages: r.deltas(&at, &joined), beat: &joined}); ; {
		for _, m := range q.messages {
			if err := send(m); err != nil {
				return err
			}
		}
		if q.beat != nil {
			if err := send(r.heartbeat(q.beat, received)); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case q = <-w.queue:
		}
	}
}

// now gives where the feed stands, and lets a watcher have what follows.
func (r *replica) now(join *watcher) standing {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.advance()
	if join != nil {
		r.joined[join] = true
	}
	return r.at
}

func (r *replica) heartbeat(at *standing, received time.Time) *authsvcv1.WatchTrustResponse {
	known := at.known
	if r.flaws.BeatsAhead {
		r.mu.Lock()
		known = r.tailed.known
		r.mu.Unlock()
	}
	now := time.Now()
	return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Heartbeat{Heartbeat: &authsvcv1.TrustHeartbeat{
		Cursor: at.cursor(), Elapsed: durationpb.New(now.Sub(received)), Lag: durationpb.New(now.Sub(known)), ServerTime: timestamppb.New(now)}}}
}

func (r *replica) deltas(from, to *standing) []*authsvcv1.WatchTrustResponse {
	if from.cursor() == to.cursor() {
		return nil
	}
	return parts(to.after(from.epoch, from.row, r.flaws), func(rows []Row, part uint32, last bool) *authsvcv1.WatchTrustResponse {
		m := &authsvcv1.TrustDelta{After: from.cursor(), Cursor: from.cursor(), Revocations: wire(rows), Part: part, More: !last}
		if last {
			m.Cursor = to.cursor()
		}
		return &authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Delta{Delta: m}}
	})
}

// parts cuts rows into messages, one at least.
func parts(rows []Row, message func(rows []Row, part uint32, last bool) *authsvcv1.WatchTrustResponse) (all []*authsvcv1.WatchTrustResponse) {
	for len(all) == 0 || len(rows) > 0 {
		n := min(len(rows), 3)
		all = append(all, message(rows[:n], uint32(len(all)), n == len(rows)))
		rows = rows[n:]
	}
	return all
}

func wire(rows []Row) []*authsvcv1.Revocation {
	out := make([]*authsvcv1.Revocation, len(rows))
	for i := range rows {
		r := rows[i].Revocation()
		expires := r.ExpiresAt.Add(time.Second - time.Nanosecond).Unix()
		out[i] = &authsvcv1.Revocation{Target: r.Target[:], NotBefore: r.NotBefore, ExpireTime: expires}
	}
	return out
}
