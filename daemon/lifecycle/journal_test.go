package lifecycle_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"byokd/daemon/lifecycle"
)

// A fakeJournal keeps in memory what the real one keeps in SQLite, under the same
// rules: a Change is written whole or not at all, only by a job that runs; times
// are in milliseconds; a generation keeps its HSM key.
type fakeJournal struct {
	w           *world
	ids         int
	generations map[string][]lifecycle.Generation
	jobs        map[string]*jobRow
	order       []string
	unique      map[string]string // unique key to job ID
	events      []sentEvent
	sequence    map[string]int
	audit       []lifecycle.AuditEntry
}

type jobRow struct {
	kind       lifecycle.Kind
	group      string
	generation int
	trigger    string
	def        lifecycle.Definition
	req        lifecycle.Request
	created    time.Time
	due        time.Time
	state      string
	steps      []lifecycle.Step
}

type sentEvent struct {
	lifecycle.Event
	sequence int
	detail   map[string]any
}

// roundTrip is what is left of a value that was written and read as JSON.
func roundTrip[T any](v T) (out T) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		panic(err)
	}
	return out
}

func ms(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC().Truncate(time.Millisecond)
}

func keptGeneration(g lifecycle.Generation) lifecycle.Generation {
	for _, t := range []*time.Time{&g.GeneratedAt, &g.CreatedAt, &g.ImportedAt, &g.ActivatedAt, &g.ValidTo, &g.DisabledAt, &g.MaterialDeletedAt, &g.DeletionDate, &g.LeftAt, &g.KeptAt} {
		*t = ms(*t)
	}
	g.Tags = maps.Clone(g.Tags)
	return g
}

func keptStep(s lifecycle.Step) lifecycle.Step {
	s.StartedAt, s.FinishedAt, s.Data = ms(s.StartedAt), ms(s.FinishedAt), bytes.Clone(s.Data)
	return s
}

func (j *fakeJournal) enqueue(kind lifecycle.Kind, def lifecycle.Definition, req lifecycle.Request, trigger string) string {
	return j.insert(lifecycle.NewJob{Kind: kind, Group: def.Group, Trigger: trigger, DueAt: j.w.now, Definition: def, Request: req,
		UniqueKey: fmt.Sprintf("test:%d", j.ids)})
}

func (j *fakeJournal) insert(n lifecycle.NewJob) string {
	if id, ok := j.unique[n.UniqueKey]; ok {
		return id
	}
	j.ids++
	id := fmt.Sprintf("job-%d", j.ids)
	j.jobs[id] = &jobRow{kind: n.Kind, group: n.Group, generation: n.Generation, trigger: n.Trigger, def: roundTrip(n.Definition), req: roundTrip(n.Request),
		created: j.w.now, due: n.DueAt, state: "available"}
	j.order = append(j.order, id)
	j.unique[n.UniqueKey] = id
	return id
}

// claim marks a job as running and returns it as the journal has it.
func (j *fakeJournal) claim(id string) lifecycle.Job {
	row := j.jobs[id]
	row.state = "running"
	job := lifecycle.Job{ID: id, Kind: row.kind, Group: row.group, Generation: row.generation, Trigger: row.trigger,
		Definition: roundTrip(row.def), Request: roundTrip(row.req), CreatedAt: row.created}
	for _, s := range row.steps {
		job.Steps = append(job.Steps, keptStep(s))
	}
	return job
}

func (j *fakeJournal) park(id, state string)   { j.jobs[id].state = state }
func (j *fakeJournal) finish(id, state string) { j.jobs[id].state = state }

// rescue settles the jobs that a dead process left running.
func (j *fakeJournal) rescue() {
	for _, row := range j.jobs {
		if row.state == "running" {
			row.state = "available"
		}
	}
}

// nextDue returns the open job that is due first, or "".
func (j *fakeJournal) nextDue() string {
	next := ""
	for _, id := range j.order {
		row := j.jobs[id]
		if row.state != "completed" && row.state != "discarded" && row.state != "cancelled" && (next == "" || row.due.Before(j.jobs[next].due)) {
			next = id
		}
	}
	return next
}

func (j *fakeJournal) Generations(ctx context.Context, group string) (list []lifecycle.Generation, err error) {
	err = j.w.do(ctx, "journal.Generations", false, func() error {
		for _, g := range j.generations[group] {
			list = append(list, keptGeneration(g))
		}
		return nil
	})
	return list, err
}

func (j *fakeJournal) Record(ctx context.Context, c lifecycle.Change) error {
	return j.w.do(ctx, "journal.Record", true, func() error {
		if err := j.apply(c); err != nil {
			j.w.t.Errorf("journal: %v", err)
			return err
		}
		return nil
	})
}

