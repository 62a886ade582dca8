package sqlstore_test

import (
	"database/sql"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/authsvc/authsvc/internal/session"
	"github.com/authsvc/authsvc/internal/store/sqlstore"
)

// BenchmarkRotateBare is the limit: one conditional update of one row in a transaction of its own.
func BenchmarkRotateBare(b *testing.B) {
	db, err := sql.Open("sqlite", "file:"+filepath.Join(b.TempDir(), "db")+"?_pragma=journal_mode(wal)&_pragma=synchronous(full)&_txlock=immediate")
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, q := range []string{`CREATE TABLE s (id TEXT PRIMARY KEY, head INTEGER, hash BLOB, used INTEGER)`, `INSERT INTO s VALUES ('a', 1, x'00', 0)`} {
		if _, err := db.Exec(q); err != nil {
			b.Fatal(err)
		}
	}
	stmt, err := db.Prepare(`UPDATE s SET head = head + 1, used = ? WHERE id = ? AND head = ? AND hash = ?`)
	if err != nil {
		b.Fatal(err)
	}
	for g := int64(1); b.Loop(); g++ {
		tx, err := db.Begin()
		if err != nil {
			b.Fatal(err)
		}
		if _, err := tx.Stmt(stmt).Exec(time.Now().UnixMicro(), "a", g, []byte{0}); err != nil {
			b.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRedeem is the same through the store.
func BenchmarkRedeem(b *testing.B) {
	f := benchFixture(b)
	s := f.login(b, b)
	for g := uint32(1); b.Loop(); g++ {
		if out, err := f.Sessions().Redeem(b.Context(), present(s, g)); err != nil || !out.Rotated {
			b.Fatal(out, err)
		}
	}
}

// BenchmarkRedeemTogether is 16 callers with a session each.
func BenchmarkRedeemTogether(b *testing.B) {
	f := benchFixture(b)
	var sessions [16]session.Session
	for i := range sessions {
		sessions[i] = f.login(b, b)
	}
	var next atomic.Int32
	b.SetParallelism(8)
	b.RunParallel(func(pb *testing.PB) {
		s := sessions[(next.Add(1)-1)%16]
		for g := uint32(1); pb.Next(); g++ {
			if _, err := f.Sessions().Redeem(b.Context(), present(s, g)); err != nil {
				b.Error(err)
			}
		}
	})
}

// BenchmarkOpen is what the store adds to the start of the server.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "db")
	for i := 0; b.Loop(); i++ {
		db, err := sqlstore.Open(b.Context(), sqlstore.Options{Path: path})
		if err != nil {
			b.Fatal(fmt.Sprint(i), err)
		}
		if err := db.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func benchFixture(b *testing.B) *fixture {
	b.Helper()
	db, err := sqlstore.Open(b.Context(), sqlstore.Options{Path: filepath.Join(b.TempDir(), "db")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	f := &fixture{DB: db}
	f.seed(b, "app")
	return f
}
