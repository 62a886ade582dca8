// Package faults breaks what an installation stands on, one thing after the other, while it is used, and holds what everybody was
// told against what is promised.
//
// A system is three replicas of the real binary behind nginx, on PostgreSQL with a synchronous standby and Redis, with services beside them that
// verify tokens by the trust feed: one at each replica, others through nginx, one of them in a process of its own. All that goes over
// the network goes over a link of the harness, which can lose, delay or reset it. The load is people who sign in, refresh, call the
// services and sign out, thieves, and those who guess; each does what DESIGN says a client must, and writes down what it was told and
// when: the history. A fault is a value of kinds_test.go: inject, heal. The checker is a function of the history alone, and has tests of
// its own with histories made by hand. docs/faults.md says how to run it and how to read what it prints.
package faults

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/test/soak"
)

const balancer = "balancer"

// program is built once, with a clock that can be set wrong.
var program string

var lasting = flag.Duration("faults.for", 20*time.Minute, "how long a soak of faults lasts")

var only = flag.String("faults.only", "", "a soak of those kinds of fault alone whose name has these words")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(func() int {
		if os.Getenv(serviceEnv) != "" {
			fmt.Fprintln(os.Stderr, serveCalls(os.Stdin, os.Stdout))
			return 1
		}
		dir, err := os.MkdirTemp("", "authsvc-faults-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		if program, err = build(dir, "authsvc"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return m.Run()
	}())
}

// build makes a binary; another name makes another one.
func build(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-tags", "faultclock", "-ldflags", "-buildid="+name, "-o", path, "../../cmd/authsvc")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
}

// lacking ends a test for want of something that this machine has not: it is skipped, except where everything is required.
func lacking(t *testing.T, err error) {
	t.Helper()
	if os.Getenv("AUTHSVC_TEST_REQUIRE") != "" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// trial is a system under load, with what happened to it so far.
type trial struct {
	*system
	*load
	began int64
	seed  uint64
}

func newTrial(t *testing.T, seed uint64) *trial {
	t.Helper()
	sys, err := newSystem(t)
	if err != nil {
		t.Fatal(err)
	}
	x := &trial{system: sys, load: newLoad(sys, seed), began: now(), seed: seed}
	if err := x.load.begin(); err != nil {
		t.Fatal(err)
	}
	return x
}

// settle is how long there is no fault after each: longer than everything may take to be well again, so that it is seen.
const settle = backWithin + 1500*time.Millisecond

// suffer injects one fault, heals it after a while, and looks on.
func (x *trial) suffer(t *testing.T, k kind, rng *rand.Rand) {
	t.Helper()
	f := event{Op: opFault, Via: k.name, Begin: now()}
	if k.harmless {
		f.Op = opChange
	}
	heal, err := k.inject(t.Context(), x, rng)
	if err == nil {
		pause(t.Context(), k.lasts)
		err = heal(t.Context())
	}
	f.End = now()
	x.history.add(f)
	if k.after != nil {
		err = errors.Join(err, k.after(t.Context(), x))
	}
	if err != nil {
		t.Errorf("%s: %v", k.name, err)
	}
	pause(t.Context(), settle)
}

// judge ends the load, asks about everything once more, and reports.
func (x *trial) judge(t *testing.T) {
	t.Helper()
	x.load.end()
	lasting := x.final(t.Context())
	h := x.history.all()
	violations := append(check(h), lasting...)
	t.Logf("seed %d\n%s", x.seed, report(h, violations))
	for i, v := range violations {
		if i == 20 {
			t.Errorf("and %d more", len(violations)-i)
			break
		}
		t.Error(v)
	}
	if t.Failed() {
		x.keep(t, h)
	}
}

// keep writes everything down where it outlives the test.
func (x *trial) keep(t *testing.T, h []event) {
	t.Helper()
	dir, err := os.MkdirTemp("", "authsvc-faults-failed-")
	if err != nil {
		t.Error(err)
		return
	}
	var all strings.Builder
	for _, e := range h {
		fmt.Fprintln(&all, e)
	}
	files := map[string]string{"history.txt": all.String(), "nginx.log": x.nginx.said.String()}
	for _, r := range x.replicas {
		files[fmt.Sprintf("replica-%d.log", r.number)] = r.log.String()
	}
	for _, s := range x.services {
		files["service-"+s.name+".log"] = s.said.String()
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Error(err)
		}
	}
	t.Logf("the whole history and all logs are in %s", dir)
}

// enough holds that the load met the faults: that a run without violations means something.
func (x *trial) enough(t *testing.T) {
	t.Helper()
	count := map[string]int{}
	for _, e := range x.history.all() {
		count[string(e.Op)+" "+string(e.Out)]++
	}
	for what, least := range map[string]int{"refresh ok": 100, "call ok": 200, "call refused": 20, "revoke ok": 10, "introspect ok": 20, "refresh away": 1, "refresh refused": 1} {
		if count[what] < least {
			t.Errorf("there were only %d of %q, which proves nothing: %v", count[what], what, count)
		}
	}
}

// TestSixKindsOfFault is what every run of the tests has of this: six kinds, for seconds each.
func TestSixKindsOfFault(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a minute and a half")
	}
	seed := rand.Uint64()
	x := newTrial(t, seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	for _, k := range ordinary() {
		x.suffer(t, k, rng)
	}
	x.judge(t)
	x.enough(t)
}

// TestAllKindsOfFault is the soak: all of them in random order, again and again.
func TestAllKindsOfFault(t *testing.T) {
	if !soak.On() {
		t.Skip("a soak has it: AUTHSVC_SOAK=1")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	x := newTrial(t, seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	ctx, cancel := context.WithTimeout(t.Context(), *lasting)
	defer cancel()
	for ctx.Err() == nil && !t.Failed() {
		all := slices.DeleteFunc(kinds(), func(k kind) bool { return !strings.Contains(k.name, *only) })
		if len(all) == 0 {
			t.Fatalf("no kind has %q in its name", *only)
		}
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, k := range all {
			if ctx.Err() == nil && !t.Failed() {
				t.Logf("%v: %s", time.Duration(now()-x.began).Round(time.Second), k.name)
				x.suffer(t, k, rng)
			}
		}
	}
	x.judge(t)
	if *only == "" {
		x.enough(t)
	}
}
