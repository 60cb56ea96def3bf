package jobstore

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"
)

// Skip names what Claim leaves alone for now.
type Skip struct {
	HSMs []string // unavailable ones
	Gone []string // groups whose file is gone: of their jobs only one goes on that may have moved the alias
}

// inTheWay is true of a job j that another one of its group keeps waiting, which
// may have moved the alias and has not ended: no other job moves the alias
// meanwhile, nor retires a key, but for what a person asks for about one.
const inTheWay = `(j.kind IN ('rotate', 'rollback') OR j.kind = 'retire' AND j.urgent = 0) AND EXISTS
	(SELECT 1 FROM jobs o INDEXED BY jobs_open JOIN steps ON steps.job_id = o.id WHERE o.grp = j.grp AND o.id <> j.id AND o.finished_at IS NULL
		AND o.state IN ('available', 'retryable') AND steps.name = 'activate' AND steps.state <> 'pending')`

// A Due is a place, as in [Job], at which jobs are due.
type Due struct {
	Place    string
	Priority int       // of the most urgent one: 2 a person asked, 1 it renews what expires, 0
	ReadyAt  time.Time // since when the first one of that priority is due
}

// Due returns the places at which jobs are due, whether they may run now or not.
// Its work depends on how many places have jobs that wait, and not on how many
// jobs there are.
func (s *Store) Due(ctx context.Context, now time.Time) ([]Due, error) {
	const since = `(SELECT min(ready_at) FROM jobs j WHERE j.place = p.place AND j.priority = %d AND j.ready_at <= ?1)`
	rows, err := s.reader(ctx).query(ctx, `WITH RECURSIVE p (place) AS (SELECT min(place) FROM jobs WHERE ready_at IS NOT NULL
			UNION ALL SELECT (SELECT min(j.place) FROM jobs j WHERE j.ready_at IS NOT NULL AND j.place > p.place) FROM p WHERE p.place IS NOT NULL)
		SELECT place, `+fmt.Sprintf(since, 2)+`, `+fmt.Sprintf(since, 1)+`, `+fmt.Sprintf(since, 0)+` FROM p WHERE place IS NOT NULL`, millis(now))
	all, err := collect(rows, err, func(row scanner) (d Due, err error) {
		var asked, expiring, rest time.Time
		err = row.Scan(&d.Place, scanTime(&asked), scanTime(&expiring), scanTime(&rest))
		switch {
		case !asked.IsZero():
			d.Priority, d.ReadyAt = 2, asked
		case !expiring.IsZero():
			d.Priority, d.ReadyAt = 1, expiring
		default:
			d.ReadyAt = rest
		}
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("find the places with due jobs: %w", err)
	}
	return slices.DeleteFunc(all, func(d Due) bool { return d.ReadyAt.IsZero() }), nil
}

// DueSince returns the places at which a job has become due after the one time and
// by the other.
func (s *Store) DueSince(ctx context.Context, after, now time.Time) ([]string, error) {
	rows, err := s.reader(ctx).query(quick(ctx), `SELECT DISTINCT place FROM jobs INDEXED BY jobs_ready WHERE ready_at > ?1 AND ready_at <= ?2`, millis(after), millis(now))
	places, err := collect(rows, err, func(row scanner) (place string, err error) {
		err = row.Scan(&place)
		return place, err
	})
	if err != nil {
		return nil, fmt.Errorf("find the places with due jobs: %w", err)
	}
	return places, nil
}

// Claim makes the next due job of a place running and returns it with its steps;
// nil when there is none. Those that a person asked for come first, then those
// that renew what expires, then the one whose due time or next attempt is longest
// past. A group has at most one job running. Behind one that may have moved the
// alias others that concern it wait, also while that one waits for its next attempt.
func (s *Store) Claim(ctx context.Context, now time.Time, place string, skip Skip) (*Job, error) {
	var job *Job
	err := s.write(ctx, func(t *tx) error {
		job = nil
		skipped, args := "", []any{millis(now), place}
		if len(skip.HSMs) > 0 {
			args = append(args, jsonText(skip.HSMs))
			skipped += fmt.Sprintf(" AND j.hsm NOT IN (SELECT value FROM json_each(?%d))", len(args))
		}
		if len(skip.Gone) > 0 {
			args = append(args, jsonText(skip.Gone))
			skipped += fmt.Sprintf(` AND (j.grp NOT IN (SELECT value FROM json_each(?%d))
				OR EXISTS (SELECT 1 FROM steps WHERE steps.job_id = j.id AND steps.name = 'activate' AND steps.state <> 'pending'))`, len(args))
		}
		// One search of the index jobs_place for each priority, so that many waiting
		// jobs cost nothing.
		first := `(SELECT j.id FROM jobs j WHERE j.place = ?2 AND j.priority = %d AND j.ready_at <= ?1
			AND NOT EXISTS (SELECT 1 FROM jobs r WHERE r.grp = j.grp AND r.state = 'running') AND NOT (` + inTheWay + `)` + skipped + `
			ORDER BY j.ready_at, j.id LIMIT 1)`
		var id sql.NullString
		err := t.row(`SELECT coalesce(`+fmt.Sprintf(first, 2)+`, `+fmt.Sprintf(first, 1)+`, `+fmt.Sprintf(first, 0)+`)`, args, &id)
		if err != nil {
			return err
		}
		if !id.Valid {
			return errNothing
		}
		// Nobody else writes in between.
		if _, err := t.exec(`UPDATE jobs SET state = 'running', attempt = attempt + 1, waiting_for = '', next_attempt = NULL,
			started_at = coalesce(started_at, ?1) WHERE id = ?2`, millis(now), id.String); err != nil {
			return err
		}
		claimed, err := loadJob(t.query, id.String)
		if err != nil {
			return err
		}
		t.note(claimed.Group)
		job = &claimed
		return nil
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
	err := s.reader(ctx).queryRow(quick(ctx), `SELECT min(ready_at) FROM jobs WHERE ready_at > ?1`, millis(now)).Scan(scanTime(&next))
	if err != nil {
		return time.Time{}, fmt.Errorf("find the next due time: %w", err)
	}
	return next, nil
}
