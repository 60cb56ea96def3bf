package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"byokd/cloud"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
	"byokd/hsm"
)

const (
	// With max_jobs = 0 as many jobs are ahead of GetParametersForImport in one
	// account and Region as four seconds of its quota take, within these bounds, so
	// that the scarce request is never idle while work waits. Where it is all the same,
	// since jobs take longer to come to it, there is one more each time, up to enough.
	// More from the start would have all of them stand in each other's way where many
	// Regions begin at once. A job that is past it makes room for the next: a rotation
	// in place goes on for minutes from there.
	fewestAhead = 4
	enoughAhead = 16
	mostAhead   = 64

	// placeJobs is how many jobs run at once in one account and Region with
	// max_jobs = 0.
	placeJobs = 256

	// Retries of transient and unknown errors are this far apart.
	firstRetry = time.Second
	lastRetry  = time.Hour

	// outageRetry bounds the retries while AWS cannot be reached at all: due
	// work starts within a minute of the network's return.
	outageRetry = 45 * time.Second

	// operatorRetry is how often a job that waits for a person is tried all the
	// same, but for one that waits for a PIN.
	operatorRetry = 6 * time.Hour

	// When BYOK Rotation Failed is sent of a transient failure, and how often again.
	reportAfter = 15 * time.Minute
	reportAgain = 24 * time.Hour

	// idleLook is the longest that the claim loop sleeps, for a clock that was set.
	idleLook = 30 * time.Second
)

// Workers are who runs jobs, by place: the credential and Region of a job.
type workers struct {
	mu      sync.Mutex
	running int
	loads   map[string]*load
	freed   map[string]bool // places at which there may be a job to claim, or room for one
	wake    chan struct{}   // a place was freed
}

// A load is the running jobs of a place.
type load struct {
	jobs    int
	started int       // how many ever were, while some are
	ahead   []int     // numbers of those that have not got their import parameters, in the order in which they began
	more    int       // how many more than usual may be
	passed  time.Time // when one last got them; zero: none has
}

// pass notes that a job has got its import parameters, of which there may be so many a
// second. Later than a turn and a half after the one before it is, with work that
// waits, for want of jobs.
func (l *load) pass(now time.Time, perSecond float64) {
	if !l.passed.IsZero() && now.Sub(l.passed).Seconds()*perSecond > 1.5 {
		l.more++
	}
	l.passed = now
}

// mayBegin reports whether there is room for one more.
func (l *load) mayBegin(perSecond float64) bool {
	usual := min(max(fewestAhead, int(4*perSecond)), mostAhead)
	return l.jobs < placeJobs && len(l.ahead) < min(usual+l.more, max(usual, enoughAhead))
}

func newWorkers() *workers {
	return &workers{loads: make(map[string]*load), freed: make(map[string]bool), wake: make(chan struct{}, 1)}
}

// free has jobs claimed at some places.
func (w *workers) free(places ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, place := range places {
		w.freed[place] = true
	}
	wake(w.wake)
}

func (w *workers) takeFreed() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	places := slices.Sorted(maps.Keys(w.freed))
	clear(w.freed)
	return places
}

// begin notes that a job runs at a place that may get so many import parameters a
// second. The job calls ahead when it has got its own, and end when it has ended; behind
// is how many that began before it have not got theirs.
func (w *workers) begin(place string, perSecond float64) (behind func() int, ahead, end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.loads[place]
	if l == nil {
		l = new(load)
		w.loads[place] = l
	}
	w.running++
	l.jobs++
	l.started++
	job := l.started
	l.ahead = append(l.ahead, job)
	var once sync.Once
	pass := func(got bool) {
		once.Do(func() {
			w.mu.Lock()
			l.ahead = slices.DeleteFunc(l.ahead, func(other int) bool { return other == job })
			if got {
				l.pass(time.Now(), perSecond)
			} else {
				l.more++ // it took nothing of the quota
			}
			w.mu.Unlock()
			w.free(place)
		})
	}
	behind = func() int {
		w.mu.Lock()
		defer w.mu.Unlock()
		return max(0, slices.Index(l.ahead, job))
	}
	return behind, func() { pass(true) }, func() {
		pass(false)
		w.mu.Lock()
		w.running--
		if l.jobs--; l.jobs == 0 {
			delete(w.loads, place)
		}
		w.mu.Unlock()
		w.free(place)
	}
}

