package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
)

// The methods of this file are what the control socket asks for.
var _ control.Backend = (*Daemon)(nil)

func controlError(code, format string, args ...any) error {
	return &control.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

func unknownGroup(name string) error {
	return controlError(control.UnknownGroup, "there is no group %q: see `byokctl status`", name)
}

// Status returns the state of the named groups, or of all.
func (d *Daemon) Status(ctx context.Context, names []string) ([]control.GroupStatus, error) {
	if len(names) == 0 {
		names = nil // all
	}
	groups, err := d.states(ctx, names)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		if i >= len(groups) || groups[i].name != name {
			return nil, unknownGroup(name)
		}
	}
	c, err := d.common(ctx)
	if err != nil {
		return nil, err
	}
	statuses := make([]control.GroupStatus, len(groups))
	for i, g := range groups {
		statuses[i] = d.whole(g, c)
	}
	return statuses, nil
}

// Keys returns a group's generations.
func (d *Daemon) Keys(ctx context.Context, name string) ([]control.Key, error) {
	if _, ok := d.groups.get(name); !ok {
		return nil, unknownGroup(name)
	}
	rows, err := d.store.Generations(ctx, name)
	if err != nil {
		return nil, err
	}
	keys := []control.Key{}
	for _, row := range rows {
		g := generation(row)
		keys = append(keys, control.Key{Generation: g.Number, State: g.State(d.Now()), KeyID: control.String(g.KeyID),
			KeyARN: control.String(g.KeyARN), KeyMaterialID: control.String(g.MaterialID), HSMLabel: control.String(g.HSMLabel),
			HSMID: control.String(g.HSMID), CreatedAt: control.At(g.CreatedAt), ImportedAt: control.At(g.ImportedAt), ValidTo: control.At(g.ValidTo)})
	}
	return keys, nil
}

// controlJob is a job row as the control socket shows it.
func controlJob(row jobstore.Job, joined bool) control.Job {
	job := control.Job{JobSummary: control.JobSummary{ID: row.ID, Kind: row.Kind, Group: row.Group, State: row.State,
		Trigger: row.Trigger, WaitingFor: control.String(row.WaitingFor), Joined: joined, CreatedAt: control.At(row.CreatedAt),
		StartedAt: control.At(row.StartedAt), FinishedAt: control.At(row.FinishedAt), NextAttempt: control.At(row.NextAttempt),
		Attempt: row.Attempt, Error: control.String(row.Error)}}
	if row.Generation != 0 || row.Kind == string(lifecycle.Retire) || row.Kind == string(lifecycle.Rollback) || row.Kind == string(lifecycle.Adopt) {
		number := row.Generation
		job.Generation = &number
	}
	for _, s := range row.Steps {
		job.Steps = append(job.Steps, control.Step{Name: s.Name, State: s.State, StartedAt: control.At(s.StartedAt),
			FinishedAt: control.At(s.FinishedAt), Message: control.String(s.Message)})
	}
	return job
}

// knows refuses the name of a group that neither is nor was one; "" is good.
func (d *Daemon) knows(ctx context.Context, name string) error {
	if _, known := d.groups.get(name); known || name == "" {
		return nil
	}
	_, err := d.store.Group(ctx, name)
	if errors.Is(err, jobstore.ErrNotFound) {
		return unknownGroup(name)
	}
	return err
}

// Timeline returns the generations over time of the named groups, or of all.
func (d *Daemon) Timeline(ctx context.Context, names []string) ([]control.Timeline, error) {
	statuses, err := d.Status(ctx, names)
	if err != nil {
		return nil, err
	}
	generations, err := d.allGenerations(ctx, names)
	if err != nil {
		return nil, err
	}
	timelines := []control.Timeline{}
	for _, s := range statuses {
		timelines = append(timelines, control.Timeline{Group: s.Group, State: s.State, Alias: s.Alias,
			NextRotation: s.NextRotation, Generations: periods(generations[s.Group], d.Now())})
	}
	return timelines, nil
}

// allGenerations are those of the named groups, or of all, whatever has become of
// them.
func (d *Daemon) allGenerations(ctx context.Context, names []string) (map[string][]lifecycle.Generation, error) {
	rows, err := d.store.AllGenerations(ctx, names...)
	if err != nil {
		return nil, err
	}
	generations := make(map[string][]lifecycle.Generation)
	for _, row := range rows {
		generations[row.Group] = append(generations[row.Group], generation(row))
	}
	return generations, nil
}

