package guard_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/test/soak"
	"github.com/authsvc/authsvc/verify"
)

// TestWhatBreaksAFeed sends bad input after a whole snapshot. The stream is given up, nothing of the bad message counts, what
// counted before goes on, and all is asked for anew; the twin, the same without its fault, is taken.
func TestWhatBreaksAFeed(t *testing.T) {
	t.Parallel()
	dead := entry(verify.KindToken, "dead")
	short, past, early := entry(verify.KindToken, "x"), entry(verify.KindToken, "x"), entry(verify.KindToken, "x")
	short.Target, past.ExpireTime, early.NotBefore = short.Target[:15], -1, -1
	long := entry(verify.KindToken, "x")
	long.Target = append(slices.Clone(long.Target), 0)
	for name, c := range map[string]struct {
		bad  []event
		twin []event
	}{
		"P04 a gap":                     {[]event{change("c2", "c3", nil, dead)}, []event{change("c1", "c3", nil, dead)}},
		"P04 a duplicate":               {[]event{change("c1", "c2", nil), change("c1", "c2", nil, dead)}, []event{change("c1", "c2", nil), change("c2", "c3", nil, dead)}},
		"P04 two in the wrong order":    {[]event{change("c2", "c3", nil, dead), change("c1", "c2", nil)}, []event{change("c1", "c2", nil), change("c2", "c3", nil, dead)}},
		"P08 a change of another epoch": {[]event{change("z1", "z2", nil, dead)}, []event{change("c1", "z2", nil, dead)}},
		"a change without a cursor":     {[]event{change("c1", "", nil, dead)}, []event{change("c1", "c2", nil, dead)}},
		"a first part that is lost":     {[]event{portion(1, false, change("c1", "c2", nil, dead))}, []event{portion(0, true, change("c1", "c1", nil)), portion(1, false, change("c1", "c2", nil, dead))}},
		"a middle part that is lost":    {[]event{portion(0, true, change("c1", "c1", nil)), portion(2, false, change("c1", "c2", nil, dead))}, []event{portion(0, true, change("c1", "c1", nil)), portion(1, true, change("c1", "c1", nil, dead)), portion(2, false, change("c1", "c2", nil))}},
		"a last part that is lost":      {[]event{portion(0, true, change("c1", "c1", nil)), change("c1", "c2", nil, dead)}, []event{portion(0, true, change("c1", "c1", nil)), portion(1, false, change("c1", "c2", nil)), change("c2", "c3", nil, dead)}},
		"a heartbeat within a change":   {[]event{portion(0, true, change("c1", "c1", nil)), beat("c1", 0, 0)}, []event{portion(0, true, change("c1", "c1", nil)), portion(1, false, change("c1", "c2", nil, dead)), beat("c2", 0, 0)}},
		"a cursor before the end":       {[]event{portion(0, true, change("c1", "c2", nil, dead))}, []event{change("c1", "c2", nil, dead)}},
		"an event that is not known":    {[]event{{}}, []event{change("c1", "c2", nil, dead)}},
		"a target of 15 bytes":          {[]event{change("c1", "c2", nil, dead, short)}, []event{change("c1", "c2", nil, dead, entry(verify.KindToken, "x"))}},
		"a target of 17 bytes":          {[]event{change("c1", "c2", nil, dead, long)}, []event{change("c1", "c2", nil, dead)}},
		"a negative expiry":             {[]event{change("c1", "c2", nil, dead, past)}, []event{change("c1", "c2", nil, dead)}},
		"a negative cut-off":            {[]event{change("c1", "c2", nil, dead, early)}, []event{change("c1", "c2", nil, dead)}},
		"J27 a key set that is HTML":    {[]event{change("c1", "c2", []byte("<html>"), dead)}, []event{change("c1", "c2", keySet("key-1", "key-9"), dead)}},
		"J27 a key set without keys":    {[]event{change("c1", "c2", keySet(), dead)}, []event{change("c1", "c2", keySet("key-1"), dead)}},
		"a second snapshot":             {[]event{part(keySet("key-1"), "c2", dead)}, []event{change("c1", "c2", keySet("key-1"), dead)}},
		"a heartbeat of elsewhere":      {[]event{beat("c0", 0, 0)}, []event{beat("c1", 0, 0), change("c1", "c2", nil, dead)}},
		"a heartbeat without times":     {[]event{{Event: &authsvcv1.WatchTrustResponse_Heartbeat{Heartbeat: &authsvcv1.TrustHeartbeat{Cursor: "c1"}}}}, []event{beat("c1", 0, 0), change("c1", "c2", nil, dead)}},
		"a heartbeat from the future":   {[]event{beat("c1", -time.Second, 0)}, []event{beat("c1", time.Hour, 0), change("c1", "c2", nil, dead)}},
		"a heartbeat of negative lag":   {[]event{beat("c1", 0, -time.Hour)}, []event{beat("c1", 0, time.Hour), change("c1", "c2", nil, dead)}},
	} {
		run := func(t *testing.T, events []event, calls int, want error) {
			t.Parallel()
			within(t, func(p *peer, call int, s watch) error {
				if call > 1 {
					<-p.more
					return serveFrom(s, "d1", dead)
				}
				if err := say(s, part(keySet("key-1"), "c1"), beat("c1", 0, 0)); err != nil {
					return err
				}
				if err := say(s, events...); err != nil {
					return err
				}
				<-s.Context().Done()
				return s.Context().Err()
			}, func(t *testing.T, w *world) {
				if err := w.Ready(t.Context()); err != nil {
					t.Fatal(err)
				}
				time.Sleep(firstWindow) // of the bubble's clock
				synctest.Wait()
				w.want(t, "what counted before", nil, nil)
				w.want(t, "an entry of the message", map[string]any{"jti": "dead"}, want)
				if asked := w.asked(); len(asked) != calls || asked[len(asked)-1] != "" {
					t.Errorf("asked for %q", asked)
				}
				close(w.more)
				if calls > 1 {
					synctest.Wait()
					w.want(t, "an entry of the new snapshot", map[string]any{"jti": "dead"}, verify.ErrRevoked)
				}
			})
		}
		t.Run(name, func(t *testing.T) { run(t, c.bad, 2, nil) })
		t.Run(name+": the twin", func(t *testing.T) { run(t, c.twin, 1, verify.ErrRevoked) })
	}
}

