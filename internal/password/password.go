// Package password owns passwords: their normal form, what a new one must be like, their argon2id hashes, and the bounded
// pool in which the hashing runs, so that a storm of sign-ins cannot starve everything else.
package password

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"

	"github.com/authsvc/authsvc/internal/fault"
)

// Caps of any password, checked before anything else is done with it.
const (
	MaxBytes      = 1024
	MaxCodePoints = 256
)

// MinCodePoints is the least length of a new password: it is the only factor.
const MinCodePoints = 15

// Params are the cost of an argon2id hash (RFC 9106 §3.1).
type Params struct {
	MemoryKiB uint32
	Time      uint32
	Threads   uint8
}

// Bounds of Params. The lower ones are those of the OWASP cheat sheet; the upper ones keep a hash that was planted in the
// database from eating the machine.
const (
	minMemoryKiB = 19 * 1024
	minTime      = 2
	maxMemoryKiB = 256 * 1024
	maxTime      = 16
	maxThreads   = 16
)

// Config is the section "password" of the configuration.
type Config struct {
	// MemoryKiB is the memory of one hash. 19456 to 262144. Default 19456 (19 MiB).
	MemoryKiB uint32 `yaml:"memory_kib"`
	// Time is the number of passes over it. 2 to 16. Default 2.
	Time uint32 `yaml:"time"`
	// Threads is the number of lanes. 1 to 16. Default 1.
	Threads uint8 `yaml:"threads"`
	// MemoryBudgetMiB bounds the hashes that run at once: as many as fit, at most one less than there are cores, at least
	// one. Default 512.
	MemoryBudgetMiB int `yaml:"memory_budget_mib"`
}

// DefaultConfig gives the values that hold where the configuration is silent.
func DefaultConfig() Config {
	return Config{MemoryKiB: minMemoryKiB, Time: minTime, Threads: 1, MemoryBudgetMiB: 512}
}

// Validate says what is wrong with the section.
func (c Config) Validate() error {
	if c.MemoryKiB < minMemoryKiB || c.Time < minTime {
		return fmt.Errorf("memory_kib is %d and time is %d; they must be at least %d and %d", c.MemoryKiB, c.Time, minMemoryKiB, minTime)
	}
	return c.bounded()
}

func (c Config) bounded() error {
	if err := c.params().check(); err != nil {
		return err
	}
	if c.MemoryBudgetMiB < 1 || int64(c.MemoryBudgetMiB)*1024 < int64(c.MemoryKiB) {
		return fmt.Errorf("memory_budget_mib is %d; one hash of %d KiB must fit", c.MemoryBudgetMiB, c.MemoryKiB)
	}
	return nil
}

func (c Config) params() Params {
	return Params{MemoryKiB: c.MemoryKiB, Time: c.Time, Threads: c.Threads}
}

// check refuses what argon2 cannot do (RFC 9106 §3.1) and what it must not do here.
func (p Params) check() error {
	switch {
	case p.Threads < 1 || p.Threads > maxThreads:
		return fmt.Errorf("threads is %d; it must lie between 1 and %d", p.Threads, maxThreads)
	case p.Time < 1 || p.Time > maxTime:
		return fmt.Errorf("time is %d; it must lie between 1 and %d", p.Time, maxTime)
	case p.MemoryKiB < 8*uint32(p.Threads) || p.MemoryKiB > maxMemoryKiB:
		return fmt.Errorf("memory_kib is %d; it must lie between 8 × threads and %d", p.MemoryKiB, maxMemoryKiB)
	}
	return nil
}

// normal gives the form in which a password is hashed: the OpaqueString profile of RFC 8265 §4.2, which is NFC and plain
// spaces and nothing else. What is too long, or holds control characters, is Invalid before any hashing.
func normal(password string) (string, error) {
	if password == "" || len(password) > MaxBytes || utf8.RuneCountInString(password) > MaxCodePoints {
		return "", fault.Field("password", "must be 1 to 256 characters and at most 1024 bytes")
	}
	if !utf8.ValidString(password) {
		return "", fault.Field("password", "must be UTF-8")
	}
	n, err := precis.OpaqueString.String(password)
	if err != nil || n == "" {
		return "", fault.Field("password", "must not hold control characters or code points that Unicode has not assigned")
	}
	if len(n) > MaxBytes || utf8.RuneCountInString(n) > MaxCodePoints {
		return "", fault.Field("password", "must be 1 to 256 characters and at most 1024 bytes")
	}
	return n, nil
}

// ErrHash is what Verify answers for a stored hash that is not one of ours; it does not hold the hash.
var ErrHash = errors.New("password: the stored hash cannot be read")
