package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/authsvc/authsvc/guard"
	"github.com/authsvc/authsvc/verify"
)

// held is what the verifiers of a process hold together.
type held struct {
	Heap    int64 `json:"heap"`    // bytes of the process's heap in use after a collection
	Lost    int   `json:"lost"`    // revocations, counted for each verifier, that it does not hold
	Good    bool  `json:"good"`    // each verifier lets the first token pass
	Refused bool  `json:"refused"` // each refuses the second
}

// runHolders is this binary as a process of verifiers that says what it holds at first, and again for each line that names a file
// with the ids of tokens, once all of these are known or have not come for a minute.
func runHolders() error {
	var in crew
	if err := json.Unmarshal(must(os.ReadFile(os.Getenv("AUTHSVC_BENCH_IN"))), &in); err != nil {
		return err
	}
	ctx := context.Background()
	var feeds []*guard.Feed
	var verifiers []*verify.Verifier
	for range in.Size {
		feed, v, err := in.Source.follow(ctx, -1)
		if err != nil {
			return err
		}
		feeds, verifiers = append(feeds, feed), append(verifiers, v)
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(held{Heap: int64(heapInUse())}); err != nil {
		return err
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		h, err := hold(feeds, lines.Text())
		if err != nil {
			return err
		}
		h.Good, h.Refused = true, true
		for _, v := range verifiers {
			_, err := v.Verify(ctx, in.Tokens[0])
			h.Good = h.Good && err == nil
			_, err = v.Verify(ctx, in.Tokens[1])
			h.Refused = h.Refused && errors.Is(err, verify.ErrRevoked)
		}
		h.Heap = int64(heapInUse())
		if err := out.Encode(h); err != nil {
			return err
		}
	}
	return nil
}

// hold asks each feed for each of the tokens that the file names.
func hold(feeds []*guard.Feed, path string) (h held, _ error) {
	var all []string
	if err := json.Unmarshal(must(os.ReadFile(path)), &all); err != nil {
		return h, err
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		h.Lost = 0
		for _, id := range all {
			s := verify.Subject{Token: verify.TargetOf(issuer, verify.KindToken, id)}
			for _, f := range feeds {
				if !errors.Is(f.Check(&s), verify.ErrRevoked) {
					h.Lost++
				}
			}
		}
		if h.Lost == 0 || time.Now().After(deadline) {
			return h, nil
		}
	}
}
