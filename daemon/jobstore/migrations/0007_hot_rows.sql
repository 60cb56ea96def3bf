-- What a job's record touches, again and again, is little.

-- The place of a job is written with its definition: worked out of that, it was parsed
-- for each change of a job's state. Jobs that have ended before this have none.
DROP INDEX jobs_place;
ALTER TABLE jobs DROP COLUMN place;
ALTER TABLE jobs ADD COLUMN place TEXT NOT NULL DEFAULT '';
UPDATE jobs SET place = CASE WHEN json_valid(definition)
    THEN trim(coalesce(definition ->> '$.credential', '') || ' ' || coalesce(definition ->> '$.region', '')) ELSE '' END
    WHERE state IN ('available', 'running', 'retryable');
CREATE INDEX jobs_place ON jobs (place, priority, ready_at, id) WHERE ready_at IS NOT NULL;

-- The steps that a job is to have, a JSON array of their names. Each has its row from
-- when it begins; those of older jobs had one before, as pending.
ALTER TABLE jobs ADD COLUMN steps TEXT;

-- A job has ended when it has a time of its end. SQLite writes an index anew for each
-- change of a column that it is about, if only in its condition: not of the state then.
DROP INDEX jobs_open_rotation;
CREATE UNIQUE INDEX jobs_open_rotation ON jobs (grp) WHERE kind = 'rotate' AND finished_at IS NULL;
DROP INDEX jobs_open;
CREATE INDEX jobs_open ON jobs (grp) WHERE finished_at IS NULL;
