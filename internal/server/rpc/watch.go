package rpc

import (
	"bytes"
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/revocation"
)

// WatchTrust gives what the caller lacks and then what is new, for as long as the caller's credentials are good.
func (s trustServer) WatchTrust(r *authsvcv1.WatchTrustRequest, stream grpc.ServerStreamingServer[authsvcv1.WatchTrustResponse]) error {
	ctx, received := stream.Context(), time.Now()
	var from revocation.Cursor
	if text := r.GetCursor(); text != "" {
		var err error
		if from, err = revocation.ParseCursor("cursor", text); err != nil {
			return err
		}
	}
	// Compressed anew for each watcher, a message that all share would cost what it saves.
	if err := grpc.SetSendCompressor(ctx, encoding.Identity); err != nil {
		return err
	}
	w, err := s.d.o.Feed.enter(authenticated(ctx).ID, s.d.caller(ctx).IP, ending(ctx))
	if err != nil {
		return err
	}
	defer s.d.o.Feed.leave(w)
	v := &watch{hub: s.d.o.Feed, watcher: w, received: received, judged: received, send: stream.SendMsg,
		judge: func() error { return s.d.rejudge(ctx, authsvcv1.TrustService_WatchTrust_FullMethodName) }}
	return v.run(ctx, from)
}

// watch is a watcher's own side of its stream.
type watch struct {
	hub      *Hub
	watcher  *watcher
	received time.Time // when the call came
	judged   time.Time // when its credentials were last found good
	send     func(any) error
	judge    func() error
}

func (v *watch) run(ctx context.Context, from revocation.Cursor) error {
	if err := v.start(ctx, from); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-v.watcher.queue:
			if err := v.deliver(e); err != nil {
				return err
			}
		}
	}
}

// start sends what a watcher gets at first, and joins it.
func (v *watch) start(ctx context.Context, from revocation.Cursor) error {
	defer time.AfterFunc(v.hub.o.Start, func() { v.watcher.end(errLagging) }).Stop()
	at, err := v.begin(ctx, from)
	if err != nil {
		return err
	}
	v.watcher.holds.Store(at.bare())
	joined := v.hub.join(v.watcher)
	if err := deltas(at, joined, v.sendFrame); err != nil {
		return err
	}
	now := joined.bare()
	v.watcher.holds.Store(now)
	return v.heartbeat(now)
}

// begin sends the snapshot: what follows the caller's cursor, or everything. It gives where the caller then stands.
func (v *watch) begin(ctx context.Context, from revocation.Cursor) (standing, error) {
	at := v.hub.now()
	if at.view.Cursor.Epoch == from.Epoch && at.view.Cursor.Row < from.Row {
		if err := v.hub.o.Log.Reach(ctx, from); err != nil {
			return at, err
		}
		at = v.hub.now()
	}
	switch {
	case at.view.Known.IsZero():
		return at, fault.New(fault.Unavailable, fault.ReplicaStale, "this replica has not read the revocation log yet")
	case len(at.keySet) == 0:
		return at, fault.New(fault.Unavailable, fault.SigningUnavailable, "no key set is loaded")
	}
	if lacks, resumed := at.view.After(from); resumed {
		return at, snapshots(v.hub.o.Issuer, at, lacks, v.sendFrame)
	}
	s, err := v.hub.snapshot(at)
	if err != nil {
		return at, err
	}
	defer v.hub.release(s)
	for _, f := range s.frames {
		if err := v.sendFrame(f); err != nil {
			return at, err
		}
	}
	return s.at, nil
}

// sendFrame sends to one whose credentials are good.
func (v *watch) sendFrame(f frame) error {
	if time.Since(v.judged) >= v.hub.o.Beat {
		if err := v.rejudge(); err != nil {
			return err
		}
	}
	return v.send(f)
}

func (v *watch) rejudge() error {
	now := time.Now()
	if err := v.judge(); err != nil {
		return err
	}
	v.judged = now
	return nil
}

