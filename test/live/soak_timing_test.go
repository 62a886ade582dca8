//go:build soak

package live

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"
)

// TestL01R49TimesOfRefusalsCannotBeToldApart measures a thousand refusals of each kind at the real door, interleaved in
// random order, against those of unknown names. It runs in a soak only: it reads the clock. In every run
// TestL01R49RefusedSignInsCannotBeToldApart counts the hashes instead.
//
// Each kind is compared by the Mann-Whitney statistic, the chance that a random refusal of this kind took longer than
// a random one of an unknown name: 1/2 where nothing can be told. It depends on ranks alone, so that one long pause
// weighs no more than any other, and the order makes a slow minute slow for all kinds alike.
func TestL01R49TimesOfRefusalsCannotBeToldApart(t *testing.T) {
	const rounds, perNetwork = 1000, 15
	dir := t.TempDir()
	s := start(t, dir)
	// Ten failures throttle an account, so each serves for eight rounds.
	var known, disabled []string
	for i := range rounds/8 + 1 {
		known, disabled = append(known, fmt.Sprintf("known-%d", i)), append(disabled, fmt.Sprintf("disabled-%d", i))
		person(t, dir, known[i], phrase)
		person(t, dir, disabled[i], phrase)
		operate(t, "", "account", "disable", "-dir", dir, disabled[i])
	}
	kinds := []struct {
		name string
		of   func(round int) (username, password string)
	}{
		{"unknown", func(i int) (string, string) { return fmt.Sprintf("no-%d", i), phrase + "!" }},
		{"wrong", func(i int) (string, string) { return known[i/8], phrase + "!" }},
		{"disabled, right password", func(i int) (string, string) { return disabled[i/8], phrase }},
		{"unknown once more", func(i int) (string, string) { return fmt.Sprintf("nobody-%d", i), phrase + "!" }},
	}
	took := make([][]time.Duration, len(kinds))
	var c *http.Client
	for i := range rounds {
		if i%perNetwork == 0 { // a network has a hundred failures
			c = from(t, fmt.Sprintf("127.5.%d.1", i/perNetwork))
			s.say(t, c, "/v1/auth/login", s.credentials(s.Username, s.Password)) // opens the connection
		}
		for _, k := range rand.Perm(len(kinds)) {
			username, password := kinds[k].of(i)
			begin := time.Now()
			a := s.say(t, c, "/v1/auth/login", s.credentials(username, password))
			took[k] = append(took[k], time.Since(begin))
			if a.code != http.StatusUnauthorized {
				t.Fatalf("round %d, %s: %d %s", i, kinds[k].name, a.code, a.raw)
			}
		}
	}
	for k := 1; k < len(kinds); k++ {
		chance, sigma := longer(took[k], took[0])
		t.Logf("%s: median %v against %v; longer with a chance of %.3f, which is %+.1f sigma from 1/2",
			kinds[k].name, median(took[k]), median(took[0]), chance, (chance-0.5)/sigma)
		if math.Abs(chance-0.5) > 5*sigma {
			t.Errorf("L01: %s can be told from an unknown name by its time", kinds[k].name)
		}
	}
}

// longer gives the Mann-Whitney chance that one of a is longer than one of b, and its standard deviation where both are
// of one distribution.
func longer(a, b []time.Duration) (chance, sigma float64) {
	sorted := slices.Sorted(slices.Values(b))
	wins := 0.0
	for _, v := range a {
		below, _ := slices.BinarySearch(sorted, v)
		upTo, _ := slices.BinarySearch(sorted, v+1)
		wins += float64(below) + float64(upTo-below)/2
	}
	n, m := float64(len(a)), float64(len(b))
	return wins / (n * m), math.Sqrt((n + m + 1) / (12 * n * m))
}

func median(d []time.Duration) time.Duration {
	return slices.Sorted(slices.Values(d))[len(d)/2]
}

// TestTheTimeStatisticTellsWhatDiffers is the twin of the test above: a statistic that finds nothing would pass anything.
func TestTheTimeStatisticTellsWhatDiffers(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	sample := func(shift time.Duration) (d []time.Duration) {
		for range 1000 {
			v := 25*time.Millisecond + time.Duration(r.NormFloat64()*float64(time.Millisecond)) + shift
			if r.IntN(50) == 0 {
				v += 200 * time.Millisecond // a pause of the machine
			}
			d = append(d, v)
		}
		return d
	}
	if chance, sigma := longer(sample(0), sample(0)); math.Abs(chance-0.5) > 5*sigma {
		t.Errorf("two samples of one distribution differ by %.1f sigma", (chance-0.5)/sigma)
	}
	if chance, sigma := longer(sample(500*time.Microsecond), sample(0)); math.Abs(chance-0.5) < 5*sigma {
		t.Errorf("2 %% longer are only %.1f sigma", (chance-0.5)/sigma)
	}
}
