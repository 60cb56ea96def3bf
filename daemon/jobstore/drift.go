package jobstore

import (
	"context"
	"fmt"
	"time"
)

// A Difference is one thing that AWS has otherwise than byokd knows or defines.
// In times, zero is none.
type Difference struct {
	Group      string
	KeyID      string
	Kind       string // with the key it names the difference
	Generation *int   // nil: the key is none of the group's generations
	Expected   string
	Found      string
	Message    string // for a person
	Since      time.Time
	RepairAt   time.Time // when its repair was last asked for
}

// Drift returns what the last comparison of each of the groups named, or of all,
// found to differ.
func (s *Store) Drift(ctx context.Context, groups ...string) ([]Difference, error) {
	where, args := among("grp", groups)
	rows, err := s.reader(ctx).query(quick(ctx), `SELECT grp, key_id, kind, generation, expected, found, message, since, repair_at
		FROM drift WHERE `+where+` ORDER BY grp, generation, key_id, kind`, args...)
	list, err := collect(rows, err, func(row scanner) (d Difference, err error) {
		err = row.Scan(&d.Group, &d.KeyID, &d.Kind, &d.Generation, &d.Expected, &d.Found, &d.Message, scanTime(&d.Since), scanTime(&d.RepairAt))
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("read what differs: %w", err)
	}
	return list, nil
}

// SetDrift records in one transaction that the group was compared with AWS at
// the given time and what differed, in the place of what was found before, with
// the events and the jobs that come of it.
func (s *Store) SetDrift(ctx context.Context, group string, at time.Time, found []Difference, events []Event, jobs []NewJob) error {
	err := s.write(ctx, func(t *tx) error {
		n, err := t.exec(`UPDATE groups SET drift_checked = ? WHERE name = ?`, millis(at), group)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNotFound
		}
		if n, err = t.exec(`DELETE FROM drift WHERE grp = ?`, group); err != nil {
			return err
		}
		if n > 0 || len(found) > 0 {
			t.note(group)
		}
		for _, d := range found {
			_, err := t.exec(`INSERT INTO drift (grp, key_id, kind, generation, expected, found, message, since, repair_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
				group, d.KeyID, d.Kind, d.Generation, d.Expected, d.Found, d.Message, millis(d.Since), millis(d.RepairAt))
			if err != nil {
				return fmt.Errorf("%s of %s: %w", d.Kind, d.KeyID, err)
			}
		}
		return t.apply(Change{Events: events, Jobs: jobs})
	})
	if err != nil {
		return fmt.Errorf("record what differs of group %s: %w", group, err)
	}
	return nil
}

// ReportExpiring emits e, which tells that a generation's material ends at
// validTo, unless that was told as many days ahead, or nearer, before; it
// returns whether it did.
func (s *Store) ReportExpiring(ctx context.Context, generation int, validTo time.Time, days int, e Event) (reported bool, err error) {
	err = s.write(ctx, func(t *tx) error {
		reported = false
		n, err := t.exec(`UPDATE generations SET warned_valid_to = ?1, warned_days = ?2 WHERE grp = ?3 AND number = ?4
			AND (warned_valid_to IS DISTINCT FROM ?1 OR warned_days > ?2)`, millis(validTo), days, e.Group, generation)
		if err != nil || n == 0 {
			return err
		}
		t.note(e.Group)
		reported = true
		return t.insertEvent(e)
	})
	if err != nil {
		return false, fmt.Errorf("report that generation %d of %s expires: %w", generation, e.Group, err)
	}
	return reported, nil
}
