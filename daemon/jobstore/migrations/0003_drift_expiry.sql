-- The last warning of a generation's expiry: for which ValidTo, and how many
-- days ahead.
ALTER TABLE generations ADD COLUMN warned_valid_to INTEGER;
ALTER TABLE generations ADD COLUMN warned_days INTEGER NOT NULL DEFAULT 0;

-- When AWS was last compared with what byokd knows; null: never.
ALTER TABLE groups ADD COLUMN drift_checked INTEGER;

-- What the last comparison found to differ.
CREATE TABLE drift (
    grp         TEXT NOT NULL REFERENCES groups (name) ON UPDATE CASCADE,
    key_id      TEXT NOT NULL,
    kind        TEXT NOT NULL CHECK (kind <> ''),
    generation  INTEGER,           -- null: the key is none of the group's generations
    expected    TEXT NOT NULL,
    found       TEXT NOT NULL,
    message     TEXT NOT NULL,
    since       INTEGER NOT NULL,
    repair_at   INTEGER,           -- when its repair was last asked for
    PRIMARY KEY (grp, key_id, kind)
) STRICT;
