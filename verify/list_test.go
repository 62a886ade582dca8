package verify_test

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/authsvc/authsvc/test/soak"
	"github.com/authsvc/authsvc/verify"
)

func TestWhatARevocationHits(t *testing.T) {
	t.Parallel()
	const began = 1799990000 // auth_time of the payload
	token := mint(t, header, payload)
	service := mint(t, header, with(t, payload, `"sid":"sess",`, ""))
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	for name, c := range map[string]struct {
		kind      verify.Kind
		id        string
		notBefore time.Time
		token     string
		hit       bool
	}{
		"a session's entry hits its tokens":                        {verify.KindSession, "sess", time.Time{}, token, true},
		"a session's entry leaves others alone":                    {verify.KindSession, "sess2", time.Time{}, token, false},
		"a session's entry leaves service tokens alone":            {verify.KindSession, "", time.Time{}, service, false},
		"a token's entry hits it, whatever its time":               {verify.KindToken, "tok", at(1), token, true},
		"a token's entry leaves others alone":                      {verify.KindToken, "tok2", time.Time{}, token, false},
		"a key's entry hits what it signed":                        {verify.KindKey, "key-1", time.Time{}, token, true},
		"an account's cut-off hits older sessions":                 {verify.KindAccount, "acct", at(began + 1), token, true},
		"an account's cut-off spares a session of the same second": {verify.KindAccount, "acct", at(began), token, false},
		"a cut-off is rounded up to whole seconds":                 {verify.KindAccount, "acct", at(began).Add(1), token, true},
		"an account's cut-off leaves others alone":                 {verify.KindAccount, "acct2", at(began + 1), token, false},
		"an account's entry without a time hits all":               {verify.KindAccount, "acct", time.Time{}, token, true},
		"a client's cut-off hits older sessions":                   {verify.KindClient, "web", at(began + 1), token, true},
		"a client's cut-off hits older service tokens":             {verify.KindClient, "web", at(began + 1), service, true},
		"a client's cut-off spares newer ones":                     {verify.KindClient, "web", at(began - 5), token, false},
		"a cut-off of all hits older sessions":                     {verify.KindAll, "", at(began + 1), token, true},
		"a cut-off of all spares newer ones":                       {verify.KindAll, "", at(began), token, false},
		"one kind's id is not another's":                           {verify.KindToken, "sess", time.Time{}, token, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			list := readyList(t)
			v := newVerifier(t, func(o *verify.Options) { o.Revocations = list })
			if _, err := v.Verify(t.Context(), c.token); err != nil {
				t.Fatalf("the twin was refused: %v", err)
			}
			list.Apply(verify.NewRevocation("https://other.example", c.kind, c.id, c.notBefore, time.Time{}))
			if _, err := v.Verify(t.Context(), c.token); err != nil {
				t.Errorf("another issuer's entry hit: %v", err)
			}
			list.Apply(verify.NewRevocation(issuer, c.kind, c.id, c.notBefore, time.Time{}))
			if _, err := v.Verify(t.Context(), c.token); errors.Is(err, verify.ErrRevoked) != c.hit {
				t.Errorf("got %v, want a hit: %v", err, c.hit)
			}
		})
	}
}

func TestListIsNotBelievedBeforeItsFirstSnapshot(t *testing.T) {
	t.Parallel()
	list, err := verify.NewList(verify.ListOptions{Capacity: 1000})
	if err != nil {
		t.Fatal(err)
	}
	v := newVerifier(t, func(o *verify.Options) { o.Revocations = list })
	token := mint(t, header, payload)
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, verify.ErrNotReady) {
		t.Errorf("R32: got %v", err)
	}
	list.SetReady(true)
	if _, err := v.Verify(t.Context(), token); err != nil {
		t.Errorf("R32: the twin was refused: %v", err)
	}
}

func TestTargetsAreFramed(t *testing.T) {
	t.Parallel()
	seen := map[verify.Target]string{}
	for _, c := range [][3]string{
		{"ab", "c", "d"}, {"a", "bc", "d"}, {"a", "b", "cd"}, {"abc", "d", ""}, {"", "abcd", ""}, {"", "", "abcd"}, {"abcd", "", ""},
	} {
		target := verify.TargetOf(c[0], verify.Kind(c[1]), c[2])
		if other, dup := seen[target]; dup {
			t.Errorf("%q and %q have one target", other, c)
		}
		seen[target] = strings.Join(c[:], "|")
	}
	// The frame is part of what verifiers and servers agree on.
	if got := verify.TargetOf("https://auth.example", verify.KindSession, "sess"); got != (verify.Target{0xcd, 0x92, 0x08, 0x7a, 0x07, 0xb5, 0x2f, 0x76, 0xfc, 0xda, 0xbf, 0x1b, 0x87, 0xd3, 0x36, 0x9e}) {
		t.Errorf("the frame has changed: %x", got)
	}
}

// model is the list's meaning in a few lines.
type model map[verify.Target]struct{ notBefore, expires int64 }

