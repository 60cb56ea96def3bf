-- Jobs are claimed by the account and Region that they are about: each has request
-- quotas of its own. A place is the credential and the Region of the definition;
-- what is urgent in it comes first.
ALTER TABLE jobs ADD COLUMN expiring INTEGER NOT NULL DEFAULT 0 CHECK (expiring IN (0, 1));
ALTER TABLE jobs ADD COLUMN priority INTEGER GENERATED ALWAYS AS (CASE WHEN urgent = 1 THEN 2 ELSE expiring END) VIRTUAL;
ALTER TABLE jobs ADD COLUMN place TEXT GENERATED ALWAYS AS (CASE WHEN json_valid(definition)
    THEN trim(coalesce(definition ->> '$.credential', '') || ' ' || coalesce(definition ->> '$.region', '')) ELSE '' END) VIRTUAL;

DROP INDEX jobs_ready;
CREATE INDEX jobs_ready ON jobs (ready_at) WHERE ready_at IS NOT NULL;
CREATE INDEX jobs_place ON jobs (place, priority, ready_at, id) WHERE ready_at IS NOT NULL;
