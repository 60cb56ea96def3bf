package jobstore

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// The states of a job.
const (
	Available = "available" // to be run when it is due
	Running   = "running"   // a worker has it
	Retryable = "retryable" // failed; goes on at its next attempt or when woken
	Completed = "completed"
	Cancelled = "cancelled"
	Discarded = "discarded" // failed for good
)

// kindRotate is the kind of which a group has at most one open.
const kindRotate = "rotate"

// A Job is one row of the jobs table. In times, zero is none; they are kept in
// milliseconds.
type Job struct {
	ID          string // UUIDv7
	Kind        string
	Group       string // the current name; the definition may hold an older one
	HSM         string // name of the [hsm.NAME] table
	Generation  int    // 0: not chosen yet
	State       string
	Trigger     string
	WaitingFor  string // what a person must mend; "" when not Retryable
	Definition  []byte // the snapshot, JSON
	Request     []byte // JSON
	Urgent      bool   // a person asked
	Expiring    bool   // it renews what is about to expire
	Place       string // the definition's credential and Region, with a space between; "" of old jobs that have ended
	CreatedAt   time.Time
	ScheduledAt time.Time // nominal time of the tick
	DueAt       time.Time // not before
	StartedAt   time.Time // of the first attempt
	FinishedAt  time.Time
	NextAttempt time.Time // zero when Retryable: only when woken
	Attempt     int       // attempts begun, those that a shutdown interrupted not counted
	Error       string    // of the latest attempt that failed

	FirstFailed     time.Time // when Retry was first called
	FailureReported time.Time // as last given to Retry

	Steps []Step // in order; read by Job and Claim only
}

// Open reports whether the job has not ended.
func (j Job) Open() bool {
	return j.State == Available || j.State == Running || j.State == Retryable
}

// A Step is one recorded step of a job.
type Step struct {
	Name       string
	State      string // pending, running, done, skipped or failed
	StartedAt  time.Time
	FinishedAt time.Time
	Message    string
	Data       []byte // the step's intent, JSON; nil: none
}

// A NewJob is a job asked for.
type NewJob struct {
	Kind       string
	Group      string
	HSM        string
	Generation int
	Trigger    string

	// UniqueKey names what asked, within the group: a tick, a request, a force
	// value. Asking twice under one key is asking once. "": a key of its own.
	// Keys that begin with "force:" are remembered for ever, others as long as
	// their jobs.
	UniqueKey string

	Definition  []byte
	Request     []byte
	Urgent      bool      // a person asked: before the others, and without delay
	Expiring    bool      // it renews what is about to expire: before the rest
	DueAt       time.Time // zero: now
	ScheduledAt time.Time // of a tick; the group's last tick moves on to it
	Steps       []string  // recorded as pending

	// Audit is written when the job is made or joined, not when the key is known
	// already. Group and JobID are filled in where they are empty.
	Audit []AuditEntry
}

// Enqueued is what became of a NewJob.
type Enqueued struct {
	JobID  string // "" when the key was marked as seen, or its job has been pruned
	Joined bool   // an existing job was joined, or the key was known
}

// Enqueue makes a job durable, or joins one. When the unique key is known the
// job that it led to is returned, and nothing changes but the last tick. When a
// rotation is asked for and the group has an open one, the asking is recorded
// with that; an urgent asking makes it urgent and due now, unless it waits for
// a person, and one about what expires puts it before the rest. A group that is not known becomes known, without a definition.
//
// The job is zero where Enqueued.JobID would be empty.
func (s *Store) Enqueue(ctx context.Context, n NewJob) (job Job, joined bool, err error) {
	err = s.write(ctx, func(t *tx) error {
		if err := t.ensureGroup(n.Group); err != nil {
			return err
		}
		e, err := t.enqueue(n)
		if err != nil || e.JobID == "" {
			joined = e.Joined
			return err
		}
		joined = e.Joined
		if !joined {
			job = t.madeOf(n, e.JobID)
			return nil
		}
		job, err = loadJob(t.query, e.JobID)
		return err
	})
	if err != nil {
		return Job{}, false, fmt.Errorf("enqueue %s of %s: %w", n.Kind, n.Group, err)
	}
	return job, joined, nil
}

