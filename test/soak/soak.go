// Package soak says how often a test repeats what chance decides: a few times in every run, and as often as the
// requirements ask where the environment has AUTHSVC_SOAK=1, which `make soak` sets.
package soak

import "os"

// On reports whether this run is a soak.
func On() bool { return os.Getenv("AUTHSVC_SOAK") == "1" }

// Count gives long in a soak, and ordinary otherwise.
func Count(ordinary, long int) int {
	if On() {
		return long
	}
	return ordinary
}
