package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"byokd/config"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
)

// Triggers, as jobs and events name them.
const (
	triggerSchedule = "schedule"
	triggerMissed   = "missed"
	triggerInitial  = "initial"
	triggerForce    = "force"
	triggerSighup   = "sighup"
	triggerWatch    = "watch"
	triggerStart    = "start"
	triggerRequest  = "request"
	triggerControl  = "control"
)

// Groups that have no generation yet are looked for at these distances while
// the HSM or AWS cannot be looked at.
const (
	firstLook = time.Second
	lastLook  = 30 * time.Second

	// operatorLook is the distance where a person must act first.
	operatorLook = 10 * time.Minute
)

// A group is what the daemon knows of one key group.
type group struct {
	name    string
	def     *config.Group       // the definition in force, the last good one; nil: there never was one
	invalid config.Problems     // of the file as it is now; nil: good
	since   time.Time           // since when it is invalid
	row     jobstore.Group      // as the database has it; zero Name: not there
	gone    bool                // its file is gone
	found   *lifecycle.Findings // nil: not reconciled since byokd started
	foundAt time.Time

	lookErr         error // why it could not be reconciled
	lookSince       time.Time
	nextLook        time.Time
	lookPause       time.Duration
	looking         *sync.Mutex // one reconciliation of a group at a time
	invalidReported bool
}

func newGroup(name string) *group { return &group{name: name, looking: new(sync.Mutex)} }

// groups are all key groups, by name.
type groups struct {
	d  *Daemon
	mu sync.Mutex
	m  map[string]*group
}

func newGroups(d *Daemon) *groups { return &groups{d: d, m: make(map[string]*group)} }

func (gs *groups) count() int {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	n := 0
	for _, g := range gs.m {
		if !g.gone && g.def != nil {
			n++
		}
	}
	return n
}

func (gs *groups) names() []string {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return slices.Sorted(maps.Keys(gs.m))
}

// get returns a copy of what is known of a group.
func (gs *groups) get(name string) (group, bool) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g, ok := gs.m[name]
	if !ok {
		return group{}, false
	}
	return *g, true
}

// update changes what is known of a group.
func (gs *groups) update(name string, f func(g *group)) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if g, ok := gs.m[name]; ok {
		f(g)
	}
}

// account is the account of a group, "" before AWS was asked.
func (gs *groups) account(name string) string {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if g, ok := gs.m[name]; ok {
		return g.row.Account
	}
	return ""
}

// definition is the snapshot of a group's definition for a job.
func (d *Daemon) definition(g *config.Group) lifecycle.Definition {
	def := lifecycle.Definition{
		Group: g.Name, HSM: g.HSM, Credential: g.Credential, Region: g.AWS.Region, Alias: g.AWS.Alias,
		Description: g.AWS.Description, Tags: g.AWS.Tags, ActiveKeyID: g.AWS.ActiveKeyID,
		KeepValidFor: time.Duration(g.Rotation.KeepValidFor), Verify: g.Rotation.Verify,
		DisablePrevious: g.Rotation.DisablePrevious, DisablePreviousAfter: time.Duration(g.Rotation.DisablePreviousAfter),
		FormerAliases: g.AWS.FormerAliases, PreviousName: g.AWS.PreviousName, Digest: g.Digest(),
	}
	if g.Policy != nil {
		policy := string(g.Policy)
		def.Policy = &policy
	}
	return def
}

// mustJSON encodes a value of lifecycle's types, which cannot fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// load reads all group files and does what the differences to the definitions
// in the database ask for. It never fails as a whole: what cannot be read is a
// problem of its group, and the last good definition stays in force.
func (d *Daemon) load(ctx context.Context, trigger string) {
	d.loading.Lock()
	defer d.loading.Unlock()
	cfg := d.cfg.Load()
	rows, err := d.store.Groups(ctx)
	if err != nil {
		d.storeFailed("read the groups", err)
		return
	}
	set, err := config.LoadDir(cfg, d.configOptions())
	if err != nil {
		// The folder itself cannot be read: that no file is seen does not mean
		// that all groups are gone.
		d.log.Error("group files cannot be read; the last good definitions stay in force", "err", err)
		set = nil
	}
	d.apply(ctx, cfg, set, rows, trigger)
}

