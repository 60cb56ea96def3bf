package daemon

import (
	"context"
	"errors"

	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
)

// A journal is the job store as the engine writes it.
type journal struct{ d *Daemon }

func (j journal) Generations(ctx context.Context, group string) ([]lifecycle.Generation, error) {
	rows, err := j.d.store.Generations(ctx, group)
	if err != nil {
		return nil, err
	}
	generations := make([]lifecycle.Generation, len(rows))
	for i, row := range rows {
		generations[i] = generation(row)
	}
	return generations, nil
}

// superseded is the error of a job whose definition, while it ran, was replaced by
// one with another Region, HSM or credential, which only a group without
// generations can get: the job takes none, and begins again with the new one.
func (j journal) superseded(ctx context.Context, c lifecycle.Change) error {
	for _, of := range c.Generations {
		if g, ok := j.d.groups.get(of.Group); ok && g.hasKeys {
			return nil
		}
	}
	row, err := j.d.store.Job(ctx, c.JobID)
	if err != nil {
		return err
	}
	job, err := lifecycleJob(&row)
	if err != nil {
		return err
	}
	g, ok := j.d.groups.get(job.Group)
	if was := job.Definition; ok && g.def != nil && !g.hasKeys && (g.def.AWS.Region != was.Region || g.def.HSM != was.HSM || g.def.Credential != was.Credential) {
		return &lifecycle.Fault{Class: lifecycle.Interrupted, Err: errors.New("the group's definition has changed before it had a key")}
	}
	return nil
}

func (j journal) Record(ctx context.Context, c lifecycle.Change) error {
	if c.Generation != 0 {
		// A load of definitions sees the generation, or this sees what it brought.
		j.d.loading.Lock()
		defer j.d.loading.Unlock()
		if err := j.superseded(ctx, c); err != nil {
			return err
		}
	}
	change := jobstore.Change{JobID: c.JobID, Generation: c.Generation}
	for _, s := range c.Steps {
		change.Steps = append(change.Steps, jobstore.Step{Name: s.Name, State: string(s.State),
			StartedAt: s.StartedAt, FinishedAt: s.FinishedAt, Message: s.Message, Data: s.Data})
	}
	for _, g := range c.Generations {
		change.Generations = append(change.Generations, generationRow(g))
	}
	for _, e := range c.Events {
		change.Events = append(change.Events, jobstore.Event(e))
	}
	for _, a := range c.Audit {
		change.Audit = append(change.Audit, jobstore.AuditEntry(a))
	}
	for _, n := range c.Jobs {
		change.Jobs = append(change.Jobs, newJobRow(n))
	}
	if c.Plan != nil {
		plan := planRow(*c.Plan)
		change.Plan = &plan
	}
	beforeRecord()
	err := j.d.store.Advance(ctx, change)
	if err != nil {
		j.d.storeFailed("record a step", err)
		return err
	}
	afterRecord()
	j.d.storeWorks()
	if len(c.Events) > 0 {
		j.d.wakeEvents()
	}
	for _, n := range c.Jobs {
		j.d.workers.free(j.d.placeOf(n.Group))
	}
	if c.Plan != nil {
		j.d.workers.free(j.d.placeOf(c.Plan.Group))
	}
	j.d.changes.notify()
	return nil
}

func newJobRow(n lifecycle.NewJob) jobstore.NewJob {
	return jobstore.NewJob{Kind: string(n.Kind), Group: n.Group, HSM: n.Definition.HSM,
		Generation: n.Generation, Trigger: n.Trigger, UniqueKey: n.UniqueKey, DueAt: n.DueAt,
		Definition: mustJSON(n.Definition), Request: mustJSON(n.Request), Steps: lifecycle.Steps(n.Kind)}
}

func planRow(p lifecycle.Plan) jobstore.Plan {
	row := jobstore.Plan{Group: p.Group}
	for _, n := range p.Jobs {
		row.Jobs = append(row.Jobs, newJobRow(n))
	}
	return row
}

func generation(g jobstore.Generation) lifecycle.Generation {
	return lifecycle.Generation{Group: g.Group, Number: g.Number, Stage: lifecycle.Stage(g.Stage), HSM: g.HSM,
		HSMLabel: g.HSMLabel, HSMID: g.HSMID, GeneratedAt: g.GeneratedAt, JobID: g.JobID, Region: g.Region,
		Account: g.Account, KeyID: g.KeyID, KeyARN: g.KeyARN, MaterialID: g.MaterialID, CreatedAt: g.CreatedAt,
		ImportedAt: g.ImportedAt, ActivatedAt: g.ActivatedAt, ValidTo: g.ValidTo, DisabledAt: g.DisabledAt,
		MaterialDeletedAt: g.MaterialDeletedAt, DeletionDate: g.DeletionDate, LeftAt: g.LeftAt, KeptAt: g.KeptAt, Policy: g.Policy, Tags: g.Tags}
}

func generationRow(g lifecycle.Generation) jobstore.Generation {
	return jobstore.Generation{Group: g.Group, Number: g.Number, Stage: string(g.Stage), HSM: g.HSM,
		HSMLabel: g.HSMLabel, HSMID: g.HSMID, GeneratedAt: g.GeneratedAt, JobID: g.JobID, Region: g.Region,
		Account: g.Account, KeyID: g.KeyID, KeyARN: g.KeyARN, MaterialID: g.MaterialID, CreatedAt: g.CreatedAt,
		ImportedAt: g.ImportedAt, ActivatedAt: g.ActivatedAt, ValidTo: g.ValidTo, DisabledAt: g.DisabledAt,
		MaterialDeletedAt: g.MaterialDeletedAt, DeletionDate: g.DeletionDate, LeftAt: g.LeftAt, KeptAt: g.KeptAt, Policy: g.Policy, Tags: g.Tags}
}
