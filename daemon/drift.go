package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"byokd/config"
	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
	"byokd/schedule"
)

const (
	// driftSettle is how long after a group's last job it is compared with AWS
	// at the earliest: AWS shows changes late, mostly by seconds. A group with
	// differences is compared again then, whatever the schedule.
	driftSettle = time.Minute

	// driftRetry is when a comparison is tried again that could not be made, and
	// driftTold since when that must be so to be a problem.
	driftRetry = 5 * time.Minute
	driftTold  = 15 * time.Minute

	// repairAgain is how long a repair is given to mend a difference before it
	// is asked for again.
	repairAgain = day

	// askedWait is how long a person's comparison waits for a job that runs.
	askedWait = 20 * time.Second

	// comparisons is how many groups are compared at once.
	comparisons = 4
)

// errBusy is a comparison that says nothing, since the group or what byokd knows
// of it has changed meanwhile.
var errBusy = errors.New("a job of the group runs, or its definition is being changed")

// A driftWatch is what is known of a group's comparisons with AWS.
type driftWatch struct {
	every  time.Duration // drift_check when next was chosen
	next   time.Time     // by drift_check
	again  time.Time     // apart from it; zero: not
	inWork bool
	differ bool      // something differed the last time
	err    error     // why it could not be compared the last time
	since  time.Time // since when it cannot

	jobs    int       // that are running
	changes int       // of jobs, begun and ended
	ended   time.Time // when the last one did
}

// jobRuns notes that a job of a group begins, or ends.
func (gs *groups) jobRuns(name string, by int) {
	gs.note(name, func(g *group) {
		w := &g.drift
		w.jobs, w.changes = w.jobs+by, w.changes+1
		if by < 0 {
			w.ended = gs.d.Now()
			if w.differ {
				w.again = w.ended.Add(driftSettle)
			}
		}
		gs.toCompare.add(name)
	})
	if by < 0 {
		wake(gs.d.driftWake)
		wake(gs.d.groupsWake)
	}
}

