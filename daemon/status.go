package daemon

import (
	"context"
	"fmt"
	"slices"
	"time"

	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
)

// A view is what the state of groups is read from, at one time.
type view struct {
	now         time.Time
	generations map[string][]lifecycle.Generation // of a group's keys in use
	rotated     map[string]time.Time              // when a group was last rotated
	open        map[string][]jobstore.Job
	discarded   map[string]jobstore.Job // a group's last job of its kind, where it was given up
	parked      map[string][]jobstore.OutboxEvent
	drift       map[string][]jobstore.Difference
}

// view reads what concerns the groups named, or all.
func (d *Daemon) view(ctx context.Context, names ...string) (*view, error) {
	v := &view{now: d.Now(), generations: make(map[string][]lifecycle.Generation), rotated: make(map[string]time.Time), open: make(map[string][]jobstore.Job),
		discarded: make(map[string]jobstore.Job), parked: make(map[string][]jobstore.OutboxEvent), drift: make(map[string][]jobstore.Difference)}
	keys, err := d.groups.keysOf(ctx, names...)
	if err != nil {
		return nil, err
	}
	for name, k := range keys {
		v.generations[name], v.rotated[name] = k.inUse, k.rotated
	}
	jobs, err := d.store.OpenJobs(ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		v.open[j.Group] = append(v.open[j.Group], j)
	}
	given, err := d.store.GivenUp(ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, j := range given {
		v.discarded[j.Group] = j
	}
	differ, err := d.store.Drift(ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, row := range differ {
		v.drift[row.Group] = append(v.drift[row.Group], row)
	}
	parked, err := d.store.ParkedEvents(ctx, names...)
	if err != nil {
		return nil, err
	}
	for _, e := range parked {
		v.parked[e.Group] = append(v.parked[e.Group], e)
	}
	return v, nil
}

// A shown is the state of a group as it was worked out, without what is so of many
// groups at once. It is so until something of the group changes, or time has come.
type shown struct {
	control.GroupStatus
	common    int       // the place of what is so of many groups among the problems
	due       time.Time // of a rotation that is overdue; zero: none is
	nextEnd   time.Time // the earliest end of material under which something can be decrypted; zero: none ends
	at, until time.Time // it is so from, and for how long by time alone
}

// longestShown is how long the state of a group is taken to stay as it is, if
// nothing tells otherwise.
const longestShown = 6 * time.Hour

// current reports whether nothing of a group has changed since its state was worked
// out.
func (g *group) current() bool { return g.shown != nil && g.shownVersion == g.version }

// holds reports whether a group's state is still as it was worked out.
func (g *group) holds(now time.Time) bool {
	return g.current() && !now.Before(g.shown.at) && now.Before(g.shown.until)
}

// groupStatus works the state of one group out.
func (d *Daemon) groupStatus(g group, v *view) *shown {
	s := &shown{at: v.now, until: v.now.Add(longestShown)}
	s.State, s.Group, s.Account = control.GroupOK, g.name, control.String(g.row.Account)
	generations := v.generations[g.name]
	if g.def != nil {
		s.Alias, s.Region = control.String(g.def.AWS.Alias), control.String(g.def.AWS.Region)
	}
	for _, gen := range generations {
		if gen.Stage == lifecycle.Active {
			number := gen.Number
			s.Active = control.ActiveKey{Generation: &number, KeyID: control.String(gen.KeyID), KeyARN: control.String(gen.KeyARN), ValidTo: control.At(gen.ValidTo)}
		}
	}
	for _, gen := range generations {
		if gen.ValidTo.IsZero() {
			continue
		}
		if decrypts(gen) && (s.nextEnd.IsZero() || gen.ValidTo.Before(s.nextEnd)) {
			s.nextEnd = gen.ValidTo
		}
		// A KMS key ends with the first of its materials.
		if gen.KeyID == "" || gen.KeyID != string(s.Active.KeyID) {
			continue
		}
		if at := s.Active.ValidTo; at.IsZero() || gen.ValidTo.Before(at.Time) {
			s.Active.ValidTo = control.At(gen.ValidTo)
		}
	}
	s.LastRotation = control.At(v.rotated[g.name])
	expired := !s.Active.ValidTo.IsZero() && !v.now.Before(s.Active.ValidTo.Time)
	_, at, _ := d.nextAfter(g, s.LastRotation.Time)
	expiry := d.expiryProblems(g, v, at)
	r := d.renewal(g, generations, at)
	if r.job == lifecycle.Rotate && (at.IsZero() || r.at.Before(at)) {
		at = r.at
	}
	late := at
	first := d.firstDue(g, generations)
	if !first.IsZero() {
		at = first
		if g.lookErr != nil { // else it has just begun to look
			late = first
		}
	}
	s.NextRotation = control.At(at)
	s.due = overdueSince(g, v, late)
	problems := d.groupProblems(g, v, s.due)
	s.common = len(problems)
	s.Problems = slices.Concat(problems, expiry, driftProblems(g, v))

	var failing, rotating bool
	for _, j := range v.open[g.name] {
		// That a key in use is not retired is as it should be.
		failing = failing || j.State == jobstore.Retryable && j.WaitingFor != lifecycle.WaitUse
		rotating = rotating || j.Kind == string(lifecycle.Rotate)
	}
	_, given := v.discarded[g.name]
	switch {
	case g.gone:
		s.State = control.GroupRemoved
	case g.invalid != nil:
		s.State = control.GroupInvalid
	case expired:
		s.State = control.GroupExpired
	case failing || given:
		s.State = control.GroupFailing
	case !s.due.IsZero():
		s.State = control.GroupOverdue
	case len(v.drift[g.name]) > 0:
		s.State = control.GroupDrifted
	case rotating:
		s.State = control.GroupRotating
	case g.lookErr != nil, s.Active.Generation == nil:
		s.State = control.GroupPending
	}

	// When time alone makes something else of it.
	soon := func(at time.Time) {
		if at.After(v.now) && at.Before(s.until) {
			s.until = at
		}
	}
	soon(at)
	soon(r.at)
	if g.def != nil {
		if due := overdueFrom(g, v, late); !due.IsZero() {
			soon(due.Add(time.Duration(g.def.Rotation.OverdueAfter)))
		}
		if first.IsZero() && !at.IsZero() && !at.After(v.now) {
			soon(v.now.Add(time.Minute)) // until it is fired
		}
	}
	if g.invalid != nil && !g.told {
		soon(g.since.Add(invalidAfter))
	}
	if g.drift.err != nil {
		soon(g.drift.since.Add(driftTold))
	}
	for _, gen := range generations {
		for _, at := range turns(gen) {
			soon(at)
		}
	}
	return s
}

// turns are the times at which it matters how far the end of a generation's material
// is away.
func turns(g lifecycle.Generation) []time.Time {
	if g.ValidTo.IsZero() || !decrypts(g) {
		return nil
	}
	renewed := renewedAt(g)
	at := []time.Time{g.ValidTo, renewed, g.ValidTo.Add(-min(tickMargin, g.ValidTo.Sub(renewed)/2)), g.ValidTo.Add(-tickMargin)}
	for _, days := range expiryWarnings {
		at = append(at, g.ValidTo.Add(-time.Duration(days)*day))
	}
	return at
}

// A common is what is so of many groups at once, and is not kept with each of them.
type common struct {
	tokens     map[string]*problem
	hooks      map[string][]jobstore.Hook // that failed, by the group of the event
	storing    *problem
	unreadable *problem
}

func (d *Daemon) common(ctx context.Context) (common, error) {
	c := common{tokens: make(map[string]*problem), storing: d.storing.Load(), unreadable: d.unreadable.Load()}
	failed, err := d.store.FailedHooks(ctx)
	if err != nil {
		return c, err
	}
	for _, h := range failed {
		if c.hooks == nil {
			c.hooks = make(map[string][]jobstore.Hook)
		}
		c.hooks[h.Group] = append(c.hooks[h.Group], h)
	}
	for name, t := range d.tokens.m {
		if p := t.problem(ctx); p != nil {
			c.tokens[name] = p
		}
	}
	return c, nil
}

// whole is a group's state with what is so of many groups.
func (d *Daemon) whole(g *group, c common) control.GroupStatus {
	s := g.shown.GroupStatus
	var more []control.Problem
	for _, h := range c.hooks[g.name] {
		more = append(more, control.Problem{Code: "hook-failed", Since: control.At(h.RanAt),
			Message: fmt.Sprintf("hook %q failed for event %s: %s; mend its command, then reload byokd; it is not run again for this event", h.Name, h.EventID, h.Error)})
	}
	var token *problem
	if g.def != nil {
		token = c.tokens[g.def.HSM]
	}
	for _, p := range [...]*problem{token, d.outbox.problem(g.def), c.storing, c.unreadable} {
		if p != nil {
			more = append(more, control.Problem{Code: p.code, Message: p.message, Since: control.At(p.since)})
		}
	}
	if len(more) > 0 {
		s.Problems = slices.Concat(s.Problems[:g.shown.common], more, s.Problems[g.shown.common:])
	}
	return s
}

// overdueSince is the due date of a rotation that is late by more than
// overdue_after; zero: none is.
func overdueSince(g group, v *view, next time.Time) time.Time {
	due := overdueFrom(g, v, next)
	if due.IsZero() || v.now.Before(due.Add(time.Duration(g.def.Rotation.OverdueAfter))) {
		return time.Time{}
	}
	return due
}

// overdueFrom is the due date of a group's rotation; zero: none is due, nor will be.
func overdueFrom(g group, v *view, next time.Time) time.Time {
	if g.def == nil || g.gone {
		return time.Time{}
	}
	var due time.Time
	for _, j := range v.open[g.name] {
		if j.Kind != string(lifecycle.Rotate) {
			continue
		}
		if due = j.ScheduledAt; due.IsZero() {
			due = j.CreatedAt
		}
	}
	if due.IsZero() {
		due = next
	}
	return due
}

// groupProblems is what a person should know about a group, but for the expiry of
// its keys, drift, and what is so of many groups.
func (d *Daemon) groupProblems(g group, v *view, due time.Time) []control.Problem {
	problems := []control.Problem{}
	add := func(code, message string, since time.Time) {
		problems = append(problems, control.Problem{Code: code, Message: message, Since: control.At(since)})
	}
	for _, p := range g.invalid {
		add("invalid", p.String(), g.since)
	}
	if g.gone {
		add("removed", "the group's file is gone: no more rotations; its keys stay as they are", g.row.RemovedAt)
	}
	for _, j := range v.open[g.name] {
		if j.State != jobstore.Retryable {
			continue
		}
		message := fmt.Sprintf("%s job %s: %s", j.Kind, j.ID, j.Error)
		if j.WaitingFor == lifecycle.WaitUse {
			add("waiting-use", fmt.Sprintf("generation %d: %s", j.Generation, j.Error), j.FirstFailed)
		} else if j.WaitingFor != "" {
			add("waiting-"+j.WaitingFor, message+"; when that is mended: byokctl retry "+j.ID, j.FirstFailed)
		} else {
			add("retrying", fmt.Sprintf("%s; tried again at %s", message, j.NextAttempt.UTC().Format(time.RFC3339)), j.FirstFailed)
		}
	}
	if j, ok := v.discarded[g.name]; ok {
		add("discarded", fmt.Sprintf("%s job %s was given up: %s", j.Kind, j.ID, j.Error), j.FinishedAt)
	}
	if !due.IsZero() {
		add("overdue", "a rotation was due at "+due.UTC().Format(time.RFC3339), due)
	}
	if g.lookErr != nil {
		add("pending", "byokd cannot look for the group's keys, and makes none before it can: "+g.lookErr.Error(), g.lookSince)
	}
	for _, alias := range g.row.OldAliases {
		add("old-alias", fmt.Sprintf("%s was the group's alias and moves no more: delete it when nothing uses it, or list it in former_aliases", alias), g.row.EnabledAt)
	}
	if g.looked != nil {
		for _, f := range g.looked.Problems {
			if f.Code != lifecycle.ObjectMissing || g.watchedAt.Before(g.looked.at) {
				add(f.Code, f.Message, g.looked.at)
			}
		}
	}
	for _, f := range g.watched {
		if f.Code != lifecycle.ObjectMissing || g.looked == nil || !g.watchedAt.Before(g.looked.at) {
			add(f.Code, f.Message, g.watchedAt)
		}
	}
	for _, e := range v.parked[g.name] {
		add("event-parked", fmt.Sprintf("event %s, %s, is not taken by EventBridge and is parked: %s", e.ID, e.DetailType, e.Error), e.OccurredAt)
	}
	return problems
}