// apply compares a set of group files with the database and acts on it.
func (d *Daemon) apply(ctx context.Context, cfg *config.Config, set *config.Set, rows []jobstore.Group, trigger string) {
	now := d.Now()
	inDB := make(map[string]jobstore.Group)
	for _, row := range rows {
		if row.Definition != nil { // else only events tell of it: it never was good
			inDB[row.Name] = row
		}
	}
	good := make(map[string]*config.Group)
	bad := make(map[string]config.Problems)
	if set != nil {
		maps.Copy(good, set.Groups)
		maps.Copy(bad, set.Problems)
	}
	hasGeneration := d.generationsOf(ctx)

	// A renamed file goes on with the group that it names.
	for _, name := range slices.Sorted(maps.Keys(good)) {
		old := good[name].AWS.PreviousName
		_, known := inDB[name]
		row, there := inDB[old]
		if old == "" || known || !there || good[old] != nil || bad[old] != nil {
			continue
		}
		if err := d.store.RenameGroup(ctx, old, name); err != nil {
			// Not a group of its own before it has taken over the old one's keys.
			delete(good, name)
			if errors.Is(err, jobstore.ErrRunning) {
				d.log.Info("group is renamed when its job has ended", "group", name, "previous_name", old)
			} else {
				d.storeFailed("rename a group", err)
			}
			continue
		}
		d.log.Info("group was renamed", "group", name, "previous_name", old)
		row.Name = name
		inDB[name] = row
		delete(inDB, old)
		d.groups.forget(old)
		d.runner.Remove(old)
	}

	// What may not change, and what two files may not claim.
	lastGood := make(map[string]*config.Group)
	for name, row := range inDB {
		g, err := config.UnmarshalDefinition(row.Definition)
		if err != nil {
			d.log.Error("the last good definition in the database cannot be read", "group", name, "err", err)
			continue
		}
		lastGood[name] = g
	}
	for _, name := range slices.Sorted(maps.Keys(good)) {
		if old := lastGood[name]; old != nil {
			if ps := config.CheckChange(old, good[name], hasGeneration(name)); len(ps) > 0 {
				bad[name] = ps
				delete(good, name)
			}
		}
	}
	claimants := slices.Collect(maps.Values(good))
	for name, old := range lastGood {
		// A group whose file is bad or gone keeps its alias.
		if good[name] == nil && hasGeneration(name) {
			old.Gone = bad[name] == nil
			claimants = append(claimants, old)
		}
	}
	for name, ps := range config.CheckSet(cfg, claimants, hasGeneration) {
		if good[name] != nil {
			bad[name] = append(bad[name], ps...)
			delete(good, name)
		}
	}

	for _, name := range slices.Sorted(maps.Keys(good)) {
		if err := d.accept(ctx, good[name], lastGood[name], inDB[name], trigger); err != nil {
			d.storeFailed("store a definition", err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		d.refuse(name, lastGood[name], inDB[name], bad[name], now)
	}
	if set == nil {
		for name, row := range inDB {
			d.keep(name, lastGood[name], row, !row.RemovedAt.IsZero())
		}
		return
	}
	for name, row := range inDB {
		if good[name] == nil && bad[name] == nil {
			d.remove(ctx, name, lastGood[name], row)
		}
	}
	for _, name := range d.groups.names() {
		// A bad file that is gone again, and never was a group.
		if _, known := inDB[name]; !known && good[name] == nil && bad[name] == nil {
			d.groups.forget(name)
		}
	}
}

// generationsOf returns a function that tells whether a group has a generation.
func (d *Daemon) generationsOf(ctx context.Context) func(string) bool {
	all, err := d.store.AllGenerations(ctx)
	if err != nil {
		d.storeFailed("read the generations", err)
	}
	has := make(map[string]bool)
	for _, g := range all {
		if g.Stage != string(lifecycle.Destroyed) {
			has[g.Group] = true
		}
	}
	return func(group string) bool { return has[group] }
}

// accept puts a good definition into force and asks for what its differences
// need.
func (d *Daemon) accept(ctx context.Context, g, last *config.Group, row jobstore.Group, trigger string) error {
	now := d.Now()
	digest := g.Digest()
	isNew := row.Name == ""
	if last != nil {
		if err := d.rememberAlias(ctx, g, last, row); err != nil {
			return err
		}
	}
	if isNew || row.Digest != digest {
		definition, err := g.MarshalDefinition()
		if err != nil {
			return err
		}
		if err := d.store.SetDefinition(ctx, g.Name, definition, digest, g.HSM); err != nil {
			return err
		}
	}
	if last != nil && row.RemovedAt.IsZero() && ruleChanged(last, g) && g.Rotation.Enabled {
		if err := d.missedBefore(ctx, g, last, row); err != nil {
			return err
		}
	}
	if last == nil || !row.RemovedAt.IsZero() || ruleChanged(last, g) {
		if err := d.store.SetEnabled(ctx, g.Name, now); err != nil {
			return err
		}
	}
	if !row.RemovedAt.IsZero() {
		if err := d.store.SetRemoved(ctx, g.Name, time.Time{}); err != nil {
			return err
		}
	}
	if last != nil && row.AppliedDigest == row.Digest && last.Digest() == digest && row.Digest != digest {
		// The same definition, which an older byokd wrote down with fewer keys.
		if err := d.store.SetApplied(ctx, g.Name, digest); err != nil {
			return err
		}
	}
	row, err := d.store.Group(ctx, g.Name)
	if err != nil {
		return err
	}
	d.groups.accepted(g, row)
	def := d.definition(g)
	if !isNew && last != nil && last.Digest() != digest {
		d.log.Info("definition has changed", "group", g.Name)
		if _, err := d.store.Resnapshot(ctx, g.Name, mustJSON(def), g.HSM); err != nil {
			return err
		}
		if !g.Rotation.DisablePrevious {
			if err := d.cancelRetirements(ctx, g.Name); err != nil {
				return err
			}
		}
		if _, err := d.store.Wake(ctx, jobstore.WakeFilter{Groups: []string{g.Name}}); err != nil {
			return err
		}
		wake(d.jobsWake)
	}
	if isNew {
		d.log.Info("new group", "group", g.Name, "alias", g.AWS.Alias, "region", g.AWS.Region)
	}
	wake(d.groupsWake)
	if err := d.synchronizeChanged(ctx, g, row, trigger); err != nil {
		return err
	}
	if !isNew {
		if err := d.force(ctx, g, row); err != nil {
			return err
		}
	}
	d.plan(g.Name)
	return nil
}

// missedBefore fires the tick of the old schedule that passed unseen before it
// was given up: the new one has no past.
func (d *Daemon) missedBefore(ctx context.Context, g, last *config.Group, row jobstore.Group) error {
	if last.Rotation.Schedule == "" {
		return nil // an interval counts from the last rotation, whatever it is now
	}
	tick, at, _ := d.next(group{name: g.Name, def: last, row: row})
	if tick.IsZero() || at.After(d.Now()) {
		return nil
	}
	_, _, err := d.enqueue(ctx, ask{kind: lifecycle.Rotate, group: g, trigger: triggerMissed, key: tickKey(tick), tick: tick})
	return err
}

// rememberAlias keeps an alias that the definition no longer names in mind until
// it is gone or given up in former_aliases: it moves no more.
func (d *Daemon) rememberAlias(ctx context.Context, g, last *config.Group, row jobstore.Group) error {
	old := slices.Clone(row.OldAliases)
	if last.AWS.Alias != g.AWS.Alias && !slices.Contains(old, last.AWS.Alias) && d.generationsOf(ctx)(g.Name) {
		old = append(old, last.AWS.Alias)
	}
	old = slices.DeleteFunc(old, func(alias string) bool {
		return alias == g.AWS.Alias || slices.Contains(g.AWS.FormerAliases, alias)
	})
	if slices.Equal(old, row.OldAliases) {
		return nil
	}
	return d.store.SetOldAliases(ctx, g.Name, old)
}

// lookForOldAliases forgets those that are gone.
func (d *Daemon) lookForOldAliases(ctx context.Context, g group) error {
	kms, err := d.kms(g.def.Credential, g.def.AWS.Region)
	if err != nil {
		return err
	}
	var left []string
	for _, alias := range g.row.OldAliases {
		if _, err := kms.DescribeKey(ctx, alias); !errors.Is(err, lifecycle.ErrNotFound) {
			left = append(left, alias)
		}
	}
	if len(left) == len(g.row.OldAliases) {
		return nil
	}
	if err := d.store.SetOldAliases(ctx, g.name, left); err != nil {
		return err
	}
	d.groups.update(g.name, func(g *group) { g.row.OldAliases = left })
	return nil
}

// ruleChanged reports whether two definitions rotate at different times.
func ruleChanged(a, b *config.Group) bool {
	x, y := a.Rotation, b.Rotation
	return x.Enabled != y.Enabled || x.Every != y.Every || x.Schedule != y.Schedule || x.Timezone != y.Timezone
}

// cancelRetirements drops what the definition no longer asks for.
func (d *Daemon) cancelRetirements(ctx context.Context, name string) error {
	generations, err := d.store.Generations(ctx, name)
	if err != nil {
		return err
	}
	for _, gen := range generations {
		if _, err := d.store.CancelRetire(ctx, name, gen.Number, jobstore.AuditEntry{Actor: "byokd", Action: "cancel",
			Detail: "the definition no longer asks for retirement"}); err != nil {
			return err
		}
	}
	return nil
}

// synchronizeChanged asks for a synchronization where the definition differs
// from the one that was last applied.
func (d *Daemon) synchronizeChanged(ctx context.Context, g *config.Group, row jobstore.Group, trigger string) error {
	digest := g.Digest()
	if row.AppliedDigest == "" || row.AppliedDigest == digest || !d.cfg.Load().Designated {
		return nil
	}
	open, err := d.store.OpenJobs(ctx)
	if err != nil {
		return err
	}
	for _, job := range open {
		if job.Group != g.Name || job.Kind != string(lifecycle.Synchronize) {
			continue
		}
		if j, err := lifecycleJob(&job); err == nil && j.Definition.Digest == digest && !j.Request.Asked {
			return nil
		}
	}
	_, _, err = d.enqueue(ctx, ask{kind: lifecycle.Synchronize, group: g, trigger: trigger,
		key: "definition:" + lifecycle.NewID(d.Now())})
	return err
}

// force asks for the rotation that a new value of [rotation] force stands for.
// The values of a group whose database was lost count as seen.
func (d *Daemon) force(ctx context.Context, g *config.Group, row jobstore.Group) error {
	if g.Rotation.Force == "" || !d.cfg.Load().Designated {
		return nil
	}
	key := "force:" + g.Rotation.Force
	seen, err := d.store.Seen(ctx, g.Name, key)
	if err != nil || seen {
		return err
	}
	current, _ := d.groups.get(g.Name)
	if current.found == nil && row.AppliedDigest == "" {
		return nil // decided when it is known whether the group is new: firstGeneration
	}
	_, _, err = d.enqueue(ctx, ask{kind: lifecycle.Rotate, group: g, trigger: triggerForce, key: key})
	return err
}

// accepted takes over a good definition.
func (gs *groups) accepted(def *config.Group, row jobstore.Group) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g, ok := gs.m[def.Name]
	if !ok {
		g = newGroup(def.Name)
		gs.m[def.Name] = g
	}
	if g.def != nil && g.def.Digest() != def.Digest() && g.found != nil && len(g.found.Generations) == 0 {
		g.found = nil // what was found depends on alias, Region and active_key_id
	}
	g.def, g.invalid, g.row, g.gone, g.invalidReported = def, nil, row, false, false
	g.nextLook, g.lookPause = time.Time{}, 0
}

func (gs *groups) forget(name string) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	delete(gs.m, name)
}

