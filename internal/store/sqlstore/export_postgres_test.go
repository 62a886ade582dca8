package sqlstore

import "time"

// Driven makes PostgreSQL take a test's clock for its own.
func Driven(o Options, now func() time.Time) Options {
	o.driven = now
	return o
}
