package session_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/authsvc/authsvc/internal/fault"
	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/session"
)

const issuer = "https://auth.example"

// testKeys are two live keys and one that is gone.
var testKeys = []session.RefreshKey{
	{ID: 1, Key: bytes.Repeat([]byte{0x11}, 32)},
	{ID: 2, Key: bytes.Repeat([]byte{0x22}, 48)},
	{ID: 3, Gone: true, Key: bytes.Repeat([]byte{0x33}, 32)},
}

func keysOf(t testing.TB, issuer string, list ...session.RefreshKey) *session.RefreshKeys {
	t.Helper()
	k, err := session.NewRefreshKeys(issuer, list)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newToken(t testing.TB, k *session.RefreshKeys) string {
	t.Helper()
	_, _, token, err := k.New(ids.New[ids.Session]())
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// forge makes a token by the layout in prose, independent of the codec.
func forge(key session.RefreshKey, issuer string, sid [16]byte, generation uint32, secret [16]byte) string {
	body := append([]byte{key.ID}, sid[:]...)
	body = binary.BigEndian.AppendUint32(body, generation)
	body = append(body, secret[:]...)
	h := hmac.New(sha256.New, key.Key)
	h.Write([]byte("authsvc refresh token rt1\x00"))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(issuer))))
	h.Write([]byte(issuer))
	h.Write(body)
	return "rt1." + base64.RawURLEncoding.EncodeToString(append(body, h.Sum(nil)[:16]...))
}

func TestParseD17ReadsATokenOfTheFirstRelease(t *testing.T) {
	t.Parallel()
	// The format is a promise to the tokens that are already out there.
	const released = "rt1.AQAAAAAAAAAAAAAAAAAAAAAAAAACBwcHBwcHBwcHBwcHBwcHB7Ol77tVKtYUcT1FO-lXuxY"
	k := keysOf(t, issuer, testKeys...)
	secret := [16]byte(bytes.Repeat([]byte{7}, 16))
	if forged := forge(testKeys[0], issuer, [16]byte{}, 2, secret); forged != released {
		t.Fatalf("the layout has changed: %s", forged)
	}
	p, err := k.Parse(released)
	if err != nil {
		t.Fatal(err)
	}
	if p.Session != ids.From[ids.Session]([16]byte{}) || p.Generation != 2 || p.SecretHash != sha256.Sum256(secret[:]) {
		t.Errorf("Parse = %v", p)
	}
	if got, want := k.Successor(p, 3), forge(testKeys[0], issuer, [16]byte{}, 3, secret); got != want {
		t.Errorf("Successor = %s, want %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	k := keysOf(t, issuer, testKeys...)
	good := newToken(t, k)
	body := strings.TrimPrefix(good, "rt1.")
	last := strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", good[len(good)-1])
	flip := func(at int) string { // another byte in the decoded token
		raw, err := base64.RawURLEncoding.DecodeString(body)
		if err != nil {
			t.Fatal(err)
		}
		raw[at] ^= 0x80
		return "rt1." + base64.RawURLEncoding.EncodeToString(raw)
	}
	if _, err := k.Parse(good); err != nil {
		t.Fatalf("the unsafe twin, the same token unharmed: %v", err)
	}
	other := keysOf(t, "https://auth.exampl", testKeys...)
	for _, tt := range []struct {
		name, token string
		reason      fault.Reason
	}{
		{"nothing", "", fault.RefreshInvalid},
		{"the prefix alone", "rt1.", fault.RefreshInvalid},
		{"no prefix", body, fault.RefreshInvalid},
		{"another format's prefix", "rt2." + body, fault.RefreshInvalid},
		{"a prefix in capitals", "RT1." + body, fault.RefreshInvalid},
		{"one character short", good[:len(good)-1], fault.RefreshInvalid},
		{"one character more", good + "A", fault.RefreshInvalid},
		{"padding", good + "=", fault.RefreshInvalid},
		{"a line break at the end", good + "\n", fault.RefreshInvalid},
		{"a line break in place of the last character", good[:len(good)-1] + "\n", fault.RefreshInvalid},
		{"a line break in place of a character within", good[:20] + "\r" + good[21:], fault.RefreshInvalid},
		{"standard base64's alphabet", "rt1." + strings.Repeat("+", len(body)), fault.RefreshInvalid},
		{"set bits after the last byte", good[:len(good)-1] + string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last|1]), fault.RefreshInvalid},
		{"a NUL", good[:30] + "\x00" + good[31:], fault.RefreshInvalid},
		{"1 MiB", strings.Repeat("A", 1<<20), fault.RefreshInvalid},
		{"another session", flip(1), fault.RefreshInvalid},
		{"another generation", flip(17), fault.RefreshInvalid},
		{"another secret", flip(21), fault.RefreshInvalid},
		{"another MAC, first byte", flip(37), fault.RefreshInvalid},
		{"another MAC, last byte", flip(52), fault.RefreshInvalid},
		{"another issuer's token", newToken(t, other), fault.RefreshInvalid},
		{"another key's bytes under a listed id", forge(session.RefreshKey{ID: 2, Key: testKeys[0].Key}, issuer, [16]byte{}, 1, [16]byte{}), fault.RefreshInvalid},
		{"generation 0, which is never issued", forge(testKeys[0], issuer, [16]byte{}, 0, [16]byte{}), fault.RefreshInvalid},
		{"a key that is gone, though its MAC is good", forge(testKeys[2], issuer, [16]byte{}, 1, [16]byte{}), fault.RefreshInvalid},
		{"a key that this replica does not have", forge(session.RefreshKey{ID: 9, Key: testKeys[0].Key}, issuer, [16]byte{}, 1, [16]byte{}), fault.RefreshKeyUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := k.Parse(tt.token)
			var f *fault.Error
			if !errors.As(err, &f) || f.Reason != tt.reason {
				t.Fatalf("Parse = %v, %v, want %s", p, err, tt.reason)
			}
			want := fault.Unauthenticated
			if tt.reason == fault.RefreshKeyUnknown {
				want = fault.Unavailable
			}
			if f.Kind != want || f.Err != nil || p.Session != "" || p.SecretHash != [32]byte{} || k.Successor(p, 1) != "" {
				t.Errorf("kind %d, cause %v, token %v: want kind %d and nothing else", f.Kind, f.Err, p, want)
			}
			if len(tt.token) > 8 && strings.Contains(err.Error(), tt.token[8:]) {
				t.Error("the error repeats the token")
			}
		})
	}
}

