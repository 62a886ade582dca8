package session_test

import (
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/journal"
	"github.com/authsvc/authsvc/internal/session"
)

const window = 30 * time.Second

var (
	epoch  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	home   = session.HashDevice(netip.MustParseAddr("192.0.2.7"), "Firefox")
	train  = session.HashDevice(netip.MustParseAddr("198.51.100.7"), "Firefox")
	robber = session.HashDevice(netip.MustParseAddr("192.0.2.7"), "curl")
)

// row is a session whose generation 5 was redeemed at epoch from home, and whose head is 6.
func row(change func(*session.Rotation)) session.Rotation {
	r := session.Rotation{Base: 5, Head: 6, Low: 3, RedeemedAt: epoch, Device: home}
	if change != nil {
		change(&r)
	}
	return r
}

func TestDecide(t *testing.T) {
	t.Parallel()
	type rotation = session.Rotation
	after := func(d time.Duration) time.Time { return epoch.Add(d) }
	for _, tt := range []struct {
		name    string
		row     rotation
		g       uint32
		from    session.Device
		at      time.Duration
		verdict session.Verdict
		next    func(*rotation) // what must differ from row; nil: nothing
		rotated bool
		alert   bool
		end     bool
	}{
		{name: "rule 1: the head is redeemed", row: row(nil), g: 6, from: home, at: 20 * time.Second,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Base, r.Head, r.RedeemedAt = 6, 7, after(20*time.Second) }},
		{name: "rule 1: at the last instant of the window low stays", row: row(nil), g: 6, from: home, at: window,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Base, r.Head, r.RedeemedAt = 6, 7, after(window) }},
		{name: "rule 1: past the window low rises to what was redeemed", row: row(nil), g: 6, from: home, at: window + 1,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Base, r.Head, r.Low, r.RedeemedAt = 6, 7, 6, after(window+1) }},
		{name: "rule 1: a new session's first token is its head", row: rotation{Head: 1, RedeemedAt: epoch, Device: home}, g: 1, from: home, at: time.Second,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Base, r.Head, r.RedeemedAt = 1, 2, after(time.Second) }},
		{name: "rule 1: the device is that of the redemption, and the forks are forgotten", row: row(func(r *rotation) { r.Forks = 8 }), g: 6, from: train, at: time.Second,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) {
				r.Base, r.Head, r.RedeemedAt, r.Device, r.Forks = 6, 7, after(time.Second), train, 0
			}},
		{name: "rule 1: a generation without replays elsewhere resets their count", row: row(func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 2, 4 }), g: 6, from: home, at: time.Second,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Base, r.Head, r.RedeemedAt, r.Elsewhere = 6, 7, after(time.Second), 0 }},
		{name: "rule 1: the count goes on while the old base was replayed elsewhere", row: row(func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 2, 5 }), g: 6, from: home, at: time.Second,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Base, r.Head, r.RedeemedAt = 6, 7, after(time.Second) }},
		{name: "rule 1: a count that reached three stays for good", row: row(func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 3, 4 }), g: 6, from: home, at: time.Second,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Base, r.Head, r.RedeemedAt = 6, 7, after(time.Second) }},
		{name: "rule 1: no generation follows the last that fits", row: rotation{Base: 7, Head: math.MaxUint32, RedeemedAt: epoch, Device: home}, g: math.MaxUint32, from: home, at: time.Second,
			verdict: session.Expired},

		{name: "rule 2: F18 D07 a generation above the head is redeemed with an alert, and low falls to nothing", row: row(nil), g: 9, from: home, at: time.Hour,
			verdict: session.Issue, rotated: true, alert: true,
			next: func(r *rotation) { r.Base, r.Head, r.Low, r.RedeemedAt = 9, 10, 0, after(time.Hour) }},

		{name: "rule 3: F01 the last redeemed token at once", row: row(nil), g: 5, from: home, at: 0, verdict: session.Issue},
		{name: "rule 3: F01 the last redeemed token one second before the window's end", row: row(nil), g: 5, from: home, at: window - time.Second, verdict: session.Issue},
		{name: "rule 3: F01 the last redeemed token at the window's end", row: row(nil), g: 5, from: home, at: window, verdict: session.Issue},
		{name: "rule 3: the first replay from another network is counted and answered", row: row(nil), g: 5, from: train, at: time.Second,
			verdict: session.Issue, next: func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 1, 5 }},
		{name: "rule 3: the first replay from another user agent is counted and answered", row: row(nil), g: 5, from: robber, at: time.Second,
			verdict: session.Issue, next: func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 1, 5 }},
		{name: "rule 3: a second replay of one generation is not counted again", row: row(func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 2, 5 }), g: 5, from: train, at: time.Second,
			verdict: session.Issue},
		{name: "rule 3: the third generation replayed elsewhere is refused and counted", row: row(func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 2, 4 }), g: 5, from: train, at: time.Second,
			verdict: session.Superseded, next: func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 3, 5 }},
		{name: "rule 3: a full count does not hit the device of the last redemption", row: row(func(r *rotation) { r.Elsewhere, r.ElsewhereOf = 3, 5 }), g: 5, from: home, at: time.Second,
			verdict: session.Issue},

		{name: "rule 4: a late duplicate from the same device", row: row(nil), g: 4, from: home, at: time.Second, verdict: session.Superseded},
		{name: "rule 4: a late duplicate after a change of network", row: row(nil), g: 4, from: train, at: time.Second, verdict: session.Superseded},
		{name: "rule 4: low itself is still a duplicate", row: row(nil), g: 3, from: home, at: window, verdict: session.Superseded},
		{name: "rule 4: F02 the dead successor of a fork, in the window", row: row(func(r *rotation) { r.Head, r.Low, r.Forks = 7, 5, 1 }), g: 6, from: home, at: window, verdict: session.Superseded},

		{name: "rule 5: F02 the last redeemed token just after the window", row: row(nil), g: 5, from: home, at: window + 1,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Head, r.Low, r.RedeemedAt, r.Forks = 7, 5, after(window+1), 1 }},
		{name: "rule 5: F02 from anywhere, days later, and the device stays that of the redemption", row: row(nil), g: 5, from: robber, at: 100 * time.Hour,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Head, r.Low, r.RedeemedAt, r.Forks = 7, 5, after(100*time.Hour), 1 }},
		{name: "rule 5: F02 the eighth late retry still moves the head", row: row(func(r *rotation) { r.Head, r.Forks = 13, 7 }), g: 5, from: home, at: time.Minute,
			verdict: session.Issue, rotated: true,
			next: func(r *rotation) { r.Head, r.Low, r.RedeemedAt, r.Forks = 14, 5, after(time.Minute), 8 }},
		{name: "rule 5: F02 the ninth is answered with the same head, and ends nothing", row: row(func(r *rotation) { r.Head, r.Forks = 14, 8 }), g: 5, from: home, at: time.Minute, verdict: session.Issue},

		{name: "rule 6: F03 the dead successor of a fork after the window", row: row(func(r *rotation) { r.Head, r.Low, r.Forks = 7, 5, 1 }), g: 6, from: home, at: window + 1, verdict: session.Reused, end: true},
		{name: "rule 6: F03 the dead successor of a fork from another user agent", row: row(func(r *rotation) { r.Head, r.Low, r.Forks = 7, 5, 1 }), g: 6, from: robber, at: time.Second, verdict: session.Reused, end: true},
		{name: "rule 6: F04 older than the last redeemed, after the window", row: row(nil), g: 4, from: home, at: window + 1, verdict: session.Reused, end: true},
		{name: "rule 6: F04 older than the last redeemed, another user agent", row: row(nil), g: 4, from: robber, at: time.Second, verdict: session.Reused, end: true},
		{name: "rule 6: F04 below low, even in the window from the same device", row: row(nil), g: 2, from: home, at: time.Second, verdict: session.Reused, end: true},
		{name: "rule 6: F07 what a restart cannot forget is in the row", row: row(nil), g: 1, from: home, at: 100 * time.Hour, verdict: session.Reused, end: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			want := session.Decision{Verdict: tt.verdict, Next: tt.row, Changed: tt.next != nil, Rotated: tt.rotated, Alert: tt.alert, End: tt.end}
			if tt.next != nil {
				tt.next(&want.Next)
			}
			got := session.Decide(tt.row, tt.g, tt.from, epoch.Add(tt.at), window)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Decide (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDecideF05ManyCallersOfOneTokenRotateOnce(t *testing.T) {
	t.Parallel()
	r := row(nil)
	rotations := 0
	for range 100 {
		d := session.Decide(r, 6, home, epoch.Add(time.Second), window)
		if d.Verdict != session.Issue || d.Next.Head != 7 || d.End {
			t.Fatalf("a concurrent refresh got %+v, want the one successor", d)
		}
		if d.Rotated {
			rotations++
		}
		r = d.Next
	}
	if rotations != 1 {
		t.Errorf("100 calls rotated %d times, want once", rotations)
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	type args struct {
		s         session.Session
		r         session.Redeem
		may       bool
		notBefore time.Time
		now       time.Time
	}
	good := func() args {
		sid, hash := ids.New[ids.Session](), [32]byte{1, 2, 3}
		return args{
			s: session.Session{ID: sid, Client: "app", SecretHash: hash, AuthTime: epoch,
				IdleEndsAt: epoch.Add(time.Hour), EndsAt: epoch.Add(2 * time.Hour)},
			r:   session.Redeem{Session: sid, SecretHash: hash, Client: "app"},
			may: true, now: epoch.Add(time.Minute),
		}
	}
	for _, tt := range []struct {
		name   string
		change func(*args)
		want   session.Verdict
	}{
		{"the unsafe twin of all below: nothing wrong", func(*args) {}, session.Issue},
		{"a wrong secret", func(a *args) { a.r.SecretHash[31] ^= 1 }, session.Invalid},
		{"a wrong secret from another client tells nothing", func(a *args) { a.r.SecretHash[0] ^= 1; a.r.Client = "other" }, session.Invalid},
		{"another session", func(a *args) { a.r.Session = ids.New[ids.Session]() }, session.Invalid},
		{"another client", func(a *args) { a.r.Client = "other" }, session.ForeignClient},
		{"another client, past the end", func(a *args) { a.r.Client = "other"; a.now = a.s.EndsAt }, session.ForeignClient},
		{"an ended session", func(a *args) { a.s.EndedAt = epoch }, session.Invalid},
		{"an ended session past its end is not merely expired", func(a *args) { a.s.EndedAt = epoch; a.now = a.s.EndsAt }, session.Invalid},
		{"F12 an account that may not act", func(a *args) { a.may = false }, session.Invalid},
		{"a cut-off just above the session's start", func(a *args) { a.notBefore = epoch.Add(time.Second) }, session.Invalid},
		{"a cut-off at the session's start", func(a *args) { a.notBefore = epoch }, session.Issue},
		{"F14 one second before the idle end", func(a *args) { a.now = a.s.IdleEndsAt.Add(-time.Second) }, session.Issue},
		{"F14 at the idle end", func(a *args) { a.now = a.s.IdleEndsAt }, session.Expired},
		{"F14 one second after the idle end", func(a *args) { a.now = a.s.IdleEndsAt.Add(time.Second) }, session.Expired},
		{"F14 one second before the absolute end", func(a *args) { a.s.IdleEndsAt = a.s.EndsAt; a.now = a.s.EndsAt.Add(-time.Second) }, session.Issue},
		{"F14 at the absolute end", func(a *args) { a.s.IdleEndsAt = a.s.EndsAt.Add(time.Hour); a.now = a.s.EndsAt }, session.Expired},
		{"F14 one second after the absolute end", func(a *args) { a.s.IdleEndsAt = a.s.EndsAt.Add(time.Hour); a.now = a.s.EndsAt.Add(time.Second) }, session.Expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a := good()
			tt.change(&a)
			if got := session.Check(a.s, a.r, a.may, a.notBefore, a.now); got != tt.want {
				t.Errorf("Check = %d, want %d", got, tt.want)
			}
		})
	}
}

func TestIdleEndF14NeverPassesTheAbsoluteEnd(t *testing.T) {
	t.Parallel()
	s := session.Session{IdleTTL: time.Hour, EndsAt: epoch.Add(2 * time.Hour)}
	for _, tt := range []struct{ at, want time.Duration }{
		{0, time.Hour},
		{time.Hour - time.Second, 2*time.Hour - time.Second},
		{time.Hour, 2 * time.Hour},
		{time.Hour + time.Second, 2 * time.Hour},
	} {
		if got := s.IdleEnd(epoch.Add(tt.at)); !got.Equal(epoch.Add(tt.want)) {
			t.Errorf("used at +%v the session idles out at +%v, want +%v", tt.at, got.Sub(epoch), tt.want)
		}
	}
}

func TestHashDevice(t *testing.T) {
	t.Parallel()
	hash := func(ip, agent string) session.Device {
		a, _ := netip.ParseAddr(ip)
		return session.HashDevice(a, agent)
	}
	for _, tt := range []struct {
		name, a, b string
		same       bool
	}{
		{"one IPv4 /24", "192.0.2.1", "192.0.2.255", true},
		{"two IPv4 /24", "192.0.2.1", "192.0.3.1", false},
		{"IPv4 mapped into IPv6 is IPv4", "192.0.2.1", "::ffff:192.0.2.9", true},
		{"two mapped IPv4 /24 are two", "::ffff:192.0.2.1", "::ffff:192.0.3.1", false},
		{"one IPv6 /64", "2001:db8::1", "2001:db8::ffff:1", true},
		{"two IPv6 /64", "2001:db8::1", "2001:db8:0:1::1", false},
		{"a zone does not count", "fe80::1%eth0", "fe80::2%eth1", true},
		{"an invalid address is not the unspecified one", "", "0.0.0.0", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			a, b := hash(tt.a, "x"), hash(tt.b, "x")
			if same := a.Network == b.Network; same != tt.same {
				t.Errorf("same network = %v, want %v", same, tt.same)
			}
			if a.UserAgent != b.UserAgent || a.UserAgent == hash(tt.a, "y").UserAgent {
				t.Error("the user agent's hash must depend on the user agent alone")
			}
		})
	}
}

func TestJournals(t *testing.T) {
	t.Parallel()
	s := session.Session{ID: "sid", Account: "alice", Client: "app"}
	r := session.Redeem{Session: "sid", Client: "other", IP: "192.0.2.7", UserAgent: "curl", RequestID: "r1"}
	record := journal.Record{Event: "refresh.foreign_client", Outcome: "denied", Reason: "REFRESH_INVALID", Actor: "other", Subject: "alice",
		Client: "other", Session: "sid", IP: "192.0.2.7", UserAgent: "curl", RequestID: "r1"}
	if diff := cmp.Diff(journal.Journal{Audit: []journal.Record{record}}, session.ForeignClientJournal(s, r)); diff != "" {
		t.Errorf("ForeignClientJournal (-want +got):\n%s", diff)
	}
	r.Client = "app"
	record.Event, record.Reason, record.Actor, record.Client = "refresh.reuse", "REFRESH_REUSED", "app", "app"
	want := journal.Journal{Ends: []journal.End{{Session: "sid", Reason: "refresh_reused"}}, Audit: []journal.Record{record}}
	if diff := cmp.Diff(want, session.TheftJournal(s, r)); diff != "" {
		t.Errorf("TheftJournal (-want +got):\n%s", diff)
	}
}
