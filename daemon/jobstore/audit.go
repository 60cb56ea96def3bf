package jobstore

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// An AuditEntry is one line of the audit trail, which only grows.
type AuditEntry struct {
	At     time.Time // zero on writing: now
	Group  string
	JobID  string
	Actor  string // who or what asked
	Action string // verb and object
	Detail string // for a person; never a secret

	Definition string // digest of the definition that was in force; "": of none
}

// insertAudit writes entries; group and jobID stand in where theirs are empty.
func (t *tx) insertAudit(group, jobID string, entries []AuditEntry) error {
	for _, a := range entries {
		if a.At.IsZero() {
			a.At = t.now
		}
		_, err := t.exec(`INSERT INTO audit (at, grp, job_id, actor, action, detail, definition) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			millis(a.At), cmp.Or(a.Group, group), cmp.Or(a.JobID, jobID), a.Actor, a.Action, a.Detail, a.Definition)
		if err != nil {
			return fmt.Errorf("audit %q: %w", a.Action, err)
		}
	}
	return nil
}

// Record writes audit entries that belong to no change.
func (s *Store) Record(ctx context.Context, entries ...AuditEntry) error {
	return s.write(ctx, func(t *tx) error { return t.insertAudit("", "", entries) })
}

// An AuditFilter chooses audit entries; empty fields choose all.
type AuditFilter struct {
	Group string
	JobID string
	Limit int // 0: none
}

// Audit returns audit entries, newest first. Entries of a group that was
// renamed stay under the name that it had.
func (s *Store) Audit(ctx context.Context, f AuditFilter) ([]AuditEntry, error) {
	query, args := `SELECT at, grp, job_id, actor, action, detail, definition FROM audit WHERE true`, []any{}
	if f.Group != "" {
		query, args = query+" AND grp = ?", append(args, f.Group)
	}
	if f.JobID != "" {
		query, args = query+" AND job_id = ?", append(args, f.JobID)
	}
	rows, err := s.reader(ctx).query(ctx, query+` ORDER BY id DESC LIMIT ?`, append(args, limit(f.Limit))...)
	entries, err := collect(rows, err, func(row scanner) (a AuditEntry, err error) {
		err = row.Scan(scanTime(&a.At), &a.Group, &a.JobID, &a.Actor, &a.Action, &a.Detail, &a.Definition)
		return a, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the audit trail: %w", err)
	}
	return entries, nil
}
