package jobstore

import (
	"context"
	"fmt"
	"time"
)

// latest is the expression of the index generations_latest.
const latest = `max(coalesce(activated_at, 0), coalesce(left_at, 0), coalesce(warned_valid_to - warned_days * 86400000, 0))`

// SetBack mends what was written while the clock was ahead of now, and returns
// how many rows that were. Nothing then waits for a time that will not come
// soon: a job or event whose next attempt is further away than longest, which
// no retry is, is due now; a job made in the future counts as made now and is
// due as much later as it was to be; a job's failures count from now; the
// schedule of a group counts from times that have been, and its ticks that were
// obeyed before their time come again, as do warnings that came before theirs. A
// generation that became active in the future did so when its KMS key was
// created, which is AWS's time, or now.
func (s *Store) SetBack(ctx context.Context, now time.Time, longest time.Duration) (n int, err error) {
	err = s.write(ctx, func(t *tx) error {
		at, limit := millis(now), millis(now.Add(longest))
		n = 0
		for _, q := range []struct {
			run   func(query string, args ...any) (int, error)
			query string
			args  []any
		}{
			{t.change, `UPDATE jobs SET next_attempt = ?1 WHERE state = 'retryable' AND next_attempt > ?2`, []any{at, limit}},
			{t.change, `UPDATE jobs SET due_at = ?1 + max(due_at - created_at, 0), created_at = ?1 WHERE state = 'available' AND created_at > ?1`, []any{at}},
			{t.change, `UPDATE jobs SET first_failed = ?1 WHERE state IN ('available', 'running', 'retryable') AND first_failed > ?1`, []any{at}},
			{t.change, `UPDATE jobs SET failure_reported = ?1 WHERE state IN ('available', 'running', 'retryable') AND failure_reported > ?1`, []any{at}},
			{t.exec, `UPDATE outbox SET next_attempt = NULL WHERE state = 'pending' AND next_attempt > ?1`, []any{limit}},
			{t.change, `UPDATE generations SET activated_at = CASE WHEN created_at <= ?1 THEN created_at ELSE ?1 END WHERE ` + latest + ` > ?1 AND activated_at > ?1`, []any{at}},
			{t.change, `UPDATE generations SET left_at = ?1 WHERE ` + latest + ` > ?1 AND left_at > ?1`, []any{at}},
			{t.exec, `DELETE FROM triggers WHERE at > ?1 AND unique_key LIKE 'tick:%'`, []any{at}},
			{t.exec, `UPDATE groups SET first_seen = ?1 WHERE first_seen > ?1`, []any{at}},
			{t.exec, `UPDATE groups SET enabled_at = ?1 WHERE enabled_at > ?1`, []any{at}},
			{t.exec, `UPDATE groups SET last_tick = ?1 WHERE last_tick > ?1`, []any{at}},
			{t.exec, `UPDATE groups SET overdue_reported = NULL WHERE overdue_reported > ?1`, []any{at}},
			{t.exec, `UPDATE groups SET drift_checked = ?1 WHERE drift_checked > ?1`, []any{at}},
			{t.change, `UPDATE drift SET since = min(since, ?1), repair_at = min(repair_at, ?1) WHERE since > ?1 OR repair_at > ?1`, []any{at}},
			{t.change, `UPDATE generations SET warned_valid_to = NULL, warned_days = 0 WHERE ` + latest + ` > ?1 AND warned_valid_to - warned_days * 86400000 > ?1`, []any{at}},
		} {
			changed, err := q.run(q.query, q.args...)
			if err != nil {
				return err
			}
			n += changed
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("mend what was written while the clock was ahead: %w", err)
	}
	return n, nil
}