// refuse records why a file is not taken. The last good definition, if there is
// one, stays in force.
func (d *Daemon) refuse(name string, last *config.Group, row jobstore.Group, ps config.Problems, now time.Time) {
	before, known := d.groups.get(name)
	d.keep(name, last, row, false)
	d.groups.update(name, func(g *group) {
		if g.invalid == nil {
			g.since = now
		}
		if g.invalid == nil || g.invalid.Error() != ps.Error() {
			g.invalidReported = false
		}
		g.invalid = ps
	})
	if known && before.invalid != nil && before.invalid.Error() == ps.Error() {
		return
	}
	for _, p := range ps {
		d.log.Error("group file is not taken; the last good definition stays in force", "group", name, "problem", p.String())
	}
}

// keep goes on with the last good definition of a group.
func (d *Daemon) keep(name string, last *config.Group, row jobstore.Group, gone bool) {
	d.groups.mu.Lock()
	g, ok := d.groups.m[name]
	if !ok {
		g = newGroup(name)
		d.groups.m[name] = g
	}
	if g.def == nil {
		g.def = last
	}
	g.row, g.gone = row, gone
	d.groups.mu.Unlock()
	d.plan(name)
}

// remove ends the rotations of a group whose file is gone. Its keys stay as
// they are, and a file that comes back is the same group.
func (d *Daemon) remove(ctx context.Context, name string, last *config.Group, row jobstore.Group) {
	if row.RemovedAt.IsZero() {
		if err := d.store.SetRemoved(ctx, name, d.Now()); err != nil {
			d.storeFailed("store that a group's file is gone", err)
			return
		}
		row.RemovedAt = d.Now()
		d.log.Warn("group file is gone: no more rotations; its keys stay as they are", "group", name)
	}
	d.keep(name, last, row, true)
	d.groups.update(name, func(g *group) { g.invalid = nil })
	d.runner.Remove(name)
}

