// Package audit owns the audit log's reading side: what was recorded, how it is listed and how long it is kept. The
// writing side is journal.Record, which every change commits beside itself.
package audit

import (
	"context"
	"time"

	"github.com/authsvc/authsvc/internal/journal"
)

// Record is one record as stored.
type Record struct {
	ID   int64
	Time time.Time
	journal.Record
}

// Filter selects records; the zero Filter selects all.
type Filter struct {
	Event    string
	Subjects []string // any one of them; empty selects all
	Since    time.Time
}

// Store reads and prunes the audit log.
type Store interface {
	// List gives records newest first, before the id (exclusive; zero starts at the newest), at most limit.
	List(ctx context.Context, f Filter, before int64, limit int) ([]Record, error)
	// Prune deletes records older than keep, at most limit; it gives how many.
	Prune(ctx context.Context, keep time.Duration, limit int) (int, error)
}
