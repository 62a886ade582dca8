package limit

import (
	"errors"
	"fmt"
	"time"
)

// Config bounds failed sign-ins.
type Config struct {
	// AccountFailures is how many failures in a row a username may have, whether it exists or not, before it waits: 1 s, 2 s, 4 s … up
	// to max_delay. A success, or a day of peace, clears them. A device on which the account has signed in before has as many for itself, and
	// all such devices of an account have ten times as many together.
	AccountFailures int `yaml:"account_failures"`
	// MaxDelay is the longest that a username waits for its next try. Whoever is attacked waits with the attacker: keep it short.
	MaxDelay time.Duration `yaml:"max_delay"`
	// NetworkFailures is how many failures an IPv4 /24 or an IPv6 /64 may have in network_window; an IPv6 /48 may have four times as many.
	NetworkFailures int `yaml:"network_failures"`
	// NetworkWindow is how long a failure counts against its network.
	NetworkWindow time.Duration `yaml:"network_window"`
	// TotalFailures is how many failures there may be in network_window in all, of whatever usernames from wherever. Past it nobody signs in
	// but from devices that are known, until failures leave the window: guesses from ten thousand addresses, one each, end there. Keep it far
	// above what people mistype on a busy day; it must be more than four times network_failures, so that no one network does that. Left
	// out, it is eighty times network_failures, and so 8,000 unless that is set.
	TotalFailures int `yaml:"total_failures"`
}

// DefaultConfig is what holds unless the configuration says otherwise.
func DefaultConfig() Config {
	return Config{AccountFailures: 10, MaxDelay: time.Minute, NetworkFailures: 100, NetworkWindow: 10 * time.Minute}
}

// Validate says what is wrong, each with the setting's name.
func (c Config) Validate() error {
	var problems []error
	if c.AccountFailures < 1 || c.AccountFailures > 100 {
		problems = append(problems, fmt.Errorf("account_failures: is %d; it must be 1 to 100", c.AccountFailures))
	}
	if c.MaxDelay < time.Second || c.MaxDelay > 5*time.Minute {
		problems = append(problems, fmt.Errorf("max_delay: is %v; it must be 1s to 5m: whoever is attacked waits as long", c.MaxDelay))
	}
	if c.NetworkFailures < 1 || c.NetworkFailures > 1_000_000 {
		problems = append(problems, fmt.Errorf("network_failures: is %d; it must be 1 to 1000000", c.NetworkFailures))
	}
	if c.NetworkWindow < 10*time.Second || c.NetworkWindow > time.Hour {
		problems = append(problems, fmt.Errorf("network_window: is %v; it must be 10s to 1h", c.NetworkWindow))
	}
	if c.TotalFailures < 0 || c.TotalFailures > 100_000_000 {
		problems = append(problems, fmt.Errorf("total_failures: is %d; it must be 0 to 100000000", c.TotalFailures))
	} else if c.TotalFailures > 0 && c.TotalFailures <= site*c.NetworkFailures && c.NetworkFailures <= 1_000_000 {
		problems = append(problems, fmt.Errorf("total_failures: is %d; it must be more than %d, %d times network_failures, or one network could keep everybody out",
			c.TotalFailures, site*c.NetworkFailures, site))
	}
	return errors.Join(problems...)
}

// site is how many times as many failures an IPv6 /48 may have as a /64: it is what one site is given, with many networks in it.
const site = 4

// everywhere is how many times as many failures there may be in all as in one network, unless it is said.
const everywhere = 80

// fleet is how many times as many failures all known devices of an account may have as one of them.
const fleet = 10

func (c Config) account() Rule { return Rule{Free: c.AccountFailures, MaxDelay: c.MaxDelay} }
func (c Config) devices() Rule {
	return Rule{Free: fleet * c.AccountFailures, MaxDelay: c.MaxDelay}
}
func (c Config) network() Rule { return Rule{Free: c.NetworkFailures, Window: c.NetworkWindow} }
func (c Config) site() Rule {
	return Rule{Free: site * c.NetworkFailures, Window: c.NetworkWindow}
}
func (c Config) total() Rule {
	r := Rule{Free: c.TotalFailures, Window: c.NetworkWindow}
	if r.Free == 0 {
		r.Free = everywhere * c.NetworkFailures
	}
	return r
}