// watchDrift compares the groups with AWS every drift_check, until ctx ends.
func (d *Daemon) watchDrift(ctx context.Context, p *pulse) {
	if rows, err := d.store.Drift(ctx); err == nil {
		for _, row := range rows {
			d.groups.note(row.Group, func(g *group) { g.drift.differ = true })
		}
	} else if ctx.Err() == nil {
		d.storeFailed("read what differs", err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	defer p.end()
	places := make(chan struct{}, comparisons)
	due, every := new(dueList), time.Duration(0)
	for {
		now := d.Now()
		if e := time.Duration(d.cfg.Load().DriftCheck); e != every {
			every = e
			d.groups.giveBack(&d.groups.toCompare, d.groups.names()...)
		}
		for _, name := range d.groups.take(&d.groups.toCompare) {
			due.set(name, d.groups.nextComparison(name, now))
		}
		for name, ok := due.pop(now); ok; name, ok = due.pop(now) {
			if later, begun := d.groups.beginComparison(name, now); !begun {
				due.set(name, later)
				continue
			}
			resume := p.rest()
			select {
			case places <- struct{}{}:
				resume()
			case <-ctx.Done():
				return
			}
			running.Go(func() {
				defer func() { <-places }()
				_, err := d.compare(ctx, name)
				if ctx.Err() == nil {
					d.groups.compared(name, err)
				}
			})
		}
		if !p.sleep(ctx, due.within(d.Now(), idleLook), d.driftWake) {
			return
		}
	}
}

// nextComparison is when a group is to be compared with AWS; zero: it is not, or
// what it waits for makes it looked at again.
func (gs *groups) nextComparison(name string, now time.Time) time.Time {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.m[name]
	if g == nil {
		return time.Time{}
	}
	return gs.comparison(g, now)
}

// beginComparison reports whether a group is to be compared now, and marks it as
// being compared; else it returns when it is, as nextComparison does.
func (gs *groups) beginComparison(name string, now time.Time) (later time.Time, begun bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g := gs.m[name]
	if g == nil {
		return time.Time{}, false
	}
	if later = gs.comparison(g, now); later.IsZero() || later.After(now) {
		return later, false
	}
	g.drift.inWork = true
	return time.Time{}, true
}

// comparison is nextComparison for who holds gs.mu.
func (gs *groups) comparison(g *group, now time.Time) (due time.Time) {
	cfg := gs.d.cfg.Load()
	if g.def == nil || g.gone || !g.hasKeys || !cfg.Designated || g.drift.inWork {
		return time.Time{}
	}
	w := &g.drift
	if every := time.Duration(cfg.DriftCheck); w.every != every {
		w.every, w.next = every, slot(g.name, every, now)
	}
	due = w.next
	if due.IsZero() || !w.again.IsZero() && w.again.Before(due) {
		due = w.again
	}
	switch {
	case due.IsZero(), w.jobs > 0: // the end of the last one makes it looked at
		return time.Time{}
	case !w.ended.IsZero() && w.ended.Add(driftSettle).After(due) && !w.ended.After(now):
		due = w.ended.Add(driftSettle)
	}
	return due
}

// slot is the next time after now at which a group is compared with AWS: whole
// intervals and a fixed offset, by which the groups are spread. Zero: never.
func slot(name string, every time.Duration, now time.Time) time.Time {
	if every <= 0 {
		return time.Time{}
	}
	at := now.Truncate(every).Add(schedule.Jitter(name, time.Time{}, every))
	if !at.After(now) {
		at = at.Add(every)
	}
	return at
}

// compared notes that a comparison of the schedule has ended.
func (gs *groups) compared(name string, err error) {
	now := gs.d.Now()
	defer wake(gs.d.driftWake)
	gs.note(name, func(g *group) {
		w := &g.drift
		if failed := err != nil && !errors.Is(err, errBusy); failed != (w.err != nil) {
			defer gs.touched(g)
		}
		gs.toCompare.add(name)
		w.inWork, w.next = false, slot(name, w.every, now)
		if !w.again.After(now) { // else a job has ended meanwhile
			w.again = time.Time{}
		}
		switch {
		case errors.Is(err, errBusy):
			w.again = now.Add(driftSettle)
		case err == nil:
			w.err = nil
		default:
			if w.err == nil {
				w.since = now
				gs.d.log.Warn("group cannot be compared with AWS", "group", name, "err", err)
			}
			w.err, w.again = err, now.Add(driftRetry)
		}
	})
}

// compare compares a group with AWS, and where this is the designated device
// records what differs, tells of it and has it repaired if the definition says
// so. It returns what differs.
func (d *Daemon) compare(ctx context.Context, name string) ([]jobstore.Difference, error) {
	before, ok := d.groups.get(name)
	if !ok || before.def == nil || before.drift.jobs > 0 {
		return nil, errBusy
	}
	designated := d.cfg.Load().Designated
	def := d.definition(before.def)
	generations, err := d.knownGenerations(ctx, def, designated)
	if err != nil {
		return nil, err
	}
	found, err := d.engine.Drift(ctx, def, generations, !designated || before.row.AppliedDigest == def.Digest)
	if err != nil {
		return nil, err
	}

	now := d.Now()
	rows := make([]jobstore.Difference, len(found))
	for i, f := range found {
		rows[i] = jobstore.Difference{Group: name, KeyID: f.KeyID, Kind: f.Kind, Generation: f.Generation,
			Expected: f.Expected, Found: f.Found, Message: f.Message, Since: now}
	}
	if !designated {
		return rows, nil // the designated device tells of it
	}
	unknown, err := d.recordDrift(ctx, before, found, rows, now)
	if err == nil && unknown {
		// It may be a double, or a generation that another device has made.
		d.groups.update(name, func(g *group) { g.looked = nil })
		_, err = d.groups.reconciled(ctx, name, def)
	}
	return rows, err
}

// knownGenerations are a group's generations: as the journal has them, or where
// this is not the designated device, as it would have them.
func (d *Daemon) knownGenerations(ctx context.Context, def lifecycle.Definition, designated bool) ([]lifecycle.Generation, error) {
	if !designated {
		seen, err := d.engine.Reconcile(ctx, def, false)
		return seen.Generations, err
	}
	if _, err := d.groups.reconciled(ctx, def.Group, def); err != nil {
		return nil, err
	}
	return journal{d}.Generations(ctx, def.Group)
}

// recordDrift makes durable what differs of a group, which was compared as it was
// before, with the events and the repair that come of it. It sets of the rows
// since when they differ, and returns whether there are new keys among them of
// which byokd does not know.
func (d *Daemon) recordDrift(ctx context.Context, before group, found []lifecycle.Difference, rows []jobstore.Difference, now time.Time) (unknown bool, err error) {
	d.loading.Lock()
	defer d.loading.Unlock()
	g, ok := d.groups.get(before.name)
	if !ok || g.def == nil || g.def.Digest() != before.def.Digest() || g.row.AppliedDigest != before.row.AppliedDigest ||
		g.drift.changes != before.drift.changes || !d.cfg.Load().Designated {
		return false, errBusy
	}
	old, err := d.store.Drift(ctx, g.name)
	if err != nil {
		return false, err
	}
	var fresh []string // IDs of keys of which there is something new
	repair := false
	for i := range rows {
		row := &rows[i]
		j := slices.IndexFunc(old, func(o jobstore.Difference) bool { return o.KeyID == row.KeyID && o.Kind == row.Kind })
		if j >= 0 {
			row.Since = old[j].Since
		}
		if j < 0 || old[j].Message != row.Message {
			if !slices.Contains(fresh, row.KeyID) {
				fresh = append(fresh, row.KeyID)
			}
			unknown = unknown || row.Kind == lifecycle.DriftUnknownKey
			d.log.Warn("AWS has something otherwise than byokd", "group", g.name, "difference", row.Kind, "key_id", row.KeyID, "message", row.Message)
		} else {
			row.RepairAt = old[j].RepairAt
		}
		if g.def.Rotation.Drift == "repair" && found[i].Repairable && (row.RepairAt.IsZero() || now.Sub(row.RepairAt).Abs() >= repairAgain) {
			row.RepairAt, repair = now, true
		}
	}
	var events []jobstore.Event
	for _, id := range fresh {
		events = append(events, jobstore.Event(d.driftEvent(g.def, id, found, now)))
	}
	var jobs []jobstore.NewJob
	if repair {
		jobs = append(jobs, d.newJob(ask{kind: lifecycle.Synchronize, group: g.def, trigger: triggerDrift,
			key: "drift:" + lifecycle.NewID(now), request: lifecycle.Request{Repair: true}}))
	}
	if err := d.store.SetDrift(ctx, g.name, now, rows, events, jobs); err != nil {
		d.storeFailed("store what differs", err)
		return false, err
	}
	if len(old) > 0 && len(rows) == 0 {
		d.log.Info("AWS is as byokd has it again", "group", g.name)
	}
	d.groups.note(g.name, func(g *group) { g.row.DriftChecked, g.drift.differ = now, len(rows) > 0 })
	d.wakeEvents()
	wake(d.jobsWake)
	d.changes.notify()
	return unknown, nil
}

// driftEvent tells of all that differs of one key.
func (d *Daemon) driftEvent(def *config.Group, keyID string, found []lifecycle.Difference, now time.Time) lifecycle.Event {
	var generation any
	var arn string
	differences := []map[string]any{}
	for _, f := range found {
		if f.KeyID != keyID {
			continue
		}
		arn = f.KeyARN
		if f.Generation != nil {
			generation = *f.Generation
		}
		differences = append(differences, map[string]any{"kind": f.Kind, "expected": orNull(f.Expected), "found": orNull(f.Found), "message": f.Message})
	}
	return lifecycle.NewEvent(now, d.origin(d.definition(def), ""), lifecycle.DriftDetected, []string{arn},
		map[string]any{"key_id": keyID, "generation": generation, "differences": differences})
}

// driftProblems are what a person should know of a group's comparisons with AWS.
func driftProblems(g group, v *view) (problems []control.Problem) {
	for _, row := range v.drift[g.name] {
		message := row.Message
		if !row.RepairAt.IsZero() {
			message += "; its repair was asked for at " + row.RepairAt.UTC().Format(time.RFC3339)
		}
		problems = append(problems, control.Problem{Code: "drift-" + row.Kind, Message: message, Since: control.At(row.Since)})
	}
	if w := g.drift; w.err != nil && v.now.Sub(w.since) >= driftTold {
		problems = append(problems, control.Problem{Code: "drift-check", Since: control.At(w.since),
			Message: fmt.Sprintf("byokd cannot compare AWS with what it knows, and tries again every %s: %v", driftRetry, w.err)})
	}
	return problems
}

// compareAsked is compare for a person, who waits a while for a job that runs.
func (d *Daemon) compareAsked(ctx context.Context, name string) ([]jobstore.Difference, error) {
	limit := time.NewTimer(askedWait)
	defer limit.Stop()
	for {
		next := d.changes.wait()
		rows, err := d.compare(ctx, name)
		if !errors.Is(err, errBusy) {
			return rows, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-limit.C:
			return nil, err
		case <-next:
		}
	}
}

// Drift compares groups with AWS now.
func (d *Daemon) Drift(ctx context.Context, names []string) ([]control.Drift, error) {
	if len(names) == 0 {
		for _, name := range d.groups.names() {
			if g, ok := d.groups.get(name); ok && g.def != nil && !g.gone {
				names = append(names, name)
			}
		}
	}
	for _, name := range names {
		if _, err := d.asked(name); err != nil {
			return nil, err
		}
	}
	list := []control.Drift{}
	for _, name := range names {
		drift := control.Drift{Group: name}
		rows, err := d.compareAsked(ctx, name)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			drift.Error = control.String(err.Error())
		} else {
			drift.CheckedAt = control.At(d.Now())
		}
		for _, row := range rows {
			drift.Differences = append(drift.Differences, control.Difference{Kind: row.Kind, Generation: row.Generation, KeyID: control.String(row.KeyID),
				Expected: control.String(row.Expected), Found: control.String(row.Found), Message: row.Message, Since: control.At(row.Since)})
		}
		list = append(list, drift)
	}
	return list, nil
}
