package daemon

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"byokd/config"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
)

// Groups whose keys must be looked for before anything is decided about them are
// looked for at these distances while HSM or AWS cannot be looked at.
const (
	firstLook = time.Second
	lastLook  = 30 * time.Second

	// operatorLook is the distance where a person must act first.
	operatorLook = 10 * time.Minute

	// againLook is when a group is looked at again that something was found of
	// which does not fit.
	againLook = 6 * time.Hour

	// looksAtOnce is how many groups are looked for at once.
	looksAtOnce = 8
)

// looked is what a reconciliation saw of a group, and how.
type looked struct {
	lifecycle.Findings
	at         time.Time
	place      place // of the definition that it was made with
	designated bool  // false: nothing was recorded
	epoch      int   // of groups when it began
}

// place is what a definition says about where a group's keys are: findings made
// with another one do not count.
type place struct{ hsm, credential, region, alias, activeKeyID, previousName string }

func placeOf(def lifecycle.Definition) place {
	return place{def.HSM, def.Credential, def.Region, def.Alias, def.ActiveKeyID, def.PreviousName}
}

// placeOfGroup is placeOf of the definition that a group's file means.
func placeOfGroup(g *config.Group) place {
	return place{g.HSM, g.Credential, g.AWS.Region, g.AWS.Alias, g.AWS.ActiveKeyID, g.AWS.PreviousName}
}

// holds reports whether the findings still count for a definition of that place.
func (l *looked) holds(at place, designated bool) bool {
	return l != nil && l.place == at && (l.designated || !designated)
}

// run looks for the keys of groups about which nothing can be decided without,
// those that have no generation in the database above all. All other groups are
// looked at before their first job.
func (gs *groups) run(ctx context.Context, p *pulse) {
	var looks sync.WaitGroup
	defer looks.Wait()
	defer p.end()
	places := make(chan struct{}, looksAtOnce)
	for {
		now := gs.d.Now()
		due, next := gs.dueLooks(now)
		for _, name := range due {
			resume := p.rest()
			select {
			case places <- struct{}{}:
				resume()
			case <-ctx.Done():
				return
			}
			looks.Go(func() {
				defer func() { <-places }()
				gs.look(ctx, name)
			})
		}
		if !p.sleep(ctx, max(next.Sub(gs.d.Now()), 10*time.Millisecond), gs.d.groupsWake) {
			return
		}
	}
}

// dueLooks are the groups that are to be looked for, marked as being looked for, and
// when the next one is.
func (gs *groups) dueLooks(now time.Time) (names []string, next time.Time) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	next = now.Add(lastLook)
	designated := gs.d.cfg.Load().Designated
	for name, g := range gs.m {
		switch due, ok := gs.dueLook(g, designated); {
		case !ok:
		case !due.After(now):
			g.inLook = true
			names = append(names, name)
		case due.Before(next):
			next = due
		}
	}
	slices.Sort(names)
	return names, next
}

// dueLook is when a group is to be looked for; ok is false where it need not be.
func (gs *groups) dueLook(g *group, designated bool) (due time.Time, ok bool) {
	if g.def == nil || g.gone || g.inLook || g.drift.jobs > 0 { // a job looks itself
		return time.Time{}, false
	}
	unsettled := !g.hasKeys || g.row.AppliedDigest == ""
	switch {
	case g.looked.holds(placeOfGroup(g.def), designated):
		if len(g.looked.Problems) == 0 {
			return time.Time{}, false
		}
		due = g.looked.at.Add(againLook)
	case unsettled || g.looked != nil || g.lookErr != nil:
		due = g.nextLook
	default:
		return time.Time{}, false
	}
	return due, true
}

