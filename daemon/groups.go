package daemon

import (
	"cmp"
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
	triggerExpiry   = "expiry"
	triggerDrift    = "drift"
)

// A group is what the daemon knows of one key group.
type group struct {
	name    string
	def     *config.Group   // the definition in force, the last good one; nil: there never was one
	invalid config.Problems // of the file as it is now; nil: good
	since   time.Time       // since when it is invalid
	told    bool            // an event has told of that
	row     jobstore.Group  // as the database has it; zero Name: not there
	gone    bool            // its file is gone
	hasKeys bool            // the database has generations of it

	looking   *sync.Mutex // one reconciliation or job of a group at a time
	looked    *looked     // the last one; nil: none since byokd started
	inLook    bool        // it is being looked for
	lookErr   error       // why it could not be
	lookSince time.Time   // since when
	nextLook  time.Time
	lookPause time.Duration

	watched   []lifecycle.Finding // at the last look of watchKeys
	watchedAt time.Time           // zero: none since byokd started

	renewing string // unique key of the last job that its expiry asked for
	drift    driftWatch

	version      int    // groups.changes when something of it last changed; 0: never
	keys         *keys  // nil: to be read
	shown        *shown // its state, as it was last worked out; nil: it never was
	shownVersion int    // what version its state is of
}

func newGroup(name string) *group { return &group{name: name, looking: new(sync.Mutex)} }

// groups are all key groups, by name.
type groups struct {
	d     *Daemon
	mu    sync.Mutex
	m     map[string]*group
	gone  map[string]bool // those whose file is gone
	epoch int             // how often everything that was seen of them has become void

	sorted  []string // all names; nil: to be sorted
	changes int      // counts what has changed of any group

	// Those that have changed since their state was last told of, since it was last
	// looked at what expires of them, and since it was last worked out when they
	// are compared with AWS.
	toShow, toRenew, toCompare dirty
	nextTurn                   time.Time // when time alone changes the state of one
}

func newGroups(d *Daemon) *groups {
	return &groups{d: d, m: make(map[string]*group), gone: make(map[string]bool)}
}

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

// names are those of all groups, sorted. They must not be changed.
func (gs *groups) names() []string {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return gs.sortedNames()
}

// sortedNames is names for who holds gs.mu.
func (gs *groups) sortedNames() []string {
	if gs.sorted == nil {
		gs.sorted = slices.Sorted(maps.Keys(gs.m))
	}
	return gs.sorted
}

// add makes a group of that name, of which nothing is known yet. gs.mu is held.
func (gs *groups) add(name string) *group {
	g := newGroup(name)
	gs.m[name], gs.sorted = g, nil
	return g
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
		gs.touched(g)
	}
}

// note changes what is remembered of a group and makes no difference to its state.
func (gs *groups) note(name string, f func(g *group)) {
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
		Mode: g.Rotation.Mode, KeepValidFor: time.Duration(g.Rotation.KeepValidFor), Verify: g.Rotation.Verify,
		DisablePrevious: g.Rotation.DisablePrevious, DisablePreviousAfter: time.Duration(g.Rotation.DisablePreviousAfter),
		DeletePreviousMaterialAfter:   (*time.Duration)(g.Rotation.DeletePreviousMaterialAfter),
		SchedulePreviousDeletionAfter: (*time.Duration)(g.Rotation.SchedulePreviousDeletionAfter),
		KeepGenerations:               g.Rotation.KeepGenerations, ManageAdopted: g.Rotation.ManageAdopted,
		Grants:        g.Rotation.Grants,
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
	d.awaitFiles(ctx)
	d.loading.Lock()
	defer d.loading.Unlock()
	d.loadAll(ctx, trigger)
}

// awaitFiles waits until files that have just been written count, so that what
// was put in place before a reload is in force after it. Those that are written to
// for longer are left to the watcher.
func (d *Daemon) awaitFiles(ctx context.Context) {
	d.loading.Lock()
	d.dir.Settle = d.settleTime()
	settled := d.dir.Settled(d.cfg.Load())
	d.loading.Unlock()
	if !settled.IsZero() {
		sleep(ctx, min(time.Until(settled), settleWait), nil)
		d.pulses.goesOn()
	}
}

