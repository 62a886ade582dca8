package ids_test

import (
	"bytes"
	"testing"

	"github.com/authsvc/authsvc/internal/ids"
)

func TestR36IdentifiersAre128RandomBitsInOneSpelling(t *testing.T) {
	t.Parallel()
	seen := map[ids.Session]bool{}
	var together [16]byte // every bit is set in some identifier
	for range 1000 {
		id := ids.New[ids.Session]()
		raw, err := ids.Bytes(id)
		if err != nil || len(id) != 22 || ids.From[ids.Session](raw) != id {
			t.Fatalf("%q: %v", id, err)
		}
		seen[id] = true
		for i := range raw {
			together[i] |= raw[i]
		}
	}
	if len(seen) != 1000 || together != [16]byte(bytes.Repeat([]byte{0xff}, 16)) {
		t.Errorf("%d different of 1000, bits used %x", len(seen), together)
	}
	good := ids.From[ids.Session]([16]byte{0xfb, 0xef})
	if _, err := ids.Bytes(good); err != nil {
		t.Fatalf("the twin: %v", err)
	}
	for name, bad := range map[string]ids.Session{
		"nothing":             "",
		"a character less":    good[:21],
		"a character more":    good + "A",
		"padding":             good + "==",
		"trailing bits":       good[:21] + "B",
		"the other alphabet":  "++" + good[2:],
		"a line break at end": good[:21] + "\n",
		"a line break inside": good[:10] + "\n" + good[11:],
		"a space":             good[:10] + " " + good[11:],
		"NUL":                 good[:10] + "\x00" + good[11:],
	} {
		if _, err := ids.Bytes(bad); err == nil {
			t.Errorf("%s: %q is taken", name, bad)
		}
	}
}

func TestR55SecretsAre256RandomBitsAndStoredHashed(t *testing.T) {
	t.Parallel()
	one, two := ids.Secret(), ids.Secret()
	if len(one) != 43 || one == two {
		t.Errorf("secrets of %d characters, alike: %v", len(one), one == two)
	}
	if ids.HashSecret(one) == ids.HashSecret(two) {
		t.Error("the hash is not one of its secret alone")
	}
	if got := ids.HashSecret("abc"); got != [32]byte{0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40, 0xde, 0x5d, 0xae, 0x22, 0x23,
		0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17, 0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad} { // FIPS 180-4
		t.Errorf("the hash is not SHA-256: %x", got)
	}
}
