package session

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"time"

	"github.com/authsvc/authsvc/internal/ids"
)

// The layout of a device token: a prefix that names the format, then the base64url of
// key id ‖ device ‖ Unix seconds of its making (big-endian) ‖ MAC. It is the device cookie of OWASP's "Slow Down Online Guessing
// Attacks with Device Cookies": it says that somebody signed in there with an account's password, and opens nothing.
const (
	// DevicePrefix begins every device token.
	DevicePrefix = "dt1."

	atMade      = 1 + 16
	atDeviceMAC = atMade + 8
	deviceBytes = atDeviceMAC + 16

	deviceLength = len(DevicePrefix) + (deviceBytes*8+5)/6

	// deviceDomain separates this MAC from any other use of the same key.
	deviceDomain = "authsvc device token dt1\x00"
)

// DeviceLife is how long after its making a device token is good. Each sign-in makes a new one.
const DeviceLife = 180 * 24 * time.Hour

// NewDevice gives a device token for the account of a canonical name, made now, under the first key. It names the device that Device gave,
// or a new one where that is empty.
func (k *RefreshKeys) NewDevice(account string, device ids.Device, now time.Time) string {
	raw, err := ids.Bytes(device)
	if err != nil {
		ids.Random(raw[:])
	}
	key := k.byID[k.first]
	body := append(make([]byte, 0, deviceBytes), key.ID)
	body = append(body, raw[:]...)
	body = binary.BigEndian.AppendUint64(body, uint64(now.Unix()))
	mac := k.deviceMAC(key, body, account)
	return DevicePrefix + base64.RawURLEncoding.EncodeToString(append(body, mac[:]...))
}

// Device gives the device that a token names, if it is one that was made for this account within DeviceLife; otherwise it is empty:
// whatever is wrong with a token, it is as if there were none. Every token has exactly one spelling.
func (k *RefreshKeys) Device(account, token string, now time.Time) ids.Device {
	if len(token) != deviceLength || token[:len(DevicePrefix)] != DevicePrefix {
		return ""
	}
	var raw [deviceBytes]byte
	if n, err := base64.RawURLEncoding.Strict().Decode(raw[:], []byte(token[len(DevicePrefix):])); err != nil || n != deviceBytes {
		return ""
	}
	key, listed := k.byID[raw[0]]
	if !listed || key.Gone {
		return ""
	}
	if want := k.deviceMAC(key, raw[:atDeviceMAC], account); !hmac.Equal(want[:], raw[atDeviceMAC:]) {
		return ""
	}
	made := time.Unix(int64(binary.BigEndian.Uint64(raw[atMade:atDeviceMAC])), 0)
	if now.Sub(made) >= DeviceLife {
		return ""
	}
	return ids.From[ids.Device]([16]byte(raw[1:atMade]))
}

// deviceMAC covers the domain, the issuer framed by its length, the body of fixed length, and the name to the end.
func (k *RefreshKeys) deviceMAC(key RefreshKey, body []byte, account string) [16]byte {
	h := hmac.New(sha256.New, key.Key)
	h.Write([]byte(deviceDomain))
	h.Write(k.issuer)
	h.Write(body)
	h.Write([]byte(account))
	return [16]byte(h.Sum(nil)[:16])
}
