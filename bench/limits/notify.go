package main

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// notified gives a way to tell all processes that use the same database, this one too: an insertion whose commit sends the entry
// by NOTIFY, in one statement. What comes is given to hear. The database has the table told.
func notified(url string, hear func([]byte)) (tell func([]byte), err error) {
	ctx := context.Background()
	source, err := pgxpool.New(ctx, url)
	if err != nil {
		return nil, err
	}
	listener, err := pgx.ConnectConfig(ctx, source.Config().ConnConfig)
	if err != nil {
		return nil, err
	}
	if _, err := listener.Exec(ctx, `LISTEN told`); err != nil {
		return nil, err
	}
	go func() {
		for {
			n, err := listener.WaitForNotification(ctx)
			giveUp(err)
			entry, err := hex.DecodeString(n.Payload)
			giveUp(err)
			hear(entry)
		}
	}()
	return func(in []byte) {
		_, err := source.Exec(ctx, `WITH entry AS (INSERT INTO told (entry) VALUES ($1) RETURNING entry) SELECT pg_notify('told', encode(entry, 'hex')) FROM entry`, in)
		giveUp(err)
	}, nil
}

// giveUp ends the process: a limit that failed measures nothing.
func giveUp(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "limits:", err)
		os.Exit(1)
	}
}
