-- Several servers on one database.

-- Which server's history the epoch belongs to: PostgreSQL's system identifier and timeline; empty for SQLite.
ALTER TABLE installation ADD COLUMN lineage TEXT NOT NULL DEFAULT '';

-- The servers that run, as each of them says every few seconds.
CREATE TABLE instances (
    id         TEXT    PRIMARY KEY, -- random, one for each start of a process
    host       TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at    INTEGER NOT NULL,    -- the database's time of the last sign of life
    clock      INTEGER NOT NULL,    -- what the process's clock said then
    epoch      BLOB    NOT NULL,    -- up to where it has read the revocation log: epoch and position
    position   INTEGER NOT NULL,
    lag        INTEGER NOT NULL     -- microseconds since the start of its last completed read
) STRICT;
CREATE INDEX instances_seen ON instances (seen_at);
