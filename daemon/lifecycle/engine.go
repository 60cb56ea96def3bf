package lifecycle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"time"
)

// An Engine runs jobs. Its fields are set before the first call and not changed
// afterwards; its methods may be called from several goroutines, for one group
// by one at a time.
type Engine struct {
	Journal Journal

	// HSM and KMS return the token and the account that a definition names.
	HSM func(name string) (HSM, error)
	KMS func(credential, region string) (KMS, error)

	Host string // this machine's name, in events
	Log  *slog.Logger
	Now  func() time.Time // default: time.Now

	// Sleep waits between two looks at something that AWS shows late; it
	// returns the context's error when that ends first. Default: a timer.
	Sleep func(ctx context.Context, d time.Duration) error

	// Announce tells whether events are wanted ([events] enabled). Default: yes.
	Announce func() bool

	// SamePolicy reports whether two key policies mean the same to AWS, which
	// gives them back in another form than they were written in. Default: they
	// are the same JSON.
	SamePolicy func(a, b string) bool

	// Named reports whether the active_key_id of any group's definition in force
	// names a KMS key: such a key is not retired. Default: the job's definition
	// alone is asked.
	Named func(keyID string) bool

	// CreateLook is how long an unanswered CreateKey is looked for by its tags
	// before another key is made. Default: 2 minutes, within which KMS's tags
	// can be expected to be found.
	CreateLook time.Duration
}

const (
	defaultCreateLook = 2 * time.Minute

	// lookPause is how far apart the looks for that key are.
	lookPause = 20 * time.Second

	// settleLook bounds the looks at one change that KMS shows late: AWS speaks
	// of seconds, sometimes minutes; what takes longer is the next attempt's.
	settleLook = 30 * time.Second

	// ownImport is how far the ValidTo of material already in a key may be from
	// that of an import sent now to be taken for an earlier attempt's import.
	ownImport = time.Hour

	// tagsSeen is how long a permission that goes by a new key's tags may be
	// missed: what is denied meanwhile is tried again sooner. KMS Developer Guide,
	// "Troubleshooting ABAC": up to five minutes.
	tagsSeen = 5 * time.Minute

	// goneAfter is how long a created key may stay unknown to KMS before it
	// counts as deleted. Terraform waits 10 minutes for states to read back.
	goneAfter = 10 * time.Minute

	// maxValidity is the longest validity that an import asks for: KMS refuses
	// more than 365 days, counted when the request arrives.
	maxValidity = 365*24*time.Hour - 10*time.Minute

	// deletionDays is KMS's shortest waiting period, for keys that were never used.
	deletionDays = 7

	// retirementDays is KMS's longest waiting period, and its default: for keys
	// that something may have been encrypted under.
	retirementDays = 30
)

// errRestart tells Run to begin the job's steps anew, with a new generation.
var errRestart = errors.New("start again with a new generation")

// errJournal is a Record that failed. It may have been written all the same, so
// nothing of this attempt's memory is written over it.
var errJournal = errors.New("record")

// Steps returns the names of the steps of a kind of job, in order.
func Steps(kind Kind) []string {
	var names []string
	for _, s := range steps(kind) {
		names = append(names, s.name)
	}
	return names
}

// A step does its work and returns what its record is to hold beside its own
// state. It is called again after any crash or error, so it looks first.
type step struct {
	name string
	do   func(ctx context.Context, r *run, s *Step) (Change, error)
}

func steps(kind Kind) []step {
	switch kind {
	case Rotate:
		return []step{
			{"generate", generate},
			{"create", create},
			{"import", importNew},
			{"verify", verify},
			{"grants", grants},
			{"activate", activate}, // records announce as well
			{"announce", announced},
		}
	case Synchronize:
		return []step{
			{"policy", syncPolicy},
			{"tags", syncTags},
			{"description", syncDescription},
			{"material", syncMaterial},
			{"state", syncState},
			{"alias", syncAlias}, // records announce as well
			{"announce", announced},
		}
	case Rollback:
		return []step{
			{"check", rollbackCheck},
			{"verify", verify},
			{"grants", grants},
			{"activate", activate}, // records announce as well
			{"announce", announced},
		}
	case Adopt:
		return []step{
			{"check", adoptCheck},
			{"alias", adoptAlias}, // records announce as well
			{"announce", announced},
		}
	case Retire:
		return []step{
			{"check", retireCheck},
			{"retire", retire}, // records announce as well
			{"announce", announced},
		}
	}
	return nil
}

// announced is reached only where the record of the step before already holds
// the announcement, so there is nothing left to do.
func announced(context.Context, *run, *Step) (Change, error) { return Change{}, nil }

// A run is one attempt at a job.
type run struct {
	*Engine
	job *Job
	def Definition
	hsm HSM
	kms KMS
	log *slog.Logger

	generations []Generation
}

// Run drives the job forward from what is recorded of it until it is done or an
// error stops it. The error's class (ClassOf) says what to do with the job. It
// can be called again after every error and every crash, with the job as the
// Journal has it then: what an attempt left in memory may be less than what it
// recorded. The job's Generation and Steps are kept up to date.
func (e *Engine) Run(ctx context.Context, job *Job) error {
	r, err := e.start(ctx, job)
	if err != nil {
		return err
	}
	for {
		err := r.steps(ctx)
		if !errors.Is(err, errRestart) {
			return err
		}
	}
}