func TestRefreshKeysRotation(t *testing.T) {
	t.Parallel()
	before := keysOf(t, issuer, testKeys[0])
	token := newToken(t, before)
	after := keysOf(t, issuer, testKeys[1], testKeys[0])
	p, err := after.Parse(token)
	if err != nil {
		t.Fatalf("a session keeps the key that it was born with: %v", err)
	}
	if got, err := before.Parse(after.Successor(p, 2)); err != nil || got.Generation != 2 {
		t.Errorf("its successor is under that key too: %v, %v", got, err)
	}
	if _, keyID, _, err := after.New(p.Session); err != nil || keyID != 2 {
		t.Errorf("a new session is served by key %d, %v, want the first, 2", keyID, err)
	}
	if s := after.Successor(session.Presented{}, 2); s != "" {
		t.Errorf("a token that was never parsed has the successor %s", s)
	}
	if _, _, _, err := after.New("not an id"); !errors.Is(err, ids.ErrMalformed) {
		t.Errorf("New for a malformed sid: %v", err)
	}
}

func TestNewRefreshKeysRefuses(t *testing.T) {
	t.Parallel()
	k := func(id byte, n int, gone bool) session.RefreshKey {
		return session.RefreshKey{ID: id, Key: make([]byte, n), Gone: gone}
	}
	for _, tt := range []struct {
		name, issuer string
		keys         []session.RefreshKey
		ok           bool
	}{
		{"the unsafe twin: a good list", issuer, []session.RefreshKey{k(1, 32, false), k(2, 0, true)}, true},
		{"no issuer", "", []session.RefreshKey{k(1, 32, false)}, false},
		{"no key", issuer, nil, false},
		{"a key of 31 bytes", issuer, []session.RefreshKey{k(1, 31, false)}, false},
		{"a second key of 31 bytes", issuer, []session.RefreshKey{k(1, 32, false), k(2, 31, false)}, false},
		{"one id twice", issuer, []session.RefreshKey{k(1, 32, false), k(1, 32, false)}, false},
		{"one id live and gone", issuer, []session.RefreshKey{k(1, 32, false), k(1, 0, true)}, false},
		{"a first key that is gone", issuer, []session.RefreshKey{k(1, 32, true), k(2, 32, false)}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := session.NewRefreshKeys(tt.issuer, tt.keys); (err == nil) != tt.ok {
				t.Errorf("err = %v, want ok %v", err, tt.ok)
			}
		})
	}
}