// run looks for the keys of groups that have no generation, until they are
// known, and then makes the first one where it is wanted.
func (gs *groups) run(ctx context.Context) {
	var looks sync.WaitGroup
	defer looks.Wait()
	places := make(chan struct{}, 8)
	for {
		next := gs.d.Now().Add(lastLook)
		for _, name := range gs.names() {
			g, ok := gs.get(name)
			if !ok || g.def == nil || g.gone || g.found != nil || gs.d.groups.knows(ctx, name) {
				continue
			}
			if now := gs.d.Now(); now.Before(g.nextLook) {
				if g.nextLook.Before(next) {
					next = g.nextLook
				}
				continue
			}
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return
			}
			gs.update(name, func(g *group) { g.nextLook = gs.d.Now().Add(time.Minute) }) // it is being looked for
			looks.Go(func() {
				gs.firstGeneration(ctx, name)
				<-places
			})
		}
		if !sleep(ctx, next.Sub(gs.d.Now()), gs.d.groupsWake) {
			return
		}
	}
}

// knows reports whether the database has a generation of the group, whose place
// in the world is then looked at before its first job and not at once.
func (gs *groups) knows(ctx context.Context, name string) bool {
	generations, err := gs.d.store.Generations(ctx, name)
	return err != nil || len(generations) > 0
}

