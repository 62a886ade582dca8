package session_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/ids"
	"github.com/authsvc/authsvc/internal/session"
)

// noon is when the device tokens of tests are made.
var noon = time.Unix(1_800_000_000, 0)

// forgeDevice makes a device token by the layout in prose, independent of the codec.
func forgeDevice(key session.RefreshKey, issuer, account string, device [16]byte, made int64) string {
	body := append([]byte{key.ID}, device[:]...)
	body = binary.BigEndian.AppendUint64(body, uint64(made))
	h := hmac.New(sha256.New, key.Key)
	h.Write([]byte("authsvc device token dt1\x00"))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(issuer))))
	h.Write([]byte(issuer))
	h.Write(body)
	h.Write([]byte(account))
	return "dt1." + base64.RawURLEncoding.EncodeToString(append(body, h.Sum(nil)[:16]...))
}

func TestR50ADeviceTokenIsGoodForItsAccountAndSomeMonths(t *testing.T) {
	t.Parallel()
	k := keysOf(t, issuer, testKeys...)
	fresh := k.NewDevice("ada", "", noon)
	device := k.Device("ada", fresh, noon)
	if _, err := ids.Bytes(device); err != nil {
		t.Fatalf("the device of a new token is %q", device)
	}
	if again := k.NewDevice("ada", device, noon.Add(time.Hour)); again == fresh || k.Device("ada", again, noon.Add(session.DeviceLife)) != device {
		t.Error("a token that is made anew does not name the same device, for longer")
	}
	if other := k.Device("ada", k.NewDevice("ada", "", noon), noon); other == device {
		t.Error("two devices have one name")
	}
	raw := [16]byte(bytes.Repeat([]byte{9}, 16))
	good := forgeDevice(testKeys[0], issuer, "ada", raw, noon.Unix())
	old := keysOf(t, issuer, testKeys[1], testKeys[0])
	_, _, refresh, err := k.New(ids.New[ids.Session]())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, account, token string
		at                   time.Time
		known                bool
	}{
		{"twin: as the layout says", "ada", good, noon, true},
		{"twin: by a key that is not the first any more", "ada", k.NewDevice("ada", "", noon), noon, true},
		{"twin: a second before its end", "ada", good, noon.Add(session.DeviceLife - time.Second), true},
		{"at its end", "ada", good, noon.Add(session.DeviceLife), false},
		{"another account's", "bob", good, noon, false},
		{"an account whose name it begins", "adah", good, noon, false},
		{"none", "ada", "", noon, false},
		{"another issuer's", "ada", forgeDevice(testKeys[0], "https://auth.other", "ada", raw, noon.Unix()), noon, false},
		{"another key's under this id", "ada", forgeDevice(session.RefreshKey{ID: 1, Key: testKeys[1].Key}, issuer, "ada", raw, noon.Unix()), noon, false},
		{"by a key that is gone", "ada", forgeDevice(testKeys[2], issuer, "ada", raw, noon.Unix()), noon, false},
		{"by a key that is not listed", "ada", forgeDevice(session.RefreshKey{ID: 9, Key: testKeys[0].Key}, issuer, "ada", raw, noon.Unix()), noon, false},
		{"with a later date", "ada", good[:30] + "_" + good[31:], noon, false},
		{"cut short", "ada", good[:len(good)-1], noon, false},
		{"too long", "ada", good + "A", noon, false},
		{"another spelling", "ada", good[:len(good)-1] + "=", noon, false},
		{"a line break in it", "ada", good[:20] + "\n" + good[21:], noon, false},
		{"a refresh token", "ada", refresh, noon, false},
		{"a refresh token in its clothes", "ada", "dt1." + refresh[4:len(good)], noon, false},
		{"megabytes", "ada", "dt1." + strings.Repeat("A", 1<<20), noon, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for name, keys := range map[string]*session.RefreshKeys{"": k, " after a change of keys": old} {
				if name != "" && tt.name == "by a key that is gone" {
					continue // not listed there
				}
				if got := keys.Device(tt.account, tt.token, tt.at); (got != "") != tt.known {
					t.Errorf("the device%s is %q", name, got)
				}
			}
		})
	}
	if p, err := k.Parse(good); err == nil {
		t.Errorf("a device token is redeemed as a refresh token: %v", p)
	}
}
