//go:build !faultclock

package app

import "time"

// clock is the clock of the service. Only a binary that is built to be tested with a wrong one has another.
func clock() time.Time { return time.Now() }
