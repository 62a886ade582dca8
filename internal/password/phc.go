package password

import (
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"

	"github.com/authsvc/authsvc/internal/ids"
)

const (
	saltBytes = 16
	keyBytes  = 32
)

// hash is an argon2id hash, taken apart.
type hash struct {
	params Params
	salt   []byte
	key    []byte
}

// encode gives the PHC string: $argon2id$v=19$m=19456,t=2,p=1$salt$key.
func (h hash) encode() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.params.MemoryKiB, h.params.Time, h.params.Threads,
		base64.RawStdEncoding.EncodeToString(h.salt), base64.RawStdEncoding.EncodeToString(h.key))
}

// parse reads what encode gives, and only that: one spelling, within the bounds.
func parse(phc string) (hash, error) {
	parts := strings.Split(phc, "$")
	if len(phc) > 512 || len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v="+strconv.Itoa(argon2.Version) {
		return hash{}, ErrHash
	}
	costs := strings.Split(parts[3], ",")
	if len(costs) != 3 {
		return hash{}, ErrHash
	}
	m, okM := cost(costs[0], "m=", 32)
	t, okT := cost(costs[1], "t=", 32)
	p, okP := cost(costs[2], "p=", 8)
	salt, errSalt := base64.RawStdEncoding.Strict().DecodeString(parts[4])
	key, errKey := base64.RawStdEncoding.Strict().DecodeString(parts[5])
	h := hash{params: Params{MemoryKiB: uint32(m), Time: uint32(t), Threads: uint8(p)}, salt: salt, key: key}
	if !okM || !okT || !okP || errSalt != nil || errKey != nil || len(salt) < 8 || len(salt) > 64 || len(key) < 16 || len(key) > 64 ||
		h.params.check() != nil || h.encode() != phc {
		return hash{}, ErrHash
	}
	return h, nil
}

func cost(s, prefix string, bits int) (uint64, bool) {
	digits, ok := strings.CutPrefix(s, prefix)
	n, err := strconv.ParseUint(digits, 10, bits)
	return n, ok && err == nil
}

// compute runs argon2id (RFC 9106) over a password in its normal form.
func compute(normal string, p Params, salt []byte, length int) []byte {
	return argon2.IDKey([]byte(normal), salt, p.Time, p.MemoryKiB, p.Threads, uint32(length))
}

func (h hash) matches(normal string) bool {
	return subtle.ConstantTimeCompare(compute(normal, h.params, h.salt, len(h.key)), h.key) == 1
}

func fresh(normal string, p Params) string {
	h := hash{params: p, salt: make([]byte, saltBytes)}
	ids.Random(h.salt)
	h.key = compute(normal, p, h.salt, keyBytes)
	return h.encode()
}
