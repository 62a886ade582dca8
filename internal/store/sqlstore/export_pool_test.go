package sqlstore

import (
	"context"
	"database/sql"
)

// HoldReaders takes every connection of the pool that reads, until release is called.
func (db *DB) HoldReaders(ctx context.Context) (release func(), err error) {
	var held []*sql.Conn
	release = func() {
		for _, c := range held {
			_ = c.Close()
		}
	}
	for range db.readers.source.Stats().MaxOpenConnections {
		c, err := db.readers.source.Conn(ctx)
		if err != nil {
			release()
			return nil, err
		}
		held = append(held, c)
	}
	return release, nil
}