// EnqueueMany is Enqueue for many at once, in one transaction.
func (s *Store) EnqueueMany(ctx context.Context, jobs []NewJob) ([]Enqueued, error) {
	all := make([]Enqueued, 0, len(jobs))
	err := s.write(ctx, func(t *tx) error {
		all = all[:0]
		for _, n := range jobs {
			if err := t.ensureGroup(n.Group); err != nil {
				return fmt.Errorf("%s of %s: %w", n.Kind, n.Group, err)
			}
			e, err := t.enqueue(n)
			if err != nil {
				return fmt.Errorf("%s of %s: %w", n.Kind, n.Group, err)
			}
			all = append(all, e)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("enqueue %d jobs: %w", len(jobs), err)
	}
	return all, nil
}

func (t *tx) enqueue(n NewJob) (Enqueued, error) {
	if !n.ScheduledAt.IsZero() {
		if _, err := t.exec(`UPDATE groups SET last_tick = ?1 WHERE name = ?2 AND (last_tick IS NULL OR last_tick < ?1)`,
			millis(n.ScheduledAt), n.Group); err != nil {
			return Enqueued{}, err
		}
	}
	key := n.UniqueKey
	if key == "" {
		key = t.ids.newID(t.now)
	} else {
		var id sql.NullString
		err := t.row(`SELECT job_id FROM triggers WHERE grp = ? AND unique_key = ?`, []any{n.Group, key}, &id)
		if err == nil {
			return Enqueued{JobID: id.String, Joined: true}, nil
		} else if !errors.Is(err, ErrNotFound) {
			return Enqueued{}, err
		}
	}

	var e Enqueued
	if n.Kind == kindRotate {
		err := t.row(`SELECT id FROM jobs INDEXED BY jobs_open_rotation WHERE grp = ? AND kind = 'rotate' AND finished_at IS NULL`,
			[]any{n.Group}, &e.JobID)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return Enqueued{}, err
		}
		e.Joined = err == nil
	}
	var err error
	if e.Joined {
		if n.Urgent {
			err = t.hurry(e.JobID)
		} else if n.Expiring {
			_, err = t.exec(`UPDATE jobs SET expiring = 1 WHERE id = ?`, e.JobID)
		}
		t.note(n.Group)
	} else {
		e.JobID, err = t.insertJob(n)
	}
	if err != nil {
		return Enqueued{}, err
	}
	if _, err := t.exec(`INSERT INTO triggers (grp, unique_key, job_id, cause, at) VALUES (?, ?, ?, ?, ?)`,
		n.Group, key, e.JobID, n.Trigger, millis(t.now)); err != nil {
		return Enqueued{}, err
	}
	return e, t.insertAudit(n.Group, e.JobID, n.Audit)
}

// hurry makes an open job urgent and due, unless it waits for a person.
func (t *tx) hurry(id string) error {
	_, err := t.exec(`UPDATE jobs SET urgent = 1, due_at = CASE WHEN due_at > ?1 THEN ?1 ELSE due_at END,
		next_attempt = CASE WHEN waiting_for = '' AND next_attempt > ?1 THEN ?1 ELSE next_attempt END
		WHERE id = ?2`, millis(t.now), id)
	return err
}

func (t *tx) insertJob(n NewJob) (id string, err error) {
	id = t.ids.newID(t.now)
	due := n.DueAt
	if due.IsZero() {
		due = t.now
	}
	_, err = t.exec(`INSERT INTO jobs (id, kind, grp, hsm, generation, state, cause, definition, request, urgent, expiring, created_at, scheduled_at, due_at, place, steps)
		VALUES (?, ?, ?, ?, ?, 'available', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		id, n.Kind, n.Group, n.HSM, n.Generation, n.Trigger, text(n.Definition), text(n.Request), n.Urgent, n.Expiring,
		millis(t.now), millis(n.ScheduledAt), millis(due), placeOf(n.Definition), jsonText(n.Steps))
	if err == nil {
		t.note(n.Group)
	}
	return id, err
}

// madeOf is the job that insertJob has made, as it is read.
func (t *tx) madeOf(n NewJob, id string) Job {
	at := func(t time.Time) time.Time {
		if t.IsZero() {
			return t
		}
		return time.UnixMilli(t.UnixMilli()).UTC()
	}
	j := Job{ID: id, Kind: n.Kind, Group: n.Group, HSM: n.HSM, Generation: n.Generation, State: Available, Trigger: n.Trigger,
		Definition: n.Definition, Request: n.Request, Urgent: n.Urgent, Expiring: n.Expiring, Place: placeOf(n.Definition),
		CreatedAt: at(t.now), ScheduledAt: at(n.ScheduledAt), DueAt: at(n.DueAt)}
	if n.DueAt.IsZero() {
		j.DueAt = j.CreatedAt
	}
	for _, name := range n.Steps {
		j.Steps = append(j.Steps, Step{Name: name, State: "pending"})
	}
	return j
}

// placeOf is the place of a job with that definition.
func placeOf(definition []byte) string {
	var d struct{ Credential, Region string }
	if json.Unmarshal(definition, &d) != nil {
		return ""
	}
	return strings.TrimSpace(d.Credential + " " + d.Region)
}

// putSteps writes steps by name; those that the job was not made with go to the end.
func (t *tx) putSteps(jobID string, steps []Step) error {
	for _, st := range steps {
		args := []any{jobID, st.Name, st.State, millis(st.StartedAt), millis(st.FinishedAt), st.Message, text(st.Data)}
		n, err := t.exec(`UPDATE steps SET state = ?3, started_at = ?4, finished_at = ?5, message = ?6, data = ?7 WHERE job_id = ?1 AND name = ?2`, args...)
		if err == nil && n == 0 {
			_, err = t.exec(`INSERT INTO steps (job_id, name, position, state, started_at, finished_at, message, data)
				VALUES (?1, ?2, (SELECT count(*) FROM steps WHERE job_id = ?1), ?3, ?4, ?5, ?6, ?7)`, args...)
		}
		if err != nil {
			return fmt.Errorf("step %s: %w", st.Name, err)
		}
	}
	return nil
}

// MarkSeen records a unique key of the group that makes no job, now or later.
func (s *Store) MarkSeen(ctx context.Context, group, uniqueKey string) error {
	err := s.write(ctx, func(t *tx) error {
		if err := t.ensureGroup(group); err != nil {
			return err
		}
		_, err := t.exec(`INSERT INTO triggers (grp, unique_key, cause, at) VALUES (?, ?, '', ?) ON CONFLICT DO NOTHING`,
			group, uniqueKey, millis(t.now))
		return err
	})
	if err != nil {
		return fmt.Errorf("mark %s of %s as seen: %w", uniqueKey, group, err)
	}
	return nil
}

// Seen reports whether the unique key of the group has asked for a job already,
// or was marked.
func (s *Store) Seen(ctx context.Context, group, uniqueKey string) (bool, error) {
	var n int
	err := s.reader(ctx).queryRow(quick(ctx), `SELECT count(*) FROM triggers WHERE grp = ? AND unique_key = ?`, group, uniqueKey).Scan(&n)
	if err != nil {
		return false, fmt.Errorf("look for %s of %s: %w", uniqueKey, group, err)
	}
	return n > 0, nil
}

// A Change is what one transaction writes: all of it or nothing.
type Change struct {
	JobID       string // the running job that this belongs to; "": none
	Generation  int    // the job's generation from now on; 0: unchanged
	Steps       []Step // replaced by name; new ones go to the end
	Generations []Generation
	Events      []Event
	Audit       []AuditEntry
	Jobs        []NewJob
	Plan        *Plan  // nil: unchanged
	Applied     string // digest of the definition that AWS agrees with now, of the job's group; "": unchanged
}

// Advance records a step of a running job, or, without a job, what
// reconciliation found. It returns ErrNotRunning when the job is not running.
// Groups that it names must be known.
func (s *Store) Advance(ctx context.Context, c Change) error {
	if err := s.write(ctx, func(t *tx) error { return t.apply(c) }); err != nil {
		return fmt.Errorf("record progress of job %q: %w", c.JobID, err)
	}
	return nil
}

func (t *tx) apply(c Change) error {
	group := ""
	if c.JobID != "" {
		var err error
		if group, err = t.running(c.JobID); err != nil {
			return err
		}
		if c.Generation != 0 {
			if _, err := t.exec(`UPDATE jobs SET generation = ? WHERE id = ?`, c.Generation, c.JobID); err != nil {
				return err
			}
		}
		if err := t.putSteps(c.JobID, c.Steps); err != nil {
			return err
		}
	} else if len(c.Steps) > 0 {
		return fmt.Errorf("steps without a job")
	}
	if err := t.putGenerations(c.Generations); err != nil {
		return err
	}
	for _, e := range c.Events {
		if err := t.insertEvent(e); err != nil {
			return err
		}
	}
	if err := t.insertAudit("", c.JobID, c.Audit); err != nil {
		return err
	}
	if c.Applied != "" {
		if _, err := t.exec(`UPDATE groups SET applied_digest = ? WHERE name = ?`, c.Applied, group); err != nil {
			return err
		}
	}
	for _, n := range c.Jobs {
		if _, err := t.enqueue(n); err != nil {
			return fmt.Errorf("enqueue %s of %s: %w", n.Kind, n.Group, err)
		}
	}
	if c.Plan != nil {
		return t.putPlan(*c.Plan)
	}
	return nil
}

// running is the guard of what is recorded of a job: ErrNotRunning, if it is not, and
// the job's group, of which something changes.
func (t *tx) running(jobID string) (group string, err error) {
	err = t.row(`SELECT grp FROM jobs WHERE id = ? AND state = 'running'`, []any{jobID}, &group)
	if errors.Is(err, ErrNotFound) {
		err = ErrNotRunning
	}
	if err == nil {
		t.note(group)
	}
	return group, err
}

// settle is apply, and what ends the attempt at the job.
func (t *tx) settle(jobID string, c Change, query string, args ...any) error {
	c.JobID = jobID
	if err := t.apply(c); err != nil {
		return err
	}
	_, err := t.exec(query, args...)
	return err
}

// Finish ends a running job in the given state, Completed, Cancelled or
// Discarded, and records c with it; c.JobID need not be set.
func (s *Store) Finish(ctx context.Context, jobID, state, errText string, c Change) error {
	err := s.write(ctx, func(t *tx) error {
		return t.settle(jobID, c, `UPDATE jobs SET state = ?, error = ?, finished_at = ? WHERE id = ?`,
			state, errText, millis(t.now), jobID)
	})
	if err != nil {
		return fmt.Errorf("finish job %s as %s: %w", jobID, state, err)
	}
	return nil
}

// Retry says how a job that failed goes on.
type Retry struct {
	NextAttempt     time.Time // zero: only when woken; then WaitingFor must be set
	WaitingFor      string    // what a person must mend; "": time alone
	Error           string
	FailureReported time.Time // when an event told of it; zero: unchanged
}

// Retry makes a running job retryable and records c with it; c.JobID need not
// be set.
func (s *Store) Retry(ctx context.Context, jobID string, r Retry, c Change) error {
	err := s.write(ctx, func(t *tx) error {
		return t.settle(jobID, c, `UPDATE jobs SET state = 'retryable', next_attempt = ?, waiting_for = ?, error = ?,
			first_failed = coalesce(first_failed, ?), failure_reported = coalesce(?, failure_reported) WHERE id = ?`,
			millis(r.NextAttempt), r.WaitingFor, r.Error, millis(t.now), millis(r.FailureReported), jobID)
	})
	if err != nil {
		return fmt.Errorf("put job %s off: %w", jobID, err)
	}
	return nil
}

// Release gives a running job back that was interrupted by a shutdown or
// parked with its HSM: it is available at once, and the attempt does not count.
func (s *Store) Release(ctx context.Context, jobID string) error {
	err := s.write(ctx, func(t *tx) error {
		return t.settle(jobID, Change{}, `UPDATE jobs SET state = 'available', attempt = attempt - 1 WHERE id = ?`, jobID)
	})
	if err != nil {
		return fmt.Errorf("release job %s: %w", jobID, err)
	}
	return nil
}

// Rescue makes the jobs available that a process which is no more left running,
// and returns how many. It is called once at start, before the first Claim. The
// attempt that died does not count: it tells of the process, not of the job.
func (s *Store) Rescue(ctx context.Context) (n int, err error) {
	err = s.write(ctx, func(t *tx) error {
		n, err = t.change(`UPDATE jobs SET state = 'available', attempt = max(attempt - 1, 0) WHERE state = 'running'`)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("rescue jobs: %w", err)
	}
	return n, nil
}

// A WakeFilter chooses retryable jobs: those that are in each list which is not
// empty. The zero value chooses all.
type WakeFilter struct {
	JobIDs     []string
	Groups     []string
	HSMs       []string
	WaitingFor []string
}

// Wake makes retryable jobs due now, and returns how many. The audit entry is
// written for each of them.
func (s *Store) Wake(ctx context.Context, f WakeFilter, audit ...AuditEntry) (n int, err error) {
	where, args := "state = 'retryable'", []any{}
	for _, in := range []struct {
		column string
		values []string
	}{{"id", f.JobIDs}, {"grp", f.Groups}, {"hsm", f.HSMs}, {"waiting_for", f.WaitingFor}} {
		if len(in.values) > 0 {
			where += " AND " + in.column + " IN (SELECT value FROM json_each(?))"
			args = append(args, jsonText(in.values))
		}
	}
	err = s.write(ctx, func(t *tx) error {
		woken, err := t.changeJobs(`UPDATE jobs SET next_attempt = ? WHERE `+where, append([]any{millis(t.now)}, args...)...)
		if err != nil {
			return err
		}
		n = len(woken)
		return t.auditEach(woken, audit)
	})
	if err != nil {
		return 0, fmt.Errorf("wake jobs: %w", err)
	}
	return n, nil
}

// A jobRef names a job and its group.
type jobRef struct{ id, group string }

func scanJobRef(row scanner) (r jobRef, err error) {
	err = row.Scan(&r.id, &r.group)
	return r, err
}

// auditEach writes the entries for each of the jobs.
func (t *tx) auditEach(jobs []jobRef, entries []AuditEntry) error {
	for _, j := range jobs {
		if err := t.insertAudit(j.group, j.id, entries); err != nil {
			return err
		}
	}
	return nil
}

// notActivated is true of a job whose alias cannot have moved.
const notActivated = `NOT EXISTS (SELECT 1 FROM steps WHERE steps.job_id = jobs.id AND steps.name = 'activate' AND steps.state <> 'pending')`

// Resnapshot gives a new definition to the group's jobs that wait for a person
// or have not been started, and to a rotation that has not chosen its generation
// yet, and returns how many. A running job keeps the one
// that it has, and so does one that may have moved the alias. Each change
// leaves an audit row.
func (s *Store) Resnapshot(ctx context.Context, group string, definition []byte, hsm string) (n int, err error) {
	err = s.write(ctx, func(t *tx) error {
		changed, err := t.changeJobs(`UPDATE jobs SET definition = ?1, hsm = ?2, place = ?4
			WHERE grp = ?3 AND finished_at IS NULL AND (state = 'retryable' AND waiting_for <> '' OR state = 'available' AND started_at IS NULL
				OR kind = 'rotate' AND generation = 0 AND state IN ('available', 'retryable'))
			AND (definition IS DISTINCT FROM ?1 OR hsm <> ?2) AND `+notActivated, text(definition), hsm, group, placeOf(definition))
		if err != nil {
			return err
		}
		n = len(changed)
		return t.auditEach(changed, []AuditEntry{{Actor: "byokd", Action: "renew definition", Detail: "the group's definition has changed while the job was waiting"}})
	})
	if err != nil {
		return 0, fmt.Errorf("renew the definition in the jobs of %s: %w", group, err)
	}
	return n, nil
}

// Cancel ends a job that is waiting. It returns ErrNotFound, ErrRunning,
// ErrFinished, or ErrActivated when the job may have moved the alias. One that
// waits for a person to move the alias can be cancelled all the same: it is not
// where the job has put it.
func (s *Store) Cancel(ctx context.Context, jobID string, audit ...AuditEntry) error {
	err := s.write(ctx, func(t *tx) error {
		job, err := loadJob(t.query, jobID)
		switch {
		case err != nil:
			return err
		case job.State == Running:
			return ErrRunning
		case !job.Open():
			return ErrFinished
		}
		n, err := t.exec(`UPDATE jobs SET state = 'cancelled', waiting_for = '', next_attempt = NULL, finished_at = ? WHERE id = ? AND (waiting_for = 'alias' OR `+notActivated+`)`,
			millis(t.now), jobID)
		if err == nil && n == 0 {
			err = ErrActivated
		}
		if err != nil {
			return err
		}
		t.note(job.Group)
		return t.insertAudit(job.Group, jobID, audit)
	})
	if err != nil {
		return fmt.Errorf("cancel job %s: %w", jobID, err)
	}
	return nil
}

// planKey begins the unique keys of a plan's jobs, and of no others; planEnd is the
// first string after all of them.
const (
	planKey = "plan:"
	planEnd = "plan;"
)

// A Plan is all that is to come of a group by itself, as things stand: jobs whose
// unique keys begin with "plan:".
type Plan struct {
	Group string
	Jobs  []NewJob
}

// SetPlan makes a group's plan this one: the jobs that it does not have waiting
// or running are made, those whose due time is another now wait for that, and
// those that wait and are not in it are cancelled, with an audit row.
func (s *Store) SetPlan(ctx context.Context, p Plan) error {
	if err := s.write(ctx, func(t *tx) error { return t.putPlan(p) }); err != nil {
		return fmt.Errorf("plan what is to come of group %s: %w", p.Group, err)
	}
	return nil
}

func (t *tx) putPlan(p Plan) error {
	keys := make([]string, len(p.Jobs))
	for i, n := range p.Jobs {
		if n.Group != p.Group || !strings.HasPrefix(n.UniqueKey, planKey) {
			return fmt.Errorf("%s of %s under key %q cannot be planned for %s", n.Kind, n.Group, n.UniqueKey, p.Group)
		}
		keys[i] = n.UniqueKey
	}
	rows, err := t.query(`SELECT unique_key FROM triggers WHERE grp = ?1 AND unique_key >= ?2 AND unique_key < ?3 AND EXISTS
		(SELECT 1 FROM jobs WHERE id = job_id AND state IN ('available', 'retryable'))`, p.Group, planKey, planEnd)
	waiting, err := collect(rows, err, scanString)
	if err != nil {
		return err
	}
	unwanted := slices.DeleteFunc(waiting, func(key string) bool { return slices.Contains(keys, key) })
	if len(unwanted) > 0 {
		cancelled, err := t.cancelAll(`grp = ? AND id IN (SELECT job_id FROM triggers WHERE grp = ? AND unique_key IN (SELECT value FROM json_each(?)))`,
			p.Group, p.Group, jsonText(unwanted))
		if err != nil {
			return err
		}
		if err := t.auditEach(cancelled, []AuditEntry{{Actor: "byokd", Action: "cancel", Detail: "nothing asks for it any more"}}); err != nil {
			return err
		}
	}
	for _, n := range p.Jobs {
		// One that has ended and is wanted all the same is asked for anew.
		if _, err := t.exec(`DELETE FROM triggers WHERE grp = ? AND unique_key = ? AND NOT EXISTS
			(SELECT 1 FROM jobs WHERE id = job_id AND state IN ('available', 'running', 'retryable'))`, n.Group, n.UniqueKey); err != nil {
			return err
		}
		e, err := t.enqueue(n)
		if err != nil {
			return err
		}
		if _, err := t.change(`UPDATE jobs SET state = 'available', waiting_for = '', next_attempt = NULL, due_at = ?1
			WHERE id = ?2 AND state IN ('available', 'retryable') AND due_at <> ?1`, millis(n.DueAt), e.JobID); err != nil {
			return err
		}
	}
	return nil
}

// cancelAll cancels the waiting jobs that the condition is true of, and forgets
// their triggers.
func (t *tx) cancelAll(where string, args ...any) ([]jobRef, error) {
	cancelled, err := t.changeJobs(`UPDATE jobs SET state = 'cancelled', waiting_for = '', next_attempt = NULL, finished_at = ?
		WHERE state IN ('available', 'retryable') AND `+where, append([]any{millis(t.now)}, args...)...)
	if err != nil {
		return nil, err
	}
	for _, j := range cancelled {
		if _, err := t.exec(`DELETE FROM triggers WHERE job_id = ?`, j.id); err != nil {
			return nil, err
		}
	}
	return cancelled, nil
}

// Job returns a job with its steps, or ErrNotFound.
func (s *Store) Job(ctx context.Context, id string) (job Job, err error) {
	err = s.read(ctx, func(q querier) error {
		job, err = loadJob(q, id)
		return err
	})
	if err != nil {
		return Job{}, fmt.Errorf("read job %s: %w", id, err)
	}
	return job, nil
}

// A JobFilter chooses jobs; empty fields choose all.
type JobFilter struct {
	Group string
	State string // one of the states, or Unfinished
	Limit int    // 0: none
}

// Unfinished, in a JobFilter, chooses the jobs that have not ended.
const Unfinished = "open"

// Jobs returns jobs without their steps, newest first.
func (s *Store) Jobs(ctx context.Context, f JobFilter) ([]Job, error) {
	query, args := `SELECT `+jobColumns+` FROM jobs WHERE true`, []any{}
	if f.Group != "" {
		query, args = query+" AND grp = ?", append(args, f.Group)
	}
	switch f.State {
	case "":
	case Unfinished:
		query += " AND state IN ('available', 'running', 'retryable')"
	default:
		query, args = query+" AND state = ?", append(args, f.State)
	}
	rows, err := s.reader(ctx).query(ctx, query+` ORDER BY id DESC LIMIT ?`, append(args, limit(f.Limit))...)
	jobs, err := collect(rows, err, scanJob)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	return jobs, nil
}

// OpenJobs returns the jobs that have not ended, of the groups named or of all,
// without their steps, oldest first.
func (s *Store) OpenJobs(ctx context.Context, groups ...string) ([]Job, error) {
	where, args := among("grp", groups)
	rows, err := s.reader(ctx).query(quick(ctx), `SELECT `+jobColumns+` FROM jobs INDEXED BY jobs_open WHERE finished_at IS NULL AND `+where+` ORDER BY id`, args...)
	jobs, err := collect(rows, err, scanJob)
	if err != nil {
		return nil, fmt.Errorf("list open jobs: %w", err)
	}
	return jobs, nil
}

// GivenUp returns, without their steps, the discarded jobs of the groups named, or
// of all, that no later job of the same group and kind has followed. A roll back that was refused is none:
// all is as before, and whoever asked has been told.
func (s *Store) GivenUp(ctx context.Context, groups ...string) ([]Job, error) {
	index := ""
	if len(groups) > 0 {
		index = " INDEXED BY jobs_discarded"
	}
	where, args := among("grp", groups)
	rows, err := s.reader(ctx).query(quick(ctx), `SELECT `+jobColumns+` FROM jobs d`+index+` WHERE state = 'discarded' AND kind <> 'rollback' AND `+where+` AND NOT EXISTS
		(SELECT 1 FROM jobs n WHERE n.grp = d.grp AND n.kind = d.kind AND n.id > d.id) ORDER BY id`, args...)
	jobs, err := collect(rows, err, scanJob)
	if err != nil {
		return nil, fmt.Errorf("list jobs that were given up: %w", err)
	}
	return jobs, nil
}

// A JobCount says how many jobs of a group there are of a kind and state.
type JobCount struct {
	Group string
	Kind  string
	State string
	Count int
}

// Counts counts the jobs that the store holds; finished ones go with Prune.
func (s *Store) Counts(ctx context.Context) ([]JobCount, error) {
	rows, err := s.reader(ctx).query(ctx, `SELECT grp, kind, state, count(*) FROM jobs GROUP BY grp, kind, state ORDER BY grp, kind, state`)
	counts, err := collect(rows, err, func(row scanner) (c JobCount, err error) {
		err = row.Scan(&c.Group, &c.Kind, &c.State, &c.Count)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("count jobs: %w", err)
	}
	return counts, nil
}

const jobColumns = `id, kind, grp, hsm, generation, state, cause, waiting_for, definition, request, urgent, expiring, place,
	created_at, scheduled_at, due_at, started_at, finished_at, next_attempt, attempt, error, first_failed, failure_reported`

// jobFields are what jobColumns are scanned into.
func jobFields(j *Job) []any {
	return []any{&j.ID, &j.Kind, &j.Group, &j.HSM, &j.Generation, &j.State, &j.Trigger, &j.WaitingFor,
		&j.Definition, &j.Request, &j.Urgent, &j.Expiring, &j.Place, scanTime(&j.CreatedAt), scanTime(&j.ScheduledAt), scanTime(&j.DueAt),
		scanTime(&j.StartedAt), scanTime(&j.FinishedAt), scanTime(&j.NextAttempt), &j.Attempt, &j.Error,
		scanTime(&j.FirstFailed), scanTime(&j.FailureReported)}
}

func scanJob(row scanner) (j Job, err error) {
	err = row.Scan(jobFields(&j)...)
	return j, err
}

// loadJob reads a job with its steps.
func loadJob(q querier, id string) (Job, error) {
	var names []string
	rows, err := q(`SELECT `+jobColumns+`, steps FROM jobs WHERE id = ?`, id)
	jobs, err := collect(rows, err, func(row scanner) (j Job, err error) {
		err = row.Scan(append(jobFields(&j), jsonScanner{&names})...)
		return j, err
	})
	if err != nil {
		return Job{}, err
	}
	if len(jobs) == 0 {
		return Job{}, ErrNotFound
	}
	jobs[0].Steps, err = loadSteps(q, id, names)
	return jobs[0], err
}

// loadSteps reads the steps that a job has begun, and puts those of the names between
// them that are still to come. Those of other names are at the end.
func loadSteps(q querier, jobID string, names []string) ([]Step, error) {
	rows, err := q(`SELECT name, state, started_at, finished_at, message, data FROM steps WHERE job_id = ? ORDER BY position`, jobID)
	begun, err := collect(rows, err, func(row scanner) (st Step, err error) {
		err = row.Scan(&st.Name, &st.State, scanTime(&st.StartedAt), scanTime(&st.FinishedAt), &st.Message, &st.Data)
		return st, err
	})
	if err != nil || len(names) == 0 {
		return begun, err
	}
	all := make([]Step, len(names), len(names)+len(begun))
	for i, name := range names {
		all[i] = Step{Name: name, State: "pending"}
	}
	for _, st := range begun {
		if i := slices.Index(names, st.Name); i >= 0 {
			all[i] = st
		} else {
			all = append(all, st)
		}
	}
	return all, nil
}

// An idSource makes UUIDv7s that ascend within the process, also within one
// millisecond and when the clock steps back: a counter takes the place of
// rand_a (RFC 9562, section 6.2, method 1).
type idSource struct {
	mu      sync.Mutex
	ms      uint64
	counter uint64
}

func (s *idSource) newID(now time.Time) string {
	s.mu.Lock()
	if ms := uint64(now.UnixMilli()); ms > s.ms {
		s.ms, s.counter = ms, 0
	} else if s.counter++; s.counter == 1<<12 {
		s.ms, s.counter = s.ms+1, 0
	}
	ms, counter := s.ms, s.counter
	s.mu.Unlock()

	var b [16]byte
	rand.Read(b[8:])
	b[0], b[1], b[2], b[3], b[4], b[5] = byte(ms>>40), byte(ms>>32), byte(ms>>24), byte(ms>>16), byte(ms>>8), byte(ms)
	b[6] = 0x70 | byte(counter>>8)
	b[7] = byte(counter)
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
