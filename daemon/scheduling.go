package daemon

import (
	"context"
	"time"

	"byokd/config"
	"byokd/daemon/lifecycle"
	"byokd/schedule"
)

// tickRetry is when a tick that could not be stored is fired again.
const tickRetry = 30 * time.Second

// rule is what a definition says about when it rotates, nil where it does not.
func rule(g *config.Group) (*schedule.Rule, error) {
	if !g.Rotation.Enabled {
		return nil, nil
	}
	r := &schedule.Rule{Every: time.Duration(g.Rotation.Every), Jitter: time.Duration(g.Rotation.Jitter),
		SkipMissed: g.Rotation.Missed == "skip"}
	if g.Rotation.Schedule != "" {
		location, err := time.LoadLocation(g.Rotation.Timezone)
		if err != nil {
			return nil, err
		}
		if r.Schedule, err = schedule.Parse(g.Rotation.Schedule, location); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// next is a group's next tick.
func (d *Daemon) next(g group) (tick, at time.Time, missed int) {
	generations, err := journal{d}.Generations(context.Background(), g.name)
	if err != nil {
		// Without them a group would look overdue.
		d.storeFailed("read the generations", err)
		return
	}
	return d.nextAfter(g, lifecycle.LastRotation(generations))
}

// nextAfter is the next tick of a group that was last rotated at the given time.
func (d *Daemon) nextAfter(g group, rotated time.Time) (tick, at time.Time, missed int) {
	if g.def == nil || g.gone || !d.cfg.Load().Designated {
		return
	}
	r, err := rule(g.def)
	if err != nil {
		d.log.Error("the schedule cannot be read", "group", g.name, "err", err)
		return
	}
	if r == nil {
		return
	}
	return r.Next(g.name, schedule.State{Since: g.row.FirstSeen, Changed: g.row.EnabledAt,
		LastTick: g.row.LastTick, LastRotation: rotated}, d.Now())
}

// plan has the group's next tick fired.
func (d *Daemon) plan(name string) {
	g, ok := d.groups.get(name)
	if !ok {
		d.runner.Remove(name)
		return
	}
	tick, at, missed := d.next(g)
	d.runner.Set(name, tick, at, missed)
}

// fire makes a rotation of a tick. It is the first durable thing that happens:
// the tick and its job are one transaction.
func (d *Daemon) fire(t schedule.Tick) {
	d.loading.Lock()
	defer d.loading.Unlock()
	g, ok := d.groups.get(t.Group)
	if !ok || g.def == nil || g.gone || !d.cfg.Load().Designated {
		return
	}
	// What is due may have changed since the tick was planned; a clock that was
	// set ahead makes one rotation of the ticks that it passed.
	tick, at, missed := d.next(g)
	if tick.IsZero() || at.After(d.Now()) {
		d.runner.Set(t.Group, tick, at, missed)
		return
	}
	t.At, t.Missed = tick, missed
	trigger := triggerSchedule
	if t.Missed > 0 {
		trigger = triggerMissed
		d.log.Info("ticks have passed unseen: one rotation for all of them", "group", t.Group, "ticks", t.Missed)
	}
	_, joined, err := d.enqueue(context.Background(), ask{kind: lifecycle.Rotate, group: g.def, trigger: trigger,
		key: tickKey(t.At), tick: t.At})
	if err != nil {
		d.storeFailed("store a tick", err)
		d.runner.Set(t.Group, t.At, d.Now().Add(tickRetry), t.Missed)
		return
	}
	if joined {
		d.log.Info("tick joins the rotation that is open", "group", t.Group)
	}
	d.groups.update(t.Group, func(g *group) {
		if t.At.After(g.row.LastTick) {
			g.row.LastTick = t.At
		}
	})
	d.plan(t.Group)
}

// tickKey is the unique key of a tick's job.
func tickKey(tick time.Time) string { return "tick:" + tick.UTC().Format(time.RFC3339Nano) }