// periods are generations over time: one is active until another takes over.
func periods(generations []lifecycle.Generation, now time.Time) []control.Period {
	var all []control.Period
	for _, g := range generations {
		p := control.Period{Generation: g.Number, State: g.State(now), KeyID: control.String(g.KeyID), MadeAt: control.At(g.GeneratedAt),
			DisabledAt: control.At(g.DisabledAt), MaterialDeletedAt: control.At(g.MaterialDeletedAt),
			DeletionDate: control.At(g.DeletionDate), ValidTo: control.At(g.ValidTo)}
		if p.MadeAt.IsZero() {
			p.MadeAt = control.At(g.CreatedAt)
		}
		if g.Stage == lifecycle.Active || g.Stage == lifecycle.Previous {
			p.ActiveFrom = control.At(g.ActivatedAt)
		}
		all = append(all, p)
	}
	for i := range all {
		p := &all[i]
		if p.ActiveFrom.IsZero() || generations[i].Stage == lifecycle.Active {
			continue
		}
		for _, other := range all {
			if other.ActiveFrom.After(p.ActiveFrom.Time) && (p.ActiveTo.IsZero() || other.ActiveFrom.Before(p.ActiveTo.Time)) {
				p.ActiveTo = other.ActiveFrom
			}
		}
	}
	return all
}

// Events returns the events that byokd emitted, newest first.
func (d *Daemon) Events(ctx context.Context, f control.EventFilter) ([]control.Event, error) {
	if err := d.knows(ctx, f.Group); err != nil {
		return nil, err
	}
	rows, err := d.store.Events(ctx, jobstore.EventFilter(f))
	if err != nil {
		return nil, err
	}
	events := []control.Event{}
	for _, e := range rows {
		events = append(events, control.Event{EventID: e.ID, Sequence: e.Sequence, Group: e.Group, DetailType: e.DetailType, State: e.State,
			OccurredAt: control.At(e.OccurredAt), JobID: control.String(e.JobID), Region: control.String(e.Region),
			Account: control.String(e.Account), Resources: e.Resources, Attempt: e.Attempt, NextAttempt: control.At(e.NextAttempt),
			SentAt: control.At(e.SentAt), AWSEventID: control.String(e.AWSEventID), Error: control.String(e.Error), Detail: e.Detail})
	}
	return events, nil
}

// Audit returns the audit trail, newest first.
func (d *Daemon) Audit(ctx context.Context, f control.AuditFilter) ([]control.AuditEntry, error) {
	if err := d.knows(ctx, f.Group); err != nil {
		return nil, err
	}
	rows, err := d.store.Audit(ctx, jobstore.AuditFilter(f))
	if err != nil {
		return nil, err
	}
	entries := []control.AuditEntry{}
	for _, a := range rows {
		entries = append(entries, control.AuditEntry{At: control.At(a.At), Group: control.String(a.Group), JobID: control.String(a.JobID),
			Actor: a.Actor, Action: a.Action, Detail: control.String(a.Detail), Definition: control.String(a.Definition)})
	}
	return entries, nil
}

// Jobs returns jobs, newest first.
func (d *Daemon) Jobs(ctx context.Context, f control.JobFilter) ([]control.JobSummary, error) {
	if err := d.knows(ctx, f.Group); err != nil {
		return nil, err
	}
	rows, err := d.store.Jobs(ctx, jobstore.JobFilter{Group: f.Group, State: f.State, Limit: f.Limit})
	if err != nil {
		return nil, err
	}
	jobs := []control.JobSummary{}
	for _, row := range rows {
		jobs = append(jobs, controlJob(row, false).JobSummary)
	}
	return jobs, nil
}

// Job returns one job with its steps.
func (d *Daemon) Job(ctx context.Context, id string) (control.Job, error) {
	row, err := d.store.Job(ctx, id)
	if errors.Is(err, jobstore.ErrNotFound) {
		return control.Job{}, controlError(control.UnknownJob, "there is no job %q: see `byokctl jobs`", id)
	}
	if err != nil {
		return control.Job{}, err
	}
	return controlJob(row, false), nil
}

