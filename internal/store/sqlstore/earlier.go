package sqlstore

import (
	"context"
	"strings"
)

// commitTimes is the version that brought revocations.committed_at.
const commitTimes = 3

// earlier puts a statement into the words of the oldest schema that this program serves on. What the statements gained since
// stands here and nowhere else; the number of parameters stays.
func earlier() *strings.Replacer {
	return strings.NewReplacer(
		`(kind, id, not_before, expires_at, committed_at) VALUES (?, ?, ?, ?, ?)`,
		`(kind, id, not_before, expires_at) SELECT CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BIGINT), CAST(? AS BIGINT) WHERE CAST(? AS BIGINT) > 0`,
		`(kind, id, not_before, expires_at, committed_at) SELECT kind, id, not_before, expires_at, committed_at FROM lost`,
		`(kind, id, not_before, expires_at) SELECT kind, id, not_before, expires_at FROM lost`,
		`COALESCE(r.committed_at, 0)`, `0`,
	)
}

// fit gives a statement's text for the schema that the database has.
func (d *dialect) fit(query string) string {
	if d.version.Load() >= commitTimes {
		return query
	}
	return d.earlier.Replace(query)
}

// notice looks whether somebody has migrated the database since it was opened with a schema older than this program's. It is
// called with each read of the revocation log, which every commit causes, so that a running server needs no restart. Until
// then it works by the earlier texts, which hold on the newer schema, too. What keeps it from looking keeps the next read.
func (db *DB) notice(ctx context.Context) {
	if db.words.version.Load() >= int64(db.words.newest()) {
		return
	}
	e, err := follow(ctx, db, func(q queries) (extent, error) {
		return db.words.extent(func(query string) scanner { return q.row(query) })
	})
	if err == nil {
		db.words.version.Store(int64(e.version))
	}
}
