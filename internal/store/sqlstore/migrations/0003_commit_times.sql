-- The revocation log says when an entry was committed. Until now that was told from when the entry expires, and nobody knew it of
-- a signing key's, which does not. And the audit log is found by its events.
--
-- oldest: 2

ALTER TABLE revocations ADD COLUMN committed_at INTEGER NOT NULL DEFAULT 0; -- 0 for one that an older program appended

-- What became of each step of the migrations from this one on. From here on schema_version holds the oldest program that may
-- run on the schema, since that is how programs of version 2 read it; the newest version here is that of the schema.
CREATE TABLE schema_steps (
    version   INTEGER NOT NULL,
    step      INTEGER NOT NULL,           -- 0 is the change itself
    reached   INTEGER NOT NULL DEFAULT 0, -- a backfill: up to which row it is done
    first_row INTEGER NOT NULL DEFAULT 0, -- and between which rows it had to work when it began
    last_row  INTEGER NOT NULL DEFAULT 0,
    done_at   INTEGER NOT NULL DEFAULT 0, -- 0 while it is not
    PRIMARY KEY (version, step)
) STRICT;

-- index: audit_event
CREATE INDEX audit_event ON audit (event, id);

-- backfill: revocations by position
UPDATE revocations SET committed_at = CASE WHEN expires_at > 0 THEN expires_at - 1020000000 ELSE COALESCE((SELECT MIN(a.time) FROM audit a
    WHERE a.subject = revocations.id AND a.event = 'key.revoke' AND a.outcome = 'ok'), 0) END
    WHERE position > ? AND position <= ? AND committed_at = 0
