-- Times are unix microseconds, 0 for "none"; lists are JSON arrays of strings.

-- One row for the whole installation.
CREATE TABLE installation (
    only_row        INTEGER PRIMARY KEY CHECK (only_row = 1),
    epoch           BLOB    NOT NULL,           -- random id of this history of the database
    not_before      INTEGER NOT NULL DEFAULT 0, -- cut-off of everything
    client_revision INTEGER NOT NULL DEFAULT 1, -- raised by every change of any client
    key_version     INTEGER NOT NULL DEFAULT 0  -- version of the set of signing keys
) STRICT;

CREATE TABLE accounts (
    id            TEXT    PRIMARY KEY,
    username      TEXT    NOT NULL UNIQUE,
    password_hash TEXT    NOT NULL,
    state         TEXT    NOT NULL,
    version       INTEGER NOT NULL,
    not_before    INTEGER NOT NULL DEFAULT 0,
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE clients (
    id                TEXT    PRIMARY KEY,
    name              TEXT    NOT NULL,
    kind              TEXT    NOT NULL,
    secrets           TEXT    NOT NULL,
    audiences         TEXT    NOT NULL,
    default_audiences TEXT    NOT NULL,
    scopes            TEXT    NOT NULL,
    default_scopes    TEXT    NOT NULL,
    access_ttl        INTEGER NOT NULL, -- microseconds, as the three below
    session_idle_ttl  INTEGER NOT NULL,
    session_ttl       INTEGER NOT NULL,
    reuse_window      INTEGER NOT NULL,
    version           INTEGER NOT NULL,
    not_before        INTEGER NOT NULL DEFAULT 0,
    created_at        INTEGER NOT NULL,
    updated_at        INTEGER NOT NULL
) STRICT;

-- A redemption changes no indexed column, so that it writes one page.
CREATE TABLE sessions (
    id           TEXT    PRIMARY KEY,
    account      TEXT    NOT NULL,
    client       TEXT    NOT NULL,
    secret_hash  BLOB    NOT NULL,
    key_id       INTEGER NOT NULL,
    base         INTEGER NOT NULL,
    head         INTEGER NOT NULL,
    low          INTEGER NOT NULL,
    redeemed_at  INTEGER NOT NULL,
    device       BLOB    NOT NULL, -- 8 bytes of the network's hash, 8 of the user agent's
    elsewhere    INTEGER NOT NULL,
    elsewhere_of INTEGER NOT NULL,
    forks        INTEGER NOT NULL,
    auth_time    INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL,
    idle_ttl     INTEGER NOT NULL,
    idle_ends_at INTEGER NOT NULL,
    ends_at      INTEGER NOT NULL,
    ended_at     INTEGER,          -- NULL while live
    end_reason   TEXT    NOT NULL DEFAULT '',
    scope        TEXT    NOT NULL,
    audiences    TEXT    NOT NULL,
    amr          TEXT    NOT NULL,
    device_name  TEXT    NOT NULL,
    ip           TEXT    NOT NULL,
    user_agent   TEXT    NOT NULL,
    sweep_at     INTEGER NOT NULL  -- never after the true end; a sweep moves it on where the session was used since
) STRICT;
CREATE INDEX sessions_account ON sessions (account, ended_at, created_at, id);
CREATE INDEX sessions_client  ON sessions (client, ended_at, auth_time);
CREATE INDEX sessions_live    ON sessions (created_at, id, auth_time) WHERE ended_at IS NULL;
CREATE INDEX sessions_sweep   ON sessions (sweep_at);

-- Ends that a cut-off began and a sweep has still to finish.
CREATE TABLE pending_ends (
    kind       TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    not_before INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT;

-- AUTOINCREMENT: a position is never given twice.
CREATE TABLE revocations (
    position   INTEGER PRIMARY KEY AUTOINCREMENT,
    kind       TEXT    NOT NULL,
    id         TEXT    NOT NULL,
    not_before INTEGER NOT NULL,
    expires_at INTEGER NOT NULL -- 0 for a signing key
) STRICT;
CREATE INDEX revocations_expiry ON revocations (expires_at, position);

CREATE TABLE signing_keys (
    id           TEXT    PRIMARY KEY,
    state        TEXT    NOT NULL,
    public       BLOB    NOT NULL,
    sealed       BLOB    NOT NULL,
    created_at   INTEGER NOT NULL,
    published_at INTEGER NOT NULL,
    activated_at INTEGER NOT NULL,
    retired_at   INTEGER NOT NULL,
    gone_at      INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX signing_keys_active ON signing_keys (state) WHERE state = 'active';

CREATE TABLE audit (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    time       INTEGER NOT NULL,
    event      TEXT    NOT NULL,
    outcome    TEXT    NOT NULL,
    reason     TEXT    NOT NULL,
    actor      TEXT    NOT NULL,
    subject    TEXT    NOT NULL,
    client     TEXT    NOT NULL,
    session    TEXT    NOT NULL,
    ip         TEXT    NOT NULL,
    user_agent TEXT    NOT NULL,
    request_id TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_time    ON audit (time, id);
CREATE INDEX audit_subject ON audit (subject, id);