func (e *Engine) start(ctx context.Context, job *Job) (*run, error) {
	r := &run{Engine: e, job: job, def: job.Definition,
		log: e.Log.With("group", job.Group, "job", job.ID, "kind", string(job.Kind))}
	r.def.Group = job.Group // a snapshot may be older than the group's name
	if steps(job.Kind) == nil {
		return nil, &Fault{Class: Permanent, Err: fmt.Errorf("no job of kind %q is known", job.Kind)}
	}
	var err error
	if r.hsm, err = e.HSM(r.def.HSM); err != nil {
		return nil, err
	}
	if r.kms, err = e.KMS(r.def.Credential, r.def.Region); err != nil {
		return nil, err
	}
	if r.generations, err = e.Journal.Generations(ctx, job.Group); err != nil {
		return nil, fmt.Errorf("read generations: %w", err)
	}
	// All steps are there from the beginning, so that pointers to them hold.
	recorded := job.Steps
	job.Steps = nil
	for _, name := range Steps(job.Kind) {
		s := Step{Name: name, State: Pending}
		if i := slices.IndexFunc(recorded, func(s Step) bool { return s.Name == name }); i >= 0 {
			s = recorded[i]
		}
		job.Steps = append(job.Steps, s)
	}
	return r, nil
}

// steps does the steps that are not recorded as done. That one has ended and that
// the next begins is one record.
func (r *run) steps(ctx context.Context) error {
	begun := ""
	for {
		s := r.next()
		if s == nil {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if s.Name != begun {
			if err := r.record(ctx, Change{Steps: []Step{r.beginning(*s)}}); err != nil {
				return err
			}
		}
		all := steps(r.job.Kind)
		do := all[slices.IndexFunc(all, func(st step) bool { return st.name == s.Name })].do
		change, err := do(ctx, r, s)
		if err != nil {
			if errors.Is(err, errRestart) {
				return err
			}
			return r.failed(ctx, s, err)
		}
		if s.State == Running {
			s.State = Done
		}
		s.FinishedAt = r.now()
		change.Steps = append([]Step{*s}, change.Steps...)
		begun = ""
		if next := r.next(); next != nil && ctx.Err() == nil && !slices.ContainsFunc(change.Steps, func(c Step) bool { return c.Name == next.Name }) {
			begun = next.Name
			change.Steps = append(change.Steps, r.beginning(*next))
		}
		if err := r.record(ctx, change); err != nil {
			return err
		}
		r.log.Debug("step done", "step", s.Name, "message", s.Message)
	}
}

// next is the first step that is not done; nil: all are.
func (r *run) next() *Step {
	for i := range r.job.Steps {
		if s := &r.job.Steps[i]; s.State != Done && s.State != Skipped {
			return s
		}
	}
	return nil
}

// beginning is a step as it is recorded when it begins.
func (r *run) beginning(s Step) Step {
	if s.StartedAt.IsZero() {
		s.StartedAt = r.now()
	}
	s.State, s.Message = Running, ""
	return s
}

// failed records a step's error for the person who follows the job and returns
// the error with the step's name.
func (r *run) failed(ctx context.Context, s *Step, err error) error {
	err = fmt.Errorf("%s: %w", s.Name, err)
	if c := ClassOf(err); ctx.Err() != nil && (c == Unknown || c == Transient) {
		err = &Fault{Class: Interrupted, Err: err} // a call that byokd itself broke off
	}
	if ClassOf(err) == Interrupted || errors.Is(err, errJournal) {
		return err
	}
	if s.State == Pending {
		return err // put back by itself: another step has failed
	}
	if g, ok := r.generation(r.job.Generation); ok && errors.Is(err, ErrDenied) && r.now().Sub(g.CreatedAt).Abs() < tagsSeen {
		err = &Fault{Class: ClassOf(err), WaitingFor: WaitingFor(err), Err: err, After: time.Minute}
	}
	s.State, s.Message = Failed, err.Error()
	if rerr := r.record(ctx, Change{Steps: []Step{*s}}); rerr != nil {
		return errors.Join(err, rerr)
	}
	return err
}

// record makes a change durable and takes it over into this run's memory.
func (r *run) record(ctx context.Context, c Change) error {
	c.JobID = r.job.ID
	// What has happened is recorded even when byokd is told to stop meanwhile.
	c.Generations = r.spread(c.Generations)
	if err := r.Journal.Record(context.WithoutCancel(ctx), c); err != nil {
		return fmt.Errorf("%w: %w", errJournal, err)
	}
	for _, s := range c.Steps {
		*r.step(s.Name) = s
	}
	for _, g := range c.Generations {
		r.remember(g)
	}
	if c.Generation != 0 {
		r.job.Generation = c.Generation
	}
	return nil
}

// step returns the job's record of one of its kind's steps.
func (r *run) step(name string) *Step {
	return &r.job.Steps[slices.IndexFunc(r.job.Steps, func(s Step) bool { return s.Name == name })]
}

func (r *run) remember(g Generation) {
	for i := range r.generations {
		if r.generations[i].Number == g.Number {
			r.generations[i] = g
			return
		}
	}
	r.generations = append(r.generations, g)
}

// generation returns the group's generation of that number.
func (r *run) generation(number int) (Generation, bool) {
	for _, g := range r.generations {
		if g.Number == number {
			return g, true
		}
	}
	return Generation{}, false
}

// active returns the generation that the journal has as active.
func (r *run) active() (Generation, bool) { return activeOf(r.generations) }

func activeOf(generations []Generation) (Generation, bool) {
	for _, g := range generations {
		if g.Stage == Active {
			return g, true
		}
	}
	return Generation{}, false
}

// byKey returns the generation whose KMS key has this ID: of several that share
// it, the one whose material is the current one.
func byKey(generations []Generation, keyID string) (found Generation, ok bool) {
	for _, g := range generations {
		if g.KeyID != keyID || keyID == "" {
			continue
		}
		// Numbers ascend, and so do rotations.
		if !ok || g.Stage == Active || found.Stage != Active && g.Stage == Previous || found.Stage == Destroyed {
			found, ok = g, true
		}
	}
	return found, ok
}

// materialsOf returns the generations whose material is, or is to be, in this KMS
// key. The first is the one that the key was made for.
func materialsOf(generations []Generation, keyID string) []Generation {
	var list []Generation
	for _, g := range generations {
		if g.KeyID == keyID && keyID != "" && g.Stage != Destroyed {
			list = append(list, g)
		}
	}
	return list
}

// keyFacts is the part of a generation that is about its KMS key.
func (g Generation) keyFacts() Generation {
	return Generation{Account: g.Account, KeyID: g.KeyID, KeyARN: g.KeyARN, CreatedAt: g.CreatedAt, JobID: g.JobID,
		DisabledAt: g.DisabledAt, DeletionDate: g.DeletionDate, KeptAt: g.KeptAt, Policy: g.Policy, Tags: g.Tags}
}

// withKeyFacts returns the generation with what another one says of the KMS key
// that they share.
func (g Generation) withKeyFacts(of Generation) Generation {
	g.Account, g.KeyID, g.KeyARN, g.CreatedAt, g.JobID = of.Account, of.KeyID, of.KeyARN, of.CreatedAt, of.JobID
	g.DisabledAt, g.DeletionDate, g.KeptAt, g.Policy, g.Tags = of.DisabledAt, of.DeletionDate, of.KeptAt, of.Policy, of.Tags
	return g
}

// spread has what changed generations say anew of their KMS key said by all whose
// material is in it.
func (r *run) spread(changed []Generation) []Generation {
	all := slices.Clone(changed)
	for _, g := range changed {
		if old, _ := r.generation(g.Number); reflect.DeepEqual(old.keyFacts(), g.keyFacts()) {
			continue
		}
		for _, other := range materialsOf(r.generations, g.KeyID) {
			i := slices.IndexFunc(all, func(g Generation) bool { return g.Number == other.Number })
			switch told := other.withKeyFacts(g); {
			case i >= 0:
				all[i] = all[i].withKeyFacts(g)
			case !reflect.DeepEqual(told, other):
				all = append(all, told)
			}
		}
	}
	return all
}

func (e *Engine) now() time.Time {
	if e.Now != nil {
		return e.Now().UTC()
	}
	return time.Now().UTC()
}

// poll looks until the look succeeds, at growing distances, for settleLook in
// all; look returns ok when it has seen what it waits for. The last error of a
// look is returned when the time is over, or the one at hand if it is not of the
// kind that time cures.
func (e *Engine) poll(ctx context.Context, what string, look func() (ok bool, err error)) error {
	var waited time.Duration
	for pause := 250 * time.Millisecond; ; pause = min(2*pause, 4*time.Second) {
		ok, err := look()
		if ok {
			return nil
		}
		if err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrState) {
			return err
		}
		if waited >= settleLook {
			if err == nil {
				err = errors.New("not yet")
			}
			return &Fault{Class: Transient, Err: fmt.Errorf("%s: KMS does not show it after %s: %w", what, settleLook, err)}
		}
		if err := e.sleep(ctx, pause); err != nil {
			return err
		}
		waited += pause
	}
}

func (e *Engine) sleep(ctx context.Context, d time.Duration) error {
	if e.Sleep != nil {
		return e.Sleep(ctx, d)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// audit is an audit entry of this job.
func (r *run) audit(action, format string, args ...any) AuditEntry {
	return AuditEntry{At: r.now(), Group: r.job.Group, JobID: r.job.ID, Actor: cmp.Or(r.job.Request.By, r.job.Trigger),
		Action: action, Detail: fmt.Sprintf(format, args...), Definition: r.def.Digest}
}

// names reports whether a definition's reference to a KMS key, an ID or an ARN,
// names the key with this ID.
func names(ref, keyID string) bool {
	return keyID != "" && ref[strings.LastIndexByte(ref, '/')+1:] == keyID
}

// mustJSON encodes a value of this package's own types, which cannot fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