// loadAll is load for who holds d.loading.
func (d *Daemon) loadAll(ctx context.Context, trigger string) {
	defer wake(d.tidyWake)
	cfg := d.cfg.Load()
	rows, err := d.store.Groups(ctx)
	if err != nil {
		d.storeFailed("read the groups", err)
		return
	}
	k := known{names: make(map[string]bool), rows: make(map[string]jobstore.Group), keys: make(map[string]bool), read: make(map[string]*keys), all: true}
	for _, row := range rows {
		k.add(row)
	}
	if err := d.readKeys(ctx, k); err != nil {
		d.storeFailed("read the generations", err)
		return
	}
	d.dir.Settle = d.settleTime()
	if err := d.dir.Read(cfg); err != nil {
		d.cannotRead(err)
		for name, row := range k.rows {
			d.keep(name, d.lastGood(cfg, row), row, !row.RemovedAt.IsZero())
		}
		return
	}
	d.lookOnceMore()
	d.unreadable.Store(nil)
	d.loaded = true
	for _, name := range d.dir.Names() {
		k.names[name] = true
	}
	for _, name := range d.groups.names() {
		k.names[name] = true
	}
	d.relations = config.NewRelations(cfg)
	d.apply(ctx, cfg, k, trigger)
	d.lookForOverloads()
}

// lookOnceMore has files told again that were read too early or refused for their
// directory. The recovery of a database watches none.
func (d *Daemon) lookOnceMore() {
	if d.watcher != nil {
		d.watcher.lookAgain(d.dir.Unsettled()...)
		d.watcher.lookLater(d.dir.Refused()...)
	}
}

// loadChanged does for some files, or groups_dir itself, what load does for all.
// Its work depends on how many they are, and not on how many there are.
func (d *Daemon) loadChanged(ctx context.Context, paths []string) {
	d.loading.Lock()
	defer d.loading.Unlock()
	switch {
	case !d.loaded: // when byokd starts, or could not read the database then
		d.loadAll(ctx, triggerStart)
		return
	case d.unreadable.Load() != nil, slices.Contains(paths, d.cfg.Load().GroupsDir):
		d.loadAll(ctx, triggerWatch)
		return
	}
	d.dir.Settle = d.settleTime()
	names, err := d.dir.Look(paths...)
	if err != nil {
		d.cannotRead(err)
		return
	}
	d.lookOnceMore()
	d.loadGroups(ctx, names)
}

// loadGroups applies what was read of some groups, and with them of those that
// are related to them.
func (d *Daemon) loadGroups(ctx context.Context, changed []string) {
	defer wake(d.tidyWake)
	k := known{names: make(map[string]bool), rows: make(map[string]jobstore.Group), keys: make(map[string]bool), read: make(map[string]*keys)}
	for _, name := range changed {
		k.names[name] = true
	}
	d.relations.Of(k.names)
	for _, name := range changed {
		d.relate(name)
	}
	d.relations.Of(k.names)
	for name := range k.names {
		row, err := d.store.Group(ctx, name)
		if errors.Is(err, jobstore.ErrNotFound) {
			continue
		}
		if err != nil {
			d.storeFailed("read the groups", err)
			return
		}
		k.add(row)
	}
	if err := d.readKeys(ctx, k); err != nil {
		d.storeFailed("read the generations", err)
		return
	}
	d.log.Debug("group files have changed", "groups", len(changed), "looked_at", len(k.names))
	d.apply(ctx, d.cfg.Load(), k, triggerWatch)
	d.overloads.stale.Store(true)
}

// cannotRead notes that groups_dir cannot be read: that no file is seen does not
// mean that all groups are gone.
func (d *Daemon) cannotRead(err error) {
	d.log.Error("group files cannot be read; the last good definitions stay in force", "err", err, "advice", "make groups_dir readable for byokd's user")
	d.unreadable.Store(&problem{"groups-dir", err.Error() + "; the last good definitions stay in force", d.Now()})
	wake(d.tidyWake)
}

