//go:build soak

package bench

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	authsvcv1 "github.com/authsvc/authsvc/gen/authsvc/v1"
)

// TestNoRevocationIsLost has 100 tokens a second revoked for ten minutes, which 1,000 verifiers in processes of their own follow; with
// -short it is twenty seconds and fewer. In the end each list holds each revocation, and each verifier that was looked at has refused.
func TestNoRevocationIsLost(t *testing.T) {
	size := fanoutSize{processes: 10, each: 100, idle: time.Second, during: 10 * time.Minute}
	if testing.Short() {
		size = fanoutSize{processes: 2, each: 50, idle: time.Second, during: 20 * time.Second}
	}
	in := install(t)
	tokens := in.many(t, calls(size.during)) // the first to be made is the first to be revoked: none lives for more than 15 minutes
	found := in.feed(t, in.watchers(t, 2)).round(t, size, tokens)
	t.Logf("%d revocations, %d verifiers, %d refusals: after %v in the middle, 99 in 100 after %v, all after %v; %v times one was cut off for not keeping up",
		len(tokens), size.members(), len(found.late), percentile(found.late, 0.5), percentile(found.late, 0.99), percentile(found.late, 1),
		in.metric(t, "authsvc_feed_cut_total"))
}

// Bytes that a revocation may cost: each verifier's list, and the server, which has a list of its own, the log in memory that
// snapshots and changes are made of, and room for both to grow.
const (
	mostOfVerifier = 64
	mostOfServer   = 192
)

// TestP06AMillionRevocationsInFiveMinutes adds them to the log of a running server, a part every 100 ms; with -short it is 60,000 in
// twenty seconds. Ten verifiers in one process follow. Nothing may be dropped, and the memory of both sides stays within what so
// many entries may cost.
func TestP06AMillionRevocationsInFiveMinutes(t *testing.T) {
	total, during, verifiers := 1_000_000, 5*time.Minute, 10
	if testing.Short() {
		total, during = 60_000, 20*time.Second
	}
	in := install(t)
	tokens := in.many(t, 2)
	holders := loop(t, "holders", crew{Source: in.watchers(t, 1)[0], Tokens: tokens, Size: verifiers})
	before := parse[held](t, []byte(holders.line(t)))
	served := in.inUse(t)
	peak := in.rss()

	db := in.log(t)
	var all []string
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	begun, steps := time.Now(), int(during/(100*time.Millisecond))
	for step := range steps {
		all = append(all, revoke(t, db, total*(step+1)/steps-len(all))...)
		peak = max(peak, in.rss())
		<-tick.C
	}
	spent := time.Since(begun)
	if _, err := in.auth.Revoke(t.Context(), &authsvcv1.RevokeRequest{Token: tokens[1]}); err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/ids.json"
	if err := os.WriteFile(path, must(json.Marshal(append(all, tokenID(tokens[1])))), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintln(holders.stdin, path); err != nil {
		t.Fatalf("%v\n%s", err, holders.errs)
	}
	after := parse[held](t, []byte(holders.line(t)))
	server := in.inUse(t) - served
	each, of := float64(after.Heap-before.Heap)/float64(total*verifiers), float64(server)/float64(total)
	t.Logf("%d revocations in %v: a verifier takes %.1f B for each, the server %.1f B, and %s at most; %v times one was cut off for not keeping up",
		total, spent, each, of, mebibytes(peak), in.metric(t, "authsvc_feed_cut_total"))
	if after.Lost != 0 || !after.Good || !after.Refused {
		t.Errorf("P06 dropped: %d revocations at some verifier; a revoked token is refused %v; the twin: another passes %v", after.Lost, after.Refused, after.Good)
	}
	if each > mostOfVerifier || of > mostOfServer {
		t.Errorf("P06 the memory grows by %.1f B at a verifier and by %.1f B at the server for each; %d and %d are the most", each, of, mostOfVerifier, mostOfServer)
	}
}
