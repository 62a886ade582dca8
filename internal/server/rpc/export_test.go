package rpc

import (
	"context"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/revocation"
)

// Step is one look of Run at the log, with a heartbeat or without.
func (h *Hub) Step(beat bool) {
	now := time.Now()
	h.order.Lock()
	h.handed = time.Time{} // so that nothing waits
	h.order.Unlock()
	h.mu.Lock()
	for w := range h.joined {
		if w.due = now.Add(h.o.Beat); beat {
			w.due = now
		}
	}
	h.mu.Unlock()
	h.step(now)
}

// WatchWithout serves a call that has no connection: what WatchTrust does once it knows who calls.
func (h *Hub) WatchWithout(ctx context.Context, cursor string, send func(*authsvcv1.WatchTrustResponse) error) (err error) {
	var from revocation.Cursor
	if cursor != "" {
		if from, err = revocation.ParseCursor("cursor", cursor); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var client ids.Client
	now := time.Now()
	w, err := h.enter(client, netip.Addr{}, func(cause *fault.Error) { cancel(cause) })
	if err != nil {
		return err
	}
	defer h.leave(w)
	v := &watch{hub: h, watcher: w, received: now, judged: now, judge: func() error { return nil }, send: func(m any) error {
		if f, marshalled := m.(frame); marshalled {
			r := &authsvcv1.WatchTrustResponse{}
			if err := proto.Unmarshal(f, r); err != nil {
				return err
			}
			m = r
		}
		return send(m.(*authsvcv1.WatchTrustResponse))
	}}
	return v.run(ctx, from)
}

// PublicRule says why the public door would not serve a method by the rule in its proto; nil where it would.
func PublicRule(m protoreflect.MethodDescriptor) error {
	_, err := readRule(m)
	return err
}

// OperatorRule is the same for the operators' door.
func OperatorRule(m protoreflect.MethodDescriptor) error {
	_, err := readOperatorRule(m)
	return err
}

// SharedKids reports whether all who watch hold one and the same list of kids.
func (h *Hub) SharedKids() bool {
	all, _ := h.page(0, maxWatchersPage)
	var first []string
	for i, w := range all {
		kids := w.holds.Load().kids
		if i == 0 {
			first = kids
		}
		if len(kids) == 0 || &kids[0] != &first[0] {
			return false
		}
	}
	return len(all) > 0
}