func TestListAgreesWithAModel(t *testing.T) {
	t.Parallel()
	const never = 1 << 62
	random := rand.New(rand.NewPCG(1, 2))
	list, m := readyList(t), model{}
	targets := make([]verify.Target, 3000)
	for i := range targets {
		targets[i] = verify.TargetOf(issuer, verify.KindToken, numbered("%d", i))
	}
	check := func() {
		t.Helper()
		if list.Len() != len(m) {
			t.Fatalf("%d entries, the model has %d", list.Len(), len(m))
		}
		for _, target := range targets {
			auth := random.Int64N(100)
			e, there := m[target]
			want := there && auth < e.notBefore
			if got := list.Check(&verify.Subject{Token: target, AuthTime: auth}); errors.Is(got, verify.ErrRevoked) != want {
				t.Fatalf("auth_time %d against %+v: %v", auth, e, got)
			}
		}
	}
	for step := range 12 {
		for range 500 {
			r := verify.Revocation{Target: targets[random.IntN(len(targets))], NotBefore: random.Int64N(100)}
			e := m[r.Target]
			notBefore, expires := r.NotBefore, int64(never)
			if notBefore == 0 {
				notBefore = never
			}
			if random.IntN(50) > 0 {
				expires = 1 + random.Int64N(1000)
				r.ExpiresAt = time.Unix(expires, 0)
			}
			e.notBefore, e.expires = max(e.notBefore, notBefore), max(e.expires, expires)
			m[r.Target] = e
			list.Apply(r)
		}
		check()
		now, gone := int64(step*60), 0
		for target, e := range m {
			if e.expires <= now {
				delete(m, target)
				gone++
			}
		}
		if got := list.Sweep(time.Unix(now, 0)); got != gone {
			t.Fatalf("swept %d, the model %d", got, gone)
		}
		check()
	}
}

func TestListIsReadWhileItIsWritten(t *testing.T) {
	t.Parallel()
	list := readyList(t)
	const n = 20_000
	target := func(i int) verify.Target { return verify.TargetOf(issuer, verify.KindToken, numbered("%d", i)) }
	applied := make(chan int, n)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range applied {
				// What Apply has returned for is seen by every check that begins after, through growth and sweeps.
				if err := list.Check(&verify.Subject{Token: target(i)}); !errors.Is(err, verify.ErrRevoked) {
					t.Errorf("entry %d was lost: %v", i, err)
				}
			}
		})
	}
	for i := range n {
		list.Apply(verify.Revocation{Target: target(i)})
		applied <- i
		if i%5000 == 0 {
			list.Apply(verify.Revocation{Target: verify.Target{1}, ExpiresAt: time.Unix(1, 0)})
			list.Sweep(time.Unix(2, 0))
		}
	}
	close(applied)
	wg.Wait()
}

