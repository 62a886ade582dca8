package password_test

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/password"
	"github.com/authsvc/authsvc/test/soak"
)

func tiny() password.Config {
	return password.Config{MemoryKiB: 64, Time: 1, Threads: 1, MemoryBudgetMiB: 1}
}

func hasher(t *testing.T, change func(*password.Options)) *password.Hasher {
	t.Helper()
	o := password.Options{Config: tiny(), Weak: true, Slots: 1}
	if change != nil {
		change(&o)
	}
	h, err := password.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func hash(t *testing.T, h *password.Hasher, p string) string {
	t.Helper()
	phc, err := h.Hash(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	return phc
}

func TestR45AHashIsArgon2idWithItsParametersAndASaltOfItsOwn(t *testing.T) {
	t.Parallel()
	h := hasher(t, nil)
	one, two := hash(t, h, "correct horse battery"), hash(t, h, "correct horse battery")
	if !strings.HasPrefix(one, "$argon2id$v=19$m=64,t=1,p=1$") || one == two {
		t.Errorf("%s and %s", one, two)
	}
	for p, want := range map[string]bool{"correct horse battery": true, "correct horse batterx": false, "Correct horse battery": false,
		"correct horse batter": false, "correct horse battery ": false} {
		ok, rehash, err := h.Verify(t.Context(), p, one)
		if ok != want || rehash || err != nil {
			t.Errorf("%q: ok %v, rehash %v, %v", p, ok, rehash, err)
		}
	}
	if err := h.VerifyDummy(t.Context(), "correct horse battery"); err != nil {
		t.Error(err)
	}
}

func TestAHashOfTheReferenceProgramVerifies(t *testing.T) {
	t.Parallel() // argon2id, t=1, m=64, p=1, of the reference implementation
	key, err := hex.DecodeString("655ad15eac652dc59f7170a7332bf49b8469be1fdb9c28bb")
	if err != nil {
		t.Fatal(err)
	}
	phc := "$argon2id$v=19$m=64,t=1,p=1$" + base64.RawStdEncoding.EncodeToString([]byte("somesalt")) + "$" + base64.RawStdEncoding.EncodeToString(key)
	ok, rehash, err := hasher(t, nil).Verify(t.Context(), "password", phc)
	if !ok || !rehash || err != nil {
		t.Errorf("ok %v, rehash %v (its key is short), %v", ok, rehash, err)
	}
}

func TestAHashWithOtherParametersVerifiesAndAsksForARehash(t *testing.T) {
	t.Parallel()
	old := hasher(t, nil)
	now := hasher(t, func(o *password.Options) { o.Config.Time = 2 })
	phc := hash(t, old, "correct horse battery")
	if ok, rehash, err := now.Verify(t.Context(), "correct horse battery", phc); !ok || !rehash || err != nil {
		t.Errorf("ok %v, rehash %v, %v", ok, rehash, err)
	}
	if ok, rehash, err := now.Verify(t.Context(), "wrong horse battery!", phc); ok || rehash || err != nil {
		t.Errorf("a wrong password: ok %v, rehash %v, %v", ok, rehash, err)
	}
}

func TestR45AStoredHashThatIsNotOursIsAnErrorAndNeverRuns(t *testing.T) {
	t.Parallel() // caps on parameters read back
	h := hasher(t, nil)
	good := hash(t, h, "correct horse battery")
	if ok, _, err := h.Verify(t.Context(), "correct horse battery", good); !ok || err != nil {
		t.Fatalf("the twin: %v, %v", ok, err)
	}
	swap := func(old, with string) string { return strings.Replace(good, old, with, 1) }
	for name, phc := range map[string]string{
		"nothing":                   "",
		"another algorithm":         swap("argon2id", "argon2i"),
		"another version":           swap("v=19", "v=16"),
		"4 GiB of memory":           swap("m=64", "m=4194304"),
		"too many passes":           swap("t=1", "t=17"),
		"no pass at all":            swap("t=1", "t=0"),
		"too many lanes":            swap("p=1", "p=17"),
		"lanes beyond a byte":       swap("p=1", "p=257"),
		"memory beyond 32 bits":     swap("m=64", "m=4294967360"),
		"a leading zero":            swap("m=64", "m=064"),
		"a sign":                    swap("t=1", "t=+1"),
		"padding":                   good + "=",
		"a seventh part":            good + "$",
		"a line break in the key":   good[:len(good)-4] + "\n" + good[len(good)-4:],
		"an unknown parameter":      swap("p=1", "p=1,x=1"),
		"a short salt":              "$argon2id$v=19$m=64,t=1,p=1$c2FsdA$" + good[strings.LastIndexByte(good, '$')+1:],
		"a short key":               good[:strings.LastIndexByte(good, '$')+9],
		"a hash of some other kind": "$2b$12$abcdefghijklmnopqrstuv",
	} {
		ok, rehash, err := h.Verify(t.Context(), "correct horse battery", phc)
		if ok || rehash || !errors.Is(err, password.ErrHash) || strings.Contains(err.Error(), "argon2id") {
			t.Errorf("%s: ok %v, rehash %v, %v", name, ok, rehash, err)
		}
	}
}

func TestL03APasswordBeyondTheCapsIsRefusedBeforeHashing(t *testing.T) {
	t.Parallel() // R46
	h := hasher(t, nil)
	phc := hash(t, h, "correct horse battery")
	release := password.Hold(h) // nothing can be hashed: an answer other than a wait shows that nothing was
	for name, p := range map[string]string{
		"a megabyte":          strings.Repeat("a", 1<<20),
		"257 code points":     strings.Repeat("é", 257),
		"1025 bytes":          strings.Repeat("\U0001F600", 256) + "a",
		"nothing":             "",
		"invalid UTF-8":       "correct horse \xff battery",
		"NUL":                 "correct horse\x00battery",
		"a line break":        "correct horse\nbattery",
		"257 after composing": strings.Repeat("a", 257),
	} {
		_, _, verify := h.Verify(t.Context(), p, phc)
		_, hashed := h.Hash(t.Context(), p)
		for _, err := range []error{verify, hashed, h.VerifyDummy(t.Context(), p)} {
			if f := fault.From(err); f.Kind != fault.Invalid || len(f.Violations) != 1 || f.Violations[0].Field != "password" {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	release()
	for name, p := range map[string]string{
		"64 characters":                        strings.Repeat("a", 64),
		"256 code points":                      strings.Repeat("é", 256),
		"256 code points of 4 bytes":           strings.Repeat("\U0001F600", 256),
		"a short one, which a login may guess": "a",
	} {
		if ok, _, err := h.Verify(t.Context(), p, hash(t, h, p)); !ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
}

func TestR47L05OnePasswordHasOneFormAndNothingElseIsFolded(t *testing.T) {
	t.Parallel()
	h := hasher(t, nil)
	phc := hash(t, h, "caf\u00e9 au lait, please") // NFC
	for _, c := range []struct {
		name, p string
		want    bool
	}{
		{"the same in NFD", "cafe\u0301 au lait, please", true},
		{"with a no-break space", "caf\u00e9\u00a0au lait, please", true},
		{"without the accent", "cafe au lait, please", false},
		{"in full width", "caf\u00e9 au lait, plea\uff53e", false},
		{"in another case", "Caf\u00e9 au lait, please", false},
		{"with a space at the end", "caf\u00e9 au lait, please ", false},
	} {
		if ok, _, err := h.Verify(t.Context(), c.p, phc); ok != c.want || err != nil {
			t.Errorf("%s: %v, %v", c.name, ok, err)
		}
	}
}

func shed(t *testing.T, err error) {
	t.Helper()
	if f := fault.From(err); f.Kind != fault.Limited || f.Reason != fault.Overloaded || f.RetryAfter <= 0 {
		t.Errorf("not shed: %v", err)
	}
}

func TestL02L13BeyondSlotsAndQueueACallIsShedAtOnce(t *testing.T) {
	t.Parallel() // for unknown accounts alike
	synctest.Test(t, func(t *testing.T) {
		h := hasher(t, func(o *password.Options) { o.Queue = 2 })
		phc := hash(t, h, "correct horse battery")
		release := password.Hold(h)
		waited := make(chan error, 2)
		for range 2 {
			go func() { _, _, err := h.Verify(t.Context(), "correct horse battery", phc); waited <- err }()
		}
		synctest.Wait()
		if s := h.Stats(); s != (password.Stats{Slots: 1, Running: 1, Queued: 2, Done: 1}) {
			t.Errorf("%+v", s)
		}
		begin := time.Now()
		_, _, known := h.Verify(t.Context(), "correct horse battery", phc)
		shed(t, known)
		shed(t, h.VerifyDummy(t.Context(), "correct horse battery"))
		if time.Since(begin) != 0 {
			t.Errorf("shed after %v", time.Since(begin))
		}
		for range 2 {
			shed(t, <-waited)
		}
		if d := time.Since(begin); d != 500*time.Millisecond {
			t.Errorf("the queue was left after %v", d)
		}
		release()
		if ok, _, err := h.Verify(t.Context(), "correct horse battery", phc); !ok || err != nil {
			t.Errorf("when the storm is over: %v, %v", ok, err)
		}
		if s := h.Stats(); s != (password.Stats{Slots: 1, Shed: 4, Done: 2}) {
			t.Errorf("%+v", s)
		}
	})
}

func TestL01TheHashForANameThatNobodyHasCostsWhatANewHashDoes(t *testing.T) {
	t.Parallel()
	h := hasher(t, func(o *password.Options) { o.Config.MemoryKiB, o.Config.Time = 64, 3 })
	phc := hash(t, h, "correct horse battery")
	if got, _, _ := strings.Cut(phc, "p=1$"); got != password.DummyCost(h) {
		t.Errorf("a new hash is %s, the one for nobody %s", got, password.DummyCost(h))
	}
	if err := h.VerifyDummy(t.Context(), "correct horse battery"); err != nil || h.Stats().Done != 2 {
		t.Errorf("the work for nobody is not done: %v %+v", err, h.Stats())
	}
}

func TestL14ASlotIsHeldToTheEndOfTheHashAndNothingIsLeftBehind(t *testing.T) {
	t.Parallel()
	callers := soak.Count(1000, 10_000)
	h := hasher(t, func(o *password.Options) { o.Config.MemoryKiB, o.Queue, o.QueueWait = 1024, callers, time.Hour })
	before := runtime.NumGoroutine()
	var wg sync.WaitGroup
	for i := range callers {
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			_, err := h.Hash(ctx, "correct horse battery")
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		if i%2 == 0 {
			runtime.Gosched()
		}
		cancel() // before, while or after it is hashed
		if s := h.Stats(); s.Running > 1 {
			t.Fatalf("%d hashes at once in one slot", s.Running)
		}
	}
	wg.Wait()
	if s := h.Stats(); s.Running != 0 || s.Queued != 0 || s.Shed != 0 {
		t.Errorf("%+v", s)
	}
	if after := runtime.NumGoroutine(); after > before+20 { // the other parallel tests have some
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

func TestACallerThatGoesAwayInTheQueueLeavesIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := hasher(t, nil)
		defer password.Hold(h)()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- h.VerifyDummy(ctx, "correct horse battery") }()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if s := h.Stats(); s.Queued != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestAConfigurationBelowTheFloorOrBeyondTheMachineIsRefused(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		change func(*password.Config)
		ok     bool
	}{
		{"the default", func(*password.Config) {}, true},
		{"R45 a KiB too little", func(c *password.Config) { c.MemoryKiB-- }, false},
		{"R45 one pass", func(c *password.Config) { c.Time = 1 }, false},
		{"no lane", func(c *password.Config) { c.Threads = 0 }, false},
		{"the most memory", func(c *password.Config) { c.MemoryKiB = 256 * 1024 }, true},
		{"more than that", func(c *password.Config) { c.MemoryKiB = 256*1024 + 1 }, false},
		{"too many passes", func(c *password.Config) { c.Time = 17 }, false},
		{"a budget in which no hash fits", func(c *password.Config) { c.MemoryBudgetMiB = 18 }, false},
		{"a budget for exactly one", func(c *password.Config) { c.MemoryBudgetMiB = 19 }, true},
	} {
		cfg := password.DefaultConfig()
		c.change(&cfg)
		if err := cfg.Validate(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if _, err := password.New(password.Options{Config: tiny()}); err == nil {
		t.Error("weak parameters without Weak are accepted")
	}
	one := password.DefaultConfig()
	one.MemoryBudgetMiB = 19
	h, err := password.New(password.Options{Config: one})
	if err != nil || h.Stats().Slots != 1 {
		t.Errorf("a budget for one hash gives %d slots, %v", h.Stats().Slots, err)
	}
}

func TestR46R48ANewPasswordIsLongAndNotGuessedFirst(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, p string
		ok      bool
	}{
		{"a phrase", "purple tractor sings", true},
		{"15 characters", "tractor sings x", true},
		{"14 characters", "tractor sings ", false},
		{"15 code points of two bytes", "ñandú ñoño ñuño", true},
		{"8 code points of two bytes are 16 bytes and too short", "ñññññéáú", false},
		{"257 characters", strings.Repeat("purple tractor ", 18), false},
		{"a common one of 15", "qazwsxedcrfvtgb", false},
		{"a common one in capitals", "QAZWSXEDCRFVTGB", false},
		{"a common one twice", "passwordpassword", false},
		{"one character", strings.Repeat("x", 20), false},
		{"a short piece over and over", "abc12abc12abc12", false},
		{"a long piece twice", "purple tractor-purple tractor-", true},
		{"the alphabet", "cdefghijklmnopqrst", false},
		{"the digits", "567890123456789012", false},
		{"the digits backwards", "98765432109876543", false},
		{"the username with a number", "jane.tractor2026", false},
		{"the username in capitals", "JANE.TRACTOR!2026", false},
		{"the username twice", "jane.tractorjane.tractor", false},
		{"the service's name with a common word", "authsvcpassword", false},
		{"the service's name in a phrase", "authsvc is my purple tractor", true},
		{"the username in a phrase", "jane.tractor likes green cheese", true},
		{"a control character", "purple tractor\x07sings", false},
	} {
		err := password.NewPolicy().Check(c.p, "jane.tractor")
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
		if f := fault.From(err); err != nil && (f.Kind != fault.Invalid || f.Reason != fault.PasswordRejected || strings.Contains(f.Error(), c.p)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestR48TheBundledListIsLongSortedAndFoundInFull(t *testing.T) {
	t.Parallel()
	text := password.ListText()
	if !strings.HasSuffix(text, "\n") {
		t.Fatal("the last line has no end")
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	long := 0
	for i, l := range lines {
		if l != strings.ToLower(l) || i > 0 && lines[i-1] >= l {
			t.Fatalf("line %d, %q, is not in order", i+1, l)
		}
		if !password.Common(l) {
			t.Fatalf("%q is on the list and not found", l)
		}
		if len(l) >= password.MinCodePoints {
			long++
		}
	}
	if len(lines) < 3000 || long < 3000 {
		t.Errorf("%d entries, %d of them long enough to be chosen", len(lines), long)
	}
	for _, p := range []string{"", "\n", "password\n", "passwor", "passwordz!", "\x00", "\xff", "~~~~~~~~~~~~~~~~~~~~~~"} {
		if password.Common(p) != slices.Contains(lines, p) {
			t.Errorf("%q is found: %v", p, password.Common(p))
		}
	}
}

func FuzzPolicy(f *testing.F) {
	for _, s := range []string{"purple tractor sings", "passwordpassword", "authsvcauthsvc", "\xff", "é", ""} {
		f.Add(s, "jane")
	}
	h, err := password.New(password.Options{Config: tiny(), Weak: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, p, username string) {
		if err := password.NewPolicy().Check(p, username); err != nil {
			if fault.From(err).Reason != fault.PasswordRejected {
				t.Errorf("%v", err)
			}
			return
		}
		phc, err := h.Hash(t.Context(), p)
		if err != nil {
			t.Fatalf("the policy lets pass what cannot be hashed: %v", err)
		}
		if ok, _, err := h.Verify(t.Context(), p, phc); !ok || err != nil {
			t.Errorf("ok %v, %v", ok, err)
		}
	})
}