// firstGeneration reconciles a group without generations and asks for its first
// one where nothing at all is known of it.
func (gs *groups) firstGeneration(ctx context.Context, name string) {
	d := gs.d
	g, ok := gs.get(name)
	if !ok || g.def == nil {
		return
	}
	if err := gs.reconciled(ctx, name, d.definition(g.def)); err != nil {
		if ctx.Err() != nil {
			return
		}
		gs.update(name, func(g *group) {
			if g.lookErr == nil {
				g.lookSince = d.Now()
				d.log.Warn("group is pending: byokd cannot look for its keys, and makes none before it can", "group", name, "err", err)
			}
			g.lookErr = err
			g.lookPause = min(max(2*g.lookPause, firstLook), lastLook)
			if lifecycle.ClassOf(err) == lifecycle.Operator {
				g.lookPause = operatorLook
			}
			g.nextLook = d.Now().Add(g.lookPause)
		})
		wake(d.groupsWake)
		return
	}
	d.loading.Lock()
	defer d.loading.Unlock()
	g, ok = gs.get(name)
	if !ok || g.def == nil || g.gone || g.found == nil || !d.cfg.Load().Designated {
		return
	}
	forced := "force:" + g.def.Rotation.Force
	var err error
	switch fresh := g.found.Fresh(); {
	case fresh && g.def.Rotation.Force != "":
		_, _, err = d.enqueue(ctx, ask{kind: lifecycle.Rotate, group: g.def, trigger: triggerInitial, key: forced})
	case fresh && g.def.Rotation.Initial == "now":
		_, _, err = d.enqueue(ctx, ask{kind: lifecycle.Rotate, group: g.def, trigger: triggerInitial, key: "initial"})
	case !fresh && g.def.Rotation.Force != "":
		err = d.store.MarkSeen(ctx, name, forced)
	}
	if err == nil && len(g.found.Generations) > 0 {
		// What was recovered is not known to agree with the definition.
		err = d.synchronizeRecovered(ctx, g)
	}
	if err != nil {
		d.storeFailed("ask for the first generation", err)
		gs.update(name, func(g *group) { g.found, g.nextLook = nil, d.Now().Add(lastLook) })
		return
	}
	d.plan(name)
	wake(d.jobsWake)
}

// synchronizeRecovered notes the definition of a recovered group as applied: a
// lost database is no change of the definition.
func (d *Daemon) synchronizeRecovered(ctx context.Context, g group) error {
	if g.row.AppliedDigest != "" {
		return nil
	}
	if err := d.store.SetApplied(ctx, g.name, g.def.Digest()); err != nil {
		return err
	}
	d.groups.update(g.name, func(g *group) { g.row.AppliedDigest = g.def.Digest() })
	return nil
}