func TestOneHundredThousandLiveEntriesCostNoAllocation(t *testing.T) { //nolint:paralleltest // AllocsPerRun
	list := readyList(t)
	for i := range 100_000 {
		list.Apply(verify.Revocation{Target: verify.TargetOf(issuer, verify.KindToken, numbered("%d", i))})
	}
	s := &verify.Subject{HasSession: true}
	if n := testing.AllocsPerRun(100, func() { _ = list.Check(s) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestAnEntryTakesAtMost64Bytes counts the bytes of the tables, right before and after they grow too.
func TestAnEntryTakesAtMost64Bytes(t *testing.T) {
	t.Parallel()
	list, random := readyList(t), rand.New(rand.NewPCG(3, 4))
	var next, worst int
	var batch []verify.Revocation
	for _, n := range []int{100_000, 300_000, soak.Count(300_000, 1_000_000)} {
		for ; next < n; next++ {
			r := verify.Revocation{ExpiresAt: time.Unix(int64(next), 0)}
			binary.NativeEndian.PutUint64(r.Target[:8], random.Uint64())
			binary.NativeEndian.PutUint64(r.Target[8:], random.Uint64())
			batch = append(batch, r)
			if len(batch) == 1000 {
				list.Apply(batch...)
				batch = batch[:0]
				if next > 100_000 {
					worst = max(worst, list.Bytes()/list.Len())
				}
			}
		}
		list.Apply(batch...)
		batch = batch[:0]
		t.Logf("%d entries: %d bytes each", n, list.Bytes()/n)
		if list.Len() != n || list.Bytes() > 64*n {
			t.Errorf("%d entries take %d bytes", n, list.Bytes())
		}
	}
	if t.Logf("at worst %d", worst); worst > 64 {
		t.Errorf("%d bytes each at worst", worst)
	}
	list.Sweep(time.Unix(int64(next-100_001), 0)) // all but 10^5
	if list.Len() != 100_000 || list.Bytes() > 64*list.Len() {
		t.Errorf("after a sweep %d entries take %d bytes", list.Len(), list.Bytes())
	}
}

func BenchmarkListCheck(b *testing.B) {
	for _, n := range []int{0, 1, 100_000, 1_000_000} {
		b.Run(numbered("%d", n), func(b *testing.B) {
			list, err := verify.NewList(verify.ListOptions{})
			if err != nil {
				b.Fatal(err)
			}
			list.SetReady(true)
			for i := range n {
				list.Apply(verify.Revocation{Target: verify.TargetOf(issuer, verify.KindToken, numbered("%d", i))})
			}
			subjects := make([]verify.Subject, 4096)
			target := func(i, kind int) verify.Target {
				return verify.TargetOf("other", verify.KindToken, numbered("%d", 10*i+kind))
			}
			for i := range subjects {
				subjects[i] = verify.Subject{
					Session: target(i, 0), Token: target(i, 1), Account: target(i, 2), Key: target(0, 3), Client: target(0, 4), All: target(0, 5), HasSession: true,
				}
			}
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if list.Check(&subjects[i%len(subjects)]) != nil {
					b.Fatal("hit")
				}
			}
		})
	}
}

// TestTheSubjectOfClaimsIsWhatVerifyAsksAbout: whoever asks again later asks about the same.
func TestTheSubjectOfClaimsIsWhatVerifyAsksAbout(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		payload string
		began   int64
	}{
		"a session's token":                 {payload, 1799990000},
		"a service's token":                 {with(t, payload, `"sid":"sess",`, ""), 1799990000},
		"a foreign token without auth_time": {with(t, payload, `,"auth_time":1799990000`, ""), issued},
		"a foreign token of 1970":           {with(t, payload, `"auth_time":1799990000`, `"auth_time":0`), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked verify.Subject
			v := newVerifier(t, func(o *verify.Options) {
				o.ForeignIssuer, o.Revocations = true, source(func(s *verify.Subject) error { asked = *s; return nil })
			})
			claims, err := v.Verify(t.Context(), mint(t, header, c.payload))
			if err != nil {
				t.Fatal(err)
			}
			got := v.Subject(claims)
			if diff := cmp.Diff(asked, got, cmpopts.IgnoreUnexported(got)); diff != "" {
				t.Errorf("it is not what Verify asked about (-want +got)\n%s", diff)
			}
			if got.AuthTime != c.began || got.Key != verify.TargetOf(issuer, verify.KindKey, "key-1") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

type source func(*verify.Subject) error

func (s source) Check(subject *verify.Subject) error { return s(subject) }

// TestWhatPassedIsLookedUpAgainAfterEachChange has a token that the Verifier has seen judged by many at once while the list changes:
// once Apply has returned, nobody lets it pass.
func TestWhatPassedIsLookedUpAgainAfterEachChange(t *testing.T) {
	t.Parallel()
	token := mint(t, header, payload)
	for kind, id := range map[verify.Kind]string{
		verify.KindSession: "sess", verify.KindToken: "tok", verify.KindKey: "key-1", verify.KindAccount: "acct",
		verify.KindClient: "web", verify.KindAll: "",
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			list := readyList(t)
			v := newVerifier(t, func(o *verify.Options) { o.Revocations = list })
			var revoked atomic.Bool
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for {
						was := revoked.Load()
						switch _, err := v.Verify(t.Context(), token); {
						case errors.Is(err, verify.ErrRevoked):
							return
						case err != nil || was:
							t.Errorf("revoked: %v, Verify: %v", was, err)
							return
						}
					}
				})
			}
			for i := range 1000 {
				list.Apply(verify.NewRevocation(issuer, kind, numbered("another %d", i), time.Time{}, time.Time{}))
			}
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Errorf("the twin, before it is revoked: %v", err)
			}
			list.Apply(verify.NewRevocation(issuer, kind, id, time.Unix(issued, 0), time.Time{}))
			revoked.Store(true)
			wg.Wait()
		})
	}
}

// TestOneListsWordIsNotAnothers asks two lists about the tokens of one Verifier.
func TestOneListsWordIsNotAnothers(t *testing.T) {
	t.Parallel()
	both := pair{readyList(t), readyList(t)}
	v := newVerifier(t, func(o *verify.Options) { o.Revocations = both })
	token := mint(t, header, payload)
	for i := range 100 {
		for _, list := range both {
			list.Apply(verify.NewRevocation(issuer, verify.KindToken, numbered("another %d", i), time.Time{}, time.Time{}))
			if _, err := v.Verify(t.Context(), token); err != nil {
				t.Fatal(err)
			}
		}
	}
	both[1].Apply(verify.NewRevocation(issuer, verify.KindToken, "tok", time.Time{}, time.Time{}))
	if _, err := v.Verify(t.Context(), token); !errors.Is(err, verify.ErrRevoked) {
		t.Errorf("revoked in the second list: %v", err)
	}
}

type pair [2]*verify.List

func (p pair) Check(s *verify.Subject) error {
	return errors.Join(p[0].Check(s), p[1].Check(s))
}
