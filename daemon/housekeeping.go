package daemon

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"byokd/daemon/control"
	"byokd/daemon/jobstore"
	"byokd/daemon/lifecycle"
)

const (
	// tidyEvery is how often what changes by time alone is looked at.
	tidyEvery = 10 * time.Second

	// invalidAfter is how long a group's file is bad before an event tells of it:
	// configuration management may be about to mend it.
	invalidAfter = 30 * time.Second

	// pruneEvery is how often finished jobs past their retention are removed, by
	// byokd's clock as the retention is.
	pruneEvery = 12 * time.Hour

	// aliasEvery is how often it is looked whether old aliases are gone.
	aliasEvery = time.Hour
)

// housekeep looks at what changes by time alone and tells systemd how things are.
// It does nothing that waits for a network or a token.
func (d *Daemon) housekeep(ctx context.Context, p *pulse) {
	for ok := true; ok; ok = p.sleep(ctx, tidyEvery, d.tidyWake) {
		d.tidy(ctx)
	}
}

// upkeep does what is seldom to be done: it removes old jobs, looks whether the
// schedules can be met at AWS's quotas, whether old aliases are gone and whether a credential file has changed, and meets requests
// again that could not be stored.
func (d *Daemon) upkeep(ctx context.Context, p *pulse) {
	d.planAll(ctx)
	var pruned, looked time.Time
	var memory spareMemory
	identity := d.credentialFiles()
	for ok := true; ok; ok = p.sleep(ctx, tidyEvery, d.upkeepWake) {
		if now := d.Now(); now.Sub(pruned).Abs() >= pruneEvery {
			pruned = now
			d.prune(ctx)
			d.overloads.stale.Store(true) // other ticks are ahead now
		}
		if d.overloads.stale.Load() {
			d.lookForOverloads()
		}
		if time.Since(looked) >= aliasEvery {
			looked = time.Now()
			resume := p.rest()
			d.oldAliases(ctx)
			resume()
		}
		if d.untaken.Load() {
			d.takeLeftovers(ctx)
		}
		memory.look(d.workers.atRest())
		if now := d.credentialFiles(); !maps.Equal(now, identity) {
			identity = now
			d.log.Info("a credential file has changed: what waits for a permission is tried again")
			d.groups.lookAnew() // it may be another account's now
			d.permissionsChanged(ctx)
		}
	}
}

// credentialFiles tells versions of the access key files apart.
func (d *Daemon) credentialFiles() map[string]string {
	files := make(map[string]string)
	for name, c := range d.cfg.Load().Credentials {
		if file, ok := c.AccessKeySource(); ok {
			files[name] = fileIdentity(file.Path())
		}
	}
	return files
}

// permissionsChanged tries again what waited for a permission.
func (d *Daemon) permissionsChanged(ctx context.Context) {
	if _, err := d.store.Wake(ctx, jobstore.WakeFilter{WaitingFor: []string{lifecycle.WaitPermission}}); err != nil {
		d.storeFailed("wake jobs", err)
	}
	if _, err := d.store.WakeEvents(ctx); err != nil {
		d.storeFailed("wake events", err)
	}
	d.groups.lookAgain()
	wake(d.jobsWake)
	d.wakeEvents()
}

// A summary is what is told of all groups at once.
type summary struct {
	count    int    // groups that are there
	worst    string // the first problem of the worst group; "": none has any
	severity int    // of its state
}

// tidy reports groups that have been invalid or overdue for long enough, and tells
// systemd how things are. It looks at the groups that have changed since it last
// did, and at those of which time has changed something.
func (d *Daemon) tidy(ctx context.Context) {
	gs := d.groups
	c, err := d.common(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.storeFailed("read the state of the groups", err)
		}
		return
	}
	names := gs.take(&gs.toShow)
	names = append(names, gs.turned(d.Now())...)
	if len(names) > 0 {
		if err := d.show(ctx, names); err != nil {
			gs.giveBack(&gs.toShow, names...)
			if ctx.Err() == nil {
				d.storeFailed("read the state of the groups", err)
			}
			return
		}
		for _, name := range names {
			if g, ok := gs.get(name); ok && g.current() && d.cfg.Load().Designated && d.announces() {
				if err := d.report(ctx, g); err != nil && ctx.Err() == nil {
					gs.giveBack(&gs.toShow, name)
					d.storeFailed("store an event", err)
				}
			}
		}
		d.summed = gs.sum()
	}
	d.Notifier.Status(d.statusLine(d.worst(c)))
	if d.storing.Load() != nil {
		// Nothing else may write for weeks and so find out that it can again.
		if err := d.store.Record(ctx, jobstore.AuditEntry{Actor: "byokd", Action: "try the database", Detail: "it could not be written before"}); err == nil {
			d.storeWorks()
		}
	}
}

// turned are the groups of which time alone has changed the state.
func (gs *groups) turned(now time.Time) (names []string) {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	if gs.nextTurn.IsZero() || now.Before(gs.nextTurn) {
		return nil
	}
	gs.nextTurn = time.Time{}
	for name, g := range gs.m {
		switch {
		case g.shown == nil:
		case !g.holds(now):
			names = append(names, name)
		case gs.nextTurn.IsZero() || g.shown.until.Before(gs.nextTurn):
			gs.nextTurn = g.shown.until
		}
	}
	return names
}