func (v *watch) deliver(e *event) error {
	for _, f := range e.frames {
		if err := v.sendFrame(f); err != nil {
			return err
		}
	}
	if !e.beat {
		v.watcher.holds.Store(e.at)
		return nil
	}
	if err := v.rejudge(); err != nil {
		return err
	}
	return v.heartbeat(e.at)
}

// heartbeat tells the caller, who has been sent all of a standing, how old that is. Elapsed less lag is when it was known, by
// the clock that began with the call, however late this is sent.
func (v *watch) heartbeat(at *standing) error {
	now := time.Now()
	err := v.send(&authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Heartbeat{Heartbeat: &authsvcv1.TrustHeartbeat{
		Cursor: at.view.Cursor.String(), Elapsed: durationpb.New(now.Sub(v.received)), Lag: durationpb.New(now.Sub(at.view.Known)),
		ServerTime: timestamppb.New(v.hub.o.Now())}}})
	if err == nil {
		v.watcher.heard.Store(at)
	}
	return err
}

// maxEntries is how many entries one message carries: at most 42 bytes each, so that with the key set it stays under 512 KiB.
const maxEntries = 10_000

// snapshots cuts entries into the messages of a snapshot that leads to a standing.
func snapshots(issuer string, at standing, entries []revocation.Live, send func(frame) error) error {
	for part := uint32(0); part == 0 || len(entries) > 0; part++ {
		n := min(len(entries), maxEntries)
		s := &authsvcv1.TrustSnapshot{Revocations: wire(entries[:n]), Part: part}
		if entries = entries[n:]; len(entries) == 0 {
			s.Cursor = at.view.Cursor.String()
		}
		if part == 0 {
			s.Jwks, s.Issuer = at.keySet, issuer
		}
		if err := marshal(&authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Snapshot{Snapshot: s}}, send); err != nil {
			return err
		}
	}
	return nil
}

// deltas gives the messages that lead from one standing to another: none where they are the same, most often one. Of many, all
// but the last leave the caller's cursor where it is. Into another history leads everything that is live.
func deltas(from, to standing, send func(frame) error) error {
	if from.same(to) {
		return nil
	}
	entries, resumed := to.view.After(from.view.Cursor)
	start := from.view.Cursor.String()
	for part := uint32(0); part == 0 || len(entries) > 0; part++ {
		n := min(len(entries), maxEntries)
		d := &authsvcv1.TrustDelta{After: start, Cursor: start, Revocations: wire(entries[:n]), Part: part}
		if resumed { // in another history they are no news
			d.CommitTime = oldest(entries[:n])
		}
		entries = entries[n:]
		if d.More = len(entries) > 0; !d.More {
			d.Cursor = to.view.Cursor.String()
		}
		if part == 0 && !bytes.Equal(from.keySet, to.keySet) {
			d.Jwks = to.keySet
		}
		if err := marshal(&authsvcv1.WatchTrustResponse{Event: &authsvcv1.WatchTrustResponse_Delta{Delta: d}}, send); err != nil {
			return err
		}
	}
	return nil
}

// oldest is when the first of the entries was committed, or nil where none says so.
func oldest(entries []revocation.Live) *timestamppb.Timestamp {
	first := int64(0)
	for i := range entries {
		if at := entries[i].CommitTime; at > 0 && (first == 0 || at < first) {
			first = at
		}
	}
	if first == 0 {
		return nil
	}
	return timestamppb.New(time.UnixMicro(first))
}

func wire(entries []revocation.Live) []*authsvcv1.Revocation {
	out := make([]*authsvcv1.Revocation, len(entries))
	for i := range entries {
		e := &entries[i]
		out[i] = &authsvcv1.Revocation{Target: e.Target[:], NotBefore: e.NotBefore, ExpireTime: e.ExpireTime}
	}
	return out
}

func marshal(m proto.Message, send func(frame) error) error {
	f, err := proto.Marshal(m)
	if err != nil {
		return err
	}
	return send(f)
}
