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

// A view is what the state of all groups is read from, at one time.
type view struct {
	now         time.Time
	generations map[string][]lifecycle.Generation
	open        map[string][]jobstore.Job
	discarded   map[string]jobstore.Job // a group's last job of its kind, where it was given up
	parked      map[string][]jobstore.OutboxEvent
	drift       map[string][]jobstore.Difference
	tokens      map[string]*problem
	hooks       map[string][]jobstore.Hook // that failed, by the group of the event
	storing     *problem
}

func (d *Daemon) view(ctx context.Context) (*view, error) {
	v := &view{now: d.Now(), generations: make(map[string][]lifecycle.Generation), open: make(map[string][]jobstore.Job),
		discarded: make(map[string]jobstore.Job), parked: make(map[string][]jobstore.OutboxEvent), drift: make(map[string][]jobstore.Difference),
		tokens: make(map[string]*problem), hooks: make(map[string][]jobstore.Hook), storing: d.storing.Load()}
	rows, err := d.store.AllGenerations(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range rows {
		v.generations[row.Group] = append(v.generations[row.Group], generation(row))
	}
	jobs, err := d.store.OpenJobs(ctx)
	if err != nil {
		return nil, err
	}
	for _, j := range jobs {
		v.open[j.Group] = append(v.open[j.Group], j)
	}
	given, err := d.store.GivenUp(ctx)
	if err != nil {
		return nil, err
	}
	for _, j := range given {
		v.discarded[j.Group] = j
	}
	differ, err := d.store.Drift(ctx)
	if err != nil {
		return nil, err
	}
	for _, row := range differ {
		v.drift[row.Group] = append(v.drift[row.Group], row)
	}
	stats, err := d.store.OutboxStats(ctx)
	if err != nil {
		return nil, err
	}
	if stats.Parked > 0 {
		parked, err := d.store.Events(ctx, jobstore.EventFilter{State: jobstore.Parked})
		if err != nil {
			return nil, err
		}
		for _, e := range parked {
			v.parked[e.Group] = append(v.parked[e.Group], e)
		}
	}
	hooks, err := d.store.Hooks(ctx)
	if err != nil {
		return nil, err
	}
	for _, h := range hooks {
		if h.Error != "" {
			v.hooks[h.Group] = append(v.hooks[h.Group], h)
		}
	}
	for name, t := range d.tokens.m {
		v.tokens[name] = t.problem(ctx)
	}
	return v, nil
}

// groupStatus is the state of one group.
func (d *Daemon) groupStatus(g group, v *view) control.GroupStatus {
	s := control.GroupStatus{Group: g.name, State: control.GroupOK, Account: control.String(g.row.Account)}
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
		// A KMS key ends with the first of its materials.
		if gen.KeyID == "" || gen.KeyID != string(s.Active.KeyID) || gen.ValidTo.IsZero() {
			continue
		}
		if at := s.Active.ValidTo; at.IsZero() || gen.ValidTo.Before(at.Time) {
			s.Active.ValidTo = control.At(gen.ValidTo)
		}
	}
	s.LastRotation = control.At(lifecycle.LastRotation(generations))
	expired := !s.Active.ValidTo.IsZero() && !v.now.Before(s.Active.ValidTo.Time)
	_, at, _ := d.nextAfter(g, s.LastRotation.Time)
	expiry := d.expiryProblems(g, v, at)
	if r := d.renewal(g, generations, at); r.job == lifecycle.Rotate && (at.IsZero() || r.at.Before(at)) {
		at = r.at
	}
	s.NextRotation = control.At(at)
	due := overdueSince(g, v, at)
	s.Problems = slices.Concat(d.groupProblems(g, v, due), expiry, driftProblems(g, v))

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
	case !due.IsZero():
		s.State = control.GroupOverdue
	case len(v.drift[g.name]) > 0:
		s.State = control.GroupDrifted
	case rotating:
		s.State = control.GroupRotating
	case g.lookErr != nil, s.Active.Generation == nil:
		s.State = control.GroupPending
	}
	return s
}

// overdueSince is the due date of a rotation that is late by more than
// overdue_after; zero: none is.
func overdueSince(g group, v *view, next time.Time) time.Time {
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
	if due.IsZero() || v.now.Before(due.Add(time.Duration(g.def.Rotation.OverdueAfter))) {
		return time.Time{}
	}
	return due
}

// groupProblems is everything about a group that a person should know.
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
	for _, h := range v.hooks[g.name] {
		add("hook-failed", fmt.Sprintf("hook %q failed for event %s: %s; mend its command, then reload byokd; it is not run again for this event", h.Name, h.EventID, h.Error), h.RanAt)
	}
	if g.def != nil {
		if p := v.tokens[g.def.HSM]; p != nil {
			add(p.code, p.message, p.since)
		}
	}
	for _, p := range []*problem{d.outbox.problem(g), v.storing, d.unreadable.Load()} {
		if p != nil {
			add(p.code, p.message, p.since)
		}
	}
	return problems
}
