-- byokd's durable memory. Times are Unix milliseconds, UTC. JSON is text.

CREATE TABLE groups (
    name             TEXT PRIMARY KEY CHECK (name <> ''),
    definition       TEXT,                        -- last good one, JSON; null: never a good one
    digest           TEXT NOT NULL DEFAULT '',    -- of the definition
    applied_digest   TEXT NOT NULL DEFAULT '',    -- of the definition that AWS was last made to agree with
    hsm              TEXT NOT NULL DEFAULT '',
    account          TEXT NOT NULL DEFAULT '',
    first_seen       INTEGER,                     -- with a good definition
    enabled_at       INTEGER,                     -- null: the schedule is off
    removed_at       INTEGER,                     -- null: the file is there
    last_tick        INTEGER,                     -- nominal time of the latest tick that was dealt with
    sequence         INTEGER NOT NULL DEFAULT 0,  -- of the latest event
    overdue_reported INTEGER,                     -- due time of the latest Overdue event
    invalid_reported TEXT NOT NULL DEFAULT '',    -- digest of the problems last told of
    old_aliases      TEXT                         -- JSON array: aliases that the definition named before
) STRICT;

CREATE TABLE generations (
    grp                 TEXT NOT NULL REFERENCES groups (name) ON UPDATE CASCADE,
    number              INTEGER NOT NULL CHECK (number >= 0),
    stage               TEXT NOT NULL CHECK (stage IN ('pre-active', 'active', 'previous', 'destroyed')),
    hsm                 TEXT NOT NULL,
    hsm_label           TEXT NOT NULL,
    hsm_id              TEXT NOT NULL,
    generated_at        INTEGER,
    job_id              TEXT NOT NULL,
    region              TEXT NOT NULL,
    account             TEXT NOT NULL,
    key_id              TEXT NOT NULL,
    key_arn             TEXT NOT NULL,
    material_id         TEXT NOT NULL,
    created_at          INTEGER,
    imported_at         INTEGER,
    activated_at        INTEGER,
    valid_to            INTEGER,
    disabled_at         INTEGER,
    material_deleted_at INTEGER,
    deletion_date       INTEGER,
    policy              TEXT NOT NULL,
    tags                TEXT,
    PRIMARY KEY (grp, number)
) STRICT;

CREATE UNIQUE INDEX generations_active ON generations (grp) WHERE stage = 'active';

-- A number, once taken, belongs to one key for ever.
CREATE TRIGGER generations_keep_key BEFORE UPDATE OF hsm_id ON generations
WHEN OLD.hsm_id <> '' AND NEW.hsm_id <> OLD.hsm_id
BEGIN
    SELECT RAISE(ABORT, 'a generation keeps its HSM key');
END;

CREATE TRIGGER generations_keep BEFORE DELETE ON generations
BEGIN
    SELECT RAISE(ABORT, 'generations are kept for ever');
END;

CREATE TABLE jobs (
    id               TEXT PRIMARY KEY CHECK (id <> ''),
    kind             TEXT NOT NULL CHECK (kind IN ('rotate', 'synchronize', 'rollback', 'adopt', 'retire')),
    grp              TEXT NOT NULL REFERENCES groups (name) ON UPDATE CASCADE,
    hsm              TEXT NOT NULL,
    generation       INTEGER NOT NULL CHECK (generation >= 0),
    state            TEXT NOT NULL CHECK (state IN ('available', 'running', 'retryable', 'completed', 'cancelled', 'discarded')),
    cause            TEXT NOT NULL,               -- the job's trigger
    waiting_for      TEXT NOT NULL DEFAULT '' CHECK (waiting_for = '' OR state = 'retryable'),
    definition       TEXT,
    request          TEXT,
    urgent           INTEGER NOT NULL CHECK (urgent IN (0, 1)),
    created_at       INTEGER NOT NULL,
    scheduled_at     INTEGER,                     -- nominal time of the tick
    due_at           INTEGER NOT NULL,
    started_at       INTEGER CHECK (started_at IS NOT NULL OR state <> 'running'),
    finished_at      INTEGER CHECK ((finished_at IS NOT NULL) = (state IN ('completed', 'cancelled', 'discarded'))),
    next_attempt     INTEGER CHECK (next_attempt IS NULL OR state = 'retryable'),
    attempt          INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    error            TEXT NOT NULL DEFAULT '',
    first_failed     INTEGER,
    failure_reported INTEGER,
    ready_at         INTEGER GENERATED ALWAYS AS (CASE state WHEN 'available' THEN due_at WHEN 'retryable' THEN next_attempt END),
    CHECK (state <> 'retryable' OR next_attempt IS NOT NULL OR waiting_for <> '')
) STRICT;

