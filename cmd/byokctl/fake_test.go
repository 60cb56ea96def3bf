package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"byokd/daemon/control"
)

// A scenario is what a script says of the daemon that it talks to.
type scenario struct {
	Groups        []control.GroupStatus
	Keys          map[string][]control.Key
	Timelines     []control.Timeline
	Plans         []control.Plan
	Events        []control.Event
	Audit         []control.AuditEntry
	Jobs          []control.Job
	Follow        map[string][]json.RawMessage // what changes of a job after its first state, by ID
	Drift         []control.Drift
	HSMs          []control.HSMStatus
	Daemon        control.DaemonStatus
	NotDesignated bool
}

// A fake is a daemon without anything behind it.
type fake struct {
	scenario scenario
	watched  map[string]chan struct{} // closed when all changes of an unfinished job are out

	mu    sync.Mutex
	asked []string
}

func newFake(script []byte) (*fake, error) {
	f := &fake{watched: make(map[string]chan struct{})}
	f.scenario.Daemon = control.DaemonStatus{
		Version: control.BuildVersion(""), Designated: true, Host: "hsm1",
		Config: "/etc/byokd/byokd.toml", LastReload: control.Reload{OK: true},
	}
	if err := json.Unmarshal(script, &f.scenario); err != nil {
		return nil, err
	}
	for _, j := range f.scenario.Jobs {
		f.watched[j.ID] = make(chan struct{})
	}
	return f, nil
}

func (f *fake) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
}

// change is a request that changes something.
func (f *fake) change(format string, args ...any) error {
	f.note(format, args...)
	if f.scenario.NotDesignated {
		return &control.Error{Code: control.NotDesignated, Message: "not designated"}
	}
	return nil
}

func (f *fake) has(group string) error {
	if slices.ContainsFunc(f.scenario.Groups, func(g control.GroupStatus) bool { return g.Group == group }) {
		return nil
	}
	return &control.Error{Code: control.UnknownGroup, Message: "no group " + group}
}

func (f *fake) Status(_ context.Context, groups []string) ([]control.GroupStatus, error) {
	for _, g := range groups {
		if err := f.has(g); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(f.scenario.Groups), func(g control.GroupStatus) bool {
		return len(groups) > 0 && !slices.Contains(groups, g.Group)
	}), nil
}

func (f *fake) Keys(_ context.Context, group string) ([]control.Key, error) {
	return f.scenario.Keys[group], f.has(group)
}

func (f *fake) Timeline(_ context.Context, groups []string) ([]control.Timeline, error) {
	for _, g := range groups {
		if !slices.ContainsFunc(f.scenario.Timelines, func(t control.Timeline) bool { return t.Group == g }) {
			return nil, f.has(g)
		}
	}
	return slices.DeleteFunc(slices.Clone(f.scenario.Timelines), func(t control.Timeline) bool {
		return len(groups) > 0 && !slices.Contains(groups, t.Group)
	}), nil
}

func (f *fake) Plan(_ context.Context, groups []string, rotate bool) ([]control.Plan, error) {
	for _, g := range groups {
		if err := f.has(g); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(f.scenario.Plans), func(p control.Plan) bool {
		return len(groups) > 0 && !slices.Contains(groups, p.Group)
	}), nil
}

func (f *fake) Events(_ context.Context, filter control.EventFilter) ([]control.Event, error) {
	var events []control.Event
	for _, e := range f.scenario.Events {
		if (filter.Group == "" || filter.Group == e.Group) && (filter.State == "" || filter.State == e.State) &&
			(filter.Limit == 0 || len(events) < filter.Limit) {
			events = append(events, e)
		}
	}
	return events, nil
}

func (f *fake) Audit(_ context.Context, filter control.AuditFilter) ([]control.AuditEntry, error) {
	var entries []control.AuditEntry
	for _, a := range f.scenario.Audit {
		if (filter.Group == "" || filter.Group == string(a.Group)) && (filter.JobID == "" || filter.JobID == string(a.JobID)) &&
			(filter.Limit == 0 || len(entries) < filter.Limit) {
			entries = append(entries, a)
		}
	}
	return entries, nil
}

func (f *fake) Jobs(_ context.Context, filter control.JobFilter) ([]control.JobSummary, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var jobs []control.JobSummary
	for _, j := range f.scenario.Jobs {
		if (filter.Group == "" || filter.Group == j.Group) && (filter.State == "" || filter.State == j.State || filter.State == control.JobOpen && !j.Final()) &&
			(filter.Limit == 0 || len(jobs) < filter.Limit) {
			jobs = append(jobs, j.JobSummary)
		}
	}
	return jobs, nil
}

