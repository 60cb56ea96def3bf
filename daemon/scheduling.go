package daemon

import (
	"context"
	"slices"
	"sync"
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
		var err error
		if r.Schedule, err = parsedSchedule(g.Rotation.Schedule, g.Rotation.Timezone); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// schedules are those that were parsed before, which many groups share.
var schedules sync.Map

func parsedSchedule(spec, timezone string) (schedule.Schedule, error) {
	type key struct{ spec, timezone string }
	if s, ok := schedules.Load(key{spec, timezone}); ok {
		return s.(schedule.Schedule), nil
	}
	location, err := time.LoadLocation(timezone)
	if err != nil {
		return nil, err
	}
	s, err := schedule.Parse(spec, location)
	if err == nil {
		schedules.Store(key{spec, timezone}, s)
	}
	return s, err
}

// next is a group's next tick.
func (d *Daemon) next(g group) (tick, at time.Time, missed int) {
	read, ok := d.keysToPlan(g.name)
	if !ok {
		return
	}
	return d.nextWith(g, read)
}

// keysToPlan reads the keys of groups, without which they would look overdue.
func (d *Daemon) keysToPlan(names ...string) (map[string]*keys, bool) {
	read, err := d.groups.keysOf(context.Background(), names...)
	if err != nil {
		d.storeFailed("read the generations", err)
	}
	return read, err == nil
}

// nextWith is the next tick of a group whose keys have been read.
func (d *Daemon) nextWith(g group, read map[string]*keys) (tick, at time.Time, missed int) {
	k := read[g.name]
	if k == nil {
		k = new(keys) // renamed or gone in between
	}
	return d.nextAfter(g, k.rotated)
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

// firstDue is since when a group waits for its first generation, which is made as
// soon as byokd has looked for its keys and found none, whatever the schedule says;
// zero: it does not. A byokd that becomes the designated device knows the group for
// long, and waits since it cannot look.
func (d *Daemon) firstDue(g group, generations []lifecycle.Generation) time.Time {
	if g.def == nil || g.gone || g.looked != nil || len(generations) > 0 || !d.cfg.Load().Designated ||
		g.def.Rotation.Initial != "now" && g.def.Rotation.Force == "" {
		return time.Time{}
	}
	if g.lookErr != nil {
		return g.lookSince
	}
	return g.row.FirstSeen
}

// plan has the group's next tick fired.
func (d *Daemon) plan(name string) { d.planBy(name, d.next) }

// planBy has the tick fired that next says is the group's.
func (d *Daemon) planBy(name string, next func(group) (tick, at time.Time, missed int)) {
	g, ok := d.groups.get(name)
	if !ok {
		d.runner.Remove(name)
		return
	}
	tick, at, missed := next(g)
	d.runner.Set(name, tick, at, missed)
}

// fire makes rotations of ticks. It is the first durable thing that happens: the
// ticks and their jobs are one transaction, or few where they are many.
func (d *Daemon) fire(ticks []schedule.Tick) {
	for some := range slices.Chunk(ticks, together) {
		d.fireSome(some)
	}
}

func (d *Daemon) fireSome(ticks []schedule.Tick) {
	d.loading.Lock()
	defer d.loading.Unlock()
	d.pulses.goesOn()
	again := func(ticks []schedule.Tick) {
		for _, t := range ticks {
			d.runner.Set(t.Group, t.At, d.Now().Add(tickRetry), t.Missed)
		}
	}
	read, ok := d.keysToPlan(groupsOf(ticks)...)
	if !ok {
		again(ticks)
		return
	}
	var due []schedule.Tick
	var asks []ask
	for _, t := range ticks {
		g, ok := d.groups.get(t.Group)
		if !ok || g.def == nil || g.gone || !d.cfg.Load().Designated {
			continue
		}
		// What is due may have changed since the tick was planned; a clock that was
		// set ahead makes one rotation of the ticks that it passed.
		tick, at, missed := d.nextWith(g, read)
		if tick.IsZero() || at.After(d.Now()) {
			d.runner.Set(t.Group, tick, at, missed)
			continue
		}
		t.At, t.Missed = tick, missed
		trigger := triggerSchedule
		if t.Missed > 0 {
			trigger = triggerMissed
			d.log.Info("ticks have passed unseen: one rotation for all of them", "group", t.Group, "ticks", t.Missed)
		}
		due = append(due, t)
		asks = append(asks, ask{kind: lifecycle.Rotate, group: g.def, trigger: trigger, key: tickKey(t.At), tick: t.At})
	}
	if len(due) == 0 {
		return
	}
	made, err := d.enqueueMany(context.Background(), asks)
	if err != nil {
		again(due)
		return
	}
	for i, t := range due {
		if made[i].Joined {
			d.log.Info("tick joins the rotation that is open", "group", t.Group)
		}
		d.groups.note(t.Group, func(g *group) {
			if t.At.After(g.row.LastTick) {
				g.row.LastTick = t.At
			}
		})
	}
	if read, ok = d.keysToPlan(groupsOf(due)...); !ok {
		again(due)
		return
	}
	for _, t := range due {
		d.planBy(t.Group, func(g group) (tick, at time.Time, missed int) { return d.nextWith(g, read) })
	}
}

func groupsOf(ticks []schedule.Tick) []string {
	names := make([]string, len(ticks))
	for i, t := range ticks {
		names[i] = t.Group
	}
	return names
}

// tickKey is the unique key of a tick's job.
func tickKey(tick time.Time) string { return "tick:" + tick.UTC().Format(time.RFC3339Nano) }