// Watch follows a job to its end.
func (d *Daemon) Watch(ctx context.Context, id string, changed func(control.Job) error) error {
	for {
		next := d.changes.wait()
		job, err := d.Job(ctx, id)
		if err != nil {
			return err
		}
		if err := changed(job); err != nil || job.Final() {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next:
		}
	}
}

// asked returns a group that something can be asked for.
func (d *Daemon) asked(name string) (group, error) {
	g, ok := d.groups.get(name)
	switch {
	case !ok || g.def == nil:
		return g, unknownGroup(name)
	case g.gone:
		return g, controlError(control.Conflict, "the file of group %q is gone: put it back first", name)
	}
	return g, nil
}

func (d *Daemon) mustBeDesignated() error {
	if d.cfg.Load().Designated {
		return nil
	}
	return controlError(control.NotDesignated, "not designated: this byokd changes nothing in AWS (designated = false in %s); ask on the designated device", d.ConfigPath)
}

// Rotate asks for rotations.
func (d *Daemon) Rotate(ctx context.Context, names []string, all bool, by string) ([]control.Job, error) {
	if err := d.mustBeDesignated(); err != nil {
		return nil, err
	}
	d.loading.Lock()
	defer d.loading.Unlock()
	if all {
		names = nil
		for _, name := range d.groups.names() {
			if _, err := d.asked(name); err == nil {
				names = append(names, name)
			}
		}
	}
	var groups []group
	for _, name := range names {
		g, err := d.asked(name)
		if err != nil {
			return nil, err
		}
		groups = append(groups, g)
	}
	jobs := []control.Job{}
	for some := range slices.Chunk(groups, together) {
		var stored []control.Job
		err := d.store.Together(ctx, func(ctx context.Context) error {
			for _, g := range some {
				row, joined, err := d.store.Enqueue(ctx, d.newJob(ask{kind: lifecycle.Rotate, group: g.def, trigger: triggerControl,
					key: "control:" + lifecycle.NewID(d.Now()), urgent: true, by: by}))
				if err != nil {
					return err
				}
				stored = append(stored, controlJob(row, joined))
			}
			return nil
		})
		if err != nil {
			return jobs, d.notStored(err)
		}
		d.storeWorks()
		jobs = append(jobs, stored...)
		wake(d.jobsWake)
		d.changes.notify()
	}
	return jobs, nil
}

// Sync asks for a synchronization.
func (d *Daemon) Sync(ctx context.Context, r control.SyncRequest, by string) (control.Job, error) {
	if err := d.mustBeDesignated(); err != nil {
		return control.Job{}, err
	}
	d.loading.Lock()
	defer d.loading.Unlock()
	g, err := d.asked(r.Group)
	if err != nil {
		return control.Job{}, err
	}
	request := lifecycle.Request{Asked: true, Generation: r.Generation, KeyID: string(r.KeyID),
		ImportMaterial: r.ImportMaterial, UpdatePolicy: r.UpdatePolicy, DeleteMaterial: r.DeleteMaterial}
	if err := d.checkTarget(ctx, g, request); err != nil {
		if refused := (*refusal)(nil); errors.As(err, &refused) {
			return control.Job{}, controlError(control.Usage, "%v", err)
		}
		return control.Job{}, err
	}
	row, joined, err := d.enqueue(ctx, ask{kind: lifecycle.Synchronize, group: g.def, trigger: triggerControl,
		key: "control:" + lifecycle.NewID(d.Now()), request: request, urgent: true, by: by})
	if err != nil {
		return control.Job{}, err
	}
	return controlJob(row, joined), nil
}

// Rollback asks for the alias to be pointed back.
func (d *Daemon) Rollback(ctx context.Context, r control.RollbackRequest, by string) (control.Job, error) {
	return d.askOf(ctx, r.Group, lifecycle.Rollback, lifecycle.Request{}, by, func(generations []lifecycle.Generation) (int, error) {
		if r.To != nil {
			if _, err := numbered(generations, r.Group, *r.To); err != nil {
				return 0, err
			}
		}
		for _, kind := range []lifecycle.Kind{lifecycle.Rotate, lifecycle.Rollback} {
			open, err := d.openJobs(ctx, r.Group, kind)
			if err != nil {
				return 0, err
			}
			if len(open) > 0 {
				return 0, controlError(control.Conflict, "%s job %s of group %s is open: let it end, or end it with `byokctl cancel %s`, then roll back", kind, open[0].ID, r.Group, open[0].ID)
			}
		}
		g, err := lifecycle.RollbackTarget(generations, r.To, d.Now())
		if err != nil {
			return 0, controlError(control.Conflict, "%v", err)
		}
		return g.Number, nil
	})
}