func TestPrintingR63ShowsNoSecret(t *testing.T) {
	t.Parallel()
	k := keysOf(t, issuer, testKeys[0])
	secret := [16]byte([]byte("ABCDEFGHIJKLMNOP"))
	p, err := k.Parse(forge(testKeys[0], issuer, [16]byte{}, 1, secret))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "token", p, "keys", k, "key", testKeys[0])
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "token", p, "keys", k, "key", testKeys[0])
	out := log.String()
	hidden := struct{ p session.Presented }{p}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
		out += fmt.Sprintf(verb+verb+verb+verb, p, k, testKeys[0], []any{p, k}) + fmt.Sprintf(verb, hidden)
	}
	for _, leak := range []string{"ABCDEFGH", "41424344", "65 66 67", "0x41, 0x42", "17 17 17", "11111111", "0x11, 0x11", "EREREREREREREREREREREQ"} {
		if strings.Contains(out, leak) {
			t.Errorf("printing shows %q", leak)
		}
	}
	if !strings.Contains(out, "redacted") {
		t.Error("printing does not say that it hides something")
	}
}

func TestTokenRoundTrip(t *testing.T) {
	t.Parallel()
	k := keysOf(t, issuer, testKeys...)
	rapid.Check(t, func(t *rapid.T) {
		sid := ids.From[ids.Session]([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "sid")))
		generation := rapid.Uint32Min(1).Draw(t, "generation")
		hash, keyID, first, err := k.New(sid)
		if err != nil || keyID != 1 {
			t.Fatalf("New: key %d, %v", keyID, err)
		}
		p, err := k.Parse(first)
		if err != nil || p.Session != sid || p.Generation != 1 || p.SecretHash != hash {
			t.Fatalf("Parse(New) = %v, %v", p, err)
		}
		next := k.Successor(p, generation)
		q, err := k.Parse(next)
		if err != nil || q.Session != sid || q.Generation != generation || q.SecretHash != hash {
			t.Fatalf("Parse(Successor) = %v, %v", q, err)
		}
		if k.Successor(q, 1) != first || k.Successor(q, generation) != next {
			t.Fatal("a successor is not the same bytes each time")
		}
		// No other text of any token is accepted: one changed character, wherever it is.
		at := rapid.IntRange(0, len(next)-1).Draw(t, "at")
		c := rapid.Byte().Filter(func(c byte) bool { return c != next[at] }).Draw(t, "character")
		if p, err := k.Parse(next[:at] + string([]byte{c}) + next[at+1:]); err == nil {
			t.Fatalf("another spelling is accepted: %v", p)
		}
	})
}

func FuzzParse(f *testing.F) {
	k := keysOf(f, issuer, testKeys...)
	f.Add(forge(testKeys[0], issuer, [16]byte{1}, 1, [16]byte{2}))
	f.Add("rt1.")
	f.Fuzz(func(t *testing.T, token string) {
		p, err := k.Parse(token)
		if err != nil {
			if f := fault.From(err); f.Reason != fault.RefreshInvalid && f.Reason != fault.RefreshKeyUnknown {
				t.Fatalf("an unforeseen fault: %v", err)
			}
			return
		}
		if again := k.Successor(p, p.Generation); again != token {
			t.Fatalf("a second spelling of %s was accepted", again)
		}
	})
}