// reconciled makes sure that a group was looked for in KMS and HSM since byokd
// started.
func (gs *groups) reconciled(ctx context.Context, name string, def lifecycle.Definition) error {
	gs.mu.Lock()
	g, ok := gs.m[name]
	if !ok {
		g = newGroup(name)
		gs.m[name] = g
	}
	gs.mu.Unlock()
	g.looking.Lock()
	defer g.looking.Unlock()
	if current, _ := gs.get(name); current.found != nil {
		return nil
	}
	d := gs.d
	found, err := d.engine.Reconcile(ctx, def, d.cfg.Load().Designated)
	if err != nil {
		return err
	}
	account, err := d.account(ctx, def)
	if err != nil {
		return err
	}
	if err := d.store.SetAccount(ctx, name, account); err != nil {
		return err
	}
	if found.Recovered > 0 {
		d.log.Info("generations were found in KMS and HSM", "group", name, "generations", found.Recovered)
	}
	for _, p := range found.Problems {
		d.log.Warn("something does not fit", "group", name, "problem", p.Code, "message", p.Message)
	}
	gs.update(name, func(g *group) {
		g.found, g.foundAt, g.lookErr, g.lookPause = &found, d.Now(), nil, 0
		g.row.Account = account
	})
	return nil
}

// jobDone notes what a completed job means for its group.
func (gs *groups) jobDone(ctx context.Context, row *jobstore.Job, job *lifecycle.Job) {
	d := gs.d
	ctx = context.WithoutCancel(ctx)
	d.loading.Lock()
	defer d.loading.Unlock()
	g, ok := gs.get(row.Group)
	if !ok {
		return
	}
	applied := job.Kind == lifecycle.Synchronize && !job.Request.Asked ||
		job.Kind == lifecycle.Rotate && g.row.AppliedDigest == ""
	if applied {
		if err := d.store.SetApplied(ctx, row.Group, job.Definition.Digest); err != nil {
			d.storeFailed("store that a definition was applied", err)
		}
		gs.update(row.Group, func(g *group) { g.row.AppliedDigest = job.Definition.Digest })
		if g, _ := gs.get(row.Group); g.def != nil && !g.gone {
			// The definition may have changed while the job ran.
			if err := d.synchronizeChanged(ctx, g.def, g.row, triggerWatch); err != nil {
				d.storeFailed("ask for a synchronization", err)
			}
		}
	}
	d.plan(row.Group)
	if g.gone {
		wake(d.loadWake) // it may have been in the way of a rename
	}
}

// An ask is a wish for a job.
type ask struct {
	kind    lifecycle.Kind
	group   *config.Group
	trigger string
	key     string // unique: asking twice is asking once
	request lifecycle.Request
	urgent  bool
	tick    time.Time // the schedule's tick; zero: none
	by      string    // who asked, for the audit trail; "": the trigger
}

// enqueue makes a wish durable. It returns the job that it became or joined.
func (d *Daemon) enqueue(ctx context.Context, a ask) (jobstore.Job, bool, error) {
	by := a.by
	if by == "" {
		by = a.trigger
	}
	now := d.Now()
	number := 0
	if a.request.Generation != nil {
		number = *a.request.Generation
	}
	row, joined, err := d.store.Enqueue(ctx, jobstore.NewJob{
		Kind: string(a.kind), Group: a.group.Name, Generation: number, HSM: a.group.HSM, Trigger: a.trigger, UniqueKey: a.key,
		Definition: mustJSON(d.definition(a.group)), Request: mustJSON(a.request), Urgent: a.urgent,
		DueAt: now, ScheduledAt: a.tick, Steps: lifecycle.Steps(a.kind),
		Audit: []jobstore.AuditEntry{{At: now, Group: a.group.Name, Actor: by, Action: "ask for " + string(a.kind), Detail: "trigger " + a.trigger}},
	})
	if err != nil {
		return row, joined, fmt.Errorf("store the job: %w", err)
	}
	d.log.Debug("job asked for", "group", a.group.Name, "job", row.ID, "kind", row.Kind, "trigger", a.trigger, "joined", joined)
	wake(d.jobsWake)
	d.changes.notify()
	return row, joined, nil
}