const firstWindow = 500 * time.Millisecond

// TestR32WhatIsNoWholeSnapshot begins streams that never say all: nothing is let through on their word.
func TestR32WhatIsNoWholeSnapshot(t *testing.T) {
	t.Parallel()
	keys := keySet("key-1")
	for name, c := range map[string]struct {
		events []event
		calls  int // within the first five seconds: 1 where there is only more to wait for
		want   error
	}{
		"nothing":                             {nil, 1, verify.ErrNotReady},
		"a part":                              {[]event{part(keys, "")}, 1, verify.ErrNotReady},
		"a part and heartbeats":               {[]event{part(keys, ""), beat("", 0, 0), beat("c1", time.Second, 0)}, 1, verify.ErrNotReady},
		"a heartbeat alone":                   {[]event{beat("c1", 0, 0)}, 1, verify.ErrNotReady},
		"a heartbeat before the snapshot":     {[]event{beat("c1", 0, 0), part(keys, "c1")}, 1, verify.ErrNotReady},
		"a snapshot without a date":           {[]event{part(keys, "c1")}, 1, verify.ErrNotReady},
		"a snapshot of long ago":              {[]event{part(keys, "c1"), beat("c1", 0, guard.MaxAge+time.Second)}, 1, verify.ErrNotReady},
		"a server that has read nothing yet":  {[]event{part(keys, "c1"), beat("c1", 0, 1<<63-1)}, 1, verify.ErrNotReady},
		"a change without a snapshot":         {[]event{change("", "c1", keys), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"a snapshot without keys":             {[]event{part(nil, "c1"), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"a snapshot with keys that are none":  {[]event{part([]byte("{}"), "c1"), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"J21 of another issuer":               {[]event{issuedBy("https://auth.example/", part(keys, "c1")), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"J21 the twin: of our issuer":         {[]event{issuedBy("https://auth.example", part(keys, "c1")), beat("c1", 0, 0)}, 1, nil},
		"keys in the second part":             {[]event{part(keys, ""), nth(1, part(keys, "c1")), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"a bad entry in the last part":        {[]event{part(keys, ""), nth(1, part(nil, "c1", &authsvcv1.Revocation{})), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"the twin: a snapshot in one part":    {[]event{part(keys, "c1"), beat("c1", 0, 0)}, 1, nil},
		"a lost part":                         {[]event{part(keys, ""), nth(2, part(nil, "c1")), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"a part that came twice":              {[]event{part(keys, ""), nth(1, part(nil, "")), nth(1, part(nil, "c1")), beat("c1", 0, 0)}, 2, verify.ErrNotReady},
		"the twin: a snapshot in three parts": {[]event{part(keys, ""), nth(1, part(nil, "")), nth(2, part(nil, "c1")), beat("c1", 0, 0)}, 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			within(t, func(_ *peer, call int, s watch) error {
				if call == 1 {
					if err := say(s, c.events...); err != nil {
						return err
					}
				}
				<-s.Context().Done()
				return s.Context().Err()
			}, func(t *testing.T, w *world) {
				time.Sleep(5 * time.Second)
				synctest.Wait()
				w.want(t, name, nil, c.want)
				if asked := w.asked(); len(asked) != c.calls {
					t.Errorf("asked for %q", asked)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if err := w.Ready(ctx); (err == nil) != (c.want == nil) || err != nil && !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Ready gave %v", err)
				}
			})
		})
	}
}

func TestASnapshotThatNeverEndsIsGivenUp(t *testing.T) {
	t.Parallel()
	within(t, func(_ *peer, call int, s watch) error {
		if call > 1 {
			return serveFrom(s, "c1")
		}
		jwks := keySet("key-1")
		for i := 0; ; i++ {
			if err := s.Send(nth(uint32(i), part(jwks, "", entry(verify.KindToken, fmt.Sprint(i))))); err != nil {
				return err
			}
			jwks = nil
			time.Sleep(time.Second)
		}
	}, func(t *testing.T, w *world) {
		time.Sleep(110 * time.Second)
		w.want(t, "while it goes on", nil, verify.ErrNotReady)
		time.Sleep(20 * time.Second)
		w.want(t, "the next stream", nil, nil)
		w.want(t, "an entry of the endless one", map[string]any{"jti": "1"}, nil)
		if !strings.Contains(w.log.String(), "the snapshot took too long") {
			t.Errorf("the log: %s", w.log)
		}
	})
}

func TestP06ASnapshotOfManyParts(t *testing.T) {
	t.Parallel()
	const each = 10_000 // about 300 KiB
	parts := soak.Count(10, 100)
	within(t, func(_ *peer, _ int, s watch) error {
		for p := range parts {
			var entries []*authsvcv1.Revocation
			for i := range each {
				entries = append(entries, entry(verify.KindToken, fmt.Sprint("dead-", p*each+i)))
			}
			jwks, cursor := []byte(nil), ""
			if p == 0 {
				jwks = keySet("key-1")
			}
			if p == parts-1 {
				cursor = "c1"
			}
			if err := s.Send(nth(uint32(p), part(jwks, cursor, entries...))); err != nil {
				return err
			}
		}
		return tick(s, "c1", noLag)
	}, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, i := range []int{0, each, parts*each - 1} {
			w.want(t, "one of them", map[string]any{"jti": fmt.Sprint("dead-", i)}, verify.ErrRevoked)
		}
		w.want(t, "the twin", nil, nil)
		if s := w.Status(); s.Live != parts*each {
			t.Errorf("status %+v", s)
		}
	})
}

func TestFeedCostsNoAllocation(t *testing.T) { //nolint:paralleltest // AllocsPerRun
	within(t, func(_ *peer, _ int, s watch) error { return serveFrom(s, "c1", entry(verify.KindToken, "dead")) }, func(t *testing.T, w *world) {
		if err := w.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, subject := t.Context(), &verify.Subject{HasSession: true}
		if n := testing.AllocsPerRun(100, func() {
			if w.Check(subject) != nil {
				t.Error("Check refused")
			}
			if _, err := w.Key(ctx, "key-1"); err != nil {
				t.Error(err)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

func TestReadyTellsWhyNot(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault error
		want  string // of Ready and of the log
		level string
	}{
		"refused":           {status.Error(codes.PermissionDenied, "the scope authsvc.trust is missing"), "authsvc.trust", "level=ERROR"},
		"a wrong secret":    {status.Error(codes.Unauthenticated, "CLIENT_INVALID"), "CLIENT_INVALID", "level=ERROR"},
		"away":              {status.Error(codes.Unavailable, "draining"), "draining", "level=WARN"},
		"a page of a proxy": {status.Error(codes.Unavailable, strings.Repeat("<p>", 5000)), "<p>", "level=WARN"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			within(t, func(*peer, int, watch) error { return c.fault }, func(t *testing.T, w *world) {
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := w.Ready(ctx); err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("Ready gave %v", err)
				}
				log := w.log.String()
				if strings.Count(log, "level=") != 1 || !strings.Contains(log, c.level) || !strings.Contains(log, c.want) || len(log) > 1000 {
					t.Errorf("one fault is logged as %s", log)
				}
				if err := w.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "runs already") {
					t.Errorf("a second Run gave %v", err)
				}
			})
		})
	}
}

func TestWhatAFeedIsMadeOf(t *testing.T) {
	t.Parallel()
	good := guard.FeedOptions{Target: "auth.example:9090", Issuer: "https://auth.example", ClientID: "svc", ClientSecret: "secret"}
	for name, c := range map[string]struct {
		change func(*guard.FeedOptions)
		want   string
	}{
		"all that is needed":      {func(*guard.FeedOptions) {}, ""},
		"its own TLS":             {func(o *guard.FeedOptions) { o.TLS = &tls.Config{MinVersion: tls.VersionTLS13} }, ""},
		"no TLS, and says so":     {func(o *guard.FeedOptions) { o.Insecure = true }, ""},
		"a loopback address":      {func(o *guard.FeedOptions) { o.Target = "[::1]:9090" }, ""},
		"no target":               {func(o *guard.FeedOptions) { o.Target = "" }, "Target"},
		"a target without a port": {func(o *guard.FeedOptions) { o.Target = "auth.example" }, "Target"},
		"a target with a scheme":  {func(o *guard.FeedOptions) { o.Target = "dns:///auth.example:9090" }, "Target"},
		"no issuer":               {func(o *guard.FeedOptions) { o.Issuer = "" }, "Issuer"},
		"no client":               {func(o *guard.FeedOptions) { o.ClientID = "" }, "ClientID"},
		"no secret":               {func(o *guard.FeedOptions) { o.ClientSecret = "" }, "ClientSecret"},
		"TLS and none":            {func(o *guard.FeedOptions) { o.Insecure, o.TLS = true, &tls.Config{MinVersion: tls.VersionTLS13} }, "Insecure"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := good
			c.change(&o)
			_, err := guard.NewFeed(o)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
