-- Indexes for ten thousand groups and years of jobs: nothing that is looked at
-- often is found by reading a whole table.

-- Generations whose material ends, as long as something can be decrypted under
-- them; and when a group was last rotated.
CREATE INDEX generations_ending ON generations (grp)
    WHERE valid_to IS NOT NULL AND stage IN ('active', 'previous')
        AND disabled_at IS NULL AND material_deleted_at IS NULL AND deletion_date IS NULL;
CREATE INDEX generations_rotated ON generations (grp, activated_at) WHERE stage IN ('active', 'previous');

-- The latest time that byokd has written of itself into a generation, and of
-- triggers: what lies in the future was written while the clock was ahead.
CREATE INDEX generations_latest ON generations (max(coalesce(activated_at, 0), coalesce(left_at, 0), coalesce(warned_valid_to - warned_days * 86400000, 0)));
CREATE INDEX triggers_at ON triggers (at);

-- What is open of a group's jobs, and what was given up, among all that it had.
CREATE INDEX jobs_open ON jobs (grp) WHERE state IN ('available', 'running', 'retryable');
CREATE INDEX jobs_discarded ON jobs (grp) WHERE state = 'discarded';
