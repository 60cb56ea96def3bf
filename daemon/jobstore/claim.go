package jobstore

import (
	"context"
	"fmt"
	"time"
)

// Skip names what Claim leaves alone for now.
type Skip struct {
	HSMs   []string // unavailable ones
	Groups []string // those whose account and Region has enough to do
	Gone   []string // those whose file is gone: of their jobs only one goes on that may have moved the alias
}

// inTheWay is true of a job j that another one of its group keeps waiting, which
// may have moved the alias and has not ended: no other job moves the alias
// meanwhile, nor retires a key, but for what a person asks for about one.
const inTheWay = `(j.kind IN ('rotate', 'rollback') OR j.kind = 'retire' AND j.urgent = 0) AND EXISTS
	(SELECT 1 FROM jobs o JOIN steps ON steps.job_id = o.id WHERE o.grp = j.grp AND o.id <> j.id
		AND o.state IN ('available', 'retryable') AND steps.name = 'activate' AND steps.state <> 'pending')`

// Claim makes the next due job running and returns it with its steps; nil when
// there is none. Urgent ones come first, then the one whose due time or next
// attempt is longest past. A group has at most one job running. Behind one that
// may have moved the alias others that concern it wait, also while that one waits
// for its next attempt.
func (s *Store) Claim(ctx context.Context, now time.Time, skip Skip) (*Job, error) {
	var job *Job
	err := s.write(ctx, func(t *tx) error {
		skipped, args := "", []any{millis(now)}
		if len(skip.HSMs) > 0 {
			args = append(args, jsonText(skip.HSMs))
			skipped += fmt.Sprintf(" AND j.hsm NOT IN (SELECT value FROM json_each(?%d))", len(args))
		}
		if len(skip.Groups) > 0 {
			args = append(args, jsonText(skip.Groups))
			skipped += fmt.Sprintf(" AND j.grp NOT IN (SELECT value FROM json_each(?%d))", len(args))
		}
		if len(skip.Gone) > 0 {
			args = append(args, jsonText(skip.Gone))
			skipped += fmt.Sprintf(` AND (j.grp NOT IN (SELECT value FROM json_each(?%d))
				OR EXISTS (SELECT 1 FROM steps WHERE steps.job_id = j.id AND steps.name = 'activate' AND steps.state <> 'pending'))`, len(args))
		}
		// One search of the index jobs_ready for the urgent ones, and one for the
		// others, so that many waiting jobs cost nothing.
		first := `(SELECT j.id FROM jobs j WHERE j.urgent = %d AND j.ready_at <= ?1
			AND NOT EXISTS (SELECT 1 FROM jobs r WHERE r.grp = j.grp AND r.state = 'running') AND NOT (` + inTheWay + `)` + skipped + `
			ORDER BY j.ready_at, j.id LIMIT 1)`
		rows, err := t.query(`UPDATE jobs SET state = 'running', attempt = attempt + 1, waiting_for = '', next_attempt = NULL,
				started_at = coalesce(started_at, ?1)
			WHERE state IN ('available', 'retryable') AND id = coalesce(`+fmt.Sprintf(first, 1)+`, `+fmt.Sprintf(first, 0)+`)
			RETURNING `+jobColumns, args...)
		claimed, err := collect(rows, err, scanJob)
		if err != nil {
			return err
		}
		if len(claimed) == 0 {
			return errNothing
		}
		job = &claimed[0]
		job.Steps, err = loadSteps(t.query, job.ID)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("claim a job: %w", err)
	}
	return job, nil
}

// NextDue returns when, after now, the next waiting job becomes due; zero when
// none does by time alone. Jobs that are due already are not counted: what
// keeps them waiting is another job or their HSM.
func (s *Store) NextDue(ctx context.Context, now time.Time) (time.Time, error) {
	var next time.Time
	err := s.reader(ctx).queryRow(ctx, `SELECT min(ready_at) FROM
		(SELECT min(ready_at) AS ready_at FROM jobs WHERE urgent = 1 AND ready_at > ?1
		UNION ALL SELECT min(ready_at) FROM jobs WHERE urgent = 0 AND ready_at > ?1)`, millis(now)).Scan(scanTime(&next))
	if err != nil {
		return time.Time{}, fmt.Errorf("find the next due time: %w", err)
	}
	return next, nil
}
