package jobstore

// note has [Store.Tell] tell that something of a group has changed: a generation, a
// job, a difference, or whether an event is parked. Whatever changes one of these
// notes it; the tests see to that by triggers on the tables.
func (t *tx) note(group string) { t.changed = append(t.changed, group) }

// change runs a statement that changes rows of one of those tables, notes their
// groups, and returns how many rows it changed.
func (t *tx) change(query string, args ...any) (int, error) {
	rows, err := t.query(query+` RETURNING grp`, args...)
	groups, err := collect(rows, err, scanString)
	t.wrote = t.wrote || len(groups) > 0
	t.changed = append(t.changed, groups...)
	return len(groups), err
}

// changeJobs is change for a statement on jobs, and returns which it has changed.
func (t *tx) changeJobs(query string, args ...any) ([]jobRef, error) {
	rows, err := t.query(query+` RETURNING id, grp`, args...)
	jobs, err := collect(rows, err, scanJobRef)
	t.wrote = t.wrote || len(jobs) > 0
	for _, j := range jobs {
		t.note(j.group)
	}
	return jobs, err
}