// again has groups judged anew for another reason than a change of their files:
// those that are named, or all.
func (d *Daemon) again(names ...string) {
	d.againMu.Lock()
	defer d.againMu.Unlock()
	d.againAll = d.againAll || len(names) == 0
	d.againNames = append(d.againNames, names...)
	wake(d.loadWake)
}

// loadAgain does what again asked for.
func (d *Daemon) loadAgain(ctx context.Context) {
	d.againMu.Lock()
	all, names := d.againAll, d.againNames
	d.againAll, d.againNames = false, nil
	d.againMu.Unlock()
	d.loading.Lock()
	defer d.loading.Unlock()
	if all || !d.loaded || d.unreadable.Load() != nil {
		d.loadAll(ctx, triggerWatch)
		return
	}
	d.loadGroups(ctx, names)
}

// relate notes which groups a group has to be judged with.
func (d *Daemon) relate(name string) {
	file, _, there := d.dir.Get(name)
	g, known := d.groups.get(name)
	if !there && !known {
		d.relations.Remove(name)
		return
	}
	d.relations.Set(name, file, g.def)
}

// firstKey is called when a group without keys has got one: it keeps its alias
// now, whoever else claims it.
func (d *Daemon) firstKey(name string) {
	related := map[string]bool{name: true}
	if d.relations.Of(related); len(related) > 1 {
		d.again(name)
	}
}

// known is what the database knows of some groups.
type known struct {
	names map[string]bool           // all of them, whether the database knows them or not
	rows  map[string]jobstore.Group // by name
	keys  map[string]bool           // those that have a generation
	read  map[string]*keys          // what the database has of their keys
	all   bool                      // these are all groups
}

// add adds a group of the database, unless only events tell of it: then it never
// was good.
func (k known) add(row jobstore.Group) {
	if row.Definition != nil {
		k.names[row.Name], k.rows[row.Name] = true, row
	}
}

// lastGood is the last good definition of a group, nil where the database holds
// none that can be read.
func (d *Daemon) lastGood(cfg *config.Config, row jobstore.Group) *config.Group {
	g, err := config.UnmarshalDefinition(row.Definition)
	if err != nil {
		d.log.Error("the last good definition in the database cannot be read: the group is what its file says", "group", row.Name, "err", err,
			"advice", "see that the group's file is there and good: byokctl check")
		return nil
	}
	g.Account = cfg.Credentials[g.Credential].Account
	return g
}

// apply compares the files of groups with the database and acts on them. Of each
// group all that are related to it have to be among them.
func (d *Daemon) apply(ctx context.Context, cfg *config.Config, k known, trigger string) {
	now := d.Now()
	inDB, keys := k.rows, k.keys
	good := make(map[string]*config.Group)
	bad := make(map[string]config.Problems)
	waits := make(map[string]bool) // not settled yet: as it was
	lastGood := make(map[string]*config.Group)
	for name := range k.names {
		switch g, problems, there := d.dir.Get(name); {
		case g != nil:
			good[name] = g
		case problems != nil:
			bad[name] = problems
		case there:
			waits[name] = true
		}
		row, ok := inDB[name]
		switch g := good[name]; {
		case !ok:
		case g != nil && row.Digest == g.Digest():
			lastGood[name] = g // the same, and no need to read it
		default:
			if g := d.lastGood(cfg, row); g != nil {
				lastGood[name] = g
			}
		}
	}
	hasGeneration := func(name string) bool { return keys[name] }

	// A renamed file goes on with the group that it names.
	for _, name := range slices.Sorted(maps.Keys(good)) {
		old := good[name].AWS.PreviousName
		_, known := inDB[name]
		row, there := inDB[old]
		if old == "" || known || !there || good[old] != nil || bad[old] != nil || waits[old] {
			continue
		}
		if lastGood[old] != nil {
			if ps := config.CheckChange(lastGood[old], good[name], keys[old]); len(ps) > 0 {
				bad[name] = ps
				delete(good, name)
				continue
			}
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
		row.Name, row.RemovedAt = name, time.Time{}
		inDB[name], lastGood[name], keys[name] = row, lastGood[old], keys[old]
		k.read[name] = k.read[old]
		delete(inDB, old)
		delete(lastGood, old)
		delete(keys, old)
		delete(k.read, old)
		d.groups.forget(old)
		d.runner.Remove(old)
	}

	// What may not change, and what two files may not claim.
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
			old.Gone = bad[name] == nil && !waits[name]
			claimants = append(claimants, old)
		}
	}
	for name, ps := range config.CheckSet(cfg, claimants, hasGeneration) {
		if good[name] != nil {
			bad[name] = append(bad[name], ps...)
			delete(good, name)
		}
	}

	d.acceptAll(ctx, good, lastGood, k, trigger)
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		d.refuse(name, lastGood[name], inDB[name], bad[name], now)
	}
	for name := range waits {
		if row, ok := inDB[name]; ok {
			d.keep(name, lastGood[name], row, false)
		}
	}
	for name, row := range inDB {
		if good[name] == nil && bad[name] == nil && !waits[name] {
			d.remove(ctx, name, lastGood[name], row)
		}
	}
	for name := range k.names {
		// A bad file that is gone again, and never was a group.
		if _, known := inDB[name]; !known && good[name] == nil && bad[name] == nil {
			d.groups.forget(name)
		}
		d.relate(name)
	}
}