// Keep asks for the end of a generation's retirement, or for the end of that.
func (d *Daemon) Keep(ctx context.Context, r control.KeepRequest, by string) (control.Job, error) {
	request := lifecycle.Request{Retire: lifecycle.RetireKeep}
	if r.Undo {
		request.Retire = lifecycle.RetireRelease
	}
	return d.askOf(ctx, r.Group, lifecycle.Retire, request, by, func(generations []lifecycle.Generation) (int, error) {
		g, err := numbered(generations, r.Group, r.Generation)
		if err != nil {
			return 0, err
		}
		if err := g.Keepable(d.Now()); err != nil {
			return 0, controlError(control.Conflict, "%v", err)
		}
		return g.Number, nil
	})
}

// numbered returns a group's generation of that number.
func numbered(generations []lifecycle.Generation, group string, number int) (lifecycle.Generation, error) {
	for _, g := range generations {
		if g.Number == number {
			return g, nil
		}
	}
	return lifecycle.Generation{}, controlError(control.Usage, "group %s has no generation %d: see `byokctl keys %s`", group, number, group)
}

// askOf asks for a job about the generation that choose returns.
func (d *Daemon) askOf(ctx context.Context, name string, kind lifecycle.Kind, request lifecycle.Request, by string,
	choose func([]lifecycle.Generation) (int, error)) (control.Job, error) {
	if err := d.mustBeDesignated(); err != nil {
		return control.Job{}, err
	}
	d.loading.Lock()
	defer d.loading.Unlock()
	g, err := d.asked(name)
	if err != nil {
		return control.Job{}, err
	}
	generations, err := journal{d}.Generations(ctx, name)
	if err != nil {
		return control.Job{}, err
	}
	number, err := choose(generations)
	if err != nil {
		return control.Job{}, err
	}
	request.Generation = &number
	row, joined, err := d.enqueue(ctx, ask{kind: kind, group: g.def, trigger: triggerControl,
		key: "control:" + lifecycle.NewID(d.Now()), request: request, urgent: true, by: by})
	if err != nil {
		return control.Job{}, err
	}
	return controlJob(row, joined), nil
}

// Retry makes jobs that wait run now.
func (d *Daemon) Retry(ctx context.Context, ids []string, all bool, by string) ([]control.Job, error) {
	var waiting []string
	if all {
		open, err := d.store.OpenJobs(ctx)
		if err != nil {
			return nil, err
		}
		for _, j := range open {
			if j.State == jobstore.Retryable {
				waiting = append(waiting, j.ID)
			}
		}
	}
	for _, id := range ids {
		job, err := d.Job(ctx, id)
		if err != nil {
			return nil, err
		}
		if job.State != jobstore.Retryable {
			return nil, controlError(control.Conflict, "job %s is %s: only a retryable one can be tried again", id, job.State)
		}
		waiting = append(waiting, id)
	}
	jobs := []control.Job{}
	if len(waiting) == 0 {
		return jobs, nil
	}
	if _, err := d.store.Wake(ctx, jobstore.WakeFilter{JobIDs: waiting},
		jobstore.AuditEntry{Actor: by, Action: "retry", Detail: "the job is tried again at once"}); err != nil {
		return nil, err
	}
	d.groups.lookAgain()
	wake(d.jobsWake)
	for _, id := range waiting {
		job, err := d.Job(ctx, id)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, job)
	}
	return jobs, nil
}

// Cancel cancels a job that waits.
func (d *Daemon) Cancel(ctx context.Context, id string, by string) (control.Job, error) {
	if _, err := d.Job(ctx, id); err != nil {
		return control.Job{}, err
	}
	err := d.store.Cancel(ctx, id, jobstore.AuditEntry{Actor: by, Action: "cancel"})
	switch {
	case errors.Is(err, jobstore.ErrRunning), errors.Is(err, jobstore.ErrFinished), errors.Is(err, jobstore.ErrActivated):
		return control.Job{}, controlError(control.Conflict, "%v", err)
	case err != nil:
		return control.Job{}, err
	}
	d.changes.notify()
	wake(d.jobsWake)
	return d.Job(ctx, id)
}

