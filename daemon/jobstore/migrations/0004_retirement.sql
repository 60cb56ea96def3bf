-- The end of a generation's life: since when the alias has left it, and since
-- when a person keeps it from retirement.
ALTER TABLE generations ADD COLUMN left_at INTEGER;
ALTER TABLE generations ADD COLUMN kept_at INTEGER;
