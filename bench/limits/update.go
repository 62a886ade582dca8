package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// updated is how many rows the bare update has; no two calls at a time want the same.
const updated = 1024

// update is sign, and before that a bare conditional update of one row by its key, as its own transaction, that gives back what a
// token says. Its arguments are the bytes of an answer and the URL of a PostgreSQL, in which it makes a table; the connections
// have the bounds that the service's have.
func update(args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	source, err := rows(context.Background(), args[1])
	if err != nil {
		return err
	}
	var next atomic.Int64
	return serveGRPC(func(ctx context.Context, in *wrapperspb.BytesValue) (*wrapperspb.BytesValue, error) {
		var account, scope, audiences string
		var authTime, endsAt int64
		if err := source.QueryRow(ctx, `UPDATE rotated SET head = head + 1, used_at = $3, ip = $4, user_agent = $5
			WHERE id = $1 AND head < $2 AND ends_at > $3 RETURNING account, scope, audiences, auth_time, ends_at`,
			fmt.Sprint("row-", next.Add(1)%updated), int64(1)<<32, time.Now().UnixMicro(), "127.0.0.1", "grpc-go").
			Scan(&account, &scope, &audiences, &authTime, &endsAt); err != nil {
			return nil, err
		}
		digest := sha256.Sum256(in.GetValue())
		signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, digest[:])
		if err != nil {
			return nil, err
		}
		out := make([]byte, size)
		copy(out, signature)
		return wrapperspb.Bytes(out), nil
	})
}

// rows makes the table and its rows.
func rows(ctx context.Context, url string) (*pgxpool.Pool, error) {
	c, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		c.ConnConfig.RuntimeParams[name] = "5000"
	}
	c.ConnConfig.RuntimeParams["default_transaction_isolation"] = "read committed"
	source, err := pgxpool.NewWithConfig(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, q := range []string{
		`CREATE TABLE rotated (id text COLLATE "C" PRIMARY KEY, head bigint NOT NULL, used_at bigint NOT NULL, ends_at bigint NOT NULL, account text NOT NULL,
			scope text NOT NULL, audiences text NOT NULL, auth_time bigint NOT NULL, ip text NOT NULL, user_agent text NOT NULL) WITH (fillfactor = 80)`,
		fmt.Sprintf(`INSERT INTO rotated SELECT 'row-' || i, 1, 0, 1::bigint << 60, repeat('a', 22), '', '["https://api.bench.example"]', 1, '', ''
			FROM generate_series(0, %d) i`, updated-1),
	} {
		if _, err := source.Exec(ctx, q); err != nil {
			return nil, err
		}
	}
	return source, nil
}
