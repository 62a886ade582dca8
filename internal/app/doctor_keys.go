package app

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/authsvc/authsvc/internal/config"
	"github.com/authsvc/authsvc/internal/keys"
)

func lookAtKeys(ctx context.Context, e *examined) []Finding {
	set, err := e.db.Keys().Load(ctx)
	if err != nil {
		return unanswered(err)
	}
	found := judgeKeys(set, e.cfg.Keys)
	sealer, err := loadSealer(e.cfg.Secrets)
	if err != nil {
		return append(found, finding(LevelProblem, named("secrets.key_encryption_keys_file", err).Error(), "put the file back: no server signs or starts without it"))
	}
	return append(found, judgeSeals(set, sealer)...)
}

// rotationSlack is how late a rotation may be: servers look every half second.
const rotationSlack = 10 * time.Minute

func judgeKeys(set keys.Set, cfg keys.Config) []Finding {
	var active, pending []keys.Key
	for _, k := range set.Keys {
		switch k.State {
		case keys.Active:
			active = append(active, k)
		case keys.Pending:
			pending = append(pending, k)
		}
	}
	if len(set.Keys) == 0 {
		return []Finding{finding(LevelNote, "there is no signing key yet", "start a server: it makes the first two")}
	}
	if len(active) != 1 {
		return []Finding{finding(LevelProblem, fmt.Sprintf("there are %d active signing keys, not one: nobody gets an access token", len(active)), "authsvc keys rotate -now makes the pending key the signer")}
	}
	age := set.Now.Sub(active[0].ActivatedAt)
	said := fmt.Sprintf("key %s has signed for %v of %v (keys.rotate_every)", active[0].ID, age.Round(time.Minute), cfg.RotateEvery)
	if len(pending) == 0 {
		return []Finding{fine("%s", said), finding(LevelWarning, "there is no pending signing key, which is to follow", "start a server: it makes one within a minute")}
	}
	due := rotationDue(active[0], pending[0], cfg)
	if set.Now.After(due.Add(rotationSlack)) {
		return []Finding{finding(LevelWarning, fmt.Sprintf("%s, and the pending key was to follow at %s", said, due.UTC().Format(time.RFC3339)), "see that a server runs and what its log says of keys; authsvc keys rotate does it by hand")}
	}
	return []Finding{fine("%s; %s follows", said, pending[0].ID)}
}

// rotationDue is when the pending key is to take the active one's place.
func rotationDue(active, pending keys.Key, cfg keys.Config) time.Time {
	due := active.ActivatedAt.Add(cfg.RotateEvery)
	if ready := pending.PublishedAt.Add(cfg.Prepublish); ready.After(due) {
		return ready
	}
	return due
}

func judgeSeals(set keys.Set, sealer *keys.Sealer) (found []Finding) {
	var older []string
	sealed := 0
	for _, k := range set.Keys {
		if len(k.Sealed) == 0 {
			continue
		}
		sealed++
		if _, err := sealer.Open(k.ID, k.Sealed); err != nil {
			found = append(found, finding(LevelProblem, "secrets.key_encryption_keys_file: "+err.Error(), "put the key-encryption key that sealed it back; if it is lost, authsvc keys revoke -all makes new keys, and every access token is refused"))
			continue
		}
		if !sealer.Current(k.Sealed) {
			older = append(older, k.ID)
		}
	}
	switch {
	case len(older) > 0:
		found = append(found, finding(LevelWarning, fmt.Sprintf("secrets.key_encryption_keys_file: its first key has not sealed %s", strings.Join(older, ", ")), "authsvc keys rewrap seals them anew; then the older key-encryption key may go"))
	case len(found) == 0 && sealed > 0:
		found = append(found, fine("the key-encryption keys open every private half, and the first one has sealed them"))
	}
	return found
}

func lookAtRefreshKeys(ctx context.Context, e *examined) []Finding {
	file, err := loadRefreshKeys(e.cfg.Secrets, e.cfg.Issuer)
	if err != nil {
		return []Finding{finding(LevelProblem, named("secrets.refresh_keys_file", err).Error(), "put the file back: no server starts without it")}
	}
	used, err := e.db.UsedRefreshKeys(ctx)
	if err != nil {
		return unanswered(err)
	}
	missing := slices.DeleteFunc(slices.Clone(used), file.Lists)
	if len(missing) > 0 {
		return []Finding{finding(LevelProblem, fmt.Sprintf("secrets.refresh_keys_file: sessions were made with refresh keys %v, which are not in it: their tokens are answered UNAVAILABLE", numbers(missing)),
			`put them back, or give them up by {"id": NUMBER, "gone": true}: these sessions then sign in again`)}
	}
	if len(used) == 0 {
		return []Finding{fine("no session lives that would need one")}
	}
	return []Finding{fine("the file has every key that sessions use: %v", numbers(used))}
}

// numbers prints ids as numbers.
func numbers(ids []byte) []int {
	out := make([]int, 0, len(ids))
	for _, id := range ids {
		out = append(out, int(id))
	}
	return out
}

// How long before its end a certificate is worth a word: the second is late for those who renew by hand.
const (
	soonExpired = 14 * 24 * time.Hour
	nowExpired  = 3 * 24 * time.Hour
)

func lookAtCertificates(_ context.Context, e *examined) (found []Finding) {
	for _, l := range []struct {
		setting string
		tls     config.TLS
	}{{"http.tls", e.cfg.HTTP.TLS}, {"grpc.tls", e.cfg.GRPC.TLS}} {
		if l.tls.CertFile == "" {
			continue
		}
		pair, err := tls.LoadX509KeyPair(l.tls.CertFile, l.tls.KeyFile)
		if err != nil {
			found = append(found, finding(LevelProblem, l.setting+": "+err.Error(), "put a whole pair there: a running server serves the one from before"))
			continue
		}
		found = append(found, judgeCertificate(l.setting, pair.Leaf, e.now()))
		if err := misnamed(e.cfg, pair.Leaf); err != nil && l.setting == "http.tls" {
			found = append(found, finding(LevelProblem, l.setting+": "+err.Error(), "get one that is; "+misnamedDo))
		}
	}
	if len(found) == 0 {
		found = append(found, fine("no listener has TLS of its own"))
	}
	return found
}

func judgeCertificate(setting string, c *x509.Certificate, now time.Time) Finding {
	left := c.NotAfter.Sub(now)
	said := fmt.Sprintf("%s: the certificate ends at %s", setting, c.NotAfter.UTC().Format(time.RFC3339))
	const do = "renew it: the server reads the files again by itself"
	switch {
	case left <= 0:
		return finding(LevelProblem, said+", which has passed: callers refuse it", do)
	case now.Before(c.NotBefore):
		return finding(LevelProblem, fmt.Sprintf("%s: the certificate begins at %s, which has not come: callers refuse it", setting, c.NotBefore.UTC().Format(time.RFC3339)), "set this machine's clock, or put the right certificate there")
	case left < nowExpired:
		return finding(LevelProblem, said, do)
	case left < soonExpired:
		return finding(LevelWarning, said, do)
	}
	return fine("%s", said)
}
