package daemon

import (
	"context"
	"fmt"
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

	// pruneEvery is how often finished jobs past their retention are removed.
	pruneEvery = 12 * time.Hour
)

// housekeep looks at what changes by time alone, feeds the watchdog and tells
// systemd how things are.
func (d *Daemon) housekeep(ctx context.Context) {
	every := tidyEvery
	watchdog := d.Notifier.Watchdog()
	if w := watchdog.Interval(); w > 0 {
		every = min(every, w)
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	var tidied, pruned time.Time
	for {
		if time.Since(tidied) >= tidyEvery {
			tidied = time.Now()
			d.tidy(ctx)
		}
		if time.Since(pruned) >= pruneEvery {
			pruned = time.Now()
			d.prune(ctx)
		}
		watchdog.Ping()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// tidy reports groups that have been invalid or overdue for long enough.
func (d *Daemon) tidy(ctx context.Context) {
	v, err := d.view(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.storeFailed("read the state of the groups", err)
		}
		return
	}
	worst := ""
	for _, name := range d.groups.names() {
		g, ok := d.groups.get(name)
		if !ok {
			continue
		}
		s := d.groupStatus(g, v)
		if worst == "" && len(s.Problems) > 0 {
			worst = name + ": " + s.Problems[0].Message
		}
		if !d.cfg.Load().Designated || g.def == nil {
			continue
		}
		if err := d.report(ctx, g, s, v); err != nil && ctx.Err() == nil {
			d.storeFailed("store an event", err)
		}
	}
	d.Notifier.Status(d.statusLine(worst))
}

// report emits the events of a group that is invalid or overdue, once per cause.
func (d *Daemon) report(ctx context.Context, g group, s control.GroupStatus, v *view) error {
	def := d.definition(g.def)
	if g.invalid != nil && !g.invalidReported && v.now.Sub(g.since) >= invalidAfter {
		var problems []string
		for _, p := range g.invalid {
			problems = append(problems, p.String())
		}
		event := lifecycle.NewEvent(v.now, d.origin(def, ""), lifecycle.GroupInvalid, nil, map[string]any{"problems": problems})
		if _, err := d.store.ReportInvalid(ctx, g.invalid.Error(), jobstore.Event(event)); err != nil {
			return err
		}
		d.groups.update(g.name, func(g *group) { g.invalidReported = true })
		wake(d.outboxWake)
	}
	if g.invalid == nil && g.row.InvalidReported != "" {
		if err := d.store.ClearInvalid(ctx, g.name); err != nil {
			return err
		}
		d.groups.update(g.name, func(g *group) { g.row.InvalidReported = "" })
	}
	if due := overdueSince(g, v, s.NextRotation.Time); !due.IsZero() && !due.Equal(g.row.OverdueReported) {
		event := lifecycle.NewEvent(v.now, d.origin(def, ""), lifecycle.RotationOverdue, nil, map[string]any{"due_at": due.UTC().Format(time.RFC3339)})
		if _, err := d.store.ReportOverdue(ctx, due, jobstore.Event(event)); err != nil {
			return err
		}
		d.log.Error("rotation is overdue", "group", g.name, "due_at", due.UTC())
		d.groups.update(g.name, func(g *group) { g.row.OverdueReported = due })
		wake(d.outboxWake)
	}
	return nil
}

// statusLine is what `systemctl status byokd` shows.
func (d *Daemon) statusLine(worst string) string {
	line := fmt.Sprintf("%d groups", d.groups.count())
	if !d.cfg.Load().Designated {
		line += ", not designated"
	} else if name, at, ok := d.runner.Next(); ok {
		line += fmt.Sprintf(", next rotation %s at %s", name, at.UTC().Format(time.RFC3339))
	}
	if p := d.storing.Load(); p != nil {
		worst = p.message
	}
	if worst != "" {
		line += "; " + worst
	}
	return line
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