// look looks for a group's keys and notes when to try again if that fails.
func (gs *groups) look(ctx context.Context, name string) {
	d := gs.d
	g, ok := gs.get(name)
	if !ok {
		return
	}
	if g.looked != nil && len(g.looked.Problems) > 0 {
		gs.update(name, func(g *group) { g.looked = nil })
	}
	_, err := gs.reconciled(ctx, name, d.definition(g.def))
	if ctx.Err() != nil {
		return
	}
	gs.update(name, func(g *group) {
		g.inLook = false
		if err == nil {
			return
		}
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
}

// reconciled makes sure that a group was looked for in KMS and HSM since byokd
// started and its definition names these places, and that what follows from it
// is decided. It returns what was seen. It waits for a job of the group that runs.
func (gs *groups) reconciled(ctx context.Context, name string, def lifecycle.Definition) (*looked, error) {
	defer gs.hold(name)()
	return gs.reconciledHeld(ctx, name, def)
}

// hold keeps reconciliations of a group away until it is released: they write
// generations as they read them before they looked, and so must not meet a job
// that goes on with one.
func (gs *groups) hold(name string) (release func()) {
	gs.mu.Lock()
	g, ok := gs.m[name]
	if !ok {
		g = gs.add(name)
	}
	gs.mu.Unlock()
	g.looking.Lock()
	return g.looking.Unlock
}

// reconciledHeld is reconciled for one that holds the group.
func (gs *groups) reconciledHeld(ctx context.Context, name string, def lifecycle.Definition) (*looked, error) {
	d := gs.d
	// Read once: what was only looked at does not count when byokd is told
	// meanwhile that this is the designated device.
	designated := d.cfg.Load().Designated
	if current, _ := gs.get(name); current.looked.holds(placeOf(def), designated) {
		return current.looked, nil
	}
	gs.mu.Lock()
	epoch := gs.epoch
	gs.mu.Unlock()
	found, err := d.engine.Reconcile(ctx, def, designated)
	if err != nil {
		return nil, err
	}
	if found.Recovered > 0 {
		d.log.Info("generations were found in KMS and HSM", "group", name, "generations", found.Recovered)
	}
	for _, p := range found.Problems {
		d.log.Warn("something does not fit", "group", name, "problem", p.Code, "message", p.Message)
	}
	if err := d.decide(ctx, name, found, designated); err != nil {
		return nil, err
	}
	// Of the generations, what notDue asks for is kept.
	found.Generations = slices.DeleteFunc(slices.Clone(found.Generations), func(g lifecycle.Generation) bool { return g.Stage != lifecycle.Active })
	for i := range found.Generations {
		found.Generations[i].Policy, found.Generations[i].Tags = "", nil
	}
	l := &looked{Findings: found, at: d.Now(), place: placeOf(def), designated: designated, epoch: epoch}
	stale := false
	gs.update(name, func(g *group) {
		if stale = gs.epoch != epoch; !stale {
			g.looked, g.lookErr, g.lookPause = l, nil, 0
		}
	})
	if stale {
		// The credentials have changed meanwhile: what was seen may be another
		// account's.
		return nil, &lifecycle.Fault{Class: lifecycle.Transient, After: firstLook, Err: errors.New("the credentials have changed during the look")}
	}
	d.plan(name)
	return l, nil
}

// decide does what follows from the state in which a group was found: a group
// of which nothing at all is known gets its first generation; for one whose
// keys are there and whose database was lost, definition and force value count
// as applied and seen.
func (d *Daemon) decide(ctx context.Context, name string, found lifecycle.Findings, designated bool) error {
	d.loading.Lock()
	defer d.loading.Unlock()
	g, ok := d.groups.get(name)
	if !ok || g.row.Name == "" {
		return nil
	}
	if found.Account != "" && found.Account != g.row.Account {
		if err := d.store.SetAccount(ctx, name, found.Account); err != nil {
			return err
		}
	}
	if designated && len(found.Generations) > 0 && !g.hasKeys {
		d.firstKey(name)
	}
	d.groups.update(name, func(g *group) {
		g.hasKeys = g.hasKeys || designated && len(found.Generations) > 0
		if found.Account != "" {
			g.row.Account = found.Account
		}
	})
	if g.def == nil || g.gone || !designated {
		return nil
	}
	if len(found.Generations) > 0 {
		if err := d.planRetirement(ctx, g.def, triggerStart); err != nil {
			return err
		}
	}
	value := g.def.Rotation.Force
	switch {
	case len(found.Generations) > 0 && g.row.AppliedDigest == "":
		if g.def.Rotation.Initial == "now" && found.Adopted {
			// Said in so many words: with active_key_id the default is another.
			if _, _, err := d.enqueue(ctx, ask{kind: lifecycle.Rotate, group: g.def, trigger: triggerInitial, key: "initial"}); err != nil {
				return err
			}
		}
		return d.takeAsApplied(ctx, g)
	case found.Fresh() && value != "":
		_, _, err := d.enqueue(ctx, ask{kind: lifecycle.Rotate, group: g.def, trigger: triggerInitial, key: forceKey(value)})
		return err
	case found.Fresh() && g.def.Rotation.Initial == "now":
		_, _, err := d.enqueue(ctx, ask{kind: lifecycle.Rotate, group: g.def, trigger: triggerInitial, key: "initial"})
		return err
	}
	return nil
}

// takeAsApplied notes the definition and the force value of a group whose keys
// are there as applied and seen: a lost database is no change of either.
func (d *Daemon) takeAsApplied(ctx context.Context, g group) error {
	if value := g.def.Rotation.Force; value != "" {
		if err := d.store.MarkSeen(ctx, g.name, forceKey(value)); err != nil {
			return err
		}
	}
	if err := d.store.SetApplied(ctx, g.name, g.def.Digest()); err != nil {
		return err
	}
	d.groups.update(g.name, func(g *group) { g.row.AppliedDigest = g.def.Digest() })
	return nil
}

// forceKey is the unique key of a force value.
func forceKey(value string) string { return "force:" + value }

// lookAgain has groups looked for at once that could not be, or of which
// something was found that does not fit.
func (gs *groups) lookAgain() {
	gs.mu.Lock()
	for _, g := range gs.m {
		if g.lookErr != nil || g.looked != nil && len(g.looked.Problems) > 0 {
			g.nextLook, g.lookPause = time.Time{}, 0
			if g.looked != nil {
				l := *g.looked
				l.at = time.Time{}
				g.looked = &l
			}
			gs.touched(g)
		}
	}
	gs.mu.Unlock()
	wake(gs.d.groupsWake)
}

// lookAnew has every group looked at again before its next job.
func (gs *groups) lookAnew() {
	gs.mu.Lock()
	gs.epoch++
	for _, g := range gs.m {
		g.looked, g.nextLook, g.lookPause = nil, time.Time{}, 0
		gs.touched(g)
	}
	gs.mu.Unlock()
	wake(gs.d.groupsWake)
}

// notDue reports whether a scheduled or first rotation that has not begun is no
// longer due, since what was found shows that a later one was made: by another device,
// or before an older database was put back.
func notDue(row *jobstore.Job, l *looked) bool {
	if row.Generation != 0 || row.Kind != string(lifecycle.Rotate) {
		return false
	}
	for _, g := range l.Generations {
		switch {
		case g.Stage != lifecycle.Active:
		case row.Trigger == triggerInitial && g.Number > 0: // an adopted one is none that was made
			return true
		case !row.ScheduledAt.IsZero() && l.Recovered > 0 && g.ActivatedAt.After(row.ScheduledAt):
			return true
		}
	}
	return false
}

// goneNames are the groups whose file is gone.
func (gs *groups) goneNames() []string {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	return slices.Sorted(maps.Keys(gs.gone))
}
