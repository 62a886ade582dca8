package main

import (
	"database/sql"
	"strconv"
	"time"

	_ "modernc.org/sqlite" // the driver
)

// rotate is the bare transaction of a rotation: one conditional update of one row, WAL, synchronous=FULL. Its arguments are
// a new file's path and how often a round does it.
func rotate(args []string) error {
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	db, err := sql.Open("sqlite", "file:"+args[0]+"?_pragma=journal_mode(wal)&_pragma=synchronous(full)&_txlock=immediate")
	if err != nil {
		return err
	}
	db.SetMaxOpenConns(1)
	for _, q := range []string{`CREATE TABLE s (id TEXT PRIMARY KEY, head INTEGER, hash BLOB, used INTEGER)`, `INSERT INTO s VALUES ('a', 1, x'00', 0)`} {
		if _, err := db.Exec(q); err != nil {
			return err
		}
	}
	update, err := db.Prepare(`UPDATE s SET head = head + 1, used = ? WHERE id = ? AND head = ? AND hash = ?`)
	if err != nil {
		return err
	}
	head := 0
	return rounds(n, func() error {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		defer tx.Rollback()
		head++
		if _, err := tx.Stmt(update).Exec(time.Now().UnixMicro(), "a", head, []byte{0}); err != nil {
			return err
		}
		return tx.Commit()
	})
}