// HSM returns the state of the tokens; with login it first lets byokd log in to
// that one again, and tries once.
func (d *Daemon) HSM(ctx context.Context, login string, by string) ([]control.HSMStatus, error) {
	if login != "" {
		if err := d.tokens.permit(ctx, login, by); err != nil {
			return nil, err
		}
		d.tokens.m[login].look(ctx)
	}
	statuses := []control.HSMStatus{}
	for _, name := range slices.Sorted(maps.Keys(d.tokens.m)) {
		statuses = append(statuses, d.tokens.m[name].status(ctx))
	}
	return statuses, nil
}

// status is what `byokctl hsm` shows of a token.
func (t *token) status(ctx context.Context) control.HSMStatus {
	info := t.token.Info()
	s := control.HSMStatus{Name: t.name, Module: t.cfg.Module, TokenLabel: control.String(info.Label), TokenSerial: control.String(info.Serial),
		TokenModel: control.String(info.Model), TokenFirmware: control.String(info.Firmware), Connected: info.Connected,
		State: "unavailable", Algorithm: control.String(info.Algorithm), LoginBlocked: control.String(t.blocked(ctx))}
	if info.Library != "" {
		s.Library = control.String(info.Library + " " + info.LibraryVersion)
	}
	for _, p := range info.Proofs {
		s.Proofs = append(s.Proofs, control.HSMProof{Algorithm: p.Algorithm, Route: "CKM_RSA_PKCS_OAEP", Outcome: p.Outcome})
	}
	t.mu.Lock()
	away, noted := t.away, t.noted
	t.mu.Unlock()
	switch {
	case info.Hung:
		s.State = "hung"
	case away != nil:
		s.Error = control.String(away.Error())
	case info.Connected:
		s.State = "ready"
	case s.LoginBlocked != "":
		s.State = "login-blocked"
	case !noted && info.Err == nil:
		s.State = control.HSMConnecting
	}
	if info.Err != nil && s.Error == "" {
		s.Error = control.String(info.Err.Error())
	}
	return s
}

// Daemon returns what concerns byokd as a whole.
func (d *Daemon) Daemon(ctx context.Context) (control.DaemonStatus, error) {
	stats, err := d.store.OutboxStats(ctx)
	if err != nil {
		return control.DaemonStatus{}, err
	}
	hsms, err := d.HSM(ctx, "", "")
	if err != nil {
		return control.DaemonStatus{}, err
	}
	hooks, err := d.hooks.statuses(ctx)
	if err != nil {
		return control.DaemonStatus{}, err
	}
	return control.DaemonStatus{Version: control.BuildVersion(d.Version), Designated: d.cfg.Load().Designated, Host: d.host,
		StartedAt: control.At(d.started), Config: d.ConfigPath, LastReload: *d.reloaded.Load(), Endpoints: d.endpoints(),
		Outbox: control.Outbox{Pending: stats.Pending, Parked: stats.Parked}, HSMs: hsms, Hooks: hooks,
		Quotas: control.Quotas{GetParametersForImport: d.cfg.Load().AWS.Quotas.GetParametersForImport, Used: d.quotaUses()}, Problems: d.problems()}, nil
}

// problems are what a person should know of byokd as a whole.
func (d *Daemon) problems() []control.Problem {
	var all []control.Problem
	for _, p := range slices.Concat([]*problem{d.storing.Load(), d.unreadable.Load()}, d.listeners.problems(), d.overloads.problems()) {
		if p != nil {
			all = append(all, control.Problem{Code: p.code, Message: p.message, Since: control.At(p.since)})
		}
	}
	return all
}

// endpoints are the AWS endpoints that are not AWS's own: those for all Regions,
// then those of one.
func (d *Daemon) endpoints() []control.Endpoint {
	var list []control.Endpoint
	all := make(map[string]string)
	for _, region := range append([]string{""}, slices.Sorted(maps.Keys(d.cfg.Load().AWS.Endpoints))...) {
		for _, service := range d.cloud.Services() {
			url, overridden := d.cloud.Endpoint(service, region)
			if !overridden || region != "" && url == all[service] {
				continue
			}
			if region == "" {
				all[service] = url
			}
			list = append(list, control.Endpoint{Service: service, Region: control.String(region), URL: url})
		}
	}
	return list
}
