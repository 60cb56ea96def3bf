package jobstore

import (
	"context"
	"fmt"
	"time"
)

// pruneChunk is how many rows of a table one transaction of Prune removes.
const pruneChunk = 500

// The file is made smaller when more than one part in freeShare of its pages, and
// more than freePages, are free: until one part in keptShare is, for what comes
// next. vacuumChunk is how many pages one transaction gives back. What retention
// removes from day to day never comes near that; a shortened retention does.
const (
	freeShare   = 4
	keptShare   = 8
	freePages   = 1000 // 4 MB
	vacuumChunk = 250
)

// keepLogins is how many logins to each token are kept whatever their age:
// more than LoginAllowed looks at.
const keepLogins = 20

// Prune removes what ended before the given time, and returns how many rows of
// jobs, events and logins that were: finished jobs with their steps and
// triggers, events that nobody is to be told of any more, and all but the latest
// logins. Triggers of force values, generations and the audit trail stay for ever.
// Where much of the file is free then, the file is made smaller. All of it is done
// in short transactions, so that others can write in between.
func (s *Store) Prune(ctx context.Context, before time.Time) (n int, err error) {
	for _, prune := range []func(*tx, time.Time) (int, error){(*tx).pruneJobs, (*tx).pruneEvents, (*tx).pruneLogins, (*tx).pruneTriggers} {
		for chunk := pruneChunk; chunk >= pruneChunk; n += chunk {
			if err := ctx.Err(); err != nil {
				return n, fmt.Errorf("prune: %w", err)
			}
			err := s.write(ctx, func(t *tx) (err error) {
				chunk, err = prune(t, before)
				return err
			})
			if err != nil {
				return n, fmt.Errorf("prune: %w", err)
			}
		}
	}
	if err := s.shrink(ctx); err != nil {
		return n, fmt.Errorf("make the database smaller: %w", err)
	}
	return n, nil
}

// shrink gives free pages back to the file system if there are many. A file that
// was made without the means for that, auto_vacuum, stays as large as it is.
func (s *Store) shrink(ctx context.Context) error {
	before := 0 // free pages; 0: it has not begun
	for more := true; more; {
		was := before
		if err := ctx.Err(); err != nil {
			return err
		}
		err := s.write(ctx, func(t *tx) error {
			var mode, pages, free int
			for pragma, dest := range map[string]*int{"auto_vacuum": &mode, "page_count": &pages, "freelist_count": &free} {
				if err := t.row("PRAGMA "+pragma, nil, dest); err != nil {
					return err
				}
			}
			const incremental = 2
			least := pages / keptShare
			if was == 0 {
				least = max(pages/freeShare, freePages)
			}
			if more = mode == incremental && free > least && free != was; !more {
				return nil
			}
			before = free
			// A step of the statement frees a page.
			rows, err := t.query(fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumChunk))
			_, err = collect(rows, err, func(scanner) (struct{}, error) { return struct{}{}, nil })
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) pruneJobs(before time.Time) (int, error) {
	rows, err := t.query(`SELECT id, grp FROM jobs WHERE finished_at < ? ORDER BY finished_at LIMIT ?`, millis(before), pruneChunk)
	jobs, err := collect(rows, err, scanJobRef)
	if err != nil {
		return 0, err
	}
	for _, j := range jobs {
		if _, err := t.exec(`DELETE FROM triggers WHERE job_id = ? AND substr(unique_key, 1, 6) <> 'force:'`, j.id); err != nil {
			return 0, err
		}
		n, err := t.exec(`DELETE FROM jobs WHERE id = ? AND state = 'discarded'`, j.id)
		if n > 0 {
			t.note(j.group)
		} else if err == nil {
			_, err = t.exec(`DELETE FROM jobs WHERE id = ?`, j.id)
		}
		if err != nil {
			return 0, err
		}
	}
	return len(jobs), nil
}

func (t *tx) pruneEvents(before time.Time) (int, error) {
	return t.exec(`DELETE FROM outbox WHERE id IN (SELECT o.id FROM outbox o WHERE (o.sent_at < ?1 OR o.state = 'local' AND o.occurred_at < ?1)
		AND NOT EXISTS (SELECT 1 FROM hooks h WHERE `+hookEvents+`) LIMIT ?2)`, millis(before), pruneChunk)
}

func (t *tx) pruneLogins(before time.Time) (int, error) {
	return t.exec(`DELETE FROM pin_attempts WHERE id IN (SELECT p.id FROM pin_attempts p WHERE p.at < ?1
		AND (SELECT count(*) FROM (SELECT 1 FROM pin_attempts q WHERE q.hsm = p.hsm AND q.id > p.id LIMIT ?2)) = ?2 LIMIT ?3)`,
		millis(before), keepLogins, pruneChunk)
}

// pruneTriggers removes what was marked as seen without a job.
func (t *tx) pruneTriggers(before time.Time) (int, error) {
	return t.exec(`DELETE FROM triggers WHERE (grp, unique_key) IN (SELECT grp, unique_key FROM triggers
		WHERE job_id IS NULL AND at < ? AND substr(unique_key, 1, 6) <> 'force:' LIMIT ?)`, millis(before), pruneChunk)
}