-- At most one rotation of a group is open, and one job of a group runs.
CREATE UNIQUE INDEX jobs_open_rotation ON jobs (grp)
    WHERE kind = 'rotate' AND state IN ('available', 'running', 'retryable');
CREATE UNIQUE INDEX jobs_running ON jobs (grp) WHERE state = 'running';

CREATE INDEX jobs_ready ON jobs (urgent, ready_at, id) WHERE ready_at IS NOT NULL;
CREATE INDEX jobs_group ON jobs (grp, id);
CREATE INDEX jobs_state ON jobs (state, id);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE steps (
    job_id      TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    name        TEXT NOT NULL CHECK (name <> ''),
    position    INTEGER NOT NULL,
    state       TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'skipped', 'failed')),
    started_at  INTEGER,
    finished_at INTEGER,
    message     TEXT NOT NULL,
    data        TEXT,
    PRIMARY KEY (job_id, name)
) STRICT;

-- Everything that ever asked for a job, with the job that it became or joined.
CREATE TABLE triggers (
    grp        TEXT NOT NULL REFERENCES groups (name) ON UPDATE CASCADE,
    unique_key TEXT NOT NULL CHECK (unique_key <> ''),
    job_id     TEXT REFERENCES jobs (id) ON DELETE SET NULL,  -- null: seen, and no job made
    cause      TEXT NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (grp, unique_key)
) STRICT;

CREATE INDEX triggers_job ON triggers (job_id);

-- Events; ids ascend in the order in which they are to be sent.
CREATE TABLE outbox (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id     TEXT NOT NULL UNIQUE CHECK (event_id <> ''),
    grp          TEXT NOT NULL REFERENCES groups (name) ON UPDATE CASCADE,
    sequence     INTEGER NOT NULL,
    detail_type  TEXT NOT NULL,
    detail       TEXT NOT NULL,
    resources    TEXT,
    occurred_at  INTEGER NOT NULL,
    job_id       TEXT NOT NULL,
    region       TEXT NOT NULL,
    account      TEXT NOT NULL,
    credential   TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'parked')),
    attempt      INTEGER NOT NULL DEFAULT 0,
    next_attempt INTEGER CHECK (next_attempt IS NULL OR state = 'pending'),
    sent_at      INTEGER CHECK ((sent_at IS NOT NULL) = (state = 'sent')),
    aws_event_id TEXT NOT NULL DEFAULT '',
    error        TEXT NOT NULL DEFAULT ''
) STRICT;

CREATE INDEX outbox_pending ON outbox (id) WHERE state = 'pending';
CREATE INDEX outbox_waiting ON outbox (grp, next_attempt) WHERE state = 'pending' AND next_attempt IS NOT NULL;
CREATE INDEX outbox_parked ON outbox (id) WHERE state = 'parked';
CREATE INDEX outbox_group ON outbox (grp, id);
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;

CREATE TABLE audit (
    id     INTEGER PRIMARY KEY AUTOINCREMENT,
    at     INTEGER NOT NULL,
    grp    TEXT NOT NULL,
    job_id TEXT NOT NULL,
    actor  TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

CREATE INDEX audit_group ON audit (grp, id);
CREATE INDEX audit_job ON audit (job_id, id) WHERE job_id <> '';

CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit trail is append-only');
END;

CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit trail is append-only');
END;

-- REPLACE deletes without a delete trigger.
CREATE TRIGGER audit_no_replace BEFORE INSERT ON audit
WHEN EXISTS (SELECT 1 FROM audit WHERE id = NEW.id)
BEGIN
    SELECT RAISE(ABORT, 'the audit trail is append-only');
END;

-- Attempts to log in to a token, recorded before C_Login; result '' while it is
-- not known, 'permit' for an operator's leave to try again.
CREATE TABLE pin_attempts (
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    hsm          TEXT NOT NULL CHECK (hsm <> ''),
    pin_identity TEXT NOT NULL,
    at           INTEGER NOT NULL,
    ended_at     INTEGER CHECK (ended_at IS NOT NULL OR result = ''),
    result       TEXT NOT NULL CHECK (result IN ('', 'ok', 'incorrect', 'locked', 'error', 'permit'))
) STRICT;

CREATE INDEX pin_attempts_hsm ON pin_attempts (hsm, id);