// room reports whether another job may run at a place.
func (w *workers) room(place string, maxJobs int, perSecond float64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if maxJobs > 0 {
		return w.running < maxJobs
	}
	l := w.loads[place]
	return l == nil || l.mayBegin(perSecond)
}

// atRest reports whether no job runs.
func (w *workers) atRest() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running == 0
}

// jobsAt is how many jobs run at a place.
func (w *workers) jobsAt(place string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l := w.loads[place]; l != nil {
		return l.jobs
	}
	return 0
}

// work claims jobs and runs them until ctx ends, then waits for those that run:
// each finishes its running step and is put back.
//
// A job that ends or makes room frees its place, and only that is looked at. All
// places are, where it is not known at which of them something has changed.
func (d *Daemon) work(ctx context.Context, p *pulse) {
	var running sync.WaitGroup
	defer running.Wait()
	defer p.end()
	looked := d.Now()
	for all := true; ctx.Err() == nil; {
		now := d.Now()
		due, err := d.due(ctx, all, looked, now)
		if err == nil {
			looked = now
			err = d.claimAt(ctx, due, &running)
		}
		if err != nil {
			if ctx.Err() == nil {
				d.storeFailed("claim a job", err)
				p.sleep(ctx, 5*time.Second, nil)
			}
			all = true
			continue
		}
		all = d.awaitJobs(ctx, p)
	}
}

// due are the places to look at: all with due jobs, or those that were freed and
// those at which jobs have become due since the last look.
func (d *Daemon) due(ctx context.Context, all bool, looked, now time.Time) ([]jobstore.Due, error) {
	freed := d.workers.takeFreed()
	if all || d.cfg.Load().MaxJobs > 0 { // then each job's end makes room everywhere
		return d.store.Due(ctx, now)
	}
	since, err := d.store.DueSince(ctx, looked, now)
	if err != nil {
		d.workers.free(freed...)
		return nil, err
	}
	var due []jobstore.Due
	for _, place := range append(freed, since...) {
		due = append(due, jobstore.Due{Place: place})
	}
	return due, nil
}

// awaitJobs waits until there may be something to claim, and tells whether that may
// be at any place.
func (d *Daemon) awaitJobs(ctx context.Context, p *pulse) (all bool) {
	timer := time.NewTimer(d.untilDue(ctx))
	defer timer.Stop()
	defer p.rest()()
	select {
	case <-ctx.Done():
	case <-timer.C:
		// What was left alone for its HSM or its file may be so no more.
		return len(d.tokens.unavailable()) > 0 || len(d.groups.goneNames()) > 0
	case <-d.workers.wake:
	case <-d.jobsWake:
		return true
	}
	return false
}

// claimAt claims jobs at places and has them run: one at each in turn, as long as
// there is room, so that none waits for the others. Where not all may run, the most
// urgent go first, then those where the fewest run.
func (d *Daemon) claimAt(ctx context.Context, due []jobstore.Due, running *sync.WaitGroup) error {
	cfg := d.cfg.Load()
	if !cfg.Designated || len(due) == 0 {
		return nil
	}
	skip := jobstore.Skip{HSMs: d.tokens.unavailable(), Gone: d.groups.goneNames()}
	for len(due) > 0 {
		turns := len(due)
		if cfg.MaxJobs > 0 {
			turns = 1 // and anew: a job that ends meanwhile makes another place the one where the fewest run
			slices.SortStableFunc(due, func(a, b jobstore.Due) int {
				return cmp.Or(cmp.Compare(b.Priority, a.Priority), cmp.Compare(d.workers.jobsAt(a.Place), d.workers.jobsAt(b.Place)), a.ReadyAt.Compare(b.ReadyAt))
			})
		}
		left := due[:0]
		for _, at := range due[:turns] {
			if ctx.Err() != nil || d.ending.Load() {
				return nil
			}
			perSecond := d.importQuota(at.Place)
			if !d.workers.room(at.Place, cfg.MaxJobs, perSecond) {
				if cfg.MaxJobs > 0 {
					return nil // the next room is for all places, which are looked at when a job ends
				}
				continue
			}
			job, err := d.store.Claim(ctx, d.Now(), at.Place, skip)
			if err != nil {
				return err
			}
			if job == nil {
				continue
			}
			left = append(left, at)
			behind, ahead, end := d.workers.begin(at.Place, perSecond)
			running.Go(func() {
				defer end()
				// The token is for what is urgent first, then for those for whose import
				// parameters a quota waits.
				less := int(cloud.Asked-priority(job)) * placeJobs
				ctx := hsm.WithRank(ctx, func() int { return less + min(behind(), placeJobs-1) })
				d.runJob(context.WithValue(ctx, aheadKey{}, ahead), job)
				if place := d.placeOf(job.Group); place != at.Place {
					d.workers.free(place) // the group's next job is about that
				}
			})
		}
		due = append(left, due[turns:]...)
	}
	return nil
}