// apply writes a change, or says why it cannot be.
func (j *fakeJournal) apply(c lifecycle.Change) error {
	var row *jobRow
	if c.JobID != "" {
		if row = j.jobs[c.JobID]; row == nil || row.state != "running" {
			return fmt.Errorf("job %s is not running", c.JobID)
		}
	} else if len(c.Steps) > 0 || c.Generation != 0 {
		return errors.New("steps or a generation of no job")
	}

	generations := make(map[string][]lifecycle.Generation)
	for _, g := range c.Generations {
		list, ok := generations[g.Group]
		if !ok {
			list = slices.Clone(j.generations[g.Group])
		}
		i := slices.IndexFunc(list, func(old lifecycle.Generation) bool { return old.Number == g.Number })
		if i < 0 {
			list = append(list, keptGeneration(g))
			slices.SortFunc(list, func(a, b lifecycle.Generation) int { return a.Number - b.Number })
		} else {
			switch old := list[i]; {
			case old.HSMID != "" && old.HSMID != g.HSMID:
				return fmt.Errorf("generation %d: another HSM key", g.Number)
			case old.KeyID != "" && old.KeyID != g.KeyID:
				return fmt.Errorf("generation %d: another KMS key", g.Number)
			case old.Stage == lifecycle.Destroyed && g.Stage != lifecycle.Destroyed:
				return fmt.Errorf("generation %d rises from the dead", g.Number)
			case (old.Stage == lifecycle.Active || old.Stage == lifecycle.Previous) && (g.Stage == lifecycle.PreActive || g.Stage == lifecycle.Destroyed):
				return fmt.Errorf("generation %d: from %s to %s", g.Number, old.Stage, g.Stage)
			}
			list[i] = keptGeneration(g)
		}
		for _, stage := range []lifecycle.Stage{lifecycle.Active, lifecycle.PreActive} {
			n := 0
			for _, g := range list {
				if g.Stage == stage {
					n++
				}
			}
			if n > 1 {
				return fmt.Errorf("%d generations of %s are %s", n, g.Group, stage)
			}
		}
		generations[g.Group] = list
	}
	events := slices.Clone(j.events)
	sequence := maps.Clone(j.sequence)
	for _, e := range c.Events {
		if slices.ContainsFunc(events, func(old sentEvent) bool { return old.ID == e.ID }) {
			return fmt.Errorf("event %s is there already", e.ID)
		}
		var detail map[string]any
		if err := json.Unmarshal(e.Detail, &detail); err != nil {
			return err
		}
		sequence[e.Group]++
		events = append(events, sentEvent{e, sequence[e.Group], detail})
	}
	if row != nil {
		for _, s := range c.Steps {
			if !slices.Contains(lifecycle.Steps(row.kind), s.Name) {
				return fmt.Errorf("a %s has no step %s", row.kind, s.Name)
			}
		}
	}
	for _, a := range c.Audit {
		if a.At.IsZero() || a.Group == "" || a.Actor == "" || a.Action == "" || a.Detail == "" || a.JobID != c.JobID {
			return fmt.Errorf("audit entry %+v is not complete", a)
		}
	}

	// From here on nothing can fail.
	if row != nil {
		if c.Generation != 0 {
			row.generation = c.Generation
		}
		for _, s := range c.Steps {
			if i := slices.IndexFunc(row.steps, func(old lifecycle.Step) bool { return old.Name == s.Name }); i >= 0 {
				row.steps[i] = keptStep(s)
			} else {
				row.steps = append(row.steps, keptStep(s))
			}
		}
	}
	maps.Copy(j.generations, generations)
	j.events, j.sequence = events, sequence
	j.audit = append(j.audit, c.Audit...)
	for _, n := range c.Jobs {
		j.insert(n)
	}
	if c.Plan != nil {
		j.setPlan(*c.Plan)
	}
	return nil
}

// setPlan does what the Journal's documentation says of a Plan.
func (j *fakeJournal) setPlan(p lifecycle.Plan) {
	wanted := make(map[string]bool)
	for _, n := range p.Jobs {
		wanted[n.UniqueKey] = true
	}
	for key, id := range j.unique {
		row := j.jobs[id]
		if row.group != p.Group || !strings.HasPrefix(key, lifecycle.PlanKey) {
			continue
		}
		waits := row.state == "available" || row.state == "retryable"
		switch {
		case waits && !wanted[key]:
			row.state = "cancelled"
			delete(j.unique, key)
		case !waits && row.state != "running":
			delete(j.unique, key)
		}
	}
	for _, n := range p.Jobs {
		row := j.jobs[j.insert(n)]
		if row.state != "running" && !row.due.Equal(n.DueAt) {
			row.state, row.due = "available", n.DueAt
		}
	}
}

// intent returns the data of the running job's step of that name, while that
// step is running.
func (j *fakeJournal) intent(names ...string) string {
	for _, row := range j.jobs {
		for _, s := range row.steps {
			if row.state == "running" && s.State == lifecycle.Running && slices.Contains(names, s.Name) {
				return string(s.Data)
			}
		}
	}
	return ""
}

// runs reports whether a job of that kind is running.
func (j *fakeJournal) runs(kind lifecycle.Kind) bool {
	for _, row := range j.jobs {
		if row.state == "running" && row.kind == kind {
			return true
		}
	}
	return false
}

// generationOf returns the group's generation with this HSM ID.
func (j *fakeJournal) generationOf(hsmID string) (lifecycle.Generation, bool) {
	for _, list := range j.generations {
		for _, g := range list {
			if strings.EqualFold(g.HSMID, hsmID) {
				return g, true
			}
		}
	}
	return lifecycle.Generation{}, false
}