func (f *fake) Job(_ context.Context, id string) (control.Job, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, j := range f.scenario.Jobs {
		if j.ID == id {
			return j, nil
		}
	}
	return control.Job{}, &control.Error{Code: control.UnknownJob, Message: "no job " + id}
}

// of returns the first job of a group.
func (f *fake) of(group string) (control.Job, error) {
	if err := f.has(group); err != nil {
		return control.Job{}, err
	}
	for _, j := range f.scenario.Jobs {
		if j.Group == group {
			return j, nil
		}
	}
	return control.Job{}, fmt.Errorf("the script has no job for %s", group)
}

func (f *fake) Daemon(context.Context) (control.DaemonStatus, error) { return f.scenario.Daemon, nil }

func (f *fake) Watch(ctx context.Context, id string, changed func(control.Job) error) error {
	j, err := f.Job(ctx, id)
	if err != nil {
		return err
	}
	if err := changed(j); err != nil {
		return err
	}
	for _, change := range f.scenario.Follow[id] {
		j.Steps = nil
		if err := json.Unmarshal(change, &j); err != nil {
			return err
		}
		if err := changed(j); err != nil {
			return err
		}
	}
	if j.Final() {
		return nil
	}
	f.mu.Lock()
	select {
	case <-f.watched[id]:
	default:
		close(f.watched[id])
	}
	f.mu.Unlock()
	<-ctx.Done()
	return ctx.Err()
}

func (f *fake) Rotate(_ context.Context, groups []string, all bool, _ string) ([]control.Job, error) {
	if err := f.change("rotate %q all=%t", groups, all); err != nil {
		return nil, err
	}
	if all {
		for _, g := range f.scenario.Groups {
			groups = append(groups, g.Group)
		}
	}
	var jobs []control.Job
	for _, g := range groups {
		j, err := f.of(g)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

func (f *fake) Sync(_ context.Context, r control.SyncRequest, _ string) (control.Job, error) {
	if err := f.change("sync %s generation=%s key_id=%s import=%t policy=%t delete=%t", r.Group,
		number(r.Generation), text(r.KeyID), r.ImportMaterial, r.UpdatePolicy, r.DeleteMaterial); err != nil {
		return control.Job{}, err
	}
	return f.of(r.Group)
}

func (f *fake) Rollback(_ context.Context, r control.RollbackRequest, _ string) (control.Job, error) {
	if err := f.change("rollback %s to=%s", r.Group, number(r.To)); err != nil {
		return control.Job{}, err
	}
	return f.of(r.Group)
}

func (f *fake) Keep(_ context.Context, r control.KeepRequest, _ string) (control.Job, error) {
	if err := f.change("keep %s generation=%d undo=%t", r.Group, r.Generation, r.Undo); err != nil {
		return control.Job{}, err
	}
	return f.of(r.Group)
}

func (f *fake) Retry(ctx context.Context, ids []string, all bool, _ string) ([]control.Job, error) {
	f.note("retry %q all=%t", ids, all)
	var jobs []control.Job
	for _, id := range ids {
		j, err := f.Job(ctx, id)
		if err != nil {
			return nil, err
		}
		if j.State != control.JobRetryable {
			return nil, &control.Error{Code: control.Conflict, Message: "job " + id + " is " + j.State}
		}
		jobs = append(jobs, j)
	}
	if all {
		for _, j := range f.scenario.Jobs {
			if j.State == control.JobRetryable {
				jobs = append(jobs, j)
			}
		}
	}
	return jobs, nil
}

func (f *fake) Drift(_ context.Context, groups []string) ([]control.Drift, error) {
	for _, g := range groups {
		if err := f.has(g); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(slices.Clone(f.scenario.Drift), func(d control.Drift) bool {
		return len(groups) > 0 && !slices.Contains(groups, d.Group)
	}), nil
}

func (f *fake) Cancel(ctx context.Context, id, _ string) (control.Job, error) {
	f.note("cancel %s", id)
	j, err := f.Job(ctx, id)
	if err == nil && j.Final() {
		return j, &control.Error{Code: control.Conflict, Message: "job " + id + " is " + j.State}
	}
	j.State = control.JobCancelled
	return j, err
}

func (f *fake) HSM(_ context.Context, login, _ string) ([]control.HSMStatus, error) {
	if login != "" {
		f.note("login %s", login)
		if !slices.ContainsFunc(f.scenario.HSMs, func(h control.HSMStatus) bool { return h.Name == login }) {
			return nil, &control.Error{Code: control.Usage, Message: "no HSM " + login + " in byokd.toml"}
		}
	}
	return f.scenario.HSMs, nil
}