type aheadKey struct{}

// importing notes that a running job has got its import parameters: the scarce
// request is free for the next.
func importing(ctx context.Context) {
	if ahead, ok := ctx.Value(aheadKey{}).(func()); ok {
		ahead()
	}
}

// placeOf is the place of a group's jobs, as [jobstore.Job] has it.
func (d *Daemon) placeOf(group string) string {
	if g, ok := d.groups.get(group); ok && g.def != nil {
		return strings.TrimSpace(g.def.Credential + " " + g.def.AWS.Region)
	}
	return ""
}

func (d *Daemon) untilDue(ctx context.Context) time.Duration {
	due, err := d.store.NextDue(ctx, d.Now())
	if err != nil || due.IsZero() {
		return idleLook
	}
	return min(max(due.Sub(d.Now()), 10*time.Millisecond), idleLook)
}

// runJob makes one attempt at a job and stores its outcome.
func (d *Daemon) runJob(ctx context.Context, row *jobstore.Job) {
	log := d.log.With("group", row.Group, "job", row.ID, "kind", row.Kind)
	begun := time.Now()
	d.changes.notify()
	d.groups.jobRuns(row.Group, 1)
	job, err := lifecycleJob(row)
	if err == nil {
		log.Info("job starts", "trigger", row.Trigger, "attempt", row.Attempt)
		working, stop := d.whileDesignated(ctx)
		err = d.attempt(working, row, job)
		stop()
	}
	d.metrics.job(row, err)
	d.tokens.met(row.HSM, err)
	d.settle(ctx, row, job, err)
	d.groups.jobRuns(row.Group, -1)
	d.changes.notify()

	elapsed := time.Since(begun).Round(time.Millisecond)
	if errors.Is(err, errNotDue) {
		log.Info("job cancelled", "reason", err)
		return
	}
	switch class := lifecycle.ClassOf(err); class {
	case "":
		log.Info("job completed", "elapsed", elapsed)
	case lifecycle.Interrupted:
		log.Info("job put back", "elapsed", elapsed, "reason", err)
	case lifecycle.Operator:
		if lifecycle.WaitingFor(err) == lifecycle.WaitUse {
			log.Info("retirement waits: the key is, or may be, in use", "err", err)
			return
		}
		log.Error("job waits for a person", "waiting_for", lifecycle.WaitingFor(err), "err", err,
			"advice", "mend what err names, then byokctl retry "+row.ID)
	case lifecycle.Permanent:
		log.Error("job given up", "err", err, "advice", "mend what err names, then ask for it again: byokctl job "+row.ID+" shows its steps")
	default:
		log.Warn("job will be tried again", "attempt", row.Attempt, "err", err)
	}
}

// whileDesignated returns a context that ends when this is no longer the
// designated device: the job that runs under it is put back.
func (d *Daemon) whileDesignated(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(*d.designated.Load(), cancel)
	if !d.cfg.Load().Designated {
		cancel() // the job was claimed in the moment that this changed
	}
	return ctx, func() { stop(); cancel() }
}

// errNotDue ends a scheduled rotation that is no longer due.
var errNotDue = errors.New("a later rotation was made already")