// sum sums the states of all groups up.
func (gs *groups) sum() summary {
	gs.mu.Lock()
	defer gs.mu.Unlock()
	s := summary{severity: -1}
	worst := (*group)(nil)
	for _, g := range gs.m {
		if !g.gone && g.def != nil {
			s.count++
		}
		if g.shown == nil || len(g.shown.Problems) == 0 {
			continue
		}
		if n := control.Severity(g.shown.State); n > s.severity || n == s.severity && g.name < worst.name {
			worst, s.severity = g, n
		}
	}
	if worst != nil {
		s.worst = worst.name + ": " + worst.shown.Problems[0].Message
	}
	return s
}

// worst is the problem that comes first: of a group that is worse off than what is so
// of many, or of these.
func (d *Daemon) worst(c common) string {
	if d.summed.worst != "" {
		return d.summed.worst
	}
	for _, name := range slices.Sorted(maps.Keys(c.hooks)) {
		if h := c.hooks[name]; name != "" {
			return fmt.Sprintf("%s: hook %q failed: %s", name, h[0].Name, h[0].Error)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.tokens)) {
		return c.tokens[name].message
	}
	if p := d.outbox.firstProblem(); p != nil {
		return p.message
	}
	if c.unreadable != nil {
		return c.unreadable.message
	}
	return ""
}

// report emits the events of a group that is invalid or overdue, once per cause.
func (d *Daemon) report(ctx context.Context, g group) error {
	now := d.Now()
	def := lifecycle.Definition{Group: g.name, Region: d.cfg.Load().Events.Region, Credential: d.cfg.Load().Events.Credential}
	if g.def != nil {
		def = d.definition(g.def)
	}
	if def.Region == "" || def.Credential == "" {
		return nil // there is no way for its events; log, metric and status tell
	}
	if g.invalid != nil && !g.told && now.Sub(g.since) >= invalidAfter {
		var problems []string
		for _, p := range g.invalid {
			problems = append(problems, p.String())
		}
		event := lifecycle.NewEvent(now, d.origin(def, ""), lifecycle.GroupInvalid, nil, map[string]any{"problems": problems})
		if _, err := d.store.ReportInvalid(ctx, g.invalid.Error(), jobstore.Event(event)); err != nil {
			return err
		}
		d.groups.update(g.name, func(g *group) { g.told = true })
		d.wakeEvents()
	}
	if g.invalid == nil && g.row.InvalidReported != "" {
		if err := d.store.ClearInvalid(ctx, g.name); err != nil {
			return err
		}
		d.groups.update(g.name, func(g *group) { g.row.InvalidReported = "" })
	}
	if due := g.shown.due; !due.IsZero() && !due.Equal(g.row.OverdueReported) {
		event := lifecycle.NewEvent(now, d.origin(def, ""), lifecycle.RotationOverdue, nil, map[string]any{"due_at": due.UTC().Format(time.RFC3339)})
		if _, err := d.store.ReportOverdue(ctx, due, jobstore.Event(event)); err != nil {
			return err
		}
		d.log.Error("rotation is overdue", "group", g.name, "due_at", due.UTC(), "advice", "byokctl status "+g.name+" shows what is in its way")
		d.groups.update(g.name, func(g *group) { g.row.OverdueReported = due })
		d.wakeEvents()
	}
	return nil
}

// statusLine is what `systemctl status byokd` shows.
func (d *Daemon) statusLine(worst string) string {
	line := fmt.Sprintf("%d groups", d.summed.count)
	if !d.cfg.Load().Designated {
		line += ", not designated"
	} else if name, at, ok := d.runner.Next(); ok {
		line += fmt.Sprintf(", next rotation %s at %s", name, at.UTC().Format(time.RFC3339))
	}
	for _, p := range []*problem{d.unreadable.Load(), d.storing.Load()} {
		if p != nil {
			worst = p.message
		}
	}
	if r := d.reloaded.Load(); !r.OK {
		line += "; byokd.toml could not be reloaded: " + string(r.Error)
	}
	if worst != "" {
		line += "; " + worst
	}
	return line
}

// oldAliases looks whether aliases that moved out of definitions are gone.
func (d *Daemon) oldAliases(ctx context.Context) {
	for _, name := range d.groups.names() {
		g, ok := d.groups.get(name)
		if !ok || g.def == nil || len(g.row.OldAliases) == 0 {
			continue
		}
		if err := d.lookForOldAliases(ctx, g); err != nil && ctx.Err() == nil {
			d.log.Warn("it cannot be seen whether old aliases are gone", "group", name, "err", err)
		}
	}
}

// prune removes finished jobs past their retention.
func (d *Daemon) prune(ctx context.Context) {
	before := d.Now().Add(-time.Duration(d.cfg.Load().Retention.Jobs))
	n, err := d.store.Prune(ctx, before)
	if err != nil && ctx.Err() == nil {
		d.storeFailed("remove old jobs", err)
	}
	if n > 0 {
		d.log.Info("old jobs were removed", "jobs", n)
	}
}