// readKeys reads what the database has of the keys of groups.
func (d *Daemon) readKeys(ctx context.Context, k known) error {
	var names []string // all
	if !k.all {
		names = slices.Collect(maps.Keys(k.names))
	}
	rows, err := d.store.Keys(ctx, names...)
	for _, row := range rows {
		k.read[row.Group] = newKeys(row)
		if row.Some {
			k.keys[row.Group] = true
		}
	}
	return err
}

// together is how many groups are dealt with in one transaction: others who write
// wait for its end.
const together = 250

// acceptAll puts good definitions into force, many with one commit.
func (d *Daemon) acceptAll(ctx context.Context, good, lastGood map[string]*config.Group, k known, trigger string) {
	accept := func(ctx context.Context, name string) error {
		return d.accept(ctx, good[name], lastGood[name], k.rows[name], k.read[name], trigger)
	}
	var written []string // those for which something may have to be written
	for _, name := range slices.Sorted(maps.Keys(good)) {
		row := k.rows[name]
		if row.Name != "" && row.Digest == good[name].Digest() && row.RemovedAt.IsZero() {
			if err := accept(ctx, name); err != nil {
				d.storeFailed("store a definition", err)
			}
			continue
		}
		written = append(written, name)
	}
	for names := range slices.Chunk(written, together) {
		err := d.store.Together(ctx, func(ctx context.Context) error {
			for _, name := range names {
				if err := accept(ctx, name); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			continue
		}
		// None of them is stored: what one cannot do must not stop the others.
		for _, name := range names {
			if err := accept(ctx, name); err != nil {
				d.storeFailed("store a definition", err)
			}
		}
	}
	if len(written) > 0 {
		wake(d.jobsWake) // once more, now that they are stored
	}
	wake(d.groupsWake)
	wake(d.expiryWake)
	wake(d.driftWake)
	d.changes.notify()
}

// accept puts a good definition into force and asks for what its differences
// need. All of it can be done again.
func (d *Daemon) accept(ctx context.Context, g, last *config.Group, row jobstore.Group, read *keys, trigger string) error {
	d.pulses.goesOn()
	now := d.Now()
	digest := g.Digest()
	isNew := row.Name == ""
	hasKeys, stored := read != nil && read.some, false
	aliases := row.OldAliases
	if last != nil {
		var err error
		if aliases, err = d.rememberAlias(ctx, g, last, row, hasKeys); err != nil {
			return err
		}
	}
	if isNew {
		stored = true
		if err := d.setDefinition(ctx, g, trigger); err != nil {
			return err
		}
	}
	if last != nil && row.RemovedAt.IsZero() && ruleChanged(last, g) && g.Rotation.Enabled {
		if err := d.missedBefore(ctx, g, last, row); err != nil {
			return err
		}
	}
	if last == nil || ruleChanged(last, g) {
		stored = true
		if err := d.store.SetEnabled(ctx, g.Name, now); err != nil {
			return err
		}
	}
	if !row.RemovedAt.IsZero() {
		stored = true
		if err := d.store.SetRemoved(ctx, g.Name, time.Time{}); err != nil {
			return err
		}
	}
	if last != nil && row.AppliedDigest == row.Digest && last.Digest() == digest && row.Digest != digest {
		// The same definition, which an older byokd wrote down with fewer keys.
		stored = true
		if err := d.store.SetApplied(ctx, g.Name, digest); err != nil {
			return err
		}
	}
	if stored || !slices.Equal(row.OldAliases, aliases) {
		var err error
		if row, err = d.store.Group(ctx, g.Name); err != nil {
			return err
		}
	}
	d.groups.accepted(g, row, read)
	if !isNew && last != nil && last.Digest() != digest {
		d.log.Info("definition has changed", "group", g.Name)
		if _, err := d.store.Resnapshot(ctx, g.Name, mustJSON(d.definition(g)), g.HSM); err != nil {
			return err
		}
		if _, err := d.store.Wake(ctx, jobstore.WakeFilter{Groups: []string{g.Name}}); err != nil {
			return err
		}
	}
	if last != nil && last.Digest() != digest {
		if err := d.planRetirement(ctx, g, trigger); err != nil {
			return err
		}
	}
	if isNew {
		d.log.Info("new group", "group", g.Name, "alias", g.AWS.Alias, "region", g.AWS.Region)
	}
	if !isNew && row.Digest != digest {
		// Last of what depends on the definition before: all of it can be done
		// again, and is, if byokd dies in between.
		if err := d.setDefinition(ctx, g, trigger); err != nil {
			return err
		}
		row.Digest = digest
		d.groups.update(g.Name, func(g *group) { g.row.Digest = digest })
	}
	d.workers.free(d.placeOf(g.Name))
	if err := d.synchronizeChanged(ctx, g, row, trigger); err != nil {
		return err
	}
	if err := d.force(ctx, g, row); err != nil {
		return err
	}
	d.plan(g.Name)
	return nil
}

// setDefinition stores a definition as the last good one.
func (d *Daemon) setDefinition(ctx context.Context, g *config.Group, trigger string) error {
	definition, err := g.MarshalDefinition()
	if err != nil {
		return err
	}
	digest := g.Digest()
	return d.store.SetDefinition(ctx, g.Name, definition, digest, g.HSM, jobstore.AuditEntry{Actor: trigger,
		Action: "take definition", Detail: g.AWS.Alias + " in " + g.AWS.Region, Definition: digest})
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
// It returns those that are kept in mind.
func (d *Daemon) rememberAlias(ctx context.Context, g, last *config.Group, row jobstore.Group, hasKeys bool) ([]string, error) {
	old := slices.Clone(row.OldAliases)
	if last.AWS.Alias != g.AWS.Alias && !slices.Contains(old, last.AWS.Alias) && hasKeys {
		old = append(old, last.AWS.Alias)
	}
	old = slices.DeleteFunc(old, func(alias string) bool {
		return alias == g.AWS.Alias || slices.Contains(g.AWS.FormerAliases, alias)
	})
	if slices.Equal(old, row.OldAliases) {
		return row.OldAliases, nil
	}
	return old, d.store.SetOldAliases(ctx, g.Name, old)
}

// lookForOldAliases forgets those that are gone.
func (d *Daemon) lookForOldAliases(ctx context.Context, g group) error {
	kms, err := d.kms(g.def.Credential, g.def.AWS.Region)
	if err != nil {
		return err
	}
	var gone []string
	for _, alias := range g.row.OldAliases {
		if _, err := kms.DescribeKey(ctx, alias); errors.Is(err, lifecycle.ErrNotFound) {
			gone = append(gone, alias)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	d.loading.Lock()
	defer d.loading.Unlock()
	now, ok := d.groups.get(g.name)
	if !ok {
		return nil
	}
	left := slices.DeleteFunc(slices.Clone(now.row.OldAliases), func(alias string) bool { return slices.Contains(gone, alias) })
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

// planRetirement plans what a definition wants retired of the generations that
// there are, and drops what it no longer wants.
func (d *Daemon) planRetirement(ctx context.Context, g *config.Group, trigger string) error {
	if !d.cfg.Load().Designated {
		return nil
	}
	generations, err := journal{d}.Generations(ctx, g.Name)
	if err != nil {
		return err
	}
	plan := lifecycle.Retirements(d.definition(g), generations, trigger, d.Now())
	if err := d.store.SetPlan(ctx, planRow(*plan)); err != nil {
		return err
	}
	d.workers.free(d.placeOf(g.Name))
	return nil
}

// planAll plans what is to be retired of all groups: byokd may have died between a
// job's end and that.
func (d *Daemon) planAll(ctx context.Context) {
	open, err := d.store.OpenJobs(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.storeFailed("read the open jobs", err)
		}
		return
	}
	planned := make(map[string]bool)
	for _, j := range open {
		planned[j.Group] = planned[j.Group] || j.Kind == string(lifecycle.Retire)
	}
	var names []string
	for _, name := range d.groups.names() {
		if g, ok := d.groups.get(name); ok && g.def != nil && !g.gone && g.hasKeys && (planned[name] || retires(g.def)) {
			names = append(names, name)
		}
	}
	for some := range slices.Chunk(names, together) {
		if ctx.Err() != nil {
			return
		}
		d.planSome(ctx, some)
	}
}

// planSome plans what is to be retired of some groups.
func (d *Daemon) planSome(ctx context.Context, names []string) {
	d.loading.Lock()
	defer d.loading.Unlock()
	d.pulses.goesOn()
	plan := func(ctx context.Context, name string) error {
		g, ok := d.groups.get(name)
		if !ok || g.def == nil || g.gone {
			return nil
		}
		return d.planRetirement(ctx, g.def, triggerStart)
	}
	err := d.store.Together(ctx, func(ctx context.Context) error {
		for _, name := range names {
			if err := plan(ctx, name); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		wake(d.jobsWake) // once more, now that they are stored
		return
	}
	for _, name := range names {
		if err := plan(ctx, name); err != nil && ctx.Err() == nil {
			d.storeFailed("plan what is to be retired", err)
		}
	}
}

// retires reports whether a definition has anything retired.
func retires(g *config.Group) bool {
	r := g.Rotation
	return r.DisablePrevious || r.DeletePreviousMaterialAfter != nil || r.SchedulePreviousDeletionAfter != nil || r.KeepGenerations > 0
}

// named reports whether the active_key_id of a definition in force names a key.
func (gs *groups) named(keyID string) bool {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	for _, g := range gs.m {
		if g.def != nil && !g.gone && g.def.AWS.ActiveKeyID == keyID {
			return true
		}
	}
	return false
}

// openJobs are a group's jobs of a kind that have not ended.
func (d *Daemon) openJobs(ctx context.Context, name string, kind lifecycle.Kind) ([]jobstore.Job, error) {
	open, err := d.store.OpenJobs(ctx, name)
	return slices.DeleteFunc(open, func(j jobstore.Job) bool { return j.Kind != string(kind) }), err
}

// synchronizeChanged asks for a synchronization where the definition differs
// from the one that was last applied.
func (d *Daemon) synchronizeChanged(ctx context.Context, g *config.Group, row jobstore.Group, trigger string) error {
	digest := g.Digest()
	if row.AppliedDigest == "" || row.AppliedDigest == digest || !d.cfg.Load().Designated {
		return nil
	}
	open, err := d.openJobs(ctx, g.Name, lifecycle.Synchronize)
	if err != nil {
		return err
	}
	var rotated time.Time
	if len(open) > 0 {
		generations, err := journal{d}.Generations(ctx, g.Name)
		if err != nil {
			return err
		}
		rotated = lifecycle.LastRotation(generations)
	}
	for _, job := range open {
		// One that began before the last rotation may have been past that key's turn.
		whole := job.StartedAt.IsZero() || job.StartedAt.After(rotated)
		if j, err := lifecycleJob(&job); err == nil && whole && j.Definition.Digest == digest && !j.Request.Asked {
			return nil
		}
	}
	_, _, err = d.enqueue(ctx, ask{kind: lifecycle.Synchronize, group: g, trigger: trigger,
		key: "definition:" + lifecycle.NewID(d.Now())})
	return err
}

// force asks for the rotation that a new value of [rotation] force stands for.
// While nothing was ever applied, what becomes of the value is decided when the
// group has been looked for: see decide.
func (d *Daemon) force(ctx context.Context, g *config.Group, row jobstore.Group) error {
	value := g.Rotation.Force
	if value == "" || row.AppliedDigest == "" || !d.cfg.Load().Designated {
		return nil
	}
	seen, err := d.store.Seen(ctx, g.Name, forceKey(value))
	if err != nil || seen {
		return err
	}
	_, _, err = d.enqueue(ctx, ask{kind: lifecycle.Rotate, group: g, trigger: triggerForce, key: forceKey(value), urgent: true})
	return err
}

// accepted takes over a good definition.
func (gs *groups) accepted(def *config.Group, row jobstore.Group, read *keys) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	g, ok := gs.m[def.Name]
	if !ok {
		g = gs.add(def.Name)
	}
	row = slim(row, def)
	defer gs.touched(g)
	g.def, g.invalid, g.row, g.gone, g.told, g.hasKeys = def, nil, row, false, false, g.hasKeys || read != nil && read.some
	if g.version == 0 && read != nil {
		g.keys = read // nothing of it has changed since it was read
	}
	delete(gs.gone, def.Name)
	g.nextLook, g.lookPause = time.Time{}, 0
}

// slim is a row without what the database has, or the definition.
func slim(row jobstore.Group, def *config.Group) jobstore.Group {
	row.Definition = nil
	if def != nil {
		for _, s := range []struct {
			of   *string
			same string
		}{{&row.Name, def.Name}, {&row.HSM, def.HSM}, {&row.Digest, def.Digest()}, {&row.AppliedDigest, def.Digest()}} {
			if *s.of == s.same {
				*s.of = s.same // one string for both
			}
		}
	}
	return row
}

func (gs *groups) forget(name string) {
	gs.d.metrics.forget(name)
	gs.mu.Lock()
	defer gs.mu.Unlock()
	delete(gs.m, name)
	delete(gs.gone, name)
	gs.sorted = nil
	gs.toShow.add(name) // what is told of all is another without it
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
			g.told = false
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
		g = d.groups.add(name)
	}
	if g.def == nil {
		g.def = last
	}
	g.row, g.gone = slim(row, g.def), gone
	d.groups.touched(g)
	if gone {
		d.groups.gone[name] = true
	} else {
		delete(d.groups.gone, name)
	}
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
		d.log.Warn("group file is gone: no more rotations; its keys stay as they are", "group", name, "advice", "put the file back to go on; it is the same group")
	}
	d.keep(name, last, row, true)
	d.groups.update(name, func(g *group) { g.invalid = nil })
	d.runner.Remove(name)
}

// applies reports whether AWS has a job's definition now, for better or worse: after
// an automatic synchronization, after the first rotation of a group, and after one
// that had begun with a definition that was changed since. That the newer one was
// synchronized meanwhile does not help the key that such a rotation made.
func (gs *groups) applies(job *lifecycle.Job) bool {
	g, _ := gs.get(job.Group)
	switch job.Kind {
	case lifecycle.Synchronize:
		return !job.Request.Asked
	case lifecycle.Rotate:
		return g.row.AppliedDigest == "" || g.def == nil || job.Definition.Digest != g.def.Digest()
	}
	return false
}

// jobEnded does what an attempt at a job makes possible or necessary; applied
// tells that AWS has its definition now.
func (gs *groups) jobEnded(ctx context.Context, job *lifecycle.Job, done, applied bool) {
	d := gs.d
	ctx = context.WithoutCancel(ctx)
	d.loading.Lock()
	defer d.loading.Unlock()
	first := false
	gs.update(job.Group, func(g *group) {
		if done && job.Kind == lifecycle.Rotate {
			first, g.hasKeys = !g.hasKeys, true
		}
		if applied {
			g.row.AppliedDigest = job.Definition.Digest
		}
		if moved := job.Kind == lifecycle.Rotate || job.Kind == lifecycle.Rollback; done && moved && g.looked != nil {
			// Until the group is looked at again, some hours later.
			l := *g.looked
			l.Problems = slices.DeleteFunc(slices.Clone(l.Problems), func(f lifecycle.Finding) bool { return f.Code == "grants" })
			if left := lifecycle.GrantsLeft(job); left != "" {
				l.Problems = append(l.Problems, lifecycle.Finding{Code: "grants", Message: left})
			}
			g.looked = &l
		}
	})
	if first {
		d.firstKey(job.Group)
	}
	g, ok := gs.get(job.Group)
	switch {
	case !ok:
		return
	case g.gone:
		d.again(job.Group) // the job may have been in the way of a rename
		return
	case applied && g.def != nil:
		// The definition may have changed while the job ran.
		if err := errors.Join(d.synchronizeChanged(ctx, g.def, g.row, triggerWatch), d.force(ctx, g.def, g.row)); err != nil {
			d.storeFailed("ask for what a changed definition needs", err)
		}
	}
	if done && g.def != nil && job.Kind != lifecycle.Retire { // the end of one changes nothing about the others
		if err := d.planRetirement(ctx, g.def, job.Trigger); err != nil {
			d.storeFailed("plan what is to be retired", err)
		}
	}
	if !done && g.def != nil && job.Definition.Digest != g.def.Digest() {
		// The definition has changed while the job ran.
		if _, err := d.store.Resnapshot(ctx, g.name, mustJSON(d.definition(g.def)), g.def.HSM); err != nil {
			d.storeFailed("renew a job's definition", err)
		}
	}
	d.plan(job.Group)
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

// newJob is the job that a wish becomes.
func (d *Daemon) newJob(a ask) jobstore.NewJob {
	by := cmp.Or(a.by, a.trigger)
	a.request.By = a.by
	now := d.Now()
	number := 0
	if a.request.Generation != nil {
		number = *a.request.Generation
	}
	def := d.definition(a.group)
	return jobstore.NewJob{
		Kind: string(a.kind), Group: a.group.Name, Generation: number, HSM: a.group.HSM, Trigger: a.trigger, UniqueKey: a.key,
		Definition: mustJSON(def), Request: mustJSON(a.request), Urgent: a.urgent, Expiring: a.trigger == triggerExpiry,
		DueAt: now, ScheduledAt: a.tick, Steps: lifecycle.Steps(a.kind),
		Audit: []jobstore.AuditEntry{{At: now, Group: a.group.Name, Actor: by, Action: "ask for " + string(a.kind),
			Detail: "trigger " + a.trigger, Definition: def.Digest}},
	}
}

// enqueue makes a wish durable. It returns the job that it became or joined.
func (d *Daemon) enqueue(ctx context.Context, a ask) (jobstore.Job, bool, error) {
	row, joined, err := d.store.Enqueue(ctx, d.newJob(a))
	if err != nil {
		return row, joined, d.notStored(err)
	}
	d.storeWorks()
	d.log.Debug("job asked for", "group", a.group.Name, "job", row.ID, "kind", row.Kind, "trigger", a.trigger, "joined", joined)
	d.workers.free(row.Place)
	d.changes.notify()
	return row, joined, nil
}

// notStored tells that a job could not be stored, and why.
func (d *Daemon) notStored(err error) error {
	d.storeFailed("store a job", err)
	if p := d.storing.Load(); p != nil {
		err = fmt.Errorf("%s (%w)", p.message, err)
	}
	return fmt.Errorf("the job was not stored: %w", err)
}

// enqueueMany makes wishes durable together, or none of them.
func (d *Daemon) enqueueMany(ctx context.Context, asks []ask) ([]jobstore.Enqueued, error) {
	if len(asks) == 0 {
		return nil, nil
	}
	jobs := make([]jobstore.NewJob, len(asks))
	for i, a := range asks {
		jobs[i] = d.newJob(a)
	}
	made, err := d.store.EnqueueMany(ctx, jobs)
	if err != nil {
		d.storeFailed("store jobs", err)
		return nil, err
	}
	d.storeWorks()
	d.log.Debug("jobs asked for", "jobs", len(jobs), "first_group", asks[0].group.Name)
	wake(d.jobsWake)
	d.changes.notify()
	return made, nil
}