// attempt looks at the three places where a group's keys may be, if that has not
// been done since byokd started, and runs the job.
func (d *Daemon) attempt(ctx context.Context, row *jobstore.Job, job *lifecycle.Job) error {
	defer d.groups.hold(job.Group)()
	l, err := d.groups.reconciledHeld(ctx, job.Group, job.Definition)
	if err != nil {
		return fmt.Errorf("look for the group's keys: %w", err)
	}
	if notDue(row, l) {
		return errNotDue
	}
	return d.engine.Run(cloud.WithPriority(ctx, priority(row)), job)
}

// priority says how early a job's requests get their turns at AWS's quotas.
func priority(row *jobstore.Job) cloud.Priority {
	switch {
	case row.Urgent:
		return cloud.Asked
	case row.Expiring:
		return cloud.Expiring
	}
	return cloud.Routine
}

// settle stores a job's outcome. It goes on trying for as long as byokd runs:
// what it cannot store is found running at the next start and gone on with.
func (d *Daemon) settle(ctx context.Context, row *jobstore.Job, job *lifecycle.Job, err error) {
	applied := err == nil && d.groups.applies(job)
	for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
		serr := d.storeOutcome(context.WithoutCancel(ctx), row, job, err, applied)
		if serr == nil {
			d.storeWorks()
			break
		}
		if errors.Is(serr, jobstore.ErrNotRunning) {
			d.log.Error("the job's outcome is not stored: it is not running any more", "group", row.Group, "job", row.ID, "err", serr)
			return
		}
		d.storeFailed("store a job's outcome", serr)
		if !sleep(ctx, pause, nil) {
			return
		}
	}
	d.wakeEvents()
	if err == nil {
		d.metrics.steps(job)
	}
	d.groups.jobEnded(ctx, job, err == nil, applied)
}

func (d *Daemon) storeOutcome(ctx context.Context, row *jobstore.Job, job *lifecycle.Job, err error, applied bool) error {
	now := d.Now()
	if errors.Is(err, errNotDue) {
		return d.store.Finish(ctx, row.ID, jobstore.Cancelled, err.Error(), jobstore.Change{})
	}
	switch class := lifecycle.ClassOf(err); class {
	case "":
		var c jobstore.Change
		if applied {
			c.Applied = job.Definition.Digest
		}
		return d.store.Finish(ctx, row.ID, jobstore.Completed, "", c)
	case lifecycle.Interrupted:
		return d.store.Release(ctx, row.ID)
	case lifecycle.Permanent:
		c, _ := d.failureEvent(row, job, err, now, true)
		return d.store.Finish(ctx, row.ID, jobstore.Discarded, err.Error(), c)
	default:
		retry := jobstore.Retry{WaitingFor: lifecycle.WaitingFor(err), Error: err.Error()}
		switch {
		case class == lifecycle.Operator && retry.WaitingFor == lifecycle.WaitPIN:
			// Never by itself: a token locks.
		case class == lifecycle.Operator:
			pause := operatorRetry
			if after := lifecycle.RetryAfter(err); after > 0 {
				pause = after
			}
			retry.NextAttempt = now.Add(pause)
		default:
			pause := backoff(row.Attempt, isOutage(err))
			if after := lifecycle.RetryAfter(err); after > 0 {
				pause = min(pause, after)
			}
			retry.NextAttempt = now.Add(pause)
		}
		c, reported := d.failureEvent(row, job, err, now, class == lifecycle.Operator)
		if reported {
			retry.FailureReported = now
		}
		return d.store.Retry(ctx, row.ID, retry, c)
	}
}

// backoff is how long to wait after the given attempt: doubling, a quarter of it
// by chance, so that what failed together does not come back together.
func backoff(attempt int, outage bool) time.Duration {
	longest := lastRetry
	if outage {
		longest = outageRetry
	}
	d := lastRetry
	if attempt < 12 {
		d = firstRetry << max(attempt-1, 0)
	}
	d = min(d, longest)
	return d*3/4 + rand.N(d/4+1)
}

