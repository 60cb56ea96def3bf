-- Audit rows name the definition that was in force.
ALTER TABLE audit ADD COLUMN definition TEXT NOT NULL DEFAULT '';  -- its digest

-- Events that only hooks are told of: state 'local'. A CHECK cannot be changed
-- in place.
CREATE TABLE outbox_new (
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
    state        TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'sent', 'parked', 'local')),
    attempt      INTEGER NOT NULL DEFAULT 0,
    next_attempt INTEGER CHECK (next_attempt IS NULL OR state = 'pending'),
    sent_at      INTEGER CHECK ((sent_at IS NOT NULL) = (state = 'sent')),
    aws_event_id TEXT NOT NULL DEFAULT '',
    error        TEXT NOT NULL DEFAULT ''
) STRICT;

INSERT INTO outbox_new (id, event_id, grp, sequence, detail_type, detail, resources, occurred_at, job_id, region, account,
    credential, state, attempt, next_attempt, sent_at, aws_event_id, error)
SELECT id, event_id, grp, sequence, detail_type, detail, resources, occurred_at, job_id, region, account,
    credential, state, attempt, next_attempt, sent_at, aws_event_id, error FROM outbox;

DROP TABLE outbox;
ALTER TABLE outbox_new RENAME TO outbox;

CREATE INDEX outbox_pending ON outbox (id) WHERE state = 'pending';
CREATE INDEX outbox_waiting ON outbox (grp, next_attempt) WHERE state = 'pending' AND next_attempt IS NOT NULL;
CREATE INDEX outbox_parked ON outbox (id) WHERE state = 'parked';
CREATE INDEX outbox_group ON outbox (grp, id);
CREATE INDEX outbox_sent ON outbox (sent_at) WHERE sent_at IS NOT NULL;
CREATE INDEX outbox_local ON outbox (occurred_at) WHERE state = 'local';
CREATE INDEX outbox_type ON outbox (detail_type, id);

-- The commands of [hooks], by the detail-type that they are put on, or '*', and
-- how far each has come.
CREATE TABLE hooks (
    name     TEXT PRIMARY KEY CHECK (name <> ''),
    position INTEGER NOT NULL,             -- outbox.id of the last event that the command was run for
    ran_at   INTEGER,                      -- null: never
    event_id TEXT NOT NULL DEFAULT '',     -- of the last run
    error    TEXT NOT NULL DEFAULT ''      -- of the last run; '': it succeeded, or a person has been at work since
) STRICT;