// failureEvent is BYOK Rotation Failed where it is due: at once for what needs a
// person, after a while for what may heal, then at most daily per job.
func (d *Daemon) failureEvent(row *jobstore.Job, job *lifecycle.Job, err error, now time.Time, atOnce bool) (jobstore.Change, bool) {
	if row.Kind != string(lifecycle.Rotate) || job == nil || !d.announces() {
		return jobstore.Change{}, false
	}
	first := row.FirstFailed
	if first.IsZero() {
		first = now
	}
	switch {
	case !row.FailureReported.IsZero() && now.Sub(row.FailureReported) < reportAgain:
		return jobstore.Change{}, false
	case !atOnce && now.Sub(first) < reportAfter:
		return jobstore.Change{}, false
	}
	step := ""
	for _, s := range job.Steps {
		if s.State == lifecycle.Failed || s.State == lifecycle.Running {
			step = s.Name
		}
	}
	event := lifecycle.NewEvent(now, d.origin(job.Definition, job.ID), lifecycle.RotationFailed, nil, map[string]any{
		"step": orNull(step), "error": err.Error(), "attempt": row.Attempt,
		"will_retry":  lifecycle.ClassOf(err) != lifecycle.Permanent,
		"waiting_for": orNull(lifecycle.WaitingFor(err)),
	})
	return jobstore.Change{Events: []jobstore.Event{jobstore.Event(event)}}, true
}

// origin is what events of a definition say of where they come from.
func (d *Daemon) origin(def lifecycle.Definition, jobID string) lifecycle.Origin {
	return lifecycle.Origin{Host: d.host, Group: def.Group, Region: def.Region, Account: d.groups.account(def.Group),
		Credential: def.Credential, JobID: jobID}
}

func orNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// lifecycleJob is a job row as the engine sees it.
func lifecycleJob(row *jobstore.Job) (*lifecycle.Job, error) {
	job := &lifecycle.Job{ID: row.ID, Kind: lifecycle.Kind(row.Kind), Group: row.Group, Generation: row.Generation,
		Trigger: row.Trigger, CreatedAt: row.CreatedAt}
	for _, s := range row.Steps {
		job.Steps = append(job.Steps, lifecycle.Step{Name: s.Name, State: lifecycle.StepState(s.State),
			StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, Message: s.Message, Data: s.Data})
	}
	err := json.Unmarshal(row.Definition, &job.Definition)
	job.Definition.Group = row.Group // the snapshot has the name from before a rename
	if err == nil && len(row.Request) > 0 {
		err = json.Unmarshal(row.Request, &job.Request)
	}
	if err != nil {
		return job, &lifecycle.Fault{Class: lifecycle.Permanent, Err: fmt.Errorf("the job's row cannot be read: %w", err)}
	}
	return job, nil
}

// storeFailed tells, once per outage, that the database cannot be written.
func (d *Daemon) storeFailed(what string, err error) {
	if errors.Is(err, context.Canceled) {
		return // byokd stops; the database has no part in it
	}
	p := &problem{code: "database", since: d.Now()}
	switch {
	case jobstore.IsFull(err):
		p.message = diskFull(d.cfg.Load().Database())
	case jobstore.IsReadOnly(err):
		p.message = fmt.Sprintf("%s cannot be written: mount its file system writable and check its permissions; byokd goes on by itself then", d.cfg.Load().Database())
	case jobstore.IsDamaged(err):
		d.fail(&ExitError{ExitHelpless, fmt.Errorf("the database %s is damaged: move it away, run `byokctl init` and start byokd, which finds its keys again in KMS and the HSM: %w", d.cfg.Load().Database(), err)})
		return
	default:
		p.message = fmt.Sprintf("%s: %v", what, err)
	}
	if d.storing.CompareAndSwap(nil, p) {
		d.log.Error("the database does not take what it should", "what", what, "err", err, "advice", p.message)
	}
}

// diskFull says what to do about a disk that takes no more of the database.
func diskFull(path string) string {
	return fmt.Sprintf("the disk with %s is full: make room; byokd goes on by itself then", path)
}

func (d *Daemon) storeWorks() {
	if d.storing.Swap(nil) != nil {
		d.log.Info("the database can be written again")
		wake(d.jobsWake)
		d.again() // what a definition asked for may not have been stored
	}
}

var errHSMUnavailable = errors.New("the HSM is unavailable")
